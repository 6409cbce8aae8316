# Two commands matter: `make lab` opens the lessons, `make test` runs every check. Both set up what they need.
#
#   make lab              set up .venv, check the machine, open JupyterLab              (OPEN=no: no browser)
#   make test             every check: lint, types, floors, unit tests, lessons, browser
#   make test-long        what takes minutes: the whole class server, the real offline kit
#   make check            the quick part of them, under 3 minutes
#   make lessons          execute all lessons into runs/                                 (MODE=solution SCALE=full)
#   make site             execute all lessons and write them as pages into site/
#   make hub              JupyterHub for a class on this machine (deploy/jupyterhub)
#   make notebooks        rebuild notebooks/*.ipynb from the scripts beside them
#   make model            train the embedded models again
#   make clean            remove .venv and caches; runs/ (your results) stays
#
# Variables: PYTHON=python3.12 (which Python makes .venv), VENV=.venv, TORCH='torch>=2.9' (what to install first),
# JOBS=2 (tests side by side).

.POSIX:
.SUFFIXES:
.DEFAULT_GOAL := help
.PHONY: help lab test test-long check lint lessons site hub notebooks model clean

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install -qq
LAB := $(VENV)/.lab-is-installed
TEST := $(VENV)/.test-is-installed
PROXY := $(VENV)/hub/node_modules/configurable-http-proxy
JOBS := logical
OPEN := yes
MODE := learner
SCALE := quick

# The first Python that is new enough.
PYTHON = $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# With an NVIDIA GPU, any torch that the project takes. Without one, one release that also exists as a CPU build:
# an index that carries that build wins over the default, which brings gigabytes of CUDA libraries.
TORCH = $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo 'torch>=2.9' || echo 'torch==2.13.0')

# npm, and node below it, come from the extra `class`.
NPM = PATH="$(abspath $(VENV))/bin:$$PATH" npm install --prefix $(VENV)/hub --no-audit --no-fund --loglevel=error \
	'configurable-http-proxy@^5' >/dev/null

help:
	@sed -n 's/^# \{0,1\}//; 1,15p' Makefile

$(RUN):
	@test -n "$(PYTHON)" || { echo "labcore needs Python 3.11 or later and found $$(python3 --version 2>&1 || true); \
	install one, or name it: make lab PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "$(PYTHON) is too old: labcore needs Python 3.11 or later." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; \
	on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# Make must not re-create the environment because a Python inside of it looks old: order-only.
$(LAB): pyproject.toml | $(RUN)
	@echo "Installing the lab into $(VENV); the first time this downloads a few hundred MB"
	@$(RUN) -c 'import torch' 2>/dev/null || $(PIP) "$(TORCH)"
	@$(PIP) -e '.[lab]'
	@touch $@

$(TEST): pyproject.toml | $(RUN)
	@echo "Installing the lab and its tests into $(VENV); the first time this downloads a few hundred MB"
	@$(RUN) -c 'import torch' 2>/dev/null || $(PIP) "$(TORCH)"
	@$(PIP) -e '.[lab,test]'
	@$(NPM) || echo "The proxy of the class server could not be installed; its test is skipped." >&2
	@touch $(LAB) $@

lab: $(LAB)
	@$(RUN) -m labcore.cli doctor
	@$(RUN) -m labcore.cli lessons open $(if $(filter no,$(OPEN)),--no-browser)

$(PROXY): | $(LAB)
	@$(PIP) -e '.[lab,class]'
	@$(NPM)

hub: $(PROXY)
	@$(RUN) -m jupyterhub -f deploy/jupyterhub/jupyterhub_config.py

lint: $(TEST)
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# One pytest for everything, so that its summary counts everything; the long tests are dealt out first.
# Workers share the cores: a thread that waits for another sleeps, where it would else spin on a core that a
# second worker's thread needs, for milliseconds at each of a step's hundreds of barriers.
test: lint
	OMP_WAIT_POLICY=passive $(RUN) -m pytest -n $(JOBS) --maxprocesses 8 --dist loadgroup --no-loadscope-reorder -m "not long"

test-long: $(TEST)
	OMP_WAIT_POLICY=passive $(RUN) -m pytest -m long

check: lint
	OMP_WAIT_POLICY=passive $(RUN) -m pytest -n $(JOBS) --maxprocesses 8 -m "not long and not slow and not notebook and not browser"

lessons: $(LAB)
	$(RUN) -m labcore.cli lessons run --all --mode $(MODE) --scale $(SCALE) --out runs

site: $(LAB)
	@$(RUN) -m labcore.cli site

notebooks: $(TEST)
	$(RUN) -m labcore.cli lessons sync
	$(RUN) -m labcore.cli lessons guides

model: $(TEST)
	$(RUN) -m data.story.make

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
