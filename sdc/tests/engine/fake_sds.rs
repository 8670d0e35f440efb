//! A small cluster of fake SDSs on real sockets: one shared store, one configuration, and faults on demand.
//!
//! The store stands for copies that are always in sync; what is faithful is all that a client can observe: greetings,
//! sessions with generations, tokens, MACs, sequences, epochs, operation ids, and requests that are held for a while and
//! executed later, unless a newer session or epoch has come between (S7, S9).
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use pflex_common::frames::{Frame, FrameQueue, FrameReader};
use pflex_common::net::Endpoint;
use pflex_proto::data::{
    AllocationReply, Checksums, FlushReply, FlushRequest, Hello, HelloReply, IoHeader, OpenSession, ReadReply,
    ReadRequest, Refusal, RefusalCode, SessionOpened, WriteKind, WriteReply, WriteRequest,
};
use pflex_proto::frame::FrameKind;
use pflex_proto::geometry::{CHUNK_SIZE, pg_of};
use pflex_proto::ids::{
    ByteOffset, ChunkId, ClusterId, DeviceId, Epoch, Generation, Incarnation, KeyId, LogTime, Member, OperationId,
    PgId, PgIndex, PoolId, ProcessId, SdcId, SdsId, SessionId, TokenId, Version, VolatilityId, VolumeEpoch, VolumeId,
};
use pflex_proto::pg::PgConfig;
use pflex_proto::token::{self, Rights, Secret, SessionKey, Token, TokenKey, TokenMode};
use pflex_sdc::engine::Routes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Placement groups of the only pool.
pub(crate) const PG_COUNT: u32 = 4;
pub(crate) const POOL: PoolId = PoolId(1);

/// What goes wrong, each in permille of the requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// The connection breaks before the request is executed.
    pub(crate) break_before: u32,
    /// It breaks after.
    pub(crate) break_after: u32,
    /// The request is held for up to 40 ms, then executed if it still may.
    pub(crate) hold: u32,
    /// It is held likewise and never answered.
    pub(crate) mute: u32,
    /// It is refused for now.
    pub(crate) refuse: u32,
    /// It is executed or not, and the answer is that nobody knows.
    pub(crate) unknown: u32,
    /// No newer token is taken for a session that is open: this device has not heard of its issuer yet.
    pub(crate) behind: bool,
    /// A read's payload is damaged on the way.
    pub(crate) damage: u32,
    /// PLANTED BUG: held requests are executed whatever came between.
    pub(crate) ghosts: bool,
    /// PLANTED BUG: operation ids are not looked at.
    pub(crate) forgetful: bool,
}

/// What all fake SDSs share.
pub(crate) struct Shared {
    pub(crate) chunks: HashMap<ChunkId, Vec<u8>>,
    pub(crate) configs: HashMap<PgId, PgConfig>,
    pub(crate) pg_count: u32,
    /// Outcomes by operation id, as S7 keeps them.
    done: BTreeMap<OperationId, Version>,
    /// Every operation that changed something, to find those that did twice.
    executed: HashSet<OperationId>,
    /// Operations that were executed twice.
    pub(crate) twice: Vec<OperationId>,
    /// Operations at or above a low-water mark that was sent, that came later than the mark: never.
    highest_low_water: OperationId,
    pub(crate) below_low_water: Vec<OperationId>,
    generations: HashMap<(DeviceId, VolumeId), Generation>,
    pub(crate) secret: Secret,
    /// Tokens below this id have expired.
    pub(crate) oldest_token: TokenId,
    pub(crate) faults: Faults,
    pub(crate) requests: u64,
    /// Every write that was executed: what it did, how many bytes, whether it was FUA.
    pub(crate) writes: Vec<(WriteKind, u32, bool)>,
    pub(crate) sessions: u64,
    pub(crate) renewals_refused: u64,
    /// Every FLUSH that was done: where, and of which memory.
    pub(crate) flushes: Vec<(PgId, VolatilityId)>,
    sequence: u64,
    random: ChaCha8Rng,
}

/// A cluster of fake SDSs.
pub(crate) struct FakeCluster {
    pub(crate) shared: Arc<Mutex<Shared>>,
    pub(crate) routes: Arc<Routes>,
    devices: BTreeMap<DeviceId, (Endpoint, Vec<JoinHandle<()>>)>,
}

