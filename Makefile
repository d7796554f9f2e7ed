# make demo     the full pipeline on a small scale        make check          lint, format, types, dependency bounds
# make test     all tests                                 make check-lowest   all tests, lowest versions of dependencies
# make fmt      fix lint and format                       make audit          known vulnerabilities of dependencies
# make site     the documentation site, in build/site
# Each target creates the environment in $(VENV) first if it is missing or out of date.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TASK ?=

.PHONY: demo test evidence-quick check check-lowest audit fmt site clean

demo: $(VENV)/.made
	$(BIN)/tutelage demo runs/demo $(foreach task,$(TASK),--task $(task))

test: $(VENV)/.made
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# Synthetic data on which the theory predicts the result: fails if a part of the method no longer has the predicted
# effect. About 2.5 minutes on two idle cores.
evidence-quick: $(VENV)/.made
	$(BIN)/python -m benchmarks.planted

check: $(VENV)/.made
	$(BIN)/ruff check src tests benchmarks docs/hooks.py
	$(BIN)/ruff format --check src tests benchmarks docs/hooks.py
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_dependencies.py
	$(MAKE) site

# A link or an anchor that leads nowhere fails.
site: $(VENV)/.made
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Tests of TRL, Ray and the notebook are skipped: these are not dependencies. Needs 6 GB of disk.
check-lowest: .venv-lowest/.made
	.venv-lowest/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

.venv-lowest/.made: pyproject.toml constraints-lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable . pytest pytest-xdist hypothesis hatchling
	touch $@

# Asks PyPI's list of vulnerabilities about the pinned versions. --strict: a package that it could not ask about fails,
# too, so that a machine without a way to the list does not pass.
audit:
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit; }
	.venv-audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

fmt: $(VENV)/.made
	$(BIN)/ruff check --fix src tests benchmarks docs/hooks.py
	$(BIN)/ruff format src tests benchmarks docs/hooks.py

# torch is installed first, from the pinned version, so that no other package's requirement selects a different build.
$(VENV)/.made: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-audit .mypy_cache .pytest_cache .ruff_cache build dist
