# `make sweep` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' Makefile

sweep: $(VENV)/.installed ## run the digits sweep on this machine (an interrupted one goes on)
	@$(BIN)/taylorglo run pipelines/configs/digits.yaml

ui: $(VENV)/.installed ## open MLflow on http://127.0.0.1:5000 to look at the runs
	@mkdir -p runs
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///runs/mlruns.db

test: $(BIN)/kubectl ## check style, types and layers, then run the tests
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(BIN)/lint-imports
	@$(BIN)/pytest

test-long: $(VENV)/.installed-dev ## run the tests that take minutes
	@$(BIN)/pytest -m long

manifests-check: $(BIN)/kubectl ## validate the overlays of k8s/ against several versions of Kubernetes
	@$(BIN)/python tests/manifests.py

e2e-cluster: $(BIN)/kubectl ## apply k8s/ to the cluster of KUBECONFIG and run a sweep's tasks there
	@$(BIN)/pytest -m cluster

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

# One that is new enough and on the PATH stays where it is; see tests/kubectl.py.
$(BIN)/kubectl: $(VENV)/.installed-dev
	@$(BIN)/python tests/kubectl.py

.PHONY: help sweep ui test test-long manifests-check e2e-cluster golden docs clean