impl FakeCluster {
    /// Starts devices 1 to `count`; device 1 is the primary of everything.
    pub(crate) async fn start(count: u32, seed: u64) -> Self {
        let config = |index| PgConfig {
            pg: PgId { pool: POOL, index: PgIndex(index) },
            epoch: Epoch(1),
            primary: Some(DeviceId(1)),
            in_sync: (1..=count)
                .map(|id| Member { device: DeviceId(id), sds: SdsId(id), incarnation: Incarnation(1) })
                .collect(),
            replicas: (1..=count).map(DeviceId).collect(),
            volatility: VolatilityId(1),
            forced: false,
            to_activate: false,
        };
        let shared = Shared {
            chunks: HashMap::new(),
            configs: (0..PG_COUNT).map(config).map(|config| (config.pg, config)).collect(),
            pg_count: PG_COUNT,
            done: BTreeMap::new(),
            executed: HashSet::new(),
            twice: Vec::new(),
            highest_low_water: OperationId(0),
            below_low_water: Vec::new(),
            generations: HashMap::new(),
            secret: Secret::new(KeyId(1), &[7; 32]),
            oldest_token: TokenId(0),
            faults: Faults::default(),
            requests: 0,
            writes: Vec::new(),
            sessions: 0,
            renewals_refused: 0,
            flushes: Vec::new(),
            sequence: 0,
            random: ChaCha8Rng::seed_from_u64(seed),
        };
        let mut cluster =
            Self { shared: Arc::new(Mutex::new(shared)), routes: Arc::default(), devices: BTreeMap::new() };
        for id in 1..=count {
            cluster.start_device(DeviceId(id)).await;
        }
        cluster.publish();
        cluster
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// Starts a device, on its old port if it had one.
    pub(crate) async fn start_device(&mut self, device: DeviceId) {
        let port = self.devices.get(&device).map_or(0, |(endpoint, _)| endpoint.port());
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let endpoint = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
        let shared = Arc::clone(&self.shared);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, device, Arc::clone(&shared)));
            }
        });
        self.devices.insert(device, (endpoint, vec![accepting]));
    }

    /// Kills a device: its listener and all its connections are gone at once.
    pub(crate) async fn kill_device(&mut self, device: DeviceId) {
        let (_, tasks) = self.devices.get_mut(&device).unwrap();
        for task in tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }

    /// Every copy of every group restarts: what was in memory is gone (S14).
    pub(crate) fn lose_memory(&self) {
        for config in self.shared().configs.values_mut() {
            config.epoch = config.epoch.next();
            config.volatility = config.volatility.next();
        }
    }

    /// Makes another device the primary of everything, without telling the client.
    pub(crate) fn promote(&self, primary: Option<DeviceId>) {
        for config in self.shared().configs.values_mut() {
            config.epoch = config.epoch.next();
            config.primary = primary;
        }
    }

    /// Each group becomes two (S25), without telling the client.
    pub(crate) fn double(&self) {
        let mut shared = self.shared();
        let count = shared.pg_count;
        for mut half in shared.configs.values().cloned().collect::<Vec<_>>() {
            half.epoch = half.epoch.next();
            shared.configs.insert(half.pg, half.clone());
            half.pg.index.0 += count;
            shared.configs.insert(half.pg, half);
        }
        shared.pg_count = 2 * count;
    }

    /// Makes another device the primary of some groups: from then on epochs differ.
    pub(crate) fn promote_some(&self, primary: DeviceId, which: impl Fn(PgId) -> bool) {
        for config in self.shared().configs.values_mut().filter(|config| which(config.pg)) {
            config.epoch = config.epoch.next();
            config.primary = Some(primary);
        }
    }

    /// Where the devices listen.
    pub(crate) fn endpoints(&self) -> Vec<(DeviceId, Endpoint)> {
        self.devices.iter().map(|(device, (endpoint, _))| (*device, endpoint.clone())).collect()
    }

    /// Tells the client.
    pub(crate) fn publish(&self) {
        self.routes.replace(self.shared().configs.values(), self.endpoints());
    }
}

impl Shared {
    /// A token for all of a volume that never expires, and its key.
    pub(crate) fn token(
        &self,
        (cluster, sdc, process): (ClusterId, SdcId, ProcessId),
        id: TokenId,
        volume: VolumeId,
    ) -> (Vec<u8>, TokenKey) {
        self.secret.sign(&Token {
            cluster,
            key: KeyId(1),
            id,
            sdc,
            process,
            volume,
            rights: Rights::ReadWrite,
            from: ByteOffset(0),
            to: ByteOffset(u64::MAX),
            volume_epoch: VolumeEpoch(1),
            issued: LogTime(0),
            expires: LogTime(u64::MAX),
            mode: TokenMode::Lease,
            plan: None,
        })
    }

