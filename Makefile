# make quickstart | make test | make benchmark: each sets up .venv by itself, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
TESTED := .venv/.installed-dev
FLOWER := .venv-flower
DOCS := .venv-docs
TORCH := 2.13.0
PINS := pyproject.toml constraints.txt constraints-cpu.txt tools/install.sh
export PYTHON
.NOTPARALLEL:  # both environments of a checkout share .venv

.PHONY: help install lock quickstart test stress lint format docs docs-tables benchmark gpu-proof reproduce deploy-demo clean
help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/@/' | column -t -s '@'

install: $(TESTED)  ## virtual environment with all that tests, linters and benchmarks need; torch for the CPU without an NVIDIA GPU
$(TESTED): $(PINS)
	tools/install.sh .venv dev -c constraints.txt
	@touch $(INSTALLED) $@

# a run's needs alone: no Ray, ONNX, notebooks or linters
$(INSTALLED): $(PINS)
	tools/install.sh .venv '' -c constraints.txt
	@touch $@

$(FLOWER)/.installed: $(PINS)
	tools/install.sh $(FLOWER) flower
	@touch $@

lock:            ## write constraints.txt anew: the newest releases that pyproject.toml allows, beside this torch
	echo torch==$(TORCH) | .venv/bin/uv pip compile -q pyproject.toml - --extra dev --universal --python-version 3.11 --no-annotate --upgrade \
	  --custom-compile-command 'make lock' -o constraints.txt

quickstart: export PYTHONDONTWRITEBYTECODE :=  # the first run compiles what it imports
quickstart: $(INSTALLED)  ## the main job on 5,000 real digits: dense and FedPara, minutes on two cores
	$(BIN)/python src/train.py -m experiment=quickstart factorization=dense,fedpara

test: lint  ## lint, types, tests
	$(BIN)/pytest -n auto --maxprocesses 4

stress: install  ## the long form (hours) of some tests: killed runs, damaged files, wrong values, a lost node; KILLS=50 FILES=400
	$(BIN)/python tools/stress/kills.py $(or $(KILLS),50)
	$(BIN)/python tools/stress/corrupt_files.py $(or $(FILES),400)
	$(BIN)/python tools/stress/lost_node.py
	$(BIN)/python tools/stress/bad_values.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff format and fix the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# what `fedpara[docs]` lists, without fedpara and torch: docstrings are read from the source
$(DOCS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(DOCS)/wanted.txt
	$(DOCS)/bin/pip install -q -r $(DOCS)/wanted.txt
	@touch $@

docs: $(DOCS)/.installed  ## the documentation as a site in build/site, warnings as errors
	$(DOCS)/bin/python tools/docs.py build

docs-tables: $(INSTALLED)  ## write the tables of README and docs/ anew, from results/
	$(BIN)/python tools/docs.py tables

benchmark: install  ## seconds per round, compared with a bare loop and other simulators; PART=scale, ARGS="net=tiny rounds=5"
	$(BIN)/python benchmarks/$(or $(PART),rounds).py $(ARGS)

gpu-proof: install  ## the CUDA path in 8 minutes: tests, steps, pfl-research's benchmark, the paper's run; docs/guides/gpu-proof.md
	-$(BIN)/python benchmarks/environments.py pfl
	$(BIN)/python benchmarks/gpu_proof.py $(ARGS)

reproduce: $(INSTALLED)  ## the paper's experiments as one queue that can be stopped and resumed; ARGS="--list", ARGS="--scaled --lanes 2"
	$(BIN)/python src/reproduce.py $(ARGS)

deploy-demo: $(FLOWER)/.installed  ## five real processes with TLS on this machine, compared with a simulation; ARGS="method=pfedpara"
	$(FLOWER)/bin/python deploy/demo.py $(ARGS)

clean:           ## delete the virtual environments and the caches
	rm -rf .venv $(FLOWER) $(DOCS) build benchmarks/.environments .mypy_cache .pytest_cache .ruff_cache src/*.egg-info
