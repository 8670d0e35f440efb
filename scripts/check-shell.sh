#!/usr/bin/env bash
# Reads every shell script of the project for mistakes: bash's own parser always, shellcheck where it is installed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
scripts=(scripts/*.sh .ci/run)
for script in "${scripts[@]}"; do bash -n "$script"; done
if has shellcheck; then shellcheck --external-sources --source-path=SCRIPTDIR "${scripts[@]}"; fi
