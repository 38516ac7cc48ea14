# Everything from nothing but Python >= 3.11 and make: `make demo`, `make test`, `make lab`.
# The environment lives in .venv; each stamp in it says "what this target needs is installed", and is touched last,
# so that an interrupted installation is taken up again. Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
SETUP := pyproject.toml constraints.txt Makefile

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test lint lab notebooks check-notebooks clean

help:
	@echo "make demo        train on the embedded data and write runs/demo/report.html (sets everything up first)"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make test        lint, tests and notebooks, as in CI"
	@echo "make lint        ruff only"
	@echo "make notebooks   rebuild notebooks/*.ipynb from notebooks/src; one only: make notebooks NB=00"
	@echo "make clean       remove .venv and what was built"

# A venv that works, made anew when there is none or a broken one.
define ENSURE_VENV
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "mrcnn_scratch needs Python >= 3.11, but '$(PYTHON)' is" \
	     "$$($(PYTHON) --version 2>/dev/null || echo 'not there')." \
	     "Name another one: make PYTHON=python3.12 $(or $(MAKECMDGOALS),demo)" >&2; exit 1; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
	echo "'$(PYTHON)' can't make a virtual environment: install its venv module" \
	     "(Debian, Ubuntu: apt install python3-venv) and run make again" >&2; exit 1; }
endef

.venv/.stamp-demo: $(SETUP)
	$(ENSURE_VENV)
	@echo "Installing mrcnn_scratch and what it needs into .venv (first time: minutes, up to 6 GB with torch's CUDA)"
	@$(PIP_INSTALL) -e .
	@touch $@

.venv/.stamp-lab: $(SETUP)
	$(ENSURE_VENV)
	@echo "Installing mrcnn_scratch and JupyterLab into .venv (first time: minutes, up to 6 GB with torch's CUDA)"
	@$(PIP_INSTALL) -e '.[notebooks]'
	@touch .venv/.stamp-demo $@

.venv/.stamp-test: $(SETUP)
	$(ENSURE_VENV)
	@echo "Installing mrcnn_scratch, JupyterLab and the test tools into .venv (first time: minutes, up to 6 GB with torch's CUDA)"
	@$(PIP_INSTALL) -e '.[notebooks,test]'
	@touch .venv/.stamp-demo .venv/.stamp-lab $@

demo: .venv/.stamp-demo
	$(BIN)/mrcnn demo

# Jupyter refuses to run as root, which is what one is in a container, unless it is told to.
lab: .venv/.stamp-lab
	$(BIN)/python -m jupyterlab $$([ "$$(id -u)" != 0 ] || echo --allow-root) notebooks

lint: .venv/.stamp-test
	$(BIN)/python -m ruff check --output-format concise .

# The tests share the cores among JOBS processes, one torch thread each; a test that wants two numba threads may ask
# for them. The notebooks run one by one, each in the kernel and with the threads that a reader gets; once as they are
# opened, and once with every exercise solved.
test: lint
	$(BIN)/python -m pytest -q -p no:cacheprovider --nbval --nbval-current-env \
		--nbval-sanitize-with=tests/sanitize.cfg --nbval-cell-timeout=300 notebooks
	$(BIN)/python tools/build_notebooks.py --solve
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=2 MPLBACKEND=Agg \
		$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --durations=10 tests

notebooks: .venv/.stamp-test
	$(BIN)/python tools/build_notebooks.py $(NB)

check-notebooks: .venv/.stamp-test
	$(BIN)/python tools/build_notebooks.py --check $(NB)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	find mrcnn_scratch tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
