//! The liveness stream with the MDM leader: a beat each second, log time in return (S20, S23).
//!
//! A beat also says how far this server has counted log time. MDMs that were all down carry on from their last entry; the
//! data threads never turn back, so without it every token that is issued later would be expired here.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use pflex_common::{
    clock::{LogTimeFollower, MonotonicTime},
    mdm::{MdmError, Patience},
};
use pflex_proto::{
    ids::{DeviceId, KeyId, LogTime, PgId},
    pb::{
        Beat, BeatReply, CopyWithoutRoom, DeviceBeat, KeysReply, KeysRequest, liveness_client::LivenessClient,
        tokens_client::TokensClient,
    },
    status::{self, Reason},
    token::{KEY_SIZE, Secret},
};
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{debug, warn};

use super::Server;
use crate::{
    admission::STAMP_DELAY,
    worker::{Command, ScrubOrder},
};

/// Between two beats.
const INTERVAL: Duration = Duration::from_secs(1);
/// A leader that does not answer a beat for this long is not one any more.
const SILENCE: Duration = STAMP_DELAY;
/// How often the confirmed revision is looked at: an unmap waits for it.
const CONFIRM_POLL: Duration = Duration::from_millis(20);
/// Between two members that do not lead: longer each time, and never the same for two of the hundreds of servers that
/// lost their leader together. An election must not compete with them.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(300);
/// For fetching keys.
const KEYS_PATIENCE: Patience = Patience::within(Duration::from_secs(5));

/// Log time as the data threads count it: the same stamps, kept across streams and leaders. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted(Arc<Mutex<LogTimeFollower>>);

impl Counted {
    fn observe(&self, term: u64, log_time: LogTime, at: MonotonicTime) {
        self.follower().observe(term, log_time, at);
    }

    /// As a beat says it: 0 before the first stamp.
    pub(super) fn now_ms(&self, now: MonotonicTime) -> u64 {
        self.follower().now(now).map_or(0, LogTime::get)
    }

    /// How long ago a leader was heard; none before the first stamp.
    pub(super) fn age(&self, now: MonotonicTime) -> Option<Duration> {
        self.follower().newest().map(|(_, at)| now.since(at))
    }

