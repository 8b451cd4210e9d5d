# Every gate is one recipe; `make help` lists them. Only python3, make and a C compiler are needed to begin with:
# the first recipe that runs makes .venv and installs the project into it, later ones touch no network.
PYTHON ?= python3
BIN = .venv/bin
READY = .venv/.ready

# One thread a worker: two workers on two cores, and sums in an order that does not depend on the machine.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -q -W error
PARALLEL = -n 2 --dist worksteal

.PHONY: help setup test format-check lint types unit contracts doctests examples readme demo tutorial bench mutants format clean

help: ## list the recipes
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):[^#]*## (.*)/\1:	\2/' | expand -t 16

setup: $(READY) ## make .venv with the project and everything it can use

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python %d.%d was found, 3.11 or newer is needed: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -e '.[all]'
	@touch $(READY)

test: format-check lint types unit contracts doctests examples readme ## every gate below, in this order

format-check: $(READY) ## files are formatted as `make format` would
	$(BIN)/ruff format --check .

lint: $(READY) ## ruff's rules hold
	$(BIN)/ruff check .

types: $(READY) ## src passes a strict type check
	$(BIN)/mypy

unit: $(READY) ## tests of single modules
	$(PYTEST) $(PARALLEL) tests --ignore=tests/contracts --ignore=tests/test_examples.py --ignore=tests/test_readme.py

contracts: $(READY) ## every method through the conformance suite, and the standing equalities
	$(PYTEST) $(PARALLEL) tests/contracts

doctests: $(READY) ## the examples in docstrings
	$(PYTEST) $(PARALLEL) --doctest-modules src

examples: $(READY) ## examples/*.py run
	$(PYTEST) $(PARALLEL) tests/test_examples.py

readme: $(READY) ## code blocks of README.md and docs/ run
	$(PYTEST) $(PARALLEL) tests/test_readme.py

demo: $(READY) ## train a network part by part beside end-to-end backpropagation; writes demo/report.html
	$(BIN)/modulewise compare --data digits --model cnn --parts 3 \
		--methods backprop,checkpointed,deeply-supervised,dgl,predsim,kernel-proxy \
		--epochs 5 --seeds 0,1 --out demo

tutorial: $(READY) ## train, store, score, reuse and debug parts; writes docs/modules-tutorial.md and .ipynb anew
	OMP_NUM_THREADS=1 $(BIN)/python tools/tutorial.py

bench: $(READY) ## speed and memory beside end-to-end backpropagation; writes results/bench-*.jsonl
	@for file in $$(grep -l '^if __name__' benchmarks/*.py); do \
		echo "$(BIN)/python -m benchmarks.$$(basename $$file .py)"; \
		$(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; \
	done

mutants: $(READY) ## plant known defects in a copy, one at a time: each must turn tests red
	$(BIN)/python tools/mutants.py

format: $(READY) ## format and repair what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the recipes wrote, .venv excepted
	rm -rf demo build dist .mypy_cache .ruff_cache .hypothesis .pytest_cache src/*.egg-info
	find src tests tools benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
