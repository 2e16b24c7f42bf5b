# Everything happens in .venv; each target sets up what it needs.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

.PHONY: demo test test-fast test-thorough tests-of-engine tests-of-servers tests-of-benchmarks tests-of-rest thorough-of-engine thorough-of-rest check setup audit contract drills dist exports docs sbom harnesses organism phantom clean

setup: $(VENV)/.ready

# The complete pinned list, without resolving: vLLM's own metadata asks for packages that do not fit a CPU torch.
$(VENV)/.ready: requirements/cpu.txt requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/cpu.txt -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# LIMIT=8 make demo: eight of its problems, in a folder of their own.
DEMO := demo$(LIMIT:%=-%)
demo: setup
	$(BIN)/python -m steerdec bench run --problems embedded --model SmolLM2-135M-Instruct --arms quick \
		--samples 4 --max-tokens 64 --looks 1 $(LIMIT:%=--limit %) --out $(DEMO)
	$(BIN)/python -m steerdec bench report $(DEMO)

# Models whose every number is known, measured with the commands above; SAMPLES=32 make phantom is the thorough form.
phantom: setup
	$(BIN)/python -m steerdec.phantom.check $(SAMPLES:%=--samples %) $(KINDS:%=--kinds %) --out build/phantom$(SAMPLES:%=-%)

# A reasoner whose decisions are known (docs/organism.md). Kept in the cache, so only the first time takes minutes.
organism: setup
	$(BIN)/python -m steerdec model organism --out organism

# Everything but what is marked `thorough`. COVERAGE=1 make test: with what of the code ran, and floors for it; slower by the tracing.
COVERED := $(if $(COVERAGE),--cov --cov-report=)
test: setup
	@# What pip cannot bring: a browser for the page's tests, Node.js for the npm client's.
	@for need in chromium chromedriver:chromium-driver node:nodejs npm; do \
		command -v $${need%%:*} >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -yqq $${need##*:}; } \
		|| echo "make test: $${need##*:} is missing, and only root can install it"; done
	@$(MAKE) --no-print-directory --jobs 4 tests-of-servers tests-of-engine tests-of-benchmarks tests-of-rest
ifdef COVERAGE
	@# A few points under what was measured. Servers, commands and engines run in processes that are not traced.
	$(BIN)/coverage combine --quiet .coverage.engine .coverage.servers .coverage.benchmarks .coverage.rest
	$(BIN)/coverage report --skip-covered --include='steerdec/*' --fail-under=85
	$(BIN)/coverage report --include='benchmarks/stats/estimators.py' --fail-under=97
endif

# What to run at every save: no engine, no server, no browser, no npm; about a minute on two cores.
FAST := tests/common tests/records tests/pages tests/steering tests/telemetry tests/kernels/test_reference.py \
	tests/benchmarks/verdicts tests/benchmarks/report/test_table.py
test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not engine" $(FAST)

# The tests marked `thorough`, more of what the others test in less: before a release, or after a change to what they test.
test-thorough: setup
	@$(MAKE) --no-print-directory --jobs 2 thorough-of-engine thorough-of-rest

# Side by side with one thread each: two teams of OpenMP threads on the same cores spin against each other.
tests-of-% thorough-of-%: export OMP_NUM_THREADS := 1
tests-of-% thorough-of-%: export VLLM_CPU_OMP_THREADS_BIND := nobind
tests-of-%: export COVERAGE_FILE = .coverage.$(@:tests-of-%=%)
# A process of its own: on building an engine, vLLM walks every imported module and fails on some of those that other
# tests bring (triton_utils/dispatcher.py).
ENGINE := tests/vllm_plugin/test_engine.py tests/offline/test_llm.py
CHECK := tests/check/test_engine_part.py
# Follow the engine's tests, so that the groups take about as long.
AFTER := tests/vllm_plugin tests/kernels tests/transformers tests/grading
tests-of-engine:
	$(BIN)/python -m pytest $(COVERED) -m "not thorough" $(ENGINE)
	$(BIN)/python -m pytest $(COVERED) $(if $(COVERED),--cov-append) $(CHECK)
	$(BIN)/python -m pytest $(COVERED) $(if $(COVERED),--cov-append) -m "not engine and not thorough" $(ENGINE:%=--ignore=%) $(AFTER)
tests-of-servers:
	$(BIN)/python -m pytest $(COVERED) -m "engine and not thorough" $(ENGINE:%=--ignore=%) --ignore=$(CHECK)
tests-of-benchmarks:
	$(BIN)/python -m pytest $(COVERED) -m "not engine and not thorough" tests/benchmarks
tests-of-rest:
	$(BIN)/python -m pytest $(COVERED) -m "not engine and not thorough" $(AFTER:%=--ignore=%) --ignore=$(CHECK) --ignore=tests/benchmarks
thorough-of-engine:
	$(BIN)/python -m pytest -m thorough $(ENGINE)
thorough-of-rest:
	$(BIN)/python -m pytest -m thorough $(ENGINE:%=--ignore=%) --ignore=$(CHECK)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The documentation site, in build/site; a warning is an error (but not with --quiet, which drops warnings uncounted).
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Known vulnerabilities of the pinned packages. Not part of check: it needs the network, and asks PyPI about each.
audit: setup
	test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit; }
	build/audit/bin/pip-audit --strict --disable-pip --no-deps -r requirements/cpu.txt -r requirements/dev.txt -r requirements/ray.txt

# Programs that check or describe a release, in an environment of their own.
build/tools/.ready: requirements/tools.txt
	test -x build/tools/bin/python || $(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet --no-deps -r requirements/tools.txt
	touch $@

# What the cpu image has installed by pip, as CycloneDX and as a list of licenses, in build/sbom.
sbom: setup build/tools/.ready
	$(BIN)/python deploy/sbom.py

# Faults brought about on purpose, against docs/faults.md; about ten minutes.
drills: setup
	$(BIN)/python -m tests.drills

# What is used of vLLM, in every supported version that the package index has; downloads each, hundreds of megabytes.
contract: setup
	$(BIN)/python -m tests.contract

# The recipes of docs/harnesses.md, each with its tool, against a real server; NAMES="inspect lm-eval" runs these only.
# The tools have an environment of their own, 2 GB, as their dependencies are many.
harnesses: setup build/harnesses/.ready build/harnesses-npm/.ready
	$(BIN)/python -m tests.harnesses $(NAMES)

build/harnesses/.ready: requirements/harnesses.txt
	test -x build/harnesses/bin/python || $(PYTHON) -m venv build/harnesses
	build/harnesses/bin/pip install --quiet --no-deps -r requirements/harnesses.txt
	touch $@

build/harnesses-npm/.ready: tests/server/clients/package.json
	mkdir -p build/harnesses-npm && cp tests/server/clients/package.json build/harnesses-npm/
	cd build/harnesses-npm && npm install --no-package-lock --no-audit --no-fund --prefer-offline
	touch $@

# The wheel and the sdist, then both installed in empty environments as their users would; minutes, and the package index.
dist: setup
	rm -rf dist && mkdir dist
	$(BIN)/python -m tests.packaging.whole_install dist

# A real run, exported, in the tools that read the exports: polars, pandas, inspect view in chromium, Every Eval Ever's
# validator; minutes, the package index, and chromium. RUN=DIR make exports: a run that is there already.
exports: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.export.whole_export $(RUN)

clean:
	rm -rf demo demo-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
