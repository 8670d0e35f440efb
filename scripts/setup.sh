#!/usr/bin/env bash
# Installs the Debian packages that are missing: with apt where we are root or sudo asks no password; otherwise it
# names them and stops. Each is looked for by what it brings, not by its name, so a machine that has a tool from
# elsewhere is left alone and a second run calls no apt at all.
# usage: setup.sh build|all|peers   build: to compile; all: also what the tests, the demo and the benchmark use; peers: also
#                                   the systems that `make bench-mdm` measures beside ours
set -euo pipefail
. "$(dirname "$0")/lib.sh"

missing=()
tool() { has "$1" || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing+=("$2"); }

# bindgen loads libclang at build time and reads the compiler's own headers beside it.
libclang() {
  local lib
  [ -n "${LIBCLANG_PATH:-}" ] && return
  for lib in /usr/lib/llvm-*/lib/libclang.so; do
    if [ -e "$lib" ] && compgen -G "${lib%/*}/clang/*/include/stddef.h" >/dev/null; then return; fi
  done
  missing+=(libclang-dev)
}

tool gcc gcc
tool g++ g++
tool strip binutils
tool flock util-linux
libclang
if [ "${1:-all}" != build ]; then
  tool jq jq
  tool fio fio
  tool mke2fs e2fsprogs
  tool mkfs.xfs xfsprogs
  tool mount mount
  tool openssl openssl
  tool nbdcopy libnbd-bin
  tool nbdkit nbdkit
  tool qemu-img qemu-utils
  tool python3 python3
fi
if [ "${1:-all}" = peers ]; then
  tool etcd etcd-server
  tool etcdctl etcd-client
fi

if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
  if ! has apt-get || ! "${as_root[@]}" true 2>/dev/null; then
    die "these packages are missing and installing them needs root: apt-get install ${missing[*]}"
  fi
  say "setup: installing ${missing[*]}"
  install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}")
  # Package lists may be absent or old; they are fetched only when the first try says so.
  "${install[@]}" >/dev/null 2>&1 || { "${as_root[@]}" apt-get update -qq >&2 && "${install[@]}" >/dev/null; } ||
    die "apt-get install ${missing[*]} failed (its own message is above)"
fi

has cargo || die "cargo is missing: install rustup (https://rustup.rs); it fetches the compiler that rust-toolchain.toml names"
