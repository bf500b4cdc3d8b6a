# `make demo` and `make test` do all their own set-up; they need Python 3.11+ and nothing else.
PYTHON ?= python3
BIN = .venv/bin
INSTALLED = .venv/.installed

.PHONY: install demo test lint docs check audit faults fuzz clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "liftmap needs Python 3.11 or newer"'
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[hub,heif,pretrained,adapters,serve,ray,docs,dev]'
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

# known holes in what is installed, by the registry's own list
audit: install
	$(BIN)/pip-audit --skip-editable --progress-spinner off

# half an hour: commands killed 50 times each
faults: install
	$(BIN)/python benchmarks/faults.py --work faults-work

# two minutes a reader
fuzz: install
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tests/fuzzing.py --minutes 2

clean:
	rm -rf .venv demo-output faults-work site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
