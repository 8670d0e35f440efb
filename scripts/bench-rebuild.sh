#!/usr/bin/env bash
# Redundancy after a storage server is lost for good, under load: how fast it comes back and what applications feel of it,
# with each rebuild policy. Four servers, two copies; each policy in a cluster of its own. Prints for each: the load's IOPS,
# mean and p99 before the loss, the same until all copies are whole again, the bytes copied, and MiB/s.
# usage: bench-rebuild.sh [--size 8GiB] [--before 15] [POLICY...]       default: unlimited favor-app-io limit
#   --size   of the volume, written in full: a server of four holds half of it
# The load is 4 KiB random writes and reads (7 : 3) at depth 4 over the whole volume.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/cluster.sh"

size=8GiB before=15 policies=()
while [ $# -gt 0 ]; do
  case $1 in
    --size) size=$2; shift 2 ;;
    --before) before=$2; shift 2 ;;
    unlimited | favor-app-io | limit) policies+=("$1"); shift ;;
    *) die "unknown argument $1 (see the head of scripts/bench-rebuild.sh)" ;;
  esac
done
[ ${#policies[@]} -gt 0 ] || policies=(unlimited favor-app-io limit)

row() { printf '%-13s %-7s %8s %9s %9s %9s %9s %8s\n' "$@"; }

# load SECONDS: until then, or until it is stopped by SIGINT, which makes fio report what it has.
load() {
  exec fio --name=load --ioengine=nbd --uri="$(nbd_uri bench)" --rw=randrw --rwmixread=30 --bs=4k --iodepth=4 --size="$size" \
    --runtime="$1" --time_based --output-format=json --output="$cluster_dir/fio.out" >/dev/null 2>"$cluster_dir/fio.err"
}
# Prints IOPS, mean us, p99 us of the writes.
load_result() {
  sed -n '/^{/,$p' "$cluster_dir/fio.out" | jq -r '.jobs[0] | [.write.iops + .read.iops, .write.clat_ns.mean / 1000,
    .write.clat_ns.percentile["99.000000"] / 1000] | map(floor) | @tsv'
}

whole() { [ "$("$pflex" rebuild list --unfinished -o json --timeout 5s | jq length)" = 0 ]; }

measure() { # POLICY
  local policy=$1 took held iops mean p99
  cluster_start "rebuild-$policy" 23000 --sds 4
  "$pflex" settings set rebuild.delay_ms=1000 >/dev/null
  "$pflex" rebuild policy "$policy" >/dev/null
  volume_ready bench "$size" || die "the volume bench cannot be opened"
  fio --name=fill --ioengine=nbd --uri="$(nbd_uri bench)" --rw=write --bs=1m --iodepth=4 --size="$size" >/dev/null
  (load "$before")
  read -r iops mean p99 < <(load_result)
  row "$policy" before "$iops" "$mean" "$p99" '' '' ''
  held=$("$pflex" device stats -o json | jq '[.[] | select(.sds == "sds4") | .used_bytes] | add')
  process_kill sds3
  wait_for 30 "the rebuild" not whole || die "no rebuild began"
  took=$(now_ms)
  load 3600 & fio=$!
  wait_for 3600 "all copies to be whole" whole || die "the rebuild did not end"
  took=$(($(now_ms) - took))
  kill -INT "$fio"; wait "$fio" || true
  read -r iops mean p99 < <(load_result)
  row "$policy" rebuild "$iops" "$mean" "$p99" "$((took / 1000))" "$((held >> 20))" "$((held * 1000 / took >> 20))"
}
not() { ! "$@"; }

if [ ${#policies[@]} = 1 ] && [ -n "${BENCH_REBUILD_ROW:-}" ]; then
  measure "${policies[0]}"
  exit
fi
printf '%s cores, %s GiB memory, volume %s\n' "$(nproc)" "$(awk '/^MemTotal/ { printf "%d", $2 / 1048576 }' /proc/meminfo)" "$size"
row policy phase iops mean_us p99_us seconds MiB MiB/s
for policy in "${policies[@]}"; do
  BENCH_REBUILD_ROW=1 "$0" --size "$size" --before "$before" "$policy"
done
