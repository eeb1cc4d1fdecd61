# Every target creates the virtual environment it needs. Stamp files inside it make the next run fast:
# an install is repeated only when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
CORE := $(VENV)/.fewgen-core
DEV := $(VENV)/.fewgen-dev
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format bench clean

help:
	@echo "make quickstart   install, then learn and draw digits from bundled data"
	@echo "make test         install the tools, then ruff, mypy and every test"
	@echo "make lint         ruff, mypy and the order of imports"
	@echo "make format       let ruff rewrite the code"
	@echo "make bench        print the benchmark tables (ARGS=... is passed on)"
	@echo "make clean        delete $(VENV) and caches"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing fewgen into $(VENV) (about 1 GB with torch) ..."
	$(PIP_INSTALL) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing fewgen with its encoders and tools into $(VENV) ..."
	$(PIP_INSTALL) -e ".[dev,knowledge]"
	@touch $@ $(CORE)

quickstart: $(CORE)
	$(BIN)/fewgen quickstart $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# One thread per worker: several workers that each take every core are slower, and sums stay the same.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
