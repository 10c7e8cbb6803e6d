# make run    sets up .venv and runs the whole pipeline on the embedded sample
# make serve  opens the web page on models/model.onnx: http://127.0.0.1:8000
# make test   sets up .venv and runs the fast tests; make test-rest the others, make test-all both
# make lint   checks style and types
# make coverage  runs the fast tests and says which lines none of them runs
# make pins   resolves requirements.txt and requirements-predict.txt again from pyproject.toml

SHELL := /bin/sh
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_COMPILE_BYTECODE := 1

PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 python -m pytest --dist loadfile --no-loadscope-reorder

CHECK_IDENTITY = { [ -n "$${GIT_COMMITTER_NAME:-$$(git config user.name)}" ] && \
  [ -n "$${GIT_COMMITTER_EMAIL:-$$(git config user.email)}" ]; } || echo 'note: git does not know you, and the second\
  "dvc exp run" would fail. Before it: git config --global user.name "Your Name"; git config --global user.email you@example.org' >&2

.PHONY: run serve test test-rest test-all lint coverage pins setup

run: setup
	dvc repro
	@$(CHECK_IDENTITY)
	@echo "Look at metrics/report.html and, for the suspected labels, metrics/label_errors.html. Next: make serve (the page), mlflow ui (the runs)."

serve: setup
	python -m fieldguide serve

test: setup
	$(PYTEST) -n 4 -m "not slow"

test-rest: setup
	$(PYTEST) -n 4 -m slow

test-all: setup
	$(PYTEST) -n 4

lint: setup
	ruff check .
	ruff format --check .
	mypy

coverage: setup
	$(PYTEST) -n 4 -m "not slow" --cov

setup: .venv/installed
	@$(CHECK_IDENTITY)

.venv/installed: requirements.txt
	@found=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
	case "$$found" in 3.11|3.12|3.13|3.14) ;; *) \
	  echo "error: Python 3.11 to 3.14 is needed, $(PYTHON) is $${found:-not there}; install one (apt install python3.12-venv, brew install python@3.12) and name it: make PYTHON=python3.12" >&2; exit 1 ;; \
	esac
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/# via/p' requirements.txt > .venv/uv.txt
	python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	uv pip install --quiet --python .venv/bin/python --require-hashes --build-constraints requirements.txt -r requirements.txt
	touch .venv/installed

PINS := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make pins" pyproject.toml

pins: setup
	$(PINS) --all-extras --group dev -o requirements.txt
	$(PINS) -c requirements.txt -o requirements-predict.txt
