"""python main.py --check: would the collector work here? python main.py --status: does the running one?

Both print a table for a person and return an exit code for a program: 0 if all is well, else 1.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from threading import Event, Thread
from time import monotonic
from typing import Any

import redis

from callbacks import CHANNELS, publisher
from conf.streams import StreamSpec
from relay.connection import close_all, stats
from relay.dispatch import raw
from relay.publisher import Publisher

# Seconds for every stream to have its first message.
FIRST_MESSAGE_TIMEOUT = 20.0

Row = tuple[str, str, str]


def report(asked: str, jobs: Mapping[str, StreamSpec], stop: Event) -> int:
    """Does what was asked for, "check" or "status", and returns the exit code.

    A func of the user's own is not tried. stop: set in the end.
    """
    if asked == "status":
        return status(publisher)
    # A kind without a snapshot may be quiet for long: that Bybit accepts its subscription is enough.
    trials = [_Trial(job, not job.kind.starts_with_snapshot) for job in jobs.values() if job.kind]
    own = [(job.name, "?", "a func of your own is not tried") for job in jobs.values() if not job.kind]
    rows = [*_redis(publisher, CHANNELS), *_streams(trials, stop), *own]
    _print(rows)
    return int(any(result == "FAILED" for _, result, _ in rows))


def status(publisher: Publisher) -> int:
    """Shows the hash in which a running collector keeps its state."""
    try:
        found = _ask(publisher, "HGETALL", publisher.status)
    except redis.RedisError as error:
        print(f"The state cannot be read from Redis at {publisher.address}: {error}")
        return 1
    if not found:
        print(f"No collector runs: there is no {publisher.status} in Redis at {publisher.address}")
        return 1
    streams = {name.decode(): json.loads(text) for name, text in zip(found[::2], found[1::2], strict=True)}
    heads = ("stream", "", "topics", "messages", "a second", "last", "delay p50", "p99", "connections", "gaps")
    _print([heads, *(_status_row(name, one) for name, one in sorted(streams.items()))])
    return int(not all(one["up"] for one in streams.values()))


def _status_row(name: str, one: dict[str, Any]) -> Sequence[str]:
    def shown(value: float | None, unit: float, text: str) -> str:
        return "-" if value is None else text.format(value * unit)

    return (
        name,
        "up" if one["up"] else "DOWN",
        f"{one['topics']}",
        f"{one['messages']:,}",
        f"{one['rate']:,.1f}",
        shown(one["age"], 1, "{:.1f} s ago"),
        shown(one["delay_p50"], 1000, "{:.1f} ms"),
        shown(one["delay_p99"], 1000, "{:.1f} ms"),
        f"{one['connects']}",
        f"{one['gaps']}",
    )


def _ask(publisher: Publisher, *command: str) -> Any:
    """The answer to one command on a connection of its own. Raises redis.RedisError."""
    connection = publisher.new_connection()
    try:
        connection.send_command(*command)
        return connection.read_response()
    finally:
        connection.disconnect()


def _redis(publisher: Publisher, channels: Sequence[str]) -> Iterable[Row]:
    what = f"Redis at {publisher.address}"
    connection = publisher.new_connection()

    def ask(*command: str) -> Any:
        connection.send_command(*command)
        try:
            return connection.read_response()
        except redis.ResponseError as error:
            return error

    try:
        connection.connect()
        role = ask("ROLE")
        info = ask("INFO", "server")
        limit = ask("CONFIG", "GET", "client-output-buffer-limit")
        denied = []
        if not isinstance(ask("MULTI"), redis.ResponseError):
            # Refused while it is queued or not at all, and then discarded: no subscriber gets anything.
            denied = [channel for channel in channels if isinstance(ask("PUBLISH", channel, ""), Exception)]
            ask("DISCARD")
        else:
            denied = ["without the right to MULTI this cannot be tried"]
    except (OSError, redis.RedisError) as error:
        yield what, "FAILED", str(error)
        return
    finally:
        connection.disconnect()
    lines = [] if isinstance(info, Exception) else info.decode().splitlines()
    versions = [
        line.replace("_version:", " ") for line in lines if line.startswith(("redis_version:", "valkey_version:"))
    ]
    yield what, "ok", versions[-1] if versions else "version not told"
    if isinstance(role, Exception):
        yield "  role", "?", str(role)
    else:
        master = role[0] == b"master"
        yield "  role", "ok" if master else "FAILED", role[0].decode() + ("" if master else ": publish to its master")
    known = all(channel in channels for channel in denied)
    yield "  right to publish", ("FAILED" if known else "?") if denied else "ok", ", ".join(denied or channels)
    if isinstance(limit, Exception):
        yield "  slow subscribers", "?", str(limit)
    else:
        yield "  slow subscribers", "ok", _limit(limit[1].decode())


def _limit(text: str) -> str:
    """client-output-buffer-limit, three numbers for each class of clients, in words."""
    words = text.split()
    at = words.index("pubsub")
    hard, soft, seconds = map(int, words[at + 1 : at + 4])
    if not hard:
        return "are never cut off"
    return f"are cut off {hard / 2**20:g} MiB behind, or {soft / 2**20:g} MiB for {seconds} s"


def _streams(trials: "Sequence[_Trial]", stop: Event) -> Iterable[Row]:
    deadline = monotonic() + FIRST_MESSAGE_TIMEOUT
    while monotonic() < deadline and not all(trial.done() for trial in trials):
        stop.wait(0.05)
    rows = [trial.row() for trial in trials]
    stop.set()
    close_all()
    for trial in trials:
        trial.thread.join(1)
    return rows


class _Trial:
    """A stream opened once, on a thread of its name, to see whether its first message comes. quiet: it need not."""

    def __init__(self, job: StreamSpec, quiet: bool) -> None:
        self._job, self._quiet = job, quiet
        self._why = ""  # it ended
        self._began = monotonic()
        self._first: float | None = None  # monotonic time of its first message
        self.thread = Thread(target=self._run, name=job.name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        def note(_message: bytes) -> None:
            self._first = self._first or monotonic()

        try:
            self._job.func(*self._job.args[:-1], raw(note), **self._job.options)
        except Exception as error:
            self._why = str(error) or repr(error)

    def done(self) -> bool:
        seen = stats[self._job.name]
        return bool(self._why or not self.thread.is_alive() or (seen.answered and (self._first or self._quiet)))

    def row(self) -> Row:
        name, topics, asked = self._job.name, stats[self._job.name].topics, self._job.args[0]
        if self._why:
            return name, "FAILED", self._why
        if isinstance(asked, list) and topics < len(asked):
            return name, "FAILED", f"{topics} of {len(asked)} topics subscribed"
        if self._first:
            return name, "ok", f"topics: {topics}, the first message after {self._first - self._began:.1f} s"
        if self._quiet:
            return name, "ok", f"topics: {topics}, subscribed; nothing has happened yet"
        return name, "FAILED", f"subscribed, but no message within {FIRST_MESSAGE_TIMEOUT:g} s"


def _print(rows: Iterable[Sequence[str]]) -> None:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
