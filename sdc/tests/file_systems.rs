//! ext4 and xfs on a volume: the whole SDC process over fake SDSs, its export made a file by `nbdfuse` and a disk by a loop
//! device. Made, filled, trimmed, unmounted, checked, and every byte compared after it was mounted again.
//!
//! The script runs in a mount and a process namespace of its own, which end with this process however it ends: no mount, no
//! loop device and no `nbdfuse` can stay. Where the machine allows none of this (no root, no /dev/fuse) the test says so and
//! is skipped; a missing program fails it where `CI` is set.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "engine/fake_mdm.rs"]
mod fake_mdm;
#[path = "engine/fake_sds.rs"]
mod fake_sds;

use std::path::Path;
use std::process::Stdio;

use fake_mdm::{cluster_map, config, start_mdm};
use fake_sds::FakeCluster;
use pflex_proto::data::WriteKind;
use pflex_sdc::daemon::run;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// mkfs.xfs makes nothing smaller than 300 MiB.
const SIZE: u64 = 320 << 20;
const NAMESPACES: [&str; 10] =
    ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"];

/// `$1` is the directory, `$2` the export, `$3` the kind. Data behind `mount -o loop` is let go by the kernel a moment after
/// the unmounting, so taking `nbdfuse` away is tried until it works.
const SCRIPT: &str = r#"
set -euo pipefail
cd "$1"; mkdir nbd fs
nbdfuse nbd/disk "$2" & fuse=$!
until [ -e nbd/disk ]; do kill -0 $fuse; sleep 0.05; done
case $3 in
  ext4) make="mkfs.ext4 -q -F"; check="e2fsck -fn" ;;
  xfs) make="mkfs.xfs -q -f"; check="xfs_repair -n" ;;
esac
$make nbd/disk
mount -o loop nbd/disk fs
mkdir fs/deep
openssl enc -aes-128-ctr -pass pass:"$3" -nosalt </dev/zero 2>/dev/null | head -c 40000000 >fs/deep/large || true
for n in $(seq 300); do printf '%s' "$n $3" >"fs/deep/$n"; done
head -c 20000000 fs/deep/large >fs/gone; sync; rm fs/gone
(cd fs; find . -type f -exec sha256sum {} + | sort) >before
[ "$(wc -l <before)" = 301 ]
sync; fstrim -v fs
umount fs
$check nbd/disk
mount -o loop nbd/disk fs
(cd fs; find . -type f -exec sha256sum {} + | sort) >after
cmp before after
umount fs
$check nbd/disk
for n in $(seq 100); do if umount nbd; then break; fi; sleep 0.1; done
wait $fuse
"#;

/// Why it cannot be tried here, if so.
async fn impossible() -> Option<String> {
    if !is_root() {
        return Some("mounting needs root".to_owned());
    }
    if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        return Some("there is no /dev/fuse or no /dev/loop-control".to_owned());
    }
    let probe = format!(
        "mount -t tmpfs none /mnt && losetup --find && {}",
        ["nbdfuse", "mkfs.ext4", "mkfs.xfs", "xfs_repair", "e2fsck", "fstrim", "openssl"]
            .map(|tool| format!("{{ command -v {tool} || exit 9; }}"))
            .join(" && ")
    );
    let output = Command::new(NAMESPACES[0]).args(&NAMESPACES[1..]).args(["bash", "-c", &probe]).output().await;
    let output = output.map_err(|error| error.to_string());
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) if output.status.code() == Some(9) => {
            assert!(std::env::var_os("CI").is_none(), "a program is missing: scripts/setup.sh all");
            Some("a program is missing; scripts/setup.sh all installs it".to_owned())
        }
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error),
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

async fn lives_on_a_volume(kind: &str) {
    if let Some(why) = impossible().await {
        println!("SKIPPED: no {kind} on a volume here: {why}");
        return;
    }
    let cluster = FakeCluster::start(2, 1).await;
    let (mdm, endpoint) = start_mdm(&cluster).await;
    let mut map = cluster_map(&cluster);
    map.volumes[0].size_bytes = SIZE;
    mdm.map.send_replace(map);
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(config(&endpoint, dir.path()), shutdown.clone()));
    mdm.registered.subscribe().wait_for(Option::is_some).await.unwrap();
    let uri = format!("nbd+unix:///demo?socket={}", dir.path().join("nbd.sock").display());
    let mut script = Command::new(NAMESPACES[0]);
    script.args(&NAMESPACES[1..]).args(["bash", "-c", SCRIPT, "script", dir.path().to_str().unwrap(), &uri, kind]);
    let output = script.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{kind}: {}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
    {
        let shared = cluster.shared();
        let zeroed = |kind: WriteKind| kind == WriteKind::Trim || kind == WriteKind::Zero;
        let trimmed = shared.writes.iter().filter(|(kind, ..)| zeroed(*kind)).map(|(_, bytes, _)| u64::from(*bytes));
        let trimmed = trimmed.sum::<u64>();
        println!("{kind}: {} writes, {} MiB of trims", shared.writes.len(), trimmed >> 20);
        assert!(trimmed > SIZE / 2, "fstrim reached the volume: {trimmed}");
        assert!(shared.twice.is_empty(), "executed twice: {:?}", shared.twice);
    }
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ext4_lives_on_a_volume() {
    lives_on_a_volume("ext4").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xfs_lives_on_a_volume() {
    lives_on_a_volume("xfs").await;
}
