#!/bin/sh
# What `make install` and `make uninstall` do (deploy/install.mk has the variables and their defaults).
# shellcheck disable=SC2086,SC2153  # the lists are meant to be split; the names in capitals come from make
set -eu

cd "$(dirname "$0")/.."
folders="callbacks conf ops relay"
files="$(echo *.py) constraints.txt requirements.txt requirements.lock LICENSE"
former="README.md" # earlier versions had it there, with links that led nowhere
units="bybit-collector.service bybit-collector@.service"
to=$DESTDIR$PREFIX
etc=$DESTDIR$SYSCONFDIR
unitdir=$DESTDIR$UNITDIR
venv=$PREFIX/.venv
adduser="useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin $SERVICE_USER"

fail() {
    echo "$1" >&2
    exit 1
}

check() {
    case $PREFIX$SYSCONFDIR$UNITDIR$SERVICE_USER in
    *[!A-Za-z0-9/._-]*) fail "PREFIX, SYSCONFDIR, UNITDIR and SERVICE_USER may hold letters, digits and / . _ - only" ;;
    esac
    for path in "$PREFIX" "$SYSCONFDIR" "$UNITDIR"; do
        case $path in /?*) ;; *) fail "$path: expected an absolute path" ;; esac
    done
    [ -n "$DESTDIR" ] || [ "$(id -u)" = 0 ] || fail "This needs root (sudo make …), or a DESTDIR"
}

