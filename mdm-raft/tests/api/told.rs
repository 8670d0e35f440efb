//! What watchers of the map were told, and whether they may rely on it: every change once, in order, the same to all.
//!
//! Used with members in this process and with real ones. The checker judges histories alone, so that each test can also
//! show that it would have found a bug: it spoils a copy of what it just recorded and expects a complaint.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::pb::{MapUpdate, WatchReply, watch_reply::Event};
use rand::{Rng, RngExt as _};

/// One thing a watcher was told.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// A full map of this revision, with these domains.
    Full(u64, BTreeSet<String>),
    Update(MapUpdate),
    /// That it has everything up to this revision.
    Progress(u64),
}

/// Everything one watcher was told, over all its streams.
#[derive(Clone, Default, Debug)]
pub(crate) struct History {
    pub(crate) told: Vec<Told>,
    /// As far as it is.
    pub(crate) newest: u64,
    /// Messages with updates.
    pub(crate) messages: usize,
}

impl History {
    pub(crate) fn take(&mut self, reply: WatchReply) {
        match reply.event {
            Some(Event::Full(map)) => {
                self.newest = map.revision;
                self.told.push(Told::Full(map.revision, map.domains.into_iter().map(|domain| domain.name).collect()));
            }
            Some(Event::Progress(progress)) => self.told.push(Told::Progress(progress.revision)),
            None => {}
        }
        self.messages += usize::from(!reply.updates.is_empty());
        for update in reply.updates {
            self.newest = update.revision;
            self.told.push(Told::Update(update));
        }
    }

    /// How often it had to begin anew.
    pub(crate) fn relisted(&self) -> usize {
        self.told.iter().filter(|told| matches!(told, Told::Full(..))).count().saturating_sub(1)
    }

    pub(crate) fn updates(&self) -> impl Iterator<Item = &MapUpdate> {
        self.told.iter().filter_map(|told| if let Told::Update(update) = told { Some(update) } else { None })
    }

    /// The updates between full maps.
    fn runs(&self) -> Result<Vec<Run<'_>>, String> {
        let mut runs: Vec<Run<'_>> = Vec::new();
        for told in &self.told {
            match (told, runs.last_mut()) {
                (Told::Full(revision, domains), last) => {
                    let before = last.map_or(0, |run| run.newest);
                    if *revision < before {
                        return Err(format!("a full map of {revision} after {before}"));
                    }
                    runs.push(Run { first: *revision, newest: *revision, domains, updates: BTreeMap::new() });
                }
                (_, None) => return Err(format!("{told:?} before any map")),
                (Told::Update(update), Some(run)) => {
                    if update.revision <= run.newest {
                        return Err(format!("update {} after {}", update.revision, run.newest));
                    }
                    run.newest = update.revision;
                    run.updates.insert(update.revision, update);
                }
                (Told::Progress(revision), Some(run)) if *revision > run.newest => {
                    return Err(format!("it is said to have everything up to {revision}, and has {}", run.newest));
                }
                (Told::Progress(_), Some(_)) => {}
            }
        }
        Ok(runs)
    }
}

/// What follows one full map.
struct Run<'a> {
    first: u64,
    newest: u64,
    domains: &'a BTreeSet<String>,
    updates: BTreeMap<u64, &'a MapUpdate>,
}

