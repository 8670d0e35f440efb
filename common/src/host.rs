//! What a process says of the machine it runs on, and of itself: for people, nothing depends on it.
//!
//! Whatever cannot be read is left out: a component that starts must not fail for want of a file in `/proc`.

use std::{fs, thread};

use pflex_proto::pb::{HostInfo, Metric};

/// Bytes of each text; more is cut off.
const MOST_BYTES: usize = 128;

/// The machine, as Linux describes it.
pub fn info() -> HostInfo {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    HostInfo {
        host_name: short(&read("/proc/sys/kernel/hostname")),
        os: short(&os_name(&read("/etc/os-release"))),
        kernel: short(&read("/proc/sys/kernel/osrelease")),
        architecture: std::env::consts::ARCH.to_owned(),
        booted_at_ms: boot_time_s(&read("/proc/stat")).saturating_mul(1_000),
        cores: thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: kilobytes(&read("/proc/meminfo"), "MemTotal:"),
    }
}

/// What a process reports of itself with every heartbeat.
pub fn process_metrics() -> Vec<Metric> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = kilobytes(&status, "VmRSS:");
    if resident == 0 {
        Vec::new()
    } else {
        vec![Metric { name: "process.memory.usage".into(), value: resident as f64 }]
    }
}

fn short(text: &str) -> String {
    let mut text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    while text.len() > MOST_BYTES {
        text.pop();
    }
    text
}

/// `PRETTY_NAME="Debian GNU/Linux 12"` without its quotes.
fn os_name(release: &str) -> String {
    let line = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

/// `btime 1763780000`
fn boot_time_s(stat: &str) -> u64 {
    let value = stat.lines().find_map(|line| line.strip_prefix("btime "));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// `VmRSS:     1234 kB` in bytes.
fn kilobytes(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_says_is_read_and_what_is_missing_is_left_out() {
        assert_eq!(os_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(boot_time_s("cpu 1 2\nbtime 1763780000\nprocesses 3\n"), 1_763_780_000);
        assert_eq!(kilobytes("VmPeak: 9 kB\nVmRSS:\t    1234 kB\n", "VmRSS:"), 1_234 * 1_024);
        assert_eq!((os_name(""), boot_time_s("x"), kilobytes("VmRSS: much", "VmRSS:")), (String::new(), 0, 0));
        assert_eq!(short(" a\u{7}b \n"), "ab");
        assert_eq!(short(&"x".repeat(999)).len(), MOST_BYTES);
        assert!(info().cores > 0 && process_metrics().len() <= 1);
    }
}
