#!/usr/bin/env bash
# The metadata managers beside three etcd members, in one run on one disk, durable writes on both: writes and linearizable
# reads with 1, 64 and 256 clients, the gap in writes when the leader is killed and when it is shut down, then (ours alone)
# 100,000 volumes in 1,000 pools, and 512 storage servers with 2,048 clients that beat and renew tokens: in peace, and when
# their leader hands over and is killed.
# usage: bench-mdm.sh [--seconds 8] [--kills 20] [--volumes 100000] [--pools 1000] [--sds 512] [--sdc 2048] [--no-etcd] [PART...]
#   PART     load, failover, shutdown, fill, fleet; all of them if none is named
#   --no-etcd  ours alone, for work on it
# Only the ratios of one run mean much: machines are shared and noisy.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

pflex=${PFLEX:-$target_dir/release/pflex}
bench=${BENCH_MDM:-$(dirname "$pflex")/bench-mdm}
seconds=8 kills=20 volumes=100000 pools=1000 sds=512 sdc=2048 systems='pflex etcd' parts=()
while [ $# -gt 0 ]; do
  case $1 in
    --seconds) seconds=$2; shift 2 ;;
    --kills) kills=$2; shift 2 ;;
    --volumes) volumes=$2; shift 2 ;;
    --pools) pools=$2; shift 2 ;;
    --sds) sds=$2; shift 2 ;;
    --sdc) sdc=$2; shift 2 ;;
    --no-etcd) systems=pflex; shift ;;
    load | failover | shutdown | fill | fleet) parts+=("$1"); shift ;;
    *) die "unknown argument $1; usage: $(sed -n 's/^# usage: //p' "$0")" ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(load failover shutdown fill fleet)
for program in "$pflex" "$bench"; do [ -x "$program" ] || die "$program is missing: run 'make bench-mdm'"; done
[ "$systems" = pflex ] || has etcd || die "etcd is missing: 'make setup' installs etcd-server and etcd-client; or --no-etcd"

# One storage server or client holds two connections: one to a member for the map, one to the leader.
ulimit -n "$(ulimit -Hn)"
mkdir -p "$target_dir/scratch"
scratch=$(mktemp -d "$target_dir/scratch/bench-mdm.XXXXXX")
base=21000
declare -A pids=()

finish() {
  local status=$1 name
  trap - EXIT
  for name in "${!pids[@]}"; do kill -KILL "${pids[$name]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  if [ "$status" = 0 ]; then rm -rf "$scratch"; else say "logs and data are in $scratch"; fi
  exit "$status"
}
trap 'finish $?' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- the two systems: SYSTEM_start K, SYSTEM_leader (prints K), both with members 1 to 3 -----------------------------

client_port() { if [ "$1" = pflex ]; then echo $((base + 10 * $2)); else echo $((base + 500 + 10 * $2)); fi; }
peer_port() { echo $(($(client_port "$1" "$2") + 1)); }
at() { local k list=''; for k in 1 2 3; do list+=127.0.0.1:$(client_port "$1" "$k"),; done; echo "${list%,}"; }
export PFLEX_MDM; PFLEX_MDM=$(at pflex)
export XDG_CONFIG_HOME=$scratch/client

start() {
  local system=$1 k=$2; shift 2
  "${system}_command" "$k" >>"$scratch/$system$k.log" 2>&1 &
  pids[$system$k]=$!
}
kill_member() { kill -KILL "${pids[$1$2]}"; wait "${pids[$1$2]}" 2>/dev/null || true; }

