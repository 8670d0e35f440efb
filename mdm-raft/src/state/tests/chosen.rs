//! The rule of `state::recovery` against a model of what devices do: whoever it calls good has every acknowledged write.
//!
//! The model is the part of the replication protocol that matters here: configurations that the MDM commits, devices that
//! learn them late or never and make each durable before they act in it, writes that every in-sync copy has, joins that
//! only the primary proposes (S3), copies that lose all they had (S13), and a backup from somewhere in between.
//! `PFLEX_TEST_SEED` runs one seed again.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{ClusterGeneration, DeviceId, Epoch, Incarnation, Member, PgId, SdsId, VolatilityId};
use rand::{RngExt as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    state::{
        model::{GroupReports, KnownConfig},
        recovery::choose,
    },
    testing::{Seeds, rng},
};

const DEVICES: u32 = 4;
const COPIES: usize = 3;

#[derive(Clone, Default)]
struct Copy {
    life: u64,
    known: Option<KnownConfig>,
    writes: BTreeSet<u64>,
    /// The epoch that its primary has opened with it.
    opened: Epoch,
    /// As primary: the joiner it has proposed. It needs that one's acknowledgement until it learns what came of it (S3).
    proposed: Option<DeviceId>,
}

/// One group, from its first configuration on.
struct Model {
    now: KnownConfig,
    copies: BTreeMap<DeviceId, Copy>,
    acknowledged: BTreeSet<u64>,
    next_write: u64,
    /// The newest that a copy knew when it lost everything, its records too.
    forgotten: Option<KnownConfig>,
}

impl Model {
    fn new() -> Self {
        let device = |n| DeviceId(n);
        let copies: BTreeMap<_, _> = (1..=DEVICES).map(|n| (device(n), Copy { life: 1, ..Copy::default() })).collect();
        let mut model =
            Self { now: config(1, &[]), copies, acknowledged: BTreeSet::new(), next_write: 0, forgotten: None };
        let in_sync: Vec<Member> = (1..=COPIES as u32).map(|n| model.member(device(n))).collect();
        model.now = config(1, &in_sync);
        model
    }

    fn member(&self, device: DeviceId) -> Member {
        Member { device, sds: SdsId(device.get()), incarnation: Incarnation(self.copies[&device].life) }
    }

    fn is_present(&self, member: &Member) -> bool {
        self.copies[&member.device].life == member.incarnation.get()
    }

    fn commit(&mut self, in_sync: Vec<Member>, primary: Option<DeviceId>) {
        let epoch = self.now.epoch.next();
        self.now = KnownConfig { primary, ..config(epoch.get(), &in_sync) };
    }

    /// A device hears of the newest configuration. One that names another life of it is nothing it acts in.
    fn learn(&mut self, device: DeviceId) {
        let now = self.now.clone();
        let other_life = now.in_sync.iter().any(|member| member.device == device && !self.is_present(member));
        let copy = self.copies.get_mut(&device).expect("all are there");
        if !other_life && copy.known.as_ref().is_none_or(|known| known.order() < now.order()) {
            copy.known = Some(now);
            copy.proposed = None;
        }
    }

    /// S1: the primary makes all copies of its epoch equal to its own.
    fn open(&mut self, device: DeviceId) {
        let Some(known) = self.copies[&device].known.clone().filter(|known| known.primary == Some(device)) else {
            return;
        };
        let here =
            |member: &Member| self.is_present(member) && self.copies[&member.device].known.as_ref() == Some(&known);
        if known.in_sync.iter().all(here) {
            let writes = self.copies[&device].writes.clone();
            for member in &known.in_sync {
                let copy = self.copies.get_mut(&member.device).expect("all are there");
                copy.opened = known.epoch;
                copy.writes.clone_from(&writes);
            }
        }
    }

