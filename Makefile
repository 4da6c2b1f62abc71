# make run     set up, then train MODEL on DATASET to early stopping
# make test    set up, then the whole test suite (a few minutes on two cores)
# make e2e     the slow tests on whole data sets
# make matrix  the check before a release: the suite on the wheel, on every Python (PYTHONS="3.12 lowest" for some)
# make lint    ruff and mypy
# make docs    the site, in site/; a warning is an error
# make notebooks   run docs/notebooks again and keep what they show

PYTHON ?= python3
MODEL ?= ADRRec
DATASET ?= ml-100k
ARGS ?=
JOBS ?= 2

# Threads that soon sleep while they wait get on beside other programs.
ifndef OMP_WAIT_POLICY
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT ?= 4000
endif

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.ready-docs

.PHONY: run test e2e matrix lint docs notebooks setup clean

run: $(READY)
	$(BIN)/python run_recbole.py --model=$(MODEL) --dataset=$(DATASET) $(ARGS)

# Each of the JOBS processes computes on one thread.
test: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal

e2e: $(READY)
	$(BIN)/python -m pytest -m slow

matrix:
	.ci/matrix $(PYTHONS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(DOCS_READY)
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace docs/notebooks/*.ipynb

setup: $(READY)

# Debian splits venv from python3; virtualenv from pip makes the same folder where it is missing.
$(READY): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV) && $(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv $(VENV); }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,dev]"
	touch $(READY)

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $(DOCS_READY)

clean:
	rm -rf $(VENV) build site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
