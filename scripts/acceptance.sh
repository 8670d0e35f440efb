#!/usr/bin/env bash
# Kills processes of a cluster under load and says whether it kept its promises, one PASS or FAIL line each.
# usage: acceptance.sh [--seconds 60] [--kill-at 20] [CHECK...]      default: all checks
#   leader     the MDM leader dies: no IO error, data verifies, longest stall under 1 s
#   sds        a storage server dies: the same under 5 s, and it comes back into sync by itself
#   freeze     a storage server is stopped (SIGSTOP) and later goes on: the same under 5 s
#   device     one of two disks of a storage server fails, every read and write of it: the same under 1 s
#   groups     the placement groups of the pool double twice, one time right after the other: the same under 1 s
#   quorum     the leader dies: a volume is created within 2 s; two of three MDMs die: IO goes on, creates fail with
#              exit status 6 in time, and both work again once one MDM is back
#   tail       the leader dies under 4 KiB writes at depth 4, three times: p99.9 within 2 times of the runs between without
#   outage     no MDM at all for 30 s under 4 KiB writes at depth 4, until they are back: no request is sent twice
#   crash      everything dies at once under writes: every acknowledged synced write is there
#   self-test  the checker of `crash` finds a planted loss (no cluster needed)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/cluster.sh"

seconds=60 kill_at=20 checks=()
while [ $# -gt 0 ]; do
  case $1 in
    --seconds) seconds=$2; shift 2 ;;
    --kill-at) kill_at=$2; shift 2 ;;
    leader | sds | freeze | device | groups | quorum | tail | outage | crash | self-test) checks+=("$1"); shift ;;
    *) die "unknown argument $1 (see the head of scripts/acceptance.sh)" ;;
  esac
