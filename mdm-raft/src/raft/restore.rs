//! A store that begins with a state instead of nothing: the one member of a group restored from a backup.
//!
//! Its log is empty and starts behind what the state covers, far ahead in term and index of anything the old group can
//! have had: an entry or a leader's stamp of then is never newer than one of now. It is made in the order of any store:
//! until the last write of `STORE` a crash leaves nothing that would start.

use std::{collections::BTreeMap, path::Path};

use openraft::{Membership as RaftMembership, vote::RaftLeaderId as _};
use pflex_proto::ids::{LogTime, Revision};

use super::{
    durable,
    error::StoreError,
    identity::{self, Phase, StoreIdentity},
    log_store::LogStore,
    snapshot::{self, SnapshotStore},
    state_store::{Mark, StateStore},
    types::{LeaderId, LogId, MdmNode, StoredMembership, Vote},
};
use crate::state::State;

/// Where a restored group begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beginning {
    pub(super) last: LogId,
    pub(super) revision: Revision,
    pub(super) log_time: LogTime,
}

pub(super) fn make_store(
    dir: &Path,
    identity: StoreIdentity,
    node: MdmNode,
    state: &State,
    beginning: Beginning,
) -> Result<(), StoreError> {
    let Beginning { last, revision, log_time } = beginning;
    durable::make_dir(dir).map_err(StoreError::io("create", dir))?;
    identity::write(dir, identity, Phase::Creating)?;
    // Voted for nobody in the term of the backup, so the first election is in a later one.
    let vote = Vote { leader_id: LeaderId::new(last.leader_id.term, identity.node), committed: false };
    LogStore::create_behind(dir, identity, last, vote)?;
    let members = BTreeMap::from([(identity.node, node)]);
    let membership = RaftMembership::new(vec![members.keys().copied().collect()], members)
        .map_err(|error| StoreError::Damaged { path: dir.into(), what: error.to_string() })?;
    let membership = StoredMembership::new(Some(last), membership);
    let mark = Mark { last_applied: Some(last), revision, log_time, membership };
    let database = StateStore::create_with(dir, identity, state, &mark)?;
    // The log starts behind it, so a new member needs it.
    let snapshots = SnapshotStore::open(dir, identity.cluster)?;
    snapshot::build_now(&snapshots, &|to: &Path| database.checkpoint(to))?;
    drop(database);
    identity::write(dir, identity, Phase::Ready)
}
