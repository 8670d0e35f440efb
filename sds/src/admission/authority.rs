//! What a verified token allows at a moment.

use pflex_common::map::{Access, ClusterMap, VolumeInfo};
use pflex_proto::{
    data::{IoHeader, RefusalCode},
    geometry::{CHUNK_SIZE, pg_of},
    ids::{ByteOffset, ClusterId, Member, OperationId, ProcessId, SdcId, VolumeId},
    token::{IS_CHECKED, Rights, Token, TokenMode},
};

use super::{
    freshness::Heard,
    refused::{Flaw, Refused},
};

/// What a decision depends on beside the token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings<'a> {
    /// The newest map.
    pub(crate) map: &'a ClusterMap,
    /// The newest stamp of a leader; none before the first, and then nothing is admitted (S20).
    pub(crate) heard: Option<Heard>,
}

/// What a request wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Intent {
    /// See data, or whether there is any.
    Read,
    /// Change data.
    Write,
    /// Make durable what was written; it names a placement group and no range.
    Flush,
}

/// A session's right to do IO: its token, signature already verified.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    token: Token,
}

impl Authority {
    /// Takes a token for a session of `sdc` in `process` on `volume`.
    ///
    /// # Errors
    /// When the token is someone else's, of another volume or cluster, already void, too new for what this server has
    /// heard (`freshness`), or for one operation only.
    pub(crate) fn new(
        token: Token,
        cluster: ClusterId,
        sdc: SdcId,
        process: ProcessId,
        volume: VolumeId,
        now: Surroundings<'_>,
    ) -> Result<Self, Refused> {
        if token.plan.is_some() {
            let what = format!("token {}: for one operation, not for a session", token.id);
            return Err(Refused::flawed(Flaw::Foreign, RefusalCode::NotAllowed, what));
        }
        Self::taken(token, cluster, (sdc, process), volume, now)
    }

    /// Takes a token for one operation here, brought in a session whose right is `session` (S21).
    ///
    /// # Errors
    /// As [`Self::new`], and when it is for something else.
    pub(crate) fn of_operation(
        token: Token,
        session: &Self,
        own: Member,
        operation: OperationId,
        now: Surroundings<'_>,
    ) -> Result<Self, Refused> {
        let owner = &session.token;
        let id = token.id;
        let no =
            |what: &str| Err(Refused::flawed(Flaw::Foreign, RefusalCode::NotAllowed, format!("token {id}: {what}")));
        let Some(plan) = token.plan else { return no("not for one operation") };
        if plan.device != own.device {
            return no("for another device");
        }
        if plan.operation != operation {
            return no("for another operation");
        }
        if plan.incarnation != own.incarnation {
            // Asked for before this device was opened, or before the MDM knew of that: the next one is right. The session's
            // token is good, so nothing that would make the client give that up.
            return Err((RefusalCode::NotReady, format!("token {id} is for another life of the device")).into());
        }
        Self::taken(token, owner.cluster, (owner.sdc, owner.process), owner.volume, now)
    }

    fn taken(
        token: Token,
        cluster: ClusterId,
        (sdc, process): (SdcId, ProcessId),
        volume: VolumeId,
        now: Surroundings<'_>,
    ) -> Result<Self, Refused> {
        let no = |what: &str| {
            Err(Refused::flawed(Flaw::Foreign, RefusalCode::NotAllowed, format!("token {}: {what}", token.id)))
        };
        if token.cluster != cluster {
            return no("of another cluster");
        }
        if token.sdc != sdc || token.process != process {
            return no("issued to another client or process");
        }
        if token.volume != volume {
            return no("for another volume");
        }
        let authority = Self { token };
        authority.is_in_force(now)?;
        now.heard.map_or(Ok(()), |heard| heard.places(&authority.token))?;
        Ok(authority)
    }

    /// The token.
    pub(crate) const fn token(&self) -> &Token {
        &self.token
    }

