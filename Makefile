# Four words: serve, test, check, bench. Each makes .venv and installs what it needs.
# A fifth, peers: .venv-peers with OpenFlamingo, which bench compares us with.
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?= embedded
PYTHON ?= python3
PEER_PYTHON ?= python3.11
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
PEER_INSTALL := .venv-peers/bin/pip install --quiet --disable-pip-version-check -c tests/bench/peers-constraints.txt
NATIVE := model/flamingo_model/native
SOURCES := pyproject.toml clients/pyproject.toml constraints.txt \
    hatch_build.py $(NATIVE)/compiling.py $(wildcard $(NATIVE)/*.[ch])

.PHONY: serve test check bench peers clean

serve: .venv/serve.stamp
	exec $(BIN)/flamingo serve $(MODEL) --host $(HOST) --port $(PORT)

test: .venv/dev.stamp
	$(BIN)/pytest -n auto --dist worksteal $(ARGS)

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/dev.stamp .venv-peers/stamp
	PYTHONPATH=tests $(BIN)/python tests/bench/run.py $(ARGS)

peers: .venv-peers/stamp

# tokenizers 0.13 has no wheels for later Pythons; --no-deps keeps torchvision out.
.venv-peers/stamp: tests/bench/peers-constraints.txt
	$(PEER_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed: make peers PEER_PYTHON=python3.11")'
	@echo "installing OpenFlamingo into .venv-peers (once)"
	$(PEER_PYTHON) -m venv --clear .venv-peers
	$(PEER_INSTALL) torch transformers 'numpy<2' einops einops-exts ftfy regex sentencepiece pillow
	$(PEER_INSTALL) --no-deps open_clip_torch open-flamingo
	touch $@

.venv/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/serve.stamp: .venv/pip.stamp $(SOURCES)
	@echo "installing the server into .venv (once)"
	$(INSTALL) -e ./clients -e .
	@test -e $(NATIVE)/kernels.so || echo "without the C kernels: $(BIN)/python $(NATIVE)/compiling.py says why"
	touch $@

.venv/dev.stamp: .venv/serve.stamp
	@echo "installing what tests and checks need into .venv (once)"
	$(INSTALL) -e ./clients -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-peers dist $(NATIVE)/kernels.so
