//! Exactly-once sessions (S17): a command is executed once, and every retry gets its first outcome.

use std::ops::Bound;

use pflex_proto::ids::{ClientId, ClientSequence};
use prost::Message as _;

use super::{Context, Effect, Refusal, validate};
use crate::{
    command::{Answer, Command, ErrorCode, Outcome, proto},
    state::{
        State,
        limits::{MAX_OUTCOMES_PER_SESSION, MAX_SESSIONS, SESSION_IDLE_MS},
        model::{KeptOutcome, Session},
    },
};

impl State {
    /// Executes a command unless its session has its outcome already.
    pub(super) fn execute_once(&mut self, context: Context, command: &Command) -> Outcome {
        if command.client_id == 0 {
            return self.execute(context, command);
        }
        let (client, sequence) = (ClientId(command.client_id), ClientSequence(command.client_sequence));
        let fingerprint = fingerprint(command);
        match self.first_outcome(context, client, sequence, fingerprint) {
            Err(refusal) => return Outcome::of(context.revision, refusal.into_answer()),
            Ok(Some(outcome)) => return outcome,
            Ok(None) => {}
        }
        self.touch_session(context, client, ClientSequence(command.low_water).min(sequence));
        if self.sessions.get(client).is_some_and(|session| session.kept >= MAX_OUTCOMES_PER_SESSION) {
            let what =
                format!("it has {MAX_OUTCOMES_PER_SESSION} answers outstanding; say in `low_water` which have arrived");
            let refusal = Refusal::new(ErrorCode::Limit, format!("session {client}"), what);
            // Not kept: it was not executed, and a retry after the mark has moved is.
            return Outcome::of(context.revision, refusal.into_answer());
        }
        let outcome = self.execute(context, command);
        // Closing the session was the last thing to remember.
        if self.sessions.contains(client) {
            let kept = KeptOutcome { client, sequence, fingerprint, outcome: outcome.clone() };
            self.sessions.update(client, |session| session.kept = session.kept.saturating_add(kept.weight()));
            self.outcomes.put(kept);
        }
        outcome
    }

    /// What the request answered before, or `None` when it is new.
    fn first_outcome(
        &mut self,
        context: Context,
        client: ClientId,
        sequence: ClientSequence,
        fingerprint: u32,
    ) -> Result<Option<Outcome>, Refusal> {
        let object = format!("session {client}");
        let idle = |session: &Session| context.log_time.get().saturating_sub(session.last_seen.get()) > SESSION_IDLE_MS;
        let low_water = match self.sessions.get(client) {
            Some(session) if !idle(session) => session.low_water,
            Some(_) | None => {
                self.forget_session(client);
                let what = "it is not known (any more): whether the request was executed is unknown; look, then open \
                            a new session";
                return Err(Refusal::new(ErrorCode::SessionExpired, object, what));
            }
        };
        if sequence.get() == 0 {
            return Err(validate::invalid(object, "sequences begin at 1"));
        }
        if let Some(kept) = self.outcomes.get((client, sequence)) {
            return if kept.fingerprint == fingerprint {
                Ok(Some(kept.outcome.clone()))
            } else {
                Err(validate::invalid(object, format!("sequence {sequence} was another request")))
            };
        }
        if sequence < low_water {
            let what = format!("sequence {sequence} is below the low-water mark {low_water}: it was answered before");
            return Err(Refusal::new(ErrorCode::OutcomeForgotten, object, what));
        }
        Ok(None)
    }

    /// Moves a session's clock and low-water mark, and drops the outcomes below it.
    fn touch_session(&mut self, context: Context, client: ClientId, low_water: ClientSequence) {
        let answered: Vec<_> = self
            .outcomes
            .range((client, ClientSequence(0))..(client, low_water))
            .map(|kept| ((kept.client, kept.sequence), kept.weight()))
            .collect();
        for (key, _) in &answered {
            self.outcomes.remove(*key);
        }
        let gone = answered.iter().fold(0, |sum: u32, (_, weight)| sum.saturating_add(*weight));
        self.sessions.update(client, |session| {
            session.last_seen = context.log_time;
            session.low_water = session.low_water.max(low_water);
            session.kept = session.kept.saturating_sub(gone);
        });
    }

    fn forget_session(&mut self, client: ClientId) {
        if self.sessions.remove(client).is_none() {
            return;
        }
        let all = (Bound::Included((client, ClientSequence(0))), Bound::Included((client, ClientSequence(u64::MAX))));
        let kept: Vec<_> = self.outcomes.range(all).map(|kept| kept.sequence).collect();
        for sequence in kept {
            self.outcomes.remove((client, sequence));
        }
    }

    pub(super) fn open_session(&mut self, context: Context, open: &proto::OpenClientSession) -> Effect {
        let name = validate::text("session", "name", &open.name)?;
        // Idle sessions end here, because only here a session may be missing room.
        let idle: Vec<_> = self
            .sessions
            .values()
            .filter(|s| context.log_time.get().saturating_sub(s.last_seen.get()) > SESSION_IDLE_MS)
            .map(|session| session.client)
            .collect();
        if self.sessions.len() - idle.len() >= MAX_SESSIONS {
            return Err(validate::limit("session", MAX_SESSIONS, "sessions"));
        }
        for client in idle {
            self.forget_session(client);
        }
        let client = self.take_id(|counters| {
            counters.client = counters.client.next();
            counters.client
        });
        self.sessions.put(Session { client, name, last_seen: context.log_time, low_water: ClientSequence(0), kept: 0 });
        Ok(Answer::SessionOpened(proto::SessionOpened { client_id: client.get() }))
    }

    pub(super) fn close_session(&mut self, command: &Command) -> Effect {
        self.forget_session(ClientId(command.client_id));
        super::done(0_u64)
    }
}

/// Tells a retry from a number used twice.
fn fingerprint(command: &Command) -> u32 {
    let body_only = Command { body: command.body.clone(), ..Command::default() };
    crc32c::crc32c(&body_only.encode_to_vec())
}