    fn follower(&self) -> MutexGuard<'_, LogTimeFollower> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until the process ends.
pub(super) async fn run(server: Arc<Server>) {
    let (mut keys, mut pause) = (Vec::new(), PAUSE);
    loop {
        let (endpoint, connection) = server.client.leader_guess();
        let error = match follow(&server, LivenessClient::new(connection), &mut keys, &mut pause).await {
            Ok(()) => Status::unavailable("the stream ended"),
            Err(error) => error,
        };
        debug!(%endpoint, error = error.message(), "liveness stream ended");
        if status::reason(&error) == Some(Reason::StaleEpoch) && is_superseded(&server).await {
            server.takeover.declare(error.message().to_owned());
            return;
        }
        server.client.not_here(&endpoint, &error);
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.5));
        tokio::time::sleep(jittered).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Asks for what only the registered process gets, in a linearizable read. A leader answers beats from the state that it
/// has applied, and right after its election it may lack this process's registration.
async fn is_superseded(server: &Server) -> bool {
    matches!(keys(server).await, Err(error) if error.reason() == Some(Reason::NotAllowed))
}

async fn follow(
    server: &Arc<Server>,
    mut client: LivenessClient<pflex_common::mdm::Connection>,
    keys: &mut Vec<u32>,
    pause: &mut Duration,
) -> Result<(), Status> {
    let (beats, queue) = mpsc::channel(4);
    let sender = tokio::spawn(beat(Arc::clone(server), beats));
    let _stops_with_us = StopOnDrop(sender);
    let silent = |_| Status::deadline_exceeded("the leader is silent");
    let mut last = MonotonicTime::now();
    let opened = tokio::time::timeout(SILENCE, client.beats(ReceiverStream::new(queue))).await.map_err(silent)?;
    let mut replies = opened?.into_inner();
    while let Some(reply) = tokio::time::timeout(SILENCE, replies.message()).await.map_err(silent)?? {
        let BeatReply { log_time_ms, term, newest_key_id, key_ids, scrubs, .. } = reply;
        let at = MonotonicTime::now();
        // A stamp that waited here while this process was stopped says nothing of now: revocations count on its age.
        if at.since(std::mem::replace(&mut last, at)) > STAMP_DELAY {
            return Err(Status::deadline_exceeded("this process was away; the stamps it missed are stale"));
        }
        *pause = PAUSE;
        server.log_time.observe(term, LogTime(log_time_ms), at);
        for device in server.devices().iter() {
            // The next one is as good.
            device.offer(Command::Stamp { term, log_time: LogTime(log_time_ms), at });
            let order = scrubs.iter().find(|order| order.device_id == device.own.device.0);
            let order = order.map(|order| ScrubOrder { pass: order.pass, bytes_per_second: order.bytes_per_second });
            device.offer(Command::Scrub(order));
        }
        // Also when a thread had no room for them: a new generation signs only once all threads have it (S21).
        if (*keys != key_ids || server.newest_key() < newest_key_id) && fetch_keys(server).await {
            *keys = key_ids;
        }
    }
    Ok(())
}

/// A beat each second, and at once when a revocation is newly confirmed or a device fails: its groups wait for that.
async fn beat(server: Arc<Server>, beats: mpsc::Sender<Beat>) {
    loop {
        let (confirmed, sick) = (server.confirmed(), server.sick());
        let beat = Beat {
            sds_id: server.id.0,
            process_id: server.process.as_bytes().to_vec(),
            applied_revision: confirmed.0,
            devices: server.devices().iter().map(device_beat).collect(),
            unreachable_sds_ids: Vec::new(),
            log_time_ms: server.log_time.now_ms(MonotonicTime::now()),
            newest_key_id: server.newest_key(),
        };
        if beats.send(beat).await.is_err() {
            return;
        }
        let due = tokio::time::sleep(INTERVAL);
        tokio::pin!(due);
        loop {
            tokio::select! {
                () = &mut due => break,
                () = tokio::time::sleep(CONFIRM_POLL) => if server.confirmed() > confirmed || server.sick() != sick { break },
            }
        }
    }
}

fn device_beat(device: &crate::worker::DeviceHandle) -> DeviceBeat {
    let now = MonotonicTime::now();
    let sick = device.counters.sick(now);
    let (disk_ios, disk_us) = device.counters.meter.completed();
    DeviceBeat {
        device_id: device.own.device.0,
        incarnation: device.own.incarnation.0,
        completed_ios: device.counters.progress(),
        waiting: device.counters.waits(now),
        failed: sick.is_some(),
        // Of a device that has not failed: what keeps it from doing its part.
        why: sick.or_else(|| device.counters.trouble()).unwrap_or_default(),
        resync_left_bytes: device.counters.resync_left_bytes.load(Ordering::Relaxed),
        resync_sent_bytes: device.counters.resync_sent_bytes.load(Ordering::Relaxed),
        disk_ios,
        disk_us,
        // Before the figures that it is a claim about.
        scrub_pass: device.counters.scrub_pass.load(Ordering::Acquire),
        scrub_done: device.counters.scrub_done.load(Ordering::Relaxed),
        scrubbed_chunks: device.counters.scrubbed_chunks.load(Ordering::Relaxed),
        scrub_left_chunks: device.counters.scrub_left_chunks.load(Ordering::Relaxed),
        scrub_bad_blocks: device.counters.scrub_bad_blocks.load(Ordering::Relaxed),
        scrub_mismatches: device.counters.scrub_mismatches.load(Ordering::Relaxed),
        scrub_pass_bad_blocks: device.counters.scrub_pass_bad_blocks.load(Ordering::Relaxed),
        scrub_pass_mismatches: device.counters.scrub_pass_mismatches.load(Ordering::Relaxed),
        repaired_blocks: device.counters.repaired_blocks.load(Ordering::Relaxed),
        unreadable_blocks: device.counters.unreadable_blocks.load(Ordering::Relaxed),
        unreadable_chunks: device.counters.unreadable_chunks.load(Ordering::Relaxed),
        no_room: {
            let copy = |(pg, device): (PgId, DeviceId)| CopyWithoutRoom { pg: Some(pg.into()), device_id: device.0 };
            device.counters.no_room().into_iter().map(copy).collect()
        },
    }
}

async fn keys(server: &Server) -> Result<KeysReply, MdmError> {
    let request = KeysRequest { sds_id: server.id.0, process_id: server.process.as_bytes().to_vec() };
    let call = |connection| {
        let request = request.clone();
        async move { TokensClient::new(connection).keys(request).await }
    };
    server.client.read(KEYS_PATIENCE, call).await
}

/// Gets the secrets and hands them to every data thread; whether that worked.
pub(super) async fn fetch_keys(server: &Arc<Server>) -> bool {
    let keys = match keys(server).await {
        Ok(reply) => reply.keys,
        Err(error) => {
            warn!(%error, "cannot fetch the keys that tokens are verified with; trying again");
            return false;
        }
    };
    let secret = |key: pflex_proto::pb::SecretKey| {
        let bytes: [u8; KEY_SIZE] = key.secret.try_into().ok()?;
        Some(Secret::new(KeyId(key.key_id), &bytes))
    };
    let secrets: Vec<Secret> = keys.into_iter().filter_map(secret).collect();
    // A thread without room hangs, or gets them with the next token whose key it does not know.
    for device in server.devices().iter() {
        device.offer(Command::Secrets(secrets.clone()));
    }
    !secrets.is_empty()
}

impl Server {
    /// What every data thread has confirmed.
    fn confirmed(&self) -> pflex_proto::ids::Revision {
        self.devices().iter().map(|device| device.counters.confirmed()).min().unwrap_or_default()
    }

    /// How many devices are out of service.
    fn sick(&self) -> usize {
        let now = MonotonicTime::now();
        self.devices().iter().filter(|device| device.counters.sick(now).is_some()).count()
    }

