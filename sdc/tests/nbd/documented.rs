//! docs/nbd.md against what there is: each test that it names exists, and its table of differences is the test's own.

use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(dir: &Path, all: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, all);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(entry).unwrap());
        }
    }
}

/// What stands between backquotes in the rows of tables.
fn quoted(document: &str) -> impl Iterator<Item = &str> {
    document.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Tests have long names of small letters; nothing else in the tables has.
fn is_test(name: &str) -> bool {
    let is_name = name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    is_name && name.matches('_').count() >= 3
}

#[test]
fn each_test_that_the_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    for dir in ["src", "tests", "../tests"] {
        sources(&root.join(dir), &mut code);
    }
    let document = read("../docs/nbd.md");
    let tests: Vec<_> = quoted(&document).filter(|name| is_test(name)).collect();
    assert!(tests.len() > 60, "only {} tests found: has the form of the tables changed?", tests.len());
    let missing: Vec<_> = tests.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "named in docs/nbd.md, but there is no such test: {missing:?}");
}

#[test]
fn the_documents_table_of_differences_is_the_tests_own() {
    let listed: &[(&str, &str, &str, &str)] = &include!("differences.in");
    let mut expected: Vec<_> =
        listed.iter().map(|(peer, step, says, why)| format!("| {peer} | {step} | {says} | {why} |")).collect();
    let document = read("../docs/nbd.md");
    let is_row = |line: &&str| line.starts_with("| qemu-nbd |") || line.starts_with("| nbdkit |");
    let mut rows: Vec<_> = document.lines().filter(is_row).map(str::to_owned).collect();
    rows.sort_unstable();
    expected.sort_unstable();
    assert_eq!(rows, expected);
}
