# `make` lists the targets.

PYTHON ?= python3.11
VENV ?= .venv
VENV_06 := $(VENV)-0.6
BIN := $(VENV)/bin
DETECTRON2 ?=
ifneq ($(DETECTRON2),)
ifeq ($(wildcard $(DETECTRON2)/detectron2/__init__.py),)
$(error DETECTRON2=$(DETECTRON2) is no checkout of Detectron2: name a folder that holds detectron2/__init__.py)
endif
export PYTHONPATH := $(abspath $(DETECTRON2))$(if $(PYTHONPATH),:$(PYTHONPATH))
endif
ARGS ?=

DIGITS := datasets/digits
DIGITS_CONFIG := configs/digits/retinanet_narrow_R_50_FPN.yaml
DIGITS_OUTPUT := output/digits

# A slow network is not an error.
export UV_HTTP_TIMEOUT ?= 180
UV_INSTALL := $(BIN)/uv pip install --python
# $(call quietly,ENVIRONMENT,COMMAND): what a command prints goes into a log, shown if it fails.
quietly = { $(2); } >> $(1)/setup.log 2>&1 || { cat $(1)/setup.log; exit 1; }
# $(call packages,ENVIRONMENT): the folder where its packages lie
packages = "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-0.6 lint benchmark lock clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo:  ## set up, make the digits data set, train and evaluate on it, report where it fails
test:  ## set up and run the tests; DETECTRON2=<checkout> on that Detectron2, ARGS=tests/test_x.py on that file
test-0.6:  ## set up and run the tests on Detectron2 0.6
lint:  ## set up and run ruff and mypy
benchmark:  ## time this package beside Detectron2's RetinaNet and torchvision's
setup:  ## only set up: everything goes into .venv; PYTHON=python3.13 for another Python
lock:  ## write requirements*.txt anew from requirements*.in
clean:  ## remove environments, caches, and the demo; your own datasets/ and output/ stay

setup: $(VENV)/.ready
	@echo "$(VENV) is ready: source $(VENV)/bin/activate"

$(VENV)/.ready: requirements.txt requirements-detectron2.txt setup.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the PATH: install Python 3.10 or newer, and name it with PYTHON=..."; exit 1; }
	@echo "Setting up $(VENV): 1 to 5 minutes, mostly the download of PyTorch (6 GB on disk)."
	@$(PYTHON) -m venv --clear $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment: install its venv package (python3.11-venv)"; exit 1; }
	@$(call quietly,$(VENV),$(BIN)/python -m pip install "$$(grep '^uv==' requirements.txt)")
	@$(call quietly,$(VENV),$(UV_INSTALL) $(BIN)/python -r requirements.txt)
# The archive is marked as one for Python 3.10 because of its _C alone, which no torch of today loads.
	@$(call quietly,$(VENV),$(UV_INSTALL) $(BIN)/python --no-deps --require-hashes --only-binary :all: \
	    --python-version 3.10 --target $(call packages,$(VENV)) -r requirements-detectron2.txt)
	@rm -f $(call packages,$(VENV))/detectron2/_C.*.so
	@$(call quietly,$(VENV),$(UV_INSTALL) $(BIN)/python --no-deps --no-build-isolation --editable .)
	@touch $@

# Torch and all else that 0.6 can share comes from $(VENV), whose packages stand behind its own.
$(VENV_06)/.ready: $(VENV)/.ready requirements-0.6.txt requirements-detectron2-0.6.txt
	@echo "Setting up $(VENV_06): Detectron2 0.6 and older packages in front of those of $(VENV) (0.5 GB)."
	@$(BIN)/python -m venv --clear --without-pip $(VENV_06)
	@echo $(call packages,$(VENV)) > $(call packages,$(VENV_06))/behind.pth
	@$(call quietly,$(VENV_06),$(UV_INSTALL) $(VENV_06)/bin/python -r requirements-0.6.txt)
	@$(call quietly,$(VENV_06),$(UV_INSTALL) $(VENV_06)/bin/python --no-deps --require-hashes --no-build-isolation \
	    --config-setting=--global-option=build_py --config-setting=--build-option=--skip-build \
	    -r requirements-detectron2-0.6.txt)
# 0.6 imports its C++ operators at once, though RetinaNet uses none, and asks what they were built with.
	@printf 'def _answer():\n    return "not built"\n\n\nget_compiler_version = get_cuda_version = has_cuda = _answer\n' \
	    > $(call packages,$(VENV_06))/detectron2/_C.py
	@touch $@

# Detectron2 and PyTorch warn of each other's old names, which is nothing for a newcomer.
demo: export PYTHONWARNINGS = ignore
demo: setup $(DIGITS)/annotations/val.json
	@echo "Training on the digits takes 2 to 4 minutes on 2 cores; 'eta' below is the time left."
	$(BIN)/python train_net.py --config-file $(DIGITS_CONFIG)
	@rm -rf $(DIGITS_OUTPUT)/report
	$(BIN)/python -m retinanet_plugin report --truth $(DIGITS)/annotations/val.json --images $(DIGITS)/val \
	    --weights $(DIGITS_OUTPUT)/model_final.pth --output $(DIGITS_OUTPUT)/report

$(DIGITS)/annotations/val.json: | setup
	$(BIN)/python -m retinanet_plugin digits $(DIGITS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

test-0.6: $(VENV_06)/.ready
	$(VENV_06)/bin/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: export PYTHONWARNINGS = ignore
benchmark: setup
	$(BIN)/python benchmarks/benchmark.py

# Detectron2 0.6 runs on Python 3.10 and 3.11: what suits 3.10 suits both.
LOCK := $(BIN)/uv pip compile --quiet --python-version 3.10 --no-annotate --custom-compile-command "make lock" --upgrade
lock: setup
	$(LOCK) --universal requirements.in -o requirements.txt
	$(LOCK) --python-platform x86_64-manylinux_2_28 requirements-0.6.in -o requirements-0.6.txt

clean:
	rm -rf $(VENV) $(VENV_06) $(DIGITS) $(DIGITS_OUTPUT) build *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
