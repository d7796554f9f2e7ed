# make demo     the full pipeline on a small scale        make check    lint, format and types
# make test     all tests                                 make fmt      fix lint and format
# Each target creates the environment in $(VENV) first if it is missing or out of date.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TASK ?=

.PHONY: demo test evidence-quick check fmt clean

demo: $(VENV)/.made
	$(BIN)/tutelage demo runs/demo $(foreach task,$(TASK),--task $(task))

test: $(VENV)/.made
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# Synthetic data on which the theory predicts the result: fails if a part of the method no longer has the predicted
# effect. About 2.5 minutes on two idle cores.
evidence-quick: $(VENV)/.made
	$(BIN)/python -m benchmarks.planted

check: $(VENV)/.made
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

fmt: $(VENV)/.made
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

# torch is installed first, from the pinned version, so that no other package's requirement selects a different build.
$(VENV)/.made: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
