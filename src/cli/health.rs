//! `pflex health`: what each component reported last.

use pflex_proto::pb::{ClusterStatusRequest, Component, ComponentKind, cluster_client::ClusterClient};

use super::{Tool, target::Target, view::ViewArgs};
use crate::{
    client::ask,
    error::Failure,
    output::{Document, Record, Value},
};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:\n  pflex health --watch=1s")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    view: ViewArgs,
}

pub(super) async fn run(args: Args, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    let view = args.view;
    view.show(tool, async || {
        let fresh = view.freshness();
        let request = ClusterStatusRequest { stale: fresh.is_stale() };
        let status = ask!(session, "show health", fresh, ClusterClient.status(request))?;
        Ok(Document::List("components", status.components.iter().map(record).collect()))
    })
    .await
}

/// A component's kind in the words of the command line.
pub(super) fn kind(component: &Component) -> &'static str {
    match component.kind() {
        ComponentKind::Unspecified => "unknown",
        ComponentKind::Mdm => "mdm",
        ComponentKind::Sds => "sds",
        ComponentKind::Sdc => "sdc",
        ComponentKind::Mgmt => "mgmt",
    }
}

fn record(component: &Component) -> Record {
    let addresses = component.addresses.clone().unwrap_or_default();
    let management = if addresses.management.is_empty() { addresses.api } else { addresses.management };
    let registered = Some(component.registered_at_ms).filter(|ms| *ms > 0).map_or(Value::Null, Value::Time);
    Record::new(&component.name)
        .column("name", "NAME", &component.name)
        .column("kind", "KIND", kind(component))
        .wide("id", "ID", component.id)
        .column("status", "STATUS", &component.status)
        .column("address", "ADDRESS", management)
        .column("version", "VERSION", &component.version)
        .column("registered_at", "REGISTERED", registered)
        .column("registrations", "TIMES", component.registrations)
}
