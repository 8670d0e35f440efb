#!/usr/bin/env bash
# A storage server with much on it: how long it takes to start again after a clean end and after a kill, and the memory
# that what it stores costs. Two servers, two copies, so each holds all of it.
# usage: bench-store.sh [--chunks-of 50GiB]
#   --chunks-of  of each of two volumes each chunk of 1 MiB gets one block of 4 KiB: the tables are as large as if they
#                were full; what the second one adds is what a server's memory grows by
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/cluster.sh"

size=50GiB
while [ $# -gt 0 ]; do
  case $1 in
    --chunks-of) size=$2; shift 2 ;;
    *) die "unknown argument $1 (see the head of scripts/bench-store.sh)" ;;
  esac
done

chunks=$(($(numfmt --from=iec-i "${size%B}") >> 20))
memory_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$(process_pid sds0)/status"; }
rests() { "$pflex" device stats --sds sds1 -o json | jq -e '.[0].journal_percent == 0'; }
# Its memory once the journal is empty and the allocator has given back what has been free for ten seconds.
memory_at_rest_kib() { wait_for 300 "the journal to be empty" rests || return; sleep 15; memory_kib; }
# Its process serves: it has opened its device, replayed the journal, registered, and its groups are in sync.
serves() { "$pflex" device stats --sds sds1 -o json 2>/dev/null | jq -e 'length == 1' && "$pflex" status --check; }
# As many writes as there are chunks: fio counts bytes written, not passed over, and would go round 256 times.
fill() {
  volume_ready "$1" "$size" || die "the volume cannot be opened"
  fio --name=fill --ioengine=nbd --uri="$(nbd_uri "$1")" --size="${size%B}" --rw=write:1020k --bs=4k --iodepth=32 \
    --number_ios="$chunks" >/dev/null
}

# start_again HOW: prints milliseconds until the process answers, and until the cluster is whole.
start_again() {
  local start answers
  start=$(now_ms)
  process_start sds0
  wait_for 120 "sds1 to answer" sh -c "'$pflex' device stats --sds sds1 -o json | jq -e 'length == 1'" >/dev/null
  answers=$(($(now_ms) - start))
  wait_for 120 "sds1 to be in sync" serves
  printf '%-34s %8s ms until it answers, %8s ms until all is in sync; then %s KiB\n' "$1" "$answers" \
    "$(($(now_ms) - start))" "$(memory_kib)"
}

cluster_start store 24000 --sds 2 --device-size 160GiB
# By default each chunk takes its whole megabyte of the disk.
for name in sds0 sds1; do
  process_kill "$name"
  sed -i '/^\[\[device\]\]/a sparse = true' "$cluster_dir/$name/config.toml"
done
cluster_up
empty=$(memory_kib)
fill first
half=$(memory_at_rest_kib)
fill second
all=$(memory_at_rest_kib)
printf '%-34s %8s KiB with nothing stored, %s with %s chunks, %s with %s: %s MiB with a TiB\n' "memory" "$empty" \
  "$half" "$chunks" "$all" "$((2 * chunks))" "$(((half + (all - half) * ((1 << 20) - chunks) / chunks) / 1024))"
pid=$(process_pid sds0)
kill -TERM "$pid"
wait_for 60 "sds1 to end" sh -c "! kill -0 $pid 2>/dev/null"
start_again "restart after a clean end"
process_kill sds0
start_again "restart after a kill"
