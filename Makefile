# Everything a developer or CI does. A stamp file records `make setup`, which runs again when the requirements change.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

.PHONY: quickstart test test-slow check setup bench format mutants docs

quickstart: $(STAMP)
	$(BIN)/sinterlm quickstart --output runs/quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

docs: $(STAMP)
	$(BIN)/python scripts/document_keys.py
	$(BIN)/sinterlm schema --output src/sinterlm/recipes/recipe.schema.json

bench: $(STAMP)
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/overlap.py
	$(BIN)/python -m benchmarks.verifiers
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/endpoint_client.py

# Counts how many small changes of the code the tests notice, on a sample that takes an hour at most.
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	$(BIN)/python scripts/mutants.py

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/setup.sh
	touch $(STAMP)
