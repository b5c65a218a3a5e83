# make install    install the collector as a systemd service, or upgrade it
# make uninstall  remove the service; the settings stay
# make lock       write requirements.lock again, from requirements.txt and constraints.txt
# make audit      check the packages of requirements.lock for known vulnerabilities
#
# DESTDIR=… is for packagers: only files are laid out. No user, no systemd and no virtual environment, as that would
# contain the paths of a place where it does not stay.

PREFIX ?= /opt/bybit-collector
SYSCONFDIR ?= /etc/bybit-collector
UNITDIR ?= /etc/systemd/system
SERVICE_USER ?= bybit-collector
SYSTEMCTL ?= $(if $(wildcard /run/systemd/system),systemctl)
PYTHON ?= python3
# Hidden from the service by ProtectHome=: a Python there would not start.
HIDDEN ?= /home /root /run/user

INSTALL := $(dir $(lastword $(MAKEFILE_LIST)))install.sh

.PHONY: install uninstall lock audit

install uninstall: export DESTDIR := $(DESTDIR)
install uninstall: export PREFIX := $(PREFIX)
install uninstall: export SYSCONFDIR := $(SYSCONFDIR)
install uninstall: export UNITDIR := $(UNITDIR)
install uninstall: export SERVICE_USER := $(SERVICE_USER)
install uninstall: export SYSTEMCTL := $(SYSTEMCTL)
install uninstall: export PYTHON := $(PYTHON)
install uninstall: export HIDDEN := $(HIDDEN)

install uninstall:
	@$(INSTALL) $@

# For all Pythons from 3.11 on and all systems, with the hashes of every file. On Pythons before 3.11.3, such as
# Debian 12's, redis-py needs one package more; hence uv, as pip-compile sees no Python but its own.
lock: .venv/python.stamp
	@$(PIP) uv==0.13.9
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" requirements.txt -o requirements.lock

# --strict: a package that cannot be checked is a failure.
audit: .venv/python.stamp
	@$(PIP) -c constraints.txt pip-audit==2.10.1
	@.venv/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock
