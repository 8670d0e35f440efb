//! The decisions of one connection: requests and frames in, frames and outcomes out. No I/O; time comes in.
//!
//! A session is opened for each volume that is used, always with a generation above all earlier ones, so opening one
//! fences what was sent before on any connection (S9). A newer token renews the session in place; requests wait for that
//! round trip, because the session key changes with it. Frames leave in the order the sequences were given out. A device
//! that cannot place the newer token yet (it has not heard the MDM leader that issued it) goes on with the session there is:
//! that is good until its own token ends, and then the device says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pflex_proto::codec::Wire;
use pflex_proto::data::{
    AllocationReply, AllocationRequest, FlushReply, FlushRequest, IoHeader, OpenSession, ReadReply, ReadRequest,
    Refusal, RefusalCode, SessionOpened, WithToken, WriteReply, WriteRequest,
};
use pflex_proto::frame::{FrameError, FrameHeader, FrameKind, HEADER_SIZE, encode_frame, encode_frame_with};
use pflex_proto::ids::{DeviceId, Generation, SessionId, VolumeId};
use pflex_proto::token::{SessionKey, TokenKey};
use tokio::time::Instant;
use tracing::debug;

use super::super::Generations;
use super::super::routes::Routes;
use super::{Answer, AttemptError, Operation, Submission};
use crate::buffers::Output;

/// After a renewal that was refused for now: devices hear a new leader within a few seconds, and a token has 45 left.
const RENEWAL_PAUSE: Duration = Duration::from_millis(500);

/// A request that was sent.
#[derive(Debug)]
struct Sent {
    submission: Submission,
    session: SessionId,
    at: Instant,
}

/// The round trip that opens or renews a session.
#[derive(Debug)]
struct Opening {
    request_id: u64,
    at: Instant,
    generation: Generation,
    /// Whether it keeps the generation of an open session, and so fences nothing.
    renews: bool,
    key: TokenKey,
    token_version: u64,
}

/// A session that is open.
#[derive(Debug)]
struct Opened {
    id: SessionId,
    generation: Generation,
    key: SessionKey,
    sequence: u64,
    token_version: u64,
}

/// The session of one volume, from the first request on.
#[derive(Debug, Default)]
struct Session {
    opened: Option<Opened>,
    opening: Option<Opening>,
    /// What waits for the opening.
    waiting: Vec<Submission>,
    /// The device could not take the newer token: not before this instant it is offered again.
    renew_after: Option<Instant>,
}

impl Session {
    /// Whether a request need not wait for anything: the session is open with the newest token, or with one that has to do
    /// for now.
    fn is_ready(&self, newest_token: u64, now: Instant) -> bool {
        let held_off = self.renew_after.is_some_and(|after| now < after);
        self.opened.as_ref().is_some_and(|opened| opened.token_version == newest_token || held_off)
    }
}

/// Why the connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionFault {
    /// The stream is damaged.
    #[error("a damaged frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame that an SDS never sends to a client.
    #[error("an unexpected {0:?} frame")]
    Unexpected(FrameKind),
    /// A session was not opened in time.
    #[error("the device did not open a session in time")]
    Silent,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Core {
    device: DeviceId,
    generations: Arc<Generations>,
    request_timeout: Duration,
    next_request_id: u64,
    sent: HashMap<u64, Sent>,
    sessions: HashMap<VolumeId, Session>,
    scratch: Vec<u8>,
    /// What is to be sent.
    pub(super) output: Output,
}

impl Core {
    pub(super) fn new(device: DeviceId, generations: Arc<Generations>, request_timeout: Duration) -> Self {
        Self {
            device,
            generations,
            request_timeout,
            next_request_id: 1,
            sent: HashMap::new(),
            sessions: HashMap::new(),
            scratch: Vec::with_capacity(512),
            output: Output::default(),
        }
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.sent.is_empty() && self.sessions.values().all(|session| session.opening.is_none())
    }

    /// Takes a request.
    pub(super) fn submit(&mut self, submission: Submission, now: Instant) {
        let volume = submission.request.auth.volume();
        let wants_fence = matches!(submission.request.operation, Operation::Fence);
        let newest = submission.request.auth.version();
        let session = self.sessions.entry(volume).or_default();
        match (&session.opening, &session.opened) {
            (Some(opening), _) if wants_fence && opening.renews => {
                session.waiting.push(submission);
                self.open(volume, None, now);
            }
            (Some(_), _) => session.waiting.push(submission),
            (None, Some(_)) if !wants_fence && session.is_ready(newest, now) => self.send(submission, now),
            (None, Some(opened)) => {
                let renews = (!wants_fence).then_some((opened.id, opened.generation));
                session.waiting.push(submission);
                self.open(volume, renews, now);
            }
            (None, None) => {
                session.waiting.push(submission);
                self.open(volume, None, now);
            }
        }
    }

