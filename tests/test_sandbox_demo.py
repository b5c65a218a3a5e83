"""The demo, as a newcomer starts it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.demo import short
from sandbox.subscriber import CHANNELS, Tally

ROOT = Path(__file__).resolve().parent.parent


def demo(*options):
    return subprocess.run(
        [sys.executable, "-m", "sandbox.demo", *options],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_short_demo_shows_every_channel_within_80_columns():
    ran = demo("--seconds", "3", "--rate", "300")
    assert (ran.returncode, ran.stderr) == (0, "")
    for channel in CHANNELS:
        assert re.search(rf"│ {channel} +│ +[1-9][\d,]* │ +\d+ │", ran.stdout), ran.stdout
    assert "4 subscribed" in ran.stdout
    assert "psubscribe 'stream:bybit_*'" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80


@pytest.mark.parametrize("options", [("--seconds", text) for text in ("0", "-1", "abc", "inf")] + [("--rate", "0")])
def test_a_wrong_number_is_one_sentence(options):
    ran = demo(*options)
    name, text = options
    message = f"python -m sandbox.demo: argument {name}: '{text}' is not a number above 0\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", message)


def test_log_lines_lose_date_and_level():
    line = "2026-11-24 19:49:03,282 INFO [Redis] Publishing to Redis at 127.0.0.1:23792"
    assert short(line) == "19:49:03 Redis: Publishing to Redis at 127.0.0.1:23792"
    assert short("Cannot start: no") == "Cannot start: no"


def test_prices_come_from_book_trades_and_ticker():
    frames = (
        ('"type":"delta","data":{"symbol":"X","bid1Price":"3"}', "-"),
        ('"type":"delta","data":{"symbol":"X","lastPrice":"4"}', "4"),
        ('"type":"snapshot","data":[{"p":"1"},{"p":"2"}]', "2"),
        ('"type":"snapshot","data":{"s":"X","b":[["9","1"],["10","1"]],"a":[["11","1"],["12","1"]]}', "10/11"),
        ('"type":"delta","data":{"s":"X","b":[["10","0"]],"a":[["10.5","2"]]}', "9/10.5"),
    )
    tally = Tally("X")
    for fields, price in frames:
        tally.add({"data": f'{{"topic":"any.X","ts":1,{fields}}}'})
        assert tally.price() == price
    tally.add({"data": '{"topic":"any.OTHER","ts":1,"type":"snapshot","data":[{"p":"7"}]}'})
    assert tally.price() == "9/10.5"
    assert (tally.total, len(tally.delays())) == (6, 6)
