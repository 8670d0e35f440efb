//! What every [`Device`] must do; each implementation's tests call [`check`].

use std::sync::{Arc, mpsc};

use bytes::Bytes;

use super::{ALIGNMENT, AlignedBuffer, Device, DeviceError, Op, read_now, run};

/// Runs the whole suite on a device of at least 4 MiB whose content may be overwritten.
///
/// # Panics
/// At the first difference from what a device must do.
pub fn check(device: &Arc<dyn Device>) {
    reads_return_what_was_written(device.as_ref());
    pieces_are_written_one_after_the_other(device.as_ref());
    many_writes_go_each_to_its_place(device.as_ref());
    durable_writes_keep_their_order(device.as_ref());
    what_does_not_fit_is_refused(device.as_ref());
    many_operations_complete_once_each(device);
    large_and_small_ones_see_each_other(device);
    discard_leaves_neighbours_alone(device.as_ref());
    allocation_changes_no_byte(device.as_ref());
}

fn reads_return_what_was_written(device: &dyn Device) {
    let offset = device.capacity() - (1 << 20);
    run(device, Op::Write { offset, data: vec![Bytes::from(vec![7; 10_000])] }).expect("a write succeeds");
    assert_eq!(read_now(device, offset, 10_000).expect("a read succeeds"), vec![7; 10_000], "before the sync");
    run(device, Op::Sync).expect("a sync succeeds");
    assert_eq!(read_now(device, offset + 9_999, 1).expect("a read succeeds")[0], 7, "after it");
    let mut buffer = [0; 16];
    if device.try_read(offset, &mut buffer) {
        assert_eq!(buffer, [7; 16], "a read without waiting returns the same");
    }
}

fn pieces_are_written_one_after_the_other(device: &dyn Device) {
    let offset = device.capacity() - (1 << 19);
    let pieces: Vec<_> = (0..1500_u32).map(|n| Bytes::from(n.to_le_bytes().to_vec())).collect();
    run(device, Op::Write { offset, data: pieces.clone() }).expect("a write of many pieces succeeds");
    let whole: Vec<u8> = pieces.concat();
    assert_eq!(read_now(device, offset, whole.len()).expect("a read succeeds"), whole);
}

fn many_writes_go_each_to_its_place(device: &dyn Device) {
    let base = device.capacity() - (1 << 20);
    run(device, Op::Write { offset: base, data: vec![Bytes::from(vec![1; 32 << 10])] }).expect("a write succeeds");
    let at = [20_u64 << 10, 0, 8 << 10];
    let writes = at.map(|at| (base + at, vec![Bytes::from(vec![2; 100]), Bytes::from(vec![3; 4096 - 100])])).to_vec();
    run(device, Op::WriteMany { writes }).expect("many writes succeed");
    for block in 0..8 {
        let bytes = read_now(device, base + block * 4096, 4096).expect("a read succeeds");
        let expected =
            if at.contains(&(block * 4096)) { [[2; 100].as_slice(), &[3; 3996]].concat() } else { vec![1; 4096] };
        assert_eq!(bytes, expected, "block {block}");
    }
    let outside = vec![(base, vec![Bytes::from_static(b"x")]), (device.capacity(), vec![Bytes::from_static(b"x")])];
    assert!(matches!(run(device, Op::WriteMany { writes: outside }), Err(DeviceError::OutOfRange { .. })));
    assert_eq!(read_now(device, base, 1).expect("a read succeeds")[0], 2, "nothing of it was done");
}

fn allocation_changes_no_byte(device: &dyn Device) {
    let base = device.capacity() - (1 << 20);
    run(device, Op::Write { offset: base + 4096, data: vec![Bytes::from(vec![9; 4096])] }).expect("a write succeeds");
    run(device, Op::Allocate { offset: base, length: 1 << 20 }).expect("an allocation succeeds");
    assert!(read_now(device, base + 4096, 4096).expect("a read succeeds").iter().all(|byte| *byte == 9));
}

fn durable_writes_keep_their_order(device: &dyn Device) {
    let (sender, receiver) = mpsc::channel();
    for number in 0..50_u8 {
        let sender = sender.clone();
        let data = AlignedBuffer::padded(&[number; ALIGNMENT]);
        let done = Box::new(move |outcome: super::Outcome| {
            outcome.expect("a durable write succeeds");
            sender.send(number).expect("the test listens");
        });
        device.submit(Op::WriteDurable { offset: 8192, data }, done);
    }
    drop(sender);
    assert_eq!(receiver.iter().collect::<Vec<_>>(), (0..50).collect::<Vec<_>>(), "in the order of submission");
    assert_eq!(read_now(device, 8192, 1).expect("a read succeeds")[0], 49, "the last one stands");
}

fn what_does_not_fit_is_refused(device: &dyn Device) {
    let offset = device.capacity();
    assert!(matches!(read_now(device, offset, 1), Err(DeviceError::OutOfRange { .. })));
    let write = Op::Write { offset: u64::MAX, data: vec![Bytes::from_static(b"x")] };
    assert!(matches!(run(device, write), Err(DeviceError::OutOfRange { .. })));
    let crooked = Op::WriteDurable { offset: 512, data: AlignedBuffer::padded(b"x") };
    assert!(matches!(run(device, crooked), Err(DeviceError::Unaligned { offset: 512, .. })));
}

