//! A thin device whose file system runs out of space: full, not broken.

use std::{path::Path, process::Command};

use super::*;
use crate::device::{Fault, FaultyDevice, FileConfig, Injected, OpKind};

fn no_space(error: &ApplyError) -> bool {
    matches!(error, ApplyError::NoSpace { .. })
}

/// Chunks from `first` on, one block each, until there is no space; returns the first that found none.
fn fill(store: &mut Store, first: u64) -> u64 {
    for index in first.. {
        match store.apply(write(pg(0), chunk(index), index + 1, run(0, 1, 7))) {
            Ok(_) => settle(store),
            Err(error) if no_space(&error) => return index,
            Err(error) => panic!("chunk {index}: {error}"),
        }
    }
    unreachable!("no device is endless")
}

#[test]
fn a_device_without_space_is_full_and_goes_on_when_there_is_some() {
    let (memory, meta) = formatted(300);
    let device = FaultyDevice::new(memory);
    // In halves down to one unit: 16, 8, 4, 2, 1.
    let refuse = |times| {
        let fault = Fault { kind: OpKind::Allocate, after: 0, within: None, injected: Injected::Error };
        (0..times).for_each(|_| device.inject(fault.clone()));
    };
    let (mut store, _) = Store::open(device.clone(), meta, CONFIG).unwrap();
    store.look_for_space();
    poll_durable(&mut store).unwrap();
    refuse(5);
    let filled = fill(&mut store, 0);
    assert!((128..290).contains(&filled), "what was allocated ahead, and not more: {filled}");
    settle(&mut store);
    let stats = store.stats();
    assert_eq!((stats.units_available, u64::from(stats.units_refused)), (0, 300 - filled));
    assert!(store.poison().is_none());
    assert_eq!(tags(&read_now(&mut store, chunk(0), range(0, 2)).unwrap().data), [7, 0], "it is read");
    assert!(!store.reserve(pg(0), chunk(999), 0), "and reserves nothing");
    store.apply(write(pg(0), chunk(0), 1000, run(1, 1, 8))).expect("a chunk that has its unit has all of its space");
    refuse(1);
    store.look_for_space();
    settle(&mut store);
    poll_durable(&mut store).unwrap();
    assert_eq!(store.stats().units_available, 0, "asked in vain");
    store.look_for_space();
    poll_durable(&mut store).unwrap();
    assert_eq!((u64::from(store.stats().units_available), store.stats().units_refused), (300 - filled, 0));
    assert_eq!(fill(&mut store, filled), 300);
    settle(&mut store);
    close(store).unwrap();
}

/// A small file system in memory; unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path, size: &str) -> Option<Self> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(at).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "the test cleans up");
    }
}

#[tokio::test]
async fn a_full_file_system_is_a_full_device() {
    let directory = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(directory.path(), "128m") else {
        return println!("skipped: only root may mount a file system");
    };
    let files = FileConfig::beside(&directory.path().join("device"));
    let meta = MemoryMeta::new();
    Store::format_files(&files, 1 << 30, false, meta.as_ref(), &FORMAT).unwrap();
    let ballast = directory.path().join("ballast");
    std::fs::write(&ballast, vec![1; 60 << 20]).unwrap();
    let (mut store, _) = Store::open_files(&files, meta.clone(), CONFIG).unwrap();
    store.look_for_space();
    let mut written = 0;
    let mut refused = None;
    // Whole chunks, so that what is promised is really used.
    for index in 0..900 {
        match store.apply(write(pg(0), chunk(index), index + 1, run(0, 256, 9))) {
            Ok(_) => written += 1,
            Err(error) if no_space(&error) => {
                refused = Some(index);
                break;
            }
            Err(error) => panic!("chunk {index}: {error}"),
        }
        while store.stats().pending_changes > 0 {
            store.durable().await.expect("a full file system does not end the device");
        }
    }
    assert!(refused.is_some() && written < 60, "{written} chunks of 1 MiB beside 60 MiB on 128 MiB");
    assert_eq!(tags(&store.read(chunk(0), range(255, 1)).await.unwrap().data), [9]);
    std::fs::remove_file(&ballast).unwrap();
    let mut found = false;
    for _ in 0..3000 {
        store.look_for_space();
        match store.apply(write(pg(0), chunk(1000), 1001, run(0, 1, 3))) {
            Ok(_) => {
                found = true;
                break;
            }
            Err(error) => assert!(no_space(&error), "{error}"),
        }
        // Progress is made by looking for it.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(20), store.durable()).await;
    }
    assert!(found, "what the ballast took is found within a minute");
    while store.stats().pending_changes > 0 {
        store.durable().await.unwrap();
    }
    store.close().await.unwrap();
    let (store, _) = Store::open_files(&files, meta, CONFIG).unwrap();
    assert_eq!(store.stats().chunks, written + 1);
}