pflex_command() { exec "$pflex" mdm --config "$scratch/pflex$1.toml"; }
pflex_configs() {
  local k m cluster
  cluster=$(cat /proc/sys/kernel/random/uuid)
  for k in 1 2 3; do
    printf 'cluster = "%s"\nid = %s\ndir = "%s"\n' "$cluster" "$k" "$scratch/pflex$k"
    for m in 1 2 3; do
      printf '[[members]]\nid = %s\napi = "127.0.0.1:%s"\nraft = "127.0.0.1:%s"\nstore = "00000000-0000-4000-8000-%012d"\n' \
        "$m" "$(client_port pflex $m)" "$(peer_port pflex $m)" "$m"
    done
  done | awk -v dir="$scratch" '/^cluster/ { k++ } { print > (dir "/pflex" k ".toml") }'
}
pflex_leader() { "$pflex" cluster status -o json --timeout 5s | jq -er '.leader | select(. > 0)'; }
pflex_whole() { "$pflex" cluster status -o json --timeout 5s | jq -e '[.members[] | select(.state == "up" and .lag < 100)] | length == 3'; }
# pflex_has K REVISION: that member itself says that it is as far.
pflex_has() { "$pflex" --mdm "127.0.0.1:$(client_port pflex "$1")" cluster status --stale -o json --timeout 2s | jq -e ".revision >= $2"; }
pflex_ready() { pflex_leader && "$pflex" domain create default --if-not-exists && "$pflex" pool create default --domain default --if-not-exists; }

etcd_command() {
  local k=$1 m cluster=''
  for m in 1 2 3; do cluster+=m$m=http://127.0.0.1:$(peer_port etcd $m),; done
  exec etcd --name "m$k" --data-dir "$scratch/etcd$k" --initial-cluster "${cluster%,}" --log-level error \
    --listen-client-urls "http://127.0.0.1:$(client_port etcd "$k")" --advertise-client-urls "http://127.0.0.1:$(client_port etcd "$k")" \
    --listen-peer-urls "http://127.0.0.1:$(peer_port etcd "$k")" --initial-advertise-peer-urls "http://127.0.0.1:$(peer_port etcd "$k")"
}
etcd_status() { ETCDCTL_API=3 etcdctl --endpoints "$(at etcd)" endpoint status -w json 2>/dev/null; }
etcd_leader() { etcd_status | jq -er '[to_entries[] | select(.value.Status.leader == .value.Status.header.member_id)][0].value.Endpoint' | member_of etcd; }
etcd_whole() { [ "$(etcd_status | jq length)" = 3 ] && ETCDCTL_API=3 etcdctl --endpoints "$(at etcd)" endpoint health >/dev/null 2>&1; }
etcd_ready() { etcd_whole; }
member_of() { local endpoint k; read -r endpoint; for k in 1 2 3; do [ "${endpoint##*:}" != "$(client_port "$1" $k)" ] || echo $k; done; }

start_all() {
  local system=$1 k
  [ "$system" = etcd ] || pflex_configs
  for k in 1 2 3; do
    [ "$system" = etcd ] || "$pflex" cluster init --config "$scratch/pflex$k.toml" >/dev/null 2>&1
    start "$system" $k
  done
  wait_for 30 "$system to serve" "${system}_ready" || die "$system did not start"
  [ "$system" = etcd ] || start_servers
}
# Three storage servers that only beat, so that volumes have a place.
start_servers() {
  "$bench" fleet --at "$PFLEX_MDM" --sds 3 --sdc 0 --seconds 86400 >/dev/null 2>>"$scratch/fleet.log" &
  pids[fleet]=$!
  wait_for 30 "three storage servers" grep -q 'are there' "$scratch/fleet.log" || die "the simulated storage servers did not come"
}
stop_all() {
  local name
  for name in "${!pids[@]}"; do
    case $name in "$1"* | fleet) kill -KILL "${pids[$name]}" 2>/dev/null || true; wait "${pids[$name]}" 2>/dev/null || true; unset "pids[$name]" ;; esac
  done
  rm -rf "$scratch/$1"[123]
}

# ---- the parts ----------------------------------------------------------------------------------------------------------

row() { printf '%-8s %8s %7s %10s %9s %9s %9s %7s\n' "$@"; }
field() { jq -r "$1" <<<"$2"; }
# Ours to theirs: nothing for ours itself.
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (a != "" && b > 0) printf "%.2f", a / b; else printf "-" }'; }