    /// Sends the frame that opens a new session, or renews one.
    fn open(&mut self, volume: VolumeId, renews: Option<(SessionId, Generation)>, now: Instant) {
        let session = self.sessions.get_mut(&volume).expect("the caller has made it");
        let Some(token) = session.waiting.first().and_then(|submission| submission.request.auth.token()) else {
            return self.abandon(volume, &AttemptError::NoToken);
        };
        let request_id = self.next_request_id;
        self.next_request_id += 1;
        let generation = renews.map_or_else(|| self.generations.next(), |(_, generation)| generation);
        let (key, token_version) = (token.key.clone(), token.version);
        session.opening =
            Some(Opening { request_id, at: now, generation, renews: renews.is_some(), key, token_version });
        let message =
            OpenSession { volume, generation, token: token.signed.clone(), renews: renews.map(|(session, _)| session) };
        self.scratch.clear();
        encode_frame(FrameKind::OpenSession, request_id, &message, 0, &mut self.scratch);
        self.output.put(&self.scratch);
    }

    /// Gives up the session of a volume and answers what waits for it. The next request opens another.
    fn abandon(&mut self, volume: VolumeId, error: &AttemptError) {
        if let Some(session) = self.sessions.remove(&volume) {
            session.waiting.into_iter().for_each(|submission| submission.answer(Err(error.clone())));
        }
    }

    /// A session was not opened. A renewal that cannot be had yet costs nobody anything; else who waits hears of it.
    fn opening_refused(&mut self, volume: VolumeId, refusal: Refusal, now: Instant) {
        let session = self.sessions.get_mut(&volume).expect("the caller has found it");
        let renews = session.opening.as_ref().is_some_and(|opening| opening.renews);
        let can_wait = matches!(refusal.code, RefusalCode::NotReady | RefusalCode::Busy);
        if !renews || !can_wait || session.opened.is_none() {
            return self.abandon(volume, &AttemptError::Refused(refusal));
        }
        debug!(%volume, why = refusal.why, "the newer token cannot be used yet");
        (session.opening, session.renew_after) = (None, Some(now + RENEWAL_PAUSE));
        for submission in std::mem::take(&mut session.waiting) {
            self.send(submission, now);
        }
    }

    /// Sends a request in the open session of its volume.
    fn send(&mut self, submission: Submission, now: Instant) {
        // Who asked has gone. A write must not be sent now: its fence may stand right behind it.
        if submission.outcome.is_closed() {
            return;
        }
        let request = &submission.request;
        let volume = request.auth.volume();
        let opened = self.sessions.get_mut(&volume).and_then(|session| session.opened.as_mut());
        let opened = opened.expect("the caller has looked");
        opened.sequence += 1;
        let part = request.part;
        let session = opened.id;
        let io = IoHeader {
            session,
            session_sequence: opened.sequence,
            volume,
            pg: part.pg,
            epoch: request.epoch,
            chunk: part.chunk,
            offset: part.offset,
            length: part.length,
        };
        let request_id = self.next_request_id;
        self.next_request_id += 1;
        self.scratch.clear();
        let (key, own_token) = (&opened.key, &request.own_token);
        match &request.operation {
            Operation::Read => {
                let kinds = (FrameKind::Read, FrameKind::ReadWithToken);
                sealed(&mut self.scratch, kinds, request_id, 0, key, ReadRequest { io }, own_token);
                self.output.put(&self.scratch);
            }
            Operation::Allocation => {
                let kinds = (FrameKind::Allocation, FrameKind::AllocationWithToken);
                sealed(&mut self.scratch, kinds, request_id, 0, key, AllocationRequest { io }, own_token);
                self.output.put(&self.scratch);
            }
            Operation::Write(write) => {
                let message = WriteRequest {
                    io,
                    operation: write.operation,
                    low_water: write.low_water,
                    kind: write.kind,
                    fua: write.fua,
                    checksums: write.checksums.clone(),
                };
                let kinds = (FrameKind::Write, FrameKind::WriteWithToken);
                sealed(&mut self.scratch, kinds, request_id, write.data.len() as u32, key, message, own_token);
                self.output.put(&self.scratch);
                self.output.put_bytes(write.data.clone());
            }
            Operation::Flush(volatility) => {
                let message = FlushRequest { io, volatility: *volatility };
                let seal = |header: &_, out: &mut Vec<u8>| key.seal(header, &message, out);
                encode_frame_with(FrameKind::Flush, request_id, 0, &mut self.scratch, seal);
                self.output.put(&self.scratch);
            }
            Operation::Fence => return submission.answer(Ok(Answer::Done)),
        }
        self.sent.insert(request_id, Sent { submission, session, at: now });
    }

