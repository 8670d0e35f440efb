//! The data port: takes connections, reads the greeting, hands each to the data thread of the device it names.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use pflex_common::{
    frames::{FrameQueue, FrameReader},
    net::tune_data,
};
use pflex_proto::{
    data::{Hello, Refusal, RefusalCode},
    frame::FrameKind,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::{debug, warn};

use super::Server;
use crate::worker::{Accepted, Command};

/// Connections that have not greeted yet. 2,048 SDCs and 512 SDSs may come back at the same moment; whoever is beyond
/// waits in the kernel's queue.
const MAX_UNGREETED: usize = 4096;
/// A greeting is one small frame.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Until the process ends.
pub(super) async fn run(server: Arc<Server>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MAX_UNGREETED));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    if let Err(error) = greet(&server, stream, permit).await {
                        debug!(%peer, %error, "a data-plane connection was not taken");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept data-plane connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greet(server: &Server, stream: TcpStream, _permit: OwnedSemaphorePermit) -> anyhow::Result<()> {
    tune_data(&stream)?;
    let mut reader = FrameReader::new(stream);
    let frame = tokio::time::timeout(GREETING_TIMEOUT, reader.next()).await??;
    let frame = frame.ok_or_else(|| anyhow::anyhow!("closed before it greeted"))?;
    anyhow::ensure!(frame.header.kind == FrameKind::Hello, "the first frame is {:?}", frame.header.kind);
    let hello: Hello = frame.message()?;
    let request_id = frame.header.request_id;
    let (mut stream, leftover) = reader.into_parts();
    let Some(device) = server.devices().iter().find(|device| device.own.device == hello.device).cloned() else {
        let why = format!("{} has no device {}", server.name, hello.device);
        let mut queue = FrameQueue::default();
        let refusal = Refusal { code: RefusalCode::WrongTarget, config: None, why };
        queue.push(FrameKind::Refusal, request_id, &refusal, Bytes::new());
        queue.send_all(&mut stream).await?;
        return Ok(());
    };
    // The socket moves to the data thread's own reactor.
    let stream = stream.into_std()?;
    let accepted = Command::Accepted(Accepted { stream, hello, request_id, leftover });
    anyhow::ensure!(device.offer(accepted), "device {} is too busy to take connections", device.own.device);
    Ok(())
}
