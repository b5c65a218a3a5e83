# make run        set up and run the collector; starts a Redis here if none answers
# make demo       run it with a stand-in for Bybit and a Redis; CHAOS=1 breaks all; SECONDS=10 ends it
# make dashboard  show all of it in the browser, and the market; PORT=5007; DEMO=1 needs no collector
# make sandbox    run the stand-in for Bybit alone; for BYBIT_WS_URL=ws://127.0.0.1:8765 make run
# make test       run linters, type checker and all tests
# make bench      compare its speed with the alternatives; some need Node or another Python
# make soak       run it under load for an hour; SECONDS=600 for less
# make drill      kill, freeze and restart everything in turn, and count what was lost
# make failover   fail Redis over with Sentinels, and count what was lost; ONLY=planned for a part
# make scale      measure the whole market for half an hour; SERIES=rates SECONDS=3 for less
# make clean      remove .venv and caches

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PY := .venv/bin/python
# Who names a PYTHON gets a .venv of it, also where there is one of another Python.
NAMED := $(filter command environment,$(firstword $(origin PYTHON)))
IDENTITY := import sys; print(sys.base_prefix, *sys.version_info[:3])
OTHER = $(shell test "$$($(PYTHON) -c '$(IDENTITY)' 2>&1)" = "$$($(PY) -c '$(IDENTITY)' 2>&1)" || echo other-python)
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

.PHONY: help run demo dashboard sandbox test bench soak drill failover scale clean other-python

help:
	@sed -n 's/^# make /make /p' $(MAKEFILE_LIST)
	@echo "With PYTHON=python3.12 these use a .venv of that Python."

run: .venv/run.stamp
	@$(PY) -m sandbox.redis $(PY) main.py

demo: .venv/run.stamp
	@$(PY) -m sandbox.demo $(if $(CHAOS),--chaos) $(if $(SECONDS),--seconds $(SECONDS))

sandbox: .venv/run.stamp
	@$(PY) -m sandbox.bybit

dashboard: .venv/dashboard.stamp
	@$(PY) -m dashboard $(if $(PORT),--port $(PORT)) $(if $(DEMO),--demo)

test: .venv/dev.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -n 4 --dist worksteal  # most of them wait: four at a time, on two cores

bench: .venv/bench.stamp
	@$(PY) -m bench --runners all

soak: .venv/dev.stamp
	@$(PY) tests/soak.py $(if $(SECONDS),--seconds $(SECONDS))

drill: .venv/dev.stamp
	@$(PY) tests/drill.py $(if $(ONLY),--only $(ONLY))

failover: .venv/dev.stamp
	@$(PY) tests/failover.py $(if $(ONLY),--only $(ONLY))

# The results go to bench/scale.json; a short look leaves that as it is.
scale: .venv/bench.stamp
	@$(PY) -m bench.scale $(if $(SERIES),--series $(SERIES)) $(if $(SECONDS),--seconds $(SECONDS) --rounds 1 --out -)

.venv/python.stamp: $(if $(NAMED),$(OTHER))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
		"Python 3.11 or newer is needed$(if $(PYTHON),; $(PYTHON) is not): apt-get install python3 python3-venv, or brew install python"; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { echo "Python cannot make a virtual environment: apt-get install python3-venv"; rm -rf .venv; exit 1; }
	@touch $@

.venv/run.stamp: .venv/python.stamp requirements.txt constraints.txt sandbox/requirements.txt
	@echo "Installing what the collector needs into .venv"
	@$(PIP) -r requirements.txt -r sandbox/requirements.txt
	@touch $@

.venv/dev.stamp: .venv/run.stamp requirements-dev.txt
	@echo "Installing what the tests need into .venv"
	@$(PIP) -r requirements-dev.txt
	@touch $@

.venv/dashboard.stamp: .venv/run.stamp dashboard/requirements.txt
	@echo "Installing what the page needs into .venv"
	@$(PIP) -r dashboard/requirements.txt
	@touch $@

.venv/bench.stamp: .venv/run.stamp bench/requirements.txt
	@$(PIP) -r bench/requirements.txt
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

include deploy/install.mk
