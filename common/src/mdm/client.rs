//! The leader-following client.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pflex_proto::{
    ids::{ClientId, ClusterGeneration, ClusterId},
    pb::{OpenClientRequest, RequestId, sessions_client::SessionsClient},
    status::{self, Reason},
};
use rand::RngExt as _;
use tonic::{Response, Status, service::interceptor::InterceptedService, transport::Channel};

use super::{
    MdmError,
    connection::{Connection, NameCluster},
    session::Session,
    verdict::{Verdict, judge},
};
use crate::{durable, net::Endpoint};

/// First pause after every member was asked in vain; doubles up to [`LONGEST_PAUSE`]. An election takes 0.5 to 1.5 s.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How long a call may take, and how long one member may take to answer before another is asked.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the whole call.
    pub deadline: Duration,
    /// For one attempt: a frozen leader must not use up the whole deadline.
    pub attempt: Duration,
}

impl Patience {
    /// `deadline` in all, with attempts of 1.5 s.
    pub const fn within(deadline: Duration) -> Self {
        Self { deadline, attempt: Duration::from_millis(1_500) }
    }
}

/// Finds the leader among the members and whoever they name. Cheap to clone; clones share one session.
///
/// The configured members are where it starts. Once it is told who they are now ([`MdmClient::learn_members`]) it asks
/// those; the configured ones come in again when none of them answers.
#[derive(Clone, Debug)]
pub struct MdmClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    configured: Vec<Endpoint>,
    /// Where learned members are kept for the next start.
    memory: Option<PathBuf>,
    state: Mutex<State>,
    /// Held across the await so that concurrent first writes open one session, not many.
    session: tokio::sync::Mutex<Option<Session>>,
}

#[derive(Debug, Default)]
struct State {
    /// Never empty, unless nobody was configured.
    members: Vec<Endpoint>,
    /// The log entry that made them the members; 0 for configured ones.
    members_as_of: u64,
    cluster: Option<ClusterId>,
    /// The newest that was seen; 0: none.
    generation: ClusterGeneration,
    channels: HashMap<Endpoint, Channel>,
    leader: Option<Endpoint>,
    turn: usize,
    /// A session in which a request will never be answered. Its low-water mark would stand still and the MDM would have
    /// to keep every later outcome, so the next write opens another session.
    abandoned: Option<ClientId>,
}

/// A request on its way. Dropped before it was answered, whether the caller gave up or was cancelled, it takes its
/// session with it.
struct Unanswered<'a> {
    shared: &'a Shared,
    request: RequestId,
    answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let mut state = self.shared.state.lock().expect("no code panics while it holds this lock");
            state.abandoned = Some(ClientId(self.request.client_id));
        }
    }
}

/// One sending of a request. The loops that send take any kind of it, so that they are compiled once and not for each of
/// the hundred requests there are; its answer is put aside in an [`Answer`].
type Sending<'a> = Pin<Box<dyn Future<Output = Result<(), Status>> + Send + 'a>>;
type Attempt<'a> = dyn Fn(Connection) -> Sending<'a> + Sync + 'a;
type Writing<'a> = dyn Fn(Connection, RequestId) -> Sending<'a> + Sync + 'a;

/// Where a sending leaves its answer.
struct Answer<T>(Mutex<Option<T>>);

impl<T> Default for Answer<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Send> Answer<T> {
    fn of<'a>(&'a self, call: impl Future<Output = Result<Response<T>, Status>> + Send + 'a) -> Sending<'a> {
        Box::pin(async move {
            let answer = call.await?.into_inner();
            *self.0.lock().expect("no code panics while it holds this lock") = Some(answer);
            Ok(())
        })
    }

    /// The answer of a sending that succeeded.
    fn take(self) -> T {
        let answer = self.0.into_inner().expect("no code panics while it holds this lock");
        answer.expect("a sending that succeeds leaves its answer")
    }
}

impl MdmClient {
    /// `name` says who asks, for the audit; `members` is the configured list.
    pub fn new(name: impl Into<String>, members: Vec<Endpoint>) -> Self {
        Self::made(name.into(), members, None)
    }

