PYTHON ?= python3
.DEFAULT_GOAL := help

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: .venv/demo ## install, and answer the first question
	.venv/bin/fitplan check llama-70b --gpu H100

test: .venv/dev ## install, and run the tests
	.venv/bin/pytest -n auto

test-oldest: .venv-oldest/dev ## run the proof with the oldest supported transformers
	.venv-oldest/bin/pytest -n auto tests/test_proof.py tests/test_rules.py -k "llama or mistral or gpt2 or t5 or rules"

lint: .venv/dev ## formatting, style, types, direction of the imports
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

check: lint test test-oldest ## everything that must hold before a commit

clean: ## remove the environments
	rm -rf .venv .venv-oldest

.venv/demo: pyproject.toml constraints/newest.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints/newest.txt -e '.[torch]'
	touch $@

.venv/dev: pyproject.toml constraints/newest.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints/newest.txt -e '.[torch,dev]'
	touch $@

.venv-oldest/dev: pyproject.toml constraints/oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -q -c constraints/oldest.txt -e '.[torch]' pytest pytest-xdist
	touch $@

.PHONY: help demo test test-oldest lint check clean