    /// A write that reaches the primary and some copies; acknowledged if it reached all that it must.
    fn write(&mut self, rng: &mut ChaCha8Rng, device: DeviceId) {
        let primary = &self.copies[&device];
        let Some(known) = primary.known.clone().filter(|known| known.primary == Some(device)) else { return };
        if primary.opened != known.epoch {
            return;
        }
        let needed: BTreeSet<DeviceId> =
            known.in_sync.iter().map(|member| member.device).chain(primary.proposed).collect();
        let mut everywhere = true;
        let all = rng.random_bool(0.7);
        for needed in needed {
            let copy = self.copies.get_mut(&needed).expect("all are there");
            let takes = copy.known.as_ref() == Some(&known) && (needed == device || all || rng.random_bool(0.5));
            let takes = takes && (copy.opened == known.epoch || !known.names(needed));
            everywhere &= takes;
            if takes {
                copy.writes.insert(self.next_write);
            }
        }
        if everywhere {
            self.acknowledged.insert(self.next_write);
        }
        self.next_write += 1;
    }

    /// S3 and S10: the primary fills a copy of its epoch and proposes it.
    fn join(&mut self, rng: &mut ChaCha8Rng, device: DeviceId, joiner: DeviceId) {
        let primary = &self.copies[&device];
        let Some(known) = primary.known.clone().filter(|known| known.primary == Some(device)) else { return };
        let fits = primary.opened == known.epoch && primary.proposed.is_none() && !known.names(joiner);
        if !fits || self.copies[&joiner].known.as_ref() != Some(&known) || known.in_sync.len() >= COPIES {
            return;
        }
        let writes = primary.writes.clone();
        self.copies.get_mut(&joiner).expect("all are there").writes = writes;
        self.copies.get_mut(&device).expect("all are there").proposed = Some(joiner);
        // The proposal may get lost, or the MDM has moved on.
        if known.epoch == self.now.epoch && rng.random_bool(0.7) {
            let in_sync = known.in_sync.iter().copied().chain([self.member(joiner)]).collect();
            self.commit(in_sync, Some(device));
        }
    }

    /// The MDM takes a member out that it believes lost, or the primary had it taken out.
    fn lose(&mut self, rng: &mut ChaCha8Rng, device: DeviceId) {
        let left: Vec<Member> = self.now.in_sync.iter().filter(|member| member.device != device).copied().collect();
        if self.now.names(device) && left.iter().any(|member| self.is_present(member)) {
            let present: Vec<DeviceId> = left.iter().filter(|m| self.is_present(m)).map(|m| m.device).collect();
            let primary = present.choose(rng).copied();
            self.commit(left, primary);
        }
    }

    /// A device loses everything, with its records, and may or may not come to register.
    fn empty(&mut self, rng: &mut ChaCha8Rng, device: DeviceId) {
        let copy = self.copies.get_mut(&device).expect("all are there");
        let newest = copy.known.take().into_iter().chain(self.forgotten.take());
        self.forgotten = newest.max_by_key(KnownConfig::order);
        *copy = Copy { life: copy.life + 1, ..Copy::default() };
        if rng.random_bool(0.6) {
            self.lose(rng, device);
        }
    }

    /// It was opened again with all it had, and registered.
    fn restart(&mut self, device: DeviceId) {
        let before = self.member(device);
        self.copies.get_mut(&device).expect("all are there").life += 1;
        let after = self.member(device);
        self.copies.get_mut(&device).expect("all are there").opened = Epoch(0);
        if self.now.in_sync.contains(&before) {
            let in_sync = self.now.in_sync.iter().map(|m| if *m == before { after } else { *m }).collect();
            self.commit(in_sync, self.now.primary);
        }
    }

    fn step(&mut self, rng: &mut ChaCha8Rng) {
        let device = DeviceId(rng.random_range(1..=DEVICES));
        let primary = self.now.primary.filter(|_| rng.random_bool(0.7)).unwrap_or(device);
        match rng.random_range(0..100_u32) {
            0..=34 => self.learn(device),
            35..=54 => self.open(primary),
            55..=79 => self.write(rng, primary),
            80..=87 => self.join(rng, primary, device),
            88..=93 => self.lose(rng, device),
            94..=97 => self.restart(device),
            _ => self.empty(rng, device),
        }
    }
}

fn config(epoch: u64, in_sync: &[Member]) -> KnownConfig {
    KnownConfig {
        generation: ClusterGeneration(1),
        epoch: Epoch(epoch),
        primary: in_sync.first().map(|member| member.device),
        in_sync: in_sync.to_vec(),
        replicas: in_sync.iter().map(|member| member.device).collect(),
        volatility: VolatilityId(1),
        served: false,
    }
}

