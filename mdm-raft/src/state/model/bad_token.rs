//! Tokens that SDSs refused for what is wrong with them, by source.

use std::net::{IpAddr, Ipv6Addr};

use pflex_proto::ids::{LogTime, SdcId, SdsId};

/// Who sent them. Nobody has proven the id: it is what the client greeted with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BadSource {
    /// As it greeted.
    pub sdc: SdcId,
    /// Where it connected from.
    pub address: IpAddr,
}

impl BadSource {
    /// All sources that were not told apart: no client connects from this address.
    pub const OTHERS: Self = Self { sdc: SdcId(0), address: IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
}

/// How many, by what was wrong with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flaws {
    /// Signature or MAC does not match.
    pub forged: u64,
    /// Their end had come.
    pub expired: u64,
    /// The volume's epoch was raised since.
    pub revoked: u64,
    /// The request came before.
    pub replayed: u64,
    /// Another client's, process's, volume's or cluster's.
    pub foreign: u64,
    /// Signed with a secret that the SDS did not have.
    pub unknown_key: u64,
}

impl Flaws {
    /// Each with its name, those first that no honest client sends.
    pub fn by_name(self) -> [(&'static str, u64); 6] {
        [
            ("forged", self.forged),
            ("replayed", self.replayed),
            ("foreign", self.foreign),
            ("of an unknown key", self.unknown_key),
            ("expired", self.expired),
            ("revoked", self.revoked),
        ]
    }

    /// Whether some of them cannot come from an honest client. One that was away meets the end of its lease, the
    /// revocation of its tokens, and secrets that have changed.
    pub fn accuse(self) -> bool {
        self.forged > 0 || self.replayed > 0 || self.foreign > 0
    }

    /// All of both.
    pub fn plus(self, more: Self) -> Self {
        self.with(more, u64::saturating_add)
    }

    /// Those that `before` lacks.
    pub fn since(self, before: Self) -> Self {
        self.with(before, u64::saturating_sub)
    }

    fn with(self, other: Self, f: fn(u64, u64) -> u64) -> Self {
        Self {
            forged: f(self.forged, other.forged),
            expired: f(self.expired, other.expired),
            revoked: f(self.revoked, other.revoked),
            replayed: f(self.replayed, other.replayed),
            foreign: f(self.foreign, other.foreign),
            unknown_key: f(self.unknown_key, other.unknown_key),
        }
    }
}

/// What one source sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadTokens {
    /// Who.
    pub source: BadSource,
    /// All of them.
    pub refused: Flaws,
    /// Those that an event has told.
    pub told: Flaws,
    /// When that was; none yet only while its first command is applied.
    pub told_at: Option<LogTime>,
    /// The first.
    pub first: LogTime,
    /// The last.
    pub last: LogTime,
    /// Who refused that.
    pub by: SdsId,
}