    /// Takes the frames that have arrived whole. How many bytes the next one needs.
    ///
    /// # Errors
    /// When the connection must be given up.
    pub(super) fn receive(&mut self, input: &mut BytesMut, now: Instant) -> Result<usize, ConnectionFault> {
        loop {
            let Some(header) = input.first_chunk::<HEADER_SIZE>() else { return Ok(HEADER_SIZE) };
            let header = FrameHeader::parse(header)?;
            let whole = HEADER_SIZE + header.rest_len();
            if input.len() < whole {
                return Ok(whole);
            }
            let mut frame = input.split_to(whole).freeze();
            let payload = frame.split_off(HEADER_SIZE + header.body_len as usize);
            self.frame(&header, &frame[HEADER_SIZE..], payload, now)?;
        }
    }

    fn frame(
        &mut self,
        header: &FrameHeader,
        body: &[u8],
        payload: Bytes,
        now: Instant,
    ) -> Result<(), ConnectionFault> {
        let outcome = match header.kind {
            FrameKind::SessionOpened => {
                self.session_opened(header.request_id, &header.decode(body)?, now);
                return Ok(());
            }
            FrameKind::Refusal => {
                let refusal: Refusal = header.decode(body)?;
                if let Some(volume) = self.opening_of(header.request_id) {
                    self.opening_refused(volume, refusal, now);
                    return Ok(());
                }
                Err(AttemptError::Refused(refusal))
            }
            FrameKind::ReadReply => {
                let ReadReply { hole, checksums } = header.decode(body)?;
                Ok(Answer::Read((!hole).then_some((checksums, payload))))
            }
            FrameKind::AllocationReply => Ok(Answer::Allocation(header.decode::<AllocationReply>(body)?)),
            FrameKind::WriteReply => Ok(Answer::Written(header.decode::<WriteReply>(body)?.volatility)),
            FrameKind::FlushReply => Ok(Answer::Flushed(header.decode::<FlushReply>(body)?.volatility)),
            FrameKind::Hello
            | FrameKind::HelloReply
            | FrameKind::OpenSession
            | FrameKind::Read
            | FrameKind::Write
            | FrameKind::Flush
            | FrameKind::Allocation
            | FrameKind::ReadWithToken
            | FrameKind::WriteWithToken
            | FrameKind::AllocationWithToken
            | FrameKind::Replication
            | FrameKind::Lease => return Err(ConnectionFault::Unexpected(header.kind)),
        };
        // A late answer to a retired request finds nobody: the resend was answered, or will be.
        if let Some(Sent { submission, session, .. }) = self.sent.remove(&header.request_id) {
            if let Err(AttemptError::Refused(refusal)) = &outcome {
                self.after_refusal(submission.request.auth.volume(), session, refusal.code);
            }
            let fits = match (&submission.request.operation, &outcome) {
                (_, Err(_))
                | (Operation::Read, Ok(Answer::Read(_)))
                | (Operation::Allocation, Ok(Answer::Allocation(_)))
                | (Operation::Write(_), Ok(Answer::Written(_)))
                | (Operation::Flush(_), Ok(Answer::Flushed(_))) => true,
                (_, Ok(_)) => false,
            };
            submission.answer(if fits { outcome } else { Err(AttemptError::BadReply("of another kind")) });
        }
        Ok(())
    }

    /// A refusal of the session itself: the next request opens another one, unless that has happened already.
    fn after_refusal(&mut self, volume: VolumeId, refused: SessionId, code: RefusalCode) {
        let spoiled = matches!(
            code,
            RefusalCode::NoSession
                | RefusalCode::NotAuthentic
                | RefusalCode::TokenExpired
                | RefusalCode::StaleGeneration
        );
        if spoiled
            && let Some(session) = self.sessions.get_mut(&volume)
            && session.opened.as_ref().is_some_and(|opened| opened.id == refused)
        {
            session.opened = None;
        }
    }

    fn opening_of(&self, request_id: u64) -> Option<VolumeId> {
        let is_opening =
            |session: &Session| session.opening.as_ref().is_some_and(|opening| opening.request_id == request_id);
        self.sessions.iter().find(|(_, session)| is_opening(session)).map(|(volume, _)| *volume)
    }

