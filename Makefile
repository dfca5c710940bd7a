# make demo     one minute or two: writes out/demo/report.html
# make test     the default tests, as continuous integration runs them
# make lint     ruff, mypy and the import contracts
# make fuzz     thousands of damaged air files against `semcast receive`
# make test-slow, make wheel, make golden, make clean

# The first that runs and is new enough; a name on the path may be a shim of nothing.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.semcast-installed
TORCH := torch>=2.13,<2.14

.PHONY: demo test test-slow lint format fuzz wheel golden clean install

install: $(STAMP)

# torch first: resolved on its own it comes as one wheel from whichever index is configured, and nothing else can move it.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; install it, or say make PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)

# The transmitter is told 10 dB whatever the radio does: so the cliff shows, and the slope beside it.
demo: $(STAMP)
	$(BIN)/semcast compare scene:demo --systems h265-ldpc,deepjscc --snr 2,5,8,11,14 --csi-snr 10 --cbr 0.0833 \
		--report out/demo
	@echo "open out/demo/report.html"

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/fuzz_air.py --count 2000

golden: $(STAMP)
	$(BIN)/python tests/golden/regenerate.py

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist out src/*.egg-info
