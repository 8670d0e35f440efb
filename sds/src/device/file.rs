//! A device on a file or a raw block device, optionally with its first part (superblock copy and journal) in a file of
//! its own.
//!
//! Why two files: on a file system, data writes allocate extents, and a durable journal write to the *same* inode then
//! has to commit those allocations too. Measured on ext4 with 1 MiB writes going on beside: 8 KiB durable appends take
//! 1,240 us (median) in one file and 48 us in two. A raw block device has no such coupling and needs one path only.
//!
//! Durable writes use O_DIRECT and O_DSYNC where the file system takes them (50 us instead of 58 us for buffered write
//! and fdatasync, and no page cache used up); data is buffered, so that what was just written or read is served from
//! memory. Both never touch the same bytes, so the two views cannot disagree.
//!
//! Tried with writes of data, on 2026-11-23, and left out: O_DIRECT from 64 KiB on, and RWF_DONTCACHE. In a virtual machine whose host
//! has to find each page that the cache grows by, copying a MiB there takes 4 to 6 ms of CPU instead of 0.4, and a first fill went from
//! 110 to 250 MiB/s without it. But what was written was then read from the disk: 10,000 reads of 4 KiB a second, not 28,000.
//! Direct and buffered writes side by side need care, besides: a direct one that shares a large folio with a dirty page fails
//! the file's next sync.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, IoSliceMut, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use rustix::{
    fs::{FallocateFlags, FlockOperation, fallocate, flock},
    io::{Errno, ReadWriteFlags, preadv2, pwritev},
};

use super::{
    AlignedBuffer, Completion, Device, DeviceError, Done, Op, Outcome,
    lane::{Job, Lane},
    total,
};

/// Threads that read: enough to keep a solid-state disk's queue busy.
const READ_THREADS: usize = 4;
/// Threads that write data: large writes and the checkpoint.
const WRITE_THREADS: usize = 3;
/// Zeros written at once while the journal region is made.
const FILL_BYTES: usize = 1 << 20;
/// Pieces in one vectored write; Linux takes 1,024.
const MAX_PIECES: usize = 512;

/// Where a device lives.
#[derive(Clone, Debug)]
pub struct FileConfig {
    /// The file or block device.
    pub path: PathBuf,
    /// A file for the first part of the address space (superblock copy, journal). None keeps all in `path`.
    pub journal_path: Option<PathBuf>,
    /// Take space of the file system block by block as they are written, not ahead.
    pub sparse: bool,
}

impl FileConfig {
    /// The usual place: a regular file gets `PATH.journal` beside it, a raw block device holds all.
    pub fn beside(path: &Path) -> Self {
        let is_block = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        let mut journal = path.as_os_str().to_owned();
        journal.push(".journal");
        Self { path: path.to_owned(), journal_path: (!is_block).then(|| journal.into()), sparse: false }
    }
}

/// See the module.
pub struct FileDevice {
    files: Arc<Files>,
    journal: Lane,
    reads: Lane,
    writes: Lane,
    /// Syncs have their own thread: one takes milliseconds and data writes go on beside it.
    syncs: Lane,
}

impl FileDevice {
    /// Makes the files: the front part really written with zeros, so that no durable write ever changes an extent; the
    /// rest sparse unless `preallocate`. On failure what was made is removed.
    ///
    /// # Errors
    /// If a file exists already, or the operating system refuses.
    pub fn create(config: &FileConfig, front_bytes: u64, total_bytes: u64, preallocate: bool) -> io::Result<Self> {
        let is_block = std::fs::metadata(&config.path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        let mut made = Vec::new();
        let result = create_files(config, is_block, front_bytes, total_bytes, preallocate, &mut made);
        if result.is_err() {
            made.iter().for_each(|path| drop(std::fs::remove_file(path)));
        }
        result?;
        Self::open(config)
    }

    /// Opens and locks. Nothing is written.
    ///
    /// # Errors
    /// `WouldBlock` if another process has it open; else what the operating system says.
    pub fn open(config: &FileConfig) -> io::Result<Self> {
        let files = Arc::new(Files::open(config)?);
        let start = |name: &str, threads| {
            let files = Arc::clone(&files);
            Lane::start(name, threads, move |(op, done): Job| done(files.execute(op)))
        };
        Ok(Self {
            journal: start("journal", 1)?,
            reads: start("read", READ_THREADS)?,
            writes: start("write", WRITE_THREADS)?,
            syncs: start("sync", 1)?,
            files,
        })
    }

    /// Removes the regular files of a device that could not be formatted.
    pub fn remove_files(&self, config: &FileConfig) {
        let front = config.journal_path.iter();
        let data = (!self.files.is_block).then_some(&config.path);
        front.chain(data).for_each(|path| drop(std::fs::remove_file(path)));
    }

    /// Whether durable writes bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.files.direct
    }
}

