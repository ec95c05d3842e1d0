# Fleetdiff. `make help` lists the targets; `make demo` and `make test` need nothing but
# Python 3.11 with venv and pip: each makes the virtual environment itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PACKAGES := neural_diff trust service device_agent release_manager
T ?= tests

.DEFAULT_GOAL := help
.PHONY: bench-patch bench-apply bench-poll help setup check format format-check lint types imports test fuzz big-endian attacks demo speech run openapi diagram lock size clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make the virtual environment (every other target does so by itself)

$(READY): requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Fleetdiff needs Python 3.11 or newer; this is %d.%d. Try: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

check: format-check lint types imports test  ## everything CI asks, fastest first

format: $(READY)  ## rewrite the code in the one style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet .

format-check: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)  ## ruff
	$(BIN)/ruff check .

types: $(READY)  ## mypy --strict on every package
	$(BIN)/mypy

imports: $(READY)  ## the import contracts of docs/architecture.md
	$(BIN)/lint-imports --no-cache

test: $(READY)  ## the tests, on every core; one file of them: make test T=tests/unit/test_patch.py
	$(BIN)/python -m pytest -n auto --dist loadfile $(T)

fuzz: $(READY)  ## look for bytes that the kernel does not expect, for a time: make fuzz T=600
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	$(BIN)/python -m tests.fuzz $(if $(filter tests,$(T)),60,$(T))

big-endian: $(READY)  ## the golden patches on an emulated s390x; needs qemu-user-static, fetches 20 MB from Debian
	$(BIN)/python -m tests.contract.vectors.big_endian

attacks: $(READY)  ## every row of the table of attacks and how it ends: make attacks A="--json M20"
	$(BIN)/python -m tests.attacks $(A)

demo: $(READY)  ## the whole story: server, agents, three updates, one of them bad
	$(BIN)/python -m demo

bench-%: $(READY)  ## measure again, e.g. make bench-wire; writes build/bench/
	$(BIN)/python -m benchmarks.$* $(A)

# These two measure peers as well; A="--quick" runs the slow ones on few files.
bench-patch bench-apply: bench-%: $(VENV)/bench
	$(BIN)/python -m benchmarks.$* $(A)

bench-poll: build/goosebit/ready
	$(BIN)/python -m benchmarks.poll $(A)

# A peer that is a server, with dependencies of its own.
build/goosebit/ready: requirements/goosebit.txt $(READY)
	$(PYTHON) -m venv build/goosebit
	build/goosebit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/goosebit.txt
	@touch $@

$(VENV)/bench: requirements/bench.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $(VENV)/bench

speech: $(READY)  ## make the recogniser, its updates and its recordings again (needs espeak-ng; long)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m demo.speech

run: $(READY)  ## a server of your own on http://127.0.0.1:8080, data in build/server
	$(BIN)/fleetdiff-server serve --data build/server

openapi: $(READY)  ## rewrite openapi/*.json from the code
	$(BIN)/fleetdiff-server openapi openapi

size: $(READY)  ## lines of code per room, against its cap
	$(BIN)/python -m tests.contract.rooms

lock:  ## pin every dependency with its hashes again (needs uv)
	uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-header \
		--generate-hashes --extra dev pyproject.toml -o requirements/dev.txt
	uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-header \
		--generate-hashes --extra bench -c requirements/dev.txt pyproject.toml -o requirements/bench.txt
	uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-header --no-deps \
		--generate-hashes --extra fuzz -c requirements/dev.txt pyproject.toml -o requirements/fuzz.txt
	echo goosebit==0.2.12 | uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-header \
		--generate-hashes - -o requirements/goosebit.txt

clean:  ## forget everything that was built
	rm -rf $(VENV) build .mypy_cache .ruff_cache .hypothesis
