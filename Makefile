# `make sweep` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION = $(shell git rev-parse --short=12 HEAD)$(shell git diff --quiet HEAD || echo -dirty)
# Whichever engine answers. BUILD_FLAGS is for what a site's builds need, such as --volume for a CA of its own.
CONTAINER ?= $(shell docker version >/dev/null 2>&1 && echo docker || echo podman)
BASE_IMAGE ?= python:3.11-slim
TORCH ?= cuda
BUILD_FLAGS ?=
build = DOCKER_BUILDKIT=1 $(CONTAINER) build --file images/$(1)/Dockerfile \
	--tag taylorglo$(2):$(VERSION) --tag taylorglo$(2):$(VERSION)-$(REVISION) \
	--build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) $(BUILD_FLAGS)
LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --constraint constraints.txt \
	--generate-hashes --no-annotate --custom-compile-command 'make lock'

UI_PORT ?= 5000
DASHBOARD_PORT ?= 8080
# Refuses a port of this machine that another program has, in one line that says how to take another one.
free = $(BIN)/python -c "import socket; socket.create_server(('127.0.0.1', $(1))).close()" 2>/dev/null || { \
	echo "port $(1) of 127.0.0.1 is in use, or is no port; take another one: make $@ $(2)=$$(($(1) + 1))" >&2; exit 2; }

.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' Makefile

sweep: $(VENV)/.installed ## run the digits sweep on this machine (an interrupted one goes on)
	@$(BIN)/taylorglo run pipelines/configs/digits.yaml

ui: $(VENV)/.installed ## open MLflow on http://127.0.0.1:5000 (UI_PORT) to look at the runs
	@mkdir -p runs
	@$(call free,$(UI_PORT),UI_PORT)
	@$(BIN)/mlflow ui --port $(UI_PORT) --backend-store-uri sqlite:///runs/mlruns.db

dashboard: $(VENV)/.installed-dashboard ## open Optuna's dashboard on http://127.0.0.1:8080 (DASHBOARD_PORT) to look at the searches
	@test -f runs/study.db || { echo "there is no runs/study.db yet: make sweep begins one"; exit 2; }
	@$(call free,$(DASHBOARD_PORT),DASHBOARD_PORT)
	@$(BIN)/optuna-dashboard --port $(DASHBOARD_PORT) sqlite:///runs/study.db

test: $(BIN)/kubectl ## check style, types and layers, then run the tests
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(BIN)/lint-imports
	@$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/.installed-dev ## run the tests that take minutes, or are much like a quicker one
	@$(BIN)/pytest -m long

drill: $(VENV)/.installed-dev ## kill sweeps, take their services away, fill their disk, set their clock back; takes an hour
	@$(BIN)/pytest -m drill --capture=no tests/e2e/test_drill.py

bench: $(VENV)/.installed-dev ## time the training engine beside the usual loop; needs Debian's dataset-fashion-mnist
	@$(BIN)/python -W ignore tests/benchmarks/engine.py

bench-engines: $(VENV)/.installed-dev ## time the engines beside each other
	@$(BIN)/python -W ignore tests/benchmarks/engine.py --engines --repetitions 3

bench-candidates: $(VENV)/.installed-dev ## measure what can be saved per candidate: bfloat16, early stops, attempts
	@$(BIN)/python -W ignore tests/benchmarks/candidates.py

bench-attacks: $(VENV)/.installed-dev ## time PGD beside ART's and foolbox's; needs Debian's dataset-fashion-mnist
	@$(BIN)/python -W ignore tests/benchmarks/attacks.py

bench-growth: $(VENV)/.installed-dev ## measure time and memory against population, steps, image size and processes
	@$(BIN)/python -W ignore tests/benchmarks/growth.py

bench-layouts: $(VENV)/.installed-dev ## run a small sweep in both layouts of the search, side by side
	@$(BIN)/python -W ignore tests/benchmarks/layouts.py

bench-sweep: $(VENV)/.installed-dev ## time whole sweeps beside those of another revision: AGAINST=REVISION
	@$(BIN)/python -W ignore tests/benchmarks/sweep_time.py --against $(or $(AGAINST),HEAD~1)

bench-losses: $(VENV)/.installed-dev ## time a Taylor loss beside PyTorch's cross-entropy, eager and compiled
	@$(BIN)/python -W ignore tests/benchmarks/losses.py

