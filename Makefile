# make demo    set up, make the digits data set, train and evaluate on it, draw the detections
# make test    set up and run the test suite; DETECTRON2=<checkout> tests against that Detectron2
# make lint    set up and run the linter
# make benchmark  time this package beside Detectron2's RetinaNet and torchvision's
# make setup   only set up: everything goes into .venv

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DETECTRON2 ?=
ifneq ($(DETECTRON2),)
export PYTHONPATH := $(abspath $(DETECTRON2))$(if $(PYTHONPATH),:$(PYTHONPATH))
endif

DIGITS := datasets/digits
DIGITS_CONFIG := configs/digits/retinanet_narrow_R_50_FPN.yaml

# Detectron2 0.5 imports its C++ operators at once, though RetinaNet uses none of them.
define PLACEHOLDER
"""Stands where Detectron2's C++ operators would be, which are not built here."""


def get_compiler_version():
    return "not built"


def get_cuda_version():
    return "not built"


def has_cuda():
    return False
endef
export PLACEHOLDER

.PHONY: setup demo test lint benchmark clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt requirements-detectron2.txt setup.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the PATH: install Python 3.11, or name one with PYTHON=..."; exit 1; }
	@echo "Setting up $(VENV): 2 to 5 minutes, mostly the download of PyTorch (6 GB on disk)."
	$(PYTHON) -m venv --clear $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment: install python3.11-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation \
	    --config-setting=--global-option=build_py --config-setting=--build-option=--skip-build \
	    -r requirements-detectron2.txt
	@echo "$$PLACEHOLDER" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/detectron2/_C.py"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Detectron2 0.5 and PyTorch warn of each other's old names, which is nothing for a newcomer.
demo: export PYTHONWARNINGS = ignore
demo: setup $(DIGITS)/annotations/val.json
	@echo "Training on the digits takes about 5 minutes on 2 cores; 'eta' below is the time left."
	$(BIN)/python train_net.py --config-file $(DIGITS_CONFIG)
	$(BIN)/python -m retinanet_plugin visualize --config-file $(DIGITS_CONFIG)

$(DIGITS)/annotations/val.json: | setup
	$(BIN)/python -m retinanet_plugin digits $(DIGITS)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .

benchmark: export PYTHONWARNINGS = ignore
benchmark: setup
	$(BIN)/python benchmarks/benchmark.py

clean:
	rm -rf $(VENV) datasets output build *.egg-info .pytest_cache .ruff_cache
