# Everything happens in .venv with the exact versions of constraints.txt; nothing else is needed but
# git, make and Python 3.11 or newer (with its venv module).

VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/core
REPORT := $(VENV)/report
READY := $(VENV)/ready
LOWEST := $(VENV)-lowest
QUICK := tests/models tests/recipes tests/runs tests/data/test_augment.py tests/data/test_splits.py \
	tests/data/test_class_names.py tests/data/test_images.py tests/training/test_schedule.py tests/test_rooms.py
RUN_DIR ?= runs/reproduce
RUNS ?= runs/table
RECIPE ?= fast
SEEDS ?= 1
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

.PHONY: help reproduce reproduce-table test extras triton lint types unit quick coverage lowest format readme figures notebook demo docs lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */\1|/' | awk -F'|' '{printf "make %-15s %s\n", $$1, $$2}'

reproduce: $(CORE)  ## fetch CIFAR-10, train ResNet-20, show its test error beside the paper's
	$(BIN)/deepres fetch
	@test -f $(RUN_DIR)/result.json || $(BIN)/deepres bench resnet20 --recipe fast
	$(BIN)/deepres train resnet20 --recipe fast --seed 0 --run-dir $(RUN_DIR)

reproduce-table: $(REPORT)  ## the paper's table: the nets of 20 to 56 layers, statistics, report (RECIPE=fast or paper, SEEDS=1)
	$(BIN)/deepres fetch
	@# If some runs fail (1), the table is made of the others, and the failure stays one.
	$(BIN)/deepres grid --recipes $(RECIPE) --seeds $(SEEDS) --out $(RUNS); code=$$?; \
	test $$code -le 1 || exit $$code; \
	$(BIN)/deepres results $(RUNS) && $(BIN)/deepres report $(RUNS) --out $(RUNS)/report && exit $$code

test: lint types unit  ## lint, types and the tests

extras: $(READY)  ## install TensorFlow and timm (1.5 GB) and test with them
	@$(INSTALL) --editable '.[tensorflow,timm]'
	$(BIN)/pytest tests/export tests/integrations -k 'tensorflow or timm'

triton: $(READY)  ## install Triton (700 MB), with which the tests of the kernels for GPUs run on a CPU
	@$(INSTALL) --group gpu-tests

lint: $(READY)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## check types
	$(BIN)/mypy
	$(BIN)/mypy --strict benchmarks/*.py examples/*.py tools/*.py

unit: $(READY)  ## the tests alone
	$(BIN)/python tools/build_kernels.py
	@# Tests start Python hundreds of times: it may keep what it compiled, whatever the variable said.
	@# Three processes on two cores: much of the time one of them waits.
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 3 --dist worksteal

quick: $(READY)  ## the quick tests, under a minute, for while one works
	$(BIN)/pytest -q -n 2 $(QUICK)

coverage: $(READY)  ## all tests, and the lines and branches of src/ that none of them runs
	$(BIN)/pytest -n 2 --dist worksteal --cov

lowest: $(CORE)  ## the quick tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv --clear $(LOWEST)
	$(BIN)/python tools/lowest.py > $(LOWEST)/constraints.txt
	PIP_CONSTRAINT='$(abspath $(LOWEST))/constraints.txt' $(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[report]' hypothesis pytest
	$(LOWEST)/bin/pytest -q $(QUICK) tests/report tests/cli/test_results.py tests/training/test_trainer.py \
		tests/weights/test_classifier.py tests/weights/test_evaluate.py tests/weights/test_responses.py \
		--ignore tests/report/test_committed_figures.py  # pixels, which are those of one Matplotlib

format: $(READY)  ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: $(READY)  ## write the generated tables of README.md and docs/
	$(BIN)/python tools/readme.py && $(BIN)/python tools/architecture.py

figures: $(REPORT)  ## draw the figures of the committed results anew
	rm -rf runs/report
	$(BIN)/deepres report results --out runs/report
	rm -rf results/figures && mkdir results/figures
	cd runs/report && cp figure*.png error-*.png ../../results/figures

notebook: $(READY)  ## execute main.ipynb from a clean kernel and save it with its outputs
	$(BIN)/jupyter-execute --inplace --NotebookClient.record_timing=False main.ipynb
	sed -i.bak 's|$(HOME)/|~/|g' main.ipynb && rm main.ipynb.bak  # where the data lie

demo: $(READY)  ## build docs/demo, the page that runs two nets in a browser (needs npm)
	$(BIN)/python tools/demo.py

docs: $(READY)  ## build the documentation site into build/site, the demo included where `make demo` was made
	rm -rf build/site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/site
	$(BIN)/python tools/links.py build/site

lock: $(CORE)  ## write constraints.txt: one version of each package for all systems; those that it names stay if they can
	$(INSTALL) --group lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11.5 --all-extras --group dev --group gpu-tests --group lock --no-annotate \
		--custom-compile-command 'make lock' --output-file constraints.txt pyproject.toml

clean:  ## remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Three steps, each of which adds to the one before: what trains, what the report needs, what the tests need.
INSTALL = PIP_CONSTRAINT='$(CURDIR)/constraints.txt' $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(CORE): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'deepres needs Python 3.11 or newer with its venv module (Debian: apt install python3-venv)'; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo 'installing the versions of constraints.txt into $(VENV); the first time this takes some minutes'
	@$(INSTALL) pip && $(INSTALL) --editable .
	@touch $@

$(REPORT): $(CORE)
	@$(INSTALL) --editable '.[report]'
	@touch $@

$(READY): $(REPORT)
	@$(INSTALL) --editable '.[report,hub,onnx,ray,tensorboard]' --group dev
	@touch $@
