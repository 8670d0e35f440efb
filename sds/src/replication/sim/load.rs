//! Load: what clients call, how it reaches a primary, and what they make of the answers.

use pflex_proto::ids::{ChunkId, ChunkIndex, DeviceId, Epoch, LayerId, OperationId, PgId, VtreeId};

use crate::replication::{
    ClientFlush, ClientRead, ClientWrite, Event, Extent, Outcome, PgConfig, Refusal, RequestId, WriteKind,
};

use super::client::{Action, Pending};
use super::doubling::Groups;
use super::store::{BLOCKS, Data};
use super::world::{Happening, Item, MS, World};

pub(super) const CHUNKS_PER_PG: u64 = 3;

/// A client's request on its way.
#[derive(Clone, Debug)]
pub(super) struct ToServe {
    client: usize,
    pending: u64,
    epoch: Epoch,
    body: Pending,
    low_water: OperationId,
}

impl World {
    pub(super) fn call(&mut self, client: usize) {
        if !self.stormy {
            return;
        }
        let wholes = self.wholes();
        let pg = *self.rng.pick(&wholes);
        if self.mdm.writeback && self.rng.percent(12) {
            let half = self.groups.doubled && self.rng.percent(50);
            return self.begin_flush(client, if half { self.groups.half(pg) } else { pg });
        }
        let chunk = chunk(pg, self.rng.below(CHUNKS_PER_PG));
        let block = self.rng.below(BLOCKS as u64) as usize;
        let blocks = self.rng.between(1, (BLOCKS - block) as u64) as usize;
        let reads = self.rng.percent(50);
        self.begin(client, self.groups.of(chunk), chunk, block, blocks, reads);
    }

    /// The groups that there were first: chunks are named after them.
    fn wholes(&self) -> Vec<PgId> {
        self.mdm.pgs().into_iter().filter(|pg| !self.groups.is_half(*pg)).collect()
    }

    pub(super) fn begin(&mut self, client: usize, pg: PgId, chunk: ChunkId, block: usize, blocks: usize, reads: bool) {
        self.next += 1;
        let called = self.next;
        let fua = !reads && self.mdm.writeback && self.rng.percent(15);
        let action = if reads {
            Action::Read
        } else {
            let values: Data = (0..blocks).map(|block| self.next_value + 1 + block as u64).collect();
            self.next_value += blocks as u64;
            for (index, value) in values.iter().enumerate() {
                self.history.write_called((chunk, block + index), *value, called);
            }
            Action::Write(self.clients[client].next_operation(), values)
        };
        let pending = self.clients[client].call(Pending { pg, chunk, block, blocks, action, called, tries: 0, fua });
        self.resend(client, pending, 0);
    }

    /// S14: as an SDC does: with the id that the writes since the last FLUSH were acknowledged with, and if there are none
    /// with the one it was told.
    fn begin_flush(&mut self, client: usize, pg: PgId) {
        self.next += 1;
        let called = self.next;
        let (volatility, chunks) = match self.clients[client].dirty.get(&pg) {
            Some(dirty) => (dirty.volatility, dirty.chunks.clone()),
            None => (self.mdm.config(pg).volatility, Default::default()),
        };
        let action = Action::Flush(volatility, chunks);
        let chunk = chunk(pg, 0);
        let pending = Pending { pg, chunk, block: 0, blocks: 1, action, called, tries: 0, fua: false };
        let pending = self.clients[client].call(pending);
        self.resend(client, pending, 0);
    }

    pub(super) fn flush_everything(&mut self) {
        for pg in self.mdm.pgs() {
            for client in 0..self.clients.len() {
                self.begin_flush(client, pg);
            }
        }
    }

    /// What the MDM says of memory that is gone (S14).
    pub(super) fn memory_lost(&mut self) -> Result<(), String> {
        for pg in std::mem::take(&mut self.mdm.forgotten) {
            self.check_history()?;
            self.memory_losses += 1;
            self.next += 1;
            let groups = self.groups;
            self.history.lose_unflushed(self.next, |of| groups.of(of) == pg);
        }
        Ok(())
    }

    /// Reads every block there is, to see what survived.
    pub(super) fn read_everything(&mut self) {
        for pg in self.wholes() {
            for index in 0..CHUNKS_PER_PG {
                let chunk = chunk(pg, index);
                self.begin(0, self.groups.of(chunk), chunk, 0, BLOCKS, true);
            }
        }
    }

