//! The NBD server over memory, with the data plane's runtime and nothing behind it: what `make bench-nbd` measures.
//!
//! `nbd_memory ADDRESS BYTES [BUSY-POLL-US]` offers one export, `memory`, until it is killed, and prints the address it got.

use std::{error::Error, sync::Arc, time::Duration};

use pflex_proto::ids::ByteCount;
use pflex_sdc::block::MemoryExports;
use pflex_sdc::nbd::{NbdServer, ServerLimits};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (address, bytes, busy_poll) = match &arguments[..] {
        [address, bytes] => (address, bytes, None),
        [address, bytes, busy_poll] => (address, bytes, Some(busy_poll)),
        _ => return Err("usage: nbd_memory ADDRESS BYTES [BUSY-POLL-US]".into()),
    };
    let bytes = ByteCount(bytes.parse()?);
    let mut limits = ServerLimits::default();
    if let Some(micros) = busy_poll {
        limits.busy_poll = Duration::from_micros(micros.parse()?);
    }
    // As many threads as a client takes that was told nothing (`data_threads`).
    let threads = (std::thread::available_parallelism()?.get() / 2).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    // Where a client's connections are accepted: not on the thread that waits here.
    let serving = runtime.spawn({
        let (address, exports) = (address.clone(), MemoryExports::default().with("memory", bytes, false));
        async move {
            let listener = TcpListener::bind(address).await?;
            println!("{}", listener.local_addr()?);
            let server = NbdServer::new(Arc::new(exports), limits);
            server.serve_tcp(listener, CancellationToken::new()).await;
            Ok::<_, std::io::Error>(())
        }
    });
    Ok(runtime.block_on(serving)??)
}
