//! What the fleet did, and which of its streams stand.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use pflex_proto::pb::ComponentKind;

/// Failures that are said; the others are counted.
const SAID: u64 = 8;

#[derive(Default)]
pub(super) struct Counts {
    pub(super) beats: AtomicU64,
    pub(super) reports: AtomicU64,
    pub(super) renewals: AtomicU64,
    pub(super) full_maps: AtomicU64,
    /// Messages with updates of the map, and updates in them.
    pub(super) messages: AtomicU64,
    pub(super) updates: AtomicU64,
    pub(super) failures: AtomicU64,
}

/// The same at one moment, or since one.
#[derive(Clone, Copy, Default)]
pub(super) struct Did {
    pub(super) beats: u64,
    pub(super) reports: u64,
    pub(super) renewals: u64,
    pub(super) full_maps: u64,
    pub(super) messages: u64,
    pub(super) updates: u64,
    pub(super) failures: u64,
}

impl Counts {
    /// One more failure; the first few are said.
    pub(super) fn failed(&self, who: &str, doing: &str, why: &dyn fmt::Display) {
        if self.failures.fetch_add(1, Ordering::Relaxed) < SAID {
            eprintln!("{who}: {doing}: {why}");
        }
    }

    pub(super) fn since(&self, before: &Did) -> Did {
        let of = |count: &AtomicU64, before: u64| count.load(Ordering::Relaxed) - before;
        Did {
            beats: of(&self.beats, before.beats),
            reports: of(&self.reports, before.reports),
            renewals: of(&self.renewals, before.renewals),
            full_maps: of(&self.full_maps, before.full_maps),
            messages: of(&self.messages, before.messages),
            updates: of(&self.updates, before.updates),
            failures: of(&self.failures, before.failures),
        }
    }
}

/// Which leader hears each server, and who has a map that is kept fresh.
pub(super) struct Streams {
    /// The term of the leader that answered the last beat, by server.
    terms: Vec<AtomicU64>,
    servers: Vec<AtomicBool>,
    clients: Vec<AtomicBool>,
    /// When the first stream of beats ended since somebody asked to know.
    first_break: Mutex<Option<Instant>>,
}

impl Streams {
    pub(super) fn new(sds: u32, sdc: u32) -> Self {
        let flags = |n: u32| (0..n).map(|_| AtomicBool::new(false)).collect();
        Self {
            terms: (0..sds).map(|_| AtomicU64::new(0)).collect(),
            servers: flags(sds),
            clients: flags(sdc),
            first_break: Mutex::default(),
        }
    }

    pub(super) fn beats_with(&self, n: u32, term: u64) {
        self.terms[n as usize].store(term, Ordering::Relaxed);
    }

    pub(super) fn broke(&self) {
        self.first_break.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    pub(super) fn watches(&self, kind: ComponentKind, n: u32, stands: bool) {
        let flags = if kind == ComponentKind::Sds { &self.servers } else { &self.clients };
        flags[n as usize].store(stands, Ordering::Relaxed);
    }

    /// The newest term that any server has heard.
    pub(super) fn term(&self) -> u64 {
        self.terms.iter().map(|term| term.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    /// Servers that no leader after `term` has answered yet.
    pub(super) fn unheard_after(&self, term: u64) -> usize {
        self.terms.iter().filter(|heard| heard.load(Ordering::Relaxed) <= term).count()
    }

    /// Servers and clients without a map that is kept fresh.
    pub(super) fn unwatched(&self) -> usize {
        self.servers.iter().chain(&self.clients).filter(|stands| !stands.load(Ordering::Relaxed)).count()
    }

    /// From now on the first break is noted.
    pub(super) fn forget_breaks(&self) {
        *self.first_break.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn first_break(&self) -> Option<Instant> {
        *self.first_break.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
