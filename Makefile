# Everything here runs on a fresh machine with Python 3.11, pip and make.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
# Wheels alone: a lock holds no hash of what a build fetches and runs. The few packages that have none are named in the
# sdists.txt beside their lock, and built by backends that the lock itself has (qpack/runtime/environments.py).
COMPILE := $(BIN)/uv pip compile --quiet --python-version $${python:-3.11} --generate-hashes --no-emit-index-url --only-binary :all:
DEMO := quantize/checkpoint/envs/demo/cpu.txt
INSTALL := $(BIN)/python -m pip install --quiet --only-binary :all: --require-hashes

.PHONY: demo test test-all fuzz lint docs lock lock-check flags tasks setup setup-dev system-packages

demo: setup  ## Set everything up and build the demo release.
	$(BIN)/qpack demo

# Two files at a time, each on a half of the processors (tests/conftest.py): vLLM's servers slow each other down by more
# than the two together would take in turn when they share cores. Engines come first, the quick tests fill the end.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 40
ENVS := QPACK_HOME=$${QPACK_TEST_HOME:-$${XDG_CACHE_HOME:-$$HOME/.cache}/qpack-tests/home} $(BIN)/qpack envs build

test: setup-dev lint system-packages  ## Set everything up and run the tests of every push, one real build included.
	$(ENVS) transformers llmcompressor gram vllm lm-eval canary model-signing
	$(PYTEST) -m "not slow"

test-all: setup-dev lint system-packages  ## Run every test: kills, formats, all engines, a real browser.
	$(ENVS)
	$(PYTEST)

# More inputs than CI tries, new ones each time: QPACK_FUZZ_EXAMPLES a parser, and at least so many in all.
fuzz: setup-dev  ## Feed every parser hostile inputs.
	QPACK_FUZZ_EXAMPLES=$${QPACK_FUZZ_EXAMPLES:-250} QPACK_FUZZ_AT_LEAST=$${QPACK_FUZZ_AT_LEAST:-5000} \
	  $(BIN)/python -m pytest tests/fuzz --quiet

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup-dev  ## Write what the docs take from the code, and build the site into site/.
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Programs that some tests run; where they can't be had, those tests say so and are skipped.
system-packages:
	@for package in $$(cat tests/system-packages.txt); do dpkg -s $$package >/dev/null 2>&1 || missing=yes; done; \
	if test -n "$$missing" && test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$(cat tests/system-packages.txt)) \
	    >/dev/null || echo "apt-get failed: tests that need $$(tr '\n' ' ' < tests/system-packages.txt) are skipped"; \
	fi

setup: .venv/.installed
setup-dev: .venv/.installed-dev

.venv/.installed: requirements/qpack.txt $(DEMO) requirements/build.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -r requirements/qpack.txt
	$(INSTALL) --no-deps -r $(DEMO)
	$(INSTALL) -r requirements/build.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	touch $@

.venv/.installed-dev: .venv/.installed requirements/dev.txt
	$(INSTALL) -r requirements/dev.txt
	touch $@

flags: setup-dev  ## Read what vLLM's parser takes for every flag into registry/serving/vllm_flags.json; its environment is made if need be.
	UPDATE_SNAPSHOTS=1 $(BIN)/python -m pytest -q tests/e2e/test_vllm_flags.py -k table

lock-check: setup  ## Look up where every lock can be installed, and whether the table in the docs says so.
	$(BIN)/python requirements/platforms.py --check

tasks: setup-dev  ## List the tasks of the locked lm-eval in evals/measure/lm_eval_tasks.json; its environment is made if need be.
	UPDATE_SNAPSHOTS=1 $(BIN)/python -m pytest -q tests/e2e/test_lm_eval_tasks.py

lock: setup  ## Resolve every lock anew. The CPU build of torch must be where UV_FIND_LINKS or PyTorch's index has it.
	$(COMPILE) --universal pyproject.toml -o requirements/qpack.txt
	$(COMPILE) --universal pyproject.toml --group dev -o requirements/dev.txt
	$(COMPILE) --constraints requirements/dev.txt requirements/build.in -o requirements/build.txt
	for lock in */envs/*/*.in */*/envs/*/*.in; do \
	  folder=$$(dirname $$lock); overrides=$$folder/overrides.txt; extra=""; \
	  case $$lock in \
	    */cpu.in) run=""; test ! -f $$overrides || extra="--overrides $$overrides" ;; \
	    *) run="env -u UV_FIND_LINKS" ;; \
	  esac; \
	  case $$lock in */demo/*) extra=--no-deps ;; esac; \
	  case $$lock in \
	    */vllm/*) glibc=2_31 ;; \
	    *) glibc=2_28 ;; \
	  esac; \
	  for package in $$(cat $$folder/sdists.txt 2>/dev/null); do extra="$$extra --no-binary $$package"; done; \
	  python=$$(cat $$folder/python.txt 2>/dev/null); \
	  $$run $(COMPILE) --python-platform x86_64-manylinux_$$glibc $$extra $$lock -o $${lock%.in}.txt || exit 1; \
	done
	$(BIN)/python requirements/platforms.py
	$(BIN)/python docs/generate.py