impl Device for FileDevice {
    fn capacity(&self) -> u64 {
        self.files.capacity
    }

    fn split(&self) -> Option<u64> {
        self.files.front.as_ref().map(|_| self.files.front_bytes)
    }

    fn is_thin(&self) -> bool {
        !self.files.is_block && !self.files.sparse
    }

    fn submit(&self, op: Op, done: Completion) {
        if let Err(error) = op.check(self.files.capacity) {
            return done(Err(error));
        }
        let lane = match op {
            Op::Read { .. } => &self.reads,
            Op::Write { .. } | Op::WriteMany { .. } | Op::Allocate { .. } | Op::Discard { .. } => &self.writes,
            Op::WriteDurable { .. } => &self.journal,
            Op::Sync => &self.syncs,
        };
        lane.push((op, done));
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let Ok((file, at)) = self.files.place(offset, buffer.len() as u64) else { return false };
        let length = buffer.len();
        preadv2(file, &mut [IoSliceMut::new(buffer)], at, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == length)
    }
}

struct Files {
    data: File,
    /// The front part, if it has a file of its own.
    front: Option<File>,
    /// Where durable writes to the front (or everything) go, and those to the data file.
    durable_front: Option<File>,
    durable_data: File,
    front_bytes: u64,
    capacity: u64,
    direct: bool,
    is_block: bool,
    sparse: bool,
}

impl Files {
    fn open(config: &FileConfig) -> io::Result<Self> {
        let mut data = OpenOptions::new().read(true).write(true).open(&config.path)?;
        lock(&data)?;
        let is_block = data.metadata()?.file_type().is_block_device();
        let data_bytes = data.seek(SeekFrom::End(0))?;
        let (durable_data, data_direct) = open_durable(&config.path)?;
        let (mut front, mut durable_front, mut front_bytes, mut direct) = (None, None, 0, data_direct);
        if let Some(path) = &config.journal_path {
            let mut file = OpenOptions::new().read(true).write(true).open(path)?;
            lock(&file)?;
            front_bytes = file.seek(SeekFrom::End(0))?;
            let (durable, front_direct) = open_durable(path)?;
            (front, durable_front, direct) = (Some(file), Some(durable), front_direct);
        }
        // A process that was killed may have left writes that only the page cache or the disk's cache has. What is read
        // from here on may be built upon, so it has to last.
        data.sync_data()?;
        front.as_ref().map_or(Ok(()), File::sync_data)?;
        let capacity = front_bytes + data_bytes;
        let sparse = config.sparse;
        Ok(Self { data, front, durable_front, durable_data, front_bytes, capacity, direct, is_block, sparse })
    }

    /// The file and the offset in it of an extent, which must not straddle the two files.
    fn place(&self, offset: u64, length: u64) -> io::Result<(&File, u64)> {
        match &self.front {
            Some(front) if offset < self.front_bytes && offset + length <= self.front_bytes => Ok((front, offset)),
            Some(_) if offset < self.front_bytes && length > 0 => {
                Err(io::Error::other(format!("{length} bytes at {offset} straddle the journal file's end")))
            }
            _ => Ok((&self.data, offset - self.front_bytes)),
        }
    }

    fn execute(&self, op: Op) -> Outcome {
        let (kind, (offset, length)) = (op.kind(), op.extent());
        self.perform(op).map_err(|error| DeviceError::io(kind, offset, length, &error))
    }