bench-tracking: $(VENV)/.installed-dev ## time what logging to a real MLflow server costs a search
	@$(BIN)/python -W ignore tests/benchmarks/tracking.py

study-search: $(VENV)/.installed-dev ## study how many trainings a search needs; an hour; every study that is killed goes on
	@$(BIN)/python -W ignore tests/studies/search.py

study-filters: $(VENV)/.installed-dev ## study which losses the filters reject, and which of them learn
	@$(BIN)/python -W ignore tests/studies/filters.py

study-fitness: $(VENV)/.installed-dev ## study how well the fitness ranks losses
	@$(BIN)/python -W ignore tests/studies/fitness.py

study-accuracy: $(VENV)/.installed-dev ## study where a search finds a better loss than the tuned baselines
	@$(BIN)/python -W ignore tests/studies/accuracy.py

study-robust-fitness: $(VENV)/.installed-dev ## study which fitness finds losses that withstand attack
	@$(BIN)/python -W ignore tests/studies/robust_fitness.py

study-transfer: $(VENV)/.installed-dev ## study how the losses of the zoo do on other networks and data
	@$(BIN)/python -W ignore tests/studies/transfer.py

study-robustness: $(VENV)/.installed-dev ## study what found losses withstand; needs Debian's dataset-fashion-mnist
	@$(BIN)/python -W ignore tests/studies/robustness.py

study-tables: $(VENV)/.installed ## write the tables of the studies in docs/results.md anew
	@$(BIN)/python tests/studies/tables.py

manifests-check: $(BIN)/kubectl ## validate the overlays of k8s/ against several versions of Kubernetes
	@$(BIN)/python tests/manifests.py

e2e-cluster: $(BIN)/kubectl ## apply k8s/ to the cluster of KUBECONFIG and run a sweep's tasks there
	@$(BIN)/pytest -m cluster

e2e-kfp: $(VENV)/.installed-dev ## try everything on the Kubeflow of KF_PIPELINES_ENDPOINT or KUBECONFIG, and remove it again
	@$(BIN)/pytest -m kfp --capture=no tests/e2e/test_kfp.py

golden: $(VENV)/.installed-dev ## write the compiled pipelines in tests/golden anew
	@$(BIN)/python tests/golden/write.py

docs: $(VENV)/.installed ## write the tables of the configuration in the documentation anew
	@$(BIN)/python docs/generate.py

site: $(VENV)/.installed-dev ## build the documentation as a site into build/site, without the network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built: build/site/index.html"

e2e-docker: $(VENV)/.installed-dev ## run a sweep in containers; skips where there is no engine
	@$(BIN)/pytest -m docker

images: ## build the images of the components and of the MLflow server, with docker or podman
	@$(call build,taylorglo) --build-arg TORCH=$(TORCH) .
	@$(call build,mlflow,-mlflow) .

lock: $(VENV)/.installed-dev ## write the locks of the images anew, from pyproject.toml and constraints.txt
	@$(LOCK) pyproject.toml --extra pipeline --output-file images/taylorglo/cuda.lock
	@echo 'setuptools>=77' | $(LOCK) - --output-file images/taylorglo/build.lock
	@$(LOCK) images/mlflow/requirements.in --output-file images/mlflow/requirements.lock

lock-cpu: $(VENV)/.installed-dev ## the same for TORCH=cpu, from the index that PyTorch keeps of its builds without CUDA
	@$(LOCK) pyproject.toml --extra pipeline --torch-backend cpu --emit-index-url --output-file images/taylorglo/cpu.lock

clean: ## remove the virtual environment and the results of all runs
	rm -rf $(VENV) runs

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV); this takes a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[pipeline]'
	@touch $@

$(VENV)/.installed-dashboard: $(VENV)/.installed
	@echo "installing Optuna's dashboard into $(VENV)"
	@$(PIP) --editable '.[dashboard]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the tools of the tests into $(VENV)"
	@$(PIP) --editable '.[dev]'
	@touch $@

# One that is new enough and on the PATH stays where it is; see tests/kubectl.py.
$(BIN)/kubectl: $(VENV)/.installed-dev
	@$(BIN)/python tests/kubectl.py

.PHONY: help sweep ui dashboard test test-long drill bench bench-engines bench-candidates bench-attacks bench-growth bench-layouts bench-losses bench-sweep study-search study-filters study-fitness study-accuracy study-robust-fitness study-robustness study-transfer study-tables golden docs site manifests-check e2e-cluster e2e-kfp e2e-docker images lock lock-cpu clean
