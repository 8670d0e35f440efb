#!/usr/bin/env bash
# Runs the same NBD client script against pflex, qemu-nbd and nbdkit, and prints where their answers differ.
# Fails at a difference that sdc/tests/nbd/differences.in does not list (docs/nbd.md).
# usage: nbd-peers.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
for peer in qemu-nbd nbdkit; do has "$peer" || die "$peer is missing: scripts/setup.sh all installs it"; done
CI=1 cargo test --quiet --locked --package pflex-sdc --test nbd_peers -- --nocapture
