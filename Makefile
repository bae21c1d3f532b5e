# Every command sets up what it needs, says what it does, and is quick the second time.
# There is one build profile, release, for everything, so that nothing is built twice.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build demo test run stack stack-stop lint fmt dashboards example bench chaos chaos-planted clean

# Arguments for the program, as in: make demo ARGS="--duration 30s --json"
ARGS ?=
# Arguments for the Rust tests, as in: make test TEST_ARGS="exactly_once -- --nocapture"
TEST_ARGS ?=

TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET)/release/millstream
PYTHON := .venv/bin/python
SAY := printf '%s\n' >&2
# Empty, or the feature that compiles DuckDB in; the set-up writes it, so it is read late.
FEATURES = $$(cat .cargo/features 2>/dev/null || true)
PYTHON_TESTS = $(wildcard py_transforms/tests python/tests examples/*/tests dashboards/tests docker/tests tests/asof)
SHELL_SCRIPTS = $(wildcard scripts/*.sh .ci/run examples/*/*.sh benches/*.sh benches/*/*.sh)

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing on this machine
	@scripts/setup.sh

build: setup ## build the program
	@if [[ -e $(BIN) ]]; then $(SAY) "build: only what changed"; \
	  else $(SAY) "build: the first one compiles everything and takes several minutes"; fi
	@cargo build --release $(FEATURES)

demo: build ## the whole system, embedded, with made-up events (ARGS="--duration 30s")
	@$(SAY) "demo: $(BIN) demo $(ARGS)"
	@exec $(BIN) demo $(ARGS)

run: build stack ## a node on the local stack (ARGS="--roles process,store")
	@$(SAY) "run: $(BIN) run $(ARGS)"
	@set -a; . .millstream/stack/env; set +a; exec $(BIN) run $(ARGS)

test: setup ## all the tests: Python, then Rust
	@data=; left_out=$$(mktemp); trap 'rm -rf "$$left_out" "$$data"' EXIT; export MILLSTREAM_LEFT_OUT=$$left_out; \
	  for folder in $(PYTHON_TESTS); do \
	    $(SAY) "test: $$folder"; $(PYTHON) -m pytest -q "$$folder"; done; \
	  $(SAY) "test: Rust (the test programs are compiled first)"; \
	  data=$$(mktemp -d "$$(scripts/test_data.sh)/millstream-test.XXXXXX"); export TMPDIR=$$data; \
	  cargo test --release $(FEATURES) --features failpoints $(TEST_ARGS); \
	  if [[ -s $$left_out ]]; then $(SAY) "test: LEFT OUT for want of a component:"; sort -u "$$left_out" >&2; fi

lint: setup ## formatting, clippy, ruff, shellcheck
	@$(SAY) "lint: cargo fmt"
	@cargo fmt --check
	@$(SAY) "lint: ruff"
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m ruff format --check --quiet .
	@if command -v shellcheck >/dev/null; then \
	  $(SAY) "lint: shellcheck"; shellcheck -x $(SHELL_SCRIPTS); \
	  else $(SAY) "lint: shellcheck is not installed, shell scripts were not checked"; fi
	@$(SAY) "lint: clippy (the first time checks every dependency and takes several minutes)"
	@cargo clippy --release --all-targets $(FEATURES) --features failpoints -- -D warnings

fmt: setup ## format all the code
	@cargo fmt
	@$(PYTHON) -m ruff check --quiet --fix .
	@$(PYTHON) -m ruff format --quiet .

stack: setup ## start Kafka, Redis and (if installed) Prometheus on this machine
	@scripts/stack.sh start

stack-stop: ## stop them; their data stays
	@scripts/stack.sh stop

dashboards: setup ## write dashboards/*.json and docs/metrics.md anew
	@$(PYTHON) dashboards/build.py
	@$(PYTHON) dashboards/metrics_table.py

example: build ## 336,776 real flights through Kafka, checked against the file
	@examples/flights/run.sh $(ARGS)

bench: build ## events per second, cost of metrics, files, live swaps, reads beside Feast, rows per second of a worker (ARGS="--only reads")
	@benches/run.sh $(ARGS)
	@if [[ "$(ARGS)" != *--only* ]]; then cargo bench $(FEATURES) --bench worker_rows; fi

chaos: build ## a thousand faults of every kind under load, on a real Kafka, then the verdict (ARGS="--seed 7")
	@scripts/setup.sh --chaos
	@exec $(BIN) chaos --broker-script scripts/kafka.sh --duration 720s --every 620ms --rate 2900 \
	  --events 2000000 --catch-up 60s $(ARGS)

chaos-planted: setup ## eleven defects planted one at a time, each found by a minute of chaos
	@scripts/setup.sh --chaos
	@cargo build --release $(FEATURES) --features failpoints
	@exec scripts/chaos_planted.sh $(BIN) $(ARGS)

clean: ## delete what was built, .venv and the stack's data (not the shared cache)
	@scripts/stack.sh clean
	@rm -rf .venv .pytest_cache .ruff_cache
	@cargo clean
