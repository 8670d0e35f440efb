//! The crates depend on one another in one direction only:
//! `proto <- common <- {mdm, sds, sdc, mgmt} <- pflex <- its tests`, and of `jepsen` only the tests know.
//!
//! The four components never know one another: what one wants from another goes over the network, in `proto`'s words.
//! Only so can each be restarted, upgraded and simulated alone. Cargo would let it rot silently; this test does not.
//! Normal, dev and build dependencies all count: a test that reaches into another component's types ties the two
//! together just the same.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Every crate of the workspace and the ones of ours that it may depend on, nearest the bottom first.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("pflex-proto", &[]),
    ("pflex-common", &["pflex-proto"]),
    ("pflex-mdm", &["pflex-proto", "pflex-common"]),
    ("pflex-sds", &["pflex-proto", "pflex-common"]),
    ("pflex-sdc", &["pflex-proto", "pflex-common"]),
    ("pflex-mgmt", &["pflex-proto", "pflex-common"]),
    ("pflex", &["pflex-proto", "pflex-common", "pflex-mdm", "pflex-sds", "pflex-sdc", "pflex-mgmt"]),
    ("pflex-bench", &["pflex-proto", "pflex-common"]),
    // It judges the product from outside: a checker that shares code with what it checks shares its bugs.
    ("pflex-jepsen", &[]),
];

/// The one exception: not `pflex` itself but its tests, which link nothing that is shipped, start clusters with jepsen.
const TESTS_MAY_DEPEND_ON: (&str, &str) = ("pflex", "pflex-jepsen");

/// Crate name -> the names of everything in its three dependency sections.
type Graph = BTreeMap<String, Vec<String>>;

/// One line for each dependency that goes the wrong way, and for each crate the table above does not know.
fn violations(graph: &Graph) -> Vec<String> {
    let allowed: BTreeMap<_, _> = MAY_DEPEND_ON.iter().copied().collect();
    let mut found = Vec::new();
    for (krate, dependencies) in graph {
        let Some(may) = allowed.get(krate.as_str()) else {
            found.push(format!("{krate} has no place in the crate graph yet: give it one in MAY_DEPEND_ON"));
            continue;
        };
        // Crates from outside are nobody's business here; a crate of ours is one that the workspace has.
        for dependency in dependencies.iter().filter(|name| graph.contains_key(*name)) {
            if !may.contains(&dependency.as_str()) {
                found.push(format!("{krate} must not depend on {dependency}"));
            }
        }
    }
    found
}

/// The workspace's graph, from cargo itself: it knows renamed, optional and target-specific dependencies.
fn workspace() -> Graph {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo, which built this test, runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let name = |value: &Value| value["name"].as_str().expect("packages and dependencies have names").to_owned();
    let list = |value: &Value| value.as_array().expect("a JSON list").clone();
    let counts = |package: &Value, dependency: &Value| {
        dependency["kind"] != "dev" || (name(package).as_str(), name(dependency).as_str()) != TESTS_MAY_DEPEND_ON
    };
    let dependencies = |package: &Value| {
        list(&package["dependencies"]).iter().filter(|dependency| counts(package, dependency)).map(name).collect()
    };
    list(&metadata["packages"]).iter().map(|package| (name(package), dependencies(package))).collect()
}

#[test]
fn dependencies_go_one_way() {
    let graph = workspace();
    for (krate, _) in MAY_DEPEND_ON {
        assert!(graph.contains_key(*krate), "{krate} is in MAY_DEPEND_ON, but the workspace has no such crate");
    }
    assert_eq!(violations(&graph), Vec::<String>::new());
}

/// The graph that is right, with one dependency planted in it.
fn planted(krate: &str, dependency: &str) -> Graph {
    let mut graph: Graph = MAY_DEPEND_ON
        .iter()
        .map(|(name, may)| (name.to_string(), may.iter().map(|dependency| dependency.to_string()).collect()))
        .collect();
    graph.entry(krate.to_owned()).or_default().push(dependency.to_owned());
    graph
}

#[test]
fn the_checker_finds_each_planted_dependency() {
    let components = ["pflex-mdm", "pflex-sds", "pflex-sdc", "pflex-mgmt"];
    let mut wrong = vec![
        ("pflex-proto", "pflex-common"),
        ("pflex-common", "pflex-sds"),
        ("pflex", "pflex-jepsen"),
        ("pflex-jepsen", "pflex-sds"),
    ];
    for krate in components {
        wrong.push((krate, "pflex"));
        wrong.extend(components.into_iter().filter(|other| *other != krate).map(|other| (krate, other)));
    }
    for (krate, dependency) in wrong {
        assert_eq!(violations(&planted(krate, dependency)), [format!("{krate} must not depend on {dependency}")]);
    }
}

#[test]
fn the_checker_wants_a_place_for_each_new_crate_and_ignores_outside_ones() {
    assert_eq!(violations(&planted("pflex-sds", "tokio")), Vec::<String>::new());
    let found = violations(&planted("pflex-new", "pflex-proto"));
    assert_eq!(found, ["pflex-new has no place in the crate graph yet: give it one in MAY_DEPEND_ON"]);
}
