//! The workload: clients that read and write a few 4 KiB blocks, so few that they contend.
//!
//! Each client is a thread with one connection and one request at a time. Every write's content is unique and fills its
//! block ([`stamp`]), so a read tells whose write it saw and whether it saw all of it.

mod client;
pub mod stamp;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    history::{Action, Block, ProcessId, Recorder, What},
    nbd::{NbdClient, NbdError},
};
use client::Client;

/// What the protocol unit of the product is, and of every request here.
pub const BLOCK_BYTES: usize = 4096;
/// Neighbours in a chunk share a version and a placement group; other chunks are mostly in other groups.
const BLOCKS_IN_A_CHUNK: u64 = 2;
const CHUNK_BYTES: u64 = 1 << 20;
/// Where in its chunk the first block lies: off the edges, where nothing is special.
const OFFSET_IN_CHUNK_BYTES: u64 = 64 << 10;

/// What the workload is.
#[derive(Clone, Debug)]
pub struct Load {
    /// The NBD servers that show the volume: each client uses one, in turn.
    pub servers: Vec<SocketAddr>,
    /// The export, large enough for all blocks.
    pub export: String,
    /// How many read and write at the same time.
    pub clients: u32,
    /// How many blocks.
    pub blocks: u64,
    /// Decides who does what.
    pub seed: u64,
    /// The longest wait for one answer; longer than the product's own deadline, which is 120 s.
    pub patience: Duration,
    /// How long a client thinks between two operations, at most: keeps the load of a slow machine bearable.
    pub most_think_time: Duration,
}

impl Load {
    /// Where a block lies in the volume.
    pub const fn offset(block: Block) -> u64 {
        let Block(block) = block;
        block / BLOCKS_IN_A_CHUNK * CHUNK_BYTES + OFFSET_IN_CHUNK_BYTES + block % BLOCKS_IN_A_CHUNK * BLOCK_BYTES as u64
    }

    /// What a volume needs to hold all blocks.
    pub const fn volume_bytes(&self) -> u64 {
        self.blocks.div_ceil(BLOCKS_IN_A_CHUNK) * CHUNK_BYTES
    }
}

/// A workload that runs.
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workload {
    /// Starts all clients.
    pub fn start(load: &Load, recorder: &Arc<Recorder>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..load.clients)
            .map(|index| {
                let mut client = Client::new(load.clone(), index, Arc::clone(recorder));
                let stop = Arc::clone(&stop);
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        client.step(&stop);
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }

    /// Lets each client end the operation it has under way and ends it.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client that panics is a bug here");
        }
    }
}

/// Reads every block once through one of the servers, as a process of its own.
///
/// # Errors
/// At the first block that cannot be read; by then the server has tried for as long as it ever does.
pub fn read_all(load: &Load, server: SocketAddr, process: ProcessId, recorder: &Recorder) -> Result<(), NbdError> {
    let mut connection = NbdClient::open(server, &load.export, load.patience)?;
    for block in (0..load.blocks).map(Block) {
        let op = recorder.invoke(process, block, Action::Read);
        let mut data = [0; BLOCK_BYTES];
        let outcome = connection.read(Load::offset(block), &mut data);
        recorder.record(match &outcome {
            Ok(()) => What::Ok { op, content: Some(stamp::read(load.seed, block, &data)) },
            Err(error) => What::Fail { op, why: error.to_string() },
        });
        outcome?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_lie_apart_and_inside_the_volume() {
        let load = Load {
            servers: vec!["127.0.0.1:1".parse().unwrap()],
            export: "v".into(),
            clients: 1,
            blocks: 7,
            seed: 1,
            patience: Duration::from_secs(1),
            most_think_time: Duration::ZERO,
        };
        let offsets: Vec<_> = (0..load.blocks).map(|block| Load::offset(Block(block))).collect();
        assert!(offsets.windows(2).all(|pair| pair[0] + BLOCK_BYTES as u64 <= pair[1]), "{offsets:?}");
        assert!(offsets.iter().all(|offset| offset + BLOCK_BYTES as u64 <= load.volume_bytes()));
        assert!(offsets.iter().all(|offset| offset % BLOCK_BYTES as u64 == 0));
    }
}
