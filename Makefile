# Every target does its own set-up (.ci/setup.sh); a stamp in .venv keeps a second run from repeating it.
# PYTHON=/path/to/python chooses the interpreter that .venv is made with.

export PYTHON
PY := .venv/bin/python
SETUP := pyproject.toml .ci/setup.sh hatch_build.py js/build.mjs js/package-lock.json $(shell find js/src -type f)
# `!jupyter agentwatch …` in a notebook must find the console script of this environment.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo lab test browser lint kernels bench pictures clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.venv/.ready-demo: $(SETUP)
	@.ci/setup.sh demo
	@touch $@

.venv/.ready-test: $(SETUP)
	@.ci/setup.sh test
	@touch $@ .venv/.ready-demo

.venv/.ready-bench: .venv/.ready-test
	@.ci/setup.sh bench
	@touch $@

demo: .venv/.ready-demo ## replay the ROME incident and the quick start in a real kernel, and say what was seen
	@$(PY) notebooks/run_demo.py notebooks/03_rome_incident.ipynb notebooks/01_quickstart.ipynb

lab: .venv/.ready-demo ## open JupyterLab on the notebooks
	@$(PY) -m jupyter lab --notebook-dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

lint: .venv/.ready-test ## style, format, types and import contracts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo

# Where user namespaces work, a skipped sandbox test is a failure (tests/conftest.py; AGENTWATCH_REQUIRE_SANDBOX=1
# demands it everywhere). Two processes, a file's tests in one of them: most tests wait for something; see .ci/tests.py.
test: lint ## lint, then all tests but those in a browser
	$(PY) .ci/tests.py

browser: .venv/.ready-test ## the tests that drive JupyterLab in Chromium, for some minutes
	$(PY) -m pytest -m browser

kernels: .venv/.ready-test ## the tests of comms and control messages, with several versions of ipykernel
	@.ci/kernels.sh

bench: .venv/.ready-bench ## measure rungs A and B, print tables and write them as JSON
	$(PY) tests/bench/run.py
	$(PY) tests/bench/run.py --rung B

pictures: .venv/.ready-test ## take the README's pictures from JupyterLab in Chromium
	$(PY) -m tests.pictures

clean: ## remove everything that these targets made
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache notebooks/quickstart notebooks/dashboard notebooks/rome notebooks/investigation notebooks/own-agent notebooks/own-agent.jsonl notebooks/own-program
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
