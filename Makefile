# `make help` lists the targets. Python >= 3.11 is all that has to be there beforehand.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
PY := .venv/bin/python
UV ?= uv
ARGS ?=

.PHONY: help setup up test check bench soak lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' Makefile

setup: .venv/dev.stamp ## all set-up, nothing started; does nothing when nothing changed
	@:

up: .venv/runtime.stamp ## start the cloud here (ARGS="--once" asks one prompt and stops)
	@exec .venv/bin/dure up $(ARGS)

test: setup ## every test
	@exec $(PY) -m pytest -n 2 $(ARGS)

check: setup ## format, lint, types and the fast tests
	@$(PY) -m ruff format --check -q . && $(PY) -m ruff check -q .
	@told=$$(mktemp); failed=0; $(PY) -m mypy >"$$told" 2>&1 & \
	$(PY) -m pytest -q -n 2 -m "not slow" $(ARGS) || failed=1; wait $$! || failed=1; cat "$$told"; rm -f "$$told"; exit $$failed

bench: setup ## one run of all benchmarks, beside their targets
	@exec $(PY) -m bench $(ARGS)

soak: setup ## the long run
	@exec $(PY) -m bench.soak $(ARGS)

lock: ## write requirements/*.txt anew from pyproject.toml (needs uv)
	@COMPILE="$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links"; \
	$$COMPILE pyproject.toml requirements/build.in -o requirements/runtime.txt; \
	$$COMPILE pyproject.toml requirements/build.in --extra dev -c requirements/runtime.txt -o requirements/dev.txt

clean: ## remove what set-up and checks made here (never a home)
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	@find src tests bench acceptance -name __pycache__ -type d -prune -exec rm -rf {} +

# A recent enough Python that can make a virtual environment, or a sentence saying what to install.
.venv/bin/python:
	@for python in "$${PYTHON:-python3}" python3.13 python3.12 python3.11; do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || { broken=$$python; continue; }; \
	  echo "setup: .venv with $$("$$python" --version)"; exec "$$python" -m venv --clear .venv; \
	done; \
	if [ -n "$${broken:-}" ]; then echo "setup: $$broken cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv" >&2; \
	else echo "setup: no Python 3.11 or newer found. Install one, or name it: make setup PYTHON=/path/to/python3" >&2; fi; exit 1

# pip takes its indexes from the user's own configuration; every file is checked against the lock's hashes.
.venv/runtime.stamp: requirements/runtime.txt pyproject.toml | .venv/bin/python
	@$(call install,$<)
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/dev.stamp: requirements/dev.txt .venv/runtime.stamp
	@$(call install,$<)
	@touch $@

# One line of progress on a terminal, one line a step elsewhere.
define install
$(PY) -m pip install --disable-pip-version-check --no-deps --require-hashes -r $(1) \
 | awk -v name=$(1) -v tty="$$([ -t 1 ] && echo 1 || true)" -v all="$$(grep -c == $(1))" ' \
  /^(Collecting|Requirement already satisfied)/ { n++; if (tty) printf "\r\033[Ksetup: %d of %d packages of %s", n, all, name } \
  /^Installing collected packages/ { printf tty ? "\r\033[Ksetup: installing %s …" : "setup: installing %s\n", name; fflush() } \
  { fflush() } END { if (tty) printf "\r\033[K" }'
endef
