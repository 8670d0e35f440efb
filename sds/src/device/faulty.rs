//! A device that fails on demand: wraps any other and lets a test say which operation goes wrong, and how.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Completion, Device, DeviceError, Done, Op, OpKind};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// The operation is not done and reports an error.
    Error,
    /// The operation is done, and reports an error nevertheless.
    ErrorAfterwards,
    /// Reads return one flipped bit.
    FlipBit,
    /// The operation waits until [`FaultyDevice::release`].
    Delay,
}

/// A fault: the `after`-th operation of `kind` from now (0 is the next) that touches `within`.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which kind of operation.
    pub kind: OpKind,
    /// How many matching ones pass before.
    pub after: u32,
    /// The bytes it has to touch; none is any.
    pub within: Option<std::ops::Range<u64>>,
    /// What happens.
    pub injected: Injected,
}

/// See the module.
pub struct FaultyDevice {
    inner: Arc<dyn Device>,
    faults: Mutex<Vec<Fault>>,
    delayed: Mutex<Vec<(Op, Completion)>>,
}

impl FaultyDevice {
    /// Without any fault yet.
    pub fn new(inner: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Self { inner, faults: Mutex::default(), delayed: Mutex::default() })
    }

    /// Plans a fault; it strikes once.
    pub fn inject(&self, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    /// Lets the delayed operations go.
    pub fn release(&self) {
        for (op, done) in std::mem::take(&mut *self.delayed.lock().unwrap_or_else(PoisonError::into_inner)) {
            self.inner.submit(op, done);
        }
    }

    fn strike(&self, op: &Op) -> Option<Injected> {
        let (offset, length) = op.extent();
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let matches = |fault: &Fault| {
            fault.kind == op.kind()
                && fault.within.as_ref().is_none_or(|range| offset < range.end && offset + length > range.start)
        };
        let index = faults.iter().position(matches)?;
        if faults[index].after > 0 {
            faults[index].after -= 1;
            return None;
        }
        Some(faults.remove(index).injected)
    }
}

impl Device for FaultyDevice {
    fn capacity(&self) -> u64 {
        self.inner.capacity()
    }

    /// So that allocations can be made to fail.
    fn is_thin(&self) -> bool {
        true
    }

    fn submit(&self, op: Op, done: Completion) {
        let (kind, (offset, length)) = (op.kind(), op.extent());
        let error =
            DeviceError::Io { kind, offset, length, error: std::io::ErrorKind::Other, message: "injected".into() };
        match self.strike(&op) {
            None => self.inner.submit(op, done),
            Some(Injected::Error) => done(Err(error)),
            Some(Injected::ErrorAfterwards) => self.inner.submit(op, Box::new(move |_| done(Err(error)))),
            Some(Injected::FlipBit) => self.inner.submit(
                op,
                Box::new(move |outcome| {
                    done(outcome.map(|result| match result {
                        Done::Read(mut bytes) => {
                            if let Some(byte) = bytes.first_mut() {
                                *byte ^= 1;
                            }
                            Done::Read(bytes)
                        }
                        Done::Ok => Done::Ok,
                    }));
                }),
            ),
            Some(Injected::Delay) => {
                self.delayed.lock().unwrap_or_else(PoisonError::into_inner).push((op, done));
            }
        }
    }
}
