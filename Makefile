# `make demo` and `make test` do all their own set-up; they need Python 3.11+ and nothing else.
PYTHON ?= python3
BIN = .venv/bin
INSTALLED = .venv/.installed

.PHONY: install demo test lint docs check clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "liftmap needs Python 3.11 or newer"'
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[hub,pretrained,adapters,serve,ray,docs,dev]'
	touch $(INSTALLED)

demo: install
	$(BIN)/liftmap demo

test: install
	$(BIN)/pytest

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

check: lint docs test

clean:
	rm -rf .venv demo-output site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