type Rule = fn(&GroupReports, &BTreeSet<DeviceId>) -> Vec<DeviceId>;

fn the_rule(reports: &GroupReports, reported: &BTreeSet<DeviceId>) -> Vec<DeviceId> {
    choose(reports, |device| reported.contains(&device)).map(|choice| choice.good).unwrap_or_default()
}

/// What a rule does to acknowledged writes in one run.
fn run(seed: u64, rule: Rule) -> Result<bool, String> {
    let mut rng = rng(seed);
    let mut model = Model::new();
    let steps = rng.random_range(20..200_u32);
    let backup_at = rng.random_range(0..steps);
    let mut base = model.now.clone();
    for step in 0..steps {
        model.step(&mut rng);
        if step == backup_at {
            base = model.now.clone();
        }
    }
    let all: BTreeSet<DeviceId> = model.copies.keys().copied().collect();
    let reported: BTreeSet<DeviceId> =
        if rng.random_bool(0.5) { all } else { all.into_iter().filter(|_| rng.random_bool(0.75)).collect() };
    let said = |device: &DeviceId| Some((*device, model.copies[device].known.clone()?));
    let reports =
        GroupReports { pg: PgId::default(), by: reported.iter().filter_map(said).collect(), base: Some(base.clone()) };
    // What only lost devices knew is what the operator gave up.
    let newest = reports.by.values().map(KnownConfig::order).max().max(Some(base.order()));
    let knew_more = model
        .copies
        .iter()
        .any(|(device, copy)| !reported.contains(device) && copy.known.as_ref().map(KnownConfig::order) > newest);
    // Nor can anybody tell that there were newer configurations when all who knew of them have lost their records: the
    // last copy of what was acknowledged in those is gone, too.
    let forgotten = model.forgotten.as_ref().map(KnownConfig::order) > newest;
    if knew_more || forgotten {
        return Ok(false);
    }
    let good = rule(&reports, &reported);
    for device in &good {
        let missing: Vec<_> = model.acknowledged.difference(&model.copies[device].writes).collect();
        if !missing.is_empty() {
            return Err(format!("seed {seed}: device {device} is called good and lacks {missing:?}: {reports:?}"));
        }
    }
    Ok(!good.is_empty())
}

#[test]
fn whoever_is_called_good_has_every_acknowledged_write() {
    let mut served = 0;
    for seed in Seeds::new(6_000) {
        served += u32::from(run(seed, the_rule).unwrap());
    }
    if std::env::var("PFLEX_TEST_SEED").is_err() {
        assert!(served > 3_000, "a rule that calls nobody good proves nothing: {served}");
    }
}

/// Rules that look right and are not; the model must find each out.
#[test]
fn wrong_rules_are_found_out() {
    let as_the_backup_says: Rule = |reports, reported| {
        let base = reports.base.as_ref().unwrap();
        base.in_sync.iter().map(|member| member.device).filter(|device| reported.contains(device)).collect()
    };
    let whoever_is_named: Rule = |reports, reported| {
        let choice = choose(reports, |device| reported.contains(&device)).unwrap();
        choice.newest.in_sync.iter().map(|m| m.device).filter(|device| reported.contains(device)).collect()
    };
    let whoever_believes_it: Rule = |reports, _| {
        reports.by.iter().filter(|(device, known)| known.names(**device)).map(|(device, _)| *device).collect()
    };
    // S11 read too simply: the newest that a reporting primary acted in. A lost primary may have acted in a newer one.
    let newest_that_was_served: Rule = |reports, _| {
        let served = |(device, known): &(&DeviceId, &KnownConfig)| known.primary == Some(**device);
        let newest = reports.by.iter().filter(served).map(|(_, known)| known).max_by_key(|known| known.order());
        let members = newest.map(|known| known.in_sync.clone()).unwrap_or_default();
        members.iter().map(|member| member.device).filter(|device| reports.by.contains_key(device)).collect()
    };
    for (name, rule) in [
        ("as the backup says", as_the_backup_says),
        ("whoever is named", whoever_is_named),
        ("whoever believes it", whoever_believes_it),
        ("the newest that was served", newest_that_was_served),
    ] {
        assert!((0..20_000).any(|seed| run(seed, rule).is_err()), "{name}: not found out");
    }
}
