//! The open sessions of one device.

use std::collections::HashMap;

use pflex_proto::{
    data::{IoHeader, OpenSession, RefusalCode},
    ids::{ClusterId, DeviceId, Generation, ProcessId, SdcId, SessionId, VolumeId},
    token::{self, Secret, SessionKey, TokenError},
};

use super::{
    authority::{Authority, Intent, Surroundings},
    generations::{Generations, Superseded},
    refused::{Flaw, Refused},
};

/// Sessions one connection may hold: an SDC has one for each volume it uses.
const MAX_SESSIONS_PER_CONNECTION: usize = 8192;

/// A data-plane connection of this device, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// Sessions are numbered for all connections, and belong to one.
type SessionKeyed = (ConnectionId, SessionId);

#[derive(Debug)]
struct Session {
    sdc: SdcId,
    volume: VolumeId,
    generation: Generation,
    authority: Authority,
    key: SessionKey,
    last_sequence: u64,
    /// Ends with the first request in this one.
    replaces: Option<SessionId>,
}

/// A session that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Its number.
    pub(crate) session: SessionId,
    /// Older generations of this SDC and volume are void: what they queued must be ordered or discarded before the
    /// answer goes out (S9).
    pub(crate) retires: Option<(SdcId, VolumeId)>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Sessions {
    cluster: ClusterId,
    device: DeviceId,
    secrets: Vec<Secret>,
    open: HashMap<SessionKeyed, Session>,
    generations: Generations,
    next: SessionId,
}

impl Sessions {
    pub(crate) fn new(cluster: ClusterId, device: DeviceId) -> Self {
        Self {
            cluster,
            device,
            secrets: Vec::new(),
            open: HashMap::new(),
            generations: Generations::default(),
            next: SessionId(1),
        }
    }

    /// The secrets that tokens are verified with, as the MDM gave them.
    pub(crate) fn set_secrets(&mut self, secrets: Vec<Secret>) {
        self.secrets = secrets;
    }

    /// Opens a session of `sdc`, whose greeting named `process`. `nonce` must be fresh and random.
    ///
    /// # Errors
    /// Why not; an unknown signing key is `NotReady`, because the keys are being fetched (S21).
    pub(crate) fn open(
        &mut self,
        connection: ConnectionId,
        (sdc, process): (SdcId, ProcessId),
        request: &OpenSession,
        nonce: &[u8; 16],
        now: Surroundings<'_>,
    ) -> Result<Opened, Refused> {
        let (token, token_key) = token::verify(&request.token, &self.secrets).map_err(|error| match error {
            TokenError::UnknownKey(_) => Refused::flawed(Flaw::UnknownKey, RefusalCode::NotReady, error.to_string()),
            TokenError::Malformed(_) | TokenError::BadSignature => {
                Refused::flawed(Flaw::Forged, RefusalCode::NotAuthentic, error.to_string())
            }
        })?;
        let authority = Authority::new(token, self.cluster, sdc, process, request.volume, now)?;
        if request.generation.process != process {
            let why = "the generation names another process";
            return Err(Refused::flawed(Flaw::Foreign, RefusalCode::NotAuthentic, why));
        }
        if let Some(old) = request.renews {
            let known = self.open.get(&(connection, old));
            let same =
                known.is_some_and(|known| (known.volume, known.generation) == (request.volume, request.generation));
            if !same {
                return Err((RefusalCode::NoSession, format!("there is no session {old} to renew")).into());
            }
        }
        if self.open.keys().filter(|(owner, _)| *owner == connection).count() >= MAX_SESSIONS_PER_CONNECTION {
            return Err((RefusalCode::Busy, "too many sessions on this connection".into()).into());
        }
        let retires = self.generations.open(sdc, request.volume, request.generation).map_err(|Superseded| {
            (RefusalCode::StaleGeneration, "a newer generation of this client and volume is open".into())
        })?;
        if retires {
            self.open.retain(|_, session| (session.sdc, session.volume) != (sdc, request.volume));
        }
        let session = self.next;
        self.next = session.next();
        let opened = Session {
            sdc,
            volume: request.volume,
            generation: request.generation,
            authority,
            key: token_key.session_key(nonce, &request.generation, self.device),
            last_sequence: 0,
            replaces: request.renews,
        };
        self.open.insert((connection, session), opened);
        Ok(Opened { session, retires: retires.then_some((sdc, request.volume)) })
    }

