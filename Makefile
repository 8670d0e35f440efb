# The project's commands: the README's, CI's and a developer's are these same targets.
# `make` alone lists them. Variables: ARGS (passed on to pflex or the script), PROFILE (default: release).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# A login shell knows where rustup put cargo; a bare `make` may not.
export PATH := $(PATH):$(HOME)/.cargo/bin

PROFILE ?= release
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
export PFLEX ?= $(abspath $(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/pflex)
ARGS ?=
PEER ?=

.PHONY: help setup setup-build rocksdb build up down check test fix demo acceptance bench bench-rebuild bench-store bench-fair bench-nbd bench-auth bench-mdm clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## install missing Debian packages (as root or by sudo; otherwise it names them)
	@echo "setup: looking for what building, testing and benchmarking need"
	@scripts/setup.sh all

setup-build:
	@scripts/setup.sh build

rocksdb: setup-build ## compile librocksdb.a once for this machine and point cargo at it
	@scripts/rocksdb.sh

build: rocksdb ## compile the pflex binary
	@echo "build: compiling pflex ($(PROFILE))"
	@cargo build --locked --profile $(PROFILE) --package pflex --bin pflex

up: build ## start a whole cluster on this machine: 3 MDMs, 3 SDSs, 1 SDC
	@$(PFLEX) up $(ARGS)

down: ## stop that cluster; its data stays (ARGS=--wipe removes it)
	@[ -x $(PFLEX) ] || { echo "error: $(PFLEX) is not built, so no cluster of this clone runs" >&2; exit 1; }
	@$(PFLEX) down $(ARGS)

check: rocksdb ## read only: format, clippy with warnings denied, shell scripts
	@echo "check: format"
	@cargo fmt --all --check
	@echo "check: shell scripts"
	@scripts/check-shell.sh
	@echo "check: clippy"
	@cargo clippy --quiet --locked --workspace --all-targets -- -D warnings

test: setup check ## everything that must pass: the checks above and all tests
	@echo "test: all crates"
	@if cargo nextest --version >/dev/null 2>&1; \
	  then cargo nextest run --locked --workspace $(ARGS); \
	  else cargo test --quiet --locked --workspace $(ARGS); fi
	@echo "test: examples in the documentation"
	@cargo test --quiet --locked --workspace --doc

fix: rocksdb ## change the code so that `make check` passes, as far as tools can
	@echo "fix: format, then what clippy can mend"
	@cargo fmt --all
	@cargo clippy --quiet --locked --workspace --all-targets --fix --allow-dirty --allow-staged -- -D warnings
	@cargo fmt --all

demo: setup build ## a real file system through NBD while the leader and an SDS are killed
	@scripts/demo.sh $(ARGS)

acceptance: setup build ## kill things under load and measure the stalls; takes about nine minutes
	@scripts/acceptance.sh $(ARGS)

bench: setup build ## six block jobs with fio; PEER="fio arguments" runs them beside another target
	@scripts/bench.sh $(if $(PEER),--peer "$(PEER)") $(ARGS)

bench-rebuild: setup build ## redundancy after a server is lost for good, under load, with each rebuild policy
	@scripts/bench-rebuild.sh $(ARGS)

bench-store: setup build ## restart of a server with 100 GiB of chunks, and the memory they take
	@scripts/bench-store.sh $(ARGS)

bench-fair: setup build ## 64 volumes on one client, each with an application: least and most IOPS
	@scripts/bench-fair.sh $(ARGS)

bench-nbd: setup rocksdb ## the NBD hop alone, over memory, beside nbdkit's
	@cargo build --locked --profile $(PROFILE) --package pflex-sdc --example nbd_memory
	@scripts/bench-nbd.sh $(ARGS)

bench-auth: setup build ## what authorisation costs per IO; compiles a second binary that authorises nothing, for this alone
	@cargo build --locked --profile $(PROFILE) --package pflex --bin pflex --features bench-no-auth --target-dir $(TARGET_DIR)/bench-no-auth
	@scripts/bench-auth.sh --without $(TARGET_DIR)/bench-no-auth/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/pflex $(ARGS)

bench-mdm: build ## the MDMs beside three etcd members: writes, reads, leader kills, 100,000 volumes, 2,560 components
	@scripts/setup.sh peers
	@cargo build --locked --profile $(PROFILE) --package pflex-bench
	@scripts/bench-mdm.sh $(ARGS)

clean: ## remove what was built here (the machine's RocksDB stays in the user's cache)
	@echo "clean: removing $(TARGET_DIR)"
	@cargo clean --quiet
