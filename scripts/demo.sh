#!/usr/bin/env bash
# The main job on real input: a file system full of real files goes to a volume over NBD while the MDM leader and
# then a storage server are killed with SIGKILL; it is read back before anything is repaired, and compared.
# usage: demo.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/cluster.sh"

started=$(now_ms)
at() { local t=$(($(now_ms) - started)); printf '[%3d.%02d s] %s\n' $((t / 1000)) $((t % 1000 / 10)) "$*"; }
mib() { du -sm "$@" 2>/dev/null | awk '{ s += $1 } END { print s + 0 }'; }

# 1. A directory tree of 200 to 300 MiB: this project, and what else the machine has.
plant_tree() {
  local tree=$1 dir
  mkdir -p "$tree/pflex"
  (cd "$root" && git ls-files -z | tar --null --files-from=- -c) | tar -x -C "$tree/pflex"
  for dir in /usr/share/doc /usr/include "${CARGO_HOME:-$HOME/.cargo}/registry/src" /usr/share /usr/lib; do
    [ "$(mib "$tree")" -lt 200 ] || break
    [ $(($(mib "$tree") + $(mib "$dir"))) -gt 300 ] || cp -a "$dir" "$tree/$(basename "$dir")" 2>/dev/null || true
  done
}

cluster_start demo 20000
at "cluster is up: 3 MDMs, 3 SDSs, 1 SDC; the leader is $(leader)"

tree=$cluster_dir/tree image=$cluster_dir/image
plant_tree "$tree"
size=$(($(mib "$tree") * 5 / 4 + 64))
mke2fs -q -F -t ext4 -O metadata_csum -i 8192 -d "$tree" "$image" "${size}m" >/dev/null
before=$(sha256sum <"$image")
at "ext4 image of $size MiB with $(find "$tree" -type f | wc -l) files, $(mib "$tree") MiB"
rm -rf "$tree"

volume_ready demo-fs "${size}MiB" || die "the volume demo-fs cannot be opened"
uri=$(nbd_uri demo-fs)
at "volume demo-fs is at $uri"

# 2. Copy it, one request at a time so that it lasts; qemu-img prints its progress after each \r.
progress=$cluster_dir/progress
mkfifo "$progress"
qemu-img convert -n -p -m 1 -f raw -O raw -t writeback "$image" "$uri" >"$progress" &
writer=$!
at "copying"
dead_mdm='' dead_sds='' last=$(now_ms) longest=0
while IFS= read -r -d $'\r' line; do
  percent=${line//[^0-9.]/}; percent=${percent%%.*}
  pause=$(($(now_ms) - last)); last=$((last + pause))
  [ "$pause" -le "$longest" ] || longest=$pause
  if [ -z "$dead_mdm" ] && [ "${percent:-0}" -ge 50 ]; then
    dead_mdm=$(leader); process_kill "$dead_mdm"
    at "at $percent %: killed the leader $dead_mdm (SIGKILL)"
    { wait_for 30 "a new leader" leader && at "the new leader is $(leader)"; } &
  elif [ -z "$dead_sds" ] && [ "${percent:-0}" -ge 65 ]; then
    dead_sds=sds1; process_kill "$dead_sds"
    at "at $percent %: killed the storage server $dead_sds (SIGKILL)"
  fi
done <"$progress"
wait "$writer" || die "the copy failed"
[ -n "$dead_sds" ] || die "the copy was over before the kills"
at "copied and flushed without an error; the longest pause was $longest ms"

# 3. Read it back from what is left.
nbdcopy "$uri" "$cluster_dir/back"
after=$(sha256sum <"$cluster_dir/back")
[ "$before" = "$after" ] || die "checksums differ: wrote ${before%% *}, read ${after%% *}"
at "read back with $dead_mdm and $dead_sds still dead: sha256 ${after:0:16}... is the same"
e2fsck -fn "$cluster_dir/back" >"$cluster_dir/e2fsck.log" 2>&1 || { cat "$cluster_dir/e2fsck.log" >&2; die "e2fsck found damage"; }
at "e2fsck -fn: $(tail -n 1 "$cluster_dir/e2fsck.log" | sed 's/.*: //')"

# 4. Bring the dead back.
cluster_up
at "started $dead_mdm and $dead_sds again"
wait_for 120 "a healthy cluster" "$pflex" status --check || { "$pflex" status >&2; die "the cluster did not recover"; }
at "pflex status --check: healthy, nothing done by hand"
