//! What watchers may rely on: every change once and in order whoever leads, a word when they are too slow or too late,
//! and a leader that does not wait for them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pflex_common::net::Endpoint;
use pflex_proto::{
    pb::{
        MapUpdate, TransferLeaderRequest, WatchReply, WatchRequest, cluster_client::ClusterClient,
        map_client::MapClient, watch_reply::Event,
    },
    status::{self, Reason},
};
use tonic::{Status, Streaming};

use crate::cluster::{Cluster, PATIENCE};

const LONG: Duration = Duration::from_secs(60);

async fn open(api: &Endpoint, from_revision: u64) -> Result<Streaming<WatchReply>, Status> {
    let request = WatchRequest { from_revision, ..Default::default() };
    MapClient::new(api.channel()).watch(request).await.map(tonic::Response::into_inner)
}

/// Everything one watcher of one member was told since its full map, by revision.
#[derive(Default)]
struct Told {
    first: u64,
    newest: u64,
    updates: BTreeMap<u64, MapUpdate>,
    relisted: usize,
}

impl Told {
    /// # Panics
    /// When something is told twice or out of order.
    fn take(&mut self, event: Event) {
        match event {
            Event::Full(map) => {
                assert!(map.revision >= self.newest, "a full map of {} after {}", map.revision, self.newest);
                if self.newest > 0 {
                    self.relisted += 1;
                }
                (self.first, self.newest) = (map.revision, map.revision);
                self.updates.clear();
            }
            Event::Update(update) => {
                assert!(update.revision > self.newest, "update {} after {}", update.revision, self.newest);
                self.newest = update.revision;
                self.updates.insert(update.revision, update);
            }
            Event::Progress(progress) => {
                assert!(progress.revision <= self.newest, "progress {} ahead of {}", progress.revision, self.newest);
            }
        }
    }
}

/// Watches one member, again and again from where it was, until `goal` is told.
async fn follow(api: Endpoint, goal: Arc<AtomicU64>) -> Told {
    let mut told = Told::default();
    let mut from = 0;
    while goal.load(Ordering::Acquire) == 0 || told.newest < goal.load(Ordering::Acquire) {
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
        loop {
            match tokio::time::timeout(Duration::from_millis(1_500), stream.message()).await {
                Ok(Ok(Some(WatchReply { event: Some(event) }))) => told.take(event),
                Ok(Ok(_) | Err(_)) | Err(_) => break,
            }
            let goal = goal.load(Ordering::Acquire);
            if goal > 0 && told.newest >= goal {
                break;
            }
        }
        from = told.newest;
    }
    told
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
    let watchers: Vec<_> =
        apis.iter().flat_map(|api| [api, api]).map(|api| tokio::spawn(follow(api.clone(), goal.clone()))).collect();

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
    cluster.create_domain("last").await.unwrap();
    goal.store(cluster.status().await.revision - 1, Ordering::Release);
    // Something after the goal, so that whoever lacks only commands without a change of the map gets there.
    cluster.create_domain("after").await.unwrap();

    let mut all = Vec::new();
    for watcher in watchers {
        all.push(tokio::time::timeout(LONG, watcher).await.expect("every watcher gets there").unwrap());
    }
    // Where two were told of the same revision they were told the same, and neither lacks what the other has.
    for one in &all {
        for other in &all {
            let from = one.first.max(other.first);
            let to = one.newest.min(other.newest);
            let part = |told: &Told| -> Vec<MapUpdate> {
                told.updates.range(from + 1..=to).map(|(_, update)| update.clone()).collect()
            };
            assert!(part(one) == part(other), "two watchers were told different things between {from} and {to}");
        }
    }
    // Nothing acknowledged is missing from the watcher that saw the most.
    let longest = all.iter().min_by_key(|told| told.first).unwrap();
    let mut names: Vec<&str> =
        longest.updates.values().flat_map(|update| &update.domains).map(|domain| domain.name.as_str()).collect();
    let told = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), told, "a change was told twice");
    let relisted: usize = all.iter().map(|told| told.relisted).sum();
    if longest.relisted == 0 {
        let missing: Vec<_> = made.iter().filter(|name| names.binary_search(&name.as_str()).is_err()).collect();
        assert!(missing.is_empty(), "never told: {missing:?}");
    }
    println!("{} changes, {} watchers, {relisted} full maps again", made.len(), all.len());
    Arc::into_inner(cluster).unwrap().stop().await;
}

/// A client whose windows are so small that a few replies fill them.
async fn narrow(api: &Endpoint) -> MapClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{api}")).unwrap();
    MapClient::new(endpoint.initial_stream_window_size(1_024).connect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_off_and_told_and_goes_on_without_a_gap() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let api = cluster.members.lock().unwrap()[0].api();
    let mut stalled = narrow(&api).await.watch(WatchRequest::default()).await.unwrap().into_inner();
    let mut told = Told::default();
    told.take(stalled.message().await.unwrap().unwrap().event.unwrap());
    assert!(told.first > 0);

    // It reads nothing, and nobody waits for it. Enough changes to fill its window and its queue.
    let mut slowest = Duration::ZERO;
    for n in 0..100 {
        let began = Instant::now();
        cluster.create_domain(&format!("d{n}-{}", "x".repeat(40))).await.unwrap();
        slowest = slowest.max(began.elapsed());
    }
    println!("slowest of 100 writes beside a stalled watcher: {} ms", slowest.as_millis());
    // Longer than a stalled stream is kept: only that makes the server let go.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let end = loop {
        match stalled.message().await {
            Ok(Some(reply)) => told.take(reply.event.unwrap()),
            Ok(None) => panic!("it ended without a word"),
            Err(end) => break end,
        }
    };
    assert_eq!(status::reason(&end), Some(Reason::Overloaded), "{end:?}");
    assert!(status::retry_after_ms(&end).is_some());
    assert!(told.updates.len() < 100, "it never stalled");
    let before = told.updates.len();

    let mut again = open(&api, told.newest).await.unwrap();
    while told.updates.len() < 100 {
        told.take(again.message().await.unwrap().unwrap().event.unwrap());
    }
    assert_eq!(told.relisted, 0);
    let names: Vec<&str> = told.updates.values().flat_map(|u| &u.domains).map(|d| d.name.as_str()).collect();
    for (n, name) in names.iter().enumerate() {
        assert!(name.starts_with(&format!("d{n}-")), "{name} in place {n}");
    }
    println!("{before} of 100 were on their way when it was cut off");
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
                    if !matches!(reply.event, Some(Event::Progress(_))) {
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
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
