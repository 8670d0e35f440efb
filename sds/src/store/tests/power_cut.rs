//! Power is cut at every boundary of a life: after each operation that was submitted, done or reported, however the disk
//! left what was not synced. Each time the store is opened on what is left, and compared with the model of `crash`.
//!
//! `crash` goes on with one of these images and lives on it; this test looks at all of them.

use rand::RngExt;

use super::{
    Bug,
    crash::{World, all_are_noticed, seeds},
};
use crate::device::{Lie, SECTORS, Unsynced};

/// Actions of a life; each has several boundaries.
const ACTIONS: usize = 160;

/// What becomes of the pages that were not synced.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// None made it.
    Lost,
    /// All did.
    Kept,
    /// Those written first.
    Begun,
    /// Those written last, and none before them: the disk reordered.
    Reordered,
    /// Of each every other sector.
    Torn,
    /// All but the last, and of that one a part.
    TornLast,
    /// As it happens.
    Random,
}

impl Cut {
    const ALL: [Self; 7] =
        [Self::Lost, Self::Kept, Self::Begun, Self::Reordered, Self::Torn, Self::TornLast, Self::Random];

    fn keeps(self, page: Unsynced, random: &mut impl rand::Rng) -> [bool; SECTORS] {
        let Unsynced { number, of } = page;
        match self {
            Self::Lost => [false; SECTORS],
            Self::Kept => [true; SECTORS],
            Self::Begun => [number < of / 2; SECTORS],
            Self::Reordered => [number >= of / 2; SECTORS],
            Self::Torn => std::array::from_fn(|sector| sector % 2 == number % 2),
            Self::TornLast => std::array::from_fn(|sector| number + 1 < of || sector < SECTORS / 2),
            Self::Random => std::array::from_fn(|_| random.random()),
        }
    }
}

/// Returns how many images were opened.
fn cut_everywhere(seed: u64, lie: Option<Lie>) -> u64 {
    let mut world = World::new(seed, lie);
    let mut random = world.random.clone();
    let (mut last, mut opened) = (None, 0);
    for _ in 0..ACTIONS {
        world.act();
        let boundary = (world.device.boundary(), world.meta.queued());
        if last.replace(boundary) == Some(boundary) {
            continue;
        }
        for cut in Cut::ALL {
            let device = world.device.after_power_cut(|page| cut.keeps(page, &mut random));
            for survive in [0, world.meta.queued()] {
                let meta = world.meta.after_power_cut(survive);
                drop(world.recover(&device.after_power_cut(|_| [true; SECTORS]), &meta));
                opened += 1;
                if world.meta.queued() == 0 {
                    break;
                }
            }
        }
    }
    opened
}

#[test]
fn power_cut_at_every_boundary_loses_nothing_that_was_reported_durable() {
    for seed in seeds(2) {
        let opened = std::panic::catch_unwind(|| cut_everywhere(seed, None));
        let Ok(opened) = opened else { panic!("STORE_SEED={seed} fails") };
        println!("seed {seed}: {opened} images opened");
        assert!(opened > 300, "{opened} boundaries are not a life");
    }
}

#[test]
fn cutting_everywhere_notices_lying_disks_and_planted_bugs() {
    // A unit used again too early shows only when a checkpoint is on its way; `crash` hunts for that.
    all_are_noticed(8, &[Bug::PersistVisibleOperations, Bug::OverwriteReferenced], cut_everywhere);
}
