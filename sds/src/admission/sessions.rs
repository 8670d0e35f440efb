//! The open sessions of one device.

use std::collections::HashMap;

use pflex_proto::{
    data::{IoHeader, OpenSession, RefusalCode},
    ids::{ClusterId, Generation, Member, OperationId, ProcessId, SdcId, SessionId, VolumeId},
    token::{self, Secret, SessionKey, TokenError},
};

use super::{
    authority::{Authority, Intent, Surroundings},
    generations::{Generations, Superseded},
    refused::{Flaw, Refused},
    used::UsedTokens,
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
    own: Member,
    secrets: Vec<Secret>,
    open: HashMap<SessionKeyed, Session>,
    generations: Generations,
    used: UsedTokens,
    next: SessionId,
}

impl Sessions {
    pub(crate) fn new(cluster: ClusterId, own: Member) -> Self {
        Self {
            cluster,
            own,
            secrets: Vec::new(),
            open: HashMap::new(),
            generations: Generations::default(),
            used: UsedTokens::default(),
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
        let (token, token_key) = token::verify(&request.token, &self.secrets).map_err(|error| unverified(&error))?;
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
            key: token_key.session_key(nonce, &request.generation, self.own.device),
            last_sequence: 0,
            replaces: request.renews,
        };
        self.open.insert((connection, session), opened);
        Ok(Opened { session, retires: retires.then_some((sdc, request.volume)) })
    }

    /// Admits a request whose MAC `opens` under the key it is given: authentic, in sequence, newest generation, allowed
    /// by its token, or by the token it `brings` for the operation of this id (S21). Returns whose it is and by what right.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn admit(
        &mut self,
        connection: ConnectionId,
        io: &IoHeader,
        intent: Intent,
        brings: Option<(&[u8], OperationId)>,
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
        let authority = match brings {
            None => session.authority.clone(),
            Some((signed, operation)) => {
                let (token, _) = token::verify(signed, &self.secrets).map_err(|error| unverified(&error))?;
                Authority::of_operation(token, &session.authority, self.own, operation, now)?
            }
        };
        authority.allows(io, intent, now)?;
        if brings.is_some() {
            self.used.take(authority.token(), now.heard)?;
        }
        let admitted = (session.sdc, authority);
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

fn unverified(error: &TokenError) -> Refused {
    let (flaw, code) = match error {
        TokenError::UnknownKey(_) => (Flaw::UnknownKey, RefusalCode::NotReady),
        TokenError::Malformed(_) | TokenError::BadSignature => (Flaw::Forged, RefusalCode::NotAuthentic),
    };
    Refused::flawed(flaw, code, error.to_string())
}

#[cfg(test)]
mod tests {
    use pflex_proto::{
        ids::{
            ByteOffset, ChunkId, ChunkIndex, DeviceId, Epoch, Incarnation, KeyId, LayerId, LogTime, PgId, PoolId,
            SdsId, TokenId, VtreeId,
        },
        token::{Plan, Rights, Token, TokenKey, TokenMode},
    };

    use super::*;
    use crate::admission::{
        authority::tests::{map, token},
        freshness::Heard,
    };

    const CONNECTION: ConnectionId = ConnectionId(1);
    const OWN: Member = Member { device: DeviceId(1), sds: SdsId(1), incarnation: Incarnation(4) };
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
        let mut sessions = Sessions::new(map.cluster, OWN);
        let (open, _) = request(1);
        let refused = sessions.open(CONNECTION, (SdcId(3), process()), &open, &[0; 16], now).unwrap_err();
        assert_eq!(refused.code, RefusalCode::NotReady, "the signing key is not known yet");
        assert_eq!(refused.flaw, Some(Flaw::UnknownKey));
        sessions.set_secrets(vec![secret()]);
        let opened = sessions.open(CONNECTION, (SdcId(3), process()), &open, &[0; 16], now).unwrap();
        let io = io(opened.session, 1);
        let mut admit = |connection, authentic| {
            let admitted = sessions.admit(connection, &io, Intent::Write, None, |_| authentic, now);
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
        let mut sessions = Sessions::new(map.cluster, OWN);
        sessions.set_secrets(vec![secret()]);
        let old = sessions.open(CONNECTION, (SdcId(3), process()), &request(1).0, &[0; 16], now).unwrap();
        let new = sessions.open(ConnectionId(2), (SdcId(3), process()), &request(2).0, &[1; 16], now).unwrap();
        assert_eq!(new.retires, Some((SdcId(3), VolumeId(1))));
        let late = sessions.admit(CONNECTION, &io(old.session, 1), Intent::Write, None, |_| true, now).unwrap_err();
        assert_eq!((late.code, late.flaw), (RefusalCode::NoSession, None));
        let reopened = sessions.open(CONNECTION, (SdcId(3), process()), &request(1).0, &[2; 16], now).unwrap_err();
        assert_eq!((reopened.code, reopened.flaw), (RefusalCode::StaleGeneration, None), "an old life is no forger");
    }

