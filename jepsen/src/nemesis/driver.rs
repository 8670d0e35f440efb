//! Carries a schedule out on a cluster. Runs on the thread that owns the cluster.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::schedule::{Edge, Fault, Round, Target};
use crate::{
    cluster::{Cluster, ClusterError, Process, Role},
    history::Recorder,
};

/// How long the cluster may take to become whole after a round. A slow machine and a long resync are no violation; a
/// cluster that never heals is told apart from both by this.
const HEALING: Duration = Duration::from_secs(240);
const TICK: Duration = Duration::from_millis(50);

/// The nemesis of one run.
pub struct Nemesis<'a> {
    cluster: &'a mut Cluster,
    recorder: &'a Recorder,
    stop: &'a dyn Fn() -> bool,
    rough: bool,
    /// Failures of the product that are not in the answers to clients: processes that ended by themselves.
    trouble: Vec<String>,
}

impl<'a> Nemesis<'a> {
    /// `stop` ends waits early; what was broken is mended all the same.
    pub fn new(cluster: &'a mut Cluster, recorder: &'a Recorder, rough: bool, stop: &'a dyn Fn() -> bool) -> Self {
        Self { cluster, recorder, stop, rough, trouble: Vec::new() }
    }

    /// One round, from the peace before it until the cluster is healthy again.
    ///
    /// # Errors
    /// When the cluster cannot be mended.
    pub fn round(&mut self, round: &Round) -> Result<(), ClusterError> {
        self.sleep_until(Instant::now() + Duration::from_millis(round.gap_ms));
        let started = Instant::now();
        // Whom each fault hit: the leader at its end is another than at its beginning.
        let mut victims: Vec<Option<Process>> = vec![None; round.hurts.len()];
        for (at_ms, edge) in round.timeline() {
            self.sleep_until(started + Duration::from_millis(at_ms));
            let (Edge::Begin(index) | Edge::End(index)) = edge;
            let hurt = &round.hurts[index];
            match (edge, hurt.target) {
                (Edge::Begin(_), Target::All) => {
                    self.recorder.fault(hurt.to_string());
                    self.cluster.kill_all()?;
                }
                (Edge::End(_), Target::All) => self.mend()?,
                (Edge::Begin(_), Target::Leader | Target::Sds(_) | Target::Sdc(_)) => {
                    // Somebody else's fault may have taken it down already; then this one hits nobody.
                    victims[index] = self.victim(hurt.target).filter(|victim| !victims.contains(&Some(*victim)));
                    if let Some(victim) = victims[index] {
                        self.begin(hurt.fault, victim)?;
                    }
                }
                (Edge::End(_), Target::Leader | Target::Sds(_) | Target::Sdc(_)) => {
                    if let Some(victim) = victims[index] {
                        self.end(hurt.fault, victim)?;
                    }
                }
            }
        }
        self.notice_fallen();
        if !self.rough {
            self.wait_until_healthy()?;
        }
        Ok(())
    }

    fn victim(&self, target: Target) -> Option<Process> {
        match target {
            Target::Leader => self.cluster.leader().ok(),
            Target::Sds(index) => Some(Process { role: Role::Sds, index }),
            Target::Sdc(index) => Some(Process { role: Role::Sdc, index }),
            Target::All => None,
        }
    }

    fn begin(&mut self, fault: Fault, victim: Process) -> Result<(), ClusterError> {
        let (word, done) = match fault {
            Fault::Kill => {
                self.recorder.fault(format!("kill {victim}"));
                ("killed", self.cluster.kill(victim))
            }
            Fault::Pause => {
                self.recorder.fault(format!("pause {victim}"));
                ("paused", self.cluster.pause(victim))
            }
        };
        match done {
            // It ended by itself before; the look for fallen ones says so.
            Err(ClusterError::NotRunning(_)) => Ok(()),
            done => {
                self.recorder.fault(format!("{victim} is {word}"));
                done
            }
        }
    }

    fn end(&mut self, fault: Fault, victim: Process) -> Result<(), ClusterError> {
        match fault {
            Fault::Kill => {
                self.recorder.fault(format!("start {victim}"));
                self.cluster.start_one(victim)
            }
            Fault::Pause => {
                self.recorder.fault(format!("resume {victim}"));
                match self.cluster.resume(victim) {
                    Err(ClusterError::NotRunning(_)) => Ok(()),
                    done => done,
                }
            }
        }
    }

    /// Starts whatever does not run and waits until all is well.
    ///
    /// # Errors
    /// When that does not come to be.
    pub fn mend(&mut self) -> Result<(), ClusterError> {
        self.notice_fallen();
        self.recorder.fault("up");
        self.cluster.up()?;
        self.wait_until_healthy()
    }

    fn wait_until_healthy(&mut self) -> Result<(), ClusterError> {
        // A process that falls while it is waited for would never be waited to an end.
        let started = Instant::now();
        loop {
            match self.cluster.wait_until_healthy(TICK * 20, self.stop) {
                Ok(()) => break,
                Err(error) if started.elapsed() > HEALING => return Err(error),
                Err(_) if (self.stop)() => return Ok(()),
                Err(_) => {
                    if self.notice_fallen() {
                        self.cluster.up()?;
                    }
                }
            }
        }
        self.recorder.fault("healthy");
        Ok(())
    }

    /// Notes processes that ended though nobody killed them; returns whether there are any.
    fn notice_fallen(&mut self) -> bool {
        let fallen = self.cluster.take_fallen();
        for (process, words) in &fallen {
            self.recorder.fault(format!("{process} ended by itself"));
            self.trouble.push(format!("{process} ended by itself; its last words:\n{words}"));
        }
        !fallen.is_empty()
    }

    /// What the product did wrong besides wrong answers.
    pub fn into_trouble(self) -> Vec<String> {
        self.trouble
    }

    fn sleep_until(&self, at: Instant) {
        while Instant::now() < at && !(self.stop)() {
            thread::sleep(TICK.min(at.saturating_duration_since(Instant::now())));
        }
    }
}
