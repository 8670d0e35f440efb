//! Exactly-once under everything at once: requests sent again and again, to anybody, given up half-way and sent late,
//! while leaders change and all members restart; and what is said when the session is gone (S17).
//!
//! Each client renames its own volume along a chain of names. A rename that is applied twice, lost, or out of its place
//! breaks the chain: the next one finds no volume of its name. The audit has one event for each.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pflex_common::net::Endpoint;
use pflex_proto::{
    pb::{
        ListEventsRequest, ListRequest, OpenClientRequest, RenameRequest, RequestId, TransferLeaderRequest, Volume,
        admin_client::AdminClient, cluster_client::ClusterClient, insight_client::InsightClient,
        sessions_client::SessionsClient,
    },
    status::{self, Reason},
};
use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tonic::{Code, Status, transport::Channel};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

const CLIENTS: usize = 3;
const ROUNDS: usize = 6;
const PATIENT: Duration = Duration::from_secs(60);

/// `PFLEX_TEST_SEED` runs one again.
fn seed() -> u64 {
    let given = std::env::var("PFLEX_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random());
    println!("PFLEX_TEST_SEED={seed}");
    seed
}

struct Client {
    name: usize,
    session: u64,
    members: Vec<AdminClient<Channel>>,
    rng: StdRng,
    /// Renames that were answered.
    done: u64,
    late: u64,
    unanswered: u64,
}

impl Client {
    fn step(&self, to: u64) -> RenameRequest {
        let (name, sequence) = (self.name, to);
        RenameRequest {
            request: Some(RequestId { client_id: self.session, sequence, low_water: sequence }),
            name: format!("c{name}-{}", to - 1),
            new_name: format!("c{name}-{to}"),
        }
    }

    /// To anybody, and perhaps not waited for.
    async fn send(&mut self, message: RenameRequest) -> Result<Volume, Status> {
        let mut member = self.members.choose(&mut self.rng).unwrap().clone();
        let patience = Duration::from_millis(self.rng.random_range(1..400));
        match tokio::time::timeout(patience, member.rename_volume(message)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::cancelled("given up")),
        }
    }

    /// Until there is a definite answer.
    async fn rename(&mut self, message: RenameRequest) -> Result<Volume, Reason> {
        let deadline = Instant::now() + PATIENT;
        loop {
            assert!(Instant::now() < deadline, "no answer to {message:?}");
            match self.send(message.clone()).await {
                Ok(volume) => return Ok(volume),
                Err(error) => match status::reason(&error) {
                    None | Some(Reason::NotLeader | Reason::UnknownOutcome | Reason::NoQuorum | Reason::Overloaded) => {
                        self.unanswered += u64::from(error.code() == Code::Cancelled);
                    }
                    Some(definite) => return Err(definite),
                },
            }
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..20))).await;
        }
    }

    async fn run(mut self, over: Arc<AtomicBool>) -> Self {
        while !over.load(Ordering::Relaxed) {
            let message = self.step(self.done + 1);
            let volume = self.rename(message.clone()).await.expect("the chain holds");
            assert_eq!(volume.name, message.new_name);
            self.done += 1;
            if self.rng.random_bool(0.3) {
                // As from a network that delivers late: the same answer, and nothing happens.
                let again = self.rename(message.clone()).await;
                assert_eq!(again.map(|volume| volume.id), Ok(volume.id), "the first outcome");
                self.late += 1;
            }
            if self.done > 1 && self.rng.random_bool(0.3) {
                let older = self.step(self.done - 1);
                assert_eq!(self.rename(older).await.unwrap_err(), Reason::OutcomeForgotten);
                self.late += 1;
            }
        }
        self
    }
}

async fn open_session(cluster: &Cluster, name: String) -> u64 {
    let opened = cluster.client.read(PATIENCE, |connection| {
        let request = OpenClientRequest { name: name.clone() };
        async move { SessionsClient::new(connection).open_client(request).await }
    });
    opened.await.unwrap().client_id
}

async fn volumes(cluster: &Cluster) -> Vec<Volume> {
    let listed = cluster.client.read(PATIENCE, |connection| async move {
        AdminClient::new(connection).list_volumes(ListRequest::default()).await
    });
    listed.await.unwrap().volumes
}

/// How often each name was given by a rename, as the audit has it.
async fn renames(cluster: &Cluster) -> Vec<String> {
    let (mut after, mut names) = (0, Vec::new());
    loop {
        let request = ListEventsRequest { after_revision: after, limit: 4_096, ..Default::default() };
        let listed = cluster.client.read(PATIENCE, |connection| {
            let request = request.clone();
            async move { InsightClient::new(connection).events(request).await }
        });
        let reply = listed.await.unwrap();
        assert!(!reply.more, "the test makes fewer events than one page has");
        let renamed = reply.events.iter().filter(|event| event.kind == "volume.rename");
        names.extend(renamed.map(|event| event.object.trim_start_matches("volume ").to_owned()));
        if reply.events.is_empty() || reply.revision <= after {
            return names;
        }
        after = reply.revision;
    }
}

/// What is left of a run, and what must be true of it. The histories alone are judged, so that the test can also show
/// that it would have found a bug.
#[derive(Clone)]
struct Seen {
    /// How many renames each client got an answer to.
    answered: Vec<u64>,
    /// Of the volumes, in order.
    names: Vec<String>,
    /// The names that renames gave, as the audit has them.
    renamed: Vec<String>,
}

