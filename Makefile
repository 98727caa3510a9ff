# Every target makes .venv if it is missing and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2
export NO_MKDOCS_2_WARNING := 1

.PHONY: help demo test test-slow test-site test-peers test-oldest coverage dist lint docs notebooks serve bench bench-full bench-smoke bench-baseline bench-compare clean
.SECONDARY:

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neurenix_ms needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

# one stamp per extra; asking for an extra twice installs it once
.venv/with-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

demo: .venv/with-demo  ## train a multiscale and a single-scale model; picture and table under runs/demo
	$(BIN)/python -m neurenix_ms.recipes.demo

# processes of the test suite; every test runs on one thread
JOBS ?= 2
IN_PARALLEL := --numprocesses $(JOBS) --dist worksteal

test: .venv/with-dev  ## the test suite
	$(BIN)/python -m pytest -m 'not slow' --ignore=tests/peers $(IN_PARALLEL)

test-slow: .venv/with-dev  ## the slow tests
	$(BIN)/python -m pytest -m slow

test-site: .venv/with-dev  ## the built site in a headless browser, if chromium is there
	$(BIN)/python -m pytest -m slow -rs $(IN_PARALLEL) tests/docs/test_site.py

coverage: .venv/with-dev  ## the test suite, with the share of lines that it runs
	$(BIN)/python -m pytest -m 'not slow' --ignore=tests/peers $(IN_PARALLEL) --cov --cov-report=term --cov-report=html:runs/coverage

test-peers: .venv/with-dev .venv/with-peers  ## beside the networks of MONAI, smp, timm and torchvision
	$(BIN)/python -m pytest tests/peers

test-oldest: pyproject.toml  ## the test suite with the lowest versions that pyproject.toml allows
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
		--editable '.[dev,timm]'
	.venv-oldest/bin/python -m pytest -m 'not slow' --ignore=tests/peers $(IN_PARALLEL)

dist: .venv/with-dev  ## the files of a release, checked
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

lint: .venv/with-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini tests

docs: .venv/with-docs  ## the site, strict, under site/
	OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build --strict

notebooks: .venv/with-docs  ## the tutorials as notebooks with their results, under runs/notebooks
	$(BIN)/python -m docs_tools.notebooks runs/notebooks

serve: .venv/with-docs  ## the site, while you write it
	$(BIN)/python -m mkdocs serve --livereload

BENCH := $(BIN)/python -m pytest benchmarks
RESULTS := docs/assets/benchmarks

bench: .venv/with-bench .venv/with-peers  ## the benchmarks, written to docs/assets/benchmarks*.json
	$(BENCH) -m headline --bench-resident --benchmark-json=$(RESULTS)_resident.json
	$(BENCH) --benchmark-json=$(RESULTS).json

bench-full: .venv/with-bench .venv/with-peers  ## those, with large sizes and compiled forms (hours)
	$(BENCH) -m headline --bench-resident --benchmark-json=$(RESULTS)_resident.json
	$(BENCH) --full --benchmark-json=$(RESULTS).json

bench-smoke: .venv/with-bench .venv/with-peers  ## every benchmark once: bytes and operations as stored?
	$(BENCH) --benchmark-disable $(IN_PARALLEL)

bench-baseline: .venv/with-bench .venv/with-peers  ## store bytes and operations as what may be used
	$(BENCH) --benchmark-disable --bench-store

BASE ?= HEAD
ONLY ?=
bench-compare: .venv/with-bench  ## this tree beside BASE=commit, on ONLY=benchmarks/test_unet.py
	$(BIN)/python -m neurenix_ms.command bench compare --base $(BASE) $(ONLY)

clean:  ## remove what the other targets made, but for .venv and the cached data
	rm -rf site runs .pytest_cache .mypy_cache .ruff_cache
