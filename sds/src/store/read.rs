//! Reading: what is in memory at once, what is on disk through the device, every block from disk checked against its
//! CRC32C before anybody sees it.
//!
//! A read that goes to disk pins the blocks it needs until the device has answered, so that no checkpoint and no new
//! owner of the unit changes them underneath. Reads asked for after a block changed find it in memory, so nobody waits
//! for new readers, only for old ones.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use pflex_proto::{data::BLOCK_WORDS, geometry::BLOCK_SIZE, ids::ChunkId};
use tokio::sync::{mpsc, oneshot};

use super::{
    Store,
    blocks::{BlockSet, zeros},
    chunk::{Source, assemble},
    error::{Poison, ReadError},
    pipeline::Event,
    record::UnitId,
    types::{BlockRange, Checksums, ReadData, zero_checksums},
};
use crate::device::{DeviceError, Done, Op};

const BLOCK: usize = BLOCK_SIZE as usize;
/// Reads up to this size are tried without a thread when the bytes may be in the page cache; larger ones would hold up
/// the data thread for longer than a hand-over costs.
const INLINE_BYTES: usize = 128 << 10;

/// A read on its way. Dropping it is fine; the device finishes regardless.
#[derive(Debug)]
pub struct Read {
    chunk: ChunkId,
    state: State,
}

#[derive(Debug)]
enum State {
    Ready(Option<Result<ReadData, ReadError>>),
    Waiting(oneshot::Receiver<Result<ReadData, ReadError>>),
}

impl Future for Read {
    type Output = Result<ReadData, ReadError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let chunk = self.chunk;
        let closed = || ReadError::Device { chunk, source: DeviceError::Closed };
        match &mut self.state {
            State::Ready(result) => Poll::Ready(result.take().unwrap_or_else(|| Err(closed()))),
            State::Waiting(receiver) => {
                Pin::new(receiver).poll(context).map(|result| result.unwrap_or_else(|_| Err(closed())))
            }
        }
    }
}

/// Blocks of a unit that a running read needs.
struct Reader {
    blocks: BlockSet,
    awaited: Arc<AtomicBool>,
    sender: mpsc::UnboundedSender<Event>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        // By now `Weak::upgrade` fails, so whoever sets the flag and looks again does not miss this.
        if self.awaited.load(Ordering::SeqCst) {
            drop(self.sender.send(Event::ReaderGone));
        }
    }
}

/// Which blocks of which units are being read.
#[derive(Default)]
pub(super) struct Readers {
    of_unit: BTreeMap<UnitId, Vec<Weak<Reader>>>,
}

impl Readers {
    /// Whether a read of these blocks (none: of any) runs. If so the flag is set first, so its end makes an event.
    pub(super) fn are_reading(&mut self, unit: UnitId, blocks: Option<&BlockSet>, awaited: &AtomicBool) -> bool {
        let Some(readers) = self.of_unit.get_mut(&unit) else { return false };
        awaited.store(true, Ordering::SeqCst);
        readers.retain(|reader| reader.strong_count() > 0);
        let reading = readers
            .iter()
            .filter_map(Weak::upgrade)
            .any(|reader| blocks.is_none_or(|blocks| reader.blocks.intersects(blocks)));
        if readers.is_empty() {
            self.of_unit.remove(&unit);
        }
        reading
    }

    fn add(&mut self, unit: UnitId, reader: &Arc<Reader>) {
        let readers = self.of_unit.entry(unit).or_default();
        readers.retain(|reader| reader.strong_count() > 0);
        readers.push(Arc::downgrade(reader));
    }
}

