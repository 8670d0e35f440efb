//! `pflex pool`: storage pools, where volumes get their space and their number of copies.

use clap::{Subcommand, ValueEnum};
use pflex_proto::pb::{
    CreatePoolRequest, DeleteRequest, ListRequest, Pool, PoolRow, RenameKind, WritePolicy, admin_client::AdminClient,
};

use super::{
    Tool,
    complete::Of,
    doubling,
    names::{Names, freshness},
    object::{self, Kind},
    rebalance, scrub,
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Session, ask, change},
    confirm::ConfirmArgs,
    error::Failure,
    output::{Record, Value},
};

#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// When a write is acknowledged.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// When every in-sync copy has it on disk.
    Sync,
    /// When every in-sync copy has it in memory; a flush makes it durable.
    Writeback,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Make a pool.
    #[command(after_help = "Example:\n  pflex pool create fast --domain default --copies 2")]
    Create {
        name: String,
        /// The protection domain whose servers give the space.
        #[arg(long, add = Of::Domains.candidates())]
        domain: String,
        /// Copies of each chunk.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3))]
        copies: u32,
        /// Placement groups, a power of two [default: the MDM's].
        #[arg(long, value_parser = power_of_two)]
        pgs: Option<u32>,
        /// When a write is acknowledged.
        #[arg(long, value_enum, default_value_t = Policy::Sync)]
        write_policy: Policy,
        /// Succeed if it exists already.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List the pools.
    #[command(after_help = "Example:\n  pflex pool list -o wide")]
    List {
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Show one.
    #[command(after_help = "Example:\n  pflex pool show default -o json")]
    Show {
        #[arg(add = Of::Pools.candidates())]
        name: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Give one another name.
    #[command(after_help = "Example:\n  pflex pool rename fast faster")]
    Rename {
        #[arg(add = Of::Pools.candidates())]
        name: String,
        new_name: String,
    },
    /// Give one twice as many placement groups, or four times, and so on, while IO goes on.
    #[command(
        after_help = "Each group becomes two with the same copies on the same devices, so nothing is copied; later copies even out\n\
        by themselves. There is no way back. Servers and clients have to be of a version that follows it, and those that are\n\
        not are named.\n\n\
        Example:\n  pflex pool set-pgs default 128"
    )]
    SetPgs {
        #[arg(add = Of::Pools.candidates())]
        name: String,
        /// A power of two, as many as it has or more.
        #[arg(value_parser = doubling::count)]
        count: u32,
    },
    /// Move copies so that each device holds its share. By itself that is done while the setting rebalance.auto is 1.
    #[command(
        after_help = "A few groups move at a time (setting rebalance.groups_per_device), and none ever has fewer copies than\n\
        before. `pflex rebuild list` shows how far it is.\n\n\
        Example:\n  pflex pool rebalance default --dry-run\n  pflex pool rebalance default --wait"
    )]
    Rebalance {
        #[arg(add = Of::Pools.candidates())]
        name: String,
        #[command(flatten)]
        how: rebalance::Args,
    },
    /// Read every chunk on every copy now and compare the copies; what cannot be read comes from another copy.
    ///
    /// It goes on in the background, as fast as the setting scrub.rate_mib_s says; without a command it begins by itself
    /// each scrub.interval_s. `pflex pool show` has its progress and what the last one found.
    #[command(after_help = "Example:\n  pflex pool scrub default --wait")]
    Scrub {
        #[arg(add = Of::Pools.candidates())]
        name: String,
        /// Until it is over; fails when there is data that no copy can read.
        #[arg(long)]
        wait: bool,
    },
    /// Remove one without volumes.
    #[command(after_help = "Example:\n  pflex pool delete fast --yes")]
    Delete {
        #[arg(add = Of::Pools.candidates())]
        name: String,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
}

