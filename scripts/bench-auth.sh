#!/usr/bin/env bash
# What the authorisation of IO costs: the same jobs without it (a binary built with the feature bench-no-auth), in lease
# mode and in per-io mode, in turns, each with a cluster of its own. Prints the best mean latency of each and what it is above
# the first, in microseconds.
# usage: bench-auth.sh --without PFLEX-BINARY [--seconds 5] [--rounds 3] [JOB...]   jobs: those of bench.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"

without='' seconds=5 rounds=3 jobs=()
while [ $# -gt 0 ]; do
  case $1 in
    --without) without=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --rounds) rounds=$2; shift 2 ;;
    *) jobs+=("$1"); shift ;;
  esac
done
with=${PFLEX:-$target_dir/release/pflex}
[ -x "$without" ] || die "give --without the pflex binary that was built with --features bench-no-auth"
[ -x "$with" ] || die "$with is missing: run 'make build'"
[ ${#jobs[@]} -gt 0 ] || jobs=(write4k-qd1 read4k-qd1 write4k-qd32 read4k-qd32)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# run NAME BINARY TOKEN-MODE: one round; lines of job, variant, IOPS and mean microseconds
run() {
  PFLEX=$2 "$(dirname "$0")/bench.sh" --seconds "$seconds" --token-mode "$3" "${jobs[@]}" >"$scratch/out"
  awk -v name="$1" '$2 == "pflex" && $1 != "fill" { print $1, name, $3, $5 }' "$scratch/out" >>"$scratch/all"
}

for round in $(seq "$rounds"); do
  say "bench-auth: round $round of $rounds"
  run none "$without" lease
  run lease "$with" lease
  run per-io "$with" per-io
done
printf '%-13s %-7s %9s %9s %13s\n' job tokens iops mean_us above_none_us
for job in "${jobs[@]}"; do
  for name in none lease per-io; do
    # The best of the rounds: what else the machine did only ever adds.
    read -r iops mean < <(awk -v job="$job" -v name="$name" '$1 == job && $2 == name { print $3, $4 }' "$scratch/all" | sort -k2 -n | head -n 1)
    if [ "$name" = none ]; then base=$mean; fi
    printf '%-13s %-7s %9s %9s %13s\n' "$job" "$name" "$iops" "$mean" "$((mean - base))"
  done
done
