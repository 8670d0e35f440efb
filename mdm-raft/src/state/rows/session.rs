//! Rows of exactly-once sessions and the outcomes they keep.

use pflex_proto::ids::{ClientId, ClientSequence, LogTime};
use prost::Message as _;

use super::{
    Row, RowError,
    key::{KeyReader, KeyWriter, one_u64},
    open, proto, seal,
};
use crate::{
    command::Outcome,
    state::{
        model::{KeptOutcome, Session},
        table::Table,
    },
};

impl Row for Session {
    const TABLE: Table = Table::Sessions;
    type Key = ClientId;

    fn key(&self) -> ClientId {
        self.client
    }

    fn encode_key(key: ClientId) -> Vec<u8> {
        KeyWriter::default().u64(key.get()).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Session {
            name: self.name.clone(),
            last_seen_log_ms: self.last_seen.get(),
            low_water: self.low_water.get(),
            kept: self.kept,
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Session = open(value)?;
        Ok(Self {
            client: ClientId(one_u64(key)?),
            name: row.name,
            last_seen: LogTime(row.last_seen_log_ms),
            low_water: ClientSequence(row.low_water),
            kept: row.kept,
        })
    }
}

impl Row for KeptOutcome {
    const TABLE: Table = Table::SessionOutcomes;
    type Key = (ClientId, ClientSequence);

    fn key(&self) -> (ClientId, ClientSequence) {
        (self.client, self.sequence)
    }

    fn encode_key((client, sequence): (ClientId, ClientSequence)) -> Vec<u8> {
        KeyWriter::default().u64(client.get()).u64(sequence.get()).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::KeptOutcome { fingerprint: self.fingerprint, outcome: self.outcome.encode_to_vec() })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let mut reader = KeyReader::new(key);
        let (client, sequence) = (ClientId(reader.u64()?), ClientSequence(reader.u64()?));
        reader.end()?;
        let row: proto::KeptOutcome = open(value)?;
        Ok(Self { client, sequence, fingerprint: row.fingerprint, outcome: Outcome::decode(row.outcome.as_slice())? })
    }
}
