#!/usr/bin/env bash
# A storage server with much on it: how long it takes to start again after a clean end and after a kill, and the memory
# that what it stores costs. Two servers, two copies, so each holds all of it.
# usage: bench-store.sh [--chunks-of 100GiB] [--full 4GiB]
#   --chunks-of  of this volume each chunk of 1 MiB gets one block of 4 KiB: the tables are as large as if it were full
#   --full       of this volume every byte is written; a server's memory before and after it gives the memory for a TiB
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/cluster.sh"

sparse=100GiB full=4GiB
while [ $# -gt 0 ]; do
  case $1 in
    --chunks-of) sparse=$2; shift 2 ;;
    --full) full=$2; shift 2 ;;
    *) die "unknown argument $1 (see the head of scripts/bench-store.sh)" ;;
  esac
done

bytes() { numfmt --from=iec-i "${1%B}"; }
memory_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$(process_pid sds0)/status"; }
# Its process serves: it has opened its device, replayed the journal, registered, and its groups are in sync.
serves() { "$pflex" device stats --sds sds1 -o json 2>/dev/null | jq -e 'length == 1' && "$pflex" status --check; }
fill() { fio --name=fill --ioengine=nbd --uri="$(nbd_uri "$1")" --size="${2%B}" "${@:3}" >/dev/null; }

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
volume_ready full "$full" || die "the volume cannot be opened"
before=$(memory_kib)
fill full "$full" --rw=write --bs=1m --iodepth=4
sleep 5 # the checkpoint gives the journal's memory back
after=$(memory_kib)
printf '%-34s %8s KiB before, %s after: %s MiB for a TiB\n' "memory, $full written in full" "$before" "$after" \
  "$(((after - before) * (1 << 30) / ($(bytes "$full") / 1024) / 1024))"
volume_ready sparse "$sparse" || die "the volume cannot be opened"
# As many writes as there are chunks: fio counts bytes written, not passed over, and would go round 256 times.
fill sparse "$sparse" --rw=write:1020k --bs=4k --iodepth=32 --number_ios=$(($(bytes "$sparse") >> 20))
sleep 5
printf '%-34s %8s KiB\n' "memory, one block in each MiB of $sparse" "$(memory_kib)"
pid=$(process_pid sds0)
kill -TERM "$pid"
wait_for 60 "sds1 to end" sh -c "! kill -0 $pid 2>/dev/null"
start_again "restart after a clean end"
process_kill sds0
start_again "restart after a kill"
