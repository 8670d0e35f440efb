//! `pflex pg`: placement groups, and the forced promotion of a copy that is not in sync (rule S12).

use std::{collections::BTreeMap, time::Instant};

use clap::Subcommand;
use pflex_proto::pb::{
    FreezePgRequest, ListPgsRequest, Pg, Pool, PromotePgRequest, UnfreezePgRequest, admin_client::AdminClient,
    recovery_client::RecoveryClient,
};

use super::{
    Tool,
    complete::Of,
    names::{Names, all},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Freshness, Session, ask, change},
    confirm::{ConfirmArgs, confirm_to},
    error::{Exit, Failure},
    output::{Document, Record, Value},
    units::format_duration,
};

/// For a forced promotion in all: the old tokens end after 70 s, and a new leader counts anew.
const LONG: std::time::Duration = std::time::Duration::from_secs(300);
/// Between two looks whether it may be carried out.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

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
    /// List the placement groups.
    #[command(after_help = "Example:\n  pflex pg list --pool default --unhealthy")]
    List {
        /// Only of this pool.
        #[arg(long, add = Of::Pools.candidates())]
        pool: Option<String>,
        /// Only those without all their copies in sync.
        #[arg(long)]
        unhealthy: bool,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Show one.
    #[command(after_help = "Example:\n  pflex pg show default.17")]
    Show {
        /// The group: its pool, by name or number, and its number there.
        #[arg(value_name = "POOL.NUMBER")]
        pg: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Make a copy that is not in sync the only one, and give up what only the others have.
    #[command(
        after_help = "For a group whose in-sync copies are all away and will not return. Their writes since the copy left the\n\
        group are lost. First the group is frozen: from then on no volume of its pool gets new tokens, so their IO\n\
        waits. Once no older token can be used any more (70 s, or at once if the old copies are proven dead), the\n\
        copy is promoted. Interrupted, the group stays frozen: run it again, or `pflex pg unfreeze`. An old copy\n\
        that comes back later is stale, and is filled from the new one.\n\n\
        Example:\n  pflex pg force-promote default.17 --copy sds2 --yes"
    )]
    ForcePromote {
        /// The group: its pool, by name or number, and its number there.
        #[arg(value_name = "POOL.NUMBER")]
        pg: String,
        /// The copy to promote: its device's number, or its server's name.
        #[arg(long, value_name = "DEVICE-OR-SDS")]
        copy: String,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// Give a forced promotion up, while it is not carried out.
    #[command(after_help = "Example:\n  pflex pg unfreeze default.17")]
    Unfreeze {
        /// The group: its pool, by name or number, and its number there.
        #[arg(value_name = "POOL.NUMBER")]
        pg: String,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::List { pool, unhealthy, view } => {
            view.show(tool, async || {
                let table = Groups::load(&session, view.freshness(), pool.clone().unwrap_or_default()).await?;
                let rows = table.pgs.iter().filter(|pg| !unhealthy || !table.is_whole(pg));
                Ok(Document::List("pgs", rows.map(|pg| table.record(pg)).collect()))
            })
            .await
        }
        Verb::Show { pg, view } => {
            view.show(tool, async || {
                let table = Groups::load(&session, view.freshness(), String::new()).await?;
                let (_, pg) = table.find(&pg)?;
                Ok(Document::One(table.record(pg)))
            })
            .await
        }
        Verb::ForcePromote { pg, copy, confirm } => force_promote(tool, &session, &pg, &copy, confirm).await,
        Verb::Unfreeze { pg } => {
            let table = Groups::load(&session, Freshness::Linearizable, String::new()).await?;
            let (pool, found) = table.find(&pg)?;
            let request = UnfreezePgRequest { request: None, pool: pool.name.clone(), index: index(found) };
            change!(session, &format!("unfreeze pg {pg}"), RecoveryClient.unfreeze_pg(request))?;
            eprintln!("pg {pg} is not frozen any more; pool {} gets tokens again", pool.name);
            Ok(())
        }
    }
}