    fn luck(&mut self, permille: u32) -> bool {
        permille > 0 && self.random.random_range(0..1000) < permille
    }

    /// Whether a request may be ordered here and now, and if not, why.
    fn may_order(&self, device: DeviceId, io: &IoHeader, generation: &Generation) -> Result<(), Refusal> {
        let is_flush = io.length == 0;
        if !is_flush && pg_of(io.chunk.vtree, io.chunk.index, self.pg_count) != io.pg.index {
            return Err(refusal(RefusalCode::WrongEpoch, None));
        }
        let Some(config) = self.configs.get(&io.pg) else { return Err(refusal(RefusalCode::WrongEpoch, None)) };
        if io.epoch != config.epoch {
            return Err(refusal(RefusalCode::WrongEpoch, Some(config)));
        }
        if config.primary != Some(device) {
            return Err(refusal(RefusalCode::NotPrimary, Some(config)));
        }
        if self.generations.get(&(device, io.volume)) != Some(generation) {
            return Err(refusal(RefusalCode::StaleGeneration, None));
        }
        Ok(())
    }

    fn write(&mut self, request: &WriteRequest, data: &[u8]) -> WriteReply {
        if request.operation < self.highest_low_water {
            self.below_low_water.push(request.operation);
        }
        self.highest_low_water = self.highest_low_water.max(request.low_water);
        if !self.faults.forgetful
            && let Some(version) = self.done.get(&request.operation)
        {
            return WriteReply { volatility: self.configs[&request.io.pg].volatility, version: *version };
        }
        if !self.executed.insert(request.operation) {
            self.twice.push(request.operation);
        }
        self.writes.push((request.kind, request.io.length, request.fua));
        let chunk = self.chunks.entry(request.io.chunk).or_insert_with(|| vec![0; CHUNK_SIZE as usize]);
        let place = &mut chunk[request.io.offset as usize..(request.io.offset + request.io.length) as usize];
        match request.kind {
            WriteKind::Data => place.copy_from_slice(data),
            WriteKind::Zero | WriteKind::ZeroNoHole | WriteKind::Trim => place.fill(0),
        }
        self.sequence += 1;
        let version = Version { epoch: request.io.epoch, sequence: self.sequence.into() };
        self.done.insert(request.operation, version);
        WriteReply { volatility: self.configs[&request.io.pg].volatility, version }
    }
}

fn refusal(code: RefusalCode, config: Option<&PgConfig>) -> Refusal {
    Refusal { code, config: config.cloned(), why: format!("{code:?}") }
}

/// What is sent back.
struct Answer {
    kind: FrameKind,
    request_id: u64,
    body: Vec<u8>,
    payload: Bytes,
}

impl Answer {
    fn new(kind: FrameKind, request_id: u64, message: &impl pflex_proto::codec::Wire, payload: Bytes) -> Self {
        Self { kind, request_id, body: message.to_bytes(), payload }
    }
}

/// A session as the fake keeps it.
struct Session {
    volume: VolumeId,
    generation: Generation,
    key: SessionKey,
    sequence: u64,
}

