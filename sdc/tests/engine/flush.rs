//! FLUSH of volumes in writeback pools (S14).

use super::*;

const CHUNK: u64 = 1 << 20;

fn writeback(cluster: &FakeCluster, marks: Marks) -> Client {
    client_of(cluster, patience(), marks, true)
}

/// Another connection: with the same session, unless memory was lost.
fn connect(client: &Client) -> VolumeBackend {
    let volume = client.volume.volume();
    VolumeBackend::new(Arc::clone(volume), volume.session(&CancellationToken::new()), Open)
}

/// The groups that were flushed since the last look, each once.
fn flushed(cluster: &FakeCluster) -> Vec<(u32, u64)> {
    let mut flushes = std::mem::take(&mut cluster.shared().flushes);
    flushes.sort_unstable();
    flushes.into_iter().map(|(pg, memory)| (pg.index.0, memory.0)).collect()
}

#[tokio::test]
async fn a_flush_goes_to_every_group_written_since_the_last_one_on_any_connection() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = writeback(&cluster, Marks::forgotten());
    client.volume.flush().await.unwrap();
    assert_eq!(flushed(&cluster), [], "nothing was written");
    for chunk in 0..32 {
        client.write(chunk * CHUNK, vec![1; 4096]).await.unwrap();
    }
    connect(&client).flush().await.unwrap();
    assert_eq!(flushed(&cluster), (0..PG_COUNT).map(|index| (index, 1)).collect::<Vec<_>>());
    client.volume.flush().await.unwrap();
    assert_eq!(flushed(&cluster), [], "nothing was written since");
    client.volume.write(ByteOffset(0), vec![2; 4096].into(), Durability::Stable).await.unwrap();
    client.volume.flush().await.unwrap();
    assert_eq!(flushed(&cluster), [], "a FUA write owes nothing");
    client.write(0, vec![3; 4096]).await.unwrap();
    client.volume.flush().await.unwrap();
    assert_eq!(flushed(&cluster).len(), 1);
}

#[tokio::test]
async fn in_a_sync_pool_nothing_is_sent() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    client.write(0, vec![1; 4096]).await.unwrap();
    client.volume.flush().await.unwrap();
    assert_eq!(flushed(&cluster), []);
}

#[tokio::test]
async fn a_flush_of_memory_that_is_gone_fails_and_ends_the_session_of_all_connections() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = writeback(&cluster, Marks::forgotten());
    let (session, other) = (client.volume.volume().session(&CancellationToken::new()), connect(&client));
    client.write(0, vec![1; 4096]).await.unwrap();
    cluster.lose_memory();
    let error = client.volume.flush().await.unwrap_err();
    assert!(matches!(error, IoError::LostMemory(_)), "{error}");
    assert!(session.is_cancelled(), "the export is closed");
    assert!(other.flush().await.is_err(), "another connection of then is not told that all is well");
    assert!(client.volume.flush().await.is_err());

    let anew = connect(&client);
    anew.flush().await.unwrap();
    anew.write(ByteOffset(0), vec![2; 4096].into(), Durability::Policy).await.unwrap();
    anew.flush().await.unwrap();
    assert_eq!(flushed(&cluster).iter().map(|(_, memory)| *memory).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn two_memories_in_two_acknowledgements_are_noticed_without_asking() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = writeback(&cluster, Marks::forgotten());
    client.write(0, vec![1; 4096]).await.unwrap();
    cluster.lose_memory();
    client.write(0, vec![2; 4096]).await.unwrap();
    assert!(client.volume.flush().await.is_err(), "the first write may be lost");
    assert_eq!(flushed(&cluster), []);
}

#[tokio::test]
async fn a_restarted_client_names_the_memory_of_before() {
    let (cluster, dir) = (FakeCluster::start(1, 1).await, tempfile::tempdir().unwrap());
    let marks = || Marks::in_dir(dir.path().to_owned());
    let before = writeback(&cluster, marks());
    before.write(0, vec![1; 4096]).await.unwrap();
    drop(before);

    let kept = writeback_of_boot(&cluster, marks(), 2);
    assert_eq!(kept.volume.volume().unflushed_groups(), 1);
    kept.volume.flush().await.unwrap();
    assert_eq!(flushed(&cluster).len(), 1, "what was acknowledged before the restart is covered");
    drop(kept);

    cluster.lose_memory();
    cluster.publish();
    let lost = writeback_of_boot(&cluster, marks(), 3);
    let error = lost.volume.flush().await.unwrap_err();
    assert!(matches!(error, IoError::LostMemory(_)), "it cannot know that nothing was lost: {error}");
    connect(&lost).flush().await.unwrap();
    lost.engine.settle().await;
    drop(lost);

    let clean = writeback_of_boot(&cluster, marks(), 4);
    assert_eq!(clean.volume.volume().unflushed_groups(), 0, "an orderly end leaves nothing owed");
}

#[tokio::test]
async fn marks_of_memory_that_is_gone_and_owed_nothing_are_forgotten() {
    let (cluster, dir) = (FakeCluster::start(1, 1).await, tempfile::tempdir().unwrap());
    let client = writeback(&cluster, Marks::in_dir(dir.path().to_owned()));
    client.write(0, vec![1; 4096]).await.unwrap();
    client.volume.flush().await.unwrap();
    cluster.lose_memory();
    cluster.publish();
    client.volume.flush().await.unwrap();
    drop(client);
    let next = writeback_of_boot(&cluster, Marks::in_dir(dir.path().to_owned()), 2);
    next.volume.flush().await.unwrap();
    assert_eq!(next.volume.volume().unflushed_groups(), 0);
}

#[tokio::test]
async fn a_mark_file_that_cannot_be_read_fails_the_first_flush() {
    let (cluster, dir) = (FakeCluster::start(1, 1).await, tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join(format!("unflushed-{}.json", VOLUME.0)), "{").unwrap();
    let client = writeback(&cluster, Marks::in_dir(dir.path().to_owned()));
    assert!(client.volume.flush().await.is_err());
    connect(&client).flush().await.unwrap();
}

fn writeback_of_boot(cluster: &FakeCluster, marks: Marks, boot: u64) -> Client {
    client_of_boot(cluster, patience(), marks, true, boot)
}
