#!/usr/bin/env bash
# Compiles RocksDB once per machine instead of once per profile, target directory and clone (it takes about twenty
# minutes on two cores), and points cargo at the result by an untracked .cargo/config.toml.
# usage: rocksdb.sh              makes sure that the library is there and that cargo uses it
#        rocksdb.sh --print-dir  prints the directory of the library and does nothing
#
# The library comes from the very crate that links it (librocksdb-sys, at the version in Cargo.lock), so it can never
# differ from the bindings. Its directory is named by version and flags: an upgrade finds no library and builds one.
# Safe when two run at once (a lock), and when interrupted (the library appears by a rename).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

features=lz4 # as in the workspace's Cargo.toml; checked below
opt_level=2

crate=$(awk '/^name = "librocksdb-sys"$/ { getline; gsub(/version = |"/, ""); print }' "$root/Cargo.lock")
[ -n "$crate" ] || die "Cargo.lock names no librocksdb-sys"
grep -qE "^rocksdb = .*default-features = false, features = \[\"$features\"\]" "$root/Cargo.toml" ||
  die "rocksdb's features in Cargo.toml are not [\"$features\"]: change 'features' in scripts/rocksdb.sh with them"

key=rocksdb-${crate#*+}-$features-O$opt_level
[ "$(uname -m)" = x86_64 ] || key+=-$(uname -m)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pflex
dir=$cache/$key
if [ "${1:-}" = --print-dir ]; then echo "$dir"; exit; fi

# Prints how far the compiler is, for as long as process $1 lives. The compiler itself prints nothing.
progress() {
  local sources objects total start=$SECONDS
  while sleep 15 && kill -0 "$1" 2>/dev/null; do
    sources=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -path "*/librocksdb-sys-$crate/rocksdb_lib_sources.txt" -print -quit 2>/dev/null)
    total=$(wc -l <"${sources:-/dev/null}")
    objects=$(find "$2" -path '*/librocksdb-sys-*/out/*.o' 2>/dev/null | wc -l)
    say "rocksdb: $objects of $total files compiled, $((SECONDS - start)) s"
  done
}

build() {
  local work=$cache/.build-$key archive
  rm -rf "$work"
  mkdir -p "$work" "$dir"
  # The project's own lock file: the same sources, and nothing new to download.
  cp "$root/Cargo.lock" "$root/rust-toolchain.toml" "$work/"
  cat >"$work/Cargo.toml" <<TOML
[package]
name = "pflex-rocksdb-build"
version = "0.0.0"
edition = "2024"
[lib]
path = "lib.rs"
[dependencies]
librocksdb-sys = { version = "=$crate", default-features = false, features = ["$features"] }
[profile.release]
opt-level = $opt_level
debug = false
[workspace]
TOML
  : >"$work/lib.rs"
  say "rocksdb: compiling $key, once for this machine; about twenty minutes on two cores"
  # A process group of its own, so that stopping this script stops the compilers too.
  (cd "$work" && exec env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS \
    CARGO_TARGET_DIR="$work/target" setsid cargo build --quiet --release --package librocksdb-sys) >"$work/log" 2>&1 9>&- &
  pid=$! # global, as is reporter: the trap reads them after this function is gone
  progress "$pid" "$work/target" 9>&- &
  reporter=$!
  trap 'kill -- "-$pid" 2>/dev/null || true; kill "$reporter" 2>/dev/null || true' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  wait "$pid" || { tail -n 20 "$work/log" >&2; die "RocksDB did not compile; the whole log is $work/log"; }
  archive=$(find "$work/target" -name librocksdb.a -print -quit)
  [ -s "$archive" ] || die "RocksDB compiled, but left no librocksdb.a under $work/target"
  strip --strip-debug -o "$dir/.librocksdb.a.new" "$archive"
  sync "$dir/.librocksdb.a.new"
  mv "$dir/.librocksdb.a.new" "$dir/librocksdb.a"
  rm -rf "$work"
  say "rocksdb: $dir/librocksdb.a is ready"
}

if [ ! -s "$dir/librocksdb.a" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/.lock-$key"
  flock --nonblock 9 || { say "rocksdb: another build of $key is running; waiting for it"; flock 9; }
  [ -s "$dir/librocksdb.a" ] || build
  exec 9>&-
fi

config=$root/.cargo/config.toml
wanted="[env]
ROCKSDB_LIB_DIR = \"$dir\"
ROCKSDB_STATIC = \"1\""
if ! grep -qxF "ROCKSDB_LIB_DIR = \"$dir\"" "$config" 2>/dev/null; then
  if [ -e "$config" ] && grep -qvE '^(\[env\]|ROCKSDB_[A-Z_]+ = .*|)$' "$config"; then
    say "rocksdb: $config has settings of yours; put these three lines there to use the library:
$wanted"
  else
    mkdir -p "${config%/*}"
    printf '%s\n' "$wanted" >"$config.new.$$"
    mv "$config.new.$$" "$config"
    say "rocksdb: cargo now links $dir/librocksdb.a"
  fi
fi
