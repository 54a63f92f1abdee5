# Two commands: `make run` assays the built-in model, `make test` checks everything. Both make what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test lint unit avx2 methods clean

run: $(VENV)/.installed
	$(BIN)/assay run --out assay-out

# The checks of the source take one core: they go beside the tests.
test: $(VENV)/.tested
	@$(MAKE) --no-print-directory avx2
	@$(MAKE) --no-print-directory --jobs 2 lint unit

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache

# One thread a process and a process a core: most tests are too small for two threads.
unit: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The same figures without wide vectors and matrix units, on processors that have them; on others `unit` is that run already.
WIDE := import torch; print(torch.backends.cpu.get_cpu_capability().startswith("AVX512"))
avx2: $(VENV)/.tested
	@if [ "$$($(BIN)/python -c '$(WIDE)')" = True ]; then set -x; \
	OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -m portable --numprocesses auto --dist worksteal; \
	else echo "No vectors wider than AVX2 here: the whole suite runs without them."; fi

methods: $(VENV)/.tested
	$(BIN)/python -m assay.testing.probe

# Of all that is installed only what is imported is compiled to bytecode, which saves a minute.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile --editable .
	env -u PYTHONDONTWRITEBYTECODE TRANSFORMERS_VERBOSITY=error $(BIN)/python -c "import assay.verbs.run; assay.load('emoji64')"
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) ruff basedpyright import-linter pytest pytest-timeout pytest-xdist hypothesis jsonschema opacus peft tokenizers
	touch $@

clean:
	rm -rf $(VENV) assay-out dist
