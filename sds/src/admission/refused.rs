//! Tokens and requests that were refused for what is wrong with them: counted by kind and by who sent them. Pure.
//!
//! A source is an address and the SDC that its greeting named; nobody has proven that name, so somebody who forges can use
//! any. The table is therefore bounded: sources beyond [`MAX_SOURCES`] between two reports are counted as one.
//!
//! Only what cannot be an honest race counts as a sign of an attack: a client whose lease ran out, or was revoked under it,
//! meets that when it comes back from an outage. An SDC that has been replaced by a newer life of itself is refused by its
//! generation (S9) and counts as nothing here.

use std::{collections::BTreeMap, net::IpAddr};

use pflex_proto::{data::RefusalCode, ids::SdcId, pb};

/// Sources told apart between two reports, by each device: an office full of broken clients. 64 devices of a server have
/// 16,384 at most, some 100 bytes each.
const MAX_SOURCES: usize = 256;

/// What is wrong with a token, or with a request under one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flaw {
    /// Its signature or MAC does not match, or it is no token at all: forged or altered.
    Forged,
    /// Its end has come.
    Expired,
    /// The volume's epoch was raised since.
    Revoked,
    /// The request came before.
    Replayed,
    /// It is another client's, another process's, another volume's or another cluster's.
    Foreign,
    /// Signed with a generation of the secret that this server does not have: too old, too new, or made up.
    UnknownKey,
}

/// A refusal: what the client is told, and what is wrong with its token, if that is why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) code: RefusalCode,
    pub(crate) why: String,
    pub(crate) flaw: Option<Flaw>,
}

impl Refused {
    /// For something wrong with the token.
    pub(crate) fn flawed(flaw: Flaw, code: RefusalCode, why: impl Into<String>) -> Self {
        Self { code, why: why.into(), flaw: Some(flaw) }
    }
}

/// For anything else.
impl From<(RefusalCode, String)> for Refused {
    fn from((code, why): (RefusalCode, String)) -> Self {
        Self { code, why, flaw: None }
    }
}

/// Who sent them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Source {
    /// As it greeted.
    pub(crate) sdc: SdcId,
    pub(crate) address: IpAddr,
}

/// How many, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flaws {
    pub(crate) forged: u64,
    pub(crate) expired: u64,
    pub(crate) revoked: u64,
    pub(crate) replayed: u64,
    pub(crate) foreign: u64,
    pub(crate) unknown_key: u64,
}

impl Flaws {
    fn note(&mut self, flaw: Flaw) {
        let count = match flaw {
            Flaw::Forged => &mut self.forged,
            Flaw::Expired => &mut self.expired,
            Flaw::Revoked => &mut self.revoked,
            Flaw::Replayed => &mut self.replayed,
            Flaw::Foreign => &mut self.foreign,
            Flaw::UnknownKey => &mut self.unknown_key,
        };
        *count = count.saturating_add(1);
    }
}

/// As the MDM is told: without an address if the sources were not told apart.
pub(crate) fn told((source, flaws): (Option<Source>, Flaws)) -> pb::BadTokens {
    let Flaws { forged, expired, revoked, replayed, foreign, unknown_key } = flaws;
    pb::BadTokens {
        sdc_id: source.map_or(0, |source| source.sdc.get()),
        address: source.map_or_else(String::new, |source| source.address.to_canonical().to_string()),
        forged,
        expired,
        revoked,
        replayed,
        foreign,
        unknown_key,
    }
}

/// What one device refused since its last report.
#[derive(Debug, Default)]
pub(crate) struct BadTokens {
    by_source: BTreeMap<Source, Flaws>,
    others: Flaws,
}

impl BadTokens {
    /// One more; without a source if its address is not known any more.
    pub(crate) fn note(&mut self, source: Option<Source>, flaw: Flaw) {
        let room = self.by_source.len() < MAX_SOURCES;
        match source {
            Some(source) if room || self.by_source.contains_key(&source) => {
                self.by_source.entry(source).or_default().note(flaw);
            }
            Some(_) | None => self.others.note(flaw),
        }
    }

    /// All of them, those of sources that were not told apart without one; the count begins anew.
    pub(crate) fn take(&mut self) -> Vec<(Option<Source>, Flaws)> {
        let others = std::mem::take(&mut self.others);
        let known = std::mem::take(&mut self.by_source).into_iter().map(|(source, flaws)| (Some(source), flaws));
        known.chain((others != Flaws::default()).then_some((None, others))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(sdc: u32, last: u8) -> Option<Source> {
        Some(Source { sdc: SdcId(sdc), address: IpAddr::from([10, 0, 0, last]) })
    }

    #[test]
    fn each_kind_and_source_has_its_count() {
        let mut bad = BadTokens::default();
        for flaw in [Flaw::Forged, Flaw::Expired, Flaw::Revoked, Flaw::Replayed, Flaw::Foreign, Flaw::UnknownKey] {
            bad.note(source(1, 1), flaw);
        }
        bad.note(source(1, 1), Flaw::Forged);
        bad.note(source(1, 2), Flaw::Replayed);
        let first = Flaws { forged: 2, expired: 1, revoked: 1, replayed: 1, foreign: 1, unknown_key: 1 };
        let second = Flaws { replayed: 1, ..Flaws::default() };
        assert_eq!(bad.take(), [(source(1, 1), first), (source(1, 2), second)]);
        assert_eq!(bad.take(), [], "a report begins the count anew");
    }

    #[test]
    fn sources_beyond_the_bound_are_counted_as_one() {
        let mut bad = BadTokens::default();
        for sdc in 0..10_000 {
            bad.note(source(sdc, 1), Flaw::Forged);
        }
        bad.note(source(0, 1), Flaw::Forged);
        let taken = bad.take();
        assert_eq!(taken.len(), MAX_SOURCES + 1);
        assert_eq!(taken[0].1.forged, 2, "who is in the table stays in it");
        assert_eq!(taken[MAX_SOURCES], (None, Flaws { forged: 10_000 - MAX_SOURCES as u64, ..Flaws::default() }));
    }
}
