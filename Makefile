# The front door. It needs python3 (3.11 or newer) and make; the rest it sets up under .venv.
PYTHON ?= python3
BIN := .venv/bin
# More than the two cores that the times are for: tests wait as long as they compute. Folders begin in the order of their
# names, since the first have the longest files.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder
.PHONY: help demo test lint check bench test-cluster bench-cluster serve golden seeds

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1@\2/p' Makefile | awk -F@ '{printf "%-18s %s\n", $$1, $$2}'

demo: .venv/ready ## the main job on this machine: a real Airflow backfill; KEEP=1 leaves Airflow up
	@$(BIN)/python -m tests.demo $(if $(KEEP),--keep)

test: .venv/ready ## all tests; T=tests/core names some, ARGS=-x is for pytest
	@$(BIN)/pytest -q $(WORKERS) $(ARGS) $(T)

lint: .venv/ready ## format, lint, import contracts and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports && $(BIN)/pyright

check: lint ## lint and the quick tests: under a minute
	$(BIN)/pytest -q tests/test_tidy.py tests/core

bench: .venv/ready ## measure, and keep results with their conditions in tests/benchmarks
	$(BIN)/python -m tests.benchmarks $(ARGS)

test-cluster: .venv/ready ## tests on a real Kubernetes; needs Go 1.26, root, and tests/install.sh
	@$(BIN)/python -m tests.kubernetes.rig.binaries && $(BIN)/pytest -q $(WORKERS) $(ARGS) $(or $(T),tests/kubernetes)

bench-cluster: .venv/ready ## pods bound per second: ours, a bare client, kube-scheduler; ARGS="--pods 5000 --nodes 500"
	@$(BIN)/python -m tests.kubernetes.bench --out tests/benchmarks/results/cluster.json $(ARGS)

serve: .venv/ready ## the service with its embedded cluster and cloud, until Ctrl-C
	$(BIN)/eksbatch local $(ARGS)

golden: .venv/ready ## write the golden files anew; read the diff before you commit it
	GOLDEN=write $(BIN)/pytest -q tests -k golden $(ARGS)

seeds: .venv/ready ## many simulated lives with faults; SEEDS=1000 says how many
	SEEDS=$(or $(SEEDS),1000) $(BIN)/pytest -q -n 2 tests/simulation $(ARGS)

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Setting up .venv: about a minute, once." && $(PYTHON) -m venv .venv && $(BIN)/pip install -q --disable-pip-version-check --no-deps -r constraints.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . && touch $@
