# Everything starts from here: each target makes the environment itself when it is missing or out of date.

# The first Python that is new enough and works (version managers leave shims that only print an error).
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$p && break; done)

OUT ?= demo-run
ARGS ?=

# Two processes of one thread each beat one process of two: the tests' tensors are too small to share out.
# WORKERS=0 runs everything in one process, for a debugger.
WORKERS ?= 2
THREADS ?= 1

BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test mutants lint bench docs clean

help:
	@echo "make demo    train, extend and report on the embedded data into $(OUT)/ (OUT=folder)"
	@echo "make test    all tests (WORKERS=$(WORKERS), ARGS='-k name')"
	@echo "make mutants deliberate defects, each of which the tests must notice (ARGS='D3 lora')"
	@echo "make lint    style, types and the order of the modules"
	@echo "make bench   taskgraft's speed and its peers', turn by turn (ARGS='--only steps --quick')"
	@echo "make docs    the documentation into build/docs/; every warning is an error"
	@echo "make clean   remove the environment, caches and demo-run/"

demo: $(READY)
	$(BIN)/taskgraft demo $(OUT) $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

mutants: $(READY)
	$(BIN)/python tests/mutants.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.speed $(ARGS)

# The variable silences an advertisement for other generators.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv benchmarks/.peers benchmarks/.work demo-run build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch and torchvision come first and by exact version: a plain requirement may be satisfied by a CPU-only
# build of torch, beside which torchvision (and so timm) cannot be imported.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "taskgraft needs Python 3.11 or newer with venv; none was found. \
	Install one, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 3; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$$(grep -E '^(torch|torchvision)==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
