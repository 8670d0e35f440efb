//! Abandoned writes: what comes later waits until they cannot come any more.

use pflex_proto::{
    geometry::{CHUNK_SIZE, pg_of},
    ids::ChunkIndex,
};

use super::*;

#[tokio::test]
async fn a_write_that_waits_for_one_nobody_can_fence_ends_at_its_deadline() {
    let mut cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, Patience { io_deadline: Duration::from_millis(500), ..patience() });
    client.write(0, pattern(4096, 1)).await.unwrap();
    cluster.shared().faults.mute = 1000;
    let abandoned = tokio::time::timeout(Duration::from_millis(100), client.write(0, pattern(4096, 2))).await;
    assert!(abandoned.is_err(), "sent, and never answered");
    cluster.kill_device(DeviceId(1)).await;
    let started = Instant::now();
    let second = tokio::time::timeout(Duration::from_secs(20), client.write(0, pattern(4096, 3))).await;
    let error = second.expect("the deadline holds for the turn too").unwrap_err();
    assert!(matches!(&error, IoError::Failed(why) if why.contains("not done within")), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(450));
    // What comes later waits for the abandoned one alone, not for the one that gave up.
    cluster.shared().faults.mute = 0;
    cluster.start_device(DeviceId(1)).await;
    let ended = Instant::now() + Duration::from_secs(20);
    while client.write(0, pattern(4096, 4)).await.is_err() {
        assert!(Instant::now() < ended, "the ledger is never free again");
    }
    assert_eq!(client.read(0, 4096).await.unwrap(), pattern(4096, 4));
}

/// It was planned for a group that has become two since, and sent to the other half. That the first half is in a newer epoch
/// says nothing of what was sent.
#[tokio::test]
async fn an_abandoned_write_is_fenced_in_the_group_that_it_was_sent_to() {
    let mut cluster = FakeCluster::start(2, 1).await;
    let client = Arc::new(client(&cluster, patience()));
    let moves = |index: &u64| pg_of(VtreeId(9), ChunkIndex(*index), 2 * PG_COUNT).0 >= PG_COUNT;
    let offset = (0..).find(moves).expect("half of all chunks") * u64::from(CHUNK_SIZE);
    client.write(offset, pattern(4096, 1)).await.unwrap();
    cluster.double();
    cluster.publish();
    let retries = client.retries();
    let (writing, again) = (Arc::clone(&client), pattern(4096, 2));
    let abandoned = tokio::spawn(async move { writing.write(offset, again).await });
    let until = async |what: &str, reached: &dyn Fn() -> bool| {
        let ended = Instant::now() + Duration::from_secs(20);
        while !reached() {
            assert!(Instant::now() < ended, "{what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    until("it is refused for the old group", &|| client.retries() > retries + 1).await;
    cluster.shared().faults.mute = 1000;
    let requests = cluster.shared().writes.len();
    client.told(2 * PG_COUNT);
    until("it is done, and not answered", &|| cluster.shared().writes.len() > requests).await;
    cluster.kill_device(DeviceId(1)).await;
    abandoned.abort();
    cluster.promote_some(DeviceId(2), |pg| pg.index.0 < PG_COUNT);
    cluster.publish();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(client.volume.volume().writes_in_flight(), 1, "nobody has said that it cannot come later");
    cluster.shared().faults.mute = 0;
    cluster.start_device(DeviceId(1)).await;
    client.write(offset, pattern(4096, 3)).await.unwrap();
    assert_eq!(client.read(offset, 4096).await.unwrap(), pattern(4096, 3));
}
