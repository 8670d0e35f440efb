//! A cluster of real processes on this host, driven by commands only.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod forger;
pub(crate) mod io;
pub(crate) mod search;
pub(crate) mod secrets;

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

/// Attempts at finding ports that nobody else uses.
const MOST_TRIES: u16 = 50;

pub(crate) struct Cluster {
    home: tempfile::TempDir,
    port_offset: u16,
}

/// A daemon started without `up`; killed in the end, if it still runs.
pub(crate) struct ByHand(Child);

impl Drop for ByHand {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl ByHand {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// Whatever happens, no process outlives the test.
impl Drop for Cluster {
    fn drop(&mut self) {
        self.run("down --wipe --yes --timeout 5s --dir", &[&self.dir().display().to_string()]);
    }
}

impl Cluster {
    /// One MDM, two servers, one client.
    pub(crate) fn start() -> Self {
        Self::start_of("--mdm 1 --sds 2 --sdc 1")
    }

    /// As many of each as the flags of `up` say.
    pub(crate) fn start_of(counts: &str) -> Self {
        let mut cluster = Self { home: tempfile::tempdir().expect("a temporary directory"), port_offset: 0 };
        for attempt in 0..MOST_TRIES {
            let dir = cluster.dir().display().to_string();
            // Tests of several processes run side by side: spread them, and let `up` itself say what is taken. All below 32,768,
            // from where on the kernel gives ports to outgoing connections, also while a process here is down.
            let offset = 12_000 + (u64::from(std::process::id()) * 131 + u64::from(attempt) * 977) % 10_000;
            cluster.port_offset = u16::try_from(offset).expect("below 22,000");
            let offset = offset.to_string();
            let flags = ["--dir", &dir, "--port-offset", &offset, "--device-size", "1GiB"];
            let output = cluster.run(&format!("up {counts}"), &flags);
            // The latter: taken between the look and the start.
            let is_taken = |said: String| said.contains("is taken") || said.contains("Address already in use");
            if output.status.code() == Some(4) && is_taken(stderr(&output)) {
                // What was made so far is bound to those ports.
                cluster.home = tempfile::tempdir().expect("a temporary directory");
                continue;
            }
            assert_eq!(output.status.code(), Some(0), "up: {}", stderr(&output));
            return cluster;
        }
        panic!("no free ports in {MOST_TRIES} tries");
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.home.path().join("cluster")
    }

    pub(crate) fn run(&self, words: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pflex"));
        command.args(words.split_whitespace()).args(more).env_clear().env("HOME", self.home.path());
        command.stdin(Stdio::null()).output().expect("the binary runs")
    }

    /// Runs a command that must end with `status`; returns its stdout.
    pub(crate) fn expect(&self, status: i32, words: &str) -> String {
        let output = self.run(words, &[]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(status), "pflex {words}: {}{said}", stderr(&output));
        String::from_utf8(output.stdout).expect("data is UTF-8")
    }

    /// What a shell would suggest for the last of these words, flags left out.
    pub(crate) fn complete(&self, words: &[&str]) -> Vec<String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pflex"));
        command.args(["--", "pflex"]).args(words).env_clear().env("HOME", self.home.path());
        command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", words.len().to_string());
        let output = command.env("_CLAP_IFS", "\n").env("_CLAP_COMPLETE_COMP_TYPE", "9").output();
        let output = output.expect("the binary runs");
        assert_eq!(stderr(&output), "", "completion is silent");
        let lines = String::from_utf8(output.stdout).expect("names are UTF-8");
        lines.lines().filter(|line| !line.starts_with('-')).map(ToOwned::to_owned).collect()
    }

    pub(crate) fn up(&self, status: i32) -> Output {
        let output = self.run("up --dir", &[&self.dir().display().to_string()]);
        assert_eq!(output.status.code(), Some(status), "up: {}", stderr(&output));
        output
    }

    pub(crate) fn pid(&self, process: &str) -> Option<i32> {
        std::fs::read_to_string(self.dir().join(process).join("pid")).ok()?.trim().parse().ok()
    }

    /// A port, by its number in a cluster without an offset.
    pub(crate) fn at(&self, port: u16) -> std::net::SocketAddr {
        ([127, 0, 0, 1], port + self.port_offset).into()
    }

    /// The output of a command that must succeed, as JSON.
    pub(crate) fn json(&self, words: &str) -> serde_json::Value {
        serde_json::from_str(&self.expect(0, words)).expect("JSON")
    }

    /// How often the device of `sds` was opened, as the MDM knows it.
    pub(crate) fn incarnation(&self, sds: &str) -> u64 {
        let devices: serde_json::Value =
            serde_json::from_str(&self.expect(0, &format!("device list --sds {sds} -o json"))).expect("JSON");
        devices[0]["incarnation"].as_u64().expect("it has a device")
    }

    /// How often a component has registered.
    pub(crate) fn registrations(&self, name: &str) -> u64 {
        let rows: serde_json::Value = serde_json::from_str(&self.expect(0, "health -o json")).expect("JSON");
        let row = rows.as_array().expect("a list").iter().find(|row| row["name"] == name).expect("it has registered");
        row["registrations"].as_u64().expect("a number")
    }

    /// Starts a daemon without `up`, as an operator would.
    pub(crate) fn by_hand(&self, process: &str) -> ByHand {
        let config = self.dir().join(process).join("config.toml");
        let kind = process.trim_end_matches(|c: char| c.is_ascii_digit());
        let mut command = Command::new(env!("CARGO_BIN_EXE_pflex"));
        command.arg(kind).arg("--config").arg(config).env_clear().stdin(Stdio::null()).stderr(Stdio::null());
        ByHand(command.spawn().expect("the binary runs"))
    }

    pub(crate) fn kill(&self, process: &str) {
        self.signal(process, rustix::process::Signal::KILL);
    }

    pub(crate) fn signal(&self, process: &str, signal: rustix::process::Signal) {
        let pid = self.pid(process).and_then(rustix::process::Pid::from_raw).expect("it runs");
        rustix::process::kill_process(pid, signal).expect("it is ours");
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
