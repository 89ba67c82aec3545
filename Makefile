# make demo    trains a pair, puts its sparse half into DeepSparse and judges it there (about three minutes, first time)
# make test    lint, types, tests with the real runtimes
# make test-extended   the slow tests, and those beside packages that `make test` does without
# make gate    the latency gate on ourselves: a bundle against itself passes, against a seeded slowdown it fails
# make bench   speed, as ratios: JSON in benchmarks/results, and a table
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DeepSparse may be used for evaluation only; whoever runs these commands accepts that license.
ACCEPT := ACDC_EXPORT_ACCEPT_LICENSE=deepsparse

.PHONY: demo test test-extended lint types gate bench clean

demo: $(VENV)/installed
	$(ACCEPT) $(BIN)/acdc-export --target cpu

# Two at a time, a thread each: pools of two threads would wait for each other on two cores.
test: lint types
	$(ACCEPT) OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --durations 10 -m 'not (alone or slow or frameworks or vision)'

# Tests that need more than requirements-dev.txt have a marker, and run in an environment of their own: .venv-NAME, made
# from requirements-NAME.txt.
test-extended: $(VENV)/installed-dev .venv-frameworks/installed .venv-vision/installed
	$(ACCEPT) OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --durations 10 -m 'slow and not alone'
	$(ACCEPT) $(BIN)/pytest -m alone
	$(ACCEPT) .venv-frameworks/bin/pytest --durations 10 -m frameworks
	$(ACCEPT) .venv-vision/bin/pytest --durations 10 -m vision

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

# The budget is an upper bound: a check ends when its gates are decided.
CHECK := $(ACCEPT) $(BIN)/acdc-export check bundles/digits-cpu --against bundles/digits-cpu --budget 120
SLOWER := build/slower

gate: demo
	$(CHECK) --history build/checks.jsonl
	$(BIN)/python -m benchmarks.seeded $(SLOWER) 15
	$(CHECK) --target $(SLOWER)/cpu --against-target cpu --out build/checks; test $$? -eq 1
	@echo "The seeded slowdown was found, as it must be."

bench: $(VENV)/installed-dev
	$(ACCEPT) $(BIN)/python -m benchmarks

# requirements.txt holds the versions that these commands were tested with.
$(VENV)/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv-%/installed: requirements-%.txt requirements.txt requirements-dev.txt pyproject.toml
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt -r requirements-dev.txt
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --no-compile -r requirements-$*.txt  # may replace some
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) .venv-* build checks dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
