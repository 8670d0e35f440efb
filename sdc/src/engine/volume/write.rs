//! A write from its admission until nothing of it can happen any more (S7, S9).
//!
//! A write that was sent and not answered may still be executed: its client left, or the deadline passed. Until that is
//! impossible it keeps its place in the ledger, so that no overlapping newer write is acknowledged and then overwritten
//! by it. It is impossible once a newer session is open at the device it was sent to, or its placement group is in a newer
//! epoch (a request names its epoch, and a primary of another one refuses it).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use pflex_proto::data::{Checksums, WriteKind};
use pflex_proto::ids::OperationId;
use pflex_proto::token::Rights;
use tokio::time::Instant;
use tracing::{debug, info};

use super::super::link::{Answer, AttemptError, Operation, Request, Write};
use super::super::plan::Part;
use super::{Attempts, Target, Volume};
use crate::block::{ByteRange, IoError};

/// Pause between attempts to fence.
const FENCE_PAUSE: Duration = Duration::from_millis(100);

/// The place of a write in the ledger of its volume; given up when the last part of it is over.
#[derive(Debug)]
pub(super) struct Ticket {
    volume: Arc<Volume>,
    first: OperationId,
}

impl Ticket {
    /// Enters the ledger and waits for the turn; returns also what is left of the time an IO has.
    ///
    /// # Errors
    /// When the turn does not come in that time: an earlier write that nobody could fence may still be executed. This one
    /// was not sent, so it leaves at once.
    pub(super) async fn enter(
        volume: Arc<Volume>,
        range: ByteRange,
        parts: usize,
    ) -> Result<(Arc<Self>, Duration), IoError> {
        let allowed = volume.engine.patience.io_deadline;
        let admission = volume.ledger.enter(range, parts, &volume.engine.operations);
        let ticket = Arc::new(Self { volume, first: admission.first });
        let Some(turn) = admission.turn else { return Ok((ticket, allowed)) };
        let started = Instant::now();
        // The sender is dropped only with this ticket's own entry.
        match tokio::time::timeout(allowed, turn).await {
            Ok(_turn) => Ok((ticket, allowed.saturating_sub(started.elapsed()))),
            Err(_elapsed) => Err(IoError::Failed(format!(
                "not done within {allowed:?}: an earlier write of the same bytes may still be executed"
            ))),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.volume.ledger.leave(self.first);
    }
}

/// One part of a write, and what is known of its attempts; fences itself when it is dropped before it was resolved.
#[derive(Debug)]
pub(super) struct PartOfWrite {
    ticket: Arc<Ticket>,
    part: Part,
    write: Write,
    /// Where the attempt under way went.
    current: Option<Target>,
    /// The newest earlier attempt that may have run.
    unresolved: Option<Target>,
}

impl PartOfWrite {
    /// The `nth` part of a write; the number makes its operation id.
    pub(super) fn new(ticket: &Arc<Ticket>, nth: usize, part: Part, kind: WriteKind, fua: bool, data: Bytes) -> Self {
        let operation = OperationId(ticket.first.0 + nth as u64);
        let checksums = if data.is_empty() { Checksums::Bytes(0) } else { Checksums::of(part.offset, &data) };
        let write = Write { operation, low_water: operation, kind, fua, checksums, data };
        Self { ticket: Arc::clone(ticket), part, write, current: None, unresolved: None }
    }

    /// Sends it until it is done, cannot be done, or has taken longer than allowed.
    pub(super) async fn run(mut self, allowed: Duration) -> Result<(), IoError> {
        let volume = Arc::clone(&self.ticket.volume);
        let (chunk, fua) = (self.part.chunk, self.write.fua);
        match volume.attempt(self.part, allowed, &mut self).await? {
            // S14: in memory only, and the application must not hear of it before this client has noted where.
            Answer::Written(memory) if volume.spec().writeback && !fua => {
                // Two halves of one group have one memory, so it does not matter which of them answered.
                volume.acknowledged(volume.spec().layout.group_of(chunk), memory).await
            }
            Answer::Written(_) => Ok(()),
            Answer::Read(_) | Answer::Allocation(_) | Answer::Flushed(_) | Answer::Done => {
                Err(IoError::Failed("a write was answered as something else".to_owned()))
            }
        }
    }
}

impl Attempts for PartOfWrite {
    fn next(&mut self, target: Target) -> Operation {
        self.current = Some(target);
        let low_water = self.ticket.volume.ledger.low_water().unwrap_or(self.write.operation);
        Operation::Write(Write { low_water, ..self.write.clone() })
    }

    fn plan(&self) -> Option<(OperationId, Rights)> {
        Some((self.write.operation, Rights::ReadWrite))
    }

    fn outcome(&mut self, outcome: &Result<Answer, AttemptError>) {
        let current = self.current.take();
        match outcome {
            Ok(_done) => self.unresolved = None,
            Err(error) if error.may_have_run() => self.unresolved = current,
            Err(_not_run) => {}
        }
    }
}

impl Drop for PartOfWrite {
    fn drop(&mut self) {
        if let Some(target) = self.current.or(self.unresolved) {
            let runtime = self.ticket.volume.engine.runtime.clone();
            runtime.spawn(fence(Arc::clone(&self.ticket), self.part, target));
        }
    }
}

/// Waits until nothing that was sent there can be executed any more; the ticket is held until then.
async fn fence(ticket: Arc<Ticket>, part: Part, Target { pg, device, epoch }: Target) {
    let (volume, part) = (&ticket.volume, Part { pg, ..part });
    info!(volume = volume.spec().name, pg = %part.pg, %device, %epoch, "a write was abandoned; fencing it");
    loop {
        // Of a volume that is not mapped any more every request is refused (S20).
        let is_over = volume.engine.routes.route(part.pg).is_none_or(|route| route.epoch > epoch);
        if is_over || volume.closed.load(Ordering::Acquire) {
            break;
        }
        let request =
            Request { auth: Arc::clone(&volume.auth), part, epoch, operation: Operation::Fence, own_token: None };
        match volume.engine.link(device).send(request).await {
            Ok(_done) => break,
            Err(error) => debug!(%device, %error, "not fenced yet"),
        }
        tokio::time::sleep(FENCE_PAUSE).await;
    }
}
