//! `pflex event`: what happened to the cluster, who did it, and when. The audit: each change of the log is one event.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Subcommand, ValueEnum};
use pflex_proto::pb::{Event, ListEventsRequest, insight_client::InsightClient};

use super::{Tool, target::Target, view::ViewArgs};
use crate::{
    client::ask,
    error::Failure,
    output::{Document, Record, Value},
    units::parse_duration,
};

#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// Everything.
    Info,
    /// What is lost, and worse.
    Warning,
    /// What keeps data out of reach.
    Critical,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the newest events, the oldest of them first.
    #[command(after_help = "Example:\n  pflex event list --since 1h --severity warning")]
    List {
        /// Only those of the last while, like 10m, 2h (or 2d).
        #[arg(long, value_parser = parse_duration, value_name = "TIME")]
        since: Option<Duration>,
        /// Only those of this object, like `sds sds1`.
        #[arg(long, value_name = "OBJECT")]
        object: Option<String>,
        /// Only those that matter as much.
        #[arg(long, value_enum, default_value_t = Severity::Info)]
        severity: Severity,
        /// How many at most.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=4096))]
        limit: u32,
        #[command(flatten)]
        view: ViewArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    let Verb::List { since, object, severity, limit, view } = verb;
    view.show(tool, async || {
        let fresh = view.freshness();
        let request = ListEventsRequest {
            stale: fresh.is_stale(),
            since_ms: since.map_or(0, |since| now_ms().saturating_sub(since.as_millis() as u64)),
            object: object.clone().unwrap_or_default(),
            least_severity: severity.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default(),
            limit,
            ..ListEventsRequest::default()
        };
        let reply = ask!(session, "list events", fresh, InsightClient.events(request))?;
        if reply.more {
            eprintln!("older events match too; --limit shows more of them");
        }
        Ok(Document::List("events", reply.events.iter().map(record).collect()))
    })
    .await
}

/// Events carry the wall clock of the leader; a clock that is wrong shows as such, and nothing else depends on it.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn record(event: &Event) -> Record {
    Record::new(event.revision)
        .column("at", "AT", Value::Time(event.at_ms))
        .column("severity", "SEVERITY", &event.severity)
        .column("object", "OBJECT", &event.object)
        .column("what", "WHAT", &event.what)
        .wide("kind", "KIND", &event.kind)
        .wide("who", "WHO", &event.who)
        .wide("revision", "REVISION", event.revision)
        .hidden("log_time_log_ms", event.log_time_ms)
}
