# Two commands set a fresh machine up: `make run` and `make test`. On Windows see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test peers lint format clean

run: $(VENV)/.run
	$(BIN)/tem-live gui --profile sim

# Many tests wait for a timeout or a simulator: three at once on two cores. One that takes its process
# with it ends the run: pytest-xdist may wait forever for what that process had still to do.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest -n 3 --dist loadfile --max-worker-restart 0

# Against programs that others wrote, as far as they are installed.
peers: $(VENV)/.test
	QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest tests/peers

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_types.py
	cd .build/types && ../../$(BIN)/lint-imports --config ../../pyproject.toml

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build .build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tem-live needs Python 3.11 or newer: make run PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[openvino]"
	$(BIN)/python tools/check_qt.py
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.run
	$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.lint: pyproject.toml constraints.txt $(VENV)/.test
	$(PIP) -e ".[lint]"
	@touch $@