/// Whether watchers were told what they may rely on. `acknowledged` are names of domains, each made once, all of them
/// before the last thing that every watcher was told.
///
/// # Errors
/// A sentence that says who was not.
pub(crate) fn check(histories: &[History], acknowledged: &[String]) -> Result<(), String> {
    let mut all: Vec<(usize, Run<'_>)> = Vec::new();
    for (n, history) in histories.iter().enumerate() {
        let runs = history.runs().map_err(|why| format!("watcher {n}: {why}"))?;
        let mut known = BTreeSet::new();
        for run in &runs {
            known.extend(run.domains.iter().map(String::as_str));
            for domain in run.updates.values().flat_map(|update| &update.domains) {
                if !known.insert(&domain.name) {
                    return Err(format!("watcher {n} was told twice of domain {}", domain.name));
                }
            }
        }
        if let Some(missing) = acknowledged.iter().find(|name| !known.contains(name.as_str())) {
            return Err(format!("watcher {n} was never told of domain {missing}"));
        }
        all.extend(runs.into_iter().map(|run| (n, run)));
    }
    // Where two were told of the same revisions they were told the same, and neither lacks what the other has.
    for (n, one) in &all {
        for (m, other) in &all {
            let (from, to) = (one.first.max(other.first), one.newest.min(other.newest));
            if from < to && !one.updates.range(from + 1..=to).eq(other.updates.range(from + 1..=to)) {
                return Err(format!("watchers {n} and {m} were told different things between {from} and {to}"));
            }
        }
    }
    Ok(())
}

/// Whether each watcher was told enough since its last full map that its history can be spoiled. One that had to begin
/// anew late has little: a test goes on to make changes until this is so.
pub(crate) fn can_be_spoiled(histories: &[History], acknowledged: &[String]) -> bool {
    (0..histories.len()).all(|victim| !places(histories, acknowledged, victim).is_empty())
}

/// Where a watcher was told of two neighbours, of which the first made a domain and was told to somebody else too.
fn places(good: &[History], acknowledged: &[String], victim: usize) -> Vec<usize> {
    let told_to_others = |revision| {
        let others = good.iter().enumerate().filter(|(n, _)| *n != victim);
        others.flat_map(|(_, other)| other.updates()).any(|update| update.revision == revision)
    };
    let told = &good[victim].told;
    let Some(last_map) = told.iter().rposition(|told| matches!(told, Told::Full(..))) else { return Vec::new() };
    // What was not acknowledged may rightly be known to nobody.
    let must_be_told = |update: &MapUpdate| {
        update.domains.iter().any(|domain| acknowledged.contains(&domain.name)) && told_to_others(update.revision)
    };
    (last_map + 1..told.len() - 1)
        .filter(|at| matches!(&told[*at], Told::Update(update) if must_be_told(update)))
        .filter(|at| matches!(&told[*at + 1], Told::Update(_)))
        .collect()
}

/// Spoils good histories in each of the ways that matter.
///
/// # Panics
/// When the checker does not notice.
pub(crate) fn spoiled_histories_are_found_out(good: &[History], acknowledged: &[String], rng: &mut impl Rng) {
    assert_eq!(check(good, acknowledged), Ok(()));
    let victim = rng.random_range(0..good.len());
    let told = &good[victim].told;
    let places = places(good, acknowledged, victim);
    assert!(!places.is_empty(), "watcher {victim} was told too little for this test");
    let at = places[rng.random_range(0..places.len())];
    let Told::Update(update) = told[at].clone() else { unreachable!("just looked") };
    let spoil = |what: &str, change: &dyn Fn(&mut Vec<History>)| {
        let mut bad = good.to_vec();
        change(&mut bad);
        let verdict = check(&bad, acknowledged);
        let Err(why) = verdict else { panic!("{what} at {} of watcher {victim} was not found", update.revision) };
        println!("{what}: {why}");
    };
    spoil("a dropped update", &|bad| drop(bad[victim].told.remove(at)));
    spoil("a doubled update", &|bad| bad[victim].told.insert(at + 1, Told::Update(update.clone())));
    spoil("two updates out of order", &|bad| bad[victim].told.swap(at, at + 1));
    spoil("an update that is told again later under another revision", &|bad| {
        let again = MapUpdate { revision: bad[victim].newest + 1, ..update.clone() };
        bad[victim].told.push(Told::Update(again));
    });
    spoil("an update with another content", &|bad| {
        let Told::Update(update) = &mut bad[victim].told[at] else { unreachable!("just looked") };
        update.volumes.push(Default::default());
    });
    spoil("an update that nobody was told", &|bad| {
        for history in bad {
            history.told.retain(|told| !matches!(told, Told::Update(other) if other.revision == update.revision));
            for told in &mut history.told {
                if let Told::Full(_, domains) = told {
                    domains.retain(|name| update.domains.iter().all(|domain| domain.name != *name));
                }
            }
        }
    });
    spoil("a full map of the past", &|bad| bad[victim].told.push(Told::Full(1, BTreeSet::new())));
}