    fn perform(&self, op: Op) -> io::Result<Done> {
        match op {
            Op::Read { offset, length } => {
                let (file, at) = self.place(offset, length as u64)?;
                let mut buffer = BytesMut::zeroed(length);
                file.read_exact_at(&mut buffer, at)?;
                return Ok(Done::Read(buffer));
            }
            Op::Write { offset, data } => self.write(offset, &data)?,
            Op::WriteMany { writes } => writes.iter().try_for_each(|(offset, data)| self.write(*offset, data))?,
            Op::WriteDurable { offset, data } => self.write_durable(offset, &data)?,
            Op::Sync => {
                // Only data needs it; the front is written durably or not at all.
                self.data.sync_data()?;
            }
            Op::Allocate { offset, length } => {
                let (file, at) = self.place(offset, length)?;
                match fallocate(file, FallocateFlags::KEEP_SIZE, at, length) {
                    // Who cannot promise space finds out when it writes.
                    Ok(()) | Err(Errno::OPNOTSUPP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Op::Discard { offset, length } => {
                let (file, at) = self.place(offset, length)?;
                // On a block device this is its own way to give space back (Linux 4.9).
                match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, length) {
                    // A file system or disk that cannot keeps the bytes: a discard is only a hint.
                    Ok(()) | Err(Errno::OPNOTSUPP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(Done::Ok)
    }

    fn write(&self, offset: u64, data: &[Bytes]) -> io::Result<()> {
        let (file, at) = self.place(offset, total(data))?;
        write_pieces(file, at, data)
    }

    fn write_durable(&self, offset: u64, data: &AlignedBuffer) -> io::Result<()> {
        let in_front = offset < self.front_bytes;
        let (_, at) = self.place(offset, data.len() as u64)?;
        let file = if in_front { self.durable_front.as_ref() } else { None }.unwrap_or(&self.durable_data);
        file.write_all_at(data.as_slice(), at)
    }
}

/// Vectored, so that a run of blocks from many messages is one system call.
fn write_pieces(file: &File, mut offset: u64, pieces: &[Bytes]) -> io::Result<()> {
    for group in pieces.chunks(MAX_PIECES) {
        let slices: Vec<_> = group.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut written = pwritev(file, &slices, offset)?;
        for piece in group {
            let skip = written.min(piece.len());
            // A short write: the rest goes piece by piece, which fails with the real error if there is one.
            file.write_all_at(&piece[skip..], offset + skip as u64)?;
            written -= skip;
            offset += piece.len() as u64;
        }
    }
    Ok(())
}

fn lock(file: &File) -> io::Result<()> {
    flock(file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from)
}

/// A second handle whose writes are durable when they return, direct if the file system can.
fn open_durable(path: &Path) -> io::Result<(File, bool)> {
    let open = |flags| OpenOptions::new().write(true).custom_flags(flags).open(path);
    // `OFlags::DSYNC` of rustix 1.1 is O_SYNC.
    match open(libc::O_DSYNC | libc::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok((open(libc::O_DSYNC)?, false)),
        Err(error) => Err(error),
    }
}

fn create_files(
    config: &FileConfig,
    is_block: bool,
    front_bytes: u64,
    total_bytes: u64,
    preallocate: bool,
    made: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let fresh = |path: &Path, made: &mut Vec<PathBuf>| {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        made.push(path.to_owned());
        lock(&file)?;
        io::Result::Ok(file)
    };
    let mut data = if is_block {
        let file = OpenOptions::new().read(true).write(true).open(&config.path)?;
        lock(&file)?;
        file
    } else {
        fresh(&config.path, made)?
    };
    let split = if config.journal_path.is_some() { front_bytes } else { 0 };
    if !is_block {
        data.set_len(total_bytes - split)?;
        if preallocate {
            fallocate(&data, FallocateFlags::empty(), 0, total_bytes - split)?;
        }
    }
    match &config.journal_path {
        Some(path) => {
            let mut front = fresh(path, made)?;
            fill(&mut front, front_bytes)?;
        }
        None => {
            data.seek(SeekFrom::Start(0))?;
            fill(&mut data, front_bytes)?;
        }
    }
    data.sync_all()?;
    // The names must last as long as the bytes.
    for path in made.iter() {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn fill(file: &mut File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; FILL_BYTES];
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(FILL_BYTES as u64);
        file.write_all(&zeros[..piece as usize])?;
        left -= piece;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O_SYNC holds O_DSYNC and one bit more, which makes each journal write wait for the inode's time stamps as well.
    #[test]
    fn a_durable_write_waits_for_its_data_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device");
        std::fs::write(&path, [0; 4096]).unwrap();
        let (file, _) = open_durable(&path).unwrap();
        let flags = rustix::fs::fcntl_getfl(&file).unwrap().bits().cast_signed();
        assert_eq!(flags & libc::O_SYNC, libc::O_DSYNC);
    }
}