check_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "Python 3.11 or newer is needed: apt-get install python3 python3-venv"
    real=$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    for hidden in $HIDDEN; do # the units' ProtectHome=
        case $real in "$hidden"/*) fail "$real: the service cannot see $hidden; name another: make install PYTHON=/usr/bin/python3" ;; esac
    done
}

systemd() {
    [ -n "$DESTDIR" ] || [ -z "$SYSTEMCTL" ] || "$SYSTEMCTL" "$@"
}

# Whether the collector is there; nothing is removed from a folder that was named by mistake.
installed() {
    [ -f "$to/main.py" ] && [ -f "$to/relay/redis/publisher.py" ]
}

remove_program() {
    rm -f "$to"/*.py
    for name in $folders __pycache__; do
        rm -rf "${to:?}/$name"
    done
}

# Whether the program that is there is not the one to be installed: another version, or the user has changed it.
differs() {
    for file in $files; do
        [ ! -e "$file" ] || cmp -s "$file" "$to/$file" || return 0
    done
    for file in "$to"/*.py; do
        [ -e "$(basename "$file")" ] || return 0
    done
    for name in $folders; do
        diff -qr -x __pycache__ "$name" "$to/$name" >/dev/null 2>&1 || return 0
    done
    return 1
}

# Moves the program into a new folder: it may hold code of the user's own, in main.py and everywhere else.
back_up_program() {
    while backup=$to/backup-$(date +%Y%m%d-%H%M%S) && [ -e "$backup" ]; do sleep 1; done
    mkdir "$backup"
    for name in $files $former main.py.old $folders; do
        [ ! -e "$to/$name" ] || mv "$to/$name" "$backup/"
    done
    for file in "$to"/*.py; do # modules that the new version does not have
        [ ! -e "$file" ] || mv "$file" "$backup/"
    done
    rm -rf "${to:?}/__pycache__"
    find "$backup" -name __pycache__ -prune -exec rm -rf {} +
    echo "The program that was there, with all changes of your own, is now in $backup"
    if ! cmp -s main.py "$backup/main.py"; then # it may hold STREAMS of the user's own
        cp -p "$backup/main.py" "$to/main.py.old"
        echo "The main.py that was there is kept as $to/main.py.old"
    fi
}

install_files() {
    echo "Installing the collector into $to"
    mkdir -p "$to" "$unitdir"
    if [ -e "$to/main.py" ] && differs; then back_up_program; fi
    for file in $files; do
        [ ! -e "$file" ] || install -m 0644 "$file" "$to/$file"
    done
    find $folders -name '*.py' | while read -r file; do
        mkdir -p "$to/$(dirname "$file")"
        install -m 0644 "$file" "$to/$file"
    done
    for unit in $units; do
        sed -e "s|/opt/bybit-collector|$PREFIX|g" -e "s|/etc/bybit-collector|$SYSCONFDIR|g" \
            -e "s|^User=.*|User=$SERVICE_USER|" -e "s|root:bybit-collector|root:$SERVICE_USER|" "deploy/$unit" >"$unitdir/$unit"
        chmod 0644 "$unitdir/$unit"
    done
}

# Made once, from .env.example.
install_settings() {
    mkdir -p "$etc"
    chmod 0750 "$etc"
    if [ -e "$etc/collector.env" ]; then
        echo "$etc/collector.env is left as it is"
        return
    fi
    (
        umask 077
        {
            printf '%s\n' '# Settings of the collector. A password with special characters: "double quotes", \ before " and \ in it.'
            echo "# What is left out has the value shown here. A line may not end in a comment. Durations are seconds."
            sed '1,/^$/{/^$/!d;}' .env.example # without what it says of .env
        } >"$etc/collector.env.new"
    )
    chmod 0640 "$etc/collector.env.new"
    mv "$etc/collector.env.new" "$etc/collector.env"
}

install_packages() {
    echo "Installing its packages into $venv"
    version='import sys; print(sys.version_info[:2])'
    if [ "$("$venv/bin/python" -c "$version" 2>/dev/null)" != "$("$PYTHON" -c "$version")" ]; then
        rm -rf "$venv" # none yet, or the system's Python is another by now
        "$PYTHON" -m venv "$venv" || {
            rm -rf "$venv"
            fail "Python cannot make a virtual environment: apt-get install python3-venv"
        }
    fi
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --require-hashes -r "$PREFIX/requirements.lock"
    (cd "$PREFIX" && .venv/bin/python -m compileall -q ./*.py $folders) # the service may not write
}

do_install() {
    check
    umask 022
    if [ -n "$DESTDIR" ]; then
        install_files
        install_settings
        echo "Next, once the files are in their place:"
        echo "  $adduser"
        echo "  chgrp -R $SERVICE_USER $SYSCONFDIR"
        echo "  python3 -m venv $venv && $venv/bin/pip install --require-hashes -r $PREFIX/requirements.lock"
        return
    fi
    check_python
    id -u "$SERVICE_USER" >/dev/null 2>&1 || { echo "Adding the system user $SERVICE_USER" && $adduser; }
    install_files
    install_settings
    group=$(id -gn "$SERVICE_USER")
    chgrp "$group" "$etc" "$etc/collector.env"
    # The collector reads them, too, since there is `systemctl reload`; they may be for root only.
    find "$etc" -name '*.env' -type f -user root -group root ! -perm -004 -exec chgrp "$group" {} + -exec chmod g+r {} +
    install_packages
    systemd daemon-reload
    if [ -z "$SYSTEMCTL" ]; then
        echo "Installed. There is no systemd here to start it: docs/operations.md has Supervisor and Docker"
        return
    fi
    echo "Next (after an upgrade: systemctl restart bybit-collector). It needs a Redis, which this does not install:"
    echo "  sudo nano $SYSCONFDIR/collector.env"
    echo "  sudo systemctl enable --now --no-block bybit-collector"
    echo "  systemctl status bybit-collector; journalctl -u bybit-collector -f"
}

do_uninstall() {
    check
    systemd stop bybit-collector.service 'bybit-collector@*.service' || true # they may not be there
    systemd disable $units || true
    systemd reset-failed 'bybit-collector*.service' || true
    for unit in $units; do
        rm -f "$unitdir/$unit"
    done
    if installed; then
        remove_program
        for name in $files $former .venv; do
            rm -rf "${to:?}/$name"
        done
        rmdir "$to" 2>/dev/null || echo "$to holds files that make install did not put there: left as they are"
    fi
    systemd daemon-reload
    echo "Uninstalled. The settings in $SYSCONFDIR and the user $SERVICE_USER are left as they are"
}

"do_$1"
