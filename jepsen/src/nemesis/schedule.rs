//! What is done when: pure, from a seed.

use std::fmt;

use rand::{RngExt as _, SeedableRng as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

/// Who is hurt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The MDM that leads when the fault begins.
    Leader,
    /// A storage server, counted from 0.
    Sds(u32),
    /// A client with an NBD server, counted from 0.
    Sdc(u32),
    /// Everybody.
    All,
}

/// How.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// SIGKILL, and a restart at the end.
    Kill,
    /// SIGSTOP, and SIGCONT at the end.
    Pause,
}

/// One fault, with times from the beginning of its round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hurt {
    /// How.
    pub fault: Fault,
    /// Who.
    pub target: Target,
    /// When it begins.
    pub from_ms: u64,
    /// When it ends.
    pub until_ms: u64,
}

/// Faults that may overlap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Round {
    /// Peace before it.
    pub gap_ms: u64,
    /// What is done.
    pub hurts: Vec<Hurt>,
}

/// One thing to do. Of two at the same moment the beginning is first, for it may be that of a fault without duration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Edge {
    Begin(usize),
    End(usize),
}

impl Round {
    /// A round of one fault.
    pub fn one(gap_ms: u64, fault: Fault, target: Target, duration_ms: u64) -> Self {
        Self { gap_ms, hurts: vec![Hurt { fault, target, from_ms: 0, until_ms: duration_ms }] }
    }

    /// What is to be done, by time.
    pub(super) fn timeline(&self) -> Vec<(u64, Edge)> {
        let edges =
            |(index, hurt): (usize, &Hurt)| [(hurt.from_ms, Edge::Begin(index)), (hurt.until_ms, Edge::End(index))];
        let mut all: Vec<_> = self.hurts.iter().enumerate().flat_map(edges).collect();
        all.sort_unstable();
        all
    }
}

impl fmt::Display for Hurt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = match self.fault {
            Fault::Kill => "kill",
            Fault::Pause => "pause",
        };
        match self.target {
            Target::Leader => write!(f, "{fault} the leader"),
            Target::Sds(index) => write!(f, "{fault} sds{index}"),
            Target::Sdc(index) => write!(f, "{fault} sdc{index}"),
            Target::All => write!(f, "{fault} all"),
        }
    }
}

/// Rounds without end, from a seed.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: ChaCha8Rng,
    sds: u32,
    sdcs: u32,
    rough: bool,
}

impl Schedule {
    /// For a cluster of `sds` storage servers and `sdcs` clients.
    pub fn new(seed: u64, sds: u32, sdcs: u32, rough: bool) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed), sds, sdcs, rough }
    }

    fn hurt(&mut self, fault: Fault, target: Target) -> Hurt {
        let from_ms = self.random.random_range(0..2_000);
        // Shorter and longer than the 3 s after which a silent server is held for lost.
        let lasts_ms = match (fault, target) {
            (Fault::Pause, _) => self.random.random_range(2_000..6_000),
            (Fault::Kill, Target::All) => self.random.random_range(0..1_000),
            (Fault::Kill, _) => self.random.random_range(200..7_000),
        };
        Hurt { fault, target, from_ms, until_ms: from_ms + lasts_ms }
    }

    fn storage(&mut self, sds: u32) -> Hurt {
        let fault = *[Fault::Kill, Fault::Pause].choose(&mut self.random).expect("not empty");
        self.hurt(fault, Target::Sds(sds))
    }

    fn control(&mut self) -> Hurt {
        let sdc = Target::Sdc(self.random.random_range(0..self.sdcs));
        match self.random.random_range(0..6) {
            0 | 1 => self.hurt(Fault::Kill, Target::Leader),
            2 => self.hurt(Fault::Pause, Target::Leader),
            3 => self.hurt(Fault::Pause, sdc),
            _ => self.hurt(Fault::Kill, sdc),
        }
    }
}

impl Iterator for Schedule {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let gap_ms = self.random.random_range(500..4_000);
        let sds = self.random.random_range(0..self.sds);
        let mut hurts = match self.random.random_range(0..10) {
            0 => vec![self.hurt(Fault::Kill, Target::All)],
            1 | 2 => vec![self.control()],
            3..=5 => vec![self.storage(sds)],
            _ => vec![self.storage(sds), self.control()],
        };
        let is_storage = matches!(hurts[0].target, Target::Sds(_));
        if self.rough && is_storage && self.sds > 1 && self.random.random_bool(0.6) {
            // A second server while the first is away or not yet in sync again.
            let other = (sds + self.random.random_range(1..self.sds)) % self.sds;
            let mut second = self.storage(other);
            let later = self.random.random_range(0..5_000);
            second.from_ms += later;
            second.until_ms += later;
            hurts.push(second);
        }
        Some(Round { gap_ms, hurts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_schedule() {
        let rounds = |seed| Schedule::new(seed, 3, 2, true).take(50).collect::<Vec<_>>();
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn a_fault_without_duration_begins_before_it_ends() {
        let timeline = Round::one(0, Fault::Kill, Target::All, 0).timeline();
        assert_eq!(timeline, [(0, Edge::Begin(0)), (0, Edge::End(0))]);
    }

    #[test]
    fn a_round_hurts_no_more_than_one_server_and_one_other_unless_rough() {
        let servers = |round: &Round| round.hurts.iter().filter(|hurt| matches!(hurt.target, Target::Sds(_))).count();
        for seed in 0..20 {
            for round in Schedule::new(seed, 3, 2, false).take(100) {
                assert!(servers(&round) <= 1 && round.hurts.len() - servers(&round) <= 1, "seed {seed}: {round:?}");
                let everybody = round.hurts.iter().any(|hurt| hurt.target == Target::All);
                assert!(!everybody || round.hurts.len() == 1, "seed {seed}: {round:?}");
            }
        }
        assert!(Schedule::new(1, 3, 2, true).take(100).any(|round| servers(&round) == 2));
    }

    #[test]
    fn each_fault_ends_after_it_began_and_the_timeline_is_in_order() {
        for round in Schedule::new(3, 3, 2, true).take(200) {
            let timeline = round.timeline();
            assert!(timeline.is_sorted());
            assert_eq!(timeline.len(), 2 * round.hurts.len());
            assert!(round.hurts.iter().all(|hurt| hurt.from_ms <= hurt.until_ms));
        }
    }
}
