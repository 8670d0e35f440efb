//! Five members lose any two, as crashes take them, and keep what they acknowledged.

use super::kit::{Cluster, domain, has, states_differing};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_members_survive_the_crash_of_each_two_of_them() {
    let mut cluster = Cluster::start(5, 1_000).await;
    let pairs: Vec<[usize; 2]> = (0..5).flat_map(|a| (a + 1..5).map(move |b| [a, b])).collect();
    assert_eq!(pairs.len(), 10);
    let mut acknowledged = Vec::new();
    for [a, b] in pairs {
        for n in 0..3 {
            let name = format!("before-{a}-{b}-{n}");
            cluster.propose(domain(&name)).await;
            acknowledged.push(name);
        }
        // Right after the answer: two of the three that wrote it may be these.
        cluster.0[a].kill().await;
        cluster.0[b].kill().await;
        let name = format!("without-{a}-{b}");
        cluster.propose(domain(&name)).await;
        acknowledged.push(name);
        let leader = cluster.leader().await;
        for name in &acknowledged {
            assert!(has(cluster.0[leader].group(), name), "{name} is lost without {a} and {b}");
        }
        cluster.0[a].start().await;
        cluster.0[b].start().await;
    }
    let last = acknowledged.last().unwrap().clone();
    cluster.everybody_has(&last).await;
    assert_eq!(states_differing(&cluster).await, 0);
    for group in cluster.running() {
        assert!(acknowledged.iter().all(|name| has(group, name)));
    }
    cluster.stop().await;
}
