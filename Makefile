# Every target makes the virtual environment it needs. The only requirements are Python >= 3.11
# (constraints.txt pins versions that need it) and a C compiler.

# The first of the two that runs: a version manager's shim may exist and still not start.
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c '' >/dev/null 2>&1 && { echo $$p; break; }; done)
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH ?= benchmarks/[!_]*.py benchmarks/density/[!_]*.py

VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip --disable-pip-version-check install --quiet -c constraints.txt
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
SPHINX := $(RUN) -m sphinx -W --keep-going -n -d out/docs/.doctrees docs

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types check tutorials docs links bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## fit the eight-schools model; tables on the screen, files under out/
	$(RUN) tutorials/eight_schools.py --out out

# One thread per worker: more would compete for the cores. With no test to run pytest fails.
test: $(STAMP) ## run the tests and doctests (PYTEST_ARGS='-m slow' for the slow ones)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
		$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP) ## check style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(STAMP) ## fix what can be fixed, and format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

types: $(STAMP) ## check the types of the package
	$(RUN) -m mypy

check: lint types test ## lint, types and test

tutorials: $(STAMP) ## run the notebooks in full and keep their outputs (ten minutes)
	$(RUN) tutorials/run.py

docs: $(DOCS_STAMP) ## build the documentation, a warning is an error; out/docs/index.html
	$(SPHINX) out/docs

links: $(DOCS_STAMP) ## ask for every address that the documentation names
	$(SPHINX) -b linkcheck out/links

bench: $(STAMP) ## run the benchmarks (BENCH=benchmarks/x.py for one)
	@missed=; for script in $(BENCH); do \
	  echo "== $$script"; $(RUN) "$$script" || missed="$$missed $$script"; \
	done; test -z "$$missed" || { echo "missed a target:$$missed"; exit 1; }

clean: ## remove the environment, out/, caches and builds
	rm -rf $(VENV) out docs/tutorials build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last and removed first, so an interrupted build starts afresh; a complete
# environment is brought up to date in place. torch goes in alone: once the pinned build is there
# (be it the CPU one), resolving the rest cannot replace it with another.
$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'Found no Python: install Python >= 3.11.' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo '$(PYTHON) is too old or does not run: set PYTHON to a Python >= 3.11.' >&2; exit 1; }
	@echo 'Installing into $(VENV): a few minutes, once.'
	@test -f $@ && $(RUN) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	$(INSTALL) torch
	$(INSTALL) -e '.[dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(INSTALL) -e '.[docs]'
	@touch $@