    /// Whether the token is void by now: expired, or revoked by a higher volume epoch (S20).
    ///
    /// # Errors
    /// If so, or if that cannot be known.
    pub(crate) fn is_in_force<'a>(&self, now: Surroundings<'a>) -> Result<&'a VolumeInfo, Refused> {
        let heard = now.heard.ok_or((
            RefusalCode::NotReady,
            "no MDM leader was heard since this process started, so the time is not known".into(),
        ))?;
        let id = self.token.id;
        if heard.now() >= self.token.expires {
            return Err(Refused::flawed(Flaw::Expired, RefusalCode::TokenExpired, format!("token {id} expired")));
        }
        let Some(volume) = now.map.volumes.get(&self.token.volume) else {
            // Either deleted, or created after the newest map that reached this server: the client asks again.
            return Err((RefusalCode::TokenExpired, format!("volume {} is not in the map", self.token.volume)).into());
        };
        if volume.epoch > self.token.volume_epoch {
            return Err(Refused::flawed(Flaw::Revoked, RefusalCode::TokenExpired, format!("token {id} was revoked")));
        }
        if volume.epoch < self.token.volume_epoch {
            return Err((RefusalCode::NotReady, "this server has not heard of the volume's epoch yet".into()).into());
        }
        Ok(volume)
    }

    /// Whether this IO is allowed now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn allows(&self, io: &IoHeader, intent: Intent, now: Surroundings<'_>) -> Result<(), Refused> {
        if !IS_CHECKED {
            return Ok(());
        }
        let volume = self.is_in_force(now)?;
        if io.volume != self.token.volume {
            let why = "the session is for another volume";
            return Err(Refused::flawed(Flaw::Foreign, RefusalCode::NotAllowed, why));
        }
        if !self.is_for(io, intent) {
            let why = format!("token {} is for another operation than this one", self.token.id);
            return Err(Refused::flawed(Flaw::Foreign, RefusalCode::NotAllowed, why));
        }
        Ok(self.covers(volume, io, intent, now)?)
    }

    /// Whether this is the one operation that the token is for, if it is for one (S21).
    fn is_for(&self, io: &IoHeader, intent: Intent) -> bool {
        let from = u128::from(io.chunk.index.0) * u128::from(CHUNK_SIZE) + u128::from(io.offset);
        let range = (from, from + u128::from(io.length));
        let named = (u128::from(self.token.from.0), u128::from(self.token.to.0));
        let reads = self.token.rights == Rights::Read;
        self.token.plan.is_none() || (named == range && reads == (intent == Intent::Read))
    }

    /// Whether a token that is good allows this IO on its volume.
    fn covers(
        &self,
        volume: &VolumeInfo,
        io: &IoHeader,
        intent: Intent,
        now: Surroundings<'_>,
    ) -> Result<(), (RefusalCode, String)> {
        let mapped_rw = volume.mapping(self.token.sdc).is_some_and(|mapping| mapping.access == Access::ReadWrite);
        if intent == Intent::Write && (self.token.rights != Rights::ReadWrite || !mapped_rw) {
            return Err((RefusalCode::NotAllowed, "the mapping is read-only".into()));
        }
        if intent == Intent::Flush {
            return if (io.offset, io.length) != (0, 0) {
                Err((RefusalCode::BadRange, "a flush has no range".into()))
            } else if io.pg.pool != volume.pool {
                Err((RefusalCode::BadRequest, format!("placement group {} is of another pool", io.pg)))
            } else {
                Ok(())
            };
        }
        if self.token.mode == TokenMode::PerIo && self.token.plan.is_none() {
            let what = "the volume is in per-io mode: each operation needs a token of its own";
            return Err((RefusalCode::NoOperationToken, what.into()));
        }
        if !io.range_is_valid() {
            return Err((RefusalCode::BadRange, format!("{}+{} is not inside a chunk", io.offset, io.length)));
        }
        let from =
            io.chunk.index.0.checked_mul(u64::from(CHUNK_SIZE)).and_then(|start| start.checked_add(io.offset.into()));
        let to = from.and_then(|from| from.checked_add(io.length.into()));
        let (Some(from), Some(to)) = (from, to) else {
            return Err((RefusalCode::BadRange, "beyond any volume".into()));
        };
        if to > volume.size.0 {
            return Err((RefusalCode::BadRange, format!("bytes {from}..{to} are beyond the volume")));
        }
        if ByteOffset(from) < self.token.from || ByteOffset(to) > self.token.to {
            // The volume has grown since: a newer token covers it.
            return Err((RefusalCode::TokenExpired, format!("token {} does not cover {from}..{to}", self.token.id)));
        }
        if io.chunk.vtree != volume.vtree || io.chunk.layer != volume.layer {
            return Err((RefusalCode::BadRequest, "the chunk is not of this volume".into()));
        }
        let here = now.map.pg_of(volume, io.chunk.index);
        if here != Some(io.pg) && could_be(volume, io) {
            // One of us has not heard yet that the groups of the pool have doubled (S25).
            return Err((RefusalCode::WrongEpoch, format!("chunk {} is in another placement group by now", io.chunk)));
        }
        if here != Some(io.pg) {
            return Err((RefusalCode::BadRequest, format!("chunk {} is not in placement group {}", io.chunk, io.pg)));
        }
        Ok(())
    }
}

