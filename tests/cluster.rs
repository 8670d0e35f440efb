//! A whole cluster of real processes keeps its word while they are killed and paused: every answer that clients got can be
//! explained by one order of all reads and writes, and in the end the cluster is healthy.
//!
//! `PFLEX_SEED` repeats who is hurt and for how long. Timing is never repeated and never decides: a slow machine makes
//! this test longer, not red.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use pflex_jepsen::{
    nemesis::{Fault, Round, Target},
    run::{Config, Faults, run},
};
use tempfile::TempDir;

/// Servers that `pflex_jepsen` starts.
const SERVERS: u64 = 3;

fn seed() -> u64 {
    let given = env::var("PFLEX_SEED").ok();
    given.map_or(u64::from(process::id()), |seed| seed.parse().expect("PFLEX_SEED is a number"))
}

/// The faults that the product must survive, each once: shorter and longer than the 3 s after which a silent server is
/// held for lost.
fn rounds(seed: u64) -> Vec<Round> {
    let server = |nth: u64| Target::Sds(((seed + nth) % SERVERS) as u32);
    let around = |middle_ms: u64| middle_ms + seed * 397 % 1_500;
    vec![
        Round::one(1_500, Fault::Kill, Target::Leader, around(1_500)),
        Round::one(1_000, Fault::Kill, server(0), around(3_000)),
        Round::one(1_000, Fault::Pause, server(1), around(3_000)),
        Round::one(1_000, Fault::Kill, Target::All, 0),
        Round::one(1_000, Fault::Kill, server(2), around(0)),
    ]
}

/// On a real disk, beside the build: /tmp may be memory, where nothing is ever lost.
fn scratch() -> TempDir {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(parent).expect("cargo names a place that can be made");
    tempfile::Builder::new().prefix("cluster-").tempdir_in(parent).expect("a temporary directory")
}

#[test]
fn what_clients_saw_under_faults_is_linearizable() {
    let seed = seed();
    judge(seed, 1, rounds(seed));
}

/// A volume that two SDCs write is one register for each block, whoever of them or of the servers is killed, or stands still
/// with writes under way and goes on late.
#[test]
fn what_clients_of_two_sdcs_saw_of_one_volume_is_linearizable() {
    let seed = seed();
    let server = |nth: u64| Target::Sds(((seed + nth) % SERVERS) as u32);
    let sdc = |nth: u64| Target::Sdc(((seed + nth) % 2) as u32);
    let around = |middle_ms: u64| middle_ms + seed * 397 % 1_500;
    let rounds = vec![
        Round::one(1_500, Fault::Pause, server(0), around(4_000)),
        Round::one(1_000, Fault::Pause, sdc(0), around(4_000)),
        Round::one(1_000, Fault::Kill, sdc(1), around(500)),
        Round::one(1_000, Fault::Kill, server(1), around(1_500)),
        Round::one(1_000, Fault::Pause, sdc(1), around(7_000)),
        Round::one(1_000, Fault::Pause, server(2), around(2_500)),
    ];
    judge(seed, 2, rounds);
}

fn judge(seed: u64, sdcs: u32, rounds: Vec<Round>) {
    println!("PFLEX_SEED={seed}");
    let scratch = scratch();
    let config = Config {
        pflex: PathBuf::from(env!("CARGO_BIN_EXE_pflex")),
        dir: scratch.path().to_owned(),
        seed,
        sdcs,
        clients: 4 + sdcs,
        blocks: 6,
        most_think_time: Duration::from_millis(20),
        faults: Faults::These(rounds),
        look_at_each_copy: false,
    };
    let outcome = run(&config, &|| false);
    let good = outcome.as_ref().is_ok_and(|verdict| verdict.is_good());
    let verdict = match outcome {
        Ok(verdict) => verdict.to_string(),
        Err(error) => format!("error: {error}"),
    };
    println!("{verdict}");
    if !good {
        // The history and the cluster's logs are all that can tell why.
        let kept = scratch.keep();
        panic!("seed {seed}: {verdict}\nhistory, logs and data are in {}", kept.display());
    }
}
