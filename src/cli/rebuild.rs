//! `pflex rebuild`: how far the copies that pools lack are filled again. Opened and finished by the MDMs themselves.

use clap::{Subcommand, ValueEnum};
use pflex_proto::{
    pb::{
        ListRebuildsRequest, Pool, RebuildRow, SetRebuildPolicyRequest, admin_client::AdminClient,
        work_client::WorkClient,
    },
    rebuild::{RebuildMode, RebuildPolicy},
};

use super::{Tool, complete::Of, names::one, target::Target, view::ViewArgs, vitals::age};
use crate::{
    client::{Freshness, Session, ask, change},
    error::{Exit, Failure},
    output::{Document, Record, Value},
    units::{format_size, parse_size},
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
    /// List the rebuilds, drains and rebalances of each pool, the oldest first: those that are not done, and the last ones
    /// that are.
    #[command(
        after_help = "A rebuild begins when a placement group lacks a copy: a server was lost, came back without its newest\n\
        writes, or a device was emptied. It waits while no such copy can be filled, and is done when all groups of\n\
        the pool are whole. Bytes are counted by the leader from what it heard last, and are the most there can be.\n\n\
        Example:\n  pflex rebuild list --pool default --watch"
    )]
    List {
        /// Only of this pool.
        #[arg(long, add = Of::Pools.candidates())]
        pool: Option<String>,
        /// Only those that are not done.
        #[arg(long)]
        unfinished: bool,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Copy nothing any more to copies that are not whole, until `resume`. What is missing stays missing.
    #[command(after_help = "Example:\n  pflex rebuild pause --pool default")]
    Pause {
        /// Only of this pool [default: all].
        #[arg(long, add = Of::Pools.candidates())]
        pool: Option<String>,
    },
    /// Go on after `pause`.
    #[command(after_help = "Example:\n  pflex rebuild resume")]
    Resume {
        /// Only of this pool [default: all].
        #[arg(long, add = Of::Pools.candidates())]
        pool: Option<String>,
    },
    /// Show or change what filling copies may take from applications, and the space that is kept for it.
    #[command(
        after_help = "The limits are for each device that fills copies of others. They always hold with `limit`, and with\n\
        `favor-app-io` while clients use the device. What is not given stays as it is.\n\n\
        Examples:\n  pflex rebuild policy\n  pflex rebuild policy limit --rate 100MiB --concurrency 4 --pool default"
    )]
    Policy {
        /// When the limits hold.
        mode: Option<Mode>,
        /// Bytes a second; 0 is no limit.
        #[arg(long, value_parser = parse_size)]
        rate: Option<u64>,
        /// Chunks of 1 MiB at once.
        #[arg(long)]
        concurrency: Option<u32>,
        /// Space of each device, in percent, that clients do not get: for copies that lose their place.
        #[arg(long, value_name = "PERCENT")]
        spare: Option<u32>,
        /// Only of this pool [default: all].
        #[arg(long, add = Of::Pools.candidates())]
        pool: Option<String>,
    },
    /// Show one: the newest of a pool, or the one of this number.
    #[command(after_help = "Example:\n  pflex rebuild show default")]
    Show {
        /// The pool, or the number of a rebuild.
        #[arg(value_name = "POOL-OR-NUMBER", add = Of::Pools.candidates())]
        which: String,
        #[command(flatten)]
        view: ViewArgs,
    },
}

/// When the limits of a policy hold.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Never: as fast as it goes, though a device that applications use copies four chunks at a time at most.
    Unlimited,
    /// Always.
    Limit,
    /// While applications use the device.
    FavorAppIo,
}

impl From<Mode> for RebuildMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Unlimited => Self::Unlimited,
            Mode::Limit => Self::Limit,
            Mode::FavorAppIo => Self::FavorAppIo,
        }
    }
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::List { pool, unfinished, view } => {
            view.show(tool, async || {
                let pool = pool.clone().unwrap_or_default();
                let rows = fetch(&session, view.freshness(), pool, unfinished).await?;
                Ok(Document::List("rebuilds", rows.iter().map(record).collect()))
            })
            .await
        }
        Verb::Pause { pool } => {
            let change = SetRebuildPolicyRequest { paused: Some(true), ..asked(pool) };
            set(&session, "pause rebuilds", change).await.map(drop)
        }
        Verb::Resume { pool } => {
            let change = SetRebuildPolicyRequest { paused: Some(false), ..asked(pool) };
            set(&session, "resume rebuilds", change).await.map(drop)
        }
        Verb::Policy { mode, rate, concurrency, spare, pool } => {
            let what = "set the rebuild policy";
            let pools = if mode.is_none() && rate.is_none() && concurrency.is_none() && spare.is_none() {
                policies(&session, pool).await?
            } else {
                let mode = mode.map(|mode| RebuildMode::from(mode).number() as i32);
                let change = SetRebuildPolicyRequest {
                    mode,
                    bytes_per_second: rate,
                    concurrency,
                    spare_percent: spare,
                    ..asked(pool)
                };
                set(&session, what, change).await?
            };
            tool.print(&Document::List("policies", pools.iter().map(policy_record).collect()))
        }
        Verb::Show { which, view } => {
            view.show(tool, async || {
                let rows = fetch(&session, view.freshness(), String::new(), false).await?;
                find(&rows, &which).map(|row| Document::One(record(row))).ok_or_else(|| {
                    Failure::new(Exit::NotFound, format!("rebuild {which}: there is none of this pool or number"))
                        .remedy("`pflex rebuild list` shows those there are")
                })
            })
            .await
        }
    }
}

