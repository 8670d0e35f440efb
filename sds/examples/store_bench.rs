//! What a store on this disk does: durable small appends, large writes, reads. `store_bench [DIRECTORY]`.

use std::{
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use pflex_proto::ids::*;
use pflex_sds::{device::FileConfig, store::*};

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
const PG: PgId = PgId { pool: PoolId(1), index: PgIndex(0) };
const CHUNKS: u64 = 1024;

struct Bench {
    store: Store,
    sequence: u64,
    data: Bytes,
}

impl Bench {
    fn write(&mut self, chunk: u64, first: u16, count: u16) -> Result<Ticket> {
        self.sequence += 1;
        let sequence = self.sequence;
        let blocks = BlockRange::new(first, count).expect("inside a chunk");
        let client = Client { sdc: SdcId(1), volume: VolumeId(1) };
        Ok(self.store.apply(OrderedWrite {
            pg: PG,
            chunk: ChunkId { vtree: VtreeId(1), layer: LayerId(0), index: ChunkIndex(chunk) },
            version: Version { epoch: Epoch(1), sequence: Sequence(sequence) },
            run: Run::data(blocks, self.data.slice(..blocks.bytes())),
            origin: Origin {
                client,
                operation: OperationId(sequence),
                low_water: OperationId(sequence.saturating_sub(64)),
            },
            watermark: Sequence(sequence.saturating_sub(64)),
            volatility: VolatilityId(1),
            lane: Lane::Client,
        })?)
    }

    /// Keeps `depth` writes in flight for a while; prints how many a second and how long each took.
    async fn writes(
        &mut self,
        name: &str,
        depth: usize,
        time: Duration,
        pick: impl Fn(u64) -> (u64, u16, u16),
    ) -> Result<()> {
        let (start, mut started, mut took) = (Instant::now(), std::collections::VecDeque::new(), Vec::new());
        let before = self.store.stats();
        while start.elapsed() < time || !started.is_empty() {
            while started.len() < depth && start.elapsed() < time {
                let (chunk, first, count) = pick(self.sequence);
                let at = Instant::now();
                started.push_back((self.write(chunk, first, count)?, at));
            }
            for durable in self.store.durable().await? {
                while started.front().is_some_and(|(ticket, _)| *ticket <= durable.through) {
                    took.extend(started.pop_front().map(|(_, at)| at.elapsed()));
                }
            }
        }
        let after = self.store.stats();
        print(name, start.elapsed(), &mut took);
        println!(
            "      {} groups, {} checkpoints",
            after.groups - before.groups,
            after.checkpoints - before.checkpoints
        );
        Ok(())
    }

    async fn reads(&mut self, name: &str, depth: usize, time: Duration) -> Result<()> {
        let (start, mut running, mut took, mut random) = (Instant::now(), FuturesUnordered::new(), Vec::new(), 1_u64);
        while start.elapsed() < time || !running.is_empty() {
            while running.len() < depth && start.elapsed() < time {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let chunk =
                    ChunkId { vtree: VtreeId(1), layer: LayerId(0), index: ChunkIndex((random >> 33) % CHUNKS) };
                let range = BlockRange::new((random >> 20) as u16 % 256, 1).expect("inside a chunk");
                running.push(timed(self.store.read(chunk, range)));
            }
            if let Some((result, elapsed)) = running.next().await {
                result?;
                took.push(elapsed);
            }
        }
        print(name, start.elapsed(), &mut took);
        Ok(())
    }
}

async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (future.await, start.elapsed())
}

fn print(name: &str, elapsed: Duration, took: &mut [Duration]) {
    took.sort();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default().as_micros();
    let rate = took.len() as f64 / elapsed.as_secs_f64();
    println!("{name:40} {rate:9.0}/s   p50 {} us   p99 {} us", at(50), at(99));
}

fn main() -> Result<()> {
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(parent)?;
    let files = FileConfig::beside(&directory.path().join("device"));
    let meta = LocalDb::open(&directory.path().join("sds_local.db"), &[])?;
    let format =
        FormatConfig { cluster: CLUSTER, sds: SdsId(1), uuid: DeviceUuid(uuid::Uuid::new_v4()), journal_bytes: None };
    Store::format_files(&files, 4 << 30, false, meta.as_ref(), &format)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (store, _) = Store::open_files(
            &files,
            Arc::clone(&meta) as Arc<dyn MetaStore>,
            StoreConfig { cluster: CLUSTER, sds: SdsId(1) },
        )?;
        let mut bench = Bench { store, sequence: 0, data: Bytes::from(vec![0xa5; 1 << 20]) };
        let time = Duration::from_secs(4);
        bench.writes("1 MiB to new chunks, depth 1", 1, time, |n| (n % CHUNKS, 0, 256)).await?;
        bench.writes("1 MiB overwrites, depth 8", 8, time, |n| (n % CHUNKS, 0, 256)).await?;
        let scattered = |n: u64| (n.wrapping_mul(7919) % CHUNKS, (n.wrapping_mul(104_729) % 256) as u16, 1);
        bench.writes("4 KiB scattered, depth 1", 1, time, scattered).await?;
        bench.writes("4 KiB scattered, depth 8", 8, time, scattered).await?;
        bench.writes("4 KiB scattered, depth 32", 32, time, scattered).await?;
        bench.writes("4 KiB in few chunks, depth 32", 32, time, |n| (n % 16, (n / 16 % 256) as u16, 1)).await?;
        bench.reads("4 KiB reads, depth 1", 1, time).await?;
        bench.reads("4 KiB reads, depth 32", 32, time).await?;
        let start = Instant::now();
        bench.store.close().await?;
        println!("close (full checkpoint): {} ms", start.elapsed().as_millis());
        let start = Instant::now();
        let (_, report) = Store::open_files(&files, meta, StoreConfig { cluster: CLUSTER, sds: SdsId(1) })?;
        println!("open: {} ms, {} groups replayed", start.elapsed().as_millis(), report.replayed_groups);
        Ok(())
    })
}
