//! `pflex device stats`: what the storage servers themselves say of their devices, at their management ports.

use pflex_proto::pb::{DeviceStats, Latency, SdsRow, admin_client::AdminClient};

use super::{
    Tool,
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

pub(super) async fn show(tool: &Tool, session: &Session, sds: Option<String>, view: &ViewArgs) -> Result<(), Failure> {
    view.show(tool, async || {
        let fresh = view.freshness();
        let request = sds.as_ref().map_or_else(|| all(fresh), |name| one(fresh, name));
        let rows = ask!(session, "list devices", fresh, AdminClient.list_sds(request))?.sds;
        let answers = futures::future::join_all(rows.iter().map(of_server)).await;
        Ok(Document::List("devices", answers.into_iter().flatten().collect()))
    })
    .await
}

async fn of_server(row: &SdsRow) -> Vec<Record> {
    let Some(sds) = &row.sds else { return Vec::new() };
    let who = format!("sds {}", sds.name);
    let Some(stats) = probe::for_table(&who, sds.addresses.as_ref(), probe::server).await else { return Vec::new() };
    for device in &stats.refused {
        eprintln!("{who}: {} is refused, and left as it is: {}", device.path, device.why);
    }
    stats.devices.iter().map(|device| record(&sds.name, device)).collect()
}

fn record(sds: &str, device: &DeviceStats) -> Record {
    let rates = device.rates.unwrap_or_default();
    let per_second = |bytes: f64| format!("{}/s", format_size(bytes as u64));
    let p = |of: &str, part: f64| quantile(&device.latencies, of, part).map_or(Value::Null, Value::from);
    let fill = match device.journal_bytes {
        0 => 0,
        bytes => device.journal_used_bytes.saturating_mul(100) / bytes,
    };
    Record::new(device.device_id)
        .column("id", "ID", device.device_id)
        .column("sds", "SDS", sds)
        .column("reads_per_second", "READS/S", rates.reads_per_second.round() as u64)
        .column("writes_per_second", "WRITES/S", rates.writes_per_second.round() as u64)
        .column("read_rate", "READ", per_second(rates.read_bytes_per_second))
        .hidden("read_bytes_per_second", rates.read_bytes_per_second.round() as u64)
        .column("write_rate", "WRITTEN", per_second(rates.written_bytes_per_second))
        .hidden("written_bytes_per_second", rates.written_bytes_per_second.round() as u64)
        .column("read_p99_us", "READ P99 US", p("client.read", 0.99))
        .column("write_p99_us", "WRITE P99 US", p("client.write", 0.99))
        .wide("read_p50_us", "READ P50 US", p("client.read", 0.5))
        .wide("write_p50_us", "WRITE P50 US", p("client.write", 0.5))
        .wide("disk_read_p99_us", "DISK READ P99 US", p("disk.read", 0.99))
        .wide("disk_journal_p99_us", "JOURNAL P99 US", p("disk.journal", 0.99))
        .wide("disk_sync_p99_us", "SYNC P99 US", p("disk.sync", 0.99))
        .wide("resync_rate", "FILLING", per_second(rates.resync_bytes_per_second))
        .hidden("resync_bytes_per_second", rates.resync_bytes_per_second.round() as u64)
        .column("used_bytes", "USED", Value::Bytes(device.used_bytes))
        .column("capacity_bytes", "CAPACITY", Value::Bytes(device.capacity_bytes))
        .wide("journal_percent", "JOURNAL %", fill)
        .column("why", "TROUBLE", &device.why)
}

/// In microseconds, since the process started.
pub(super) fn quantile(latencies: &[Latency], of: &str, part: f64) -> Option<u64> {
    let found = latencies.iter().find(|latency| latency.of == of)?;
    let buckets = found.buckets.iter().map(|bucket| (bucket.most_us, bucket.count)).collect();
    pflex_common::histogram::Snapshot { sum_us: found.sum_us, buckets }.quantile_us(part)
}

#[cfg(test)]
mod tests {
    use pflex_proto::pb::{DeviceRates, LatencyBucket};

    use super::*;
    use crate::output::{Format, render};

    #[test]
    fn what_a_server_says_becomes_a_row() {
        let bucket = |most_us, count| LatencyBucket { most_us, count };
        let device = DeviceStats {
            device_id: 3,
            rates: Some(DeviceRates { writes_per_second: 1234.4, written_bytes_per_second: 5e6, ..Default::default() }),
            latencies: vec![Latency {
                of: "client.write".into(),
                sum_us: 0,
                buckets: vec![bucket(399, 98), bucket(511, 1), bucket(9_999, 1)],
            }],
            journal_bytes: 1000,
            journal_used_bytes: 370,
            why: "it is full".into(),
            ..Default::default()
        };
        let list = Document::List("devices", vec![record("sds1", &device)]);
        let json = render(&list, Format::Json);
        for part in
            ["\"writes_per_second\": 1234", "\"write_p99_us\": 511", "\"read_p99_us\": null", "\"journal_percent\": 37"]
        {
            assert!(json.contains(part), "no {part:?} in {json}");
        }
        assert!(render(&list, Format::Table).contains("it is full"));
    }
}
