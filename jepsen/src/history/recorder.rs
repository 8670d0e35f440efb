//! Writes the history down as it happens: in memory for the checkers, and as JSON lines for people and for a run that dies.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    path::Path,
    sync::Mutex,
    time::Instant,
};

use super::{Action, Block, Event, OperationId, ProcessId, What};

/// Shared by all clients and the nemesis. The lock gives events their one order.
#[derive(Debug)]
pub struct Recorder {
    started: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: BufWriter<File>,
    events: Vec<Event>,
    next: u64,
}

impl Recorder {
    /// Creates the file; times count from now.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        let inner = Inner { file: BufWriter::new(File::create(path)?), events: Vec::new(), next: 0 };
        Ok(Self { started: Instant::now(), inner: Mutex::new(inner) })
    }

    /// Records that an operation is about to be sent.
    pub fn invoke(&self, process: ProcessId, block: Block, action: Action) -> OperationId {
        self.with(|inner| {
            let op = OperationId(inner.next);
            inner.next += 1;
            (What::Invoke { op, process, block, action }, op)
        })
    }

    /// Records an end, or a fault.
    pub fn record(&self, what: What) {
        self.with(|_| (what, ()));
    }

    /// Records what was done to the cluster.
    pub fn fault(&self, text: impl Into<String>) {
        self.record(What::Fault { text: text.into() });
    }

    /// All events so far; flushes the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn events(&self) -> io::Result<Vec<Event>> {
        let mut inner = self.inner.lock().expect("nobody panics while recording");
        inner.file.flush()?;
        Ok(inner.events.clone())
    }

    fn with<T>(&self, make: impl FnOnce(&mut Inner) -> (What, T)) -> T {
        let mut inner = self.inner.lock().expect("nobody panics while recording");
        let (what, result) = make(&mut inner);
        // Inside the lock, so that times and order agree.
        let at_us = self.started.elapsed().as_micros() as u64;
        let event = Event { at_us, what };
        // The copy in memory is what is judged; a full disk shows when the file is flushed.
        if serde_json::to_writer(&mut inner.file, &event).is_ok() {
            drop(inner.file.write_all(b"\n"));
        }
        // Whoever watches a run sees where it is.
        if let What::Fault { .. } = event.what {
            drop(inner.file.flush());
        }
        inner.events.push(event);
        result
    }
}

/// Reads a history back, for judging it again.
///
/// # Errors
/// When the file cannot be read or a line is no event.
pub fn load(path: &Path) -> io::Result<Vec<Event>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines.map(|line| serde_json::from_str(&line?).map_err(io::Error::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Content, Value};

    #[test]
    fn what_was_recorded_is_read_back_in_the_same_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let recorder = Recorder::create(&path).unwrap();
        let first = recorder.invoke(ProcessId(1), Block(2), Action::Write(Value::of(1, 1)));
        let second = recorder.invoke(ProcessId(2), Block(2), Action::Read);
        recorder.fault("kill sds1");
        recorder.record(What::Unknown { op: first, why: "closed".into() });
        recorder.record(What::Ok { op: second, content: Some(Content::Whole(Value::of(1, 1))) });
        let events = recorder.events().unwrap();
        assert_eq!(load(&path).unwrap(), events);
        assert_eq!((first, second, events.len()), (OperationId(0), OperationId(1), 5));
        assert!(events.is_sorted_by_key(|event| event.at_us));
    }
}
