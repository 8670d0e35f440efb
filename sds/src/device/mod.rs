//! Block devices, completion based: the owner submits an operation and goes on; a completion is called when it is done.
//!
//! The seam between the store (one thread, no blocking) and disks. Three implementations pass one suite
//! ([`conformance`]): [`FileDevice`] on files and raw block devices, [`MemoryDevice`] whose crashes lose and tear what
//! was not synced, and [`FaultyDevice`] which wraps either and fails on demand. [`TimedDevice`] wraps any of them. Threads do the IO today; an `io_uring`
//! implementation fits the same trait.
//!
//! **Architecture Invariant:** nothing here knows what the bytes mean, and nothing here retries.

mod aligned;
pub mod conformance;
mod faulty;
mod file;
mod lane;
mod memory;
mod timed;

use std::{io, sync::mpsc};

use bytes::{Bytes, BytesMut};

pub use self::{
    aligned::AlignedBuffer,
    faulty::{Fault, FaultyDevice, Injected},
    file::{FileConfig, FileDevice},
    memory::{Lie, MemoryDevice, SECTORS, Unsynced},
    timed::{Meter, TimedDevice},
};

/// Durable writes start and end on multiples of this: the unit of direct IO and of untorn writes.
pub const ALIGNMENT: usize = 4096;

/// One operation. Offsets are bytes from the start of the device.
#[derive(Debug)]
pub enum Op {
    /// Read `length` bytes.
    Read {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: usize,
    },
    /// Write the pieces one after the other. Durable only after a later [`Op::Sync`].
    Write {
        /// Where the first piece goes.
        offset: u64,
        /// The pieces.
        data: Vec<Bytes>,
    },
    /// Many small [`Op::Write`]s as one operation: where each goes, and its pieces. In any order.
    WriteMany {
        /// At least one.
        writes: Vec<(u64, Vec<Bytes>)>,
    },
    /// Write, durable when completed. These run one at a time in the order of submission: the journal's lane.
    WriteDurable {
        /// A multiple of [`ALIGNMENT`].
        offset: u64,
        /// A multiple of [`ALIGNMENT`] long.
        data: AlignedBuffer,
    },
    /// Make every [`Op::Write`] durable whose completion was called before this was submitted.
    Sync,
    /// Take the space of these bytes from what holds the device, a file system, so that writing there cannot fail for
    /// want of it. Bytes that are there stay.
    Allocate {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// The bytes are not needed any more; what a read returns afterwards is unspecified.
    Discard {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
}

/// What kind of operation failed or is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// [`Op::Read`].
    Read,
    /// [`Op::Write`] and [`Op::WriteMany`].
    Write,
    /// [`Op::WriteDurable`].
    WriteDurable,
    /// [`Op::Sync`].
    Sync,
    /// [`Op::Allocate`].
    Allocate,
    /// [`Op::Discard`].
    Discard,
}

impl OpKind {
    /// Whether something waits for it. Background work comes in thousands at once: it says nothing of a disk's speed.
    pub const fn is_waited_for(self) -> bool {
        !matches!(self, Self::Allocate | Self::Discard)
    }
}

impl Op {
    /// Its kind, for errors, statistics and fault plans.
    pub const fn kind(&self) -> OpKind {
        match self {
            Self::Read { .. } => OpKind::Read,
            Self::Write { .. } | Self::WriteMany { .. } => OpKind::Write,
            Self::WriteDurable { .. } => OpKind::WriteDurable,
            Self::Sync => OpKind::Sync,
            Self::Allocate { .. } => OpKind::Allocate,
            Self::Discard { .. } => OpKind::Discard,
        }
    }

    /// Where it begins and how long it is, with what lies between its parts; a sync has no place.
    pub fn extent(&self) -> (u64, u64) {
        match self {
            Self::Read { offset, length } => (*offset, *length as u64),
            Self::Write { offset, data } => (*offset, total(data)),
            Self::WriteMany { writes } => {
                let first = writes.iter().map(|(offset, _)| *offset).min().unwrap_or(0);
                let end = writes.iter().map(|(offset, data)| offset.saturating_add(total(data))).max().unwrap_or(0);
                (first, end - first)
            }
            Self::WriteDurable { offset, data } => (*offset, data.len() as u64),
            Self::Sync => (0, 0),
            Self::Allocate { offset, length } | Self::Discard { offset, length } => (*offset, *length),
        }
    }

