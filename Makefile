# Everything sets itself up: python3 (3.11 or newer), git and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2
# compiled programs are kept, the smallest too: for the other worker, for commands that tests run, and for the next run
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: help tune test test-all test-slow lint format benchmarks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

tune: $(VENV)/.run ## tune the digits task and write runs/digits/report.html
	$(BIN)/hypergrad tune digits --out runs/digits --overwrite $(ARGS)

test: $(VENV)/.dev ## run all tests but the slow ones, in WORKERS processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-all: $(VENV)/.dev ## run every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-slow: $(VENV)/.dev ## run the slow tests alone
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow $(ARGS)

lint: $(VENV)/.dev ## ruff, ruff format --check, pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmarks: $(VENV)/.dev ## measure what needs neither peers nor a data folder, into runs/benchmarks
	for name in hypergradient schedules; do \
	  $(BIN)/python -m benchmarks $$name --out runs/benchmarks/$$name.jsonl $(ARGS) || exit 1; done

clean: ## remove the environment, caches and runs
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache runs

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python is $$($(PYTHON) -V 2>&1), expected 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -e '.[zoo,report,terminal]' -c constraints.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@ $(VENV)/.run