    /// A write that would create a chunk, and is discarded while the copies are asked for space (S4, S9).
    pub(super) fn write_and_discard(&mut self) -> Result<(), String> {
        for chunk in self.wholes().into_iter().map(|pg| chunk(pg, CHUNKS_PER_PG)) {
            let pg = self.groups.of(chunk);
            let config = self.mdm.config(pg).clone();
            // One that was named a moment ago may not have heard of the group.
            let Some(device) = config.primary.filter(|device| self.nodes[device].pgs.contains_key(&pg)) else {
                continue;
            };
            self.next += 1;
            let (request, client) = (RequestId(self.next), 0);
            let operation = self.clients[client].next_operation();
            // Nobody waits for the answer.
            self.requests.insert((device, request), (client, u64::MAX, chunk));
            let write = ClientWrite {
                request,
                epoch: config.epoch,
                client: self.clients[client].key,
                operation,
                low_water: OperationId(0),
                chunk,
                extent: Extent::block(0),
                kind: WriteKind::Data(vec![1]),
                merge: false,
                creates_chunk: true,
                fua: false,
            };
            self.step(device, pg, Event::Write(write))?;
            self.step(device, pg, Event::Cancel { request })?;
        }
        Ok(())
    }

    /// S12: an operator promotes a copy of each group that has no in-sync one, and accepts what is lost by it. Returns
    /// how many groups, and how many chunks of theirs were half copied.
    pub(super) fn force_promotions(&mut self) -> Result<(u64, u64), String> {
        // What was seen before must have been right.
        self.check_history()?;
        let (mut promoted, mut halves) = (0, 0);
        for pg in self.mdm.pgs() {
            // Old copies that live on answer nobody by then: tokens, which are no part of this model, have expired.
            if self.mdm.complete(pg).iter().any(|member| self.nodes[&member.device].up) {
                continue;
            }
            let Some(device) = self.mdm.force(pg) else { continue };
            promoted += 1;
            let store = &self.nodes[&device].stores[&pg].applied;
            halves += store.chunks.values().filter(|chunk| chunk.version.is_none()).count() as u64;
            self.give_up_writes(pg);
            self.history.lose(|of| (0..CHUNKS_PER_PG).any(|index| chunk(pg, index) == of));
            self.oracle.lose();
        }
        Ok((promoted, halves))
    }

    /// A copy that was being filled may have the data of a write and not its operation id: sent again, it is executed a
    /// second time. That much of S7 is lost with the rest, so whoever waits for an answer waits no longer.
    fn give_up_writes(&mut self, pg: PgId) {
        for client in 0..self.clients.len() {
            let pending = &mut self.clients[client].pending;
            let before = pending.len();
            pending.retain(|_, pending| pending.pg != pg || matches!(pending.action, Action::Read));
            for _ in pending.len()..before {
                self.after(MS, Happening::Call(client));
            }
        }
    }

