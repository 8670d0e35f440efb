//! The command line without a cluster: usage errors, exit statuses, one-line messages, what goes to which stream.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

/// Runs `pflex` in an environment of its own: no context, no variables, no terminal.
fn pflex(home: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pflex"));
    command.args(arguments.split_whitespace()).env_clear().env("HOME", home).stdin(Stdio::null());
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("messages are UTF-8")
}

/// Asserts the status, that stdout is empty, and that stderr is one line that has all of `parts`.
fn refused(home: &Path, arguments: &str, status: i32, parts: &[&str]) {
    let output = pflex(home, arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "pflex {arguments}: {message}");
    assert_eq!(text(&output.stdout), "", "pflex {arguments}: data on stdout");
    assert_eq!(message.lines().count(), 1, "pflex {arguments}: not one line: {message}");
    assert!(message.starts_with("error: "), "pflex {arguments}: {message}");
    for part in parts {
        assert!(message.contains(part), "pflex {arguments}: no `{part}` in: {message}");
    }
}

fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    listener.local_addr().expect("it is bound").port()
}

#[test]
fn the_store_of_an_mdm_is_made_once() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/mdm.toml")).unwrap();
    let here = sample.replace("/var/lib/pflex/mdm1", &home.join("mdm1").display().to_string());
    // Nobody answers there: the members of a new cluster do not run yet.
    let (config, nowhere) = (home.join("mdm.toml"), format!("127.0.0.1:{}", closed_port()));
    std::fs::write(&config, here.replace("10.0.0.", "127.0.0.").replace("127.0.0.1:8001", &nowhere)).unwrap();
    let init = format!("cluster init --config {}", config.display());
    let made = pflex(home, &format!("{init} -o json"));
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let row: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    assert_eq!(row["id"], 1);
    refused(home, &init, 4, &["mdm1", "holds"]);
}

#[test]
fn usage_errors_are_one_line_with_status_2() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    for (arguments, parts) in [
        ("frobnicate", &["frobnicate", "pflex --help"] as &[&str]),
        ("volume create db", &["--size", "pflex volume create --help"]),
        ("volume create db --size 0 --mdm a:1", &["--size", "at least 4KiB"]),
        ("volume create db --size 1000 --mdm a:1", &["multiple of 4KiB", "nearest: 4096"]),
        ("volume create db --size big --mdm a:1", &["512MiB"]),
        ("volume list --mdm nonsense", &["--mdm", "nonsense", "HOST:PORT"]),
        ("volume list --timeout soon --mdm a:1", &["--timeout", "500ms"]),
        ("volume list -o xml --mdm a:1", &["xml", "json"]),
        ("volume list", &["no cluster", "--mdm", "pflex up"]),
        ("pool create p --domain d --pgs 3 --mdm a:1", &["power of two"]),
        ("pool set-pgs p 96 --mdm a:1", &["power of two"]),
        ("pool set-pgs p 8192 --mdm a:1", &["at most 4096"]),
        ("sds", &["pflex sds --help"]),
        ("up --mdm 2 --dir x", &["--mdm 2", "1, 3 or 5"]),
        ("up --port-offset 60000 --dir x", &["60000", "65535"]),
        ("up --device-size 4KiB --dir x", &["--device-size", "1GiB"]),
    ] {
        if arguments == "sds" {
            let output = pflex(home, arguments);
            assert_eq!(output.status.code(), Some(2), "bare noun: the help, and status 2");
            continue;
        }
        refused(home, arguments, 2, parts);
    }
    assert!(!Path::new("x").exists(), "a refused `up` leaves no directory");
}