    /// Refuses what no device can do, alike in every implementation.
    fn check(&self, capacity: u64) -> Result<(), DeviceError> {
        let (offset, length) = self.extent();
        if offset.checked_add(length).is_none_or(|end| end > capacity) {
            return Err(DeviceError::OutOfRange { kind: self.kind(), offset, length, capacity });
        }
        if let Self::WriteDurable { .. } = self
            && (offset % ALIGNMENT as u64 != 0 || length % ALIGNMENT as u64 != 0)
        {
            return Err(DeviceError::Unaligned { offset, length });
        }
        Ok(())
    }
}

/// The bytes of all pieces.
fn total(data: &[Bytes]) -> u64 {
    data.iter().map(|piece| piece.len() as u64).sum()
}

/// What a completed operation brings back.
#[derive(Debug)]
pub enum Done {
    /// The bytes that were read.
    Read(BytesMut),
    /// Anything else.
    Ok,
}

/// A device operation that was not done, or not wholly.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// The operating system said no.
    #[error("{kind:?} of {length} bytes at {offset} failed: {message}")]
    Io {
        /// What was tried.
        kind: OpKind,
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// The class of the error.
        error: io::ErrorKind,
        /// Its text.
        message: String,
    },
    /// It does not lie inside the device.
    #[error("{kind:?} of {length} bytes at {offset} is outside a device of {capacity} bytes")]
    OutOfRange {
        /// What was tried.
        kind: OpKind,
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// The device's size.
        capacity: u64,
    },
    /// A durable write that is not made of whole 4 KiB blocks.
    #[error("a durable write of {length} bytes at {offset} is not made of whole {ALIGNMENT}-byte blocks")]
    Unaligned {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// The device was closed before the operation ran.
    #[error("the device is closed")]
    Closed,
}

impl DeviceError {
    /// From an error of the operating system.
    pub(crate) fn io(kind: OpKind, offset: u64, length: u64, error: &io::Error) -> Self {
        Self::Io { kind, offset, length, error: error.kind(), message: error.to_string() }
    }
}

/// How an operation ended.
pub type Outcome = Result<Done, DeviceError>;

/// Called once, on any thread, possibly before `submit` returns: it should only hand the outcome on.
pub type Completion = Box<dyn FnOnce(Outcome) + Send>;

/// A block device.
pub trait Device: Send + Sync + 'static {
    /// Its size in bytes.
    fn capacity(&self) -> u64;

    /// Where its second part starts, if the first has a file of its own: no operation may straddle it.
    fn split(&self) -> Option<u64> {
        None
    }

    /// Whether its space is taken from something that may have none left when it is written to, so that
    /// [`Op::Allocate`] is worth asking for.
    fn is_thin(&self) -> bool {
        false
    }

    /// Starts an operation; `done` is called when it has ended. Blocks only while a bounded queue is full, which
    /// cannot deadlock because workers wait for nobody.
    fn submit(&self, op: Op, done: Completion);

    /// Reads into `buffer` if that needs no waiting (the bytes are in memory); says whether it did.
    fn try_read(&self, _offset: u64, _buffer: &mut [u8]) -> bool {
        false
    }
}

/// Submits and waits. Only for opening and formatting: the data thread never blocks on a disk.
///
/// # Errors
/// Those of the operation.
pub fn run(device: &dyn Device, op: Op) -> Outcome {
    let (sender, receiver) = mpsc::channel();
    device.submit(op, Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.recv().unwrap_or(Err(DeviceError::Closed))
}

/// Reads and waits; see [`run`].
///
/// # Errors
/// Those of the operation.
pub fn read_now(device: &dyn Device, offset: u64, length: usize) -> Result<BytesMut, DeviceError> {
    match run(device, Op::Read { offset, length })? {
        Done::Read(bytes) => Ok(bytes),
        Done::Ok => Err(DeviceError::Closed),
    }
}
