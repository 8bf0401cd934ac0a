# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

FUZZ_SECONDS ?= 90
# Processes that share the tests. 0: none but one, for a debugger or for whole outputs.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 4))')

.PHONY: demo rollouts test test-net fuzz check bench venv clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Lattica needs Python 3.11 or newer; run: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serving,test,fast,nat]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serving,test,fast,nat,bench]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m examples.demo $(if $(KEEP),--keep)

rollouts: $(STAMP)
	@$(BIN)/python -m examples.rollouts $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-net: $(STAMP)
	-@$(BIN)/python -m tests.netlab.requirements
	@$(BIN)/python -m pytest tests/netlab -m netlab -raP --durations=0 --durations-min=1 $(ARGS)

fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(ARGS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(BENCH_STAMP)
	@$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
