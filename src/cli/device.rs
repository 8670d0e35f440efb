//! `pflex device`: the disks of the storage servers, as they registered them.

use clap::Subcommand;
use pflex_proto::{
    ids::DeviceUuid,
    pb::{Device, admin_client::AdminClient},
};

use super::{
    Tool,
    complete::Of,
    names::{all, one},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::ask,
    error::Failure,
    output::{Document, Record, Value},
};

#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the devices.
    #[command(after_help = "Example:\n  pflex device list --sds sds1")]
    List {
        /// Only those of this server.
        #[arg(long, value_name = "NAME", add = Of::Servers.candidates())]
        sds: Option<String>,
        #[command(flatten)]
        view: ViewArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    let Verb::List { sds, view } = verb;
    view.show(tool, async || {
        let fresh = view.freshness();
        let request = sds.as_ref().map_or_else(|| all(fresh), |name| one(fresh, name));
        let reply = ask!(session, "list devices", fresh, AdminClient.list_sds(request))?;
        let mut records = Vec::new();
        for row in &reply.sds {
            let server = row.sds.as_ref().map(|sds| sds.name.as_str()).unwrap_or_default();
            records.extend(row.devices.iter().map(|device| record(device, server)));
        }
        Ok(Document::List("devices", records))
    })
    .await
}

fn record(device: &Device, server: &str) -> Record {
    Record::new(device.id)
        .column("id", "ID", device.id)
        .column("sds", "SDS", server)
        .column("path", "PATH", &device.path)
        .column("capacity_bytes", "CAPACITY", Value::Bytes(device.capacity_bytes))
        .column("incarnation", "INCARNATION", device.incarnation)
        .wide("uuid", "UUID", DeviceUuid::from_slice(&device.uuid).ok().map(|uuid| uuid.to_string()))
}