#[test]
fn help_and_version_are_data() {
    let home = tempfile::tempdir().unwrap();
    for arguments in ["--help", "volume --help", "volume create --help", "up --help", "--version"] {
        let output = pflex(home.path(), arguments);
        assert_eq!(output.status.code(), Some(0), "pflex {arguments}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "pflex {arguments}");
    }
    assert!(text(&pflex(home.path(), "volume create --help").stdout).contains("Example:\n  pflex volume create"));
}

#[test]
fn without_a_cluster_the_status_is_6_within_the_timeout() {
    let home = tempfile::tempdir().unwrap();
    let started = std::time::Instant::now();
    let arguments = format!("volume list --mdm 127.0.0.1:{} --timeout 300ms", closed_port());
    refused(home.path(), &arguments, 6, &["no MDM leader", "within 300 ms"]);
    let create = format!("volume create db --size 4KiB --mdm 127.0.0.1:{} --timeout 300ms", closed_port());
    refused(home.path(), &create, 6, &["create volume db", "nothing was changed"]);
    let stale = format!("cluster status --stale --mdm 127.0.0.1:{}", closed_port());
    refused(home.path(), &stale, 6, &["cluster status"]);
    assert!(started.elapsed().as_secs() < 10);
}

#[test]
fn verbose_adds_the_causes() {
    let home = tempfile::tempdir().unwrap();
    let arguments = format!("volume list -v --mdm 127.0.0.1:{} --timeout 200ms", closed_port());
    let message = text(&pflex(home.path(), &arguments).stderr);
    assert!(message.lines().count() > 1 && message.contains("caused by: "), "{message}");
    let trace = message.lines().find_map(|line| line.trim().strip_prefix("trace id: ")).expect("a trace id");
    assert!(trace.len() == 32 && trace.bytes().all(|digit| digit.is_ascii_hexdigit()), "{trace}");
}

#[test]
fn a_taken_port_is_refused_before_anything_is_made() {
    let home = tempfile::tempdir().unwrap();
    // Any offset whose first MDM port can be taken here.
    let (offset, _listener) = (31_000..)
        .find_map(|offset: u16| Some((offset, TcpListener::bind(("127.0.0.1", 8_001 + offset)).ok()?)))
        .unwrap();
    let dir = home.path().join("cluster");
    let arguments = format!("up --dir {} --port-offset {offset}", dir.display());
    refused(home.path(), &arguments, 4, &["mdm0", &format!("127.0.0.1:{}", 8_001 + offset), "is taken", "(pid "]);
    assert!(!dir.exists(), "a refused `up` leaves nothing");
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cluster");
    std::fs::create_dir_all(dir.join("mdm0/precious")).unwrap();
    refused(home.path(), &format!("up --dir {}", dir.display()), 4, &["mdm0", "--dir"]);
    std::fs::write(dir.join("cluster.toml"), "format = 99\n").unwrap();
    refused(home.path(), &format!("up --dir {}", dir.display()), 4, &["format 99", "up to 1"]);
    refused(home.path(), &format!("down --dir {}", dir.display()), 4, &["format 99"]);
    assert!(dir.join("mdm0/precious").exists());
}

#[test]
fn down_without_a_cluster_is_not_found() {
    let home = tempfile::tempdir().unwrap();
    refused(home.path(), "down --dir nowhere", 3, &["nowhere", "--dir"]);
    assert!(!Path::new("nowhere").exists());
}

#[test]
fn a_daemon_says_what_is_wrong_with_its_configuration() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("f.toml");
    let run = |kind: &str| format!("{kind} --config {}", file.display());
    refused(home.path(), &run("sdc"), 3, &["read configuration", "f.toml"]);
    std::fs::write(&file, "mdm = [\"a:1\"]\ndata_dir = \"/x\"\nnonsense = 1\n").unwrap();
    refused(home.path(), &run("sdc"), 2, &["f.toml", "nonsense"]);
    refused(home.path(), &run("mdm"), 2, &["f.toml"]);
    std::fs::write(&file, "a = = 1\n").unwrap();
    refused(home.path(), &run("sdc"), 2, &["f.toml line 1"]);
}

#[test]
fn completions_are_made_for_each_shell() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = pflex(home.path(), &format!("completions {shell}"));
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("COMPLETE"), "{shell}");
    }
    // What those scripts run while somebody waits for the Tab key: commands and flags need no cluster.
    let complete = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pflex"));
        command.arg("--").args(words).env_clear().env("HOME", home.path());
        command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
        let output = command.env("_CLAP_IFS", "\n").env("_CLAP_COMPLETE_COMP_TYPE", "9").output().expect("it runs");
        assert_eq!(text(&output.stderr), "", "completion is silent");
        text(&output.stdout)
    };
    assert_eq!(complete(&["pflex", "vol"]), "volume");
    assert!(complete(&["pflex", "volume", "create", "x", "--s"]).contains("--size"));
    assert_eq!(complete(&["pflex", "volume", "show", ""]).lines().find(|line| !line.starts_with('-')), None);
}