done
[ ${#checks[@]} -gt 0 ] || checks=(self-test leader sds freeze device groups quorum tail outage crash)
[ "$kill_at" -lt "$seconds" ] || die "--kill-at $kill_at is not before --seconds $seconds"

pass() { printf 'PASS %-9s %s\n' "$check" "$*"; }
fail() { printf 'FAIL %-9s %s\n' "$check" "$*"; exit 1; }

# load VOLUME SECONDS: random 4 KiB writes at depth 8, each read back and compared soon after, for so long.
# verify_backlog makes fio verify while it writes; by itself it would only after a whole pass over the volume.
load() {
  fio --name=load --ioengine=nbd --uri="$(nbd_uri "$1")" --rw=randwrite --bs=4k --iodepth=8 --size=512m \
    --verify=crc32c --verify_backlog=4096 --verify_fatal=1 --verify_state_save=0 --runtime="$2" --time_based \
    --output-format=json --output="$cluster_dir/fio.out" >/dev/null 2>"$cluster_dir/fio.err"
}
# Prints: writes, reads that verified, and the longest that one IO took in ms (nothing stalls longer than that).
load_result() {
  sed -n '/^{/,$p' "$cluster_dir/fio.out" | jq -r '.jobs[0] |
    [.write.total_ios, .read.total_ios, ([.write.clat_ns.max, .read.clat_ns.max] | max / 1e6 | floor)] | @tsv'
}
# Waits for the load started last and fails on an IO error, a wrong block, or a stall of $1 ms or more.
load_judged() {
  local writes reads stall
  wait "$load" || fail "fio: $(grep -ahE 'error|verify|failed' "$cluster_dir"/fio.{err,out} | head -n 3 | tr '\n' ' ')"
  read -r writes reads stall < <(load_result)
  verdict="no IO error, $writes writes, $reads blocks verified, longest stall $stall ms (limit $1 ms)"
  if [ "$stall" -ge "$1" ] || [ "$reads" = 0 ]; then fail "$verdict"; fi
}

killed_under_load() { # VICTIM-COMMAND LIMIT-MS
  volume_ready load 1GiB
  load load "$seconds" & load=$!
  sleep "$kill_at"
  victim=$($1); process_kill "$victim"
  load_judged "$2"
}
healthy_again() { # WHAT HAPPENED BEFORE
  local start; start=$(now_ms)
  wait_for 120 "status --check" "$pflex" status --check || fail "not healthy 120 s after $1"
  pass "$verdict; healthy $(($(now_ms) - start)) ms after $1"
}

check_leader() { killed_under_load leader 1000; pass "$victim killed at $kill_at s: $verdict"; }

check_sds() {
  killed_under_load 'echo sds1' 5000
  cluster_up
  healthy_again "the restart of $victim, killed at $kill_at s"
}

# What it had in its hands when it was stopped must not take effect when it goes on.
check_freeze() {
  local frozen
  volume_ready load 1GiB
  load load "$seconds" & load=$!
  sleep "$kill_at"
  frozen=$(process_pid sds1)
  kill -STOP "$frozen"
  sleep "$((seconds - kill_at - 5 > 5 ? seconds - kill_at - 5 : 5))"
  kill -CONT "$frozen"
  load_judged 5000
  healthy_again "sds1, stopped at $kill_at s, went on"
}

# A second disk for sds1, before anything is placed: one that fails on demand, every read and write of it with EIO.
check_device() {
  local file=$cluster_dir/failing broken=$cluster_dir/broken disk
  touch "$file"
  nbdfuse "$file" --command nbdkit -s --filter=error memory 4G error=EIO error-rate=100% error-file="$broken" &
  # shellcheck disable=SC2064  # the file of now
  trap "umount --lazy '$file'; cluster_end 1" EXIT
  wait_for 10 "the disk" sh -c "[ \$(stat -c %s '$file') -gt 0 ]"
  disk=$(losetup --find --show "$file") || fail "no loop device"
  # shellcheck disable=SC2064
  trap "losetup --detach '$disk'; umount --lazy '$file'; cluster_end 1" EXIT
  printf '[[device]]\npath = "%s"\nformat_if_blank = true\n' "$disk" >>"$cluster_dir/sds0/config.toml"
  kill -TERM "$(process_pid sds0)"
  wait_for 30 "sds1 to end" sh -c "! '$pflex' device stats --sds sds1 2>/dev/null | grep -q sds1"
  process_start sds0
  wait_for 60 "the new device" sh -c "[ \$('$pflex' device list --sds sds1 -o json | jq '[.[] | select(.in_service)] | length') = 2 ]"
  wait_for 60 "status --check" "$pflex" status --check || fail "not healthy with two devices"
  # The pool has its volume already: copies come to a new device by moving.
  "$pflex" pool rebalance default --wait --timeout 120s >/dev/null || fail "no copies on the new device"
  volume_ready load 1GiB
  load load "$seconds" & load=$!
  sleep "$kill_at"
  touch "$broken"
  load_judged 1000
  grep -q "out of service" "$cluster_dir/sds0/log" || fail "nothing failed: the disk had nothing to do"
  "$pflex" down --dir "$cluster_dir" >/dev/null 2>&1 || true
  losetup --detach "$disk"
  umount --lazy "$file"
  trap 'cluster_end $?' EXIT
  pass "a disk of sds1 failed at $kill_at s: $verdict"
}

check_groups() {
  local before after
  volume_ready load 1GiB
  before=$("$pflex" pool show default -o json | jq .pgs)
  load load "$seconds" & load=$!
  sleep "$kill_at"
  after=$((before * 4))
  "$pflex" pool set-pgs default "$after" >/dev/null || fail "pool set-pgs default $after"
  load_judged 1000
  pass "$before placement groups became $after at $kill_at s: $verdict"
}

create_in_time() { # NAME LIMIT-MS: prints how long the creation took
  local start; start=$(now_ms)
  "$pflex" volume create "$1" --size 64MiB --timeout 5s >/dev/null 2>"$cluster_dir/create.err" || return
  echo $(($(now_ms) - start)); [ $(($(now_ms) - start)) -le "$2" ]
}

check_quorum() {
  local first second took status=0 start
  volume_ready load 1GiB
  first=$(leader); process_kill "$first"
  took=$(create_in_time after-leader 2000) || fail "volume create after the leader's death: ${took:-failed} ms (limit 2000)"
  second=$(leader)
  load load 20 & load=$!
  sleep 5; process_kill "$second"
  start=$(now_ms)
  create_in_time without-quorum 8000 >/dev/null || status=$?
  [ "$status" = 6 ] || fail "volume create without a quorum: exit status $status, not 6: $(cat "$cluster_dir/create.err")"
  start=$(($(now_ms) - start))
  [ "$start" -le 8000 ] || fail "volume create without a quorum took $start ms with --timeout 5s"
  load_judged 1000
  process_start "$second"
  wait_for 15 "volume create with two of three MDMs" create_in_time quorum-back 5000 || fail "no create after $second came back"
  load load 5 & load=$!; verdict_before=$verdict; load_judged 1000
  pass "create $took ms after the leader's death; without quorum: exit status 6 after $start ms, $verdict_before; all well again"
}

# 4 KiB writes at depth 4 for $1 seconds over chunks that are there; `writes_end` waits for it: p99.9 is in $us then, the longest in $most (ms).
writes() {
  fio --name=writes --ioengine=nbd --uri="$(nbd_uri load)" --rw=randwrite --bs=4k --iodepth=4 --size=512m --norandommap=1 \
    --percentile_list=99.9 --runtime="$1" --time_based --output-format=json --output="$cluster_dir/fio.out" \
    >/dev/null 2>"$cluster_dir/fio.err"
}
writes_end() {
  wait "$load" || fail "fio: $(head -n 2 "$cluster_dir/fio.err" | tr '\n' ' ')"
  read -r us most < <(sed -n '/^{/,$p' "$cluster_dir/fio.out" |
    jq -r '.jobs[0].write.clat_ns | [.percentile["99.900000"] / 1000, .max / 1e6] | map(floor) | @tsv')
}
filled() {
  volume_ready load 1GiB
  fio --name=fill --ioengine=nbd --uri="$(nbd_uri load)" --rw=write --bs=1m --iodepth=4 --size=512m --output=/dev/null ||
    fail "the volume cannot be filled"
}
median() { printf '%s\n' "$@" | sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

check_tail() {
  local part=$((seconds / 3 > 6 ? seconds / 3 : 6)) quiet=() killed=() us most longest=0 a b
  filled
  for _ in 1 2 3; do
    writes "$part" & load=$!
    writes_end; quiet+=("$us")
    writes "$part" & load=$!
    sleep $((part / 3)); victim=$(leader); process_kill "$victim"
    writes_end; killed+=("$us")
    [ "$most" -le "$longest" ] || longest=$most
    process_start "$victim"
    wait_for 60 "status --check" "$pflex" status --check || fail "not healthy after $victim was started again"
  done
  a=$(median "${quiet[@]}") b=$(median "${killed[@]}")
  verdict="p99.9 with the leader killed $b us (${killed[*]}), without $a us (${quiet[*]}), longest write with a kill $longest ms"
  [ "$b" -le $((2 * a)) ] || fail "$verdict"
  pass "$verdict"
}

# What the client counted of its requests to the volume: sent again, failed.
counted() { "$pflex" sdc stats sdc1 -o json | jq -r '.[] | select(.volume == "load") | "\(.retries) sent again, \(.errors) failed"'; }

check_outage() {
  local n us most before after quiet
  filled
  writes 20 & load=$!
  writes_end; quiet=$most
  before=$(counted)
  writes 50 & load=$!
  sleep 5
  for n in 0 1 2; do process_kill "mdm$n"; done
  sleep 30
  for n in 0 1 2; do process_start "mdm$n"; done
  writes_end
  wait_for 60 "status --check" "$pflex" status --check || fail "not healthy after the MDMs came back"
  after=$(counted)
  verdict="no MDM for 30 s: longest write $most ms (in 20 s before: $quiet ms), p99.9 $us us, requests: $after"
  [ "$after" = "$before" ] || fail "$verdict; before: $before"
  pass "$verdict"
}

check_crash() {
  local writer name result
  volume_ready load 64MiB
  "$root/scripts/acked_writes.py" write "$(nbd_uri load)" "$cluster_dir/acked" "$seconds" >"$cluster_dir/writer" & writer=$!
  sleep "$((seconds / 4))"
  mapfile -t pids < <(for name in $(cluster_processes); do process_pid "$name"; done)
  kill -KILL "${pids[@]}"
  wait "$writer" || fail "the writer saw an IO error before the crash: $(cat "$cluster_dir/writer")"
  cluster_up
  wait_for 60 "NBD export load" nbdinfo --size "$(nbd_uri load)" || fail "the volume did not come back"
  result=$("$root/scripts/acked_writes.py" check "$(nbd_uri load)" "$cluster_dir/acked") || fail "$(tail -n 5 <<<"$result")"
  pass "${#pids[@]} processes killed at once; $(cat "$cluster_dir/writer"); $result"
}

# The checker against a server in memory: right as long as nothing is lost, and not after one block went back to zero.
check_self-test() {
  local block port=29999
  scratch=$(mktemp -d) # global, as is server: the trap reads them
  local state=$scratch/acked
  nbdkit --foreground --port "$port" --ipaddr 127.0.0.1 memory 64M & server=$!
  trap 'kill "$server"; rm -rf "$scratch"' EXIT
  wait_for 5 nbdkit nbdinfo --size "nbd://127.0.0.1:$port/"
  "$root/scripts/acked_writes.py" write "nbd://127.0.0.1:$port/" "$state" 1 >/dev/null
  "$root/scripts/acked_writes.py" check "nbd://127.0.0.1:$port/" "$state" >/dev/null || fail "reports a loss where there is none"
  block=$(jq -r '[.blocks | to_entries[] | select(.value[0] > 0)][0].key' "$state")
  qemu-io -f raw -c "write -z $((block * 4096)) 4k" "nbd://127.0.0.1:$port/" >/dev/null
  if "$root/scripts/acked_writes.py" check "nbd://127.0.0.1:$port/" "$state" >/dev/null; then fail "does not see that block $block was lost"; fi
  pass "the checker finds a planted loss"
}

# One check runs here; several run each in a process and a cluster of its own, so that one failure stops no other.
if [ ${#checks[@]} = 1 ]; then
  check=${checks[0]}
  [ "$check" = self-test ] || cluster_start "acceptance-$check" 21000
  "check_$check"
  exit
fi
failed=0
for check in "${checks[@]}"; do
  "$0" --seconds "$seconds" --kill-at "$kill_at" "$check" || failed=$((failed + 1))
done
echo "$((${#checks[@]} - failed)) passed, $failed failed"
[ "$failed" = 0 ]
