//! The state of a backup as a new cluster's beginning (S19): nobody may take it for what was there before.
//!
//! Everything handed out since the backup was made is unknown, so every counter skips far ahead: an id, an epoch, a
//! revision of then and one of now are never the same. Nobody serves and nothing is alive until it has registered again,
//! and groups stay closed until the operator ends the recovery.

use std::collections::BTreeMap;

use pflex_proto::ids::{ClusterGeneration, Epoch, KeyId, LogTime, ProcessId, Revision, VolatilityId, VolumeEpoch};

use super::{
    LoadError, State, StoredRow,
    model::{
        Cluster, Event, GroupReports, Kind, KnownConfig, MdmStores, Moment, Position, Secret, SecretRow, Severity,
    },
    rows::cluster::ConfigRow,
};

/// More than any cluster counts in its life: a million a second for twelve days.
const SKIP: u64 = 1 << 40;
/// For ids of 32 bits: 16 million is far above each limit, and leaves room for 255 restores.
const SKIP_SHORT: u32 = 1 << 24;

/// Why rows are no state to begin with.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A row is not readable.
    #[error("{0}: {source}", source = .0.source)]
    Load(#[from] LoadError),
    /// The state contradicts itself.
    #[error("its rows contradict one another: {0}")]
    Inconsistent(String),
    /// The first command is missing.
    #[error("it is of a cluster that never began")]
    NotBootstrapped,
    /// After 255 restores.
    #[error("an id space is used up")]
    UsedUp,
}

/// The beginning of the restored cluster.
#[derive(Debug)]
pub struct RestoredState {
    /// Its state.
    pub state: State,
    /// The revision it begins at.
    pub revision: Revision,
    /// The log time it begins at.
    pub log_time: LogTime,
    /// Its generation.
    pub generation: ClusterGeneration,
}

impl State {
    /// What a counter of 64 bits skips: the caller moves term and index of the log as far.
    pub const RESTORE_SKIP: u64 = SKIP;
    /// What an id of 32 bits skips.
    pub(super) const RESTORE_SKIP_SHORT: u32 = SKIP_SHORT;

