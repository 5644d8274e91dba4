# `make demo` and `make test` work from a fresh clone with git, make and Python 3.11 or newer.

PYTHON ?= python3
BIN := .venv/bin
# Tests wait more than they work; one file stays in one process, with the guests that it shares.
JOBS ?= 4

.PHONY: help venv demo test lint bench clean

help:
	@echo 'make demo    the main job on this machine in under a minute'
	@echo 'make test    the everyday tests; SLOW=1 runs all of them, JOBS=N at once, ARGS=... goes to pytest'
	@echo 'make lint    format, lint, types, and which package may import which'
	@echo 'make bench   the same work on us and on our peers; ARGS=... goes to it'
	@echo 'make venv    only the set-up that the others do first: .venv'
	@echo 'make clean   remove what these made'

venv: .venv/.stamp

.venv/.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'make: $(PYTHON) is older than Python 3.11; say which one to use: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'make: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: venv
	$(BIN)/vpnkit demo

# The tests start us some hundred times, also where Python may write no bytecode.
test: venv
	$(BIN)/python -m compileall -q vpnkit tapdev portfwd pcap
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(if $(SLOW),,-m 'not slow') $(ARGS)

lint: venv
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage* htmlcov dist build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