    /// Admits a request whose MAC `opens` under the key it is given: authentic, in sequence, newest generation, allowed
    /// by its token. Returns whose it is and by what right.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn admit(
        &mut self,
        connection: ConnectionId,
        io: &IoHeader,
        intent: Intent,
        opens: impl FnOnce(&SessionKey) -> bool,
        now: Surroundings<'_>,
    ) -> Result<(SdcId, Authority), Refused> {
        let no_session = || (RefusalCode::NoSession, format!("there is no session {}", io.session));
        let session = self.open.get_mut(&(connection, io.session)).ok_or_else(no_session)?;
        if !opens(&session.key) {
            let why = "the request's MAC does not match";
            return Err(Refused::flawed(Flaw::Forged, RefusalCode::NotAuthentic, why));
        }
        if io.session_sequence <= session.last_sequence {
            let why = "the request's sequence came before";
            return Err(Refused::flawed(Flaw::Replayed, RefusalCode::NotAuthentic, why));
        }
        session.last_sequence = io.session_sequence;
        if !self.generations.is_newest(session.sdc, session.volume, session.generation) {
            return Err((RefusalCode::StaleGeneration, "a newer generation is open".into()).into());
        }
        session.authority.allows(io, intent, now)?;
        let admitted = (session.sdc, session.authority.clone());
        if let Some(old) = session.replaces.take() {
            self.open.remove(&(connection, old));
        }
        Ok(admitted)
    }

    /// Nothing of these volumes will be opened any more: they are deleted.
    pub(crate) fn forget_volumes(&mut self, deleted: &impl Fn(VolumeId) -> bool) {
        self.open.retain(|_, session| !deleted(session.volume));
        self.generations.forget_volumes(deleted);
    }

    /// A connection is gone with all its sessions.
    pub(crate) fn close(&mut self, connection: ConnectionId) {
        self.open.retain(|(owner, _), _| *owner != connection);
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::{
        ids::{ChunkId, ChunkIndex, Epoch, KeyId, LayerId, LogTime, PgId, PoolId, VtreeId},
        token::TokenKey,
    };

    use super::*;
    use crate::admission::{
        authority::tests::{map, token},
        freshness::Heard,
    };

    const CONNECTION: ConnectionId = ConnectionId(1);
    const HEARD: Heard = Heard { stamp: LogTime(1), age: std::time::Duration::ZERO };

    fn process() -> ProcessId {
        ProcessId::from_bytes([1; 16])
    }

    fn secret() -> Secret {
        Secret::new(KeyId(1), &[5; 32])
    }

    fn request(counter: u64) -> (OpenSession, TokenKey) {
        let (token, key) = secret().sign(&token());
        let generation = Generation { boot: 1, counter, process: process() };
        (OpenSession { volume: VolumeId(1), generation, token, renews: None }, key)
    }

    fn io(session: SessionId, session_sequence: u64) -> IoHeader {
        IoHeader {
            session,
            session_sequence,
            volume: VolumeId(1),
            pg: PgId { pool: PoolId(1), index: Default::default() },
            epoch: Epoch(1),
            chunk: ChunkId { vtree: VtreeId(1), layer: LayerId(0), index: ChunkIndex(0) },
            offset: 0,
            length: 4096,
        }
    }

    #[test]
    fn a_request_is_admitted_once_under_its_own_session() {
        let map = map(1);
        let now = Surroundings { map: &map, heard: Some(HEARD) };
        let mut sessions = Sessions::new(map.cluster, DeviceId(1));
        let (open, _) = request(1);
        let refused = sessions.open(CONNECTION, (SdcId(3), process()), &open, &[0; 16], now).unwrap_err();
        assert_eq!(refused.code, RefusalCode::NotReady, "the signing key is not known yet");
        assert_eq!(refused.flaw, Some(Flaw::UnknownKey));
        sessions.set_secrets(vec![secret()]);
        let opened = sessions.open(CONNECTION, (SdcId(3), process()), &open, &[0; 16], now).unwrap();
        let io = io(opened.session, 1);
        let mut admit = |connection, authentic| {
            let admitted = sessions.admit(connection, &io, Intent::Write, |_| authentic, now);
            admitted.map(|(sdc, _)| sdc).map_err(|refused| (refused.code, refused.flaw))
        };
        assert_eq!(admit(ConnectionId(2), true), Err((RefusalCode::NoSession, None)), "another connection");
        assert_eq!(admit(CONNECTION, false), Err((RefusalCode::NotAuthentic, Some(Flaw::Forged))));
        assert_eq!(admit(CONNECTION, true), Ok(SdcId(3)));
        assert_eq!(admit(CONNECTION, true), Err((RefusalCode::NotAuthentic, Some(Flaw::Replayed))), "replayed");
    }

    #[test]
    fn a_newer_generation_ends_older_sessions() {
        let map = map(1);
        let now = Surroundings { map: &map, heard: Some(HEARD) };
        let mut sessions = Sessions::new(map.cluster, DeviceId(1));
        sessions.set_secrets(vec![secret()]);
        let old = sessions.open(CONNECTION, (SdcId(3), process()), &request(1).0, &[0; 16], now).unwrap();
        let new = sessions.open(ConnectionId(2), (SdcId(3), process()), &request(2).0, &[1; 16], now).unwrap();
        assert_eq!(new.retires, Some((SdcId(3), VolumeId(1))));
        let late = sessions.admit(CONNECTION, &io(old.session, 1), Intent::Write, |_| true, now).unwrap_err();
        assert_eq!((late.code, late.flaw), (RefusalCode::NoSession, None));
        let reopened = sessions.open(CONNECTION, (SdcId(3), process()), &request(1).0, &[2; 16], now).unwrap_err();
        assert_eq!((reopened.code, reopened.flaw), (RefusalCode::StaleGeneration, None), "an old life is no forger");
    }

    #[test]
    fn a_replaced_session_lasts_until_the_first_request_in_the_new_one() {
        let map = map(1);
        let now = Surroundings { map: &map, heard: Some(HEARD) };
        let mut sessions = Sessions::new(map.cluster, DeviceId(1));
        sessions.set_secrets(vec![secret()]);
        let (mut open, _) = request(1);
        let first = sessions.open(CONNECTION, (SdcId(3), process()), &open, &[0; 16], now).unwrap().session;
        open.renews = Some(first);
        let second = sessions.open(CONNECTION, (SdcId(3), process()), &open, &[1; 16], now).unwrap();
        assert_eq!(second.retires, None);
        let mut admit = |session, sequence| {
            let admitted = sessions.admit(CONNECTION, &io(session, sequence), Intent::Write, |_| true, now);
            admitted.map(|(sdc, _)| sdc).map_err(|refused| refused.code)
        };
        assert_eq!(admit(first, 1), Ok(SdcId(3)), "sent before the new session was known");
        assert_eq!(admit(second.session, 1), Ok(SdcId(3)));
        assert_eq!(admit(first, 2), Err(RefusalCode::NoSession));
    }
}
