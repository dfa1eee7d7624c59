# Everything is run from .venv, which `setup` makes. `make` alone shows this list.
PYTHON ?= python3
PY := .venv/bin/python
# PyTorch's CPU wheels, so that a machine without a GPU does not fetch gigabytes of CUDA; with a GPU: make setup TORCH_INDEX=
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --extra-index-url https://download.pytorch.org/whl/cpu)
DEMO := opd grpo kdrl trrd
# A process a core, one thread each; compiled files are kept, since tests start many processes.
TEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n logical --maxprocesses 4

.PHONY: help setup demo lab notebooks site test test-fast slow test-ray test-oldest walk bench figures lint audit midsize clean
help:
	@echo "make setup      make .venv with everything (the other targets do it by themselves)"
	@echo "make demo       train OPD, GRPO, KDRL and TRRD on the embedded pair (4 to 7 minutes); figures/demo.png"
	@echo "make lab        open JupyterLab on the notebooks; make notebooks: run them all and keep their outputs (half an hour)"
	@echo "make site       build the documentation site offline (a minute); build/site/docs/index.html"
	@echo "make test       all tests (about 10 minutes); make test-fast: those of a few hundredths of a second each (a minute)"
	@echo "make test-oldest  the tests of test-fast, and those of sampling and of the pretend GPU, with the lowest versions that pyproject.toml allows, in .venv-oldest/"
	@echo "make walk       20 random walks of 300 actions through a panel (hours); WALK=2x50: fewer; RLKD_WALK_SEED=7: from this seed on"
	@echo "make bench      a step against TRL's, our sampler against generate, KDRL and TRRD against GRPO; a sweep with one worker and with all (20 minutes)"
	@echo "make midsize    on a GPU: pre-train the mid-size pair, run the main methods on it, tables and figures (plan an hour; not measured); WORKERS=4: runs at a time"
	@echo "make figures    draw the committed figures again; make lint: ruff and mypy"
	@echo "make audit      known faults of the versions in constraints.txt; needs a network to pypi.org"

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --retries 1 -c constraints.txt $(TORCH_INDEX) torch
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,trl,ray,site,lab,served]"
	touch $@

# A run that is there is left alone; one that was interrupted goes on.
demo: $(DEMO:%=runs/demo/%/.finished)
	.venv/bin/rlkd compare $(DEMO:%=runs/demo/%) --figure figures/demo.png
	@echo "Look at figures/demo.png"

runs/demo/%/.finished: | .venv/installed
	if [ -e runs/demo/$*/config.json ]; then .venv/bin/rlkd resume runs/demo/$*; else .venv/bin/rlkd train --method $* --steps 60 --out runs/demo/$*; fi
	touch $@

notebooks: .venv/installed
	$(PY) notebooks/execute.py

lab: .venv/installed
	.venv/bin/jupyter lab --ip=127.0.0.1 --notebook-dir=notebooks

test: lint
	$(TEST) --dist worksteal -m "not ray"

test-ray: .venv/installed
	$(PY) -m pytest -m ray

test-fast: .venv/installed
	$(TEST) -m "not slow and not ray"

# Times every test, and lists those that test-fast leaves out.
slow: .venv/installed
	$(TEST) --dist worksteal -m "not ray" --junitxml=build/tests.xml
	$(PY) tests/slow.py build/tests.xml

# uv finds the lowest versions that go together; pip installs them, as for `setup`.
.venv-oldest/installed: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip compile --quiet --resolution lowest-direct --python .venv-oldest/bin/python --extra test -o .venv-oldest/versions.txt pyproject.toml
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --retries 1 -c .venv-oldest/versions.txt $(TORCH_INDEX) torch
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/versions.txt -e ".[test]"
	touch $@

test-oldest: .venv-oldest/installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -m "not slow and not gpu and not ray" --ignore tests/test_site.py --ignore tests/test_project.py
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest tests/device tests/rollouts tests/models/test_decoder.py

walk: .venv/installed
	RLKD_WALK=$(or $(WALK),20x300) $(PY) -m pytest -s tests/browser/test_walker.py

site: .venv/installed
	$(PY) -m sphinx -q -W --keep-going -c docs -b html . build/site -d build/site-cache
	@echo "Open build/site/docs/index.html"

lint: .venv/installed
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

# In an environment of its own; --strict: what cannot be looked up is a failure.
audit:
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet pip-audit==2.10.1; }
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

bench: .venv/installed
	$(PY) benchmarks/step.py
	$(PY) benchmarks/sweep.py

# Each of the two goes on where it was stopped.
midsize: .venv/installed
	$(PY) -m rlkd_lab.zoo.midsize
	$(PY) benchmarks/midsize.py $(if $(WORKERS),--workers $(WORKERS))

figures: demo
	$(PY) notebooks/record.py figure
	.venv/bin/rlkd study --judge --out results/embedded --figures figures

clean:
	rm -rf runs/demo build .pytest_cache .mypy_cache .ruff_cache
