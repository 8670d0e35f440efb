//! A bounded queue of jobs and the threads that work on it. One lane per kind of IO, so that a burst of reads never
//! delays a journal write.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use super::{Completion, DeviceError, Op};

/// Jobs that may wait in one lane. The store keeps far fewer in flight; this only bounds a misbehaving owner.
const QUEUE_JOBS: usize = 4096;

pub(super) type Job = (Op, Completion);

struct Queue {
    state: Mutex<State>,
    not_empty: Condvar,
    not_full: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    closed: bool,
    /// Threads that wait for a job, and owners that wait for a place: to wake nobody is a system call all the same.
    idle: usize,
    refused: usize,
}

/// Threads and their queue; dropping it finishes what is queued and joins the threads.
pub(super) struct Lane {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

impl Lane {
    pub(super) fn start(
        name: &str,
        threads: usize,
        execute: impl Fn(Job) + Send + Sync + Clone + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue {
            state: Mutex::new(State { jobs: VecDeque::new(), closed: false, idle: 0, refused: 0 }),
            not_empty: Condvar::new(),
            not_full: Condvar::new(),
        });
        let mut lane = Self { queue: Arc::clone(&queue), threads: Vec::with_capacity(threads) };
        for number in 0..threads {
            let (queue, execute) = (Arc::clone(&queue), execute.clone());
            let body = move || {
                while let Some(job) = queue.next() {
                    execute(job);
                }
            };
            lane.threads.push(thread::Builder::new().name(format!("{name}-{number}")).spawn(body)?);
        }
        Ok(lane)
    }

    pub(super) fn push(&self, job: Job) {
        let mut state = self.queue.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.jobs.len() >= QUEUE_JOBS && !state.closed {
            state.refused += 1;
            state = self.queue.not_full.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.refused -= 1;
        }
        if state.closed {
            drop(state);
            return (job.1)(Err(DeviceError::Closed));
        }
        state.jobs.push_back(job);
        let wakes = state.idle > 0;
        drop(state);
        if wakes {
            self.queue.not_empty.notify_one();
        }
    }
}

impl Queue {
    /// The next job; none once closed and empty.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                let wakes = state.refused > 0;
                drop(state);
                if wakes {
                    self.not_full.notify_one();
                }
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            state = self.not_empty.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.queue.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.queue.not_empty.notify_all();
        self.queue.not_full.notify_all();
        for thread in self.threads.drain(..) {
            // A completion may hold the last handle of the device: then this is that worker, which cannot join itself.
            if thread.thread().id() != thread::current().id() {
                drop(thread.join());
            }
        }
    }
}
