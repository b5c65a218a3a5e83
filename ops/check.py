"""python main.py --check: tests Redis, Bybit and every stream with these settings. Publishes nothing."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from typing import Any

import redis

from conf.streams import StreamSpec
from ops.rights import lease_problems
from ops.table import format_table
from relay.bybit.exchange import Exchange
from relay.dispatch import raw
from relay.kinds import Kind
from relay.redis.publisher import Publisher
from relay.stats import StreamStats

# Seconds for every stream to have its first message.
FIRST_MESSAGE_TIMEOUT = 20.0
# Seconds between two polls of the trials, and seconds for the thread of one to end.
POLL_INTERVAL, JOIN_TIMEOUT = 0.05, 1.0

# Rejected topics of a stream that are shown.
MAX_REJECTIONS = 3

OK, FAILED, UNKNOWN = "ok", "FAILED", "?"

Row = tuple[str, str, str]  # what is tested, one of the results above, details


def run_check(
    specs: Sequence[StreamSpec],
    exchange: Exchange,
    publisher: Publisher,
    channels: Sequence[str],
    requests: tuple[str, str],
    warnings: Sequence[str] = (),
    lease: tuple[str, str] | None = None,
) -> int:
    """Prints a table of what was tested. Returns the exit code: 0, or 1 if something failed.

    exchange: loses its sink, and is stopped in the end. publisher: not started; its Redis is asked over a connection
    of its own. channels: all must be publishable. requests: the channel of consumers' requests, and how those of the
    replies begin. warnings: of the settings. lease: its key and the name of the instance, where collectors share one.
    The main thread calls it.
    """
    exchange.sink = rejections = _Rejections()
    tested = [(spec, spec.kind) for spec in specs]
    trials = [_Trial(spec, kind, exchange.add_stream(spec.name)) for spec, kind in tested if kind]
    try:
        rows: list[Row] = [("Settings", UNKNOWN, warning) for warning in warnings]
        rows += _redis_rows(publisher, channels, requests)
        if lease:
            rows += _lease_rows(publisher, *lease, channels)
        deadline = monotonic() + FIRST_MESSAGE_TIMEOUT
        while monotonic() < deadline and not all(trial.is_done for trial in trials):
            exchange.stop.wait(POLL_INTERVAL)
        rows += bybit_rows(exchange.address, [trial.outcome(rejections) for trial in trials])
    finally:
        exchange.stop.set()
        exchange.close_all()
        for trial in trials:
            trial.thread.join(JOIN_TIMEOUT)
    rows += [(f"  {spec.name}", UNKNOWN, "your own function: not tested") for spec, kind in tested if not kind]
    print(*format_table(rows), sep="\n")
    return int(any(result == FAILED for _, result, _ in rows))


# Redis.


def _redis_rows(publisher: Publisher, channels: Sequence[str], requests: tuple[str, str]) -> Iterator[Row]:
    connection = publisher.new_connection()
    commands: list[tuple[str, ...]] = [("PUBLISH", channel, "") for channel in channels]
    commands += [("SUBSCRIBE", requests[0]), ("PUBLISH", f"{requests[1]}check", "")]

    def ask(*command: str) -> Any:
        """The reply to a command, or the error that Redis replies with."""
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
        denied = _denied(ask, commands)
    except (OSError, UnicodeError, redis.RedisError) as error:  # UnicodeError: the host is no name of a host
        yield "Redis", FAILED, f"{publisher.address}: {error}"
        return
    finally:
        connection.disconnect()
    yield "Redis", OK, f"{publisher.address}, {_version(info)}"
    if isinstance(role, redis.ResponseError):
        yield "  role", UNKNOWN, str(role)
    elif role[0] == b"master":
        yield "  role", OK, "master"
    else:
        yield "  role", FAILED, f"{role[0].decode()}: publish to its master"
    yield from _permission_rows(denied, channels, requests)
    if isinstance(limit, redis.ResponseError):
        yield "  slow subscribers", UNKNOWN, str(limit)
    else:
        yield "  slow subscribers", OK, describe_limit(limit[1].decode())


def _denied(ask: Callable[..., Any], commands: Iterable[tuple[str, ...]]) -> set[str] | redis.ResponseError:
    """Which of these commands are denied, as text, or why that cannot be told. None is executed."""
    transaction = ask("MULTI")
    if isinstance(transaction, redis.ResponseError):
        return transaction
    # A command without permission is rejected when it is queued; the others are discarded.
    denied = {" ".join(command[:2]) for command in commands if isinstance(ask(*command), redis.ResponseError)}
    ask("DISCARD")
    return denied


def _permission_rows(
    denied: set[str] | redis.ResponseError, channels: Sequence[str], requests: tuple[str, str]
) -> Iterator[Row]:
    if isinstance(denied, redis.ResponseError):
        yield "  permission to publish", UNKNOWN, f"cannot be tested: {denied}"
        return
    if missing := [channel for channel in channels if f"PUBLISH {channel}" in denied]:
        yield "  permission to publish", FAILED, f"denied for {', '.join(missing)}"
    else:
        yield "  permission to publish", OK, f"all {len(channels)} channels"
    needed = (f"SUBSCRIBE {requests[0]}", f"PUBLISH {requests[1]}check")
    if missing := [command for command in needed if command in denied]:
        yield "  snapshots on request", FAILED, f"denied: {' and '.join(missing)}"
    else:
        yield "  snapshots on request", OK, f"on {requests[0]}"


def _lease_rows(publisher: Publisher, key: str, name: str, channels: Sequence[str]) -> Iterator[Row]:
    try:
        problems = list(lease_problems(publisher, key, name, channels))
    except (OSError, UnicodeError, redis.RedisError):
        return  # the row of Redis says why it cannot be reached
    yield "  leader and standby", FAILED if problems else OK, "; ".join(problems) or f"all that {key} needs is allowed"


def _version(info: Any) -> str:
    lines = [] if isinstance(info, redis.ResponseError) else info.decode().splitlines()
    found = [line.replace("_version:", " ") for line in lines if line.startswith(("redis_version:", "valkey_version:"))]
    return found[-1] if found else "version unknown"


def describe_limit(text: str) -> str:
    """client-output-buffer-limit for a reader. text: class, hard limit, soft limit, seconds, for each class."""
    words = text.split()
    at = words.index("pubsub")
    hard, soft, seconds = map(int, words[at + 1 : at + 4])
    if not hard:
        return "never disconnected"
    return f"disconnected {hard / 2**20:g} MiB behind, or {soft / 2**20:g} MiB for {seconds} s"


# Bybit.


@dataclass(frozen=True)
class Outcome:
    """What came of the trial of a stream."""

    name: str
    symbols: Sequence[str]
    connected: bool
    subscribed: int  # topics
    rejections: Sequence[str]  # a topic and why, each
    starts_with_snapshot: bool
    first_message_after: float | None  # seconds
    failure: str  # why the trial ended, "" = it did not


class _Rejections:
    """Takes the place of the publisher as the sink of the exchange, so that nothing is published or buffered.

    Each stream's thread appends to a list of its own.
    """

    def __init__(self) -> None:
        self._by_stream: defaultdict[str, list[str]] = defaultdict(list)

    def flush(self) -> None:
        """Does nothing."""

    def announce(self, event: str, stream: str, topics: list[str], **fields: object) -> None:
        """Keeps the topics of a rejection, and why."""
        if event == "rejected":
            reason = str(fields["reason"])
            self._by_stream[stream] += [reason if topic in reason else f"{topic}: {reason}" for topic in topics]

    def of(self, stream: str) -> list[str]:
        """The rejections of a stream so far."""
        return list(self._by_stream.get(stream, []))


class _Trial:
    """A stream run once, on a thread of its name, to see whether its first message comes."""

    def __init__(self, spec: StreamSpec, kind: Kind, stats: StreamStats) -> None:
        self._spec, self._kind, self._stats = spec, kind, stats
        self._failure = ""
        self._started = monotonic()
        self._first_message_after: float | None = None
        self.thread = Thread(target=self._run, name=spec.name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        @raw
        def receive(_message: bytes) -> None:
            if self._first_message_after is None:
                self._first_message_after = monotonic() - self._started

        try:
            self._spec.func(*self._spec.args[:-1], receive, **self._spec.options)
            self._failure = "it ended"
        except Exception as error:
            self._failure = str(error) or repr(error)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to wait for."""
        if not self.thread.is_alive():
            return True
        return self._stats.answered and (self._first_message_after is not None or not self._kind.starts_with_snapshot)

    def outcome(self, rejections: _Rejections) -> Outcome:
        """The state of the trial now. Its connection must still be open: a closed one has no topics."""
        return Outcome(
            self._spec.name,
            self._spec.args[0],
            self._stats.connections > 0,
            self._stats.subscribed,
            rejections.of(self._spec.name),
            self._kind.starts_with_snapshot,
            self._first_message_after,
            self._failure,
        )


