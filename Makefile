# What can be done with a checkout. `make` alone lists it. `make demo` and `make test` do all of their own set-up; for the
# other targets run `make setup` once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Where Rust and Go put themselves, for a PATH (that of sudo, say) that does not name them.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin

# The lab's own command line.
LAB := cargo run --quiet --locked --package steelyard-lab --bin steelyard-lab --

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup ## Show Steelyard at work on a cluster in a box, then take it down (KEEP=1 leaves it up).
	@$(LAB) demo $(if $(KEEP),--keep)

.PHONY: test
test: setup ## Run all tests: checks, cases, end-to-end, upstream. Its last line is the total.
	@tests/lab/tally.sh check netns cases differential e2e upstream

.PHONY: setup
setup: ## Install the Debian packages that are missing; say what else is.
	@tests/lab/setup.sh

.PHONY: check
check: ## Format, lints, unit tests, documentation, scripts.
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo test --locked --workspace --lib --bins --test architecture
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	@if command -v shellcheck >/dev/null; then shellcheck tests/lab/*.sh .ci/run; fi

.PHONY: netns
netns: ## Test the parts with real packets in network namespaces, and the datapath's properties.
	cargo test --locked --no-fail-fast --test speaker --test datapath_properties --test affinity --test connections --test health --test served --test trace

.PHONY: cases
cases: ## Judge the flows of tests/cases by simulation and with real packets (STEELYARD_CASES names another file).
	cargo test --locked --no-fail-fast --test cases_simulate --test cases_packets -- --nocapture

# STEELYARD_SEED repeats a run; STEELYARD_ROUNDS makes it longer.
.PHONY: differential
differential: setup ## Give the real kube-proxy and the agent the same objects and packets, and compare.
	cargo test --locked --test differential -- --nocapture

.PHONY: e2e
e2e: setup ## Test the lab, then Steelyard on it.
	@$(LAB) build
	@$(LAB) image
	@failed=; \
	cargo test --locked --package steelyard-lab --test lab -- --nocapture || failed=yes; \
	cargo test --locked --test e2e -- --nocapture || failed=yes; \
	cargo test --locked --test takeover -- --nocapture || failed=yes; \
	test -z "$$failed"

.PHONY: upstream
upstream: ## Run a choice of the upstream e2e suite with Steelyard, some five minutes.
	@tests/lab/setup.sh --conformance
	@STEELYARD_LAB=$${STEELYARD_LAB:-upstream} $(LAB) conformance --quick $(if $(PROCS),--procs $(PROCS))

# Narrowed by FOCUS (a regular expression), PART (network, load-balancers, six-nodes) or NODES it leaves the documents alone.
# PROCS says how many specs run at once; RESUME=1 takes over what an interrupted run had finished.
.PHONY: conformance
conformance: ## Judge by the upstream e2e suite, write docs/conformance.md (PROXY=kube-proxy: the control).
	@tests/lab/setup.sh --conformance
	@STEELYARD_LAB=$${STEELYARD_LAB:-conformance} $(LAB) conformance $(if $(PROXY),--proxy "$(PROXY)") $(if $(FOCUS),--focus "$(FOCUS)") \
		$(if $(PART),--part "$(PART)") $(if $(PROCS),--procs $(PROCS)) $(if $(NODES),--nodes $(NODES)) $(if $(RESUME),--resume)

.PHONY: bench
bench: setup ## Run the benches.
	cargo bench --locked --bench datapath
	cargo bench --locked --bench affinity

# STEELYARD_SIZES chooses the numbers of Services, STEELYARD_PEERS the parts (start, changes, traffic).
.PHONY: bench-peers
bench-peers: setup ## Measure Steelyard beside the real kube-proxy and beside plain routing.
	cargo bench --locked --bench peers

.PHONY: image
image: ## Make our container image; prints where the archive is.
	@$(LAB) image

.PHONY: crds
crds: ## Write crds/ and the chart's copy from the types.
	cargo run --quiet --locked --bin steelyard -- crds --output crds
	cargo run --quiet --locked --bin steelyard -- crds --output charts/steelyard/crds

.PHONY: clean-lab
clean-lab: ## Take the lab down, whatever state it is in.
	@$(LAB) down