    /// As [`new`](Self::new), and keeps the members it learns in the file `memory`: a process that starts after all
    /// configured members were replaced still finds the cluster. An unreadable file counts as none.
    pub fn with_memory(name: impl Into<String>, members: Vec<Endpoint>, memory: PathBuf) -> Self {
        Self::made(name.into(), members, Some(memory))
    }

    fn made(name: String, configured: Vec<Endpoint>, memory: Option<PathBuf>) -> Self {
        let remembered = memory.as_deref().map(recall).unwrap_or_default();
        let members = if remembered.is_empty() { configured.clone() } else { union(remembered, &configured) };
        // Not everybody begins with the same member: thousands of watchers would all be its own.
        let turn = rand::rng().random_range(0..members.len().max(1));
        let state = Mutex::new(State { members, turn, ..State::default() });
        let session = tokio::sync::Mutex::default();
        Self { shared: Arc::new(Shared { name, configured, memory, state, session }) }
    }

    /// The members are these since log entry `as_of`, says one of them. An earlier list than the one known is that of a
    /// member that lags or was removed, and changes nothing.
    pub async fn learn_members(&self, as_of: u64, members: Vec<Endpoint>) {
        {
            let mut state = self.state();
            if members.is_empty() || as_of < state.members_as_of {
                return;
            }
            state.members_as_of = as_of;
            if state.members == members {
                return;
            }
            state.members.clone_from(&members);
        }
        let Some(memory) = self.shared.memory.clone() else { return };
        let written = tokio::task::spawn_blocking(move || {
            let lines: String = members.iter().map(|member| format!("{member}\n")).collect();
            durable::replace(&memory, lines.as_bytes())
        });
        // It only matters to a later start, which has the configured members as well.
        if let Ok(Err(error)) = written.await {
            tracing::warn!("cannot remember the MDMs: {error}: {}", error.io());
        }
    }

    /// From now on every call names this cluster.
    pub fn set_cluster(&self, cluster: ClusterId) {
        self.state().cluster = Some(cluster);
    }

    /// From now on every call names this generation of the cluster, if it is newer than the last one (S19).
    pub fn set_generation(&self, generation: ClusterGeneration) {
        let mut state = self.state();
        state.generation = state.generation.max(generation);
    }

    /// The newest generation that was seen; 0: none.
    pub fn generation(&self) -> ClusterGeneration {
        self.state().generation
    }

    /// The members as last known.
    pub fn members(&self) -> Vec<Endpoint> {
        self.state().members.clone()
    }

