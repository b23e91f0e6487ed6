# The two commands: `make demo` and `make test`. Both set everything up in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test test-slow test-deployment check docs clean

demo: $(READY)  ## a federated study on embedded data, ending in a report to look at
	$(BIN)/medfed simulate studies/demo.toml

test: $(READY)  ## the tests, without those marked slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto

test-slow: $(READY)  ## the end-to-end tests: Ray, a real SuperLink, kill and resume
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow and not deployment" -n 2 --dist loadfile

test-deployment: $(READY)  ## faults and attacks on a federation of real processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m deployment -n 3 --dist loadfile

check: $(READY)  ## what CI checks besides the tests
	scripts/check

docs: $(READY)  ## guides and reference as pages that open offline: build/docs/index.html
	$(BIN)/python scripts/docs/build_docs.py build/docs

$(READY): pyproject.toml constraints.txt scripts/setup
	PYTHON=$(PYTHON) scripts/setup $(VENV)

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