/// Whether the chunk is in the group that is named, with some number of groups.
fn could_be(volume: &VolumeInfo, io: &IoHeader) -> bool {
    let mut counts = (0..32).map(|exponent| 1 << exponent);
    io.pg.pool == volume.pool && counts.any(|count| pg_of(volume.vtree, io.chunk.index, count) == io.pg.index)
}

#[cfg(test)]
pub(super) mod tests {
    use pflex_proto::{
        ids::{ChunkId, ChunkIndex, Epoch, KeyId, LayerId, LogTime, SessionId, TokenId, VolumeEpoch, VtreeId},
        pb,
    };

    use super::*;

    pub(crate) fn map(volume_epoch: u64) -> ClusterMap {
        let mapping = pb::Mapping { sdc_id: 3, access: pb::Access::ReadWrite.into(), ..Default::default() };
        let volume = pb::Volume {
            id: 1,
            name: "v".into(),
            pool_id: 1,
            size_bytes: 8 << 20,
            vtree_id: 1,
            epoch: volume_epoch,
            mappings: vec![mapping],
            ..Default::default()
        };
        ClusterMap::from_full(pb::ClusterMap {
            cluster_id: vec![9; 16],
            revision: 1,
            pools: vec![pb::Pool { id: 1, pg_count: 1, copies: 2, ..Default::default() }],
            volumes: vec![volume],
            ..Default::default()
        })
        .unwrap()
    }

    pub(crate) fn token() -> Token {
        Token {
            cluster: ClusterId::from_bytes([9; 16]),
            key: KeyId(1),
            id: TokenId(5),
            sdc: SdcId(3),
            process: ProcessId::from_bytes([1; 16]),
            volume: VolumeId(1),
            rights: Rights::ReadWrite,
            from: ByteOffset(0),
            to: ByteOffset(8 << 20),
            volume_epoch: VolumeEpoch(1),
            issued: LogTime(0),
            expires: LogTime(60_000),
            mode: TokenMode::Lease,
            plan: None,
        }
    }

    pub(crate) fn authority() -> Authority {
        Authority { token: token() }
    }

    fn io(chunk: u64, offset: u32, length: u32) -> IoHeader {
        IoHeader {
            session: SessionId(1),
            session_sequence: 1,
            volume: VolumeId(1),
            pg: pflex_proto::ids::PgId { pool: pflex_proto::ids::PoolId(1), index: Default::default() },
            epoch: Epoch(1),
            chunk: ChunkId { vtree: VtreeId(1), layer: LayerId(0), index: ChunkIndex(chunk) },
            offset,
            length,
        }
    }

