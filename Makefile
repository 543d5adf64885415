# make demo | test | check | bench | clean.  Another Python: make PYTHON=python3.12 ...; more for pip: PIP_ARGS=...
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: demo test check bench clean

demo: .venv/installed
	$(BIN)/engram demo

test: .venv/installed
	$(BIN)/pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/installed
	$(BIN)/python scripts/benchmark.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info; \
	sys.exit(0 if v >= (3, 11) else f'Engram needs Python 3.11 or newer, but $(PYTHON) is {v.major}.{v.minor}; \
	name another one: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@
