# make run   set up and run the collector (a local Redis is started if none answers)
# make demo  the same collector against a stand-in for Bybit on this machine: no network, no Redis; SECONDS=10 ends it
# make test  set up, linters, types, all tests
# make bench the benchmark beside what one would pick instead; some need Node or another Python and are left out without
# make install, uninstall   as a systemd service on this machine; make lock, audit: its packages (deploy/install.mk)
# make soak  an hour under load; SECONDS=600 for less

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

.PHONY: run demo test bench soak clean

run: .venv/run.stamp
	@$(PY) -m sandbox.redis $(PY) main.py

demo: .venv/run.stamp
	@$(PY) -m sandbox.demo $(if $(SECONDS),--seconds $(SECONDS))

test: .venv/dev.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest

bench: .venv/bench.stamp
	@$(PY) -m bench --runners all

soak: .venv/dev.stamp
	@$(PY) tests/soak.py $(if $(SECONDS),--seconds $(SECONDS))

.venv/python.stamp:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt-get install python3 python3-venv, or brew install python"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python cannot make a virtual environment: apt-get install python3-venv"; rm -rf .venv; exit 1; }
	@touch $@

.venv/run.stamp: .venv/python.stamp requirements.txt constraints.txt sandbox/requirements.txt
	@echo "Installing what the collector needs into .venv"
	@$(PIP) -r requirements.txt -r sandbox/requirements.txt
	@touch $@

.venv/dev.stamp: .venv/run.stamp requirements-dev.txt
	@echo "Installing what the tests need into .venv"
	@$(PIP) -r requirements-dev.txt
	@touch $@

.venv/bench.stamp: .venv/run.stamp bench/requirements.txt
	@$(PIP) -r bench/requirements.txt
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

include deploy/install.mk