pub(super) fn power_of_two(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(count) if count.is_power_of_two() => Ok(count),
        _ => Err("a number of placement groups is a power of two, like 64 or 256".to_owned()),
    }
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::Create { name, domain, copies, pgs, write_policy, if_not_exists } => {
            let what = format!("create pool {name}");
            let write_policy = match write_policy {
                Policy::Sync => WritePolicy::Sync,
                Policy::Writeback => WritePolicy::Writeback,
            };
            let request = CreatePoolRequest {
                request: None,
                name: name.clone(),
                domain,
                copies,
                pg_count: pgs.unwrap_or(0),
                write_policy: write_policy.into(),
                if_not_exists,
            };
            change!(session, &what, AdminClient.create_pool(request))?;
            object::print::<Pools>(tool, &session, &name).await
        }
        Verb::List { view } => object::list::<Pools>(tool, &session, &view).await,
        Verb::Show { name, view } => object::show::<Pools>(tool, &session, &name, &view).await,
        Verb::Rename { name, new_name } => {
            object::rename::<Pools>(tool, &session, RenameKind::Pool, &name, &new_name).await
        }
        Verb::SetPgs { name, count } => {
            doubling::run(tool, &session, &name, count).await?;
            object::print::<Pools>(tool, &session, &name).await
        }
        Verb::Rebalance { name, how } => rebalance::run(tool, &session, &name, &how).await,
        Verb::Scrub { name, wait } => {
            scrub::run(tool, &session, &name, wait).await?;
            object::print::<Pools>(tool, &session, &name).await
        }
        Verb::Delete { name, confirm } => object::remove::<Pools>(&session, &name, confirm).await,
    }
}

struct Pools;

impl Kind for Pools {
    const NOUN: &'static str = "pool";
    const NOUNS: &'static str = "pools";
    const COMMAND: &'static str = "pool";

    async fn records(session: &Session, what: &str, request: ListRequest) -> Result<Vec<Record>, Failure> {
        let fresh = freshness(&request);
        let domains = Names::domains(session, fresh).await?;
        let reply = ask!(session, what, fresh, AdminClient.list_pools(request))?;
        Ok(reply.pools.iter().map(|row| record(row, &domains)).collect())
    }

    async fn remove(session: &Session, what: &str, request: DeleteRequest) -> Result<(), Failure> {
        change!(session, what, AdminClient.delete_pool(request)).map(drop)
    }
}

fn record(row: &PoolRow, domains: &Names) -> Record {
    let pool: Pool = row.pool.clone().unwrap_or_default();
    let policy = match pool.write_policy() {
        WritePolicy::Sync | WritePolicy::Unspecified => "sync",
        WritePolicy::Writeback => "writeback",
    };
    let record = Record::new(&pool.name)
        .column("name", "NAME", &pool.name)
        .wide("id", "ID", pool.id)
        .column("domain", "DOMAIN", domains.of(pool.domain_id))
        .column("copies", "COPIES", pool.copies)
        .column("write_policy", "WRITE POLICY", policy)
        .column("capacity_bytes", "CAPACITY", Value::Bytes(row.capacity_bytes))
        .column("provisioned_bytes", "PROVISIONED", Value::Bytes(row.provisioned_bytes))
        .column("used_bytes", "USED", Value::Bytes(row.used_bytes))
        .column("pgs", "PGS", pool.pg_count)
        .wide("pgs_active", "ACTIVE", row.pgs_active)
        .column("pgs_degraded", "DEGRADED", row.pgs_degraded)
        .column("pgs_unavailable", "UNAVAILABLE", row.pgs_unavailable)
        .wide("pgs_unassigned", "UNASSIGNED", row.pgs_unassigned)
        .wide("devices_to_follow", "TO FOLLOW", row.devices_to_follow);
    scrub::columns(record, row.scrub.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_groups_come_in_powers_of_two() {
        assert_eq!(power_of_two("64"), Ok(64));
        for bad in ["0", "3", "-1", "x"] {
            assert!(power_of_two(bad).is_err(), "{bad}");
        }
    }
}