    /// The state of a backup's rows, made the beginning of a new cluster. `wall_seconds` makes the generations of two
    /// restores differ, `secret` is fresh.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn restored(
        rows: impl Iterator<Item = StoredRow>,
        wall_seconds: u64,
        secret: [u8; 32],
    ) -> Result<RestoredState, RestoreError> {
        let mut state = Self::load(rows)?;
        let cluster = state.cluster().cloned().ok_or(RestoreError::NotBootstrapped)?;
        // Two restores of one backup must not have one generation.
        let generation = ClusterGeneration(wall_seconds.max(cluster.generation.get() + 1));
        let before = state.position();
        let position = Position { revision: Revision(before.revision.get() + SKIP), log_time: before.log_time };

        let devices_of_backup = Some(state.counters().device);
        state.note_what_the_backup_knows(cluster.generation);
        state.skip_ahead()?;
        state.take_out_of_service();
        state.forget_clients_and_mdms();
        let key = KeyId(cluster.newest_key.get().checked_add(SKIP_SHORT).ok_or(RestoreError::UsedUp)?);
        state.secrets.put(SecretRow { key, secret: Secret(secret), last_expiry: None });
        state.config.put(ConfigRow::Cluster(Cluster {
            generation,
            newest_key: key,
            recovering: true,
            devices_of_backup,
            ..cluster
        }));
        state.config.put(ConfigRow::Position(position));
        state.events.put(Event {
            revision: position.revision,
            at: position.log_time,
            at_wall_ms: wall_seconds.saturating_mul(1_000),
            severity: Severity::Critical,
            kind: "cluster.restore".to_owned(),
            object: "cluster".to_owned(),
            what: format!("restored from a backup of revision {}; later changes are lost", before.revision),
            who: "cluster restore".to_owned(),
            parts: Vec::new(),
        });
        state.refresh_names();
        state.refresh_sums();
        // Nobody serves: open rebuilds wait.
        let (revision, at, wall_ms) = (position.revision, position.log_time, wall_seconds.saturating_mul(1_000));
        state.follow_rebuilds(Moment { revision, at, wall_ms });
        state.check().map_err(RestoreError::Inconsistent)?;
        Ok(RestoredState { state, revision: position.revision, log_time: position.log_time, generation })
    }

    fn skip_ahead(&mut self) -> Result<(), RestoreError> {
        let short = |id: u32| id.checked_add(SKIP_SHORT).ok_or(RestoreError::UsedUp);
        let mut counters = self.counters();
        counters.domain.0 = short(counters.domain.0)?;
        counters.pool.0 = short(counters.pool.0)?;
        counters.fault_set.0 = short(counters.fault_set.0)?;
        counters.sds.0 = short(counters.sds.0)?;
        counters.device.0 = short(counters.device.0)?;
        counters.sdc.0 = short(counters.sdc.0)?;
        counters.node = short(counters.node)?;
        counters.volume.0 += SKIP;
        counters.token.0 += SKIP;
        counters.client.0 += SKIP;
        counters.snapshot.0 += SKIP;
        counters.job.0 += SKIP;
        self.config.put(ConfigRow::Counters(counters));
        let pgs: Vec<_> = self.pgs.values().map(|pg| pg.id).collect();
        for id in pgs {
            self.pgs.update(id, |pg| {
                pg.config.epoch = Epoch(pg.config.epoch.get() + SKIP);
                // No id of after the backup comes again: a client may still name it in a FLUSH (S14).
                pg.config.volatility = VolatilityId(pg.config.volatility.get() + SKIP);
                pg.config.primary = None;
                pg.forgot.clear();
            });
        }
        let pools: Vec<_> = self.pools.values().map(|pool| pool.id).collect();
        for id in pools {
            self.pools.update(id, |pool| pool.frozen.clear());
        }
        let volumes: Vec<_> = self.volumes.values().map(|volume| volume.id).collect();
        for id in volumes {
            self.volumes.update(id, |volume| volume.epoch = VolumeEpoch(volume.epoch.get() + SKIP));
        }
        Ok(())
    }

    fn take_out_of_service(&mut self) {
        let now = self.log_time();
        let devices: Vec<_> = self.devices.values().map(|device| device.id).collect();
        for id in devices {
            self.devices.update(id, |device| {
                device.serve(false, now);
                device.awaited = true;
                device.reported_by = None;
            });
        }
        let sds: Vec<_> = self.sds.values().map(|sds| sds.id).collect();
        for id in sds {
            self.sds.update(id, |sds| {
                sds.alive = false;
                sds.awaited = true;
                sds.registration.iter_mut().for_each(|registration| registration.process = ProcessId::default());
            });
        }
        // An SDC that runs on registers again, too: nobody else is given its tokens meanwhile.
        let sdcs: Vec<_> = self.sdcs.values().map(|sdc| sdc.id).collect();
        for id in sdcs {
            self.sdcs.update(id, |sdc| {
                sdc.registration.iter_mut().for_each(|registration| registration.process = ProcessId::default());
            });
        }
    }

    /// Before epochs skip ahead: the configurations of the backup, to be compared with what devices report.
    fn note_what_the_backup_knows(&mut self, generation: ClusterGeneration) {
        let before: Vec<_> = self.group_reports.values().map(|row| row.pg).collect();
        before.into_iter().for_each(|pg| drop(self.group_reports.remove(pg)));
        for pg in self.pgs.values() {
            let base = KnownConfig {
                generation,
                epoch: pg.config.epoch,
                primary: pg.config.primary,
                in_sync: pg.config.in_sync.clone(),
                replicas: pg.replicas.clone(),
                volatility: pg.config.volatility,
                served: false,
            };
            self.group_reports.put(GroupReports { pg: pg.id, base: Some(base), by: BTreeMap::new() });
        }
    }

    /// Sessions of before know nothing of what is lost (S17); the MDMs of before are no members of the new group.
    fn forget_clients_and_mdms(&mut self) {
        let sessions: Vec<_> = self.sessions.values().map(|session| session.client).collect();
        sessions.into_iter().for_each(|client| drop(self.sessions.remove(client)));
        let outcomes: Vec<_> = self.outcomes.values().map(|kept| (kept.client, kept.sequence)).collect();
        outcomes.into_iter().for_each(|key| drop(self.outcomes.remove(key)));
        let mdms: Vec<_> = self.nodes.values().map(|node| node.component).filter(|c| c.kind == Kind::Mdm).collect();
        for component in mdms {
            self.nodes.remove(component);
            self.forget_component(component);
        }
        self.config.put(ConfigRow::MdmStores(MdmStores::new()));
    }
}
