//! Many pools and many volumes: what creating them costs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use pflex_common::{
    mdm::{MdmClient, Patience},
    net::Endpoint,
};
use pflex_proto::pb::{CreatePoolRequest, CreateVolumeRequest, admin_client::AdminClient};
use serde_json::json;
use tokio::task::JoinSet;

use crate::latency::Latencies;

const PATIENCE: Patience = Patience::within(Duration::from_secs(30));

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct FillArgs {
    #[arg(long, default_value_t = 1_000)]
    pools: u32,
    #[arg(long, default_value_t = 100_000)]
    volumes: u32,
    /// Placement groups of each pool.
    #[arg(long, default_value_t = 128)]
    pgs: u32,
    #[arg(long, default_value_t = 64)]
    clients: u32,
    /// Of the new pools.
    #[arg(long, default_value = "default")]
    domain: String,
    /// Where the volumes go: a pool needs devices for that, and the new ones have none.
    #[arg(long, default_value = "default")]
    pool: String,
}

pub(crate) async fn run(args: &FillArgs, at: Vec<Endpoint>) -> anyhow::Result<String> {
    let clients: Vec<MdmClient> = (0..args.clients).map(|n| MdmClient::new(format!("fill-{n}"), at.clone())).collect();
    let (pools, took) = share_out(&clients, args, args.pools, create_pool).await.context("pools")?;
    let pools = pools.summary(took);
    let (volumes, took) = share_out(&clients, args, args.volumes, create_volume).await.context("volumes")?;
    Ok(json!({ "pools": pools, "volumes": volumes.summary(took) }).to_string())
}

/// Has the clients do `make` for every number below `count`.
async fn share_out<F, Fut>(
    clients: &[MdmClient],
    args: &FillArgs,
    count: u32,
    make: F,
) -> anyhow::Result<(Latencies, Duration)>
where
    F: Fn(MdmClient, FillArgs, u32) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send,
{
    let next = Arc::new(AtomicU32::new(0));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for client in clients {
        let (client, args, next) = (client.clone(), args.clone(), next.clone());
        tasks.spawn(async move {
            let mut latencies = Latencies::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(latencies);
                }
                let started = Instant::now();
                make(client.clone(), args.clone(), number).await.with_context(|| format!("number {number}"))?;
                latencies.note(started.elapsed());
            }
        });
    }
    let mut all = Latencies::default();
    while let Some(task) = tasks.join_next().await {
        all.merge(task.context("a client ended")??);
    }
    anyhow::ensure!(all.count() == count as usize, "{} of {count} were made", all.count());
    Ok((all, started.elapsed()))
}

async fn create_pool(client: MdmClient, args: FillArgs, number: u32) -> anyhow::Result<()> {
    let pool = CreatePoolRequest {
        name: format!("pool-{number}"),
        domain: args.domain,
        pg_count: args.pgs,
        ..Default::default()
    };
    client
        .write(PATIENCE, |connection, request| {
            let pool = CreatePoolRequest { request: Some(request), ..pool.clone() };
            async move { AdminClient::new(connection).create_pool(pool).await }
        })
        .await?;
    Ok(())
}

async fn create_volume(client: MdmClient, args: FillArgs, number: u32) -> anyhow::Result<()> {
    let volume = CreateVolumeRequest {
        name: format!("volume-{number}"),
        pool: args.pool,
        size_bytes: 1 << 20,
        ..Default::default()
    };
    client
        .write(PATIENCE, |connection, request| {
            let volume = CreateVolumeRequest { request: Some(request), ..volume.clone() };
            async move { AdminClient::new(connection).create_volume(volume).await }
        })
        .await?;
    Ok(())
}
