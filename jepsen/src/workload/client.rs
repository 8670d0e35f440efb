//! One client of the workload.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{BLOCK_BYTES, Load, stamp};
use crate::{
    history::{Action, Block, OperationId, ProcessId, Recorder, Value, What},
    nbd::{NbdClient, NbdError},
};

/// While the server is away.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Of all operations; the rest are reads. More writes than reads leave more outcomes open, fewer are seen.
const WRITES_PERCENT: u32 = 55;
/// Of all writes.
const FUA_PERCENT: u32 = 15;
/// Of all operations: a FLUSH goes before.
const FLUSH_PERCENT: u32 = 2;

pub(super) struct Client {
    load: Load,
    server: SocketAddr,
    /// From 1: 0 is nobody's, as in [`Value::INITIAL`].
    number: u64,
    process: ProcessId,
    written: u64,
    connection: Option<NbdClient>,
    random: ChaCha8Rng,
    recorder: Arc<Recorder>,
}

impl Client {
    pub(super) fn new(load: Load, index: u32, recorder: Arc<Recorder>) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(load.seed);
        random.set_stream(u64::from(index) + 1);
        let number = u64::from(index) + 1;
        let server = load.servers[index as usize % load.servers.len()];
        Self { load, server, number, process: ProcessId(index), written: 0, connection: None, random, recorder }
    }

    /// One operation, or one attempt at connecting.
    pub(super) fn step(&mut self, stop: &AtomicBool) {
        let Some(mut connection) = self.connection.take().or_else(|| self.connect()) else {
            thread::sleep(RECONNECT_PAUSE);
            return;
        };
        // The server may be gone by now; only then is nothing recorded, because nothing was asked.
        if self.random.random_range(0..100) < FLUSH_PERCENT && connection.flush().is_err() {
            return;
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let block = Block(self.random.random_range(0..self.load.blocks));
        let sound = if self.random.random_range(0..100) < WRITES_PERCENT {
            self.write(&mut connection, block)
        } else {
            self.read(&mut connection, block)
        };
        if sound {
            self.connection = Some(connection);
        }
        let most = self.load.most_think_time.as_micros() as u64;
        if most > 0 {
            thread::sleep(Duration::from_micros(self.random.random_range(0..=most)));
        }
    }

    fn connect(&self) -> Option<NbdClient> {
        NbdClient::open(self.server, &self.load.export, self.load.patience).ok()
    }

    /// Returns whether the connection is still good.
    fn write(&mut self, connection: &mut NbdClient, block: Block) -> bool {
        self.written += 1;
        let value = Value::of(self.number, self.written);
        let data = stamp::write(self.load.seed, block, value);
        let fua = self.random.random_range(0..100) < FUA_PERCENT;
        let op = self.recorder.invoke(self.process, block, Action::Write(value));
        match connection.write(Load::offset(block), &data, fua) {
            Ok(()) => {
                self.recorder.record(What::Ok { op, content: None });
                true
            }
            // Also an error that the server named: it may have failed on one copy only, or late.
            Err(error) => self.lost_track(op, &error),
        }
    }

    fn read(&mut self, connection: &mut NbdClient, block: Block) -> bool {
        let op = self.recorder.invoke(self.process, block, Action::Read);
        let mut data = [0; BLOCK_BYTES];
        match connection.read(Load::offset(block), &mut data) {
            Ok(()) => {
                let content = Some(stamp::read(self.load.seed, block, &data));
                self.recorder.record(What::Ok { op, content });
                true
            }
            // A read that told nothing changed nothing.
            Err(error) => {
                self.recorder.record(What::Fail { op, why: error.to_string() });
                false
            }
        }
    }

    /// The operation may be under way for ever, so this process is as good as stuck, and another goes on.
    fn lost_track(&mut self, op: OperationId, error: &NbdError) -> bool {
        self.recorder.record(What::Unknown { op, why: error.to_string() });
        self.process = ProcessId(self.process.0 + self.load.clients);
        false
    }
}
