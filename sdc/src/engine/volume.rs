//! A volume of the cluster as a block device.
//!
//! Reads and writes go part by part through the same loop ([`Volume::attempt`]): find the primary, send, judge, wait, again.
//! A write also has a place in the ledger; see [`write`]. Where there is data is asked chunk by chunk; see [`allocation`].
//!
//! Atomic is what lies inside one 4 KiB block: the primary changes a block at once, also for other clients. A write over a
//! block border, and so over a chunk border, is several changes; writes of this process that overlap wait for one another
//! as wholes, while another client may see one part of it before the other, as on any disk.

mod allocation;
mod pace;
mod unflushed;
mod write;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future, stream};
use pflex_proto::data::WriteKind;
use pflex_proto::geometry::CHUNK_SIZE;
use pflex_proto::ids::{ByteCount, ByteOffset, DeviceId, Epoch, OperationId, PgId, VolumeId};
use pflex_proto::token::Rights;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::pace::Pace;
use self::unflushed::Unflushed;
use super::Engine;
use super::ledger::Ledger;
use super::link::{Answer, AttemptError, Operation, Request};
use super::marks::Memories;
use super::operation_tokens::Plan;
use super::plan::{Layout, Part, at_block_borders, whole_blocks};
use super::tokens::VolumeAuth;
use super::verdict::{Verdict, judge};
use crate::block::{BlockBackend, ByteRange, Durability, Extent, IoError, Payload, Piece, ZeroOptions};

/// Parts of one request that are under way at the same time: all parts of the largest read or write (33), while a TRIM
/// of 4 GiB does not flood the cluster with 4,096 requests.
const PARTS_AT_ONCE: usize = 33;

/// How long an SDS may be behind the map of this client: liveness is lost after 3 s without the leader.
const GRACE: Duration = Duration::from_secs(3);

/// What the map says of a volume and its mapping to this client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its id.
    pub id: VolumeId,
    /// Its name, which is the name of the export.
    pub name: String,
    /// Where its chunks are.
    pub layout: Layout,
    /// Its pool acknowledges what is in memory (S14).
    pub writeback: bool,
    /// Each operation needs a token of its own (S21).
    pub per_io: bool,
}

/// Counters of one volume; each only ever rises.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Reads done.
    pub reads: AtomicU64,
    /// Bytes of them.
    pub read_bytes: AtomicU64,
    /// Writes, trims and zeroings done.
    pub writes: AtomicU64,
    /// Bytes of them.
    pub written_bytes: AtomicU64,
    /// Attempts beyond the first of each part.
    pub retries: AtomicU64,
    /// Requests that failed for good.
    pub errors: AtomicU64,
    /// The longest time a request that was sent more than once took, in microseconds.
    pub longest_stall_us: AtomicU64,
}

