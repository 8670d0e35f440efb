#!/usr/bin/env bash
# Six block jobs with fio over the first GiB of a volume, after a fill: 4 KiB random writes and reads at depth 1 and
# 32, 1 MiB sequential writes and reads at depth 4. Prints IOPS, MiB/s, mean and p99 latency, and the CPU time that
# all pflex processes together spent on one IO.
# usage: bench.sh [--seconds 8] [--token-mode lease|per-io] [--peer "FIO ARGUMENTS"] [--uri NBD-URI [--dir CLUSTER-DIRECTORY]] [JOB...]
#   --peer   runs each job beside ours against another target, job by job, and prints the ratio ours / theirs:
#            --peer "--ioengine=rbd --clientname=admin --pool=rbd --rbdname=bench". Only such ratios mean much: machines
#            are noisy, and a figure from another day compares nothing.
#   --uri    measures an export that is there already, of at least 1 GiB, and overwrites it; without it a cluster of
#            its own is started. --dir says where that cluster's pid files are, for the CPU column
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/cluster.sh"

# name, fio's rw, block size, depth. The fill comes first, so that reads find data and writes find their chunks there.
all_jobs='fill write 1m 4
write4k-qd1 randwrite 4k 1
write4k-qd32 randwrite 4k 32
read4k-qd1 randread 4k 1
read4k-qd32 randread 4k 32
write1m-qd4 write 1m 4
read1m-qd4 read 1m 4'

seconds=8 token_mode=lease peer='' uri='' jobs=()
while [ $# -gt 0 ]; do
  case $1 in
    --seconds) seconds=$2; shift 2 ;;
    --token-mode) token_mode=$2; shift 2 ;;
    --peer) peer=$2; shift 2 ;;
    --uri) uri=$2; shift 2 ;;
    --dir) cluster_dir=$2; shift 2 ;;
    *) grep -q "^$1 " <<<"$all_jobs" || die "unknown job $1; the jobs are: $(cut -d' ' -f1 <<<"$all_jobs" | xargs)"
      jobs+=("$1"); shift ;;
  esac
done
if [ -z "$uri" ]; then
  cluster_start bench 22000
  volume_ready bench 1GiB --token-mode "$token_mode" || die "the volume bench cannot be opened"
  uri=$(nbd_uri bench)
fi
read -ra peer_args <<<"$peer"
scratch=$(mktemp -d)
trap 'status=$?; rm -rf "$scratch"; [ "$port_offset" = 0 ] || cluster_end "$status"' EXIT

# CPU time of all processes of the cluster so far, in microseconds.
cpu_us() {
  local name pid ticks=0 fields
  for name in $(cluster_processes); do
    pid=$(process_pid "$name") || continue
    # utime and stime are the 12th and 13th fields after the name, which may hold blanks.
    read -ra fields < <(sed 's/.*) //' "/proc/$pid/stat")
    ticks=$((ticks + fields[11] + fields[12]))
  done
  echo $((ticks * 1000000 / $(getconf CLK_TCK)))
}

# measure JOB RW BS DEPTH FIO-TARGET...: prints iops, MiB/s, mean us, p99 us, IOs done
measure() {
  local job=$1 rw=$2 bs=$3 depth=$4; shift 4
  fio --name="$job" "$@" --rw="$rw" --bs="$bs" --iodepth="$depth" --size=1g --runtime="$seconds" --time_based \
    --output="$scratch/out" --output-format=json >/dev/null 2>"$scratch/err" ||
    die "fio failed in job $job: $(head -n 2 "$scratch/err" | tr '\n' ' ')"
  sed -n '/^{/,$p' "$scratch/out" | jq -r '.jobs[0] | (if .write.total_ios > 0 then .write else .read end) |
    [.iops, .bw / 1024, .clat_ns.mean / 1000, (.clat_ns.percentile["99.000000"] // 0) / 1000, .total_ios] | map(floor) | @tsv'
}

# The disk under it all, as a measure of the machine: one synced 4 KiB write after the other.
disk_iops() {
  fio --name=disk --filename="$1/raw-disk-test" --rw=randwrite --bs=4k --size=64m --ioengine=psync --fdatasync=1 --runtime=3 \
    --time_based --output-format=json 2>/dev/null | sed -n '/^{/,$p' | jq '.jobs[0].write.iops | floor'
}

row() { printf '%-13s %-6s %9s %8s %9s %9s %9s %8s\n' "$@"; }
# column -> ratio ours / theirs with two decimals
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "-" }'; }

printf '%s cores, %s GiB memory, ' "$(nproc)" "$(awk '/^MemTotal/ { printf "%d", $2 / 1048576 }' /proc/meminfo)"
if [ -n "$cluster_dir" ]; then printf 'disk: %s synced 4 KiB writes/s, ' "$(disk_iops "$cluster_dir")"; rm -f "$cluster_dir/raw-disk-test"; fi
printf '%s s a job\n' "$seconds"
row job target iops MiB/s mean_us p99_us cpu_us/io ratio
while read -r job rw bs depth; do
  if [ ${#jobs[@]} -gt 0 ] && [ "$job" != fill ] && [[ " ${jobs[*]} " != *" $job "* ]]; then continue; fi
  cpu=$(cpu_us)
  result=$(measure "$job" "$rw" "$bs" "$depth" --ioengine=nbd --uri="$uri")
  cpu=$(($(cpu_us) - cpu))
  read -r iops mibs mean p99 ios <<<"$result"
  row "$job" pflex "$iops" "$mibs" "$mean" "$p99" "$([ "$cpu" = 0 ] && echo - || echo $((cpu / (ios > 0 ? ios : 1))))" ''
  [ -n "$peer" ] || continue
  result=$(measure "$job" "$rw" "$bs" "$depth" "${peer_args[@]}")
  read -r peer_iops mibs mean p99 _ <<<"$result"
  row "$job" peer "$peer_iops" "$mibs" "$mean" "$p99" '' "$(ratio "$iops" "$peer_iops")"
done <<<"$all_jobs"
