"""--check: runs each stream once, without publishing anything, to see whether its first message comes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from threading import Thread
from time import monotonic
from typing import NamedTuple

from conf.streams import StreamSpec
from ops.table import FAILED, OK, Row
from relay.bybit.exchange import Exchange
from relay.dispatch import raw
from relay.kinds import Kind
from relay.stats import StreamStats, stream_of

# Seconds for every stream to have its first message.
FIRST_MESSAGE_TIMEOUT = 20.0
# Seconds between two polls of the trials, and seconds for the thread of one to end.
POLL_INTERVAL, JOIN_TIMEOUT = 0.05, 1.0

# Rejected topics of a stream that are shown.
MAX_REJECTIONS = 3


class Outcome(NamedTuple):
    """What came of the trial of a stream, or of one of its connections."""

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
            self._by_stream[stream_of(stream)] += [
                reason if topic in reason else f"{topic}: {reason}" for topic in topics
            ]

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
        try:
            self.thread.start()
        except RuntimeError as error:
            self._failure = f"no thread to be had: {error}"

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

    @property
    def stream(self) -> str:
        """The entry of STREAMS that its connection belongs to."""
        return stream_of(self._spec.name)

    def outcome(self) -> Outcome:
        """The state of the trial now, without rejections. Its connection must still be open: a closed one has no
        topics.
        """
        return Outcome(
            self.stream,
            self._spec.args[0],
            self._stats.connections > 0,
            self._stats.subscribed,
            [],
            self._kind.starts_with_snapshot,
            self._first_message_after,
            self._failure,
        )


class Trials:
    """The streams, run once. Made by the main thread.

    exchange: loses its sink, and is stopped in the end.
    """

    def __init__(self, specs: Iterable[StreamSpec], exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.sink = self._rejections = _Rejections()
        self._trials = [
            _Trial(spec, spec.kind, exchange.add_stream(spec.name)) for spec in specs if spec.kind is not None
        ]

    def wait(self) -> None:
        """Waits until each stream has had its first message, for FIRST_MESSAGE_TIMEOUT at most."""
        deadline = monotonic() + FIRST_MESSAGE_TIMEOUT
        while monotonic() < deadline and not all(trial.is_done for trial in self._trials):
            self._exchange.stop.wait(POLL_INTERVAL)

    def outcomes(self) -> list[Outcome]:
        """What came of each stream: of all its connections."""
        parts: defaultdict[str, list[Outcome]] = defaultdict(list)
        for trial in self._trials:
            parts[trial.stream].append(trial.outcome())
        return [merged(found)._replace(rejections=self._rejections.of(name)) for name, found in parts.items()]

    def stop(self) -> None:
        """Ends them."""
        self._exchange.stop.set()
        self._exchange.close_all()
        for trial in self._trials:
            if trial.thread.ident is not None:  # it was started
                trial.thread.join(JOIN_TIMEOUT)


def merged(parts: Sequence[Outcome]) -> Outcome:
    """What came of a stream with several connections. Its first message has come when each of them had one that should
    begin with one.
    """
    times = [one.first_message_after for one in parts]
    came = [seconds for seconds in times if seconds is not None]
    complete = bool(came) and (len(came) == len(parts) or not parts[0].starts_with_snapshot)
    return Outcome(
        parts[0].name,
        [symbol for one in parts for symbol in one.symbols],
        all(one.connected for one in parts),
        sum(one.subscribed for one in parts),
        [reason for one in parts for reason in one.rejections],
        parts[0].starts_with_snapshot,
        max(came) if complete else None,
        next((one.failure for one in parts if one.failure), ""),
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