    /// The newest generation of the secret that every data thread verifies with. Without a thread there is none that
    /// lacks one.
    fn newest_key(&self) -> u32 {
        self.devices().iter().map(|device| device.counters.newest_key.load(Ordering::Acquire)).min().unwrap_or(u32::MAX)
    }
}

struct StopOnDrop(tokio::task::JoinHandle<()>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use pflex_common::{
        mdm::MdmClient,
        net::{self, Endpoint},
        registration::{Takeover, reachable_at},
    };
    use pflex_proto::pb;
    use tonic::{Request, Response};

    use super::*;

    /// A leader that knows another process, and a state that says so only after a while.
    #[derive(Clone)]
    struct FakeMdm {
        keys_asked: Arc<AtomicUsize>,
        /// As long as its applied state is behind, a linearizable read still finds this process registered.
        registered_for: usize,
    }

    fn stale() -> Status {
        status::status(Reason::StaleEpoch, "sds 1: this process is not the one that registered last")
    }

    #[tonic::async_trait]
    impl pb::liveness_server::Liveness for FakeMdm {
        type BeatsStream = tokio_stream::Empty<Result<BeatReply, Status>>;

        async fn beats(&self, _: Request<tonic::Streaming<Beat>>) -> Result<Response<Self::BeatsStream>, Status> {
            Err(stale())
        }

        async fn report(&self, _: Request<pb::HealthReport>) -> Result<Response<pb::HealthReportReply>, Status> {
            Err(Status::unimplemented("not asked for"))
        }
    }

    #[tonic::async_trait]
    impl pb::tokens_server::Tokens for FakeMdm {
        async fn keys(&self, _: Request<KeysRequest>) -> Result<Response<KeysReply>, Status> {
            if self.keys_asked.fetch_add(1, Ordering::Relaxed) < self.registered_for {
                return Ok(Response::new(KeysReply::default()));
            }
            Err(status::status(Reason::NotAllowed, "sds 1: only its registered process gets the keys"))
        }

        async fn issue(&self, _: Request<pb::IssueTokensRequest>) -> Result<Response<pb::IssueTokensReply>, Status> {
            Err(Status::unimplemented("not asked for"))
        }

        async fn ack(&self, _: Request<pb::AckTokensRequest>) -> Result<Response<pb::AckTokensReply>, Status> {
            Err(Status::unimplemented("not asked for"))
        }

        async fn list(&self, _: Request<pb::ListTokensRequest>) -> Result<Response<pb::ListTokensReply>, Status> {
            Err(Status::unimplemented("not asked for"))
        }

        async fn audit(&self, _: Request<pb::AuditTokensRequest>) -> Result<Response<pb::AuditTokensReply>, Status> {
            Err(Status::unimplemented("not asked for"))
        }
    }

    #[tokio::test]
    async fn only_a_linearizable_answer_makes_a_process_superseded() {
        let mdm = FakeMdm { keys_asked: Arc::default(), registered_for: 2 };
        let listener = net::listen("test", &Endpoint::new("127.0.0.1", 0)).await.unwrap();
        let endpoint = reachable_at(&Endpoint::new("127.0.0.1", 0), &listener);
        let serving = tonic::transport::Server::builder()
            .add_service(pb::liveness_server::LivenessServer::new(mdm.clone()))
            .add_service(pb::tokens_server::TokensServer::new(mdm.clone()));
        let serving = tokio::spawn(serving.serve_with_incoming(net::incoming(listener)));
        let server = Arc::new(Server {
            name: "sds1".into(),
            id: pflex_proto::ids::SdsId(1),
            process: Default::default(),
            client: MdmClient::new("test", vec![endpoint]),
            roster: super::super::roster::Roster::new(Vec::new(), Vec::new()),
            started: std::time::Instant::now(),
            takeover: Takeover::default(),
            log_time: Counted::default(),
            generation: Default::default(),
            restored: Default::default(),
        });
        let ended = tokio::time::timeout(Duration::from_secs(10), run(Arc::clone(&server))).await;
        assert!(ended.is_ok(), "it went on asking");
        assert!(server.takeover.why().unwrap().contains("not the one that registered last"));
        assert_eq!(mdm.keys_asked.load(Ordering::Relaxed), 3, "the leader that was behind did not end it");
        serving.abort();
    }

    #[test]
    fn a_beat_tells_the_time_that_ran_on_through_an_outage() {
        let at = |seconds| MonotonicTime::from_start(Duration::from_secs(seconds));
        let counted = Counted::default();
        assert_eq!(counted.now_ms(at(5)), 0, "nothing before the first stamp");
        counted.observe(3, LogTime(10_000), at(5));
        assert_eq!(counted.clone().now_ms(at(605)), 610_000, "the streams of other leaders share it");
        counted.observe(4, LogTime(11_000), at(605));
        assert_eq!(counted.now_ms(at(606)), 611_000, "a leader that lost the outage does not turn it back");
    }
}
