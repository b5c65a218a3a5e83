"""The demo, as a newcomer starts it."""

import argparse
import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import eventually
from rich.console import Console

from sandbox import chaos, faults
from sandbox.board import Board, Row, summary
from sandbox.chaos import Fault
from sandbox.collectors import short
from sandbox.consumer import CHANNELS
from sandbox.faults import FAULTS
from sandbox.proof import Proof
from sandbox.subscriber import Picture, Subscriber, Tally

ROOT = Path(__file__).resolve().parent.parent
HOME, LEFT = "\x1b[H", "\x1b[?1049l"  # the beginning of a picture; the end of the alternate screen
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")
ROW = re.compile(r"(.{27}) +([\d.]+) +([\d,]+) +([\d,]+) +([\d,]+)")  # fault, silence, waited, twice, lost
TOPIC = "orderbook.50.BTCUSDT"


def run(*options):
    return subprocess.run(
        [sys.executable, "-m", "sandbox.demo", *options],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def lives(pid):
    """Whether a process does, and is not just waiting for somebody to take note of its end."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


class Terminal:
    """The demo on a terminal; killed at the end of a `with`."""

    def __init__(self, *options):
        self._master, self._slave = pty.openpty()
        self.resize(120, 40)
        self.modes = termios.tcgetattr(self._slave)
        self._bytes = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.demo", *options],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
            | {"TERM": "xterm"},
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            preexec_fn=self._is_its_terminal,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    @staticmethod
    def _is_its_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, columns, rows):
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self):
        while select.select([self._master], [], [], 0.05)[0]:
            self._bytes += os.read(self._master, 65536)
        self.text = self._bytes.decode(errors="replace")  # the last character may be only half there

    def picture(self):
        """The lines of the latest whole picture."""
        self.read()
        pictures = self.text.split(HOME)
        return CONTROLS.sub("", pictures[-2]).split("\n") if len(pictures) > 2 else []

    def shows(self, *words):
        """Waits for a picture with all of these; returns its lines."""

        def found():
            lines = self.picture()
            assert all(word in "\n".join(lines) for word in words), lines
            return lines

        return eventually(found, 20)

    def ends(self):
        """Presses Ctrl+C; returns the exit code and what stays on the terminal."""
        os.write(self._master, b"\x03")

        def ended():
            self.read()
            return self.process.poll() is not None

        eventually(ended, 15)
        self.read()
        assert termios.tcgetattr(self._slave) == self.modes
        assert self.text.count(LEFT) == 1
        assert self.text.rindex("\x1b[?25h") > self.text.rindex("\x1b[?25l"), "the cursor is seen again"
        return self.process.returncode, CONTROLS.sub("", self.text.partition(LEFT)[2])

    def family(self):
        """The processes that the demo has started, and theirs."""
        found, new = set(), {self.process.pid}
        while new:
            found |= new
            tasks = [task for pid in new for task in Path(f"/proc/{pid}/task").glob("*/children")]
            new = {int(pid) for task in tasks for pid in task.read_text().split()} - found
        return found - {self.process.pid}


def test_a_short_demo_shows_every_channel_within_80_columns():
    ran = run("--seconds", "3", "--rate", "300")
    assert (ran.returncode, ran.stderr) == (0, "")
    for channel in (*CHANNELS, "all"):
        assert re.search(rf"^{channel} +[1-9][\d,]* +\d+ +[\d.]+ +[\d.]+ +[\d.]+$", ran.stdout, re.MULTILINE)
    sent, arrived = re.search(r"lost +0 \(the exchange sent ([\d,]+), ([\d,]+) arrived\)", ran.stdout).groups()
    assert sent == arrived
    for words in (
        "4 subscribed\n",
        "psubscribe 'stream:bybit_*'",
        "make demo CHAOS=1 ",
        "make dashboard ",
        "make run ",
    ):
        assert words in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_the_demo_fits_a_terminal_of_any_size_and_leaves_it_as_it_was():
    with Terminal() as terminal:
        for columns, rows in ((120, 40), (80, 24), (60, 14)):
            terminal.resize(columns, rows)
            eventually(lambda size=(columns, rows): is_of(terminal.picture(), size))
            lines = terminal.shows(*CHANNELS, "psubscribe 'stream:bybit_*'", "Ctrl+C ends", "│ messages │")
            assert is_of(lines, (columns, rows))
            assert "…" not in "".join(lines)
            assert ("price of BTCUSDT" in "".join(lines)) is (columns >= 80)
        code, stays = terminal.ends()
    assert code == 0
    assert re.search(r"^lost +0 ", stays, re.MULTILINE)
    assert max(map(len, stays.split("\n"))) <= 60


def is_of(lines, size):
    """Whether it fills a terminal of that size, columns and rows, and no more."""
    return (max(map(len, lines), default=0), len(lines)) == size


@pytest.mark.parametrize("options", [("--seconds", text) for text in ("0", "-1", "abc", "inf")] + [("--rate", "0")])
def test_a_wrong_number_is_one_sentence(options):
    ran = run(*options)
    name, text = options
    message = f"python -m sandbox.demo: argument {name}: '{text}' is not a number above 0\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", message)


def test_log_lines_lose_date_and_level():
    line = "2026-11-24 19:49:03,282 INFO [Redis] Publishing to Redis at 127.0.0.1:23792"
    assert short(line) == "19:49:03 Redis: Publishing to Redis at 127.0.0.1:23792"
    assert short("Cannot start: no") == "Cannot start: no"


def test_the_oldest_lines_of_the_log_give_way_whole():
    console = Console(file=io.StringIO(), width=60, height=14)
    log = ["the oldest", "x" * 70, "the newest"]
    with console.capture() as captured:
        console.print(Picture(Subscriber("BTCUSDT"), log, 6379))
    assert captured.get().splitlines()[-3:] == ["x" * 60, "x" * 10, "the newest"]


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


def book(number, kind="delta"):
    return json.dumps({"topic": TOPIC, "type": kind, "ts": 1, "data": {"b": [], "a": [], "u": number}})


def test_a_gap_in_an_order_book_is_counted_and_a_loss_said():
    subscriber = Subscriber("BTCUSDT")
    tally = subscriber.tallies["orderbook"]
    for number, kind in ((7, "snapshot"), (8, "delta"), (10, "delta"), (11, "delta"), (3, "snapshot"), (4, "delta")):
        tally.add({"data": book(number, kind)})
    assert tally.gaps == 1
    text = subscriber.summary(1, {}, 9)
    assert "lost         3 (the exchange sent 9, 6 arrived)" in text
    assert "book gaps    1 " in text
    assert "lost         not known" in subscriber.summary(1, {}, None)


def test_the_heartbeat_is_no_event():
    subscriber = Subscriber("BTCUSDT")
    for event in ("subscribed", "alive", "alive"):
        subscriber._note_event({"data": json.dumps({"event": event})})
    assert "events       1 subscribed\n" in subscriber.summary(1, subscriber.events, 0)


# Chaos.


@pytest.mark.timeout(120)  # about 20 s, of which a busy machine makes more
def test_everything_breaks_and_nothing_is_lost():
    ran = run("--chaos", "--pace", "0.05")
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    told, _, end = ran.stdout.partition("\nfault ")
    for fault in FAULTS:
        assert f": {fault.name}. {fault.words}" in told
    rows = {found[1].strip(): found for line in end.splitlines() if (found := ROW.fullmatch(line))}
    assert list(rows) == [fault.name for fault in FAULTS]
    assert {row[5] for row in rows.values()} == {"0"}
    assert float(rows["kill -9 the leader"][2]) > 0.5
    assert int(rows["kill -9 the leader"][3].replace(",", "")) > 50, "these waited"
    assert int(re.search(r"^0 of ([\d,]+) messages lost", end, re.MULTILINE)[1].replace(",", "")) > 1000


def test_what_is_lost_is_said(monkeypatch, capsys):
    """Both collectors lose Bybit at once: what it sends until they are back is gone."""

    def cut_both(stage):
        for name in "ab":
            for connection in stage.connections(name):
                connection.drop()
        stage.wait(lambda: not any(map(stage.connections, "ab")), "Nothing was cut")
        stage.wait(lambda: all(len(stage.connections(name)) == 4 for name in "ab"), "They do not come back")

    monkeypatch.setattr(faults, "FAULTS", (Fault("both are cut", 1, "", cut_both),))
    monkeypatch.setattr(chaos, "PATIENCE", 0.5)
    options = argparse.Namespace(symbols="BTCUSDT", rate=200.0, pace=0.1, seconds=60.0)
    assert faults.run(options, []) == 1
    said = capsys.readouterr().out
    lost = int(next(filter(None, map(ROW.fullmatch, said.splitlines())))[5].replace(",", ""))
    assert lost > 10
    assert f"\nFAILED: {lost:,} lost; " in said


def test_ctrl_c_in_the_middle_leaves_nothing_behind():
    with Terminal("--chaos", "--pace", "0.2") as terminal:
        terminal.resize(60, 14)
        lines = terminal.shows("collector a", "collector b", "Next 1/5", "rolling restart")
        assert is_of(lines, (60, 14)), "\n".join(lines)
        family = terminal.family()
        assert len(family) >= 4, "two collectors, a Redis, a subscriber"
        code, stays = terminal.ends()
        assert code == 130
        assert "nothing is proved" in stays
        assert "Traceback" not in terminal.text
        # multiprocessing's tracker of resources ends itself when it notices that nobody needs it
        eventually(lambda: not any(map(lives, family)))


def made(count):
    """The truth of a book, and a consumer that received all: one message each 10 ms."""
    truth = [(n / 100, book(n)) for n in range(1, count + 1)]
    return {TOPIC: truth}, [(at + 0.001, text.encode()) for at, text in truth]


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (lambda data: data, []),
        (lambda data: data[:70] + data[71:], ["1 lost"]),
        (lambda data: [*data[:70], data[71], data[70], *data[72:]], ["1 out of order"]),
        (lambda data: [*data, (2, book(500).encode())], ["1 that the exchange never made"]),
        (lambda data: [*data, data[70]], []),
        (lambda data: [], ["100 lost"]),
    ],
)
def test_what_speaks_against_the_proof(change, faults):
    truth, data = made(100)
    proof = Proof(0.0)
    outcome = proof.add(proof.compare(truth, change(data), 1.5), truth, change(data), 0.6)
    assert proof.faults == faults
    assert outcome.lost == (int(faults[0].split()[0]) if faults and "lost" in faults[0] else 0)
    text = summary(Board(200, [Row("fault", "done", outcome)]), proof)
    assert ("FAILED" in text, "0 of 100 messages lost" in text) == (bool(faults), not faults)


def test_nothing_compared_proves_nothing():
    assert Proof(0.0).faults == ["nothing compared"]


def test_what_a_fault_costs():
    """From 0.6 to 0.9 nothing comes, then all at once; the last one of before comes again."""
    truth, data = made(100)
    late = [(max(at, 0.9) if at > 0.605 else at, text) for at, text in data]
    proof = Proof(0.0)
    again = [*late[:60], late[59], *late[60:]]
    assert proof.add(proof.compare(truth, late[:50], 0.505), truth, late[:50], 0.2).waited <= 2
    outcome = proof.add(proof.compare(truth, again, 1.5), truth, again, 0.61)
    assert outcome.silence == pytest.approx(0.3, abs=0.02)
    assert outcome.waited == pytest.approx(30, abs=2)
    assert (outcome.twice, outcome.lost) == (1, 0)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(("width", "height"), [(60, 14), (80, 24), (120, 40)])
def test_the_board_fits_and_cuts_no_name(width, height, encoding):
    truth, data = made(100)
    proof = Proof(0.0)
    outcome = proof.add(proof.compare(truth, data, 1.5), truth, data, 0.5)
    states = ("done", "done", "fails", "runs", "waits")
    rows = [
        Row(fault.name, state, outcome if state in ("done", "fails") else None)
        for fault, state in zip(FAULTS, states, strict=True)
    ]
    board = Board(
        200, rows, collectors=[("a", "leads", 4), ("b", "connects", 0)], total="so far 0 of 100 messages lost"
    )
    board.rates.extend([0, 100, 200, 400] * 40)
    for fault in FAULTS:
        board.headline, board.words = f"Next 1/5: {fault.name}.", fault.words
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        console = Console(file=output, width=width, height=height)
        console.print(board)
        output.flush()
        lines = output.buffer.getvalue().decode(encoding).rstrip("\n").split("\n")
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        assert all(any(row.cells in line for line in lines) for row in rows)
        assert "so far 0 of 100 messages lost" in lines[-1]