part_load() {
  local kind clients system line rate ours
  row job clients system 'per_s' p50_us p99_us max_us ratio
  for kind in writes reads; do
    for clients in 1 64 256; do
      ours=''
      for system in $systems; do
        line=$("$bench" "$kind" --system "$system" --at "$(at "$system")" --clients "$clients" --seconds "$seconds")
        rate=$(field .per_second "$line")
        row "$kind" "$clients" "$system" "$rate" "$(field .p50_us "$line")" "$(field .p99_us "$line")" \
          "$(field .max_us "$line")" "$(ratio "$ours" "$rate")"
        ours=$rate
      done
    done
  done
}

part_failover() { leader_goes KILL "$kills" killed; }
# With as many rounds in which nothing happens: what the machine itself does to the figure.
part_shutdown() { leader_goes TERM $(((kills + 1) / 2)) 'shut down' alone; }

# gap SYSTEM SIGNAL: prints the longest time in ms between two acknowledged writes while the leader gets SIGNAL and starts
# again; with SIGNAL 0 it is left alone.
gap() {
  local system=$1 signal=$2 leader writer
  wait_for 60 "$system to be whole" "${system}_whole" || die "$system is not whole after a member came back"
  leader=$("${system}_leader")
  "$bench" gap --system "$system" --at "$(at "$system")" --clients 3 --seconds 6 >"$scratch/gap" 2>&1 &
  writer=$!
  sleep 2 # of load before it goes
  if [ "$signal" != 0 ]; then
    kill "-$signal" "${pids[$system$leader]}"
    wait "${pids[$system$leader]}" 2>/dev/null || true
  fi
  wait "$writer" || die "writes failed: $(tail -n 1 "$scratch/gap")"
  [ "$signal" = 0 ] || start "$system" "$leader"
  field .longest_gap_ms "$(tail -n 1 "$scratch/gap")" >>"$scratch/gaps.$signal"
}

# leader_goes SIGNAL TIMES WORDS [alone]
leader_goes() {
  local signal=$1 times=$2 words=$3 alone=${4:-} system n
  for system in $systems; do
    rm -f "$scratch"/gaps.*
    for ((n = 0; n < times; n++)); do
      [ -z "$alone" ] || gap "$system" 0
      gap "$system" "$signal"
    done
    gaps_of "$system" "$words" "$signal"
    [ -z "$alone" ] || gaps_of "$system" 'left alone' 0
  done
}
# gaps_of SYSTEM WORDS SIGNAL
gaps_of() {
  sort -n "$scratch/gaps.$3" | awk -v who="$1" -v words="$2" '{ gap[NR] = $1 } END {
    printf "%-6s leader %s %d times: longest time between two acknowledged writes p50 %d ms, max %d ms\n", who, words, NR, gap[int((NR + 1) / 2)], gap[NR] }'
}

rss_mib() { awk '/^VmRSS/ { printf "%d", $2 / 1024 }' "/proc/$1/status"; }

part_fill() {
  local line leader other begin reply revision
  line=$("$bench" fill --at "$PFLEX_MDM" --pools "$pools" --volumes "$volumes")
  printf 'create: %s pools at %s/s (p99 %s us), %s volumes at %s/s (p99 %s us)\n' "$pools" "$(field .pools.per_second "$line")" \
    "$(field .pools.p99_us "$line")" "$volumes" "$(field .volumes.per_second "$line")" "$(field .volumes.p99_us "$line")"
  leader=$(pflex_leader)
  printf 'memory of the leader: %s MiB\n' "$(rss_mib "${pids[pflex$leader]}")"
  begin=$(now_ms); reply=$("$pflex" cluster snapshot -o json)
  printf 'snapshot: %s ms, %s MiB\n' $(($(now_ms) - begin)) "$(($(field '.bytes // .size' "$reply") / 1048576))"
  other=$((leader % 3 + 1))
  revision=$("$pflex" cluster status -o json | jq .revision)
  kill_member pflex $other
  begin=$(now_ms); start pflex $other
  wait_for 60 "member $other" pflex_has $other "$revision" || die "member $other did not come back"
  printf 'restart of a member, until it follows again: %s ms, memory then %s MiB\n' $(($(now_ms) - begin)) "$(rss_mib "${pids[pflex$other]}")"
}

