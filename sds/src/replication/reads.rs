//! Reads at the primary (S5).
//!
//! The store is read at once; what matters comes after. When the data is there, the epoch must be the same (a new
//! epoch empties this table), the lease must still hold, and the answer waits until every overlapping write that was
//! ordered by then is committed: the data may hold it. Writes ordered later cannot be in the data.

use std::collections::HashMap;

use pflex_proto::ids::{ChunkId, Sequence};

use super::base::{Base, Cx};
use super::effect::Effect;
use super::event::ClientRead;
use super::join::Join;
use super::limits::MAX_READS;
use super::planted::Bug;
use super::primary::Primary;
use super::repairs::{Elsewhere, Repaired, Wanted};
use super::types::{Extent, Outcome, Refusal, RequestId};

/// A read whose data is there and which waits for overlapping writes.
#[derive(Debug)]
struct Parked<D> {
    request: RequestId,
    until: Sequence,
    data: D,
}

/// A read that the store is asked for, or that waits until its blocks are repaired.
#[derive(Clone, Copy, Debug)]
struct Reading {
    chunk: ChunkId,
    extent: Extent,
    repaired: Repaired,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reads<D> {
    reading: HashMap<RequestId, Reading>,
    parked: Vec<Parked<D>>,
}

impl<D> Default for Reads<D> {
    fn default() -> Self {
        Self { reading: HashMap::new(), parked: Vec::new() }
    }
}

impl<D> Reads<D> {
    pub(super) fn is_full(&self) -> bool {
        self.reading.len() + self.parked.len() >= MAX_READS
    }

    pub(super) fn begin(&mut self, request: RequestId, chunk: ChunkId, extent: Extent) {
        self.reading.insert(request, Reading { chunk, extent, repaired: Repaired::No });
    }

    /// A repair of its blocks has ended. What it is of; none: it was given up with its epoch.
    pub(super) fn again(
        &mut self,
        request: RequestId,
        done: impl FnOnce(Extent) -> Repaired,
    ) -> Option<(ChunkId, Extent)> {
        let reading = self.reading.get_mut(&request)?;
        reading.repaired = done(reading.extent);
        Some((reading.chunk, reading.extent))
    }

    pub(super) fn park(&mut self, request: RequestId, until: Sequence, data: D) {
        self.parked.push(Parked { request, until, data });
    }

    /// One that need not wait any longer.
    pub(super) fn release(&mut self, committed: Sequence) -> Option<(RequestId, D)> {
        let ready = self.parked.iter().position(|parked| parked.until <= committed)?;
        let Parked { request, data, .. } = self.parked.swap_remove(ready);
        Some((request, data))
    }

    /// Gives all up: the epoch is over. In the order of the requests, so that a seed gives one run.
    pub(super) fn drain(&mut self) -> Vec<RequestId> {
        let reading = self.reading.drain().map(|(request, _)| request);
        let mut requests: Vec<_> = reading.chain(self.parked.drain(..).map(|parked| parked.request)).collect();
        requests.sort_unstable();
        requests
    }
}

impl<D: Clone> Primary<D> {
    pub(super) fn on_read(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, read: ClientRead) {
        let ClientRead { request, chunk, extent, .. } = read;
        if let Some(refusal) = self.not_ready(base) {
            return cx.refuse(request, refusal);
        }
        if !self.holds_leases(base, cx) {
            return cx.refuse(request, Refusal::NoLease { epoch: base.epoch() });
        }
        if self.reads.is_full() {
            return cx.refuse(request, Refusal::Busy);
        }
        self.reads.begin(request, chunk, extent);
        cx.emit(Effect::Read { request, chunk, extent });
    }

    pub(super) fn on_read_done(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, request: RequestId, data: Option<D>) {
        let Some(Reading { chunk, extent, repaired }) = self.reads.reading.remove(&request) else { return };
        let Some(data) = data else {
            let refusal = match (repaired, self.elsewhere(base)) {
                (Repaired::No, Elsewhere::Ask) => {
                    self.reads.reading.insert(request, Reading { chunk, extent, repaired });
                    return self.repair(base, cx, chunk, extent, Wanted::Read(request));
                }
                (Repaired::No, Elsewhere::Nowhere) => {
                    cx.emit(Effect::Unreadable { chunk, extent });
                    Refusal::Unreadable
                }
                (repaired, _) => repaired.refusal(),
            };
            return cx.refuse(request, refusal);
        };
        // S5: what was read may be a write that is not committed.
        match self.flight.last_overlapping(chunk, extent) {
            Some(until) if !base.planted.is(Bug::DirtyRead) => self.reads.park(request, until, data),
            Some(_) | None => self.answer_read(base, cx, request, data),
        }
    }

    pub(super) fn release_reads(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>) {
        let answered = self.answered(base);
        while let Some((request, data)) = self.reads.release(answered) {
            self.answer_read(base, cx, request, data);
        }
    }

    /// S5: the lease is looked at last. While it holds no other primary can have answered a write, so the data is what
    /// was committed at this moment.
    pub(super) fn answer_read(&self, base: &Base<D>, cx: &mut Cx<'_, D>, request: RequestId, data: D) {
        if self.holds_leases(base, cx) && !base.failed {
            cx.emit(Effect::Reply { request, outcome: Outcome::Read { data } });
        } else {
            cx.refuse(request, Refusal::NoLease { epoch: base.epoch() });
        }
    }

    /// A lease from every copy that could be promoted: the in-sync ones and a proposed joiner (S3, S6). Alone, none.
    pub(super) fn holds_leases(&self, base: &Base<D>, cx: &Cx<'_, D>) -> bool {
        let joiner = self.join.iter().filter(|join| self.membership.proposes(join.member())).map(Join::member);
        let mut granters = self.backups.iter().map(|backup| backup.member).chain(joiner);
        base.planted.is(Bug::ReadWithoutLease)
            || granters.all(|granter| cx.leases.holds(cx.now, granter, base.id, base.epoch()))
    }
}
