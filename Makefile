# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
# Everything here needs Python 3.11 and make; the first target that runs sets up $(VENV).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 5
# worker processes for tests; each keeps to one thread
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-transformers test-gpu test-minimum benchmark benchmark-gpu kernel docs quality format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-26s%s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# .installed-demo, .installed-dev: which extra is installed, and when; dev holds all that demo needs
$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Setting up $(VENV) with hf_segmodels[$*] (a few minutes the first time)"
	$(PIP_INSTALL) --constraint $(CONSTRAINTS) --editable '.[$*]' \
		|| (sleep 10 && $(PIP_INSTALL) --constraint $(CONSTRAINTS) --editable '.[$*]')
	@touch $@ $(VENV)/.installed-demo

# Chromium, for the test of the app in a browser, which is skipped without it
$(VENV)/.installed-chromium: | $(BIN)/python
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null \
		|| (test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq chromium >/dev/null 2>&1) \
		|| echo "Chromium is not installed: the test of the app in a browser will be skipped"
	@touch $@

setup: $(VENV)/.installed-dev $(VENV)/.installed-chromium  ## an environment with everything for development

demo: $(VENV)/.installed-demo  ## segments a photograph with the model in the package
	$(BIN)/python -m hf_segmodels.demo

test: setup  ## the everyday tests, minutes on two cores
	$(PYTEST)

test-slow: setup  ## all tests, slow ones too
	RUN_SLOW=1 $(PYTEST)

test-transformers: setup  ## transformers' own common suites over our models and processors
	RUN_SLOW=1 $(PYTEST) tests/transformers_suite

test-gpu: setup  ## the tests that need a CUDA device; builds the kernel for it
	RUN_SLOW=1 $(BIN)/python -m pytest -m gpu

# a second environment with the oldest versions that pyproject.toml allows
test-minimum:  ## the everyday tests on the lowest versions of torch and transformers
	$(MAKE) VENV=.venv-minimum CONSTRAINTS=constraints-minimum.txt test

kernel: setup  ## compiles the kernel for sparse attention for this machine; models then use it
	$(BIN)/python hub_kernels/sparse-attention/tools/build_local.py

benchmark: setup  ## times what is fast here against the baseline, after checking that results agree
	$(BIN)/python benchmarks/segment_image.py
	$(BIN)/python benchmarks/painting.py
	$(BIN)/python benchmarks/shrunk.py
	$(BIN)/python benchmarks/sparse_attention.py
	$(BIN)/python benchmarks/check_data.py
	$(BIN)/python benchmarks/upsampled_loss.py
	$(BIN)/python benchmarks/mean_iou.py
	$(BIN)/python benchmarks/compare_models.py --scale small

benchmark-gpu: setup  ## sparse attention on a CUDA device; writes the results file
	$(BIN)/python benchmarks/sparse_attention.py --device cuda --output benchmarks/results

docs: setup  ## the pages in docs/ and the API as a site, in build/docs; fails on any warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

quality: setup  ## lint, format check, types, spelling, terms, transformers' rules for model code, stale model cards
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest --quiet tests/package/test_language.py
	$(BIN)/mlinter --no-progress hf_segmodels
	$(BIN)/python model_cards/make_cards.py --check

format: setup  ## formats and fixes what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## removes environments, caches and outputs
	rm -rf .venv .venv-minimum .cache .pytest_cache .ruff_cache build dist *.egg-info hub_kernels/sparse-attention/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
