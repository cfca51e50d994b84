# Everything runs from here. `make` alone tells what there is.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := benchmarks/.work/peers
BENCHMARKS ?= durable_runs run_latency run_events run_parked run_growth store_commit_stage store_event_waits store_claim store_busy_thread container_scopes workspace_database workspaces space_start space_many space_lag
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz soak proofs watch check format bench bench-peers docs lock clean

help:  ## tell what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Piecework needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## run the bundled newsroom: feeds, approvals, mail (ARGS="--opml my.opml")
	$(BIN)/piecework demo $(ARGS)

test: $(STAMP)  ## run all tests (ARGS="-k name")
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

fuzz: $(STAMP)  ## play random histories of the store, of containers and of whole runtimes, and broken frames, for long (PIECEWORK_FUZZ=histories)
	PIECEWORK_FUZZ=$${PIECEWORK_FUZZ:-2000} $(BIN)/python -m pytest -q -n 2 tests/contracts/test_model.py tests/unit/container/test_machine.py $(ARGS)
	PIECEWORK_FUZZ=$${PIECEWORK_FUZZ:-2500} $(BIN)/python -m pytest -q -n 2 tests/machine/test_histories.py $(ARGS)
	PIECEWORK_FUZZ=$${PIECEWORK_FUZZ:-1000000} $(BIN)/python -m pytest -q -n 2 tests/unit/process/test_frames_broken.py tests/faults/test_frames_live.py $(ARGS)

soak: $(STAMP)  ## kill nodes and workers at random, two hundred times on each engine (PIECEWORK_SOAK=kills)
	PIECEWORK_SOAK=$${PIECEWORK_SOAK:-200} $(BIN)/python -m pytest -q -n 2 tests/faults/test_soak.py $(ARGS)

proofs: $(STAMP)  ## step triples of verbs through thousands of schedules
	$(BIN)/python -m pytest -q -n 2 -m slow tests/contracts $(ARGS)

watch: $(STAMP)  ## run the tests again whenever a file changes
	$(BIN)/watchfiles --filter python '$(BIN)/python -m pytest -x -q $(ARGS)' src tests examples

check: $(STAMP)  ## lint, types, layers, docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate --quiet src

format: $(STAMP)  ## let ruff write the layout
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure: ratios against a floor, in one run (BENCHMARKS=store_claim for one)
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(ARGS) || exit 1; done

bench-peers: $(STAMP) $(PEERS)/.installed  ## measure against DBOS, in an environment of its own (ARGS=--quick)
	PIECEWORK_PEERS=$(PEERS)/bin/python $(BIN)/python benchmarks/peers.py $(ARGS)

$(PEERS)/.installed: requirements/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --require-hashes -r requirements/peers.txt
	@touch $@

docs: $(STAMP)  ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

lock:  ## write requirements/*.txt anew (needs uv on PATH)
	requirements/compile

clean:  ## remove what was built
	rm -rf $(VENV) site dist .mypy_cache .ruff_cache .pytest_cache
