PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --no-compile -c constraints.txt
CPU := https://download.pytorch.org/whl/cpu
DEMO ?= -p images 3 -p companions 2
PYTEST := $(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile

# Python keeps what it has compiled: pip leaves that to the first import, and each process anew would take 15 s for it.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test fast lab notebooks picture world studies evidence setup

# Everything but what the tests need. On Linux without an NVIDIA GPU, PyTorch comes without CUDA, a tenth of the size.
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("macelib needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": set PYTHON=...") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  $(PIP) --no-deps --retries 0 --extra-index-url $(CPU) torch; fi
	$(PIP) -e .
	touch $@

$(VENV)/.tested: $(VENV)/.ready
	$(PIP) -e '.[test]'
	$(PIP) --no-deps clip-anytorch==2.6.0
	touch $@

demo: setup
	$(BIN)/mace run notebooks/06_erase_and_evaluate.ipynb --name demo $(DEMO)

test: $(VENV)/.tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(PYTEST)

fast: $(VENV)/.tested
	$(PYTEST) -m "not slow"

lab: setup
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --config=macelib/batch/lab.py \
	  --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

# Execute the notebooks with their defaults and keep their outputs; the README shows one of their figures.
notebooks: setup
	$(PIP) -e '.[encoder]'
	$(BIN)/python -m macelib.batch.refresh notebooks/*.ipynb
	$(MAKE) picture

picture:
	$(BIN)/python -m macelib.batch.picture notebooks/06_erase_and_evaluate.ipynb 4 data/readme/together.png

# Make the mini world by its recipe, from the artwork to the report: many hours on two cores, resumable at every point.
# RECIPE=FILE makes another one, in a folder of its own.
world: setup
	$(PIP) -e '.[world]'
	PYTHONPATH=data $(BIN)/python -m factory $(if $(RECIPE),--recipe $(RECIPE))

# Erase and measure what data/studies and the README show. Hours on two cores, resumable at every point.
studies: setup
	$(BIN)/mace study objects --steps 8 --batch 50 --record --out runs/study/objects
	$(BIN)/mace study characters --steps 8 --batch 50 --seeds 3 --config data/studies/settings.yaml --record --out runs/study/characters
	$(BIN)/mace study ablation --only ship --images 20 --steps 8 --autocast bf16 --record --out runs/study/ablation
	$(BIN)/mace study pairs --steps 8 --autocast bf16 --record --out runs/study/pairs
	$(BIN)/mace study keeping --steps 8 --seeds 8 --record --out runs/study/keeping
	$(BIN)/mace study tuning --grid data/world/cheaper.yaml --steps 8 --record --out runs/study/cheaper
	$(BIN)/mace report

# Measure every method on every task, then attack: what data/results and the README show. A day or more on two cores,
# resumable at every point; TASKS="styles unsafe" are some of it. NEVER_KNEW=FOLDER, for the attacks' gold control: a
# model that was trained without the ten objects (make world RECIPE=data/factory/without-objects.yaml).
TASKS ?= objects characters-1 characters-5 characters-10 characters-30 characters-50 characters-100 styles unsafe \
  two-things scenes shared-words captions scaling-1 scaling-3 scaling-10 scaling-30 scaling-100 scaling-300
evidence: setup
	set -e; for task in $(TASKS); do $(BIN)/mace compare --task $$task --profile recorded --autocast bf16 --batch 50 \
	  --out runs/evidence/$$task --record; done
	$(if $(filter objects,$(TASKS)),$(BIN)/mace attack --task objects --edits runs/evidence/objects --out runs/evidence/attacks --record \
	  $(if $(NEVER_KNEW),--never-knew $(NEVER_KNEW)))
