PYTHON ?= python3
.DEFAULT_GOAL := help

# What libraries say of fitplan's calls is what will break next; what they say of each other is theirs to mend.
define DEPRECATED
error::DeprecationWarning:fitplan(\.|$$)
error::FutureWarning:fitplan(\.|$$)
endef
export DEPRECATED

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: .venv-light/demo ## install, and answer the first question
	.venv-light/bin/fitplan check llama-70b --gpu H100

test: .venv/dev ## install, and run the tests
	.venv/bin/pytest -n auto

test-oldest: .venv-oldest/dev ## run the proof with the oldest supported transformers
	.venv-oldest/bin/pytest -n auto tests/test_proof.py tests/test_rules.py -k "llama or mistral or gpt2 or t5 or rules"

test-next: .venv-next/dev ## run the proof with the newest libraries and their pre-releases, their warnings as errors
	.venv-next/bin/pip install -q --pre --upgrade torch transformers accelerate peft bitsandbytes trl
	.venv-next/bin/pytest -n auto tests/test_proof.py tests/test_rules.py -o filterwarnings="$$DEPRECATED"

test-rehearsal: .venv-rehearsal/dev ## rehearse on a CUDA build of PyTorch (5.5 GB on disk); no GPU is needed
	.venv-rehearsal/bin/pytest -q -n 2 tests/rehearsal

test-wheel: .venv/dev ## build the wheel, install it without the network, and answer from it without torch
	rm -rf build/wheel build/packages build/light
	.venv/bin/python -m build --wheel --outdir build/wheel . > /dev/null
	.venv/bin/pip download -q -c constraints/newest.txt --dest build/packages build/wheel/*.whl
	$(PYTHON) -m venv build/light
	build/light/bin/pip install -q --no-index --find-links build/packages build/wheel/*.whl
	.venv/bin/pytest -q tests/test_wheel.py --installed build/light --wheel build/wheel

footprints: .venv/dev ## trace all shipped models anew; takes hours
	.venv/bin/fitplan profile all --out profiles/models

# What is pinned stays where it still can; UPGRADE=--upgrade moves it.
COMPILE = build/uv/bin/uv pip compile -q pyproject.toml --all-extras --no-annotate $(UPGRADE) \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 --custom-compile-command 'make constraints'

constraints: ## pin what pyproject.toml and constraints/*.in ask for, with all that it needs
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install -q uv
	$(COMPILE) constraints/newest.in -o constraints/newest.txt
	$(COMPILE) constraints/oldest.in -o constraints/oldest.txt --resolution lowest-direct

pictures: .venv/dev ## draw the terminal app for the README
	.venv/bin/python docs/pictures.py

lint: .venv/dev ## formatting, style, types, direction of the imports
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

check: lint test test-oldest test-wheel ## everything that must hold before a commit

clean: ## remove the environments
	rm -rf .venv .venv-light .venv-oldest .venv-rehearsal .venv-next build

.venv-light/demo: pyproject.toml constraints/newest.txt
	$(PYTHON) -m venv .venv-light
	.venv-light/bin/pip install -q -c constraints/newest.txt .
	touch $@

.venv/dev: pyproject.toml constraints/newest.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints/newest.txt -e '.[torch,dev]'
	touch $@

.venv-rehearsal/dev: pyproject.toml constraints/rehearsal.txt
	$(PYTHON) -m venv .venv-rehearsal
	.venv-rehearsal/bin/pip install -q -c constraints/rehearsal.txt torch
	.venv-rehearsal/bin/pip install -q -c constraints/rehearsal.txt -e '.[torch]' jinja2 pytest pytest-xdist
	touch $@

.venv-oldest/dev: pyproject.toml constraints/oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -q -c constraints/oldest.txt -e '.[torch]' pytest pytest-xdist
	touch $@

.venv-next/dev: pyproject.toml
	$(PYTHON) -m venv .venv-next
	.venv-next/bin/pip install -q -e '.[torch]' pytest pytest-xdist hypothesis
	touch $@

.PHONY: help demo test test-rehearsal test-oldest test-next test-wheel footprints constraints pictures lint check clean