    fn check(token: Token, map: &ClusterMap, at: Option<u64>, io: &IoHeader, writes: bool) -> Option<RefusalCode> {
        let heard = at.map(|at| Heard { stamp: LogTime(at), age: std::time::Duration::ZERO });
        let now = Surroundings { map, heard };
        let authority = Authority::new(token, map.cluster, SdcId(3), ProcessId::from_bytes([1; 16]), VolumeId(1), now);
        let intent = if writes { Intent::Write } else { Intent::Read };
        authority.and_then(|authority| authority.allows(io, intent, now)).err().map(|refused| refused.code)
    }

    #[test]
    fn a_flush_names_a_placement_group_and_no_range() {
        let (map, heard) = (map(1), Some(Heard { stamp: LogTime(10), age: std::time::Duration::ZERO }));
        let now = Surroundings { map: &map, heard };
        let flush = IoHeader { chunk: ChunkId::default(), ..io(0, 0, 0) };
        let allowed = |io| authority().allows(&io, Intent::Flush, now).map_err(|refused| refused.code);
        assert_eq!(allowed(flush), Ok(()));
        assert_eq!(allowed(IoHeader { length: 1, ..flush }), Err(RefusalCode::BadRange));
        assert_eq!(allowed(IoHeader { pg: Default::default(), ..flush }), Err(RefusalCode::BadRequest));
        assert_eq!(allowed(IoHeader { volume: VolumeId(2), ..flush }), Err(RefusalCode::NotAllowed));
        let read = authority().allows(&flush, Intent::Read, now).map_err(|refused| refused.code);
        assert_eq!(read, Err(RefusalCode::BadRange), "nothing else is without a range");
    }

    #[test]
    fn a_token_from_before_the_volume_grew_is_outdated_not_out_of_range() {
        let small = Token { to: ByteOffset(4 << 20), ..token() };
        assert_eq!(check(small.clone(), &map(1), Some(10), &io(3, 0, 4096), true), None);
        assert_eq!(check(small, &map(1), Some(10), &io(4, 0, 4096), true), Some(RefusalCode::TokenExpired));
    }

    #[test]
    fn a_valid_token_allows_what_it_names_and_nothing_else() {
        let map = map(1);
        assert_eq!(check(token(), &map, Some(10), &io(0, 0, 4096), true), None);
        let cases = [
            (io(8, 0, 4096), RefusalCode::BadRange),
            (io(7, 1 << 20, 1), RefusalCode::BadRange),
            (io(u64::MAX, 0, 1), RefusalCode::BadRange),
            (IoHeader { volume: VolumeId(2), ..io(0, 0, 1) }, RefusalCode::NotAllowed),
            (IoHeader { pg: Default::default(), ..io(0, 0, 1) }, RefusalCode::BadRequest),
        ];
        for (io, code) in cases {
            assert_eq!(check(token(), &map, Some(10), &io, true), Some(code), "{io:?}");
        }
    }

    #[test]
    fn expiry_revocation_and_unknown_time_are_checked() {
        let io = io(0, 0, 4096);
        assert_eq!(check(token(), &map(1), None, &io, false), Some(RefusalCode::NotReady));
        assert_eq!(check(token(), &map(1), Some(60_000), &io, false), Some(RefusalCode::TokenExpired));
        assert_eq!(check(token(), &map(2), Some(10), &io, false), Some(RefusalCode::TokenExpired));
        assert_eq!(check(token(), &map(0), Some(10), &io, false), Some(RefusalCode::NotReady));
    }

    #[test]
    fn rights_and_owner_are_checked() {
        let read_only = Token { rights: Rights::Read, ..token() };
        assert_eq!(check(read_only.clone(), &map(1), Some(1), &io(0, 0, 1), false), None);
        assert_eq!(check(read_only, &map(1), Some(1), &io(0, 0, 1), true), Some(RefusalCode::NotAllowed));
        for foreign in [
            Token { sdc: SdcId(4), ..token() },
            Token { process: ProcessId::from_bytes([2; 16]), ..token() },
            Token { volume: VolumeId(7), ..token() },
            Token { cluster: ClusterId::from_bytes([8; 16]), ..token() },
        ] {
            assert_eq!(check(foreign, &map(1), Some(1), &io(0, 0, 1), false), Some(RefusalCode::NotAllowed));
        }
    }
}