    pub(super) fn resend(&mut self, client: usize, pending: u64, tries: u64) {
        let Some(body) = self.clients[client].pending.get_mut(&pending).filter(|body| body.tries == tries) else {
            return;
        };
        body.tries += 1;
        if !matches!(body.action, Action::Flush(..)) {
            body.pg = self.groups.of(body.chunk);
        }
        let body = body.clone();
        let low_water = self.clients[client].low_water();
        let config: PgConfig = self.mdm.config(body.pg).clone();
        // Mostly the primary; now and then somebody who was it.
        let replicas = self.mdm.replicas(body.pg).to_vec();
        let to = match config.primary {
            Some(primary) if self.rng.percent(95) => primary,
            Some(_) | None => *self.rng.pick(&replicas),
        };
        let (epoch, tries) = (config.epoch, body.tries);
        let request = ToServe { client, pending, epoch, body, low_water };
        let copies = if self.rng.percent(5) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.stormy || !self.rng.percent(3) {
                let delay = self.client_delay();
                self.node_after(delay, to, Item::Request(request.clone()));
            }
        }
        let patience = self.rng.between(100, 600) * MS;
        self.after(patience, Happening::Resend(client, pending, tries));
    }

    pub(super) fn client_delay(&mut self) -> u64 {
        if self.rng.percent(3) { self.rng.below(900 * MS) } else { self.rng.between(MS / 20, 2 * MS) }
    }

    pub(super) fn serve(&mut self, device: DeviceId, request: ToServe) -> Result<(), String> {
        self.next += 1;
        let id = RequestId(self.next);
        let ToServe { client, pending, epoch, body, low_water } = request;
        let (pg, chunk, extent) = (body.pg, body.chunk, body.extent());
        let node = &self.nodes[&device];
        // Who is ahead of the other refuses it before any core sees it.
        let groups = Groups { doubled: node.doubled, ..self.groups };
        if groups.of(chunk) != pg && !matches!(body.action, Action::Flush(..)) {
            return Ok(());
        }
        let Some(store) = node.stores.get(&pg) else { return Ok(()) };
        let creates_chunk = !store.applied.chunks.contains_key(&chunk);
        self.requests.insert((device, id), (client, pending, chunk));
        super::decay::aim_at_request(self, device, pg, chunk);
        let event = match body.action {
            Action::Read => Event::Read(ClientRead { request: id, epoch, chunk, extent }),
            Action::Write(operation, data) => Event::Write(ClientWrite {
                request: id,
                epoch,
                client: self.clients[client].key,
                operation,
                low_water,
                chunk,
                extent,
                kind: WriteKind::Data(data),
                merge: self.rng.percent(5),
                creates_chunk,
                fua: body.fua,
            }),
            Action::Flush(volatility, _) => Event::Flush(ClientFlush { request: id, epoch, volatility }),
        };
        self.step(device, pg, event)
    }

    pub(super) fn answer(
        &mut self,
        device: DeviceId,
        pg: PgId,
        request: RequestId,
        outcome: Outcome<Data>,
    ) -> Result<(), String> {
        let Some((client, pending, chunk)) = self.requests.remove(&(device, request)) else {
            return Err(format!("request {request:?} was answered twice"));
        };
        let asked = self.clients[client].pending.get(&pending);
        self.oracle.answer(self.now, &self.nodes, device, (pg, chunk), &outcome, asked)?;
        if let (Outcome::Flushed { .. }, Some(Action::Flush(named, _))) = (&outcome, asked.map(|asked| &asked.action))
            && self.nodes[&device].pgs[&pg].config().is_none_or(|config| config.volatility != *named)
        {
            // Not the MDM's present id: an epoch that is over may answer. What it covers was ordered in that epoch or before
            // and is on the disks of all its members, so whatever they lost since, it was not that.
            return Err(format!("S14: pg {pg}: a flush of {named} succeeds, and that memory is gone"));
        }
        if !self.stormy || !self.rng.percent(3) {
            let delay = self.client_delay();
            self.after(delay, Happening::Reply(client, pending, outcome));
        }
        Ok(())
    }

    pub(super) fn reply(&mut self, client: usize, pending: u64, outcome: Outcome<Data>) -> Result<(), String> {
        self.next += 1;
        let returned = self.next;
        let Some(body) = self.clients[client].pending.get(&pending).cloned() else { return Ok(()) };
        match (outcome, &body.action) {
            (Outcome::Written { version, volatility }, Action::Write(operation, values)) => {
                self.oracle.executed(self.clients[client].key, *operation, version)?;
                for (index, value) in values.iter().enumerate() {
                    self.history.write_returned((body.chunk, body.block + index), *value, returned);
                    self.history.write_placed((body.chunk, body.block + index), *value, version);
                    if body.fua {
                        self.history.flushed((body.chunk, body.block + index), *value);
                    }
                }
                let written = values.iter().enumerate();
                let written = written.map(|(index, value)| ((body.chunk, body.block + index), *value));
                let pg = self.groups.of(body.chunk);
                self.clients[client].acknowledged(pg, body.chunk, volatility, version, written);
            }
            (Outcome::Read { data }, Action::Read) => {
                for (index, value) in data.iter().enumerate() {
                    self.history.read((body.chunk, body.block + index), *value, body.called, returned)?;
                }
            }
            (Outcome::Refused(Refusal::OldOperation), Action::Write(operation, _)) => {
                return Err(format!("{operation:?} was forgotten while its client still waits"));
            }
            (Outcome::Flushed { .. }, Action::Flush(_, covered)) => {
                if let Some(dirty) = self.clients[client].dirty.get_mut(&body.pg) {
                    // What was acknowledged since the call stays.
                    let is_covered = |of: &ChunkId, version| covered.get(of).is_some_and(|to| version <= *to);
                    for (register, value) in &dirty.values {
                        if self
                            .history
                            .version(*register, *value)
                            .is_some_and(|version| is_covered(&register.0, version))
                        {
                            self.history.flushed(*register, *value);
                        }
                    }
                    let history = &self.history;
                    dirty.values.retain(|(register, value)| {
                        history.version(*register, *value).is_some_and(|version| !is_covered(&register.0, version))
                    });
                    dirty.chunks.retain(|of, version| !is_covered(of, *version));
                    if dirty.chunks.is_empty() {
                        self.clients[client].dirty.remove(&body.pg);
                    }
                }
            }
            (Outcome::Refused(Refusal::LostMemory { named, .. }), Action::Flush(..)) => {
                if named == self.mdm.config(body.pg).volatility {
                    return Err(format!(
                        "S14: pg {}: a flush of {named} is refused, and that memory is there",
                        body.pg
                    ));
                }
                // The application knows.
                self.clients[client].dirty.remove(&body.pg);
            }
            (Outcome::Refused(_), _) => {
                let pause = self.rng.between(5, 40) * MS;
                self.after(pause, Happening::Resend(client, pending, body.tries));
                return Ok(());
            }
            (outcome, action) => return Err(format!("{action:?} was answered with {outcome:?}")),
        }
        self.clients[client].pending.remove(&pending);
        self.finished_operations += 1;
        let pause = self.rng.between(0, 50) * MS;
        self.after(pause, Happening::Call(client));
        Ok(())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.clients.iter().all(|client| client.pending.is_empty())
    }
}

fn chunk(pg: PgId, index: u64) -> ChunkId {
    ChunkId {
        vtree: VtreeId(1),
        layer: LayerId(0),
        index: ChunkIndex(u64::from(pg.index.0) * (CHUNKS_PER_PG + 1) + index),
    }
}
