//! Three members on loopback: leaders die, members lag, links break.

use std::time::{Duration, Instant};

use super::kit::{Cluster, domain, has, states_differing, until};
use crate::raft::{Committed, ProposeError, ReadError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_group_outlives_its_leader_and_takes_it_back() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.propose_domains(0..10).await;
    let leader = cluster.leader().await;
    let times: Vec<_> = cluster.running().map(|group| group.log_time()).collect();

    let died = Instant::now();
    cluster.0[leader].links.cut();
    cluster.propose(domain("after")).await;
    println!("writes again {} ms after the leader died", died.elapsed().as_millis());
    let stopping = Instant::now();
    cluster.0[leader].kill().await;
    println!("stopped in {} ms", stopping.elapsed().as_millis());
    cluster.0[leader].links.mend();

    cluster.0[leader].start().await;
    cluster.everybody_has("after").await;
    cluster.everybody_has("d9").await;
    let successor = cluster.leader().await;
    let (revision, seen) =
        cluster.0[successor].group().read(|state| state.domain_by_name("d3").is_some()).await.unwrap();
    assert!(seen && revision.get() > 0);
    // Log time went on across the leaders.
    assert!(cluster.0[successor].group().log_time() >= *times.iter().min().unwrap());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_missed_what_was_cut_gets_a_snapshot() {
    let mut cluster = Cluster::start(3, 40).await;
    cluster.propose_domains(0..5).await;
    let lagging = (cluster.leader().await + 1) % 3;
    cluster.everybody_has("d4").await;
    cluster.0[lagging].kill().await;
    cluster.propose_domains(5..150).await;
    let leader = cluster.leader().await;
    let purged = || cluster.0[leader].group().status().purged.filter(|id| id.index > 20);
    until("a cut log", purged).await;

    cluster.0[lagging].start().await;
    let mut events = cluster.0[lagging].group().subscribe();
    cluster.everybody_has("d149").await;
    let replaced = async {
        while let Ok(committed) = events.recv().await {
            if matches!(committed, Committed::Replaced { .. }) {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), replaced).await.unwrap(), "caught up without a snapshot");
    assert_eq!(states_differing(&cluster).await, 0);

    // What was installed is there after a restart, too.
    cluster.0[lagging].kill().await;
    cluster.0[lagging].start().await;
    cluster.propose(domain("last")).await;
    cluster.everybody_has("last").await;
    assert!(has(cluster.0[lagging].group(), "d0"));
    let leftovers = std::fs::read_dir(cluster.0[lagging].dir.path()).unwrap().filter_map(Result::ok);
    let states = leftovers.filter(|file| file.file_name().to_string_lossy().starts_with("state-")).count();
    assert_eq!(states, 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_its_group_reads_nothing_and_promises_nothing() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.propose(domain("before")).await;
    let old = cluster.leader().await;
    assert!(cluster.0[old].group().read(|_| ()).await.is_ok());
    cluster.0[old].links.cut();

    let read = cluster.0[old].group().read(|_| ()).await.unwrap_err();
    assert!(matches!(read, ReadError::Unconfirmed { .. } | ReadError::NotLeader { .. }), "{read}");
    assert!(has(cluster.0[old].group(), "before"), "a stale read needs nobody");
    let proposed = cluster.0[old].group().propose(domain("lost")).await.unwrap_err();
    assert!(matches!(proposed, ProposeError::Unknown { .. } | ProposeError::NotLeader { .. }), "{proposed}");

    // The others go on, and nothing the old leader could not commit comes back.
    cluster.propose(domain("meanwhile")).await;
    cluster.0[old].links.mend();
    cluster.everybody_has("meanwhile").await;
    cluster.propose(domain("later")).await;
    cluster.everybody_has("later").await;
    assert_eq!(states_differing(&cluster).await, 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_says_who_leads() {
    let mut cluster = Cluster::start(3, 10_000).await;
    let leader = cluster.leader().await;
    let follower = cluster.0[(leader + 1) % 3].group();
    let knows = || follower.leader().borrow().leader.clone();
    let named = until("the follower to know", knows).await;
    assert_eq!(named.id, cluster.0[leader].identity.node);
    match follower.propose(domain("x")).await.unwrap_err() {
        ProposeError::NotLeader { leader: Some(info), term } => {
            assert_eq!(info, named);
            assert_eq!(info.api_address, format!("api-of-{}", named.id));
            assert!(term > 0);
        }
        other => panic!("{other}"),
    }
    assert!(matches!(follower.read(|_| ()).await, Err(ReadError::NotLeader { .. })));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_shutdown_hands_over_first() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.propose(domain("before")).await;
    cluster.everybody_has("before").await;
    let leader = cluster.leader().await;
    let began = Instant::now();
    let group = cluster.0[leader].group.take().unwrap();
    let (_, ()) = tokio::join!(group.shutdown(), async {
        cluster.propose(domain("after")).await;
        println!("writes again {} ms after the leader was told to stop", began.elapsed().as_millis());
    });
    // An election would not have begun before the lease of the old leader ended.
    assert!(cluster.0[leader].group.is_none());
    cluster.everybody_has("after").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_proposals_share_syncs() {
    let mut cluster = Cluster::start(3, 10_000).await;
    let group = cluster.0[cluster.leader().await].group().clone();
    let before = group.sync_count();
    let began = Instant::now();
    let proposals = (0..500).map(|number| {
        let group = group.clone();
        async move { group.propose(domain(&format!("d{}", number % 50))).await.unwrap() }
    });
    futures::future::join_all(proposals).await;
    let (count, took) = (group.sync_count(), began.elapsed());
    let (writes, syncs) = (count.writes - before.writes, count.syncs - before.syncs);
    println!("500 commands: {writes} writes in {syncs} syncs, {} ms", took.as_millis());
    assert!(syncs < 250, "{syncs} syncs for 500 commands");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_knows_it_and_the_others_hear_of_one_another() {
    let mut cluster = Cluster::start(3, 10_000).await;
    let leader = cluster.leader().await;
    let long = Duration::from_secs(2);
    // Both believe for good what they knew last: one that it follows a leader, one that it leads.
    for cut in [(leader + 1) % 3, leader] {
        cluster.0[cut].links.cut();
        until("silence", || (cluster.0[cut].group().silence() > long).then_some(())).await;
        let others = cluster.0.iter().enumerate().filter(|(member, _)| *member != cut);
        for (_, member) in others {
            assert!(member.group().silence() < long, "{:?}", member.group().silence());
        }
        cluster.0[cut].links.mend();
        until("news", || (cluster.0[cut].group().silence() < long).then_some(())).await;
    }
    cluster.stop().await;
}
