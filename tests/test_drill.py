"""The drill itself, with small numbers; `make drill` runs the whole."""

import subprocess
import sys
from pathlib import Path

import pytest
from drill import play
from scenarios import Scenario, single_kill, single_redis_restart

ROOT = Path(__file__).resolve().parent.parent


def test_what_keeps_its_limits(capsys):
    assert play(Scenario(single_redis_restart, silence=5, lost=1), rate=200)
    assert capsys.readouterr().out.endswith("ok\n")


def test_what_breaks_a_limit_is_shown_with_the_evidence(capsys, monkeypatch, tmp_path):
    """Without a standby a killed collector loses what is made until it is back."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # for the logs, which stay
    assert not play(Scenario(single_kill, silence=30), rate=200)
    output = capsys.readouterr().out
    for words in ("FAILED", "lost: made from ", "orderbook.50.BTCUSDT: ", "logs: "):
        assert words in output


@pytest.mark.parametrize(("option", "code"), [(["--list"], 0), (["--only", "nothing"], 2)])
def test_the_list_of_scenarios(option, code):
    done = subprocess.run([sys.executable, "tests/drill.py", *option], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert "rolling-upgrade" in done.stdout