impl Seen {
    fn check(&self) -> Result<(), String> {
        let expected: Vec<String> =
            (0..).zip(&self.answered).map(|(n, done): (u64, _)| format!("c{n}-{done}")).collect();
        if self.names != expected {
            return Err(format!("the volumes are {:?}, not {expected:?}", self.names));
        }
        for (n, done) in self.answered.iter().enumerate() {
            let prefix = format!("c{n}-");
            let own: Vec<&String> = self.renamed.iter().filter(|name| name.starts_with(&prefix)).collect();
            let each: Vec<String> = (1..=*done).map(|step| format!("{prefix}{step}")).collect();
            if !own.iter().copied().eq(&each) {
                return Err(format!("client {n} had {done} answers, and these were executed: {own:?}"));
            }
        }
        Ok(())
    }

    /// What a group would leave that executes a command twice, loses one, or answers before the log has it.
    fn spoiled_it_is_found_out(&self, rng: &mut impl Rng) {
        let at = rng.random_range(0..self.renamed.len());
        let mine = self.renamed[at].split('-').next().unwrap().to_owned();
        let spoil = |what: &str, change: &dyn Fn(&mut Self)| {
            let mut bad = self.clone();
            change(&mut bad);
            assert!(bad.check().is_err(), "{what} of {} was not found", self.renamed[at]);
        };
        spoil("a rename executed twice", &|bad| bad.renamed.insert(at + 1, bad.renamed[at].clone()));
        spoil("a rename executed again much later", &|bad| bad.renamed.push(bad.renamed[at].clone()));
        spoil("an acknowledged rename that is lost", &|bad| drop(bad.renamed.remove(at)));
        spoil("two renames out of order", &|bad| {
            let own: Vec<usize> = (0..bad.renamed.len()).filter(|n| bad.renamed[*n].starts_with(&mine)).collect();
            bad.renamed.swap(own[0], own[1]);
        });
        spoil("a volume that went back", &|bad| {
            let volume = bad.names.iter_mut().find(|name| name.starts_with(&mine)).unwrap();
            *volume = format!("{mine}-0");
        });
        spoil("a rename that nobody had an answer to", &|bad| bad.renamed.push(format!("{mine}-1000000")));
    }
}

async fn fault(cluster: &Cluster, rng: &mut impl Rng) -> &'static str {
    match rng.random_range(0..3) {
        0 => {
            let transfer = cluster.client.read(PATIENCE, |connection| async move {
                ClusterClient::new(connection).transfer_leader(TransferLeaderRequest { to: 0 }).await
            });
            // Who should take over may just be starting.
            drop(transfer.await);
            "transfer"
        }
        1 => {
            let at = cluster.stop_leader().await;
            cluster.restart(at);
            "restart of the leader"
        }
        _ => {
            let mut members = std::mem::take(&mut *cluster.members.lock().unwrap());
            futures::future::join_all(members.iter_mut().map(super::cluster::Member::stop)).await;
            members.iter_mut().for_each(super::cluster::Member::start);
            *cluster.members.lock().unwrap() = members;
            "restart of all"
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_command_is_lost_or_applied_twice_whatever_is_sent_again() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let one = FakeSds::create(&cluster, 1).await;
    let _two = FakeSds::create(&cluster, 2).await;
    one.sees(|map| map.pgs.len() == 8).await;
    let apis: Vec<Endpoint> = cluster.members.lock().unwrap().iter().map(super::cluster::Member::api).collect();
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for name in 0..CLIENTS {
        cluster.create_volume(&format!("c{name}-0"), GIB).await.unwrap();
        let session = open_session(&cluster, format!("client {name}")).await;
        let members = apis.iter().map(|api| AdminClient::new(api.channel())).collect();
        let rng = StdRng::seed_from_u64(seed.wrapping_add(1 + name as u64));
        let client = Client { name, session, members, rng, done: 0, late: 0, unanswered: 0 };
        clients.push(tokio::spawn(client.run(Arc::clone(&over))));
    }
    for _ in 0..ROUNDS {
        println!("{}", fault(&cluster, &mut rng).await);
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..700))).await;
    }
    over.store(true, Ordering::Relaxed);
    let mut done = Vec::new();
    for client in clients {
        done.push(client.await.unwrap());
    }

    let mut names: Vec<String> = volumes(&cluster).await.into_iter().map(|volume| volume.name).collect();
    names.sort();
    let seen = Seen {
        answered: done.iter().map(|client| client.done).collect(),
        names: names.clone(),
        renamed: renames(&cluster).await,
    };
    assert_eq!(seen.check(), Ok(()), "seed {seed}");
    for client in &done {
        println!("{}: {} renames, {} sent late, {} given up", client.name, client.done, client.late, client.unanswered);
        assert!(client.done > 1);
    }
    seen.spoiled_it_is_found_out(&mut rng);

    // Log time passes the sessions' hour: what was never answered is said to be unknown, and is not done.
    let last = done[0].step(done[0].done + 1);
    let stamp = one.stamp.borrow().0;
    let goal = stamp + 3_600_001 + 60_000;
    one.says.send_modify(|says| says.log_time_ms = goal);
    let mut stamps = one.stamp.clone();
    let passed = tokio::time::timeout(PATIENT, stamps.wait_for(|stamp| stamp.0 >= goal)).await;
    passed.expect("log time goes on").unwrap();
    let client = &mut done[0];
    let answered = client.step(client.done);
    assert_eq!(client.rename(last).await.unwrap_err(), Reason::SessionExpired);
    assert_eq!(client.rename(answered).await.unwrap_err(), Reason::SessionExpired, "for good");
    let mut after: Vec<String> = volumes(&cluster).await.into_iter().map(|volume| volume.name).collect();
    after.sort();
    assert_eq!(after, names, "nothing was done in an expired session");
    cluster.stop().await;
}