async fn fetch(
    session: &Session,
    fresh: Freshness,
    pool: String,
    unfinished: bool,
) -> Result<Vec<RebuildRow>, Failure> {
    let request = ListRebuildsRequest { stale: fresh.is_stale(), pool, unfinished };
    Ok(ask!(session, "list rebuilds", fresh, WorkClient.list_rebuilds(request))?.rebuilds)
}

fn asked(pool: Option<String>) -> SetRebuildPolicyRequest {
    SetRebuildPolicyRequest { pool: pool.unwrap_or_default(), ..Default::default() }
}

async fn set(session: &Session, what: &str, change: SetRebuildPolicyRequest) -> Result<Vec<Pool>, Failure> {
    Ok(change!(session, what, WorkClient.set_rebuild_policy(change))?.pools)
}

async fn policies(session: &Session, pool: Option<String>) -> Result<Vec<Pool>, Failure> {
    let fresh = Freshness::Linearizable;
    let request = one(fresh, pool.as_deref().unwrap_or_default());
    let reply = ask!(session, "list pools", fresh, AdminClient.list_pools(request))?;
    Ok(reply.pools.into_iter().filter_map(|row| row.pool).collect())
}

fn policy_record(pool: &Pool) -> Record {
    let policy = pool.rebuild.and_then(|policy| RebuildPolicy::try_from(policy).ok()).unwrap_or_default();
    let rate = match policy.bytes_per_second {
        0 => "no limit".to_owned(),
        bytes => format!("{}/s", format_size(bytes)),
    };
    Record::new(&pool.name)
        .column("pool", "POOL", &pool.name)
        .column("mode", "MODE", policy.mode.name())
        .column("rate", "RATE", rate)
        .hidden("bytes_per_second", policy.bytes_per_second)
        .column("concurrency", "CHUNKS", policy.concurrency)
        .column("spare_percent", "SPARE %", policy.spare_percent)
        .column("paused", "PAUSED", policy.paused)
}

/// A pool of that name goes first: numbers of rebuilds are no names that anybody chose.
fn find<'a>(rows: &'a [RebuildRow], which: &str) -> Option<&'a RebuildRow> {
    let newest = rows.iter().rev().find(|row| row.pool == which);
    newest.or_else(|| rows.iter().find(|row| Some(row.id) == which.parse().ok()))
}

fn record(row: &RebuildRow) -> Record {
    let total = row.groups_left + row.groups_done;
    let rate = row.bytes_per_second.map_or_else(String::new, |bytes| format!("{}/s", format_size(bytes)));
    let time = |ms: u64| if ms == 0 { Value::Null } else { Value::Time(ms) };
    Record::new(row.id)
        .column("id", "ID", row.id)
        .column("pool", "POOL", &row.pool)
        .column("kind", "KIND", &row.kind)
        .column("state", "STATE", &row.state)
        .column("progress", "GROUPS DONE", format!("{} of {total}", row.groups_done))
        .hidden("groups_done", row.groups_done)
        .hidden("groups_left", row.groups_left)
        .hidden("copies_left", row.copies_left)
        .column("bytes_left", "BYTES LEFT", row.bytes_left.map_or(Value::Null, Value::Bytes))
        .column("rate", "RATE", rate)
        .hidden("bytes_per_second", row.bytes_per_second)
        .column("eta", "ETA", row.eta_ms.map_or_else(String::new, |ms| format!("about {}", age(ms))))
        .hidden("eta_ms", row.eta_ms)
        .column("waits_for", "WAITS FOR", row.waits_for.clone())
        .column("took", "TOOK", age(row.duration_ms))
        .hidden("duration_ms", row.duration_ms)
        .detail("why", "WHY", &row.why)
        .detail("opened_at", "BEGAN", time(row.opened_at_ms))
        .detail("finished_at", "DONE", time(row.finished_at_ms))
        .wide("opened_revision", "BEGAN AT", row.opened_revision)
        .hidden("finished_revision", Some(row.finished_revision).filter(|revision| *revision > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, render};

    fn row(id: u64, pool: &str) -> RebuildRow {
        RebuildRow {
            id,
            pool: pool.into(),
            state: "running".into(),
            groups_left: 28,
            groups_done: 12,
            ..Default::default()
        }
    }

    #[test]
    fn one_is_found_by_its_pool_or_its_number() {
        let rows = [row(3, "a"), row(7, "a"), row(5, "b")];
        let found = |which| find(&rows, which).map(|row| row.id);
        assert_eq!(
            [found("a"), found("b"), found("3"), found("9"), found("c")],
            [Some(7), Some(5), Some(3), None, None]
        );
    }

    #[test]
    fn a_table_is_short_and_data_has_numbers() {
        let mut row = row(7, "default");
        row.waits_for = vec!["sds3 is DOWN".into()];
        row.bytes_per_second = Some(3 << 20);
        row.bytes_left = Some(30 << 20);
        row.eta_ms = Some(10_000);
        row.duration_ms = 61_000;
        let table = render(&Document::List("rebuilds", vec![record(&row)]), Format::Table);
        for part in ["running", "12 of 40", "30 MiB", "3 MiB/s", "about 10 s", "sds3 is DOWN", "61 s"] {
            assert!(table.contains(part), "no {part:?} in {table}");
        }
        let json = render(&Document::One(record(&row)), Format::Json);
        for part in ["\"groups_left\": 28", "\"bytes_left\": 31457280", "\"eta_ms\": 10000", "\"finished_at\": null"] {
            assert!(json.contains(part), "no {part:?} in {json}");
        }
    }
}