async fn force_promote(
    tool: &Tool,
    session: &Session,
    name: &str,
    copy: &str,
    confirm: ConfirmArgs,
) -> Result<(), Failure> {
    let what = format!("promote a copy of pg {name}");
    let table = Groups::load(session, Freshness::Linearizable, String::new()).await?;
    let (pool, pg) = table.find(name)?;
    let device_id = table.copy_of(pg, copy)?;
    let id = id(pg);
    let lost: Vec<String> = pg.in_sync.iter().map(|member| table.devices.of(member.device_id)).collect();
    let deed = format!(
        "promote the copy of pg {id} on {} and lose for good what only {} has; every volume of pool {} waits meanwhile",
        table.devices.of(device_id),
        lost.join(", "),
        pool.name
    );
    if !confirm_to(confirm, &deed, &id)? {
        return Ok(());
    }
    let (pool, index) = (pool.name.clone(), index(pg));
    let freeze = FreezePgRequest { request: None, pool: pool.clone(), index, device_id };
    let frozen = change!(session, &what, RecoveryClient.freeze_pg(freeze))?;
    eprintln!("pg {id} is frozen; {} volumes of pool {pool} get no new tokens until it is over", frozen.volumes.len());
    let (started, wait) = (Instant::now(), tool.options.timeout.unwrap_or(LONG));
    loop {
        let request = PromotePgRequest { request: None, pool: pool.clone(), index, device_id };
        let reply = change!(session, &what, RecoveryClient.promote_pg(request))?;
        if reply.wait_ms == 0 {
            eprintln!(
                "pg {id} goes on from its copy on {}; what only {} had is lost",
                table.devices.of(device_id),
                lost.join(", ")
            );
            let table = Groups::load(session, Freshness::Linearizable, String::new()).await?;
            return tool.print(&Document::One(table.record(&reply.pg.unwrap_or_default())));
        }
        let left = std::time::Duration::from_millis(reply.wait_ms);
        if started.elapsed() >= wait {
            let why = format!("{what}: it is frozen, and older tokens end in {} only", format_duration(left));
            return Err(Failure::new(Exit::TimedOut, why)
                .remedy("run it again to go on, or give it up with `pflex pg unfreeze`"));
        }
        if started.elapsed() < LOOK_EVERY {
            eprintln!("waiting {} until no older token can be used any more", format_duration(left));
        }
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

/// Placement groups with the names that their ids stand for.
struct Groups {
    pgs: Vec<Pg>,
    pools: BTreeMap<u32, Pool>,
    devices: Names,
}

impl Groups {
    /// Of one pool, or of all.
    async fn load(session: &Session, fresh: Freshness, pool: String) -> Result<Self, Failure> {
        let request = ListPgsRequest { stale: fresh.is_stale(), pool };
        let pgs = ask!(session, "list placement groups", fresh, AdminClient.list_pgs(request))?.pgs;
        let rows = ask!(session, "list pools", fresh, AdminClient.list_pools(all(fresh)))?.pools;
        let pools = rows.into_iter().filter_map(|row| row.pool).map(|pool| (pool.id, pool)).collect();
        Ok(Self { pgs, pools, devices: Names::devices(session, fresh).await? })
    }

    fn find(&self, name: &str) -> Result<(&Pool, &Pg), Failure> {
        let (pool, number) = name
            .rsplit_once('.')
            .and_then(|(pool, number)| Some((pool, number.parse::<u32>().ok()?)))
            .ok_or_else(|| Failure::new(Exit::Usage, format!("pg {name}: a group is POOL.NUMBER, like default.17")))?;
        let pool = self.pools.values().find(|row| row.name == pool || row.id.to_string() == pool);
        let pg = pool.and_then(|pool| self.pgs.iter().find(|pg| pg_pool(pg) == pool.id && index(pg) == number));
        pool.zip(pg).ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("pg {name}: there is no such placement group"))
                .remedy("`pflex pg list` shows those there are")
        })
    }

    /// The device of the copy that a person means.
    fn copy_of(&self, pg: &Pg, copy: &str) -> Result<u32, Failure> {
        let on = |device: &&u32| {
            let (name, number) = (self.devices.of(**device), device.to_string());
            number == copy || name == copy || name.split_once('/').is_some_and(|(server, _)| server == copy)
        };
        pg.replica_device_ids.iter().find(on).copied().ok_or_else(|| {
            let copies: Vec<String> = pg.replica_device_ids.iter().map(|device| self.devices.of(*device)).collect();
            Failure::new(Exit::NotFound, format!("pg {}: it has no copy on {copy}", id(pg)))
                .remedy(format!("it has copies on {}", copies.join(", ")))
        })
    }

    fn is_whole(&self, pg: &Pg) -> bool {
        pg.primary_device_id != 0
            && pg.in_sync.len() == pg.replica_device_ids.len() - usize::from(pg.leaving_device_id != 0)
    }

    /// The device whose copy is being promoted by force.
    fn frozen_for(&self, pg: &Pg) -> Option<u32> {
        let pool = self.pools.get(&pg_pool(pg))?;
        pool.frozen.iter().find(|frozen| frozen.index == index(pg)).map(|frozen| frozen.device_id)
    }

    fn state(&self, pg: &Pg) -> &'static str {
        match pg.primary_device_id {
            0 if self.frozen_for(pg).is_some() => "frozen",
            0 => "unavailable",
            _ if self.is_whole(pg) => "active",
            _ => "degraded",
        }
    }

    fn record(&self, pg: &Pg) -> Record {
        let pool = self.pools.get(&pg_pool(pg)).map(|pool| pool.name.clone()).unwrap_or_default();
        let names = |devices: &mut dyn Iterator<Item = u32>| -> Vec<String> {
            devices.map(|device| self.devices.of(device)).collect()
        };
        let primary = Some(pg.primary_device_id).filter(|device| *device != 0).map(|device| self.devices.of(device));
        let in_sync = names(&mut pg.in_sync.iter().map(|member| member.device_id));
        let replicas = names(&mut pg.replica_device_ids.iter().copied());
        let list = |names: &[String]| Value::List(names.iter().map(|name| Value::from(name.as_str())).collect());
        Record::new(id(pg))
            .column("id", "ID", id(pg))
            .column("pool", "POOL", pool)
            .column("state", "STATE", self.state(pg))
            .column("primary_device", "PRIMARY", primary)
            .column("in_sync_text", "IN SYNC", in_sync.join(", "))
            .column("copies_text", "COPIES", replicas.join(", "))
            .wide("epoch", "EPOCH", pg.epoch)
            .hidden("in_sync", list(&in_sync))
            .hidden("copies", list(&replicas))
            .wide(
                "moves_from",
                "MOVES FROM",
                Some(pg.leaving_device_id).filter(|id| *id != 0).map(|id| self.devices.of(id)),
            )
            .hidden("may_yet_serve", list(&names(&mut fallback(pg))))
            .hidden("frozen_for", self.frozen_for(pg).map(|device| self.devices.of(device)))
            .hidden("forced", pg.forced)
    }
}

/// Copies that are not in sync and have everything, as long as the primary has answered nothing (S11).
fn fallback(pg: &Pg) -> impl Iterator<Item = u32> + '_ {
    let in_sync = |device: &u32| pg.in_sync.iter().any(|member| member.device_id == *device);
    pg.fallback_device_ids.iter().copied().filter(move |device| !in_sync(device))
}

fn pg_pool(pg: &Pg) -> u32 {
    pg.id.as_ref().map_or(0, |id| id.pool_id)
}

fn index(pg: &Pg) -> u32 {
    pg.id.as_ref().map_or(0, |id| id.index)
}

/// As `why` and events print it.
fn id(pg: &Pg) -> String {
    format!("{}.{}", pg_pool(pg), index(pg))
}