def bybit_rows(address: str, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """A row for Bybit, and one for each stream. A reason that keeps all from connecting is given once."""
    if not outcomes:
        return
    connected = any(outcome.connected for outcome in outcomes)
    reason = "" if connected else next((one.failure for one in outcomes if one.failure), "no connection in time")
    yield "Bybit", FAILED if reason else OK, f"{address}: {reason}" if reason else address
    for outcome in outcomes:
        result, details = _stream_result(outcome)
        yield f"  {outcome.name}", result, "not connected" if reason and outcome.failure in (reason, "") else details


def _stream_result(outcome: Outcome) -> tuple[str, str]:
    topics = len(outcome.symbols)
    if outcome.failure:
        return FAILED, outcome.failure
    if outcome.subscribed < topics:
        hint = "" if all(map(str.isupper, outcome.symbols)) else " (Bybit's symbols are in capitals)"
        if not outcome.rejections:
            return FAILED, f"{outcome.subscribed} of {topics} topics subscribed{hint}"
        more = len(outcome.rejections) - MAX_REJECTIONS
        reasons = "; ".join(outcome.rejections[:MAX_REJECTIONS]) + (f"; and {more} more" if more > 0 else "")
        return FAILED, f"{len(outcome.rejections)} of {topics} topics rejected{hint}: {reasons}"
    count = f"{topics} topic{'' if topics == 1 else 's'} subscribed"
    if outcome.first_message_after is not None:
        return OK, f"{count}, first message after {outcome.first_message_after:.1f} s"
    if outcome.starts_with_snapshot:
        return FAILED, f"{count}, but no message within {FIRST_MESSAGE_TIMEOUT:g} s"
    return OK, f"{count}; no message yet, as nothing has happened"
