//! `pflex health`: how each component is and was.

use clap::Subcommand;
use pflex_proto::pb::{
    ClusterStatusRequest, Component, ComponentKind, Sample, SamplesRequest, cluster_client::ClusterClient,
    vitals_client::VitalsClient,
};

pub(super) use super::vitals::kind;
use super::{Tool, target::Target, view::ViewArgs, vitals};
use crate::{
    client::ask,
    error::{Exit, Failure},
    output::{Document, Record, Value},
};

#[derive(clap::Args, Clone, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  pflex health --watch=1s\n  pflex health history sds sds1"
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    view: ViewArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Clone, Debug)]
enum Verb {
    /// The samples of the last while: sums over the cluster, or how one component reported.
    #[command(after_help = "Examples:\n  pflex health history\n  pflex health history sdc sdc1")]
    History {
        /// A noun and a name, like `sds sds1`.
        #[arg(num_args = 2, value_names = ["KIND", "NAME"])]
        component: Option<Vec<String>>,
        /// How many samples at most; there is one a minute.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1440))]
        limit: u32,
        #[command(flatten)]
        view: ViewArgs,
    },
}

pub(super) async fn run(args: Args, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    if let Some(Verb::History { component, limit, view }) = args.verb {
        let (kind, name) = component_of(component.as_deref().unwrap_or_default())?;
        return view
            .show(tool, async || {
                let fresh = view.freshness();
                let request = SamplesRequest { stale: fresh.is_stale(), limit, kind: kind.into(), name: name.clone() };
                let reply = ask!(session, "show the history of health", fresh, VitalsClient.samples(request))?;
                if reply.more {
                    eprintln!("older samples are kept too; --limit shows more of them");
                }
                let of_one = !name.is_empty();
                let rows = reply.samples.iter();
                let rows = rows.map(|sample| if of_one { heartbeats(sample) } else { sums(sample) });
                Ok(Document::List("samples", rows.collect()))
            })
            .await;
    }
    let view = args.view;
    view.show(tool, async || {
        let fresh = view.freshness();
        let request = ClusterStatusRequest { stale: fresh.is_stale() };
        let status = ask!(session, "show health", fresh, ClusterClient.status(request))?;
        let rows = status.components.iter().map(|component| record(component, status.log_time_ms));
        Ok(Document::List("components", rows.collect()))
    })
    .await
}

fn component_of(words: &[String]) -> Result<(ComponentKind, String), Failure> {
    let [kind, name] = words else { return Ok((ComponentKind::Unspecified, String::new())) };
    let kind = match kind.as_str() {
        "mdm" => ComponentKind::Mdm,
        "sds" => ComponentKind::Sds,
        "sdc" => ComponentKind::Sdc,
        "mgmt" => ComponentKind::Mgmt,
        other => {
            let what = format!("{other} is no kind of component");
            return Err(Failure::new(Exit::Usage, what).remedy("say mdm, sds, sdc or mgmt, and a name"));
        }
    };
    Ok((kind, name.clone()))
}

fn record(component: &Component, now_log_ms: u64) -> Record {
    let addresses = component.addresses.clone().unwrap_or_default();
    let management = if addresses.management.is_empty() { addresses.api } else { addresses.management };
    let registered = Some(component.registered_at_ms).filter(|ms| *ms > 0).map_or(Value::Null, Value::Time);
    let since = Some(component.since_log_ms).filter(|at| *at > 0);
    let since = since.map(|at| vitals::age(now_log_ms.saturating_sub(at)));
    let counts = component.oscillation.unwrap_or_default();
    Record::new(&component.name)
        .column("name", "NAME", &component.name)
        .column("kind", "KIND", kind(component))
        .wide("id", "ID", component.id)
        .column("status", "STATUS", &component.status)
        .column("for", "FOR", since)
        .column("heard", "HEARD", vitals::heard(component))
        .column("losses", "LOSSES 1M/1H/1D", vitals::oscillation(component))
        .column("address", "ADDRESS", management)
        .column("version", "VERSION", &component.version)
        .wide("host", "HOST", component.host.clone().unwrap_or_default().host_name)
        .wide("registered_at", "REGISTERED", registered)
        .column("registrations", "STARTS", component.registrations)
        .wide("why", "WHY", &component.why)
        .hidden("since_log_ms", component.since_log_ms)
        .hidden("heard_ms_ago", component.heard_ms_ago)
        .hidden("losses_minute", counts.minute)
        .hidden("losses_hour", counts.hour)
        .hidden("losses_day", counts.day)
        .hidden("kept_out_until_log_ms", Some(component.kept_out_until_log_ms).filter(|until| *until != 0))
}

fn sums(sample: &Sample) -> Record {
    let metric = |name: &str| sample.metrics.iter().find(|metric| metric.name == name).map_or(0, |metric| metric.value);
    let all = sample
        .metrics
        .iter()
        .map(|metric| Value::Object(vec![("name", (&metric.name).into()), ("value", metric.value.into())]));
    Record::new(sample.revision)
        .column("at", "AT", Value::Time(sample.at_ms))
        .column("active", "ACTIVE", metric("cluster.components_active"))
        .column("stale", "STALE", metric("cluster.components_stale"))
        .column("down", "DOWN", metric("cluster.components_down"))
        .column("degraded", "DEGRADED", metric("cluster.pgs_degraded"))
        .column("unavailable", "UNAVAILABLE", metric("cluster.pgs_unavailable"))
        .column("used_bytes", "USED", Value::Bytes(metric("cluster.used_bytes")))
        .column("reads", "READS", metric("pflex.sdc.reads"))
        .column("writes", "WRITES", metric("pflex.sdc.writes"))
        .wide("revision", "REVISION", sample.revision)
        .hidden("log_time_log_ms", sample.log_time_ms)
        .hidden("metrics", Value::List(all.collect()))
}

fn heartbeats(sample: &Sample) -> Record {
    let found = sample.heartbeats;
    Record::new(sample.revision)
        .column("at", "AT", Value::Time(sample.at_ms))
        .column("reports", "REPORTS", found.map(|found| found.reports))
        .column("longest_gap_ms", "LONGEST GAP MS", found.map(|found| found.longest_gap_ms))
        .column("silent_ms", "SILENT MS", found.map(|found| found.silent_ms))
        .wide("revision", "REVISION", sample.revision)
        .hidden("log_time_log_ms", sample.log_time_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_named_by_its_kind_and_name() {
        let words = |words: &[&str]| component_of(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["sds", "a"]).unwrap(), (ComponentKind::Sds, "a".to_owned()));
        assert_eq!(words(&[]).unwrap().1, "");
        assert_eq!(words(&["volume", "a"]).unwrap_err().exit(), Exit::Usage);
    }
}
