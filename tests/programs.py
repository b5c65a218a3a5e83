"""The real program in a process of its own, and the topics and channels of what it relays."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from conftest import eventually

ROOT = Path(__file__).resolve().parent.parent
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (\w+) \[([^]]+)\] (.*)")
CHANNELS = {"orderbook": "orderbook", "publicTrade": "trades", "tickers": "ticker", "allLiquidation": "liquidations"}


class Program:
    """`python main.py`, or another script, run from the repository's root; killed at the end of a `with`.

    Args:
        settings: environment variables beside our own.
        directory: where stdout and stderr go, for `output` and `log`; None = to ours.
        script, arguments: of the command line.
    """

    def __init__(self, settings, directory=None, script="main.py", arguments=()):
        self._directory = directory
        stdout = stderr = None
        if directory:
            stdout, stderr = (directory / "stdout").open("wb"), (directory / "stderr").open("wb")
        try:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *arguments],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in settings.items()},
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
            )
        finally:
            if directory:
                stdout.close()
                stderr.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()

    @property
    def log(self):
        return (self._directory / "stderr").read_text(encoding="utf-8")

    @property
    def output(self):
        return (self._directory / "stdout").read_text(encoding="utf-8")

    def lines(self, level=None):
        """(thread, text) of each line of the log; fails on a line that is not in the log's format."""
        found = [LOG_LINE.fullmatch(line) for line in self.log.splitlines()]
        assert all(found), self.log
        return [(line[2], line[3]) for line in found if level in (None, line[1])]

    def wait_for_log(self, text, times=1):
        """Waits until the log has `text`."""

        def logged():
            assert self.log.count(text) >= times, self.log
            return True

        eventually(logged, 20)

    def send_line(self):
        """Sends the line on stdin that the script waits for."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def wait(self, timeout=40.0):
        """Waits for the end of the process; returns the exit code and the seconds that took."""
        started = time.monotonic()
        return self.process.wait(timeout), time.monotonic() - started

    def stop(self, number=signal.SIGTERM):
        """Sends a signal and waits for the end, as wait() does."""
        self.process.send_signal(number)
        return self.wait(20)


def topic_of(payload):
    return json.loads(payload)["topic"]


def by_topic(payloads):
    """The payloads of each topic, in order."""
    found = defaultdict(list)
    for payload in payloads:
        found[topic_of(payload)].append(payload)
    return dict(found)


def channel_of(topic, prefix="stream:bybit"):
    """The channel on which messages of the topic are published."""
    return f"{prefix}_{CHANNELS[topic.partition('.')[0]]}"
