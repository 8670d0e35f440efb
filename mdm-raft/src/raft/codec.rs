//! Records as they stand on disk, and openraft's types as protobuf.
//!
//! ```text
//! offset 0  u8      format version, 1
//!        1  u32 LE  CRC32C over the key, then the body
//!        5  ..      protobuf body
//! ```
//!
//! The key is part of the checksum, so that a record found under another key, or another record under this one, does
//! not pass. The version stands outside the checksum: a newer layout may checksum something else.

use openraft::{EntryPayload, vote::RaftLeaderId as _};
use pflex_proto::ids::{LogTime, MdmId, StoreUuid};
use prost::Message;

use super::types::{
    EncodedCommand, Entry, LeaderId, LogId, MdmNode, Membership, Proposal, StoredMembership, Vote, log_id,
};
use crate::pb::pflex::mdm::raft::v1 as pb;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;

/// Why bytes are not the record they should be.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than a header.
    #[error("a record of {0} bytes is too short")]
    Short(usize),
    /// A version this code does not know.
    #[error("record version {0} is newer than this program")]
    Version(u8),
    /// The bytes changed since they were written.
    #[error("checksum mismatch: stored {stored:08x}, computed {computed:08x}")]
    Checksum {
        /// In the record.
        stored: u32,
        /// Over what is there.
        computed: u32,
    },
    /// Intact, but not a message of the expected type.
    #[error("not a record of its kind")]
    Protobuf(#[from] prost::DecodeError),
    /// Intact, but lacks a field or has one that cannot be.
    #[error("field {0} is missing or malformed")]
    Field(&'static str),
}

/// Wraps a message for storage under `key`.
pub fn seal(key: &[u8], message: &impl Message) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_BYTES + message.encoded_len());
    record.push(VERSION);
    record.extend([0; 4]);
    message.encode(&mut record).expect("a Vec grows as needed");
    let crc = checksum(key, &record[HEADER_BYTES..]);
    record[1..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    record
}

/// Checks and unwraps a stored message.
///
/// # Errors
/// When the bytes are not what [`seal`] made for this key.
pub fn unseal<M: Message + Default>(key: &[u8], record: &[u8]) -> Result<M, RecordError> {
    let Some((&[version, a, b, c, d], body)) = record.split_first_chunk::<HEADER_BYTES>() else {
        return Err(RecordError::Short(record.len()));
    };
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    let (stored, computed) = (u32::from_le_bytes([a, b, c, d]), checksum(key, body));
    if stored != computed {
        return Err(RecordError::Checksum { stored, computed });
    }
    Ok(M::decode(body)?)
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), body)
}

/// A log entry as protobuf.
pub(super) fn entry_to_pb(entry: &Entry) -> pb::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => pb::entry::Payload::Blank(pb::Blank {}),
        EntryPayload::Normal(proposal) => pb::entry::Payload::Proposal(pb::Proposal {
            log_time_ms: proposal.log_time.get(),
            command: proposal.command.bytes().clone(),
        }),
        EntryPayload::Membership(membership) => pb::entry::Payload::Membership(membership_to_pb(membership)),
    };
    pb::Entry { log_id: Some(log_id_to_pb(&entry.log_id)), payload: Some(payload) }
}

/// A log entry from protobuf.
pub(super) fn entry_from_pb(entry: pb::Entry) -> Result<Entry, RecordError> {
    let log_id = entry.log_id.map(log_id_from_pb).ok_or(RecordError::Field("entry.log_id"))?;
    let payload = match entry.payload.ok_or(RecordError::Field("entry.payload"))? {
        pb::entry::Payload::Blank(pb::Blank {}) => EntryPayload::Blank,
        pb::entry::Payload::Proposal(proposal) => EntryPayload::Normal(Proposal {
            log_time: LogTime(proposal.log_time_ms),
            command: EncodedCommand::decode(proposal.command)?,
        }),
        pb::entry::Payload::Membership(membership) => EntryPayload::Membership(membership_from_pb(membership)?),
    };
    Ok(Entry { log_id, payload })
}

pub(super) fn log_id_to_pb(id: &LogId) -> pb::LogId {
    pb::LogId { term: id.leader_id.term, index: id.index }
}