    fn session_opened(&mut self, request_id: u64, message: &SessionOpened, now: Instant) {
        // One that was given up meanwhile is not in the table; its session stays unused.
        let Some(volume) = self.opening_of(request_id) else { return };
        let session = self.sessions.get_mut(&volume).expect("just found");
        let opening = session.opening.take().expect("just found");
        let sequence =
            session.opened.as_ref().filter(|opened| opened.id == message.session).map_or(0, |opened| opened.sequence);
        session.opened = Some(Opened {
            id: message.session,
            generation: opening.generation,
            key: opening.key.session_key(&message.nonce, &opening.generation, self.device),
            sequence,
            token_version: opening.token_version,
        });
        session.renew_after = None;
        let waiting = std::mem::take(&mut session.waiting);
        if !opening.renews {
            // All of them are ordered or discarded now, and the discarded ones may never be answered.
            self.retire(volume);
        }
        for submission in waiting {
            self.send(submission, now);
        }
    }

    /// Answers everything that was sent for a volume as not known; whoever sent it sends it again with the same id.
    fn retire(&mut self, volume: VolumeId) {
        let retired = self.sent.extract_if(|_, sent| sent.submission.request.auth.volume() == volume);
        for (_, Sent { submission, .. }) in retired {
            submission.answer(Err(AttemptError::Retired));
        }
    }

    /// Looks for requests without an answer: their volumes get a newer session, and they are retired (S9).
    ///
    /// # Errors
    /// When a session was not opened in time either: the device hangs.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), ConnectionFault> {
        let late = |at: Instant| now.duration_since(at) >= self.request_timeout;
        if self.sessions.values().filter_map(|session| session.opening.as_ref()).any(|opening| late(opening.at)) {
            return Err(ConnectionFault::Silent);
        }
        let mut volumes: Vec<_> =
            self.sent.values().filter(|sent| late(sent.at)).map(|sent| sent.submission.request.auth.volume()).collect();
        volumes.sort_unstable();
        volumes.dedup();
        for volume in volumes {
            self.retire(volume);
            // Without an open session the next request opens a new one, before anything is sent again.
            if let Some(session) = self.sessions.get_mut(&volume) {
                session.opened = None;
            }
        }
        Ok(())
    }

    /// Answers everything that waits for a device which is not the primary any more.
    pub(super) fn routes_changed(&mut self, routes: &Routes) {
        let moved = |submission: &Submission| has_moved(submission, self.device, routes);
        let gone: Vec<_> =
            self.sent.extract_if(|_, sent| moved(&sent.submission)).map(|(_, sent)| sent.submission).collect();
        let waiting = self.sessions.values_mut().flat_map(|session| session.waiting.extract_if(.., |one| moved(one)));
        let gone: Vec<_> = waiting.chain(gone).collect();
        gone.into_iter().for_each(|submission| submission.answer(Err(AttemptError::Moved)));
    }

    /// Ends the connection: what was sent is lost, what only waited was never sent.
    pub(super) fn end(self, why: &str) {
        for sent in self.sent.into_values() {
            sent.submission.answer(Err(AttemptError::Lost));
        }
        for session in self.sessions.into_values() {
            let unsent = AttemptError::Unreachable(why.to_owned());
            session.waiting.into_iter().for_each(|submission| submission.answer(Err(unsent.clone())));
        }
    }
}

/// Appends a request's frame, of the second kind if it brings a token of its own.
fn sealed(
    out: &mut Vec<u8>,
    (bare, with_token): (FrameKind, FrameKind),
    request_id: u64,
    payload_len: u32,
    key: &SessionKey,
    request: impl Wire,
    own_token: &Option<Vec<u8>>,
) {
    match own_token {
        None => {
            let seal = |header: &_, out: &mut Vec<u8>| key.seal(header, &request, out);
            encode_frame_with(bare, request_id, payload_len, out, seal);
        }
        Some(token) => {
            let message = WithToken { token: token.clone(), request };
            let seal = |header: &_, out: &mut Vec<u8>| key.seal(header, &message, out);
            encode_frame_with(with_token, request_id, payload_len, out, seal);
        }
    }
}

/// Whether a request waits at `device` for a placement group whose primary is elsewhere by now.
///
/// Only a newer epoch counts: a request may name an epoch that this device itself answered with. A group without a primary
/// has not moved anywhere; the device may come back as its primary.
pub(super) fn has_moved(submission: &Submission, device: DeviceId, routes: &Routes) -> bool {
    let route = routes.route(submission.request.part.pg);
    route.is_none_or(|route| {
        route.epoch > submission.request.epoch && route.primary.is_some_and(|primary| primary != device)
    })
}
