# shellcheck shell=bash
# What every script here has alike: where the project is, one-line messages, waiting for a state.
# Sourced, never run. Data goes to stdout, messages to stderr.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034  # read by the scripts that source this file
target_dir=${CARGO_TARGET_DIR:-$root/target}

PATH=$PATH:/usr/sbin:/sbin # where mke2fs and e2fsck are for everybody but root

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# Milliseconds of a clock that only counts up, so that a corrected wall clock cannot bend a measured time.
now_ms() { local up; read -r up _ </proc/uptime; echo $((10#${up/./} * 10)); }

# wait_for SECONDS WHAT COMMAND...: runs COMMAND until it succeeds; after SECONDS says what did not come and fails.
wait_for() {
  local seconds=$1 what=$2 end; shift 2
  end=$(($(now_ms) + seconds * 1000))
  until "$@" >/dev/null 2>&1; do
    if [ "$(now_ms)" -ge "$end" ]; then say "gave up after $seconds s waiting for: $what"; return 1; fi
    sleep 0.1
  done
}
