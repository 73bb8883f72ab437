# `make demo` and `make test` do all set-up themselves, in .venv; `make test-oldest` in .venv-oldest, which takes 5 GB,
# since old releases of torch come with CUDA.
PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .venv-oldest
# in as many processes as there are cores, up to four; of one thread each, for several would wait for each other
PYTEST := -m pytest -n auto --maxprocesses 4

.PHONY: demo test test-oldest lint clean

demo: $(READY)
	$(BIN)/python examples/quickstart.py

test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python $(PYTEST)

test-oldest: export OMP_NUM_THREADS = 1
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info
