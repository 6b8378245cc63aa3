# The one door. `make` alone lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
THREADS ?= 2
export OMP_NUM_THREADS ?= $(THREADS)
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export HF_HUB_OFFLINE := 1

.PHONY: help setup demo test check-slow check-engines check-flower lint format protos bench clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## Build the virtual environment .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Offsite needs Python 3.11 or later; found $$($(PYTHON) --version 2>&1) (set PYTHON=...)"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "Python cannot make virtual environments here: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	@touch $(READY)

demo: $(READY)  ## Run one coordinator and two edges on SmolLM2 and ARC-Easy; ends with the table
	$(BIN)/python -m examples.demo

test: $(READY)  ## Lint, types and all tests but the slow ones
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu" --durations=10 \
		--numprocesses=auto --dist=loadfile

check-slow: $(READY)  ## The tests that take minutes
	$(BIN)/python -m pytest -q -m "slow" --durations=10

check-engines: $(READY)  ## One campaign on the three engines, with a real SuperLink and two SuperNodes
	$(BIN)/python -m pytest -q tests/system/test_engines.py tests/emulator/engines \
		tests/coordinator/engines tests/edge_client/engines --durations=10

FLOWER ?= 1.42.0
check-flower:  ## The contract with Flower's internals in an environment with another FLOWER=version
	@$(PYTHON) -m venv build/flower-$(FLOWER)
	build/flower-$(FLOWER)/bin/python -m pip install --quiet "flwr==$(FLOWER)" pytest
	PYTHONPATH=emulator:secure build/flower-$(FLOWER)/bin/python -m pytest -q -c /dev/null \
		--rootdir=. --noconftest --import-mode=importlib -p no:cacheprovider \
		tests/emulator/engines/test_flower_contract.py tests/emulator/rounds/test_flower_internals.py

lint: $(READY)  ## ruff, mypy strict, import-linter, buf, drift of generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/buf breaking protos --against protos/released.binpb
	$(BIN)/python protos/generate.py --check

format: $(READY)  ## Format Python and protobuf sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos

protos: $(READY)  ## Regenerate the committed protobuf code; released.binpb changes at a release
	$(BIN)/python protos/generate.py

bench: $(READY)  ## The benchmarks in their quick form
	$(BIN)/python -m benchmarks.transport --quick

clean:  ## Remove what was built, the environment included
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
