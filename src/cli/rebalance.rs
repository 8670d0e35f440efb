//! `pflex pool rebalance`: copies move so that each device holds its share; or which would.

use std::time::{Duration, Instant};

use pflex_proto::pb::{
    ListRebuildsRequest, PlanRebalanceReply, PlanRebalanceRequest, RebalanceRequest, topology_client::TopologyClient,
    work_client::WorkClient,
};

use super::{Tool, names::Names};
use crate::{
    client::{Freshness, Session, ask, change},
    error::{Exit, Failure},
    output::{self, Document, Format, Record, Value},
    units::{format_duration, format_size},
};

/// With `--wait`: a large pool takes long.
const LONG: Duration = Duration::from_secs(24 * 3_600);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Only say what would move.
    #[arg(long)]
    dry_run: bool,
    /// Wait until it is done [default limit: 24h].
    #[arg(long, conflicts_with_all = ["dry_run", "cancel"])]
    wait: bool,
    /// End it: copies that have not moved stay.
    #[arg(long, conflicts_with = "dry_run")]
    cancel: bool,
}

pub(super) async fn run(tool: &Tool, session: &Session, pool: &str, args: &Args) -> Result<(), Failure> {
    let what = format!("rebalance pool {pool}");
    if args.dry_run {
        return dry_run(tool, session, &what, pool).await;
    }
    let request = RebalanceRequest { request: None, pool: pool.to_owned(), cancel: args.cancel };
    let moves = change!(session, &what, TopologyClient.rebalance(request))?.moves;
    match moves {
        _ if args.cancel => eprintln!("pool {pool} is not rebalanced any more"),
        0 => eprintln!("pool {pool}: every device holds its share; nothing is to move"),
        _ => eprintln!("pool {pool}: {moves} copies are to move; `pflex rebuild list` shows how far it is"),
    }
    if !args.wait {
        return Ok(());
    }
    let limit = tool.options.timeout.unwrap_or(LONG);
    let deadline = Instant::now() + limit;
    loop {
        let fresh = Freshness::Linearizable;
        let request = ListRebuildsRequest { stale: false, pool: pool.to_owned(), unfinished: true };
        let rows = ask!(session, &what, fresh, WorkClient.list_rebuilds(request))?.rebuilds;
        let Some(row) = rows.iter().find(|row| row.kind == "rebalance") else { return Ok(()) };
        if Instant::now() >= deadline {
            let waits = row.waits_for.join("; ");
            let why = format!("{what}: after {} {} groups are left; {waits}", format_duration(limit), row.groups_left);
            return Err(
                Failure::new(Exit::TimedOut, why).remedy("it goes on; `pflex rebuild list` shows how far it is")
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn dry_run(tool: &Tool, session: &Session, what: &str, pool: &str) -> Result<(), Failure> {
    let fresh = Freshness::Linearizable;
    let devices = Names::devices(session, fresh).await?;
    let request = PlanRebalanceRequest { stale: false, pool: pool.to_owned() };
    let plan = ask!(session, what, fresh, TopologyClient.plan_rebalance(request))?;
    match tool.format(Format::Table) {
        format @ (Format::Table | Format::Wide | Format::Csv | Format::Name) => {
            let moves = plan.moves.iter().map(|step| {
                let (from, to) = (devices.of(step.from_device_id), devices.of(step.to_device_id));
                Record::new(pg(step))
                    .column("pg", "PG", pg(step))
                    .column("from", "FROM", from)
                    .column("to", "TO", to)
                    .column("bytes", "BYTES", plan.bytes_per_copy.map_or(Value::Null, Value::Bytes))
            });
            output::print(&Document::List("moves", moves.collect()), format)?;
            summary(&plan, &devices).iter().for_each(|line| eprintln!("{line}"));
            Ok(())
        }
        format @ (Format::Json | Format::Yaml) => output::print(&Document::One(record(pool, &plan, &devices)), format),
    }
}

fn pg(step: &pflex_proto::pb::CopyMove) -> String {
    let pg = step.pg.unwrap_or_default();
    format!("{}.{}", pg.pool_id, pg.index)
}

/// What a person wants to know before the list of moves.
fn summary(plan: &PlanRebalanceReply, devices: &Names) -> Vec<String> {
    let percent = |permille: u32| format!("{}.{} %", permille / 10, permille % 10);
    let amount = match plan.bytes_per_copy {
        Some(bytes) => format!(", about {}", format_size(bytes.saturating_mul(plan.moves.len() as u64))),
        None => String::new(),
    };
    let mut lines = vec![
        format!(
            "{} of {} copies would move{amount}; the least possible is {}",
            plan.moves.len(),
            plan.copies,
            plan.least
        ),
        format!(
            "the device furthest from its share is off by {} now and by {} afterwards",
            percent(plan.imbalance_before_permille),
            percent(plan.imbalance_after_permille)
        ),
    ];
    if !plan.out_of_service_device_ids.is_empty() {
        let names: Vec<String> = plan.out_of_service_device_ids.iter().map(|id| devices.of(*id)).collect();
        lines.push(format!("out of service, so the plan takes them for gone: {}", names.join(", ")));
    }
    lines
}

fn record(pool: &str, plan: &PlanRebalanceReply, devices: &Names) -> Record {
    let step = |step: &pflex_proto::pb::CopyMove| {
        Value::Object(vec![
            ("pg", pg(step).into()),
            ("from", devices.of(step.from_device_id).into()),
            ("to", devices.of(step.to_device_id).into()),
            ("from_device_id", step.from_device_id.into()),
            ("to_device_id", step.to_device_id.into()),
            ("bytes", plan.bytes_per_copy.map_or(Value::Null, Value::Bytes)),
        ])
    };
    let moved = plan.bytes_per_copy.map(|bytes| bytes.saturating_mul(plan.moves.len() as u64));
    Record::new(pool)
        .column("pool", "POOL", pool)
        .column("revision", "REVISION", plan.revision)
        .column("moves_total", "MOVES", plan.moves.len())
        .column("least_moves", "LEAST", plan.least)
        .column("copies", "COPIES", plan.copies)
        .column("moved_bytes", "BYTES", moved.map_or(Value::Null, Value::Bytes))
        .column("imbalance_before_permille", "IMBALANCE", plan.imbalance_before_permille)
        .column("imbalance_after_permille", "IMBALANCE AFTER", plan.imbalance_after_permille)
        .column("out_of_service_device_ids", "OUT OF SERVICE", plan.out_of_service_device_ids.clone())
        .column("moves", "MOVED", Value::List(plan.moves.iter().map(step).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_how_much_and_what_for() {
        let plan = PlanRebalanceReply {
            moves: vec![pflex_proto::pb::CopyMove::default(); 3],
            least: 3,
            copies: 16,
            imbalance_before_permille: 1_000,
            imbalance_after_permille: 67,
            bytes_per_copy: Some(1 << 20),
            out_of_service_device_ids: vec![4],
            ..PlanRebalanceReply::default()
        };
        let lines = summary(&plan, &Names::default());
        assert_eq!(lines[0], "3 of 16 copies would move, about 3 MiB; the least possible is 3");
        assert_eq!(lines[1], "the device furthest from its share is off by 100.0 % now and by 6.7 % afterwards");
        assert!(lines[2].ends_with("gone: #4"), "{lines:?}");
        let unknown = summary(&PlanRebalanceReply { bytes_per_copy: None, ..plan }, &Names::default());
        assert_eq!(unknown[0], "3 of 16 copies would move; the least possible is 3");
    }
}
