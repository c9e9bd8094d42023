# Four words: serve, test, check, bench. Each makes .venv and installs what it needs.
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?= embedded
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml clients/pyproject.toml constraints.txt

.PHONY: serve test check bench clean

serve: .venv/serve.stamp
	exec $(BIN)/flamingo serve $(MODEL) --host $(HOST) --port $(PORT)

test: .venv/dev.stamp
	$(BIN)/pytest $(ARGS)

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/dev.stamp
	PYTHONPATH=tests $(BIN)/python tests/bench/first_token.py

.venv/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/serve.stamp: .venv/pip.stamp $(SOURCES)
	@echo "installing the server into .venv (once)"
	$(INSTALL) -e ./clients -e .
	touch $@

.venv/dev.stamp: .venv/serve.stamp
	@echo "installing what tests and checks need into .venv (once)"
	$(INSTALL) -e ./clients -e '.[dev]'
	touch $@

clean:
	rm -rf .venv dist
