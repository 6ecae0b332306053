# Everything a person or CI runs. Each target sets itself up: Python 3.11+, make, for MinIO Go and
# for HDFS Java and Maven have to be there. Installs go to .venv and to the tools' own caches only.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTEST_ARGS ?= -n 3
DEMO_ARGS ?=
BENCHES ?= checkpoint hdfs ladder manifest migrate mlperf model start storage timeline
BENCH_ARGS ?=
RESULTS := bench-results
# Tests start hundreds of processes: none of them shall compile what all import, whatever is set.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick check bench servers api clean

help:
	@echo "make demo     train, kill, resume: the whole thing on this machine, under a minute"
	@echo "make test     all tests, on real servers, by three workers (or as PYTEST_ARGS=... says)"
	@echo "make test-quick  half of the tests, without servers and slow files: a minute, while writing"
	@echo "make check    format, lint, types, structure"
	@echo "make bench    all comparisons, and a report of them in $(RESULTS)/: an hour or two"
	@echo "              (BENCHES=\"mlperf storage\" for some; BENCH_ARGS=... goes to each)"
	@echo "make servers  a MinIO in the foreground, to try things on"
	@echo "make api      accept the public API as it is now"
	@echo "make clean    remove .venv and caches of this checkout"

demo: $(READY)
	@$(BIN)/tierstore demo $(DEMO_ARGS)

test: $(READY)
	@$(BIN)/python -m tierstore.testing.servers install
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-quick: $(READY)
	@$(BIN)/python -m pytest --quick $(PYTEST_ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/architecture

bench: $(READY)
	@$(BIN)/python -m tierstore.testing.servers install
	@mkdir -p $(RESULTS)
	@failed=; for name in $(BENCHES); do \
	  $(BIN)/python -m benchmarks $$name --json $(RESULTS)/$$name.json $(BENCH_ARGS) || failed=1; \
	done; \
	$(BIN)/python -m benchmarks report $(RESULTS)/*.json --html $(RESULTS)/report.html \
	  --markdown $(RESULTS)/report.md && \
	echo "see $(RESULTS)/report.html" && test -z "$$failed"

servers: $(READY)
	@$(BIN)/python -m tierstore.testing.servers run

api: $(READY)
	@$(BIN)/python -m pytest -q tests/architecture/test_public_api.py --update-api

clean:
	rm -rf .venv .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(READY): pyproject.toml constraints.txt
	@.ci/setup $(PYTHON)
