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

# What a target needs installed beside the program, and a stamp for each such set: BASE is the program alone.
BASE := .venv/ready-base
TEST := .venv/ready-test
LINT := .venv/ready-lint

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast test-gpu coverage mutants kills fuzz lock audit sbom lint bench docs release-check clean

help:
	@echo "make demo           train, extend and report on drawn cars, into $(OUT)/ (OUT=folder)"
	@echo "make test           all tests (WORKERS=$(WORKERS), ARGS='-k name')"
	@echo "make test-fast      the quick tests, in about a minute"
	@echo "make test-gpu       what must hold on a GPU, if there is one"
	@echo "make coverage       all tests, with line and branch coverage"
	@echo "make mutants        deliberate defects, each of which the tests must catch (ARGS='D3 lora')"
	@echo "make kills          kill -9 at 200 random moments of an extend and of a tune (ARGS='extend --count 20')"
	@echo "make fuzz           coverage-guided fuzzing of everything that reads untrusted bytes (ARGS='--minutes 10 notations')"
	@echo "make lint           style, types and import order"
	@echo "make bench          speed next to other libraries, in turns (ARGS='--only steps --quick')"
	@echo "make docs           the documentation into build/docs/; every warning is an error"
	@echo "make release-check  the archives, and the wheel in an empty environment under the surface tests"
	@echo "make lock           requirements.lock: the pins with the hashes of their archives"
	@echo "make audit          published defects of the pinned packages, from PyPI's advisory database (needs the network)"
	@echo "make sbom           the software bill of materials of the environment (CycloneDX), as build/sbom.json"
	@echo "make clean          remove the environment, caches and demo-run/"

demo: $(BASE)
	$(BIN)/taskgraft demo $(OUT) $(ARGS)

test: $(TEST)
	OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-fast: $(TEST)
	OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow and not browser and not cluster' $(ARGS)

# What must hold on the device of training; without a GPU, the processor.
test-gpu: $(TEST)
	$(BIN)/python -m pytest -n 0 tests/device tests/laws tests/reference $(ARGS)

# The tests of speed and of silence would hear the counting, so this is no check of CI.
coverage: .venv/ready-coverage
	OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term $(ARGS)

mutants: $(TEST)
	$(BIN)/python tests/mutants.py $(ARGS)

kills: $(TEST)
	OMP_NUM_THREADS=$(THREADS) PYTHONPATH=tests $(BIN)/python -m faults.killing $(ARGS)

fuzz: .venv/ready-fuzz
	OMP_NUM_THREADS=$(THREADS) PYTHONPATH=tests $(BIN)/python -m fuzz.run $(ARGS)

# Needs the network; the environment's own Python and platform decide which archives are named.
lock: $(BASE)
	$(BIN)/python tests/write_lock.py

# In an environment of its own: what audits changes nothing of what is audited.
audit:
	@test -n "$(PYTHON)" || { echo "taskgraft needs Python 3.11 or newer with venv; none was found" >&2; exit 3; }
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit==2.10.1'
	build/audit/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict $(ARGS)

sbom: .venv/ready-sbom
	mkdir -p build
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json .venv

lint: $(LINT)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: .venv/ready-bench
	$(BIN)/python -m benchmarks.speed $(ARGS)

# The variable silences an advertisement for other generators.
docs: .venv/ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Builds into build/release, and needs the network for the environment of the wheel.
release-check: $(BASE)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python tests/release.py $(ARGS)

clean:
	rm -rf .venv benchmarks/.peers benchmarks/.work demo-run build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp's extras are those of its name in pyproject.toml, with those of tests where tests or types are checked: then
# one run of pip brings both, and the stamps of what came with it are set too, the own one last.
EXTRAS_base :=
EXTRAS_bench := tune
EXTRAS_test := test
EXTRAS_coverage := test,coverage
EXTRAS_fuzz := test,fuzz
EXTRAS_lint := test,lint
EXTRAS_docs := docs
EXTRAS_sbom := sbom
COMMA := ,

# torch and torchvision are asked for by exact version: a plain requirement may be satisfied by a CPU-only build of
# torch, beside which torchvision (and so timm) cannot be imported.
.venv/ready-%: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "taskgraft needs Python 3.11 or newer with venv; none was found. \
	Install one, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 3; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$$(grep -E '^(torch|torchvision)==' constraints.txt) -e '.$(if $(EXTRAS_$*),[$(EXTRAS_$*)])'
	@touch $(patsubst %,.venv/ready-%,base $(filter test docs,$(subst $(COMMA), ,$(EXTRAS_$*))) $*)
