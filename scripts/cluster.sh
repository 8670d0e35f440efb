# shellcheck shell=bash
# A cluster of its own for one script: own directory, ports and client configuration, so it neither sees nor disturbs
# one that is running already, and everything is gone when the script ends. Sourced after lib.sh.
#
# `pflex up --dir D` keeps each process in D/NAME with NAME counted from 0 (mdm0, sds2, sdc0): its config.toml and its
# pid. Cluster objects count from 1 (MDM id 1, sds3, sdc1).

pflex=${PFLEX:-$target_dir/release/pflex}
cluster_dir='' port_offset=0

# cluster_start NAME PORT-OFFSET [UP-ARGUMENTS...]: starts it and sees to it that it ends with this script.
cluster_start() {
  local name=$1; port_offset=$2; shift 2
  [ -x "$pflex" ] || die "$pflex is missing: run 'make build'"
  # Beside the build, which is on a real disk: /tmp may be memory, where a flush costs nothing.
  mkdir -p "$target_dir/scratch"
  cluster_dir=$(mktemp -d "$target_dir/scratch/$name.XXXXXX")
  export XDG_CONFIG_HOME=$cluster_dir/client
  PFLEX_MDM=$(for k in 0 1 2; do printf '127.0.0.1:%d,' $((8001 + port_offset + 10 * k)); done)
  export PFLEX_MDM=${PFLEX_MDM%,}
  trap 'cluster_end $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  cluster_up "$@"
}

# Starts what is not running; on a directory that has a cluster it continues that one.
cluster_up() {
  "$pflex" up --dir "$cluster_dir" --port-offset "$port_offset" --no-mgmt "$@" >>"$cluster_dir/up.log" 2>&1 ||
    { tail -n 15 "$cluster_dir/up.log" >&2; die "the cluster did not start"; }
}

# cluster_end STATUS: runs at exit, stops the cluster and removes it. After a failure its directory stays, for a look at the logs.
cluster_end() {
  local status=$1 name
  trap - EXIT
  timeout 30 "$pflex" down --dir "$cluster_dir" >/dev/null 2>&1 || true
  for name in $(cluster_processes); do process_kill "$name" || true; done
  if [ "$status" = 0 ]; then rm -rf "$cluster_dir"; else say "logs and data are in $cluster_dir"; fi
  exit "$status"
}

cluster_processes() { local f; for f in "$cluster_dir"/*/pid; do [ ! -e "$f" ] || basename "${f%/pid}"; done; }

# The pid of a process of this cluster, if it lives; a pid that something else got meanwhile does not count.
process_pid() {
  local pid; pid=$(cat "$cluster_dir/$1/pid" 2>/dev/null) || return 1
  { tr "\0" " " <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q "^[^ ]*pflex " && echo "$pid"
}

process_kill() { local pid; pid=$(process_pid "$1") && kill -KILL "$pid"; }

# Starts one process again, alone, as `up` would.
process_start() {
  "$pflex" "${1%%[0-9]*}" --config "$cluster_dir/$1/config.toml" >>"$cluster_dir/$1/log" 2>&1 &
  echo $! >"$cluster_dir/$1/pid"
  disown
}

# The directory name of the MDM that leads.
leader() {
  local id; id=$("$pflex" cluster status -o json --timeout 5s | jq -er '.leader') && echo "mdm$((id - 1))"
}

# volume_ready NAME SIZE [CREATE-ARGUMENTS...]: makes a volume, maps it, waits until NBD clients can open it.
volume_ready() {
  "$pflex" volume create "$1" --size "$2" "${@:3}" >/dev/null && "$pflex" volume map "$1" sdc1 >/dev/null &&
    wait_for 20 "NBD export $1" nbdinfo --size "$(nbd_uri "$1")"
}

nbd_uri() { echo "nbd://127.0.0.1:$((8005 + port_offset))/$1"; }
