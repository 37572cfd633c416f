# The two commands of the README: `make demo` and `make test`. Each makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Without an NVIDIA GPU, PyTorch's CPU wheel (200 MB) serves; PyPI's default on Linux brings gigabytes of CUDA.
ifeq ($(shell command -v nvidia-smi),)
TORCH_INDEX ?= --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: demo test reliability lint types lock clean

demo: $(VENV)/.ready
	$(BIN)/saelora demo $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

# kill -9, bad input, full disks: ARGS="--minutes 60 --json FILE" is the full form
reliability: $(VENV)/.dev
	$(BIN)/python benchmarks/reliability.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy src

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-deps -c constraints.txt $(TORCH_INDEX) torch
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.ready
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

# Writes the versions that are installed now; run it in an environment that passes the tests.
lock: $(VENV)/.dev
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) build dist src/*.egg-info
