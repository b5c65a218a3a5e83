"""The command line, the log and the signals."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import ROOT

from ops.arguments import Arguments, parse_arguments
from ops.cli import STOP_SIGNALS, Signals, configure_logging


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], Arguments(None)),
        (["--check"], Arguments("check")),
        (["--status"], Arguments("status")),
        (["--status", "live"], Arguments("status", "live")),
        (["--json", "--status", "ready"], Arguments("status", "ready", json=True)),
    ],
    ids=str,
)
def test_a_command_is_an_option(arguments, found):
    assert parse_arguments(arguments) == found


@pytest.mark.parametrize(
    "arguments", [["--check", "--status"], ["check"], ["--wrong"], ["--json"], ["--status", "all"]], ids=str
)
def test_wrong_arguments_end_the_program_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: main.py")


@pytest.mark.parametrize("command", ["--status", "--check"])
@pytest.mark.parametrize("full", [True, False], ids=["a full disk", "a pipe that nobody reads"])
def test_what_cannot_be_written_makes_code_1_and_no_traceback(command, full):
    """As `main.py --check | head -1` may."""
    if full and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    reader, output = (None, os.open("/dev/full", os.O_WRONLY)) if full else os.pipe()
    if reader is not None:
        os.close(reader)
    # Neither end is there: both commands have something to say.
    env = os.environ | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "1", "BYBIT_WS_URL": "ws://127.0.0.1:1"}
    program = [sys.executable, "main.py", command]
    ran = subprocess.run(program, cwd=ROOT, env=env, stdout=output, stderr=subprocess.PIPE, text=True, timeout=50)
    os.close(output)
    assert ran.returncode == 1
    assert ran.stderr == ("stdout cannot be written: No space left on device\n" if full else "")


def test_the_version_is_that_of_the_latest_release(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--version"])
    assert ended.value.code == 0
    releases = re.findall(r"^## (\d+\.\d+\.\d+) ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert capsys.readouterr().out == f"{releases[0]}\n"


def test_help_names_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "exit codes:\n  0  stopped by a signal" in out
    assert "Without an option the collector runs until SIGINT or SIGTERM." in out


def test_warnings_of_the_settings_are_logged_and_libraries_are_not(caplog):
    configure_logging("INFO", ["first", "100 % second"])
    logging.getLogger("websocket").error("a page of HTML")
    assert caplog.messages == ["first", "100 % second"]


@pytest.fixture
def handlers():
    """Restores the signal handlers that a test replaces."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


def test_the_first_signal_is_recorded_and_the_second_has_its_default_effect(handlers):
    signals = Signals()
    assert signals.stops == signals.hangups == []
    signal.raise_signal(signal.SIGTERM)
    assert signals.stops == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "a terminal that is closed sends it twice"


def test_a_signal_ends_the_wait_once(handlers):
    signals = Signals()
    signal.raise_signal(signal.SIGTERM)
    began = time.monotonic()
    signals.wait(60)
    assert time.monotonic() - began < 10
    began = time.monotonic()
    signals.wait(0.1)
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("terminal", [0, 1, 2])
@pytest.mark.parametrize(("before", "received"), [(signal.SIG_DFL, [signal.SIGHUP]), (signal.SIG_IGN, [])])
def test_a_terminal_that_is_closed_is_a_stop_unless_nohup_says_otherwise(
    handlers, monkeypatch, before, received, terminal
):
    monkeypatch.setattr("os.isatty", lambda number: number == terminal)
    signal.signal(signal.SIGHUP, before)
    signals = Signals()
    signal.raise_signal(signal.SIGHUP)
    assert (signals.stops, signals.hangups) == (received, [])


def test_without_a_terminal_each_hangup_is_recorded_and_stops_nothing(handlers, monkeypatch):
    monkeypatch.setattr("os.isatty", lambda number: False)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signals = Signals()
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert (signals.stops, signals.hangups) == ([], [signal.SIGHUP] * 2)
    signal.raise_signal(signal.SIGTERM)
    assert signals.stops == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "there is nothing to be read again any more"