# fleet_asks N PID: for the death of the leader the N-th time, or it is dead itself.
fleet_asks() { [ "$(grep -c '^kill the leader' "$scratch/fleet.log")" -ge "$1" ] || ! kill -0 "$2" 2>/dev/null; }
part_fleet() {
  local line leader k all n fleet
  # The three servers of before are among those that come now.
  kill -KILL "${pids[fleet]}"; wait "${pids[fleet]}" 2>/dev/null || true; unset 'pids[fleet]'
  leader=$(pflex_leader)
  all="${pids[pflex$leader]}"
  for k in 1 2 3; do [ "$k" = "$leader" ] || all+=",${pids[pflex$k]}"; done
  : >"$scratch/fleet.log"
  "$bench" fleet --at "$PFLEX_MDM" --sds "$sds" --sdc "$sdc" --seconds 45 --pids "$all" --transfers 1 --kills 2 \
    >"$scratch/fleet.json" 2>>"$scratch/fleet.log" &
  pids[fleet]=$!; fleet=$!
  for n in 1 2; do
    wait_for 900 "the fleet to be ready for the loss of its leader" fleet_asks "$n" "$fleet" || die "the fleet did not settle"
    kill -0 "$fleet" 2>/dev/null || break
    leader=$(pflex_leader)
    kill_member pflex "$leader"
    sleep 4 # the others are alone for a while, and then it comes back
    start pflex "$leader"
  done
  wait "$fleet" || die "the fleet failed: $(tail -n 1 "$scratch/fleet.log")"
  unset 'pids[fleet]'
  line=$(cat "$scratch/fleet.json")
  leader=$(pflex_leader)
  printf 'fleet of %s servers and %s clients, there after %s ms: leader %s cores, followers %s and %s%s\n' "$sds" "$sdc" "$(field .arrival_ms "$line")" \
    "$(field '.cores[0]' "$line")" "$(field '.cores[1]' "$line")" "$(field '.cores[2]' "$line")" \
    "$(field 'if .same_leader then "" else " (NOT VALID: the leader changed meanwhile)" end' "$line")"
  printf '  meanwhile %s beats, %s reports, %s renewals, %s updates in %s messages, %s failures; leader memory now %s MiB\n' "$(field .beats "$line")" \
    "$(field .reports "$line")" "$(field .renewals "$line")" "$(field .map_updates "$line")" "$(field .map_messages "$line")" \
    "$(field .failures "$line")" "$(rss_mib "${pids[pflex$leader]}")"
  field '.changes[] | "  \(.how): all beats back after \(.beats_back_ms) ms, all maps after \(.maps_back_ms) ms, \(.tries_in_vain) tries in vain; \(.commands) commands (\(.renewals) renewals), events \(.events), \(.servers_not_alive) servers not alive, \(.full_maps) full maps, \(.map_updates) updates in \(.map_messages) messages"' "$line"
}

printf '%s cores, %s GiB memory; pflex %s%s\n' "$(nproc)" "$(awk '/^MemTotal/ { printf "%d", $2 / 1048576 }' /proc/meminfo)" \
  "$("$pflex" --version | awk '{ print $2 }')" "$([ "$systems" = pflex ] || etcd --version | awk 'NR == 1 { printf ", etcd %s", $3 }')"
running=''
for part in "${parts[@]}"; do
  case $part in
    load | failover | shutdown)
      [ -n "$running" ] || for system in $systems; do start_all "$system"; done
      running=both ;;
    fill | fleet) # a cluster of its own: what was there before is not in the figures
      for system in $systems; do stop_all "$system"; done
      : >"$scratch/fleet.log"
      start_all pflex
      running='' ;;
  esac
  "part_$part"
done
