# The whole contributor interface. Each target works in a fresh clone: the environment is made when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-dev
# a test process a core
TESTS := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: check test test-all bench quality docs clean

$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

check: $(STAMP)  ## ruff, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

test: $(STAMP)  ## the default tests, under 10 minutes on 2 cores
	$(TESTS)

test-all: $(STAMP)  ## the slow ones too, as CI runs them
	$(TESTS) -m "slow or not slow"

bench: $(STAMP)  ## speed and memory, ratios to a peer in the same run
	for script in $(filter-out benchmarks/common% benchmarks/%_peers.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

quality: $(STAMP)  ## methods against each other, with seeds: make quality ARM=sts DATA=folder (hours)
	$(BIN)/python benchmarks/quality.py --arm $(ARM) --data $(DATA) --full --folder runs/quality --output runs/quality/$(ARM).json

docs: $(STAMP)  ## the documentation into site/, broken links are errors
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