    #[test]
    fn a_replaced_session_lasts_until_the_first_request_in_the_new_one() {
        let map = map(1);
        let now = Surroundings { map: &map, heard: Some(HEARD) };
        let mut sessions = Sessions::new(map.cluster, OWN);
        sessions.set_secrets(vec![secret()]);
        let (mut open, _) = request(1);
        let first = sessions.open(CONNECTION, (SdcId(3), process()), &open, &[0; 16], now).unwrap().session;
        open.renews = Some(first);
        let second = sessions.open(CONNECTION, (SdcId(3), process()), &open, &[1; 16], now).unwrap();
        assert_eq!(second.retires, None);
        let mut admit = |session, sequence| {
            let admitted = sessions.admit(CONNECTION, &io(session, sequence), Intent::Write, None, |_| true, now);
            admitted.map(|(sdc, _)| sdc).map_err(|refused| refused.code)
        };
        assert_eq!(admit(first, 1), Ok(SdcId(3)), "sent before the new session was known");
        assert_eq!(admit(second.session, 1), Ok(SdcId(3)));
        assert_eq!(admit(first, 2), Err(RefusalCode::NoSession));
    }

    #[test]
    fn in_per_io_mode_each_request_brings_its_own_token_and_once() {
        let map = map(1);
        let now = Surroundings { map: &map, heard: Some(HEARD) };
        let mut sessions = Sessions::new(map.cluster, OWN);
        sessions.set_secrets(vec![secret()]);
        let (mut request, _) = request(1);
        let per_io = Token { mode: TokenMode::PerIo, ..token() };
        request.token = secret().sign(&per_io).0;
        let opened = sessions.open(CONNECTION, (SdcId(3), process()), &request, &[0; 16], now).unwrap();
        let plan = Plan { device: OWN.device, incarnation: OWN.incarnation, operation: OperationId(7) };
        let write = Token { id: TokenId(9), to: ByteOffset(4096), plan: Some(plan), ..per_io.clone() };
        let read = Token { id: TokenId(10), rights: Rights::Read, ..write.clone() };
        let mut sequence = 0;
        let mut ask = |sessions: &mut Sessions, token: Option<&Token>, intent| {
            sequence += 1;
            let signed = token.map(|token| secret().sign(token).0);
            let brings = signed.as_deref().map(|signed| (signed, OperationId(7)));
            let admitted = sessions.admit(CONNECTION, &io(opened.session, sequence), intent, brings, |_| true, now);
            admitted.map(|(_, authority)| authority.token().id).map_err(|refused| refused.code)
        };
        assert_eq!(ask(&mut sessions, None, Intent::Write), Err(RefusalCode::NoOperationToken));
        assert_eq!(ask(&mut sessions, Some(&per_io), Intent::Write), Err(RefusalCode::NotAllowed), "the session's own");
        let wrong = |token: Token| (token, RefusalCode::NotAllowed);
        let with = |plan| Token { plan: Some(plan), ..write.clone() };
        for (token, code) in [
            wrong(Token { to: ByteOffset(8192), ..write.clone() }),
            wrong(Token { sdc: SdcId(4), ..write.clone() }),
            wrong(Token { volume: VolumeId(2), ..write.clone() }),
            wrong(read.clone()),
            wrong(with(Plan { operation: OperationId(8), ..plan })),
            wrong(with(Plan { device: DeviceId(2), ..plan })),
            (with(Plan { incarnation: Incarnation(3), ..plan }), RefusalCode::NotReady),
            (Token { expires: LogTime(1), ..write.clone() }, RefusalCode::TokenExpired),
        ] {
            assert_eq!(ask(&mut sessions, Some(&token), Intent::Write), Err(code), "{token:?}");
        }
        assert_eq!(ask(&mut sessions, Some(&write), Intent::Write), Ok(TokenId(9)));
        assert_eq!(ask(&mut sessions, Some(&write), Intent::Write), Err(RefusalCode::NotAllowed), "it was used");
        assert_eq!(ask(&mut sessions, Some(&write), Intent::Read), Err(RefusalCode::NotAllowed));
        assert_eq!(ask(&mut sessions, Some(&read), Intent::Read), Ok(TokenId(10)));
        let forged = [secret().sign(&read).0, vec![0]].concat();
        let brings = Some((&forged[..], OperationId(7)));
        let refused = sessions.admit(CONNECTION, &io(opened.session, 99), Intent::Read, brings, |_| true, now);
        assert_eq!(refused.unwrap_err().flaw, Some(Flaw::Forged));
    }
}
