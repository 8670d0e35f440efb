#!/usr/bin/env bash
# The NBD hop alone: this server over memory beside `nbdkit memory`, with the same fio jobs, one after the other in each
# round. Prints the median IOPS of both and their ratio for each job; fails where ours is below 0.8 of theirs.
# usage: bench-nbd.sh [--seconds 4] [--rounds 5] [--size-mib 256]
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# name, fio's rw, block size, depth
jobs='read4k-qd1 randread 4k 1
write4k-qd1 randwrite 4k 1
read4k-qd32 randread 4k 32
write4k-qd32 randwrite 4k 32'

seconds=4 rounds=5 size=256
while [ $# -gt 0 ]; do
  case $1 in
    --seconds) seconds=$2; shift 2 ;;
    --rounds) rounds=$2; shift 2 ;;
    --size-mib) size=$2; shift 2 ;;
    *) die "unknown argument $1; usage: bench-nbd.sh [--seconds 4] [--rounds 5] [--size-mib 256]" ;;
  esac
done
ours=$(dirname "${PFLEX:-$target_dir/release/pflex}")/examples/nbd_memory
[ -x "$ours" ] || die "$ours is missing: run 'make bench-nbd'"

scratch=$(mktemp -d) pids=()
# shellcheck disable=SC2329  # the trap calls it
end() { local status=$?; for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -rf "$scratch"; exit "$status"; }
trap end EXIT

"$ours" 127.0.0.1:29601 "$((size << 20))" >"$scratch/ours" & pids+=($!)
nbdkit --foreground --ipaddr 127.0.0.1 --port 29602 memory "${size}M" & pids+=($!)
uri_ours=nbd://127.0.0.1:29601/memory uri_nbdkit=nbd://127.0.0.1:29602/
for uri in "$uri_ours" "$uri_nbdkit"; do
  wait_for 10 "$uri" nbdinfo --size "$uri" || die "$uri does not answer"
  # Reads find data everywhere, and writes find their memory there.
  fio --name=fill --ioengine=nbd --uri="$uri" --rw=write --bs=1m --iodepth=4 --size="${size}m" --output=/dev/null
done

# measure TARGET RW BS DEPTH: its IOPS
measure() {
  local uri=uri_$1
  fio --name=job --ioengine=nbd --uri="${!uri}" --rw="$2" --bs="$3" --iodepth="$4" --size="${size}m" --norandommap=1 \
    --runtime="$seconds" --time_based --output-format=json --output="$scratch/out" >/dev/null 2>"$scratch/err" ||
    die "fio failed at $1: $(head -n 2 "$scratch/err" | tr '\n' ' ')"
  sed -n '/^{/,$p' "$scratch/out" | jq '.jobs[0] | .read.iops + .write.iops | floor'
}
median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

printf '%-13s %9s %9s %6s\n' job pflex nbdkit ratio
failed=0
while read -r job rw bs depth; do
  for _ in $(seq "$rounds"); do
    for target in ours nbdkit; do measure "$target" "$rw" "$bs" "$depth" </dev/null >>"$scratch/$job.$target"; done
  done
  a=$(median <"$scratch/$job.ours") b=$(median <"$scratch/$job.nbdkit")
  ratio=$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", a / b }')
  printf '%-13s %9s %9s %6s\n' "$job" "$a" "$b" "$ratio"
  awk -v ratio="$ratio" 'BEGIN { exit !(ratio < 0.8) }' && failed=1
done <<<"$jobs"
[ "$failed" = 0 ] || die "a ratio is below 0.8"