impl Store {
    /// Reads whole blocks with their checksums, as they are after every change asked for before this call. A chunk that
    /// does not exist is zeros without a version.
    pub fn read(&mut self, chunk: ChunkId, range: BlockRange) -> Read {
        let ready = |result| Read { chunk, state: State::Ready(Some(result)) };
        if let Some(poison) = &self.poison {
            return ready(Err(poison.clone().into()));
        }
        let Some(entry) = self.chunks.get(&chunk) else {
            let checksums = zero_checksums(usize::from(range.count()));
            return ready(Ok(ReadData { data: zeros(range.bytes()), checksums, version: None }));
        };
        let sources = entry.sources(range);
        let checksums = sources.iter().map(Source::checksum).collect();
        let version = entry.state().flatten();
        let on_disk = |source: &Source| matches!(source, Source::Disk { .. });
        let (first, last) = (sources.iter().position(on_disk), sources.iter().rposition(on_disk));
        let (Some(first), Some(last), Some(unit)) = (first, last, entry.stable.unit) else {
            return ready(Ok(ReadData { data: assemble(&sources), checksums, version }));
        };
        let offset =
            self.superblock.geometry.unit_offset(unit.0) + (usize::from(range.first()) + first) as u64 * BLOCK as u64;
        let length = (last + 1 - first) * BLOCK;
        let job = Job { chunk, range, sources, first, checksums, version };
        if length <= INLINE_BYTES {
            let mut buffer = BytesMut::zeroed(length);
            if self.device.try_read(offset, &mut buffer) {
                return ready(job.finish(buffer));
            }
        }
        let mut blocks = BlockSet::default();
        for (block, source) in range.blocks().zip(&job.sources) {
            if on_disk(source) {
                blocks.insert(block);
            }
        }
        let pin = Arc::new(Reader { blocks, awaited: Arc::clone(&self.awaits_readers), sender: self.sender.clone() });
        self.readers.add(unit, &pin);
        let (sender, receiver) = oneshot::channel();
        // Checksums are computed on the device's thread: the data thread only hands on.
        let done = move |outcome| {
            let result = match outcome {
                Ok(Done::Read(buffer)) => job.finish(buffer),
                Ok(Done::Ok) => Err(ReadError::Device { chunk, source: DeviceError::Closed }),
                Err(source) => Err(ReadError::Device { chunk, source }),
            };
            drop(pin);
            drop(sender.send(result));
        };
        self.device.submit(Op::Read { offset, length }, Box::new(done));
        Read { chunk, state: State::Waiting(receiver) }
    }

    /// Which blocks of a range hold data, a bit each by its number in the chunk, as after every change asked for so far:
    /// the others read as zeros. Of a poisoned store nothing is known, and all may.
    pub fn written(&self, chunk: ChunkId, range: BlockRange) -> [u64; BLOCK_WORDS] {
        if self.poison.is_some() {
            return BlockSet::of(range).0;
        }
        let mut written = BlockSet::default();
        if let Some(entry) = self.chunks.get(&chunk) {
            let sources = entry.sources(range);
            let data = range.blocks().zip(&sources).filter(|(_, source)| !matches!(source, Source::Hole));
            data.for_each(|(block, _)| written.insert(block));
        }
        written.0
    }

    /// All checksums of a chunk, as after every change asked for so far; none if there is no such chunk.
    pub fn checksums(&self, chunk: ChunkId) -> Option<Checksums> {
        let entry = self.chunks.get(&chunk)?;
        let version = entry.state()?;
        Some(Checksums { version, blocks: entry.sources(BlockRange::WHOLE).iter().map(Source::checksum).collect() })
    }

    /// The poison, if the device is out of service.
    pub const fn poison(&self) -> Option<&Poison> {
        self.poison.as_ref()
    }
}

/// What is left to do when the device has answered.
struct Job {
    chunk: ChunkId,
    range: BlockRange,
    sources: Vec<Source>,
    /// The first source that is on disk; the buffer starts there.
    first: usize,
    checksums: Vec<u32>,
    version: Option<pflex_proto::ids::Version>,
}

impl Job {
    fn finish(self, mut buffer: BytesMut) -> Result<ReadData, ReadError> {
        let count = buffer.len() / BLOCK;
        for (index, source) in self.sources.iter().enumerate().skip(self.first).take(count) {
            let block = &mut buffer[(index - self.first) * BLOCK..][..BLOCK];
            match source {
                Source::Disk { checksum } => {
                    let found = crc32c::crc32c(block);
                    if found != *checksum {
                        let block = self.range.first() + index as u16;
                        return Err(ReadError::Corrupt { chunk: self.chunk, block, expected: *checksum, found });
                    }
                }
                Source::Memory { data, .. } => block.copy_from_slice(data),
                Source::Hole => block.fill(0),
            }
        }
        let data = if count == self.sources.len() {
            buffer.freeze()
        } else {
            let (before, after) = (&self.sources[..self.first], &self.sources[self.first + count..]);
            Bytes::from([&assemble(before)[..], &buffer, &assemble(after)].concat())
        };
        Ok(ReadData { data, checksums: self.checksums, version: self.version })
    }
}
