# The first call of demo, test, lab or results makes .venv and installs into it (about 4 minutes, 6 GB); later calls start at once.
#   make test PYTHON=python3.12     makes .venv with that Python (after make clean)
#   make test LOCK=                 installs from the ranges in pyproject.toml, not from the tested set
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-anywhere real lab results sync lock clean ready install

PYTHON =
LOCK = constraints.txt
BENCHMARKS = frontend fsdd-official fsdd-loso fsdd-zero fsdd-loso-extra strangers esc10 hmm-digits digits-hmm digits-ctc an4-ctc an4-ctc-lm an4-ctc-phone \
	an4-to-fsdd decode throughput on-the-fly long-sets
LAB_ARGS =

# What a shell may carry that would change what is installed, imported or drawn. Index settings of pip stay.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONDONTWRITEBYTECODE PYTHONOPTIMIZE PYTHONWARNINGS PYTHONSAFEPATH PYTHONPLATLIBDIR VIRTUAL_ENV
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_REQUIRE_VIRTUALENV PIP_CONSTRAINT PIP_REQUIREMENT PIP_NO_DEPS PIP_DRY_RUN PIP_PRE
unexport PIP_NO_BINARY PIP_ONLY_BINARY PIP_NO_BUILD_ISOLATION PIP_IGNORE_INSTALLED PIP_FORCE_REINSTALL PIP_UPGRADE PIP_EDITABLE
unexport JUPYTER_CONFIG_DIR JUPYTER_CONFIG_PATH JUPYTER_DATA_DIR JUPYTER_PATH JUPYTER_RUNTIME_DIR JUPYTER_NO_CONFIG IPYTHONDIR MPLBACKEND
export PIP_USER = 0
export PYTHONNOUSERSITE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export JUPYTER_PREFER_ENV_PATH = 1
# onnxruntime would tell its makers about this machine, from notebooks that import it before fastaudio_lite too.
export ORT_DISABLE_TELEMETRY = 1

py = .venv/bin/python
quiet = MPLBACKEND=agg IPYTHONDIR="$(CURDIR)/.venv/ipython"
offline = $(quiet) OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= FASTAUDIO_LITE_OFFLINE=yes HF_HUB_OFFLINE=1

# The stamp holds this folder and a sum of what was asked for: a moved folder, a changed file or a dead .venv means install again.
want := $(CURDIR) $(LOCK) $(shell cat pyproject.toml constraints.txt 2>/dev/null | cksum)
have := $(shell $(py) -I -c pass 2>/dev/null && cat .venv/.installed 2>/dev/null)
ifneq ($(want),$(have))
ready: install
endif

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

demo: ready ## train on spoken digits and hear, see and score the result
	@$(quiet) .venv/bin/fastaudio-lite demo

test: ready ## notebooks, modules and style agree; run every notebook; run tests (no network, no GPU)
	@$(offline) $(py) tests/sync.py
	@$(offline) .venv/bin/nbdev-test --n-workers 2 --do-print --timing
	@$(offline) $(py) -m pytest tests -m "not real" -n 2

test-anywhere: ready ## run lessons and tests as other processors, with more threads and with other seeds would (half an hour)
	@$(offline) $(py) tests/anywhere.py

real: ready ## run the quick tests that need the real data sets on the data path
	@$(offline) $(py) -m pytest tests -m real

lab: ready ## open JupyterLab on the first lesson
	@$(py) -m jupyterlab $$([ "$$(id -u)" != 0 ] || echo --allow-root) --LabApp.default_url=/lab/tree/nbs/00_audio.ipynb $(LAB_ARGS)

results: ready ## run every benchmark and draw the README's tables anew
	@for b in $(BENCHMARKS); do $(quiet) .venv/bin/fastaudio-lite benchmark $$b || exit 1; done
	@$(py) results/readme.py

sync: ready ## write what test compares: clean notebooks, exported modules, README
	@.venv/bin/nbdev-clean && .venv/bin/nbdev-export && $(py) results/readme.py

lock: ready ## write constraints.txt from what .venv holds
	@sed -n '/^#/p' constraints.txt > .venv/lock && $(py) -m pip freeze --exclude-editable >> .venv/lock && mv .venv/lock constraints.txt

clean: ## remove .venv and everything else that make made
	@rm -rf .venv build .pytest_cache .hypothesis *.egg-info _docs _proc demo.png
	@find . -name __pycache__ -prune -exec rm -rf {} +

ready:

# .installing marks a .venv that is being filled: if an interruption left it, if the folder
# was moved (scripts hold its name) or if pip does not answer, .venv is made afresh.
# Debian without python3-venv cannot put pip into a .venv, but its own pip can.
install:
	@trap 'exit 130' INT TERM HUP; new='import sys; sys.exit(sys.version_info < (3, 10))'; \
	moved() { [ -e .venv/.installed ] && ! grep -qF "$(CURDIR) " .venv/.installed; }; \
	if [ -e .venv/.installing ] || moved || ! $(py) -c "import pip; $$new" >/dev/null 2>&1; then \
	  for base in $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.10 python3.14) ''; do \
	    if "$$base" -c "$$new" >/dev/null 2>&1; then break; fi; done; \
	  [ "$$base" ] || { echo "fastaudio_lite needs Python 3.10 or newer, and $(or $(PYTHON),python3) is not: install it, or name one with make PYTHON=python3.12" >&2; exit 1; }; \
	  rm -rf .venv && mkdir .venv && : > .venv/.installing || exit 1; \
	  if ! "$$base" -m venv .venv >/dev/null 2>&1; then \
	    "$$base" -m pip --version >/dev/null 2>&1 || { echo "$$base can make no .venv and has no pip: install them (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
	    "$$base" -m venv --without-pip .venv && \
	    "$$base" -m pip install -q --target "$$($(py) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip || exit 1; \
	  fi; \
	fi; \
	lock=; if [ "$(LOCK)" ] && $(py) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then lock="-c $(LOCK)"; fi; \
	echo "Installing into .venv, once: about 4 minutes and 6 GB, most of it PyTorch"; \
	rm -f .venv/.installed; : > .venv/.installing; \
	$(py) -m pip install -e '.[lessons,timm,onnx,hub,scale,dev]' $$lock || { rm -f .venv/.installing; echo "The install did not finish; the lines above say why. Then call make again." >&2; exit 1; }; \
	printf '%s' "$(want)" > .venv/.installing && mv .venv/.installing .venv/.installed