    /// A call that changes nothing, on the leader.
    ///
    /// # Errors
    /// See [`MdmError`]; never `Unknown`.
    pub async fn read<T, F, Fut>(&self, patience: Patience, call: F) -> Result<T, MdmError>
    where
        T: Send,
        F: Fn(Connection) -> Fut + Sync,
        Fut: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let answer = Answer::default();
        match self.attempts(patience, &|connection| answer.of(call(connection))).await {
            Ok(()) => Ok(answer.take()),
            Err(MdmError::Unknown { waited, last }) => {
                Err(MdmError::NoLeader { members: self.member_list(), waited, last: Some(last) })
            }
            Err(other) => Err(other),
        }
    }

    /// A call that changes something, exactly once however often it must be sent.
    ///
    /// # Errors
    /// See [`MdmError`].
    pub async fn write<T, F, Fut>(&self, patience: Patience, call: F) -> Result<T, MdmError>
    where
        T: Send,
        F: Fn(Connection, RequestId) -> Fut + Sync,
        Fut: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let answer = Answer::default();
        self.write_once(patience, &|connection, request| answer.of(call(connection, request))).await?;
        Ok(answer.take())
    }

    async fn write_once(&self, patience: Patience, call: &Writing<'_>) -> Result<(), MdmError> {
        let started = Instant::now();
        loop {
            let left = Patience { deadline: patience.deadline.saturating_sub(started.elapsed()), ..patience };
            let request = self.begin(left).await?;
            let mut unanswered = Unanswered { shared: &self.shared, request, answered: false };
            let outcome = self.attempts(left, &|connection| call(connection, request)).await;
            unanswered.answered = !matches!(outcome, Err(MdmError::Unknown { .. }));
            drop(unanswered);
            let mut session = self.shared.session.lock().await;
            let ours = session.as_mut().filter(|session| session.client() == ClientId(request.client_id));
            match &outcome {
                // A session that was already gone before this request reached it: nothing was executed, start over.
                Err(error @ MdmError::Refused(_)) if error.reason() == Some(Reason::SessionExpired) => {
                    if ours.is_some() {
                        *session = None;
                    }
                    if started.elapsed() < patience.deadline {
                        continue;
                    }
                }
                Err(MdmError::Unknown { .. }) => {}
                Ok(()) | Err(MdmError::Refused(_) | MdmError::NoLeader { .. }) => {
                    if let Some(session) = ours {
                        session.answered(request);
                    }
                }
            }
            return outcome;
        }
    }

    /// A connection to a member other than the last one tried, for streams that any member serves.
    pub fn any_member(&self) -> (Endpoint, Connection) {
        let mut state = self.state();
        let endpoint = state.next_member();
        let connection = state.connection(&endpoint, None);
        (endpoint, connection)
    }

    /// A connection to the leader as last known, else to some member; [`Self::not_here`] says that it was wrong.
    pub fn leader_guess(&self) -> (Endpoint, Connection) {
        self.leader_guess_within(None)
    }

    fn leader_guess_within(&self, timeout: Option<Duration>) -> (Endpoint, Connection) {
        let mut state = self.state();
        let endpoint = match &state.leader {
            Some(leader) => leader.clone(),
            None => state.next_member(),
        };
        let connection = state.connection(&endpoint, timeout);
        (endpoint, connection)
    }

    /// `endpoint` failed or is not the leader; `hint` is what it said.
    pub fn not_here(&self, endpoint: &Endpoint, error: &Status) {
        let hinted = status::leader_hint(error).and_then(|hint| hint.address?.parse().ok());
        let mut state = self.state();
        match hinted {
            Some(leader) if leader != *endpoint => state.leader = Some(leader),
            _ if state.leader.as_ref() == Some(endpoint) => state.leader = None,
            _ => {}
        }
    }

    async fn begin(&self, patience: Patience) -> Result<RequestId, MdmError> {
        let mut session = self.shared.session.lock().await;
        let abandoned = self.state().abandoned.take();
        if abandoned.is_some() && session.as_ref().map(Session::client) == abandoned {
            *session = None;
        }
        let open = match session.as_mut() {
            Some(open) => open,
            None => {
                let opened = self
                    .read(patience, |connection| {
                        let request = OpenClientRequest { name: self.shared.name.clone() };
                        async move { SessionsClient::new(connection).open_client(request).await }
                    })
                    .await?;
                session.insert(Session::new(ClientId(opened.client_id)))
            }
        };
        Ok(open.begin())
    }

    async fn attempts(&self, patience: Patience, call: &Attempt<'_>) -> Result<(), MdmError> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut ambiguous = false;
        let mut last = None;
        for attempt in 1_usize.. {
            let left = patience.deadline.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            let within = patience.attempt.min(left);
            let (endpoint, connection) = self.leader_guess_within(Some(within));
            let answer = match tokio::time::timeout(within, call(connection)).await {
                Ok(answer) => answer,
                Err(_) => Err(Status::deadline_exceeded(format!("{endpoint} did not answer"))),
            };
            let error = match answer {
                Ok(()) => {
                    self.state().leader = Some(endpoint);
                    return Ok(());
                }
                Err(error) => error,
            };
            let verdict = judge(&error, FIRST_PAUSE);
            // Once an earlier attempt may have been executed, "session expired" no longer means "not executed".
            let expired_after_ambiguous = ambiguous && status::reason(&error) == Some(Reason::SessionExpired);
            match verdict {
                Verdict::Final if !expired_after_ambiguous => return Err(MdmError::Refused(Box::new(error))),
                Verdict::Final => {
                    return Err(MdmError::Unknown { waited: started.elapsed(), last: Box::new(error) });
                }
                Verdict::NotExecuted => {}
                Verdict::Ambiguous => ambiguous = true,
                Verdict::Overloaded(asked) => {
                    // The leader stays the leader; one that is none yet, or no longer, is not asked twice.
                    self.overloaded(&endpoint);
                    last = Some(Box::new(error));
                    // Never earlier than asked, and not all at the same time.
                    let jittered = asked.mul_f64(rand::rng().random_range(1.0..2.0));
                    tokio::time::sleep(jittered.min(patience.deadline.saturating_sub(started.elapsed()))).await;
                    continue;
                }
            }
            let hinted = status::leader_hint(&error).is_some_and(|hint| hint.address.is_some());
            self.not_here(&endpoint, &error);
            last = Some(Box::new(error));
            // A named leader is asked at once; after a full round without one, give an election time.
            if !hinted && attempt.is_multiple_of(self.members().len().max(1)) {
                self.widen();
                let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                tokio::time::sleep(jittered.min(patience.deadline.saturating_sub(started.elapsed()))).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        let waited = started.elapsed();
        match last {
            Some(last) if ambiguous => Err(MdmError::Unknown { waited, last }),
            // The leader was there, and had too much to do.
            Some(last) if status::reason(&last) == Some(Reason::Overloaded) => Err(MdmError::Refused(last)),
            last => Err(MdmError::NoLeader { members: self.member_list(), waited, last }),
        }
    }

    /// `endpoint` asks for a pause. If it leads it is asked again; one that is not known to lead need not be.
    fn overloaded(&self, endpoint: &Endpoint) {
        let mut state = self.state();
        if state.leader.as_ref() != Some(endpoint) {
            state.leader = None;
        }
    }

    /// A round was in vain: the configured members are asked, too.
    fn widen(&self) {
        let mut state = self.state();
        let known = std::mem::take(&mut state.members);
        state.members = union(known, &self.shared.configured);
    }

    fn member_list(&self) -> String {
        self.state().members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().expect("no code panics while it holds this lock")
    }
}

/// What an earlier process learned.
fn recall(memory: &Path) -> Vec<Endpoint> {
    let bytes = durable::read_if_exists(memory).ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.parse().ok()).collect()
}

