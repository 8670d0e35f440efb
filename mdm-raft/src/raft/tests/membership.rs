//! Who may be a member: changes online, and stores that may not speak (S18).

use std::{collections::BTreeSet, time::Duration};

use pflex_proto::ids::{MdmId, StoreUuid};
use uuid::Uuid;

use super::kit::{Cluster, Member, domain, has, no_failure, until};
use crate::raft::{GroupConfig, OpenError, RaftGroup, Role, StoreError, StoreIdentity, identity};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_and_another_leaves() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.propose(domain("before")).await;
    let newcomer = Member::new(4, 10_000).await;
    let leader = cluster.leader().await;
    let leaving = (leader + 1) % 3;
    let group = cluster.0[leader].group().clone();
    group.add_learner(MdmId(4), newcomer.node(), Some(Duration::from_secs(20))).await.unwrap();
    cluster.0.push(newcomer);

    let leaving_id = cluster.0[leaving].identity.node;
    let voters: BTreeSet<_> = (1..=4).map(MdmId).filter(|id| *id != leaving_id).collect();
    group.change_voters(voters.clone()).await.unwrap();
    cluster.0[leaving].kill().await;
    cluster.propose(domain("after")).await;
    cluster.everybody_has("after").await;
    assert_eq!(group.status().voters, [voters]);
    assert!(has(cluster.0[3].group(), "before"));
    cluster.stop().await;
}

/// The leader dies between the two entries of a change. Until somebody takes the second step the group needs a majority of
/// both sets of voters; nobody repeats the command here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_its_leader_left_half_done_is_finished_by_the_next() {
    let mut cluster = Cluster::start(3, 10_000).await;
    let newcomer = Member::new(4, 10_000).await;
    let leader = cluster.leader().await;
    let leaving = cluster.0[(leader + 1) % 3].identity.node;
    let group = cluster.0[leader].group().clone();
    group.add_learner(MdmId(4), newcomer.node(), Some(Duration::from_secs(20))).await.unwrap();
    cluster.0.push(newcomer);
    let old: BTreeSet<_> = (1..=3).map(MdmId).collect();
    let goal: BTreeSet<_> = (1..=4).map(MdmId).filter(|id| *id != leaving).collect();

    cluster.0[leader].links.cut_between_the_steps_of_a_change();
    let change = tokio::spawn({
        let (group, goal) = (group.clone(), goal.clone());
        async move { group.change_voters(goal).await }
    });
    let both = [old, goal.clone()];
    let half = || cluster.running().filter(|group| group.status().voters == both).count() >= 1;
    until("another member to know the first step", || (cluster.0[leader].links.are_cut() && half()).then_some(()))
        .await;
    cluster.0[leader].kill().await;
    assert!(change.await.unwrap().is_err(), "it was never told that the change was made");

    let finished = |cluster: &Cluster| {
        let running = cluster.running().filter(|group| group.identity().node != leaving);
        running.filter(|group| group.status().voters == [goal.clone()]).count()
    };
    until("the second step", || (finished(&cluster) == 2).then_some(())).await;
    cluster.propose(domain("after")).await;

    // The dead leader had the second step in its log, and nobody else had: it takes the group's.
    // Its databases close with its last handle.
    drop(group);
    cluster.0[leader].links.disarm();
    cluster.0[leader].links.mend();
    cluster.0[leader].start().await;
    until("the old leader to know it too", || (finished(&cluster) == 3).then_some(())).await;
    until("the old leader to have the rest", || has(cluster.0[leader].group(), "after").then_some(())).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_made_anew_under_an_old_id_gets_no_vote() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.propose(domain("before")).await;
    cluster.everybody_has("before").await;
    let leader = cluster.leader().await;
    let (lost, dead) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.0[lost].kill().await;
    cluster.0[dead].kill().await;

    // The directory is gone; somebody makes a new one for the same member.
    let member = &mut cluster.0[lost];
    member.dir = tempfile::tempdir().unwrap();
    member.identity.store = StoreUuid(Uuid::from_u128(777));
    RaftGroup::create_store(member.dir.path(), member.identity).unwrap();
    member.start().await;

    // With it the old leader would have a quorum. It must not.
    let group = cluster.0[leader].group();
    assert!(group.propose(domain("never")).await.is_err());
    let amnesiac = cluster.0[lost].group().status();
    assert_eq!((amnesiac.last_log, amnesiac.role), (None, Role::Learner));

    // The third comes back, and the group goes on without the stranger.
    cluster.0[dead].start().await;
    cluster.propose(domain("after")).await;
    let others = || has(cluster.0[dead].group(), "after").then_some(());
    until("the third to have it", others).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_directory_is_opened_by_its_owner_only() {
    let mut member = Member::new(1, 10_000).await;
    member.kill().await;
    let mut config = GroupConfig::new(super::kit::CLUSTER, MdmId(2), member.address);
    config.fatal = no_failure();
    let error = RaftGroup::open(member.dir.path(), config.clone()).await.err().unwrap();
    assert!(matches!(error, OpenError::Store(StoreError::OtherNode { .. })), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = RaftGroup::open(empty.path(), config).await.err().unwrap();
    assert!(matches!(error, OpenError::Store(StoreError::Missing { .. })), "{error}");
    let error = RaftGroup::create_store(member.dir.path(), member.identity).err().unwrap();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
}

#[tokio::test]
async fn a_creation_that_was_cut_short_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = super::kit::identity(1);
    RaftGroup::create_store(dir.path(), first).unwrap();
    // As a crash before the last step leaves it.
    identity::write(dir.path(), first, identity::Phase::Creating).unwrap();
    let config = || {
        let mut config = GroupConfig::new(super::kit::CLUSTER, MdmId(1), ([127, 0, 0, 1], 0).into());
        config.fatal = no_failure();
        config
    };
    let error = RaftGroup::open(dir.path(), config()).await.err().unwrap();
    assert!(matches!(error, OpenError::Store(StoreError::Missing { .. })), "{error}");
    let second = StoreIdentity { store: StoreUuid(Uuid::from_u128(5)), ..first };
    RaftGroup::create_store(dir.path(), second).unwrap();
    let group = RaftGroup::open(dir.path(), config()).await.unwrap();
    assert_eq!(group.identity(), second);
    group.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let member = Member::new(1, 10_000).await;
    let other = tempfile::tempdir().unwrap();
    RaftGroup::create_store(other.path(), super::kit::identity(2)).unwrap();
    let config = GroupConfig::new(super::kit::CLUSTER, MdmId(2), member.address);
    let error = RaftGroup::open(other.path(), config).await.err().unwrap();
    assert!(matches!(error, OpenError::Listen { address, .. } if address == member.address), "{error}");
    member.group().stop().await;
}
