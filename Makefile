# `make demo`: the main job on a small scale. `make test`: all tests. Both make the environment first if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TASK ?=

.PHONY: demo test evidence-quick check fmt clean

demo: $(VENV)/.made
	$(BIN)/tutelage demo runs/demo $(foreach task,$(TASK),--task $(task))

test: $(VENV)/.made
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# Planted truths: fails if a mechanism of the method stops doing what the theory says. About two and a half minutes on two idle cores.
evidence-quick: $(VENV)/.made
	$(BIN)/python -m benchmarks.planted

check: $(VENV)/.made
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

fmt: $(VENV)/.made
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

# torch first and by itself, so that the plain wheel of the pinned version is taken before anything else asks for it.
$(VENV)/.made: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
