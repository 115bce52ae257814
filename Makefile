# make demo   the whole loop on this machine
# make test   checks and tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO_ARGS ?=
BENCH_ARGS ?=
PEERS ?= hivemind,hivemind-raw,py-libp2p,mesh,mesh-libp2p

.DEFAULT_GOAL := help
.PHONY: help needs install demo test check test-slow test-gpu test-npm bench bench-peers bench-dht-peers bench-dht-scenarios bench-consensus freeze clean

help:
	@sed -n 's/^# //p' Makefile
	@echo "make install | check | test-slow | test-gpu | test-npm | bench | bench-peers | bench-dht-peers | bench-dht-scenarios | bench-consensus | freeze | clean"

# libp2p 0.8.1 pins fastecdsa, which has no wheel: it is compiled, and needs headers.
needs:
	@missing=""; \
	command -v git >/dev/null || missing="$$missing git"; \
	command -v gcc >/dev/null || missing="$$missing gcc"; \
	command -v $(PYTHON) >/dev/null || missing="$$missing python3"; \
	if command -v $(PYTHON) >/dev/null; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mesh needs Python 3.11 or newer; $$($(PYTHON) --version) is too old: make PYTHON=python3.11"; exit 1; }; \
	  $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	  $(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || missing="$$missing python3-dev"; \
	fi; \
	if command -v gcc >/dev/null; then echo '#include <gmp.h>' | gcc -E - >/dev/null 2>&1 || missing="$$missing libgmp-dev"; fi; \
	if [ -n "$$missing" ]; then echo "Missing on this machine; install with:"; echo "  sudo apt-get install -y$$missing"; exit 1; fi

$(VENV)/.installed: pyproject.toml constraints.txt | needs
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[subnets,gateway,dev]'
	@# libp2p brings trio-typing, whose stubs of an old trio would hide trio's own types from mypy.
	@rm -rf $(VENV)/lib/python*/site-packages/trio-stubs
	@touch $@

install: $(VENV)/.installed

demo: install
	@$(BIN)/mesh demo $(DEMO_ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n 2 --ignore tests/e2e
	$(BIN)/python -m pytest tests/e2e

test-slow: install
	$(BIN)/python -m pytest -m slow --timeout 1800

#: js-libp2p beside our nodes, @polkadot/api on our chain; Node.js 20 or newer.
test-npm: install
	cd tests/interop/js && npm ci --no-audit --no-fund
	cd tests/interop/polkadot && npm ci --no-audit --no-fund
	$(BIN)/python -m pytest -m npm --timeout 600

test-gpu: install
	$(BIN)/python -m pytest -m gpu --timeout 600

bench: install
	@for script in $(filter-out benchmarks/rpc_vs_peers.py benchmarks/dht_vs_peers.py benchmarks/dht_scenarios.py benchmarks/consensus_sim.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

#: Installs other projects, in environments of their own: no part of bench.
bench-peers: install
	$(BIN)/python benchmarks/rpc_vs_peers.py --peers $(PEERS) $(BENCH_ARGS)

bench-dht-peers: install
	$(BIN)/python benchmarks/dht_vs_peers.py --kill $(BENCH_ARGS)

#: What the DHT survives, in full: ten minutes of CPU.
bench-dht-scenarios: install
	$(BIN)/python benchmarks/dht_scenarios.py $(BENCH_ARGS)

#: Consensus against outlaws, many seeds: minutes of CPU.
bench-consensus: install
	$(BIN)/python benchmarks/consensus_sim.py $(BENCH_ARGS)

freeze: install
	@(echo "# What make and CI install, pinned. Regenerate: make freeze"; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu//; / @ /d') > constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
