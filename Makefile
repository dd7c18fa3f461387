# Everything here runs on a fresh machine with Python 3.11, pip and make.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url

.PHONY: demo test lint lock flags setup setup-dev system-packages

demo: setup  ## Set everything up and build the demo release.
	$(BIN)/qpack build recipes/smollm2-135m-gptq.yaml

# Two files at a time, each on a half of the processors (tests/conftest.py): vLLM's servers slow each other down by more
# than the two together would take in turn when they share cores. Engines come first, the quick tests fill the end.
test: setup-dev lint system-packages  ## Set everything up and run every test, the real model included.
	QPACK_HOME=$${QPACK_TEST_HOME:-$${XDG_CACHE_HOME:-$$HOME/.cache}/qpack-tests/home} $(BIN)/qpack envs build
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 40

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Programs that some tests run; where they can't be had, those tests say so and are skipped.
system-packages:
	@for package in $$(cat tests/system-packages.txt); do dpkg -s $$package >/dev/null 2>&1 || missing=yes; done; \
	if test -n "$$missing" && test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$(cat tests/system-packages.txt)) \
	    >/dev/null || echo "apt-get failed: tests that need $$(tr '\n' ' ' < tests/system-packages.txt) are skipped"; \
	fi

setup: .venv/.installed
setup-dev: .venv/.installed-dev

.venv/.installed: requirements/qpack.txt requirements/demo.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/qpack.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements/demo.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

.venv/.installed-dev: .venv/.installed requirements/dev.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	touch $@

flags: setup-dev  ## Read what vLLM's parser takes for every flag into registry/vllm_flags.json; its environment is made if need be.
	UPDATE_SNAPSHOTS=1 $(BIN)/python -m pytest -q tests/e2e/test_vllm_flags.py -k table

lock: setup  ## Resolve every lock anew. The CPU build of torch must be where UV_FIND_LINKS or PyTorch's index has it.
	$(COMPILE) --universal pyproject.toml -o requirements/qpack.txt
	$(COMPILE) --universal pyproject.toml --group dev -o requirements/dev.txt
	$(COMPILE) --no-deps requirements/demo.in -o requirements/demo.txt
	for lock in quantize/envs/*/*.in evals/envs/*/*.in registry/envs/*/*.in; do \
	  folder=$$(dirname $$lock); overrides=$$folder/overrides.txt; \
	  case $$lock in \
	    */cpu.in) run=""; test -f $$overrides && extra="--overrides $$overrides" || extra="" ;; \
	    *) run="env -u UV_FIND_LINKS"; extra="" ;; \
	  esac; \
	  $$run $(COMPILE) --python-platform x86_64-manylinux_2_28 $$extra $$lock -o $${lock%.in}.txt || exit 1; \
	done
