//! A volume of the cluster as a block device.
//!
//! Reads and writes go part by part through the same loop ([`Volume::attempt`]): find the primary, send, judge, wait, again.
//! A write also has a place in the ledger; see [`write`].

mod pace;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future, stream};
use pflex_proto::data::WriteKind;
use pflex_proto::ids::{ByteCount, ByteOffset, DeviceId, Epoch, VolumeId};
use tracing::{debug, warn};

use self::pace::Pace;
use super::Engine;
use super::ledger::Ledger;
use super::link::{Answer, AttemptError, Operation, Request};
use super::plan::{Layout, Part, whole_blocks};
use super::tokens::VolumeAuth;
use super::verdict::{Verdict, judge};
use crate::block::{BlockBackend, ByteRange, Durability, IoError, Payload, Piece, ZeroOptions};

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

/// The attempts of one part.
trait Attempts: Send {
    /// What to send to `device` in `epoch`.
    fn next(&mut self, device: DeviceId, epoch: Epoch) -> Operation;

    /// What came of it.
    fn outcome(&mut self, _outcome: &Result<Answer, AttemptError>) {}
}

/// A read keeps nothing: whatever became of an attempt, the next one is as good.
struct Reading;

impl Attempts for Reading {
    fn next(&mut self, _device: DeviceId, _epoch: Epoch) -> Operation {
        Operation::Read
    }
}

/// A mapped volume.
#[derive(Debug)]
pub struct Volume {
    engine: Arc<Engine>,
    spec: VolumeSpec,
    auth: Arc<VolumeAuth>,
    ledger: Ledger,
    closed: AtomicBool,
    statistics: Statistics,
}

impl Volume {
    pub(super) fn new(engine: Arc<Engine>, spec: VolumeSpec, auth: Arc<VolumeAuth>) -> Self {
        let (ledger, closed, statistics) = (Ledger::default(), AtomicBool::new(false), Statistics::default());
        Self { engine, spec, auth, ledger, closed, statistics }
    }

    /// What the map said when it was opened.
    pub const fn spec(&self) -> &VolumeSpec {
        &self.spec
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

    /// Sends a part until it is done, cannot be done, or the deadline is over.
    async fn attempt(&self, part: Part, attempts: &mut impl Attempts) -> Result<Answer, IoError> {
        let mut pace = Pace::new(self.engine.patience.io_deadline);
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(IoError::Unmapped(format!("volume {}", self.spec.name)));
            }
            // Before the route is read, so that no change between reading and waiting is missed.
            let mut changes = pace.is_retrying().then(|| self.engine.routes.subscribe());
            let route = self.engine.routes.route(part.pg);
            let Some((epoch, device)) = route.and_then(|route| Some((route.epoch, route.primary?))) else {
                let changes = changes.get_or_insert_with(|| self.engine.routes.subscribe());
                pace.wait(changes, "no copy of its placement group is alive").await?;
                continue;
            };
            let operation = attempts.next(device, epoch);
            let token = self.auth.version();
            let request = Request { auth: Arc::clone(&self.auth), part, epoch, operation };
            let outcome = self.engine.link(device).send(request).await;
            attempts.outcome(&outcome);
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
            debug!(volume = %self.spec.id, pg = %part.pg, %epoch, %device, %error, "an attempt failed");
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
                Verdict::Grace(final_error) if pace.stalled().is_some_and(|stalled| stalled >= GRACE) => {
                    return Err(final_error);
                }
                Verdict::Grace(_) => pace.wait(&mut changes, &error).await?,
                Verdict::Final(error) => return Err(error),
            }
        }
    }

    /// Reads one part and checks it.
    async fn read_part(&self, part: Part) -> Result<Piece, IoError> {
        let deadline = Instant::now() + self.engine.patience.io_deadline;
        loop {
            let answer = self.attempt(part, &mut Reading).await?;
            let (checksums, data) = match answer {
                Answer::Read(Some(found)) => found,
                Answer::Read(None) => return Ok(Piece::Hole(part.length as usize)),
                Answer::Done => return Err(IoError::Failed("a read was answered as a write".to_owned())),
            };
            if data.len() == part.length as usize && checksums.verify(part.offset, &data) {
                return Ok(Piece::Data(data));
            }
            // The SDS has checked its disk; this happened on the way here, so another answer can be right.
            warn!(volume = self.spec.name, chunk = %part.chunk, offset = part.offset, "a read failed its checksum");
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

/// A handle on a volume that NBD connections share.
#[derive(Clone, Debug)]
pub struct VolumeBackend(pub Arc<Volume>);

impl VolumeBackend {
    /// Changes a range: `data` is empty for zeros.
    async fn change(
        &self,
        range: ByteRange,
        kind: WriteKind,
        data: Bytes,
        durability: Durability,
    ) -> Result<(), IoError> {
        let volume = &self.0;
        let parts = volume.spec.layout.parts(range);
        let ticket = write::Ticket::enter(Arc::clone(volume), range, parts.len()).await;
        let mut taken = 0;
        let mut writes = parts.enumerate().map(|(nth, part)| {
            let data = if data.is_empty() { Bytes::new() } else { data.slice(taken..taken + part.length as usize) };
            taken += part.length as usize;
            write::PartOfWrite::new(&ticket, nth, part, kind, durability == Durability::Stable, data).run()
        });
        let outcome = if writes.len() == 1 {
            writes.next().expect("there is one").await
        } else {
            stream::iter(writes).buffer_unordered(PARTS_AT_ONCE).try_for_each(|()| future::ready(Ok(()))).await
        };
        volume.count(outcome, &volume.statistics.writes, &volume.statistics.written_bytes, range.length)
    }
}

impl BlockBackend for VolumeBackend {
    async fn read(&self, range: ByteRange) -> Result<Payload, IoError> {
        let volume = &self.0;
        let mut parts = volume.spec.layout.parts(range);
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
        self.change(range, WriteKind::Data, data, durability).await
    }

    /// Every write of a `sync` pool was answered when it was durable on every in-sync copy, so there is nothing to do;
    /// volumes of other pools are not opened yet (S14).
    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), IoError> {
        match whole_blocks(range) {
            Some(blocks) => self.change(blocks, WriteKind::Trim, Bytes::new(), durability).await,
            None => Ok(()),
        }
    }

    /// Always faster than writing: no payload travels, so FAST_ZERO never refuses.
    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), IoError> {
        let kind = if options.keep_provisioned { WriteKind::ZeroNoHole } else { WriteKind::Zero };
        self.change(range, kind, Bytes::new(), options.durability).await
    }
}
