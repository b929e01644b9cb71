# Every target does its own set-up: Python 3.11+ and make are all that has to be there.
#   make PYTHON=/path/to/python   build on this interpreter (its torch and ray are used when new enough)
#   make VENV=/path               put the virtual environment elsewhere
#   make PIP_ARGS='…'             pass arguments to pip, an index of CPU-only torch for example
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
PIP_ARGS ?=
DEST ?=
STAGING ?=
PYTEST_ARGS ?=

STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
CODE := $(wildcard ray_sink tests examples benchmarks docs .ci/*.py)

.PHONY: help venv demo test lint types unit slow cluster faults mutants bench format wheel clean

help: ## show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

venv: $(STAMP) ## make the virtual environment

$(STAMP): pyproject.toml constraints.txt .ci/environment.py
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.11 or newer in PATH; name one: make PYTHON=…" >&2; exit 1; }
	$(PYTHON) .ci/environment.py $(VENV) $(PIP_ARGS)
	@touch $@

demo: $(STAMP) ## real images, a bucket, a killed writer; DEST=… STAGING=… take other places
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python examples/quickstart/main.py \
		$(if $(DEST),--dest '$(DEST)') $(if $(STAGING),--staging '$(STAGING)')

test: lint types unit ## everything that must pass: lint, types, tests

lint: $(STAMP) ## ruff: rules and formatting
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

types: $(STAMP) ## mypy --strict
	$(BIN)/python -m mypy $(CODE)

unit: $(STAMP) ## the tests, in two processes; PYTEST_ARGS='-n0 -k journal' for some of them in one
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -m 'not slow' --ignore tests/cluster -n 2 --dist loadgroup --durations 30 $(PYTEST_ARGS)

# These start clusters of many processes, or fetch what a container would.
CLUSTERS := tests/cluster tests/test_entrypoints.py tests/test_slurm.py
# What can be done of tests/cluster without networks of its own; `make faults` runs it, too.
ONE_NETWORK := tests/faults/test_cluster.py tests/faults/test_drains.py
IMAGE := tests/test_cluster_configs.py::test_the_dockerfiles_install_steps_run_in_an_environment_that_has_nothing

slow: $(STAMP) ## what make test leaves out: the README's snippets, the demo twice, every process killed once
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -m slow --ignore tests/faults $(CLUSTERS:%=--ignore %) \
		--deselect $(IMAGE) $(PYTEST_ARGS)

cluster: $(STAMP) ## several nodes that die, drain, are cut off and come back, pods, Slurm; as root, else what can do without
	FAULTS=all PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadgroup --durations 30 $(CLUSTERS) $(IMAGE) \
		$(if $(filter 0,$(shell id -u)),,$(ONE_NETWORK)) $(PYTEST_ARGS)

faults: $(STAMP) ## the whole fault suite: 5,000 schedules of the model, every case, SIGKILL, SIGSTOP, power cuts
	FAULTS=all $(BIN)/python -m pytest tests/model -n 2
	FAULTS=all PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest tests/faults -n 2 --dist loadgroup $(PYTEST_ARGS)

mutants: $(STAMP) ## breaks the code in one place at a time: does the suite see it?
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.faults.mutants

BENCH = PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH="$(CURDIR):$(CURDIR)/examples/quickstart" $(BIN)/python -m benchmarks

bench: $(STAMP) ## all that is measured, as one table and benchmarks.json; make bench-B4 for one question
	$(BENCH) --json benchmarks.json

bench-%: $(STAMP)
	$(BENCH) $*

format: $(STAMP) ## let ruff rewrite
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

wheel: $(STAMP) ## build dist/*.whl and the sdist
	$(BIN)/python -m hatchling build

clean: ## remove the environment and what tools left
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
