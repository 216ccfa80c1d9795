# `make demo`: quantize the network that ships in the package, without data. `make test`: every check.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --quiet --disable-pip-version-check

.PHONY: demo test clean

demo: $(VENV)/.installed-package
	$(VENV)/bin/dreamquant demo

# one thread a process: the networks of the tests are so small that threads would wait for each other
test: $(VENV)/.installed-tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --dist loadfile

# torch goes first and alone, so that nothing below can choose another build of it
$(VENV)/.installed-package: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and dreamquant into $(VENV)"
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

# torchvision by itself and without dependencies: its wheel may be built for another torch than the one installed
$(VENV)/.installed-tests: $(VENV)/.installed-package
	$(PIP) install --constraint constraints.txt --no-deps torchvision
	$(PIP) install --constraint constraints.txt --editable ".[dev]" timm
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
