//! What watchers may rely on: every change once and in order whoever leads, a word when they are too slow or too late,
//! and a leader that does not wait for them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pflex_common::net::Endpoint;
use pflex_proto::{
    pb::{
        TransferLeaderRequest, WatchReply, WatchRequest, cluster_client::ClusterClient, map_client::MapClient,
        watch_reply::Event,
    },
    status::{self, Reason},
};
use rand::{SeedableRng as _, rngs::StdRng};
use tonic::{Status, Streaming};

use crate::{
    cluster::{Cluster, PATIENCE},
    told::{History, can_be_spoiled, check, spoiled_histories_are_found_out},
};

const LONG: Duration = Duration::from_secs(60);
/// There may be 1,024.
const MOST_DOMAINS: usize = 1_000;

/// As clients do: a member that has not heard yet of what the watcher has seen is asked again.
pub(crate) async fn open_when_there(api: &Endpoint, from_revision: u64) -> Streaming<WatchReply> {
    loop {
        match open(api, from_revision).await {
            Ok(stream) => return stream,
            Err(error) if status::reason(&error) == Some(Reason::Behind) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn open(api: &Endpoint, from_revision: u64) -> Result<Streaming<WatchReply>, Status> {
    let request = WatchRequest { from_revision, ..Default::default() };
    MapClient::new(api.channel()).watch(request).await.map(tonic::Response::into_inner)
}

/// Watches one member, again and again from where it was, until `goal` is told. What it was told so far can be seen.
async fn follow(api: Endpoint, goal: Arc<AtomicU64>, history: Arc<Mutex<History>>) {
    let mut from = 0;
    let newest = || history.lock().unwrap().newest;
    let there = || {
        let goal = goal.load(Ordering::Acquire);
        goal > 0 && newest() >= goal
    };
    while !there() {
        let mut stream = match open(&api, from).await {
            Ok(stream) => stream,
            Err(error) => {
                if status::reason(&error) == Some(Reason::Compacted) {
                    assert!(status::oldest_revision(&error).unwrap().get() > from, "{error:?}");
                    from = 0;
                } else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                continue;
            }
        };
        while !there() {
            match tokio::time::timeout(Duration::from_millis(1_500), stream.message()).await {
                Ok(Ok(Some(reply))) => history.lock().unwrap().take(reply),
                Ok(Ok(None) | Err(_)) | Err(_) => break,
            }
        }
        from = newest();
    }
}

async fn transfer(cluster: &Cluster) {
    // Refused when nobody can take over just then; the next round tries again.
    drop(
        cluster
            .client
            .read(PATIENCE, |connection| async move {
                ClusterClient::new(connection).transfer_leader(TransferLeaderRequest { to: 0 }).await
            })
            .await,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_all_members_are_told_the_same_once_and_in_order_while_leaders_change() {
    let cluster = Arc::new(Cluster::start(3).await);
    cluster.create_pool("p", 8).await;
    let goal = Arc::new(AtomicU64::new(0));
    let apis: Vec<Endpoint> = cluster.members.lock().unwrap().iter().map(super::cluster::Member::api).collect();
    let histories: Vec<Arc<Mutex<History>>> = (0..2 * apis.len()).map(|_| Arc::default()).collect();
    let watching = apis.iter().flat_map(|api| [api, api]).zip(&histories);
    let watchers: Vec<_> =
        watching.map(|(api, history)| tokio::spawn(follow(api.clone(), goal.clone(), history.clone()))).collect();
    let so_far = || histories.iter().map(|history| history.lock().unwrap().clone()).collect::<Vec<History>>();

    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (cluster, over) = (Arc::clone(&cluster), Arc::clone(&over));
            tokio::spawn(async move {
                let mut made = Vec::new();
                for n in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("w{writer}-{n}");
                    cluster.create_domain(&name).await.unwrap();
                    made.push(name);
                }
                made
            })
        })
        .collect();
    for round in 0..6 {
        if round % 2 == 0 {
            transfer(&cluster).await;
        } else {
            let at = cluster.stop_leader().await;
            cluster.restart(at);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    over.store(true, Ordering::Relaxed);
    let mut made = Vec::new();
    for writer in writers {
        made.extend(writer.await.unwrap());
    }
    // Members that have just started hold few changes, and a watcher that was behind begins anew with a full map.
    for n in 0.. {
        if can_be_spoiled(&so_far(), &made) {
            break;
        }
        let name = format!("last-{n}");
        cluster.create_domain(&name).await.unwrap();
        made.push(name);
        assert!(made.len() < MOST_DOMAINS, "no watcher is told of all these changes");
    }
    goal.store(cluster.status().await.revision - 1, Ordering::Release);
    // Something after the goal, so that whoever lacks only commands without a change of the map gets there.
    cluster.create_domain("after").await.unwrap();

    for watcher in watchers {
        tokio::time::timeout(LONG, watcher).await.expect("every watcher gets there").unwrap();
    }
    let all = so_far();
    let seed = std::env::var("PFLEX_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("PFLEX_TEST_SEED={seed}");
    assert_eq!(check(&all, &made), Ok(()));
    spoiled_histories_are_found_out(&all, &made, &mut StdRng::seed_from_u64(seed));
    let relisted: usize = all.iter().map(History::relisted).sum();
    println!("{} changes, {} watchers, {relisted} full maps again", made.len(), all.len());
    Arc::into_inner(cluster).unwrap().stop().await;
}

/// A client whose windows are so small that a few replies fill them.
async fn narrow(api: &Endpoint) -> MapClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{api}")).unwrap();
    MapClient::new(endpoint.initial_stream_window_size(1_024).connect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_watcher_comes_in_one_message() {
    let cluster = Cluster::start(1).await;
    let api = cluster.members.lock().unwrap()[0].api();
    let mut history = History::default();
    history.take(open(&api, 0).await.unwrap().message().await.unwrap().unwrap());
    let made: Vec<String> = (0..50).map(|n| format!("d{n}")).collect();
    for name in &made {
        cluster.create_domain(name).await.unwrap();
    }
    let mut again = open(&api, history.newest).await.unwrap();
    while history.messages == 0 {
        history.take(again.message().await.unwrap().unwrap());
    }
    assert_eq!(check(&[history.clone()], &made), Ok(()));
    assert_eq!(history.updates().filter(|update| !update.domains.is_empty()).count(), made.len());

    // And who reads all the time gets what comes within a moment together.
    let begun = history.messages;
    let more: Vec<String> = (0..200).map(|n| format!("e{n}")).collect();
    let writing = async {
        for names in more.chunks(20) {
            let all = futures::future::join_all(names.iter().map(|name| cluster.create_domain(name))).await;
            all.into_iter().for_each(|one| one.unwrap());
        }
    };
    let reading = async {
        while !history.updates().any(|update| update.domains.iter().any(|domain| domain.name == more[199])) {
            history.take(again.message().await.unwrap().unwrap());
        }
    };
    tokio::join!(writing, reading);
    println!("{} changes in {} messages", more.len(), history.messages - begun);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_off_and_told_and_goes_on_without_a_gap() {
    const CHANGES: usize = 300;
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let api = cluster.members.lock().unwrap()[0].api();
    let mut stalled = narrow(&api).await.watch(WatchRequest::default()).await.unwrap().into_inner();
    let mut told = History::default();
    told.take(stalled.message().await.unwrap().unwrap());
    assert!(told.newest > 0);

    // It reads nothing, and nobody waits for it. Enough changes to fill its window and its queue.
    let mut slowest = Duration::ZERO;
    for n in 0..CHANGES {
        let began = Instant::now();
        cluster.create_domain(&format!("d{n}-{}", "x".repeat(40))).await.unwrap();
        slowest = slowest.max(began.elapsed());
    }
    println!("slowest of {CHANGES} writes beside a stalled watcher: {} ms", slowest.as_millis());
    // Longer than a stalled stream is kept: only that makes the server let go.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let end = loop {
        match stalled.message().await {
            Ok(Some(reply)) => told.take(reply),
            Ok(None) => panic!("it ended without a word"),
            Err(end) => break end,
        }
    };
    assert_eq!(status::reason(&end), Some(Reason::Overloaded), "{end:?}");
    assert!(status::retry_after_ms(&end).is_some());
    let before = told.updates().count();
    assert!(before < CHANGES, "it never stalled");

    let mut again = open(&api, told.newest).await.unwrap();
    while told.updates().count() < CHANGES {
        told.take(again.message().await.unwrap().unwrap());
    }
    assert_eq!(told.relisted(), 0);
    let names: Vec<&str> = told.updates().flat_map(|u| &u.domains).map(|d| d.name.as_str()).collect();
    for (n, name) in names.iter().enumerate() {
        assert!(name.starts_with(&format!("d{n}-")), "{name} in place {n}");
    }
    println!("{before} of {CHANGES} were on their way when it was cut off");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_is_gone_says_so_and_names_the_oldest_that_is_held() {
    let cluster = Cluster::start(1).await;
    cluster.create_domain("e").await.unwrap();
    let api = cluster.members.lock().unwrap()[0].api();
    cluster.stop_leader().await;
    cluster.restart(0);
    // A restarted member holds no updates of before.
    let gone = loop {
        match open(&api, 1).await {
            Ok(_) => panic!("it cannot have what came after revision 1"),
            Err(error) if status::reason(&error) == Some(Reason::Compacted) => break error,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let oldest = status::oldest_revision(&gone).unwrap().get();
    assert!(oldest > 1 && gone.message().contains(&oldest.to_string()), "{gone:?}");
    assert!(open(&api, oldest).await.is_ok(), "from there it goes on");
    cluster.stop().await;
}

/// CPU time of this process's threads, in ms; those whose name begins with `part` or all others.
fn cpu_ms(part: &str, is: bool) -> u64 {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else { continue };
        if name.starts_with(part) == is {
            let fields: Vec<&str> = rest.split_whitespace().collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    ticks * 10
}

/// A measurement: run with `--run-ignored all --no-capture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of a minute"]
async fn what_a_change_costs_with_two_thousand_watchers() {
    const WATCHERS: u64 = 2_048;
    const CHANGES: u64 = 50;
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let api = cluster.members.lock().unwrap()[0].api();
    let mut clients = tokio::runtime::Builder::new_multi_thread();
    let clients = clients.worker_threads(2).thread_name("clients").enable_all().build().unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let lists = Instant::now();
    for _ in 0..WATCHERS / 64 {
        let channel = api.channel();
        for _ in 0..64 {
            let (seen, channel) = (Arc::clone(&seen), channel.clone());
            clients.spawn(async move {
                let mut stream = MapClient::new(channel).watch(WatchRequest::default()).await.unwrap().into_inner();
                while let Some(reply) = stream.message().await.unwrap() {
                    let full = u64::from(matches!(reply.event, Some(Event::Full(_))));
                    seen.fetch_add(full + reply.updates.len() as u64, Ordering::Relaxed);
                }
            });
        }
    }
    let until = async |goal: u64| {
        while seen.load(Ordering::Relaxed) < goal {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, until(WATCHERS)).await.unwrap();
    println!("{WATCHERS} full maps in {} ms", lists.elapsed().as_millis());
    let idle = (cpu_ms("clients", false), Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let per_second = (cpu_ms("clients", false) - idle.0) * 1_000 / u64::try_from(idle.1.elapsed().as_millis()).unwrap();
    println!("idle: {per_second} ms of server CPU a second");
    let (before, began) = (cpu_ms("clients", false), Instant::now());
    for n in 0..CHANGES {
        cluster.create_domain(&format!("d{n}")).await.unwrap();
        tokio::time::timeout(LONG, until(WATCHERS * (n + 2))).await.unwrap();
    }
    let (cpu, elapsed) = (cpu_ms("clients", false) - before, began.elapsed());
    println!("{CHANGES} changes to all in {} ms; {} ms of server CPU each", elapsed.as_millis(), cpu / CHANGES);
    clients.shutdown_background();
    cluster.stop().await;
}