impl Statistics {
    /// Reads, writes, bytes read, bytes written.
    pub fn counters(&self) -> [u64; 4] {
        [&self.reads, &self.writes, &self.read_bytes, &self.written_bytes].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Where an attempt goes. The group of a chunk is another one once the groups of its pool have doubled (S25).
#[derive(Clone, Copy, Debug)]
struct Target {
    pg: PgId,
    device: DeviceId,
    epoch: Epoch,
}

/// The attempts of one part.
trait Attempts: Send {
    /// What to send there.
    fn next(&mut self, target: Target) -> Operation;

    /// What its own token has to name in per-io mode; none for what needs none.
    fn plan(&self) -> Option<(OperationId, Rights)> {
        Some((OperationId(0), Rights::Read))
    }

    /// What came of it.
    fn outcome(&mut self, _outcome: &Result<Answer, AttemptError>) {}
}

/// A read keeps nothing: whatever became of an attempt, the next one is as good.
struct Reading;

impl Attempts for Reading {
    fn next(&mut self, _target: Target) -> Operation {
        Operation::Read
    }
}

/// Nor does a question where there is data.
struct Asking;

impl Attempts for Asking {
    fn next(&mut self, _target: Target) -> Operation {
        Operation::Allocation
    }
}

/// A mapped volume.
#[derive(Debug)]
pub struct Volume {
    engine: Arc<Engine>,
    id: VolumeId,
    /// As the map has it now; a request keeps what it began with.
    spec: RwLock<Arc<VolumeSpec>>,
    auth: Arc<VolumeAuth>,
    ledger: Ledger,
    unflushed: Unflushed,
    closed: AtomicBool,
    statistics: Statistics,
}

impl Volume {
    pub(super) fn new(engine: Arc<Engine>, spec: VolumeSpec, auth: Arc<VolumeAuth>) -> Self {
        let (ledger, closed, statistics) = (Ledger::default(), AtomicBool::new(false), Statistics::default());
        let unflushed = Unflushed::new(if spec.writeback { engine.marks.load(spec.id) } else { Ok(Memories::new()) });
        let (id, spec) = (spec.id, RwLock::new(Arc::new(spec)));
        Self { engine, id, spec, auth, ledger, unflushed, closed, statistics }
    }

    /// Its id.
    pub const fn id(&self) -> VolumeId {
        self.id
    }

    /// What the map says of it.
    pub fn spec(&self) -> Arc<VolumeSpec> {
        Arc::clone(&self.spec.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what a newer map says: from now on requests follow it.
    pub(super) fn update(&self, spec: VolumeSpec) {
        let mut held = self.spec.write().unwrap_or_else(PoisonError::into_inner);
        if **held != spec {
            *held = Arc::new(spec);
        }
    }

    /// Its counters.
    pub const fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Writes under way.
    pub fn writes_in_flight(&self) -> usize {
        self.ledger.len()
    }

    /// The volume is no longer mapped: what is under way and waits, and everything later, fails.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Sends a part until it is done, cannot be done, or has taken longer than allowed.
    async fn attempt(
        &self,
        mut part: Part,
        allowed: Duration,
        attempts: &mut impl Attempts,
    ) -> Result<Answer, IoError> {
        let mut pace = Pace::new(allowed);
        loop {
            if pace.is_retrying() && part.length > 0 {
                // The groups of the pool may have doubled since it was planned (S25).
                part.pg = self.spec().layout.group_of(part.chunk);
            }
            if self.closed.load(Ordering::Acquire) {
                return Err(IoError::Unmapped(format!("volume {}", self.spec().name)));
            }
            // Before the route is read, so that no change between reading and waiting is missed.
            let mut changes = pace.is_retrying().then(|| self.engine.routes.subscribe());
            let Some((epoch, device)) = self.primary_of(part.pg) else {
                let changes = changes.get_or_insert_with(|| self.engine.routes.subscribe());
                pace.wait(changes, "no copy of its placement group is alive").await?;
                continue;
            };
            let token = self.auth.version();
            let outcome = match self.operation_token(part, device, attempts, &mut pace).await {
                Err(why) => Err(AttemptError::NoOperationToken(why)),
                // While it was on its way, and it is for that device only.
                Ok(Some(_)) if self.primary_of(part.pg) != Some((epoch, device)) => Err(AttemptError::Moved),
                Ok(own_token) => {
                    let operation = attempts.next(Target { pg: part.pg, device, epoch });
                    let request = Request { auth: Arc::clone(&self.auth), part, epoch, operation, own_token };
                    let outcome = self.engine.link(device).send(request).await;
                    attempts.outcome(&outcome);
                    outcome
                }
            };
            let error = match outcome {
                Ok(answer) => {
                    if let Some(stalled) = pace.stalled() {
                        self.statistics.longest_stall_us.fetch_max(stalled.as_micros() as u64, Ordering::Relaxed);
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            self.statistics.retries.fetch_add(1, Ordering::Relaxed);
            let learned = match &error {
                AttemptError::Refused(refusal) => {
                    refusal.config.as_ref().is_some_and(|config| self.engine.routes.learn(config))
                }
                _other => false,
            };
            debug!(volume = %self.id, pg = %part.pg, %epoch, %device, %error, "an attempt failed");
            let mut changes = changes.unwrap_or_else(|| self.engine.routes.subscribe());
            match judge(&error, learned) {
                Verdict::Again => pace.again(&error).await?,
                Verdict::Wait => {
                    pace.wait_from(&mut changes, epoch, device, part.pg, &self.engine.routes, &error).await?
                }
                Verdict::NewToken => {
                    let mut versions = self.auth.want_newer(token);
                    pace.wait(&mut versions, &error).await?;
                }
                Verdict::Grace(final_error) if pace.doubted_for(GRACE) => return Err(final_error),
                Verdict::Grace(_) => pace.wait(&mut changes, &error).await?,
                Verdict::Final(error) => return Err(error),
            }
        }
    }

    fn primary_of(&self, pg: PgId) -> Option<(Epoch, DeviceId)> {
        let route = self.engine.routes.route(pg)?;
        Some((route.epoch, route.primary?))
    }

    /// In per-io mode a token for the attempt alone; waiting for it is part of the time that the operation may take.
    async fn operation_token(
        &self,
        part: Part,
        device: DeviceId,
        attempts: &impl Attempts,
        pace: &mut Pace,
    ) -> Result<Option<Vec<u8>>, String> {
        let (operation, rights) = match attempts.plan() {
            Some(plan) if self.spec().per_io => plan,
            Some(_) | None => return Ok(None),
        };
        let from = part.chunk.index.0 * u64::from(CHUNK_SIZE) + u64::from(part.offset);
        let (from, to) = (ByteOffset(from), ByteOffset(from + u64::from(part.length)));
        let asked = tokio::time::Instant::now();
        let plan = Plan { volume: self.id, device, operation, rights, from, to };
        let planned = tokio::time::timeout(pace.left(), self.auth.planned(plan)).await;
        let planned = planned.unwrap_or_else(|_elapsed| Err("no MDM issued a token for the operation".to_owned()));
        match &planned {
            Ok(_token) => pace.spent(asked.elapsed()),
            Err(_why) => pace.began(asked),
        }
        planned.map(Some)
    }

    /// Reads one part and checks it.
    async fn read_part(&self, part: Part) -> Result<Piece, IoError> {
        let allowed = self.engine.patience.io_deadline;
        let deadline = Instant::now() + allowed;
        loop {
            let answer = self.attempt(part, allowed, &mut Reading).await?;
            let (checksums, data) = match answer {
                Answer::Read(Some(found)) => found,
                Answer::Read(None) => return Ok(Piece::Hole(part.length as usize)),
                Answer::Done | Answer::Allocation(_) | Answer::Written(_) | Answer::Flushed(_) => {
                    return Err(IoError::Failed("a read was answered as something else".to_owned()));
                }
            };
            if data.len() == part.length as usize && checksums.verify(part.offset, &data) {
                return Ok(Piece::Data(data));
            }
            // The SDS has checked its disk; this happened on the way here, so another answer can be right.
            warn!(volume = self.spec().name, chunk = %part.chunk, offset = part.offset, "a read failed its checksum");
            self.statistics.retries.fetch_add(1, Ordering::Relaxed);
            if Instant::now() > deadline {
                return Err(IoError::Failed("reads keep failing their checksums".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn count<T>(
        &self,
        outcome: Result<T, IoError>,
        count: &AtomicU64,
        bytes: &AtomicU64,
        length: ByteCount,
    ) -> Result<T, IoError> {
        if outcome.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(length.0, Ordering::Relaxed);
        } else {
            self.statistics.errors.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }
}

/// What a request passes before it is sent: the limits of a mapping, or nothing.
pub trait Gate: Send + Sync + 'static {
    /// Returns when a request of so many bytes may go on.
    fn pass(&self, bytes: u64) -> impl Future<Output = Result<(), IoError>> + Send;
}

/// A gate that is always open.
#[derive(Clone, Copy, Debug)]
pub struct Open;

impl Gate for Open {
    async fn pass(&self, _bytes: u64) -> Result<(), IoError> {
        Ok(())
    }
}

/// A handle on a volume that NBD connections share, and the gate of who holds it.
#[derive(Clone, Debug)]
pub struct VolumeBackend<G = Open> {
    volume: Arc<Volume>,
    session: CancellationToken,
    gate: G,
}

impl<G> VolumeBackend<G> {
    /// For connections of this [`Volume::session`].
    pub const fn new(volume: Arc<Volume>, session: CancellationToken, gate: G) -> Self {
        Self { volume, session, gate }
    }

    /// The volume.
    pub const fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// What requests pass before they are sent.
    pub const fn gate(&self) -> &G {
        &self.gate
    }
}

impl<G: Gate> VolumeBackend<G> {
    /// Changes a range: `data` is empty for zeros. The parts of it, `count` together, are changed at the same time.
    ///
    /// The gate comes after the place in the order of overlapping writes: one that is held back is not overtaken by a later
    /// one of the same bytes, which it would overwrite.
    async fn change(
        &self,
        range: ByteRange,
        kind: WriteKind,
        data: Bytes,
        durability: Durability,
        (count, parts): (usize, impl Iterator<Item = Part>),
    ) -> Result<(), IoError> {
        let volume = &self.volume;
        let outcome = async {
            let (ticket, allowed) = write::Ticket::enter(Arc::clone(volume), range, count).await?;
            self.gate.pass(data.len() as u64).await?;
            let mut taken = 0;
            let mut writes = parts.enumerate().map(|(nth, part)| {
                let data = if data.is_empty() { Bytes::new() } else { data.slice(taken..taken + part.length as usize) };
                taken += part.length as usize;
                let fua = durability == Durability::Stable;
                write::PartOfWrite::new(&ticket, nth, part, kind, fua, data).run(allowed)
            });
            match (count, writes.next()) {
                (1, Some(write)) => write.await,
                (_, first) => {
                    let writes = stream::iter(first.into_iter().chain(writes)).buffer_unordered(PARTS_AT_ONCE);
                    writes.try_for_each(|()| future::ready(Ok(()))).await
                }
            }
        };
        volume.count(outcome.await, &volume.statistics.writes, &volume.statistics.written_bytes, range.length)
    }

    /// The parts of a range and their number.
    fn parts(&self, range: ByteRange) -> (usize, impl Iterator<Item = Part> + use<G>) {
        let parts = self.volume.spec().layout.parts(range);
        (parts.len(), parts)
    }
}

impl<G: Gate> BlockBackend for VolumeBackend<G> {
    async fn read(&self, range: ByteRange) -> Result<Payload, IoError> {
        self.gate.pass(range.length.0).await?;
        let volume = &self.volume;
        let mut parts = volume.spec().layout.parts(range);
        let outcome = if parts.len() == 1 {
            volume.read_part(parts.next().expect("there is one")).await.map(|piece| Payload::of([piece]))
        } else {
            let pieces = stream::iter(parts.map(|part| volume.read_part(part))).buffered(PARTS_AT_ONCE);
            pieces.try_collect::<Vec<_>>().await.map(Payload::of)
        };
        volume.count(outcome, &volume.statistics.reads, &volume.statistics.read_bytes, range.length)
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, durability: Durability) -> Result<(), IoError> {
        let range = ByteRange { offset, length: ByteCount(data.len() as u64) };
        self.change(range, WriteKind::Data, data, durability, self.parts(range)).await
    }

    /// Every write of a `sync` pool was answered when it was durable on every in-sync copy, so there is nothing to do.
    async fn flush(&self) -> Result<(), IoError> {
        if self.volume.spec().writeback { self.volume.flush(&self.session).await } else { Ok(()) }
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), IoError> {
        let Some(blocks) = whole_blocks(range) else { return Ok(()) };
        self.change(blocks, WriteKind::Trim, Bytes::new(), durability, self.parts(blocks)).await
    }

    /// Whole blocks become holes, which is faster than writing. Zeros that keep their space, and those of parts of blocks,
    /// are written like any bytes.
    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), IoError> {
        let ZeroOptions { durability, keep_provisioned, only_if_fast } = options;
        if only_if_fast && (keep_provisioned || whole_blocks(range).is_none()) {
            return Err(IoError::NotSupported("these zeros would be written like any bytes"));
        }
        if keep_provisioned {
            return self.change(range, WriteKind::ZeroNoHole, Bytes::new(), durability, self.parts(range)).await;
        }
        let layout = self.volume.spec().layout;
        let count = at_block_borders(range).map(|piece| layout.parts(piece).len()).sum();
        let parts = at_block_borders(range).flat_map(move |piece| layout.parts(piece));
        self.change(range, WriteKind::Zero, Bytes::new(), durability, (count, parts)).await
    }

    async fn extents(&self, range: ByteRange, most: usize) -> Result<Vec<Extent>, IoError> {
        allocation::extents(&self.volume, range, most).await
    }
}
