# Two commands for a newcomer: `make demo` and `make test`. Everything else is a part of them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The first interpreter that is new enough; override with `make setup PYTHON=…`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
STATE ?= out/state
# Tests run in so many processes beside each other, a core each; types are checked on as many.
WORKERS ?= 2
BENCHMARKS := engine learn learning_rate step_monitor trust diff gates drift forgetting pages

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help setup lint test demo serve bench

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(INSTALLED) ## create .venv and install Cambium with its development tools

# The stamp is written last, so that an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or set PYTHON" >&2; exit 3; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

lint: setup ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings --threads $(WORKERS)
	$(BIN)/lint-imports

test: setup lint ## every check
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

demo: setup ## the whole loop on the bundled base; report in out/demo
	$(BIN)/cambium demo --out out/demo

serve: setup ## a server on the bundled base; STATE=DIR chooses its state folder
	$(BIN)/cambium serve --state $(STATE)

bench: setup ## every benchmark, to out/bench
	@mkdir -p out/bench
	@for name in $(BENCHMARKS); do \
		$(BIN)/cambium bench "$$name" --json "out/bench/$$name.json"; done
