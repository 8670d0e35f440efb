//! Members come and go while clients write; nobody is asked to stop.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pflex_common::{map, mdm::MdmError, net::Endpoint, shutdown::Shutdown};
use pflex_mdm::daemon::DaemonError;
use pflex_proto::{
    pb::{
        AddNodeRequest, ChangeMembersReply, ClusterStatusRequest, ComponentKind, IdentifyRequest, RemoveNodeRequest,
        ReplaceNodeRequest, cluster_client::ClusterClient,
    },
    status::Reason,
};

use super::cluster::{Cluster, PATIENCE};

impl Cluster {
    pub(crate) async fn add(&self, id: u64, api: &Endpoint) -> Result<(), MdmError> {
        let request = AddNodeRequest { id, api_address: api.to_string(), raft_address: String::new() };
        self.to_the_end(async || {
            let call = self.client.read(PATIENCE, |connection| {
                let request = request.clone();
                async move { ClusterClient::new(connection).add_node(request).await }
            });
            call.await
        })
        .await
    }

    pub(crate) async fn remove(&self, id: u64, force: bool) -> Result<(), MdmError> {
        self.to_the_end(async || {
            let call = self.client.read(PATIENCE, |connection| async move {
                ClusterClient::new(connection).remove_node(RemoveNodeRequest { id, force }).await
            });
            call.await
        })
        .await
    }

    pub(crate) async fn replace(&self, old: u64, id: u64, api: &Endpoint) -> Result<(), MdmError> {
        let new = AddNodeRequest { id, api_address: api.to_string(), raft_address: String::new() };
        let request = ReplaceNodeRequest { old, new: Some(new) };
        self.to_the_end(async || {
            let call = self.client.read(PATIENCE, |connection| {
                let request = request.clone();
                async move { ClusterClient::new(connection).replace_node(request).await }
            });
            call.await
        })
        .await
    }

    async fn to_the_end(&self, call: impl AsyncFn() -> Result<ChangeMembersReply, MdmError>) -> Result<(), MdmError> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let reply = call().await?;
            if reply.done {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "not done: {}", reply.step);
        }
    }

    /// Who votes, as the leader says.
    pub(crate) async fn voters(&self) -> BTreeSet<u64> {
        let members = self.status().await.members;
        members.into_iter().filter(|member| member.role != "learner").map(|member| member.id).collect()
    }
}

/// Writes for as long as it lives; every write must succeed.
struct Writer {
    over: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Duration>,
}

impl Writer {
    fn start(cluster: &Arc<Cluster>) -> Self {
        let (over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn({
            let (cluster, over, written) = (Arc::clone(cluster), over.clone(), written.clone());
            async move {
                let mut longest = Duration::ZERO;
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let began = Instant::now();
                    let name = format!("w{number}");
                    cluster.create_volume_like(&name).await.unwrap();
                    longest = longest.max(began.elapsed());
                    written.fetch_add(1, Ordering::Relaxed);
                }
                longest
            }
        });
        Self { over, written, task }
    }

    async fn stop(self) -> (u64, Duration) {
        self.over.store(true, Ordering::Relaxed);
        let longest = self.task.await.unwrap();
        (self.written.load(Ordering::Relaxed), longest)
    }
}

