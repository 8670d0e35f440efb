#!/usr/bin/env bash
# Many volumes on one client, each with an application of its own: how equal are they served?
# Each reads and writes 4 KiB at random at depth 4. Prints the least and most IOPS of a volume and their ratio; fails
# above 1.5. With --mixed every other volume's application uses 64 KiB at depth 8: no ratio is judged then.
# usage: bench-fair.sh [--volumes 64] [--seconds 20] [--mixed]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/cluster.sh"

volumes=64 seconds=20 mixed=''
while [ $# -gt 0 ]; do
  case $1 in
    --volumes) volumes=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --mixed) mixed=yes; shift ;;
    *) die "unknown argument $1; usage: bench-fair.sh [--volumes 64] [--seconds 20] [--mixed]" ;;
  esac
done
cluster_start fair 23000
scratch=$(mktemp -d)
trap 'status=$?; rm -rf "$scratch"; cluster_end "$status"' EXIT

job="$scratch/job"
printf '[global]\nioengine=nbd\nthread=1\nsize=32m\nruntime=%s\ntime_based=1\nramp_time=3\nrw=randrw\nbs=4k\niodepth=4\n' "$seconds" >"$job"
for n in $(seq "$volumes"); do
  volume_ready "fair$n" 32MiB || die "volume fair$n cannot be opened"
  printf '[fair%s]\nuri=%s\n' "$n" "$(nbd_uri "fair$n")" >>"$job"
  if [ -n "$mixed" ] && [ $((n % 2)) = 0 ]; then printf 'bs=64k\niodepth=8\n' >>"$job"; fi
done
fio "$job" --output="$scratch/out" --output-format=json >/dev/null 2>"$scratch/err" ||
  die "fio failed: $(head -n 2 "$scratch/err" | tr '\n' ' ')"
result=$(sed -n '/^{/,$p' "$scratch/out" | jq -r '[.jobs[] | .read.iops + .write.iops] |
  [length, min, (add / length), max, max / min] | map(. * 100 | floor / 100) | @tsv')
read -r count least mean most ratio <<<"$result"
printf '%s volumes on one client: %s to %s IOPS, mean %s, most/least %s\n' "$count" "$least" "$most" "$mean" "$ratio"
if [ -n "$mixed" ]; then exit 0; fi
awk -v ratio="$ratio" 'BEGIN { exit !(ratio < 1.5) }' || die "most/least is $ratio, and must stay under 1.5"
