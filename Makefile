PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fast lab notebooks world setup

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("macelib needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": set PYTHON=...") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	$(BIN)/pip install -q --no-deps -c constraints.txt clip-anytorch==2.6.0
	touch $@

demo: setup
	mkdir -p papermill_runs/demo
	$(BIN)/papermill notebooks/06_erase_and_evaluate.ipynb papermill_runs/demo/06_erase_and_evaluate.ipynb \
	  --cwd notebooks -p run_folder ../papermill_runs/demo

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pytest

fast: setup
	$(BIN)/pytest -m "not slow"

lab: setup
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

# Execute the notebooks with their defaults and keep their outputs.
notebooks: setup
	$(BIN)/python -m macelib.batch.refresh notebooks/*.ipynb

# Make the mini world by its recipe, from the artwork to the report: many hours on two cores, resumable at every point.
# RECIPE=FILE makes another one, in a folder of its own.
world: setup
	PYTHONPATH=data $(BIN)/python -m factory $(if $(RECIPE),--recipe $(RECIPE))