pub(super) fn log_id_from_pb(id: pb::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(super) fn vote_to_pb(vote: &Vote) -> pb::VoteValue {
    pb::VoteValue { term: vote.leader_id.term, node: vote.leader_id.voted_for.get(), committed: vote.committed }
}

pub(super) fn vote_from_pb(vote: pb::VoteValue) -> Vote {
    Vote { leader_id: LeaderId::new(vote.term, MdmId(vote.node)), committed: vote.committed }
}

pub(super) fn stored_membership_to_pb(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_pb),
        membership: Some(membership_to_pb(stored.membership())),
    }
}

pub(super) fn stored_membership_from_pb(stored: pb::StoredMembership) -> Result<StoredMembership, RecordError> {
    let membership = membership_from_pb(stored.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(stored.log_id.map(log_id_from_pb), membership))
}

fn membership_to_pb(membership: &Membership) -> pb::Membership {
    let configs = membership.get_joint_config().iter();
    pb::Membership {
        configs: configs.map(|voters| pb::Voters { nodes: voters.iter().map(|id| id.get()).collect() }).collect(),
        nodes: membership.nodes().map(|(id, node)| (id.get(), node_to_pb(node))).collect(),
    }
}

fn membership_from_pb(membership: pb::Membership) -> Result<Membership, RecordError> {
    // The membership of a store that has none yet.
    if membership == pb::Membership::default() {
        return Ok(Membership::default());
    }
    let configs = membership.configs.into_iter().map(|voters| voters.nodes.into_iter().map(MdmId).collect()).collect();
    let nodes = membership.nodes.into_iter().map(|(id, node)| Ok((MdmId(id), node_from_pb(node)?)));
    let nodes: std::collections::BTreeMap<MdmId, MdmNode> = nodes.collect::<Result<_, RecordError>>()?;
    Membership::new(configs, nodes).map_err(|_| RecordError::Field("membership"))
}

fn node_to_pb(node: &MdmNode) -> pb::Node {
    pb::Node {
        raft_address: node.raft_address.clone(),
        api_address: node.api_address.clone(),
        store: node.store.as_bytes().to_vec(),
    }
}

fn node_from_pb(node: pb::Node) -> Result<MdmNode, RecordError> {
    let store = StoreUuid::from_slice(&node.store).map_err(|_| RecordError::Field("node.store"))?;
    Ok(MdmNode { raft_address: node.raft_address, api_address: node.api_address, store })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;

    #[test]
    fn a_record_is_read_back_under_its_own_key_only() {
        let message = pb::LogId { term: 3, index: 9 };
        let record = seal(b"key", &message);
        assert_eq!(unseal::<pb::LogId>(b"key", &record).unwrap(), message);
        assert!(matches!(unseal::<pb::LogId>(b"kez", &record), Err(RecordError::Checksum { .. })));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let record = seal(b"k", &pb::LogId { term: 3, index: 9 });
        for bit in 0..record.len() * 8 {
            let mut bad = record.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal::<pb::LogId>(b"k", &bad).is_err(), "bit {bit} flipped unseen");
        }
        for length in 0..record.len() {
            assert!(unseal::<pb::LogId>(b"k", &record[..length]).is_err(), "cut to {length} unseen");
        }
    }

    #[test]
    fn every_payload_survives() {
        let members = [(MdmId(1), MdmNode::default()), (MdmId(2), MdmNode::default())];
        let membership = Membership::from(std::collections::BTreeMap::from(members));
        let proposal = Proposal { log_time: LogTime(5), command: Command::default().into() };
        for payload in [EntryPayload::Blank, EntryPayload::Normal(proposal), EntryPayload::Membership(membership)] {
            let entry = Entry { log_id: log_id(1, 2), payload };
            assert_eq!(entry_from_pb(entry_to_pb(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn an_unknown_payload_is_refused() {
        let entry = pb::Entry { log_id: Some(pb::LogId { term: 1, index: 1 }), payload: None };
        assert!(matches!(entry_from_pb(entry), Err(RecordError::Field("entry.payload"))));
    }
}