/// Serves a connection until it ends or a fault ends it.
async fn serve(stream: TcpStream, device: DeviceId, shared: Arc<Mutex<Shared>>) {
    let (from, mut to) = stream.into_split();
    let (answers, mut outgoing) = mpsc::unbounded_channel::<Answer>();
    let sending = async move {
        while let Some(answer) = outgoing.recv().await {
            let mut queue = FrameQueue::default();
            queue.push_with(answer.payload, |length, out| {
                pflex_proto::frame::encode_frame_with(answer.kind, answer.request_id, length, out, |_, body| {
                    body.extend_from_slice(&answer.body);
                });
            });
            if queue.send_all(&mut to).await.is_err() {
                return;
            }
        }
    };
    let receiving = async {
        let mut reader = FrameReader::new(from);
        let mut sessions = HashMap::new();
        while let Ok(Some(frame)) = reader.next().await {
            if !request(&frame, device, &shared, &mut sessions, &answers) {
                return;
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
}

/// Handles one frame; whether the connection goes on.
fn request(
    frame: &Frame,
    device: DeviceId,
    shared: &Arc<Mutex<Shared>>,
    sessions: &mut HashMap<SessionId, Session>,
    answers: &mpsc::UnboundedSender<Answer>,
) -> bool {
    let id = frame.header.request_id;
    match frame.header.kind {
        FrameKind::Hello => {
            let hello: Hello = frame.message().unwrap();
            assert_eq!(hello.device, device);
            let reply = HelloReply { version: 1, incarnation: Incarnation(1) };
            let _ = answers.send(Answer::new(FrameKind::HelloReply, id, &reply, Bytes::new()));
            true
        }
        FrameKind::OpenSession => {
            let answer = match open(&frame.message().unwrap(), device, &mut shared.lock().unwrap(), sessions) {
                Ok(opened) => Answer::new(FrameKind::SessionOpened, id, &opened, Bytes::new()),
                Err(refusal) => Answer::new(FrameKind::Refusal, id, &refusal, Bytes::new()),
            };
            let _ = answers.send(answer);
            true
        }
        FrameKind::Read | FrameKind::Write | FrameKind::Flush | FrameKind::Allocation => {
            io(frame, device, shared, sessions, answers)
        }
        other => panic!("a client sent {other:?}"),
    }
}

fn open(
    message: &OpenSession,
    device: DeviceId,
    shared: &mut Shared,
    sessions: &mut HashMap<SessionId, Session>,
) -> Result<SessionOpened, Refusal> {
    let (token, key) =
        token::verify(&message.token, std::slice::from_ref(&shared.secret)).expect("the client has a signed token");
    if token.id < shared.oldest_token {
        return Err(refusal(RefusalCode::TokenExpired, None));
    }
    assert_eq!((token.volume, token.process), (message.volume, message.generation.process));
    if message.renews.is_some() && shared.faults.behind {
        shared.renewals_refused += 1;
        return Err(refusal(RefusalCode::NotReady, None));
    }
    let known = shared.generations.get(&(device, message.volume)).copied();
    if let Some(renewed) = message.renews {
        assert_eq!(sessions[&renewed].generation, message.generation, "a renewal keeps its generation");
        if known != Some(message.generation) {
            return Err(refusal(RefusalCode::StaleGeneration, None));
        }
    } else if known.is_some_and(|known| known.order() >= message.generation.order()) {
        return Err(refusal(RefusalCode::StaleGeneration, None));
    }
    shared.sessions += 1;
    shared.generations.insert((device, message.volume), message.generation);
    let nonce: [u8; 16] = shared.random.random();
    let session = message.renews.unwrap_or(SessionId(shared.sessions as u32));
    let sequence = sessions.get(&session).map_or(0, |session| session.sequence);
    let key = key.session_key(&nonce, &message.generation, device);
    sessions.insert(session, Session { volume: message.volume, generation: message.generation, key, sequence });
    Ok(SessionOpened { session, nonce, log_time: LogTime(0) })
}

fn io(
    frame: &Frame,
    device: DeviceId,
    shared: &Arc<Mutex<Shared>>,
    sessions: &mut HashMap<SessionId, Session>,
    answers: &mpsc::UnboundedSender<Answer>,
) -> bool {
    let id = frame.header.request_id;
    if frame.header.kind == FrameKind::Flush {
        let answer = flush(frame, device, &mut shared.lock().unwrap(), sessions);
        let _ = answers.send(answer);
        return true;
    }
    let write = (frame.header.kind == FrameKind::Write).then(|| token::unsealed::<WriteRequest>(&frame.body).unwrap());
    let io = write.as_ref().map_or_else(|| token::unsealed::<ReadRequest>(&frame.body).unwrap().io, |write| write.io);
    let session = sessions.get_mut(&io.session).expect("a session of this connection");
    assert!(frame.opens(&session.key), "the MAC is the session's");
    assert!(io.session_sequence > session.sequence, "sequences rise");
    assert!(io.volume == session.volume && io.range_is_valid());
    session.sequence = io.session_sequence;
    let generation = session.generation;
    // The body of a question is that of a read.
    let asks = frame.header.kind == FrameKind::Allocation;
    if let Some(write) = &write {
        let expected = if write.kind == WriteKind::Data { io.length as usize } else { 0 };
        assert_eq!(frame.payload.len(), expected);
        assert!(expected == 0 || write.checksums.verify(io.offset, &frame.payload));
    }

    let mut locked = shared.lock().unwrap();
    locked.requests += 1;
    let faults = locked.faults;
    if locked.luck(faults.break_before) {
        return false;
    }
    if locked.luck(faults.refuse) {
        let code = [RefusalCode::NotReady, RefusalCode::Busy, RefusalCode::NoSession][locked.random.random_range(0..3)];
        let _ = answers.send(Answer::new(FrameKind::Refusal, id, &refusal(code, None), Bytes::new()));
        return true;
    }
    let (held, mute) = (locked.luck(faults.hold), locked.luck(faults.mute));
    if held || mute {
        let pause = Duration::from_millis(locked.random.random_range(0..40));
        drop(locked);
        let (shared, answers, payload) = (Arc::clone(shared), answers.clone(), frame.payload.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let mut locked = shared.lock().unwrap();
            let answer = execute(&mut locked, device, (id, asks), &io, write.as_ref(), &payload, &generation);
            if !mute {
                let _ = answers.send(answer);
            }
        });
        return true;
    }
    if locked.luck(faults.unknown) {
        if locked.random.random() {
            execute(&mut locked, device, (id, asks), &io, write.as_ref(), &frame.payload, &generation);
        }
        let _ = answers.send(Answer::new(
            FrameKind::Refusal,
            id,
            &refusal(RefusalCode::OutcomeUnknown, None),
            Bytes::new(),
        ));
        return true;
    }
    let answer = execute(&mut locked, device, (id, asks), &io, write.as_ref(), &frame.payload, &generation);
    if locked.luck(faults.break_after) {
        return false;
    }
    let _ = answers.send(answer);
    true
}

fn flush(frame: &Frame, device: DeviceId, shared: &mut Shared, sessions: &mut HashMap<SessionId, Session>) -> Answer {
    let id = frame.header.request_id;
    let FlushRequest { io, volatility } = token::unsealed(&frame.body).unwrap();
    let session = sessions.get_mut(&io.session).expect("a session of this connection");
    assert!(frame.opens(&session.key), "the MAC is the session's");
    assert!(io.session_sequence > session.sequence, "sequences rise");
    assert_eq!((io.offset, io.length), (0, 0), "a flush has no range");
    session.sequence = io.session_sequence;
    if let Err(refusal) = shared.may_order(device, &io, &session.generation) {
        return Answer::new(FrameKind::Refusal, id, &refusal, Bytes::new());
    }
    if shared.configs[&io.pg].volatility != volatility {
        return Answer::new(FrameKind::Refusal, id, &refusal(RefusalCode::LostMemory, None), Bytes::new());
    }
    shared.flushes.push((io.pg, volatility));
    Answer::new(FrameKind::FlushReply, id, &FlushReply { volatility }, Bytes::new())
}

fn execute(
    shared: &mut Shared,
    device: DeviceId,
    (id, asks): (u64, bool),
    io: &IoHeader,
    write: Option<&WriteRequest>,
    payload: &[u8],
    generation: &Generation,
) -> Answer {
    if let Err(refusal) = shared.may_order(device, io, generation)
        && !shared.faults.ghosts
    {
        return Answer::new(FrameKind::Refusal, id, &refusal, Bytes::new());
    }
    if let Some(write) = write {
        return Answer::new(FrameKind::WriteReply, id, &shared.write(write, payload), Bytes::new());
    }
    if asks {
        let mut reply = AllocationReply { written: [0; 4] };
        let chunk = shared.chunks.get(&io.chunk).map_or(&[][..], |chunk| chunk);
        for (block, data) in chunk.chunks(4096).enumerate() {
            reply.written[block / 64] |= u64::from(data.iter().any(|byte| *byte != 0)) << (block % 64);
        }
        return Answer::new(FrameKind::AllocationReply, id, &reply, Bytes::new());
    }
    let range = io.offset as usize..(io.offset + io.length) as usize;
    let Some(chunk) = shared.chunks.get(&io.chunk) else {
        let hole = ReadReply { hole: true, checksums: Checksums::Bytes(0) };
        return Answer::new(FrameKind::ReadReply, id, &hole, Bytes::new());
    };
    let mut data = chunk[range].to_vec();
    let reply = ReadReply { hole: false, checksums: Checksums::of(io.offset, &data) };
    if shared.luck(shared.faults.damage) {
        let at = shared.random.random_range(0..data.len());
        data[at] ^= 0x10;
    }
    Answer::new(FrameKind::ReadReply, id, &reply, data.into())
}
