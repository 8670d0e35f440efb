//! `pflex sdc stats`: what the storage clients themselves say of the volumes mapped to them, at their management ports.

use pflex_proto::pb::{SdcRow, VolumeStats, admin_client::AdminClient};

use super::{
    Tool,
    device_stats::quantile,
    names::{all, one},
    view::ViewArgs,
};
use crate::{
    client::{Session, ask},
    error::Failure,
    output::{Document, Record, Value},
    probe,
    units::format_size,
};

pub(super) async fn show(tool: &Tool, session: &Session, sdc: Option<String>, view: &ViewArgs) -> Result<(), Failure> {
    view.show(tool, async || {
        let fresh = view.freshness();
        let request = sdc.as_ref().map_or_else(|| all(fresh), |name| one(fresh, name));
        let rows = ask!(session, "list SDCs", fresh, AdminClient.list_sdcs(request))?.sdcs;
        let answers = futures::future::join_all(rows.iter().map(of_client)).await;
        Ok(Document::List("mappings", answers.into_iter().flatten().collect()))
    })
    .await
}

async fn of_client(row: &SdcRow) -> Vec<Record> {
    let Some(sdc) = &row.sdc else { return Vec::new() };
    let who = format!("sdc {}", sdc.name);
    let Some(stats) = probe::for_table(&who, sdc.addresses.as_ref(), probe::client).await else { return Vec::new() };
    if stats.resumed {
        eprintln!("{who}: goes on with the map and tokens it kept; no MDM has answered it yet");
    }
    stats.volumes.iter().map(|volume| record(&sdc.name, volume)).collect()
}

fn record(sdc: &str, volume: &VolumeStats) -> Record {
    let per_second = |bytes: f64| format!("{}/s", format_size(bytes as u64));
    let p = |of: &str, part: f64| quantile(&volume.latencies, of, part).map_or(Value::Null, Value::from);
    // No limit is null, not 0: a reader must not take it for "nothing allowed".
    let limit = |value: u64| Some(value).filter(|value| *value > 0);
    Record::new(&volume.name)
        .column("volume", "VOLUME", &volume.name)
        .column("sdc", "SDC", sdc)
        .wide("access", "ACCESS", if volume.read_only { "ro" } else { "rw" })
        .column("reads_per_second", "READS/S", volume.reads_per_second.round() as u64)
        .column("writes_per_second", "WRITES/S", volume.writes_per_second.round() as u64)
        .column("read_rate", "READ", per_second(volume.read_bytes_per_second))
        .hidden("read_bytes_per_second", volume.read_bytes_per_second.round() as u64)
        .column("write_rate", "WRITTEN", per_second(volume.written_bytes_per_second))
        .hidden("written_bytes_per_second", volume.written_bytes_per_second.round() as u64)
        .column("read_p99_us", "READ P99 US", p("read", 0.99))
        .column("write_p99_us", "WRITE P99 US", p("write", 0.99))
        .wide("read_p50_us", "READ P50 US", p("read", 0.5))
        .wide("write_p50_us", "WRITE P50 US", p("write", 0.5))
        .wide("flush_p99_us", "FLUSH P99 US", p("flush", 0.99))
        .wide("reads", "READS", volume.reads)
        .wide("read_bytes", "READ BYTES", Value::Bytes(volume.read_bytes))
        .wide("writes", "WRITES", volume.writes)
        .wide("written_bytes", "WRITTEN BYTES", Value::Bytes(volume.written_bytes))
        .wide("retries", "RETRIES", volume.retries)
        .column("errors", "ERRORS", volume.errors)
        .wide("longest_stall_us", "LONGEST STALL US", volume.longest_stall_us)
        .column("iops_limit", "IOPS LIMIT", limit(volume.iops_limit))
        .column(
            "bandwidth_limit_bytes",
            "BYTES/S LIMIT",
            limit(volume.bandwidth_limit).map_or(Value::Null, Value::Bytes),
        )
        .column("throttled", "HELD BACK", volume.throttled)
        .wide("throttled_us", "HELD BACK US", volume.throttled_us)
        .wide("waiting", "WAITING", volume.waiting)
}

#[cfg(test)]
mod tests {
    use pflex_proto::pb::{Latency, LatencyBucket};

    use super::*;
    use crate::output::{Format, render};

    #[test]
    fn what_a_client_says_becomes_a_row() {
        let buckets = vec![LatencyBucket { most_us: 399, count: 99 }, LatencyBucket { most_us: 9_999, count: 1 }];
        let volume = VolumeStats {
            name: "db".into(),
            writes_per_second: 499.6,
            latencies: vec![Latency { of: "write".into(), sum_us: 0, buckets }],
            iops_limit: 500,
            throttled: 7,
            ..Default::default()
        };
        let list = Document::List("mappings", vec![record("sdc1", &volume)]);
        let json = render(&list, Format::Json);
        for part in [
            "\"writes_per_second\": 500",
            "\"write_p99_us\": 399",
            "\"read_p99_us\": null",
            "\"iops_limit\": 500",
            "\"bandwidth_limit_bytes\": null",
            "\"throttled\": 7",
        ] {
            assert!(json.contains(part), "no {part:?} in {json}");
        }
        assert!(render(&list, Format::Table).contains("sdc1"));
    }
}
