# Likeness. `make demo` draws one picture, `make serve` keeps the service running, `make test` checks everything.

PYTHON ?=
PORT ?= 8000
CONFIG ?= serve_config.local.yaml
BIN := .venv/bin
# The first python3 finds a Python that fits; it need not be one itself.
VENV := python3 scripts/make_venv.py $(if $(PYTHON),--python $(PYTHON))
# Nothing but loopback and no process left behind, where the machine allows.
CONTAINED := $(BIN)/python -m serve_app.local.contain --private-network --
PYTEST_ARGS ?=

.PHONY: help demo serve monitor test test-quick test-ray test-rest test-cluster test-cluster-faults test-cluster-changes test-slow lint clean venv venv-dev train-embedded

help:
	@echo "make demo    start the application, draw examples/astronaut.jpg's person into output/demo.jpg, stop"
	@echo "make serve   run the application on http://127.0.0.1:$(PORT) until Ctrl-C   [PORT=8000] [CONFIG=$(CONFIG)]"
	@echo "make monitor Prometheus with this project's rules, for a running make serve, on http://127.0.0.1:9090"
	@echo "make test    lint, types, all tests, then test-cluster                [PYTEST_ARGS=...]"
	@echo "make test-quick   the same without test-cluster"
	@echo "make test-ray, make test-rest   its two halves: on a real Ray, and without one"
	@echo "make test-cluster   what is lost when replicas and nodes of a real cluster die under load: nothing; minutes"
	@echo "make test-slow   training of the embedded model in miniature"
	@echo "make lint    lint and types only"
	@echo "make train-embedded   draw people and train the embedded model; minutes on a large GPU (embedded/train/README.md)"
	@echo "make clean   remove .venv, caches and output/"

demo: venv
	@$(BIN)/likeness demo --config $(CONFIG) --reference-image examples/astronaut.jpg --output output/demo.jpg \
		--log-file output/serve.log

serve: venv
	@$(BIN)/likeness serve --config $(CONFIG) --port $(PORT) --log-file output/serve.log

monitor: venv
	@$(BIN)/python -m monitoring.start --target 127.0.0.1:$(PORT)

test: test-quick test-cluster

# Two at a time, since whatever starts a Ray waits half of its time; each one's output comes when it is over.
TOGETHER := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
test-quick: venv-dev
	@$(MAKE) --no-print-directory --jobs 2 --keep-going $(TOGETHER) test-ray lint test-rest

# PYTEST_ARGS may choose tests of one half only; pytest says 5 where nothing is left to do.
PYTEST := $(CONTAINED) $(BIN)/python -m pytest
IF_ANY := $(PYTEST_ARGS) $(if $(PYTEST_ARGS),|| [ $$? = 5 ])
test-ray: venv-dev
	$(PYTEST) --ignore-glob='tests/test_*.py' --ignore=tests/cluster -m serve $(IF_ANY)

test-rest: venv-dev
	$(PYTEST) --ignore=tests/serve --ignore=tests/cluster -m 'not serve and not cluster and not slow' $(IF_ANY)

# Real processes die here under a real clock: what fails is shown, and has to pass when tried once more. Two halves, each
# with a cluster of its own: they wait for dead nodes, idle replicas and Prometheus more than they work.
FAULTS := tests/cluster/test_cluster_faults.py tests/cluster/test_cluster_embedded.py
test-cluster: venv-dev
	@$(MAKE) --no-print-directory --jobs 2 --keep-going $(TOGETHER) test-cluster-faults test-cluster-changes

test-cluster-faults: HALF := $(FAULTS)
test-cluster-changes: HALF := tests/cluster $(addprefix --ignore=,$(FAULTS))
CLUSTER = $(PYTEST) -m cluster -o cache_dir=.pytest_cache/$@ $(HALF) $(PYTEST_ARGS)
test-cluster-faults test-cluster-changes: venv-dev
	$(CLUSTER) || $(if $(PYTEST_ARGS),[ $$? = 5 ] ||) $(CLUSTER) --last-failed --last-failed-no-failures none

test-slow: venv-dev
	$(BIN)/python -m pytest --ignore=tests/serve --ignore=tests/cluster -m slow $(PYTEST_ARGS)

lint: venv-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Everything that made embedded/weights, in its order. PYTHON is one that has the packages of the extra `train`.
TRAIN := $(or $(PYTHON),python3) -m embedded.train.run --work output/train --out output/trained
train-embedded:
	$(TRAIN) --stage data --seconds 400
	$(TRAIN) --stage autoencoder --seconds 240
	$(TRAIN) --stage attributes --seconds 40
	$(TRAIN) --stage flow --seconds 925
	$(TRAIN) --stage distill --seconds 330
	$(or $(PYTHON),python3) -m embedded.train.export join output/trained output/model
	@echo "look at output/trained/*.jpg; then: python -m embedded.train.export install output/model"

venv:
	@$(VENV)

venv-dev:
	@$(VENV) --dev

clean:
	rm -rf .venv output build dist likeness.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
