# make run    sets up .venv and runs the whole pipeline on the embedded sample
# make serve  opens the web page on models/model.onnx: http://127.0.0.1:8000
# make test   sets up .venv and runs the fast tests; make test-rest the others, make test-all both
# make lint   checks style and types
# make coverage  runs the fast tests and says which lines none of them runs
# make pins   resolves requirements.txt again from pyproject.toml

SHELL := /bin/sh
PYTHON ?= python3
UV_VERSION := 0.13.8
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_COMPILE_BYTECODE := 1

PYTEST := OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run serve test test-rest test-all lint coverage pins setup

run: setup
	dvc repro

serve: setup
	python -m fieldguide serve

test: setup
	$(PYTEST) -m "not slow"

test-rest: setup
	$(PYTEST) -m slow

test-all: setup
	$(PYTEST)

lint: setup
	ruff check .
	ruff format --check .
	mypy

coverage: setup
	$(PYTEST) -m "not slow" --cov

setup: .venv/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"error: Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; give another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	uv pip install --quiet --python .venv/bin/python -r requirements.txt
	touch .venv/installed

pins: setup
	uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make pins" pyproject.toml --group dev -o requirements.txt
