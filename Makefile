# Verbs for people; .ci/run calls the same ones. `make help` lists them.
# The first verb makes .venv from requirements.lock (with uv if it is there, else with venv and pip); later ones find it.

PYTHON ?= python3
UV     := $(shell uv --version >/dev/null 2>&1 && command -v uv)
BIN    := .venv/bin
READY  := .venv/.ready
EXTRAS := --extra dev --extra notebooks --extra postgresql --extra web

# A notebook's metadata names its tier. Measured: real clocks, outputs free. Model: seeded, outputs compared.
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
MEASURED  := $(shell grep -lE '"tier": *"measured"' $(NOTEBOOKS) /dev/null)
MODEL     := $(filter-out $(MEASURED),$(NOTEBOOKS))
NBVAL     := $(BIN)/pytest --nbval-current-env --nbval-cell-timeout=120 -p no:randomly

# Without bytecode each of the many processes that tests and demo start would compile all its modules again: seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test chaos accuracy lint format notebooks pictures systems report lab lock clean

help: ## List these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

demo: $(READY) ## Run 1,000 users for real, predict them, compare: a table, a picture, a report
	$(BIN)/saqkit demo

test: $(READY) ## Run every test, then every notebook against its stored outputs
	$(BIN)/pytest tests -n 3 --dist loadfile
	$(if $(MODEL),$(NBVAL) --nbval $(MODEL))
	$(if $(MEASURED),$(NBVAL) --nbval-lax $(MEASURED))

chaos: $(READY) ## Run the long tier of faults: kills, outages, lost replies, power loss, all features at once (an hour)
	$(BIN)/pytest tests -m chaos -p no:randomly -ra

accuracy: $(READY) ## Measure eight held-out configurations here and now, beside their predictions (a quarter of an hour)
	$(BIN)/python benchmarks/accuracy.py check

lint: $(READY) ## Check style (ruff) and types (mypy --strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Rewrite the code in the style that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(READY) ## Execute every notebook in place
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False $(NOTEBOOKS)

pictures: $(READY) ## Draw the pictures of docs/priorities_and_limits.md again
	$(BIN)/python docs/pictures/priorities_and_limits.py

systems: $(READY) ## Write docs/systems.md, and the diagrams of the five systems' pages, again
	$(BIN)/python docs/systems.py
	$(BIN)/python docs/systems_pages.py

report: $(READY) ## Write every notebook as HTML without code into build/reports
	$(BIN)/jupyter nbconvert --to html --no-input --output-dir build/reports $(NOTEBOOKS)

lab: $(READY) ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks

lock: ## Make requirements.lock again from pyproject.toml (needs uv)
	uv pip compile pyproject.toml $(EXTRAS) --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --quiet --output-file requirements.lock

clean: ## Remove the environment, caches, builds and reports
	rm -rf .venv build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find saqkit sim tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
ifneq ($(UV),)
	test -x $(BIN)/python || uv venv --quiet --python '>=3.11' .venv
	uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	uv pip install --quiet --python $(BIN)/python --no-deps --editable .
else
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'saqkit needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...' >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
endif
	@touch $@
