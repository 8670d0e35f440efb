//! What watchers of the map are told while the leader is killed, with real processes: every change once and in order.
//!
//! `PFLEX_TEST_SEED` repeats what is spoiled in the histories to see that the checker notices.

mod kit;
#[path = "../mdm-raft/tests/api/told.rs"]
mod told;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use kit::Cluster;
use pflex_common::{
    mdm::{MdmClient, Patience},
    net::Endpoint,
};
use pflex_proto::{
    pb::{CreateDomainRequest, WatchRequest, admin_client::AdminClient, map_client::MapClient},
    status::{self, Reason},
};
use rand::{SeedableRng as _, rngs::StdRng};
use told::{History, can_be_spoiled, check, spoiled_histories_are_found_out};

const KILLS: usize = 4;
/// There may be 1,024.
const MOST_DOMAINS: usize = 1_000;
const PATIENCE: Patience = Patience::within(Duration::from_secs(60));
/// Servers say something each second.
const SILENCE: Duration = Duration::from_secs(3);

/// Watches from where it was, again and again, until it has `goal`: one member, or with each stream the next one, as
/// clients do. What it was told so far can be seen.
async fn follow(members: Vec<Endpoint>, first: usize, roams: bool, goal: Arc<AtomicU64>, history: Arc<Mutex<History>>) {
    let newest = || history.lock().expect("nobody panics with it").newest;
    let there = || {
        let goal = goal.load(Ordering::Acquire);
        goal > 0 && newest() >= goal
    };
    let (mut from_revision, mut at) = (0, first);
    while !there() {
        let request = WatchRequest { from_revision, ..Default::default() };
        let opened = MapClient::new(members[at % members.len()].channel()).watch(request).await;
        at += usize::from(roams);
        let mut stream = match opened {
            Ok(stream) => stream.into_inner(),
            Err(error) => {
                if status::reason(&error) == Some(Reason::Compacted) {
                    from_revision = 0;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        while !there() {
            match tokio::time::timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(reply))) => history.lock().expect("nobody panics with it").take(reply),
                Ok(Ok(None) | Err(_)) | Err(_) => break,
            }
        }
        from_revision = newest();
    }
}

async fn create_domain(client: &MdmClient, name: &str) {
    let created = client.write(PATIENCE, |connection, request| {
        let create = CreateDomainRequest { request: Some(request), name: name.to_owned(), if_not_exists: false };
        async move { AdminClient::new(connection).create_domain(create).await }
    });
    created.await.expect("a write waits until somebody leads");
}

/// Makes domains, one after the other; returns their names.
async fn write(n: usize, members: Vec<Endpoint>, over: Arc<AtomicBool>) -> Vec<String> {
    let client = MdmClient::new(format!("writer {n}"), members);
    let mut made = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let name = format!("w{n}-{}", made.len());
        create_domain(&client, &name).await;
        made.push(name);
        // A few hundred in all: there may be a thousand domains.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    made
}

#[test]
fn watchers_are_told_every_change_once_and_in_order_while_leaders_are_killed() {
    let seed = std::env::var("PFLEX_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number"));
    println!("PFLEX_TEST_SEED={seed}");
    let cluster = Cluster::start_of("--mdm 3 --sds 2 --sdc 1");
    let members: Vec<Endpoint> = (0..3).map(|k| Endpoint::new("127.0.0.1", cluster.at(8001 + 10 * k).port())).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let (goal, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let told: Vec<Arc<Mutex<History>>> = (0..6).map(|_| Arc::default()).collect();
    let watching = told.iter().enumerate();
    let watchers: Vec<_> = watching
        .map(|(n, told)| runtime.spawn(follow(members.clone(), n, n >= 3, goal.clone(), told.clone())))
        .collect();
    let so_far = || told.iter().map(|told| told.lock().expect("nobody panics with it").clone()).collect::<Vec<_>>();
    let writers: Vec<_> = (0..3).map(|n| runtime.spawn(write(n, members.clone(), over.clone()))).collect();
    for round in 0..KILLS {
        let leader = cluster.json("cluster status")["leader"].as_u64().expect("somebody leads");
        cluster.kill(&format!("mdm{leader}"));
        // Somebody else leads and is told of changes, and then the member comes back.
        cluster.expect(0, &format!("domain create between-{round}"));
        cluster.up(0);
    }
    over.store(true, Ordering::Relaxed);
    let histories: Vec<History> = runtime.block_on(async {
        let mut made: Vec<String> = (0..KILLS).map(|round| format!("between-{round}")).collect();
        for writer in writers {
            made.extend(writer.await.expect("it writes"));
        }
        let client = MdmClient::new("last", members);
        // A member that has just started holds few changes, and a watcher that was behind begins anew with a full map.
        for n in 0.. {
            if can_be_spoiled(&so_far(), &made) {
                break;
            }
            let name = format!("last-{n}");
            create_domain(&client, &name).await;
            made.push(name);
            assert!(made.len() < MOST_DOMAINS, "no watcher is told of all these changes");
        }
        let revision = cluster.json("cluster status")["revision"].as_u64().expect("a number");
        // Not every entry of the log changes the map: one that does comes after the goal.
        goal.store(revision, Ordering::Release);
        create_domain(&client, "after").await;
        for watcher in watchers {
            watcher.await.expect("it watches");
        }
        let histories: Vec<History> = so_far();
        assert_eq!(check(&histories, &made), Ok(()), "seed {seed}");
        spoiled_histories_are_found_out(&histories, &made, &mut StdRng::seed_from_u64(seed));
        histories
    });
    let relisted: Vec<usize> = histories.iter().map(History::relisted).collect();
    let updates: Vec<usize> = histories.iter().map(|history| history.updates().count()).collect();
    println!("{KILLS} leaders killed; updates told to each watcher {updates:?}, full maps again {relisted:?}");
}
