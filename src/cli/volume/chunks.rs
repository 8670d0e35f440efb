//! `pflex volume chunks`: where each 1 MiB of a volume lives. Computed from the volume and the placement-group table;
//! there are no chunk rows anywhere (ARCHITECTURE section 5). A chunk is listed whether or not it was ever written.

use std::collections::HashMap;

use pflex_proto::{
    geometry::{CHUNK_SIZE, pg_of},
    ids::{ChunkIndex, VtreeId},
    pb::{ListPgsRequest, ListRequest, Pg, Pool, Volume, admin_client::AdminClient},
};

use super::{Tool, find};
use crate::{
    cli::{
        complete::Of,
        names::{Names, all},
        view::ViewArgs,
    },
    client::{Freshness, Session, ask},
    error::{Exit, Failure},
    output::{Document, Record, Value},
};

/// Rows without `--count`; a large volume has a million chunks.
const DEFAULT_COUNT: u64 = 1_024;

#[derive(clap::Args, Debug)]
pub(in crate::cli) struct Args {
    #[arg(add = Of::Volumes.candidates())]
    name: String,
    /// The first chunk to show.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many to show.
    #[arg(long, default_value_t = DEFAULT_COUNT)]
    count: u64,
    #[command(flatten)]
    view: ViewArgs,
}

pub(super) async fn run(args: Args, tool: &Tool, session: &Session) -> Result<(), Failure> {
    args.view
        .show(tool, async || {
            let fresh = args.view.freshness();
            let volume = find(session, fresh, "show chunks of", &args.name).await?;
            let pool = pool_of(session, fresh, &volume).await?;
            let request = ListPgsRequest { stale: fresh.is_stale(), pool: pool.name.clone() };
            let pgs = ask!(session, "list placement groups", fresh, AdminClient.list_pgs(request))?.pgs;
            let devices = Names::devices(session, fresh).await?;
            Ok(Document::List("chunks", records(&volume, &pool, &pgs, &devices, args.first, args.count)?))
        })
        .await
}

async fn pool_of(session: &Session, fresh: Freshness, volume: &Volume) -> Result<Pool, Failure> {
    let request: ListRequest = all(fresh);
    let pools = ask!(session, "list pools", fresh, AdminClient.list_pools(request))?.pools;
    pools.into_iter().filter_map(|row| row.pool).find(|pool| pool.id == volume.pool_id).ok_or_else(|| {
        Failure::new(Exit::Failed, format!("volume {} names pool #{}, which is gone", volume.name, volume.pool_id))
            .remedy("run it again")
    })
}

fn records(
    volume: &Volume,
    pool: &Pool,
    pgs: &[Pg],
    devices: &Names,
    first: u64,
    count: u64,
) -> Result<Vec<Record>, Failure> {
    // `pg_of` masks with the count, so a count that is no power of two would give wrong answers, not an error.
    if !pool.pg_count.is_power_of_two() {
        return Err(Failure::new(Exit::Failed, format!("pool {} has {} placement groups", pool.name, pool.pg_count)));
    }
    let by_index: HashMap<u32, &Pg> = pgs.iter().filter_map(|pg| Some((pg.id?.index, pg))).collect();
    let all = volume.size_bytes.div_ceil(CHUNK_SIZE.into());
    let end = first.saturating_add(count).min(all);
    let record = |chunk: u64| {
        let index = pg_of(VtreeId(volume.vtree_id), ChunkIndex(chunk), pool.pg_count).0;
        let pg = by_index.get(&index);
        let primary = pg.map(|pg| pg.primary_device_id).filter(|device| *device != 0);
        let in_sync = pg.map(|pg| pg.in_sync.iter().map(|member| devices.of(member.device_id)).collect::<Vec<_>>());
        let replicas = pg.map(|pg| pg.replica_device_ids.iter().map(|device| devices.of(*device)).collect::<Vec<_>>());
        Record::new(chunk)
            .column("chunk", "CHUNK", chunk)
            .column("offset_bytes", "OFFSET", Value::Bytes(chunk * u64::from(CHUNK_SIZE)))
            .column("pg", "PG", format!("{}.{index}", pool.id))
            .column("epoch", "EPOCH", pg.map(|pg| pg.epoch))
            .column("primary", "PRIMARY", primary.map(|device| devices.of(device)))
            .column("in_sync", "IN SYNC", in_sync)
            .wide("replicas", "REPLICAS", replicas)
    };
    Ok((first..end).map(record).collect())
}

#[cfg(test)]
mod tests {
    use pflex_proto::pb::PgId;

    use super::*;

    fn pool(pg_count: u32) -> Pool {
        Pool { id: 1, name: "default".into(), pg_count, ..Pool::default() }
    }

    #[test]
    fn the_last_chunk_may_be_a_part_and_the_range_is_clipped() {
        let volume = Volume { size_bytes: 2 * 1_048_576 + 4_096, vtree_id: 7, ..Volume::default() };
        let pgs: Vec<Pg> =
            (0..4).map(|index| Pg { id: Some(PgId { pool_id: 1, index }), epoch: 3, ..Pg::default() }).collect();
        let count = |first, count| records(&volume, &pool(4), &pgs, &Names::default(), first, count).unwrap().len();
        assert_eq!(count(0, DEFAULT_COUNT), 3);
        assert_eq!(count(2, 10), 1);
        assert_eq!(count(3, 10), 0);
        assert_eq!(count(0, u64::MAX), 3);
    }

    #[test]
    fn a_broken_pool_is_an_error_and_not_a_wrong_place() {
        assert!(records(&Volume::default(), &pool(0), &[], &Names::default(), 0, 1).is_err());
    }
}
