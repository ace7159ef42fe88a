PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: setup serve test test-gpu bench bench-gpu load lint format types pins clean help

setup: .venv/stamp  ## make .venv with everything pinned

.venv/stamp: pyproject.toml constraints.txt
	@command -v cc >/dev/null || { echo 'make setup: gunicorn_h1c is compiled here: it needs a C compiler (Debian: gcc libc6-dev python3-dev)' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[torch,text,demo,test,bench,load]'
	@touch $@

serve: setup  ## run the server in the foreground, with the demo models unless WARMFORK_MODELS names others
	@[ "$${WARMFORK_MODELS:-models}" != models ] || $(BIN)/python -m demo models
	@exec $(BIN)/gunicorn -c gunicorn.conf.py

# Three at once: the tests wait more than they calculate.
test: setup lint types  ## lint, types and every test that needs no GPU
	$(BIN)/python -m pytest -q -m 'not gpu' -n 3 --dist loadfile

bench: setup  ## the benchmarks, into bench-results/*.json and a table
	$(BIN)/python -m bench

# A device file says little: NVIDIA's libraries make one when they are asked, GPU or none. So NVML has the last word.
NO_GPU = echo 'make $@: no NVIDIA GPU here, nothing to run'
ifeq ($(wildcard /dev/nvidiactl)$(shell command -v nvidia-smi),)
test-gpu bench-gpu:
	@$(NO_GPU)
else
test-gpu: setup  ## every test that needs a GPU; says so where there is none
	@if [ "$$($(BIN)/python -m server.nvml)" = '[]' ]; then $(NO_GPU); else $(BIN)/python -m pytest -q -m gpu; fi

bench-gpu: setup  ## the benchmarks that need a GPU; says so where there is none
	@if [ "$$($(BIN)/python -m server.nvml)" = '[]' ]; then $(NO_GPU); else $(BIN)/python -m bench gpu; fi
endif

load: setup  ## the load tests, into load-results/*.json, plots and a table
	$(BIN)/python -m workloads

lint: setup  ## ruff: every rule, and the format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: setup  ## ruff: sort imports, format
	$(BIN)/ruff check --quiet --select I --fix
	$(BIN)/ruff format

types: setup  ## mypy, strict
	$(BIN)/mypy

# With the oldest Python that we support, so that what is pinned exists for all of them.
pins:  ## make constraints.txt anew from the newest versions that pyproject.toml allows
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT \
	&& $(PYTHON) -m venv "$$new/venv" \
	&& "$$new/venv/bin/python" -m pip install --quiet --disable-pip-version-check '.[torch,text,demo,test,bench,load]' \
	&& sed '/^[^#]/,$$d' constraints.txt > "$$new/pins" \
	&& "$$new/venv/bin/python" -m pip freeze --exclude warmfork | sed 's/+cpu$$//' >> "$$new/pins" \
	&& cp "$$new/pins" constraints.txt

clean:  ## remove what was made here, models/ excepted
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache .schemathesis bench-results build load-results warmfork.egg-info
	find server hooks demo bench deploy tests workloads -name __pycache__ -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
