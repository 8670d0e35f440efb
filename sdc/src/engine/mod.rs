//! The back end: volumes of the cluster as [block devices](crate::block::BlockBackend).
//!
//! A request is split by chunk ([`plan`]), writes are admitted in the order of their overlaps and given operation ids
//! ([`ledger`]), each part is sent to the primary of its placement group ([`routes`]) over the one connection to that
//! device ([`link`]), in a session made with a token ([`tokens`]); whatever goes wrong is waited out and sent again
//! ([`verdict`], [`volume`]) until the deadline of the IO. What a mapping limits is held back before ([`metered`], [`limits`]).
//!
//! What must never happen, and where it is prevented:
//! - a write executed twice: each part has one operation id on every resend (S7, `ledger`);
//! - an old write landing after a newer one was acknowledged: overlapping writes of this process wait for one another, and
//!   an abandoned one keeps its place until it is fenced by a newer session or a newer epoch (S9, `volume::write`);
//! - wrong data: every read is checked against the checksums that were computed here when it was written (`volume`).

pub mod ledger;
pub mod limits;
pub mod link;
pub mod marks;
pub mod metered;
pub mod operation_tokens;
pub mod plan;
pub mod routes;
pub mod tokens;
pub mod verdict;
pub mod volume;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pflex_proto::ids::{ClusterId, DeviceId, Generation, ProcessId, SdcId, VolumeId};

pub use marks::Marks;
pub use routes::Routes;
pub use tokens::{TokenKeeper, TokenSource, VolumeAuth};
pub use volume::{Volume, VolumeSpec};

/// Who this client is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its id there.
    pub sdc: SdcId,
    /// This run of the process.
    pub process: ProcessId,
    /// How often the client has started; raised and synced before the first IO (S9).
    pub boot: u64,
}

/// How long the engine waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// An IO that could not be done in this time fails with EIO.
    pub io_deadline: Duration,
    /// A request without an answer for this time is sent again in a newer session. Connections that break and
    /// primaries that move are noticed at once, so this only catches a device that hangs.
    pub request_timeout: Duration,
    /// Time for connecting and the greeting.
    pub connect_timeout: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            io_deadline: Duration::from_secs(120),
            request_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
        }
    }
}

/// The generations of this process's sessions: every session that is opened anew gets a higher one (S9). One counter for
/// all volumes, so it also rises for a volume that is unmapped and mapped again.
#[derive(Debug)]
pub struct Generations {
    process: ProcessId,
    boot: AtomicU64,
    counter: AtomicU64,
}

impl Generations {
    fn new(identity: Identity) -> Self {
        Self { process: identity.process, boot: AtomicU64::new(identity.boot), counter: AtomicU64::new(1) }
    }

    fn next(&self) -> Generation {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        Generation { boot: self.boot.load(Ordering::Relaxed), counter, process: self.process }
    }
}

/// What all volumes of the process share.
#[derive(Debug)]
pub struct Engine {
    identity: Identity,
    patience: Patience,
    routes: Arc<Routes>,
    generations: Arc<Generations>,
    operations: ledger::OperationIds,
    marks: Marks,
    links: Mutex<HashMap<DeviceId, link::Link>>,
    volumes: Mutex<HashMap<VolumeId, Arc<Volume>>>,
    runtime: tokio::runtime::Handle,
}

impl Engine {
    /// An engine whose tasks run on the present tokio runtime, and which keeps its marks there.
    pub fn new(identity: Identity, patience: Patience, routes: Arc<Routes>, marks: Marks) -> Arc<Self> {
        Arc::new(Self {
            identity,
            patience,
            routes,
            generations: Arc::new(Generations::new(identity)),
            operations: ledger::OperationIds::new(identity.boot),
            marks,
            links: Mutex::default(),
            volumes: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// From now on sessions and writes have numbers of this start: a process that went on without the MDMs has registered,
    /// and is above whatever registered in between. What is under way keeps the numbers it has.
    pub fn raise(&self, boot: u64) {
        self.generations.boot.fetch_max(boot, Ordering::Relaxed);
        self.operations.raise(boot);
    }

    /// Makes something whose tasks run where the engine's do.
    pub fn enter<T>(&self, make: impl FnOnce() -> T) -> T {
        let _inside = self.runtime.enter();
        make()
    }

    /// Where placement groups are.
    pub const fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// The volume of `spec`, made when it is not there yet; else it follows this spec from now on. All users of a volume
    /// share one: the order of overlapping writes must be one order.
    pub fn volume(self: &Arc<Self>, spec: VolumeSpec, auth: &Arc<VolumeAuth>) -> Arc<Volume> {
        let mut volumes = self.volumes.lock().expect("no holder panics");
        match volumes.entry(spec.id) {
            Entry::Occupied(known) => {
                known.get().update(spec);
                Arc::clone(known.get())
            }
            Entry::Vacant(place) => {
                Arc::clone(place.insert(Arc::new(Volume::new(Arc::clone(self), spec, Arc::clone(auth)))))
            }
        }
    }

    /// All volumes that were made and not forgotten.
    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        self.volumes.lock().expect("no holder panics").values().cloned().collect()
    }

    /// Forgets a volume that is no longer mapped. Those who still hold it can go on.
    pub fn forget(&self, volume: VolumeId) {
        self.volumes.lock().expect("no holder panics").remove(&volume);
        self.marks.remove(volume);
    }

    /// Flushes what can be flushed, at an orderly end.
    pub async fn settle(&self) {
        let volumes = self.volumes().into_iter().filter(|volume| volume.spec().writeback);
        futures::future::join_all(volumes.map(|volume| async move { volume.settle().await })).await;
    }

    /// The link to a device, made when it is not there yet.
    fn link(&self, device: DeviceId) -> link::Link {
        let mut links = self.links.lock().expect("no holder panics");
        let start = || {
            let greeting = link::Greeting {
                cluster: self.identity.cluster,
                sdc: self.identity.sdc,
                process: self.identity.process,
                device,
            };
            link::Link::start(
                &self.runtime,
                greeting,
                self.patience,
                Arc::clone(&self.routes),
                Arc::clone(&self.generations),
            )
        };
        links.entry(device).or_insert_with(start).clone()
    }
}
