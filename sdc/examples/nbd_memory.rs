//! An NBD server over memory: what the NBD hop costs by itself (`fio --ioengine=nbd --uri=nbd://127.0.0.1:PORT/memory`).
//!
//! usage: `nbd_memory [ADDRESS [SIZE_MIB]]`, by default 127.0.0.1:10903 and 1024.

use std::sync::Arc;

use pflex_proto::ids::ByteCount;
use pflex_sdc::block::MemoryExports;
use pflex_sdc::nbd::{NbdServer, ServerLimits};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:10903".to_owned());
    let size_mib: u64 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let exports = Arc::new(MemoryExports::default().with("memory", ByteCount(size_mib << 20), false));
    let listener = TcpListener::bind(&address).await?;
    println!("nbd://{}/memory", listener.local_addr()?);
    let shutdown = CancellationToken::new();
    let serving = NbdServer::new(exports, ServerLimits::default()).serve_tcp(listener, shutdown.clone());
    let interrupted = async {
        tokio::signal::ctrl_c().await.expect("signals can be listened for");
        shutdown.cancel();
    };
    tokio::join!(serving, interrupted);
    Ok(())
}
