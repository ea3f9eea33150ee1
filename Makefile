# SPDX-License-Identifier: Apache-2.0
# Each target makes its own .venv on the first call; later calls start at once.
#   make demo [VIDEO=path]    a video through the whole model
#   make test [ARGS=...]      every test        (ARGS: passed to pytest)
#   make lint | format        ruff and mypy | let ruff rewrite
#   make bench                time the ops into bench/results, draw docs/benchmarks (minutes)
#   make bench-gpu OUT=dir    all that a CUDA device has to say, in eight minutes; WHEELS=folder
#   make bench-compare BASE=<revision>   the ops there and here, in turns
#   make bench-compressor | bench-memory | bench-accelerate | bench-plots   see docs/benchmarks.md
#   make train-tiny [OUT=dir] the tiny TDC from its seed, on WORKERS processes (up to three hours)
#   make clean                remove what was built, .venv included
# TORCH_INDEX_URL=<index of CPU wheels> avoids the CUDA build of PyTorch, which is several gigabytes.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?=
VIDEO ?=
ARGS ?=
WORKERS ?= 2
BASE ?=
OUT ?=
WHEELS ?=
export VIDEO

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -qq --constraint constraints.txt
TORCH_INDEX := $(if $(strip $(TORCH_INDEX_URL)),--extra-index-url $(TORCH_INDEX_URL))
NATIVE := $(wildcard setup.py CMakeLists.txt csrc/*/*)
# pip hides what setup.py says, so whether the compiled ops are there is asked afterwards.
NATIVE_STATUS = $(PY) -c 'from tdc_kernels import native; [print(library.what + ":", library.why_not() or "built") for library in (native.CPU, native.CUDA)]'
PROJECT := pyproject.toml constraints.txt $(NATIVE)

.PHONY: help demo test lint format train-tiny clean
.PHONY: bench bench-gpu bench-compare bench-compressor bench-memory bench-accelerate bench-plots
.NOTPARALLEL:

help:
	@sed -n '3,14s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed-model
	@$(VENV)/bin/tdc demo $${VIDEO:+--video "$$VIDEO"}

# One torch thread per worker: two workers with two threads each would fight over two cores.
test: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

format: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

bench: $(VENV)/.installed-dev
	@$(PY) -m bench $(ARGS)
	@$(PY) -m bench.report.plots && $(PY) -m bench.report.table >/dev/null

# Without .venv where there is none: a borrowed machine comes with its own PyTorch.
bench-gpu:
	@$(if $(strip $(OUT)),,$(error OUT: name a new folder for the results, make bench-gpu OUT=dir))
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m bench.gpu --out "$(OUT)" $(if $(WHEELS),--wheels "$(WHEELS)") $(ARGS)

bench-compare: $(VENV)/.installed-dev
	@$(PY) -m bench.compare "$(BASE)" $(ARGS)

bench-compressor bench-memory bench-accelerate: bench-%: $(VENV)/.installed-dev
	@$(PY) -m bench.$* $(ARGS)

bench-plots: $(VENV)/.installed-dev
	@$(PY) -m bench.report.plots && $(PY) -m bench.report.table

# Processes of one thread each: two are faster than one with two threads.
train-tiny: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 $(VENV)/bin/torchrun --nproc-per-node $(WORKERS) -m tiny.recipe \
	  --out "$(if $(strip $(OUT)),$(OUT),tiny-run)" $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f tdc_kernels/*.so
	find bench tdc tdc_kernels tests tiny -name __pycache__ -prune -exec rm -rf {} +

# PyTorch comes first and alone: the native library is compiled against the copy that is installed.
$(VENV)/.installed-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "no venv module: install it first (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "installing PyTorch into $(VENV) (once; some minutes) ..."
	@$(PIP) $(TORCH_INDEX) torch setuptools pybind11 ninja
	@touch $@

$(VENV)/.installed-model: $(VENV)/.installed-torch $(PROJECT)
	@echo "installing tdc-kernels and what the model needs (once) ..."
	@$(PIP) --no-build-isolation --editable '.[model]'
	@$(NATIVE_STATUS)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-torch $(PROJECT)
	@echo "installing tdc-kernels with everything for tests (once) ..."
	@$(PIP) --no-build-isolation --editable '.[model,train,triton,bench,dev]'
	@$(NATIVE_STATUS)
	@touch $(VENV)/.installed-model $@
