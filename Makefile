# The two commands of the README: `make demo` and `make test`. Each makes its own virtual environment first; so do
# `make test-newest` and `make test-oldest`, with the newest and the lowest allowed versions of the libraries around us.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST := python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
PIP_IN := bin/python -m pip --disable-pip-version-check -q
PIP := $(VENV)/$(PIP_IN)
# Without an NVIDIA GPU, PyTorch's CPU wheel (200 MB) serves; PyPI's default on Linux brings gigabytes of CUDA.
ifeq ($(shell command -v nvidia-smi),)
TORCH_INDEX ?= --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: demo test reliability test-newest test-oldest golden lint types docs lock clean

demo: $(VENV)/.ready
	$(BIN)/saelora demo $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) $(ARGS)

# kill -9, bad input, full disks: ARGS="--minutes 60 --json FILE" is the full form
reliability: $(VENV)/.dev
	$(BIN)/python benchmarks/reliability.py $(ARGS)

# What other versions of transformers, peft, accelerate, sae-lens and datasets could break: running models through SAEs,
# adapters, what is written and read again.
VERSIONS_TESTS := tests/core tests/models tests/saes tests/data tests/train/test_checkpoint.py tests/jobs/test_adapt.py
VERSIONS_TESTS += $(addprefix --ignore=tests/,core/test_kl_head.py core/test_spread.py saes/test_sae_properties.py \
    data/test_tables_fuzz.py data/test_pack.py)

test-newest test-oldest: test-%: .venv-%/.ready
	OMP_NUM_THREADS=1 .venv-$*/bin/$(PYTEST) $(VERSIONS_TESTS) $(ARGS)

# fingerprints of what commands compute: ARGS="--json before.json", later ARGS="--against before.json"
golden: $(VENV)/.dev
	$(BIN)/python tests/golden.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy src

# the site, in site/; to read it with its search: ARGS=serve
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build --strict --quiet)

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-deps -c constraints.txt $(TORCH_INDEX) torch
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.ready
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

# constraints.txt holds for torch alone here. To look for newer releases, remove .venv-newest.
.venv-newest/.ready .venv-oldest/.ready: .venv-%/.ready: pyproject.toml .ci/versions.py
	@echo "setting up .venv-$* (a few minutes, once)"
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/$(PIP_IN) install --no-deps -c constraints.txt $(TORCH_INDEX) torch
	.venv-$*/bin/python .ci/versions.py $* > .venv-$*/wanted.txt
	.venv-$*/$(PIP_IN) install -r .venv-$*/wanted.txt -e ".[tests]"
	@.venv-$*/bin/python .ci/versions.py installed
	@touch $@

# Writes the versions that are installed now; run it in an environment that passes the tests.
lock: $(VENV)/.dev
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest build dist src/*.egg-info
