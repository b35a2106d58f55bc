# `make sweep` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' Makefile

sweep: $(VENV)/.installed ## run the digits sweep on this machine (an interrupted one goes on)
	@$(BIN)/taylorglo run pipelines/configs/digits.yaml

ui: $(VENV)/.installed ## open MLflow on http://127.0.0.1:5000 to look at the runs
	@mkdir -p runs
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///runs/mlruns.db

test: $(VENV)/.installed-dev ## check style, types and layers, then run the tests
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(BIN)/lint-imports
	@$(BIN)/pytest

test-long: $(VENV)/.installed-dev ## run the tests that take minutes
	@$(BIN)/pytest -m long

golden: $(VENV)/.installed-dev ## write the compiled pipelines in tests/golden anew
	@$(BIN)/python tests/golden/write.py

docs: $(VENV)/.installed ## write the tables in docs/configuration.md anew
	@$(BIN)/python docs/generate.py

clean: ## remove the virtual environment and the results of all runs
	rm -rf $(VENV) runs

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV); this takes a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the tools of the tests into $(VENV)"
	@$(PIP) --editable '.[dev]'
	@touch $@

.PHONY: help sweep ui test test-long golden docs clean
