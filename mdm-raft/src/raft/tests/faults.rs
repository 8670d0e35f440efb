//! Random faults while clients write and read: nothing acknowledged is lost, no linearizable read is stale, all members
//! end equal.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::RngExt as _;

use super::kit::{Cluster, domain, states_differing};
use crate::{
    raft::RaftGroup,
    state::State,
    testing::{self, Seeds},
};

const STEPS: usize = 8;
const WRITERS: usize = 12;

/// What the clients know, and how they find the members.
#[derive(Default)]
struct World {
    members: Mutex<Vec<Option<RaftGroup>>>,
    acknowledged: Mutex<BTreeSet<String>>,
    stale: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl World {
    fn follow(&self, cluster: &Cluster) {
        *self.members.lock().unwrap() = cluster.0.iter().map(|member| member.group.clone()).collect();
    }

    fn pick(&self) -> Option<RaftGroup> {
        let members = self.members.lock().unwrap();
        members[rand::rng().random_range(0..members.len())].clone()
    }

    fn missing(&self, state: &State) -> Vec<String> {
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.iter().filter(|name| state.domain_by_name(name).is_none()).cloned().collect()
    }
}

/// Asks any member, also ones that are cut off or do not lead, to write, and then to show what was acknowledged.
async fn client(world: Arc<World>, number: usize) {
    for attempt in 0.. {
        if world.over.load(Ordering::Relaxed) {
            return;
        }
        let Some(group) = world.pick() else { continue };
        let name = format!("c{number}-{attempt}");
        if group.propose(domain(&name)).await.is_ok_and(|outcome| outcome.error().is_none()) {
            world.acknowledged.lock().unwrap().insert(name);
        }
        let Some(group) = world.pick() else { continue };
        // Taken before the read begins: all of it must be seen.
        let known = world.acknowledged.lock().unwrap().clone();
        let unseen = |state: &State| known.iter().find(|name| state.domain_by_name(name).is_none()).cloned();
        if let Ok((_, Some(name))) = group.read(unseen).await {
            world.stale.lock().unwrap().push(name);
        }
        // Followers refuse at once; the clients should not only spin.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn one_fault(cluster: &mut Cluster, world: &World, rng: &mut impl rand::Rng) {
    let leader = cluster.leader().await;
    let any = rng.random_range(0..cluster.0.len());
    match rng.random_range(0..4) {
        0 => {
            cluster.0[leader].links.cut();
            cluster.leader().await;
            cluster.0[leader].links.mend();
        }
        1 => restart(cluster, world, leader).await,
        2 => restart(cluster, world, any).await,
        _ => {
            let to = cluster.0[any].identity.node;
            cluster.0[leader].group().transfer_leader(to).await.unwrap();
        }
    }
    cluster.propose(domain(&format!("s{}", rng.random::<u64>()))).await;
}

async fn restart(cluster: &mut Cluster, world: &World, member: usize) {
    cluster.0[member].links.cut();
    cluster.0[member].group().stop().await;
    cluster.0[member].group = None;
    world.follow(cluster);
    cluster.leader().await;
    cluster.0[member].links.mend();
    cluster.0[member].start().await;
    world.follow(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_no_read_is_stale() {
    for seed in Seeds::new(1) {
        let mut rng = testing::rng(seed);
        // Small enough that snapshots and cuts happen all the time.
        let mut cluster = Cluster::start(3, 40).await;
        let world = Arc::new(World::default());
        world.follow(&cluster);
        let clients: Vec<_> = (0..WRITERS).map(|number| tokio::spawn(client(world.clone(), number))).collect();
        for _ in 0..STEPS {
            one_fault(&mut cluster, &world, &mut rng).await;
        }
        world.over.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        cluster.propose(domain("end")).await;
        cluster.everybody_has("end").await;

        assert_eq!(*world.stale.lock().unwrap(), Vec::<String>::new(), "seed {seed}: stale reads");
        for group in cluster.running() {
            let missing = group.read_stale(|state| world.missing(state)).1;
            assert!(missing.is_empty(), "seed {seed}: lost {missing:?}");
        }
        assert_eq!(states_differing(&cluster).await, 0, "seed {seed}: members differ");
        let acknowledged = world.acknowledged.lock().unwrap().len();
        println!("{acknowledged} acknowledged writes through {STEPS} faults");
        assert!(acknowledged > 0);

        // The checker notices one that is not there.
        world.acknowledged.lock().unwrap().insert("planted".into());
        let group = cluster.0[0].group();
        assert_eq!(group.read_stale(|state| world.missing(state)).1, ["planted"]);
        cluster.stop().await;
    }
}
