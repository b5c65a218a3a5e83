"""The operator's end: signals, the lines of the log, systemd's view, the status hash.

Of the streams and the publisher it only reads what they say of themselves. Main thread, but for state().
"""

import argparse
import json
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from threading import Thread
from time import monotonic, time

from conf import settings
from relay.connection import Stats, stats
from relay.publisher import Publisher

log = logging.getLogger(__name__)

# Seconds between two lines a stream in the log, and between two words to systemd.
REPORT_INTERVAL, NOTIFY_INTERVAL = 60.0, 5.0


def asked_for(arguments: Sequence[str]) -> str | None:
    """What the command line asks for: check, status, or the collector (None). Ends the program for --help."""
    parser = argparse.ArgumentParser(description="Bybit's public market data into Redis Pub/Sub; settings are in .env.")
    either = parser.add_mutually_exclusive_group()
    for name, text in (
        ("check", "try Redis and Bybit, and say whether all is well"),
        ("status", "show the running one"),
    ):
        either.add_argument(f"--{name}", dest="asked", action="store_const", const=name, help=text)
    asked: str | None = parser.parse_args(arguments).asked
    return asked


def configure_log(level: str) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s [%(threadName)s] %(message)s")
    for chatty in ("websocket", "pybit"):  # they repeat what we say, with whole frames and pages in it
        logging.getLogger(chatty).propagate = False
    for warning in settings.WARNINGS:
        log.warning("%s", warning)


def catch(signals: list[signal.Signals]) -> None:
    """From now on the first SIGINT or SIGTERM is appended to `signals`, and a second one kills."""
    ending = (signal.SIGINT, signal.SIGTERM)

    def handle(number: int, _frame: object) -> None:
        # Plain assignments and no more: this runs between any two instructions of the main thread.
        signals.append(signal.Signals(number))
        for each in ending:
            signal.signal(each, signal.SIG_DFL)

    for each in ending:
        signal.signal(each, handle)


def notify(text: str) -> None:
    """Tells systemd, if it started us: https://www.freedesktop.org/software/systemd/man/sd_notify.html."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(text.encode(), "\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        log.warning("systemd cannot be told %s: %s", text.split("\n")[0], error)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Watch:
    """Looks at the streams in `threads` (by name) and at the publisher, as often as the main thread calls look()."""

    def __init__(self, threads: Mapping[str, Thread], publisher: Publisher) -> None:
        self._threads, self._publisher = threads, publisher
        self._reported = self._stated = self._notified = monotonic()
        self._before: dict[str, int] = {}  # messages of each stream at the last report
        self._before_state: dict[str, int] = {}  # and at the last state()
        self._ready = False
        publisher.state = self.state

    def look(self) -> None:
        """Says what is due."""
        now = monotonic()
        if not self._ready and self._threads and all(stats[name].answered for name in self._threads):
            self._ready = True
            notify("READY=1\nSTATUS=" + self.summary())
        if now - self._reported >= REPORT_INTERVAL:
            for name in list(self._threads):
                log.info("%s: %s", name, self._line(name, now - self._reported))
            self._reported = now
        if now - self._notified >= NOTIFY_INTERVAL:
            self._notified = now
            turning = self._publisher.due > now and all(
                thread.is_alive() and stats[name].due > now for name, thread in self._threads.items()
            )
            notify("STATUS=" + self.summary() + ("\nWATCHDOG=1" if turning else ""))

    def summary(self) -> str:
        """The state of all in a line."""
        up = sum(stats[name].topics > 0 for name in self._threads)
        messages = sum(stats[name].messages for name in self._threads)
        return f"{up} of {len(self._threads)} streams up, {messages:,} messages, {self._publisher.backlog} for Redis"

    def _line(self, name: str, seconds: float) -> str:
        seen = stats[name]
        rate = (seen.messages - self._before.get(name, 0)) / seconds
        self._before[name] = seen.messages
        age = "none yet" if seen.last is None else f"the last {monotonic() - seen.last:.1f} s ago"
        return f"{seen.messages:,} messages, {rate:,.1f}/s, {age}; {seen.connects} connections so far"

    def state(self) -> dict[str, str]:
        """The status hash: a JSON object for each stream. Runs on the publisher thread."""
        now = monotonic()
        seconds, self._stated = max(now - self._stated, 1e-3), now
        return {name: json.dumps(self._fields(name, stats[name], seconds)) for name in list(self._threads)}

    def _fields(self, name: str, seen: Stats, seconds: float) -> dict[str, object]:
        rate = (seen.messages - self._before_state.get(name, 0)) / seconds
        self._before_state[name] = seen.messages
        delays = list(seen.delays)
        return {
            "up": seen.topics > 0,
            "topics": seen.topics,
            "messages": seen.messages,
            "rate": round(rate, 1),  # messages a second
            "connects": seen.connects,
            "age": None if seen.last is None else round(monotonic() - seen.last, 3),  # seconds
            "delay_p50": round(percentile(delays, 0.50), 4) if delays else None,  # seconds from `ts` to here
            "delay_p99": round(percentile(delays, 0.99), 4) if delays else None,
            "gaps": seen.gaps,
            "ts": round(time() * 1000),
        }
