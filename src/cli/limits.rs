//! `pflex limits`: each limit, and how close the cluster is to it.

use pflex_proto::pb::{Limit, LimitsRequest, insight_client::InsightClient};

use super::{Tool, target::Target, view::ViewArgs};
use crate::{
    client::ask,
    error::Failure,
    output::{Document, Record, Value},
};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:\n  pflex limits -o json | jq '.[] | select(.used * 10 > .limit * 8)'")]
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
        let request = LimitsRequest { stale: fresh.is_stale() };
        let reply = ask!(session, "list limits", fresh, InsightClient.limits(request))?;
        Ok(Document::List("limits", reply.limits.iter().map(record).collect()))
    })
    .await
}

fn record(limit: &Limit) -> Record {
    let amount = |value| if limit.name.starts_with("bytes") { Value::Bytes(value) } else { Value::Count(value) };
    Record::new(&limit.name)
        .column("name", "LIMIT OF", &limit.name)
        .column("used", "USED", amount(limit.used))
        .column("limit", "LIMIT", amount(limit.limit))
        .column("object", "FULLEST", &limit.object)
}