fn union(mut members: Vec<Endpoint>, more: &[Endpoint]) -> Vec<Endpoint> {
    for endpoint in more {
        if !members.contains(endpoint) {
            members.push(endpoint.clone());
        }
    }
    members
}

impl State {
    /// The member after the last one asked.
    fn next_member(&mut self) -> Endpoint {
        self.turn = self.turn.wrapping_add(1);
        self.members[self.turn % self.members.len()].clone()
    }

    fn connection(&mut self, endpoint: &Endpoint, timeout: Option<Duration>) -> Connection {
        let channel = self.channels.entry(endpoint.clone()).or_insert_with(|| endpoint.channel()).clone();
        let name = NameCluster { cluster: self.cluster, generation: self.generation, timeout };
        InterceptedService::new(channel, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(ports: &[u16]) -> MdmClient {
        MdmClient::new("test", ports.iter().map(|port| Endpoint::new("127.0.0.1", *port)).collect())
    }

    async fn closed_port() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn with_nobody_listening_a_write_was_certainly_not_executed() {
        let client = client(&[closed_port().await, closed_port().await]);
        let patience = Patience::within(Duration::from_millis(200));
        let error = client
            .write(patience, |_, _| async { Ok(Response::new(())) })
            .await
            .expect_err("there is no session to be had");
        assert!(matches!(error, MdmError::NoLeader { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_hint_is_followed_and_a_final_answer_is_returned() {
        let client = client(&[1, 2]);
        let hint = status::LeaderHint { id: None, address: Some("127.0.0.1:9".into()), term: 1 };
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let error = client
            .read(Patience::within(Duration::from_secs(5)), |_| {
                let first = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
                let error = if first { status::not_leader(&hint) } else { status::status(Reason::NotFound, "no x") };
                async move { Err::<Response<()>, _>(error) }
            })
            .await
            .unwrap_err();
        assert_eq!(error.reason(), Some(Reason::NotFound));
        assert_eq!(client.leader_guess().0, Endpoint::new("127.0.0.1", 9));
    }

    #[tokio::test]
    async fn a_session_with_an_unanswered_request_is_not_used_again() {
        let client = client(&[1]);
        let patience = Patience { deadline: Duration::from_millis(50), attempt: Duration::from_millis(20) };
        *client.shared.session.lock().await = Some(Session::new(ClientId(7)));
        let error = client.write::<(), _, _>(patience, |_, _| std::future::pending()).await.unwrap_err();
        assert!(matches!(error, MdmError::Unknown { .. }), "{error:?}");
        let error = client.write(patience, |_, _| async { Ok(Response::new(())) }).await;
        assert!(matches!(error, Err(MdmError::NoLeader { .. })), "a new session is asked for: {error:?}");
    }

    #[tokio::test]
    async fn an_overloaded_leader_is_asked_again_after_its_pause_and_not_others() {
        let client = client(&[1, 2]);
        let leader = Endpoint::new("127.0.0.1", 2);
        client.state().leader = Some(leader.clone());
        let asked = Mutex::new(Vec::new());
        let patience = Patience::within(Duration::from_millis(400));
        let error = client
            .read(patience, |_| {
                asked.lock().unwrap().push((client.leader_guess().0, Instant::now()));
                async { Err::<Response<()>, _>(status::overloaded("full", 50)) }
            })
            .await
            .unwrap_err();
        assert_eq!(error.reason(), Some(Reason::Overloaded), "the leader's own word at the end: {error:?}");
        let asked = asked.into_inner().unwrap();
        assert!(asked.iter().all(|(endpoint, _)| *endpoint == leader), "{asked:?}");
        assert!((3..=8).contains(&asked.len()), "{} times", asked.len());
        for pair in asked.windows(2) {
            assert!(pair[1].1 - pair[0].1 >= Duration::from_millis(50), "earlier than it was asked to");
        }
    }

    #[tokio::test]
    async fn a_cancelled_write_takes_its_session_with_it() {
        let client = client(&[1]);
        let patience = Patience::within(Duration::from_secs(5));
        *client.shared.session.lock().await = Some(Session::new(ClientId(7)));
        let write = client.write::<(), _, _>(patience, |_, _| std::future::pending());
        assert!(tokio::time::timeout(Duration::from_millis(20), write).await.is_err());
        assert_eq!(client.state().abandoned, Some(ClientId(7)));
    }

    #[tokio::test]
    async fn an_attempt_without_answer_makes_the_outcome_unknown() {
        let client = client(&[1]);
        let patience = Patience { deadline: Duration::from_millis(50), attempt: Duration::from_millis(20) };
        let error = client.attempts(patience, &|_| Box::pin(std::future::pending())).await.unwrap_err();
        assert!(matches!(error, MdmError::Unknown { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn members_are_learned_kept_and_forgotten_only_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let memory = dir.path().join("mdms");
        let endpoint = |port| Endpoint::new("127.0.0.1", port);
        let client = || MdmClient::with_memory("test", vec![endpoint(1), endpoint(2)], memory.clone());
        let first = client();
        assert_eq!(first.members(), [endpoint(1), endpoint(2)]);
        first.learn_members(5, vec![]).await;
        assert_eq!(first.members().len(), 2, "nobody is no membership");
        first.learn_members(5, vec![endpoint(2), endpoint(3)]).await;
        assert_eq!(first.members(), [endpoint(2), endpoint(3)]);
        first.learn_members(4, vec![endpoint(1), endpoint(2)]).await;
        assert_eq!(first.members(), [endpoint(2), endpoint(3)], "of a member that lags");
        // The next process starts with what was learned, and with what was configured behind it.
        assert_eq!(client().members(), [endpoint(2), endpoint(3), endpoint(1)]);
        std::fs::write(&memory, b"\xff nonsense").unwrap();
        assert_eq!(client().members(), [endpoint(1), endpoint(2)]);
    }

    #[tokio::test]
    async fn who_learned_of_members_that_are_all_gone_asks_the_configured_ones_again() {
        let client = client(&[closed_port().await]);
        client.learn_members(1, vec![Endpoint::new("127.0.0.1", closed_port().await)]).await;
        let asked = Mutex::new(std::collections::BTreeSet::new());
        let error = client
            .read(Patience::within(Duration::from_millis(300)), |_| {
                asked.lock().unwrap().insert(client.members());
                async { Err::<Response<()>, _>(Status::unavailable("gone")) }
            })
            .await
            .unwrap_err();
        assert!(matches!(error, MdmError::NoLeader { .. }));
        assert_eq!(client.members().len(), 2, "{:?}", asked.lock().unwrap());
    }
}
