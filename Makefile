# make quickstart | make test | make benchmark: each sets up .venv by itself, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
FLOWER := .venv-flower
CPU_INDEX := https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install quickstart test stress lint format benchmark deploy-demo clean
help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/@/' | column -t -s '@'

define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(1)
	@if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then \
	  $(1)/bin/pip install -q -e '.[$(2)]'; \
	else \
	  { $(1)/bin/pip install -q -c constraints-cpu.txt torch 2>$(1)/torch.log || \
	    $(1)/bin/pip install -q -c constraints-cpu.txt --index-url $(CPU_INDEX) torch || \
	    { cat $(1)/torch.log; exit 1; }; } && \
	  $(1)/bin/pip install -q -c constraints-cpu.txt -e '.[$(2)]'; \
	fi
	@touch $@
endef

install: $(INSTALLED)  ## virtual environment with all dependencies; torch for the CPU if there is no NVIDIA GPU
$(INSTALLED): pyproject.toml constraints-cpu.txt
	$(call environment,.venv,dev)

$(FLOWER)/.installed: pyproject.toml constraints-cpu.txt
	$(call environment,$(FLOWER),flower)

quickstart: install  ## the main job on 5,000 real digits: dense and FedPara, minutes on two cores
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

benchmark: install  ## seconds per round, compared with a bare loop and other simulators; PART=scale, ARGS="net=tiny rounds=5"
	$(BIN)/python benchmarks/$(or $(PART),rounds).py $(ARGS)

deploy-demo: $(FLOWER)/.installed  ## five real processes with TLS on this machine, compared with a simulation; ARGS="method=pfedpara"
	$(FLOWER)/bin/python deploy/demo.py $(ARGS)

clean:           ## delete the virtual environments and the caches
	rm -rf .venv $(FLOWER) benchmarks/.environments .mypy_cache .pytest_cache .ruff_cache src/*.egg-info
