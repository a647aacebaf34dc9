# Every target makes what it needs. `make demo` is the product in one command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL := examples/fashion_dit/model
OUT ?= out

.PHONY: install demo test check slow gpu bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,export]'
	touch $@

demo: install                      ## calibrate on the demo model, run every profile on held-out labels
	$(BIN)/python examples/demo.py --out $(OUT) $(DEMO)

test: install                      ## the fast tests
	$(BIN)/pytest

check: install                     ## what CI runs: style, types, layers, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src tests
	$(BIN)/lint-imports
	$(BIN)/pytest

slow: install                      ## the slow tests
	$(BIN)/pytest -m slow

gpu: install                       ## needs an NVIDIA GPU: table of engines and policies
	$(BIN)/python benchmarks/gpu.py

bench: install                     ## the README's table (about an hour on 2 cores)
	$(BIN)/python benchmarks/front.py --out benchmarks/fashion_dit

clean:
	rm -rf $(VENV) $(OUT) build dist