fn many_operations_complete_once_each(device: &Arc<dyn Device>) {
    let base = device.capacity() - (1 << 20);
    let (sender, receiver) = mpsc::channel();
    for number in 0..200_u64 {
        let sender = sender.clone();
        let op = Op::Write { offset: base + number * 4096, data: vec![Bytes::from(vec![number as u8; 4096])] };
        device.submit(op, Box::new(move |outcome| sender.send(outcome.is_ok()).expect("the test listens")));
    }
    drop(sender);
    assert_eq!(receiver.iter().filter(|done| *done).count(), 200);
    for number in 0..200_u64 {
        let bytes = read_now(device.as_ref(), base + number * 4096, 4096).expect("a read succeeds");
        assert!(bytes.iter().all(|byte| *byte == number as u8), "write {number} is whole");
    }
}

/// They may take different ways to the disk, in the same bytes and side by side.
fn large_and_small_ones_see_each_other(device: &Arc<dyn Device>) {
    const LARGE: usize = 256 << 10;
    let base = device.capacity() - (2 << 20);
    // Each thread has every fourth stretch for itself; between two large ones of others it writes blocks.
    let workers = (0..4_u64).map(|worker| {
        let device = Arc::clone(device);
        std::thread::spawn(move || {
            let device = device.as_ref();
            let write = |offset, byte, length| {
                run(device, Op::Write { offset, data: vec![Bytes::from(vec![byte; length])] })
                    .expect("a write succeeds");
            };
            for round in 0..25_u8 {
                let (large, small) = (round * 2 + 1, round * 2 + 2);
                let start = base + (worker + u64::from(round % 2) * 4) * LARGE as u64;
                let block = start + u64::from(round) * 4096;
                write(start, large, LARGE);
                write(block, small, 4096);
                let found = read_now(device, start, LARGE).expect("a large read succeeds");
                let expected = |at: u64| if (block..block + 4096).contains(&at) { small } else { large };
                assert!((start..).zip(&found).all(|(at, byte)| *byte == expected(at)), "a block over a large write");
                write(start, small, LARGE);
                let found = read_now(device, block, 4096).expect("a small read succeeds");
                assert!(found.iter().all(|byte| *byte == small), "a large write over a block");
                if round % 4 == 3 {
                    run(device, Op::Sync).expect("a sync succeeds");
                }
            }
        })
    });
    workers.collect::<Vec<_>>().into_iter().for_each(|worker| worker.join().expect("no assertion failed"));
}

fn discard_leaves_neighbours_alone(device: &dyn Device) {
    let base = device.capacity() - (1 << 20);
    run(device, Op::Write { offset: base, data: vec![Bytes::from(vec![5; 3 * 4096])] }).expect("a write succeeds");
    run(device, Op::Discard { offset: base + 4096, length: 4096 }).expect("a discard succeeds");
    let bytes = read_now(device, base, 3 * 4096).expect("a read succeeds");
    assert!(bytes[..4096].iter().chain(&bytes[8192..]).all(|byte| *byte == 5));
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::device::{Fault, FaultyDevice, FileConfig, FileDevice, Injected, MemoryDevice, OpKind};

    #[test]
    fn files_conform() {
        let directory = tempfile::tempdir().unwrap();
        let config = FileConfig::beside(&directory.path().join("device"));
        let device: Arc<dyn Device> = Arc::new(FileDevice::create(&config, 1 << 20, 8 << 20, false).unwrap());
        check(&device);
        let error = FileDevice::open(&config).map(drop).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "a second owner is kept out");
        let one = FileConfig { path: directory.path().join("single"), journal_path: None, sparse: false };
        let device: Arc<dyn Device> = Arc::new(FileDevice::create(&one, 1 << 20, 8 << 20, true).unwrap());
        check(&device);
    }

    #[test]
    fn memory_conforms() {
        check(&(MemoryDevice::new(8 << 20) as Arc<dyn Device>));
    }

    #[test]
    fn the_faulty_one_conforms_until_told_otherwise() {
        let faulty = FaultyDevice::new(MemoryDevice::new(8 << 20));
        check(&(faulty.clone() as Arc<dyn Device>));
        faulty.inject(Fault { kind: OpKind::Sync, after: 1, within: None, injected: Injected::Error });
        run(faulty.as_ref(), Op::Sync).unwrap();
        assert!(run(faulty.as_ref(), Op::Sync).is_err());
        run(faulty.as_ref(), Op::Sync).unwrap();
        faulty.inject(Fault { kind: OpKind::Read, after: 0, within: Some(0..10), injected: Injected::FlipBit });
        assert_eq!(read_now(faulty.as_ref(), 4096, 1).unwrap()[0], 0, "elsewhere nothing happens");
        assert_eq!(read_now(faulty.as_ref(), 0, 1).unwrap()[0], 1);
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_may_lose_the_rest() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for _ in 0..50 {
            let device = MemoryDevice::new(1 << 20);
            let write = |offset, byte| {
                run(device.as_ref(), Op::Write { offset, data: vec![Bytes::from(vec![byte; 4096])] }).unwrap();
            };
            write(0, 1);
            run(device.as_ref(), Op::Sync).unwrap();
            write(4096, 2);
            let after = device.crash(&mut random);
            assert_eq!(read_now(after.as_ref(), 0, 4096).unwrap(), vec![1; 4096]);
            match read_now(after.as_ref(), 4096, 4096).unwrap().iter().filter(|byte| **byte == 2).count() {
                0 => lost += 1,
                4096 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(lost > 5 && kept > 5 && torn > 5, "{lost} lost, {kept} kept, {torn} torn");
    }
}
