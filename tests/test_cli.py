"""The command line, the log and the signals."""

import logging
import re
import signal

import pytest
from programs import ROOT

from ops.cli import STOP_SIGNALS, configure_logging, install_signal_handlers, parse_arguments


@pytest.mark.parametrize(
    ("arguments", "command"), [([], None), (["--check"], "check"), (["--status"], "status")], ids=str
)
def test_a_command_is_an_option(arguments, command):
    assert parse_arguments(arguments) == command


@pytest.mark.parametrize("arguments", [["--check", "--status"], ["check"], ["--wrong"]], ids=str)
def test_wrong_arguments_end_the_program_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: main.py")


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
    assert "Without an option the collector runs until SIGINT, SIGTERM or SIGHUP." in out


def test_warnings_of_the_settings_are_logged_and_libraries_are_not(caplog):
    configure_logging("INFO", ["first", "100 % second"])
    logging.getLogger("websocket").error("a page of HTML")
    assert caplog.messages == ["first", "100 % second"]


def test_the_first_signal_is_recorded_and_the_second_has_its_default_effect():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        received = install_signal_handlers()
        assert received == []
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "a terminal that is closed sends it twice"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("before", "received"), [(signal.SIG_DFL, [signal.SIGHUP]), (signal.SIG_IGN, [])])
def test_a_terminal_that_is_closed_is_a_stop_unless_nohup_says_otherwise(before, received):
    kept = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        signal.signal(signal.SIGHUP, before)
        found = install_signal_handlers()
        signal.raise_signal(signal.SIGHUP)
        assert found == received
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
