//! Rows of refused tokens.

use std::net::{IpAddr, Ipv6Addr};

use pflex_proto::ids::{LogTime, SdcId, SdsId};

use super::{
    Row, RowError,
    key::{KeyReader, KeyWriter},
    open, proto, seal,
};
use crate::state::{
    model::{BadSource, BadTokens, Flaws},
    table::Table,
};

/// As IPv6, so that a key has one length and one form.
fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn flaws_row(flaws: Flaws) -> proto::Flaws {
    let Flaws { forged, expired, revoked, replayed, foreign, unknown_key } = flaws;
    proto::Flaws { forged, expired, revoked, replayed, foreign, unknown_key }
}

fn flaws(row: Option<proto::Flaws>) -> Flaws {
    let proto::Flaws { forged, expired, revoked, replayed, foreign, unknown_key } = row.unwrap_or_default();
    Flaws { forged, expired, revoked, replayed, foreign, unknown_key }
}

impl Row for BadTokens {
    const TABLE: Table = Table::BadTokens;
    type Key = BadSource;

    fn key(&self) -> BadSource {
        self.source
    }

    fn encode_key(source: BadSource) -> Vec<u8> {
        let bits = address_bits(source.address);
        KeyWriter::default().u32(source.sdc.get()).u64((bits >> 64) as u64).u64(bits as u64).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::BadTokens {
            refused: Some(flaws_row(self.refused)),
            told: Some(flaws_row(self.told)),
            told_log_ms: self.told_at.map(LogTime::get),
            first_log_ms: self.first.get(),
            last_log_ms: self.last.get(),
            by_sds: self.by.get(),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::BadTokens = open(value)?;
        let mut reader = KeyReader::new(key);
        let (sdc, high, low) = (SdcId(reader.u32()?), reader.u64()?, reader.u64()?);
        reader.end()?;
        let bits = u128::from(high) << 64 | u128::from(low);
        let address = IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical();
        Ok(Self {
            source: BadSource { sdc, address },
            refused: flaws(row.refused),
            told: flaws(row.told),
            told_at: row.told_log_ms.map(LogTime),
            first: LogTime(row.first_log_ms),
            last: LogTime(row.last_log_ms),
            by: SdsId(row.by_sds),
        })
    }
}
