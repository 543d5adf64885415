# make demo | test | test-metaworld | check | bench | clean.  Another Python: make PYTHON=python3.12 ...; more for pip: PIP_ARGS=...
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: demo test test-metaworld check bench clean

demo: .venv/installed
	$(BIN)/engram demo

test: .venv/installed
	$(BIN)/pytest

# Meta-World pins mujoco==3.3.0, which would undo MuJoCo 4; envs/compat.py makes it work on 4.
test-metaworld: .venv/installed
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps metaworld==3.1.1
	$(BIN)/pytest tests/test_metaworld.py tests/test_compat.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/installed
	$(BIN)/python scripts/benchmark.py simulation

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info; \
	sys.exit(0 if v >= (3, 11) else f'Engram needs Python 3.11 or newer, but $(PYTHON) is {v.major}.{v.minor}; \
	name another one: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@
