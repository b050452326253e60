# Two commands on a fresh machine: `make demo` trains a transformer in half its memory, `make test` runs the tests.
# Both create .venv first. Everything runs on the CPU; no accelerator is touched.

export JAX_PLATFORMS := cpu
export CUDA_VISIBLE_DEVICES := -1

# The first interpreter that is new enough; `make PYTHON=...` overrides.
PYTHON ?= $(firstword $(foreach name,python3 python3.12 python3.13 python3.14,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -q -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test lint docs clean

demo: $(VENV)/.flax
	$(BIN)/python examples/train_transformer.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy jaxremat

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "jaxremat needs Python 3.12 or newer: install it, or name it with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per extra of pyproject.toml: `make .venv/.docs` installs `.[docs]`.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