impl Cluster {
    /// A small write: a session that nobody uses, which the state forgets by itself.
    async fn create_volume_like(&self, name: &str) -> Result<(), MdmError> {
        use pflex_proto::pb::{OpenClientRequest, sessions_client::SessionsClient};
        let opened = self.client.read(PATIENCE, |connection| {
            let request = OpenClientRequest { name: name.to_owned() };
            async move { SessionsClient::new(connection).open_client(request).await }
        });
        opened.await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_become_five_and_three_again_while_a_client_writes() {
    let cluster = Arc::new(Cluster::start(3).await);
    let writer = Writer::start(&cluster);
    for id in [4, 5] {
        let api = cluster.join(id);
        until_it_answers(&api).await;
        cluster.add(id, &api).await.unwrap();
        // Asked again, as after a lost answer: nothing happens.
        cluster.add(id, &api).await.unwrap();
    }
    assert_eq!(cluster.voters().await, [1, 2, 3, 4, 5].into());

    // The leader goes first, whoever it is, and then one that follows.
    let leader = cluster.status().await.leader;
    cluster.remove(leader, false).await.unwrap();
    let other = (1..=5).find(|id| *id != leader).unwrap();
    cluster.remove(other, false).await.unwrap();
    let left: BTreeSet<u64> = (1..=5).filter(|id| *id != leader && *id != other).collect();
    let status = cluster.status().await;
    assert_eq!(cluster.voters().await, left);
    assert_ne!(status.leader, leader);
    assert_eq!(status.health, "ok", "{:?}", status.reasons);
    let (written, longest) = writer.stop().await;
    println!("{written} writes, the longest took {} ms", longest.as_millis());
    assert!(written > 0);
    Arc::into_inner(cluster).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_store_comes_back_under_a_new_id_only() {
    let cluster = Cluster::start(3).await;
    let lost = cluster.status().await.leader % 3 + 1;
    cluster.take(lost).stop().await;

    // Its directory made anew under the old id is refused before it starts.
    let error = cluster.join_in_vain(lost).await;
    assert!(matches!(error, DaemonError::IdTaken { .. }), "{error}");

    // One that cannot ask anybody, and so starts, is refused by the leader, who knows the store.
    let stranger = cluster.join_blindly(lost);
    until_it_answers(&stranger).await;
    let refused = cluster.add(lost, &stranger).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::AlreadyExists), "{refused}");
    cluster.take(lost).stop().await;

    let api = cluster.join(4);
    until_it_answers(&api).await;
    cluster.replace(lost, 4, &api).await.unwrap();
    let expected: BTreeSet<u64> = (1..=4).filter(|id| *id != lost).collect();
    assert_eq!(cluster.voters().await, expected);
    // Again, as after a lost answer.
    cluster.replace(lost, 4, &api).await.unwrap();
    cluster.create_domain("after").await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_removed_is_told_and_disturbs_nobody() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.status().await.leader;
    let gone = leader % 3 + 1;
    cluster.remove(gone, false).await.unwrap();
    let term = cluster.status().await.term;
    let removed = cluster.take(gone);
    let mut client = ClusterClient::new(removed.api().channel());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let identity = client.identify(IdentifyRequest {}).await.unwrap().into_inner();
        if identity.standing == "removed" {
            break;
        }
        assert!(Instant::now() < deadline, "it still believes to be {}", identity.standing);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for name in ["x", "y"] {
        cluster.create_domain(name).await.unwrap();
    }
    let status = cluster.status().await;
    assert_eq!((status.leader, status.term), (leader, term), "nobody was elected meanwhile");
    // It serves no map any more, and its stale status does not claim a quorum.
    let stale = client.status(ClusterStatusRequest { stale: true }).await.unwrap().into_inner();
    assert_ne!(stale.health, "ok", "{stale:?}");
    cluster.stop().await;
    let mut removed = removed;
    removed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let cluster = Cluster::start(3).await;
    let nobody = Endpoint::new("127.0.0.1", 1);
    let reason = |outcome: Result<(), MdmError>| outcome.unwrap_err().reason().unwrap();
    assert_eq!(reason(cluster.add(4, &nobody).await), Reason::Precondition);
    assert_eq!(reason(cluster.add(0, &nobody).await), Reason::Invalid);
    let api = cluster.join(4);
    until_it_answers(&api).await;
    assert_eq!(reason(cluster.add(5, &api).await), Reason::Precondition, "it is mdm 4");
    assert_eq!(reason(cluster.replace(9, 4, &api).await), Reason::NotFound);
    assert_eq!(reason(cluster.replace(4, 4, &api).await), Reason::Invalid);
    let of_another_cluster = Cluster::start(1).await;
    let strange = of_another_cluster.members.lock().unwrap()[0].api();
    assert_eq!(reason(cluster.add(1, &strange).await), Reason::WrongCluster);
    assert_eq!(reason(of_another_cluster.remove(1, false).await), Reason::Precondition, "the only one");
    of_another_cluster.stop().await;

    // With one of three down, taking out another would leave two of which one is down.
    let leader = cluster.status().await.leader;
    let (down, up) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.take(down).stop().await;
    assert_eq!(reason(cluster.remove(up, false).await), Reason::Precondition);
    assert_eq!(cluster.voters().await, [1, 2, 3].into());
    cluster.remove(down, false).await.unwrap();
    assert_eq!(cluster.voters().await.len(), 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_follow_the_members() {
    let cluster = Cluster::start(3).await;
    let shutdown = Shutdown::new();
    let configured: BTreeSet<Endpoint> = cluster.client.members().into_iter().collect();
    let watcher = map::watch(cluster.client.clone(), ComponentKind::Sdc, 1, shutdown.clone());
    for id in [4, 5, 6] {
        let api = cluster.join(id);
        until_it_answers(&api).await;
        cluster.replace(id - 3, id, &api).await.unwrap();
        cluster.take(id - 3).stop().await;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while cluster.client.members().iter().any(|member| configured.contains(member)) {
        assert!(Instant::now() < deadline, "still {:?}", cluster.client.members());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.create_domain("after").await.unwrap();
    assert!(watcher.borrow().is_some());
    shutdown.cancel();
    cluster.stop().await;
}

pub(crate) async fn until_it_answers(api: &Endpoint) {
    let mut client = ClusterClient::new(api.channel());
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.identify(IdentifyRequest {}).await.is_err() {
        assert!(Instant::now() < deadline, "{api} does not answer");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The gap is printed, not judged: a busy machine may take its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_shutdown_of_the_leader_fails_no_request() {
    let cluster = Arc::new(Cluster::start(3).await);
    for round in 0..3 {
        let writers: Vec<Writer> = (0..4).map(|_| Writer::start(&cluster)).collect();
        let began = Instant::now();
        while writers.iter().any(|writer| writer.written.load(Ordering::Relaxed) < 20) {
            assert!(began.elapsed() < Duration::from_secs(30), "no writes");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut usual = Duration::ZERO;
        for writer in writers {
            usual = usual.max(writer.stop().await.1);
        }
        let writers: Vec<Writer> = (0..4).map(|_| Writer::start(&cluster)).collect();
        let at = cluster.stop_leader().await;
        let before: Vec<u64> = writers.iter().map(|writer| writer.written.load(Ordering::Relaxed)).collect();
        for (writer, before) in writers.iter().zip(before) {
            while writer.written.load(Ordering::Relaxed) < before + 20 {
                assert!(!writer.task.is_finished(), "a write failed");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let mut gap = Duration::ZERO;
        for writer in writers {
            gap = gap.max(writer.stop().await.1);
        }
        println!("round {round}: the longest write took {} ms, before {} ms", gap.as_millis(), usual.as_millis());
        cluster.restart(at);
    }
    Arc::into_inner(cluster).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_belongs_to_one_store_for_ever() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.status().await.leader;
    let gone = leader % 3 + 1;
    cluster.remove(gone, false).await.unwrap();
    let kept = cluster.take(gone);
    // Another store under the id of a member that was removed.
    let stranger = cluster.join(gone);
    until_it_answers(&stranger).await;
    assert_eq!(cluster.add(gone, &stranger).await.unwrap_err().reason(), Some(Reason::AlreadyExists));
    cluster.take(gone).stop().await;
    // The store that had it comes back.
    cluster.add(gone, &kept.api()).await.unwrap();
    assert_eq!(cluster.voters().await, [1, 2, 3].into());
    cluster.members.lock().unwrap().push(kept);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_survive_the_loss_of_any_two() {
    let cluster = Cluster::start(5).await;
    for pair in [[0, 1], [2, 3], [4, 0]] {
        for at in pair {
            let mut member = cluster.members.lock().unwrap().remove(at);
            member.stop().await;
            cluster.members.lock().unwrap().insert(at, member);
        }
        cluster.create_domain(&format!("without-{}-{}", pair[0], pair[1])).await.unwrap();
        let status = cluster.status().await;
        assert_eq!(status.health, "degraded", "{:?}", status.reasons);
        assert_eq!(status.members.iter().filter(|member| member.state != "up").count(), 2);
        pair.iter().for_each(|at| cluster.restart(*at));
    }
    cluster.stop().await;
}
