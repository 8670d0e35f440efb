//! Configurations are durable before they are acted in (S19).
//!
//! Whoever serves, acknowledges, grants or is filled in an epoch has it on disk. After a restore from backup that decides
//! which copies hold every acknowledged write, so it is waited for: one small commit for all groups of a map, and nothing
//! when no group here has changed. Configurations go to the cores in the order in which they came.

use std::collections::{HashMap, HashSet, VecDeque};

use pflex_proto::ids::{ClusterGeneration, PgId};
use tokio::sync::mpsc;

use super::worker::Worker;
use crate::{
    payload::Payload,
    replication::Event,
    store::{KnownConfig, MetaError},
};

/// What one map brings.
#[derive(Debug, Default)]
pub(super) struct Coming {
    events: Vec<(PgId, Event<Payload>)>,
    to_remember: Vec<(PgId, KnownConfig)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    /// The newest of each group that this device ever heard of in this life, or acted in before.
    known: HashMap<PgId, KnownConfig>,
    /// Of which groups it is on disk, or on the way there.
    rows: HashSet<PgId>,
    coming: Coming,
    /// Events of maps whose configurations are on the way to disk, oldest first.
    waiting: VecDeque<Vec<(PgId, Event<Payload>)>>,
    /// One message for each map in `waiting`.
    done: mpsc::UnboundedSender<Result<(), MetaError>>,
}

impl Memory {
    pub(super) fn new(known: Vec<(PgId, KnownConfig)>) -> (Self, mpsc::UnboundedReceiver<Result<(), MetaError>>) {
        let (done, receiver) = mpsc::unbounded_channel();
        let known: HashMap<PgId, KnownConfig> = known.into_iter().collect();
        let rows = known.keys().copied().collect();
        (Self { known, rows, coming: Coming::default(), waiting: VecDeque::new(), done }, receiver)
    }

    /// Whether this device has acted in a newer configuration than this one, in an earlier life perhaps: a map of an MDM
    /// that lags must not take it back.
    pub(super) fn knows_newer(&self, pg: PgId, config: &KnownConfig) -> bool {
        self.known.get(&pg).is_some_and(|known| known.order() > config.order())
    }

    /// A configuration for a core. None to remember: it names another life of this device, and nothing is done in it (S2).
    pub(super) fn comes(&mut self, pg: PgId, event: Event<Payload>, known: Option<KnownConfig>) {
        self.coming.events.push((pg, event));
        let is_news = |known: &KnownConfig| self.known.get(&pg) != Some(known) || !self.rows.contains(&pg);
        if let Some(known) = known.filter(is_news) {
            debug_assert!(!self.knows_newer(pg, &known), "what is newer is never forgotten");
            self.known.insert(pg, known.clone());
            self.rows.insert(pg);
            self.coming.to_remember.push((pg, known));
        }
    }
}

impl Memory {
    /// Groups with a row, each with the generation of its configuration.
    pub(super) fn rows(&self) -> impl Iterator<Item = (PgId, ClusterGeneration)> {
        self.rows.iter().filter_map(|pg| Some((*pg, self.known.get(pg)?.generation)))
    }

    /// Configurations whose rows are still on the way to disk go to no core any more: a newer one of each group has come.
    pub(super) fn withdraw(&mut self) {
        self.waiting.iter_mut().for_each(Vec::clear);
    }

    /// The newest configuration of a group that is known here.
    pub(super) fn known(&self, pg: PgId) -> Option<&KnownConfig> {
        self.known.get(&pg)
    }

    /// Rows that others have made durable.
    pub(super) fn adopt(&mut self, rows: Vec<(PgId, KnownConfig)>) {
        self.rows.extend(rows.iter().map(|(pg, _)| *pg));
        self.known.extend(rows);
    }

    pub(super) fn has_row(&self, pg: PgId) -> bool {
        self.rows.contains(&pg)
    }

    /// The group's row is being deleted. What it said still bars older configurations in this life.
    pub(super) fn forget(&mut self, pg: PgId) {
        self.rows.remove(&pg);
    }
}

impl Worker {
    /// Everything of a map has come.
    pub(super) fn remember(&mut self) {
        let Coming { events, to_remember } = std::mem::take(&mut self.memory.coming);
        if to_remember.is_empty() && self.memory.waiting.is_empty() {
            self.events.extend(events);
            return;
        }
        self.memory.waiting.push_back(events);
        let done = self.memory.done.clone();
        // Nobody receives it when the loop has ended.
        self.store.remember(&to_remember, Box::new(move |result| drop(done.send(result))));
    }

    /// The configurations of the oldest map are on disk.
    pub(super) fn on_remembered(&mut self, result: Result<(), MetaError>) {
        let events = self.memory.waiting.pop_front().unwrap_or_default();
        match result {
            Ok(()) => self.events.extend(events),
            // The cores stay in the epochs they know, and the device goes out of service (I8).
            Err(error) => self.store.could_not_remember(error),
        }
    }
}
