//! What the tests share: identities, commands, and a group of members on loopback sockets.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use openraft::{
    EntryPayload,
    storage::{IOFlushed, RaftLogStorage as _},
    type_config::TypeConfigExt as _,
};
use pflex_proto::ids::{ClusterId, LogTime, MdmId, StoreUuid};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    command::{Body, Command, proto},
    raft::{
        FatalHook, GroupConfig, Links, MdmNode, RaftGroup, StoreIdentity,
        log_store::LogStore,
        types::{Entry, Proposal, TypeConfig, log_id},
    },
};

pub(super) const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xc105));
const PATIENCE: Duration = Duration::from_secs(30);

pub(in crate::raft) fn identity(node: u64) -> StoreIdentity {
    StoreIdentity { cluster: CLUSTER, node: MdmId(node), store: StoreUuid(Uuid::from_u128(u128::from(node))) }
}

/// A hook for tests that must not fail a store.
pub(super) fn no_failure() -> FatalHook {
    FatalHook::new(|reason| panic!("the store failed: {reason}"))
}

pub(super) fn bootstrap() -> Command {
    let cluster_id = CLUSTER.as_bytes().to_vec();
    Command::internal(0, Body::BootstrapCluster(proto::BootstrapCluster { cluster_id, secret: vec![7; 32], key_id: 1 }))
}

pub(super) fn domain(name: &str) -> Command {
    Command::internal(0, Body::CreateDomain(proto::CreateDomain { name: name.into(), if_not_exists: true }))
}

pub(in crate::raft) fn entry(term: u64, index: u64) -> Entry {
    let proposal = Proposal { log_time: LogTime(index), command: domain(&format!("d{index}")).into() };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(proposal) }
}

/// Resolves when the disk has the entries.
pub(super) type Synced = tokio::sync::oneshot::Receiver<Result<(), std::io::Error>>;

/// Appends without waiting for the sync.
pub(super) async fn append(store: &mut LogStore, entries: impl IntoIterator<Item = Entry>) -> std::io::Result<Synced> {
    let (sender, synced) = TypeConfig::oneshot();
    let entries: Vec<Entry> = entries.into_iter().collect();
    store.append(entries, IOFlushed::signal(sender)).await?;
    Ok(synced)
}

/// One member of a test group, running or not.
pub(super) struct Member {
    pub(super) dir: TempDir,
    pub(super) identity: StoreIdentity,
    pub(super) address: SocketAddr,
    pub(super) links: Links,
    pub(super) group: Option<RaftGroup>,
    snapshot_after: u64,
}

impl Member {
    pub(super) async fn new(node: u64, snapshot_after: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity(node);
        RaftGroup::create_store(dir.path(), identity).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut member = Self { dir, identity, address, links: Links::default(), group: None, snapshot_after };
        member.start().await;
        member.address = member.group().raft_address();
        member
    }

    pub(super) async fn start(&mut self) {
        let mut config = GroupConfig::new(CLUSTER, self.identity.node, self.address);
        config.fatal = no_failure();
        config.links = self.links.clone();
        config.snapshot_after = self.snapshot_after;
        config.propose_timeout = Duration::from_secs(3);
        // A member of before that was killed may still be closing its databases in the background; a process could not.
        let deadline = std::time::Instant::now() + PATIENCE;
        self.group = loop {
            match RaftGroup::open(self.dir.path(), config.clone()).await {
                Err(error) if format!("{error:?}").contains("InUse") && std::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                opened => break Some(opened.unwrap()),
            }
        };
    }

    /// Ends it as a crash would, seen from the others.
    pub(super) async fn kill(&mut self) {
        self.group.take().expect("runs").stop().await;
    }

    pub(super) fn group(&self) -> &RaftGroup {
        self.group.as_ref().expect("runs")
    }

    pub(super) fn node(&self) -> MdmNode {
        MdmNode {
            raft_address: self.address.to_string(),
            api_address: format!("api-of-{}", self.identity.node),
            store: self.identity.store,
        }
    }
}

/// A group of members in this process.
pub(super) struct Cluster(pub(super) Vec<Member>);

impl Cluster {
    /// Starts a group and gives it its first command.
    pub(super) async fn start(members: u64, snapshot_after: u64) -> Self {
        let mut cluster = Self(Vec::new());
        for node in 1..=members {
            cluster.0.push(Member::new(node, snapshot_after).await);
        }
        let first: BTreeMap<_, _> = cluster.0.iter().map(|member| (member.identity.node, member.node())).collect();
        cluster.0[0].group().bootstrap(first).await.unwrap();
        cluster.propose(bootstrap()).await;
        cluster
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &RaftGroup> {
        self.0.iter().filter_map(|member| member.group.as_ref())
    }

    /// Which running, reachable member leads, once one does.
    pub(super) async fn leader(&self) -> usize {
        until("a leader", || self.0.iter().position(|member| member.leads())).await
    }

    /// Proposes until somebody applies it. Fit for commands that may be applied twice.
    pub(super) async fn propose(&self, command: Command) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let leader = self.leader().await;
            match self.0[leader].group().propose(command.clone()).await {
                Ok(outcome) => {
                    assert_eq!(outcome.error(), None);
                    return;
                }
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "no outcome: {error}"),
            }
        }
    }

    pub(super) async fn propose_domains(&self, names: impl IntoIterator<Item = u64>) {
        for name in names {
            self.propose(domain(&format!("d{name}"))).await;
        }
    }

    /// Waits until every running member has the domain.
    pub(super) async fn everybody_has(&self, name: &str) {
        let all = || self.running().all(|group| has(group, name)).then_some(());
        until(&format!("{name} everywhere"), all).await;
    }

    pub(super) async fn stop(&mut self) {
        for member in &mut self.0 {
            if let Some(group) = member.group.take() {
                group.stop().await;
            }
        }
    }
}

impl Member {
    fn leads(&self) -> bool {
        !self.links.are_cut() && self.group.as_ref().is_some_and(|group| group.leader().borrow().leading)
    }
}

pub(super) fn has(group: &RaftGroup, name: &str) -> bool {
    group.read_stale(|state| state.domain_by_name(name).is_some()).1
}

/// Asks again and again until there is an answer.
pub(super) async fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "still waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until all members applied the same, then compares the whole states.
pub(super) async fn states_differing(cluster: &Cluster) -> usize {
    let same = || {
        let mut revisions: Vec<_> = cluster.running().map(|group| group.read_stale(|_| ()).0).collect();
        revisions.dedup();
        (revisions.len() == 1).then_some(())
    };
    until("equal revisions", same).await;
    let dumps: Vec<_> = cluster.running().map(|group| group.read_stale(|state| state.dump()).1).collect();
    dumps.iter().filter(|dump| **dump != dumps[0]).count()
}
