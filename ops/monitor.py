"""What the operator sees of a running collector: lines in the log, systemd's view, and the state hash in Redis.

All of it runs on the main thread and only reads: the counters of the streams and the heartbeats of all threads.
"""

import json
import logging
from collections.abc import Callable, Mapping
from threading import Thread
from time import monotonic, time
from typing import Protocol

from conf.streams import RESERVED_NAME
from ops.systemd import sd_notify
from relay.stats import StreamStats, percentile

log = logging.getLogger(__name__)

# Seconds between two log lines of a stream, two notifications of systemd, two states of the state hash.
LOG_INTERVAL, NOTIFY_INTERVAL, STATE_INTERVAL = 60.0, 5.0, 5.0
# Seconds over which a rate is measured at least: states that follow each other faster repeat the last rate.
RATE_INTERVAL = 1.0
# Seconds that a thread may be overdue before it counts as stuck.
WATCHDOG_TIMEOUT = 60.0
# Seconds after which systemd gets READY=1 although a stream has no answer of Bybit: it arms the watchdog only then.
READY_TIMEOUT = 60.0


class MonitoredPublisher(Protocol):
    """What the monitor needs of a publisher."""

    @property
    def heartbeat_due(self) -> float: ...

    @property
    def backlog(self) -> int: ...

    def set_state(self, fields: Mapping[str, str]) -> None: ...


class MonitoredLeadership(Protocol):
    """What the monitor needs of a leadership."""

    heartbeat_due: float


class Rates:
    """Messages per second of each stream, measured from one call of update() to the next."""

    def __init__(self, now: float) -> None:
        self._since = now  # monotonic
        self._messages: dict[str, int] = {}  # of each stream at that time
        self._rates: dict[str, float] = {}

    def update(self, streams: Mapping[str, StreamStats], now: float) -> None:
        """Measures, unless less than RATE_INTERVAL has passed since the last time."""
        elapsed = now - self._since
        if elapsed < RATE_INTERVAL:
            return
        messages = {name: stats.messages for name, stats in streams.items()}
        self._rates = {name: (count - self._messages.get(name, 0)) / elapsed for name, count in messages.items()}
        self._since, self._messages = now, messages

    def of(self, name: str) -> float:
        """Messages per second; 0 for a stream that was not measured yet."""
        return self._rates.get(name, 0.0)


class Monitor:
    """Watches `streams` and `threads`, both by stream name, and `publisher`, whenever tick() is called.

    collector: what the state hash says of the collector as a whole. leadership: where collectors share a lease.
    The main thread makes it and calls tick(), and is the only one that adds to the two mappings.
    """

    def __init__(
        self,
        streams: Mapping[str, StreamStats],
        threads: Mapping[str, Thread],
        publisher: MonitoredPublisher,
        collector: Callable[[], Mapping[str, object]],
        leadership: MonitoredLeadership | None = None,
    ) -> None:
        self._streams, self._threads, self._publisher = streams, threads, publisher
        self._collector, self._leadership = collector, leadership
        now = monotonic()
        self._started = self._logged_at = self._notified_at = self._pushed_at = now
        self._log_rates, self._state_rates = Rates(now), Rates(now)
        self._ready = False
        self._stuck: set[str] = set()  # threads that were logged as stuck and have not come back
        self._pushed: dict[str, tuple[object, ...]] = {}  # what the last state was about

    def tick(self, now: float | None = None) -> None:
        """Does whatever is due. Never waits. now: monotonic, for tests."""
        now = monotonic() if now is None else now
        self._log_stuck_threads(now)
        self._push_state(now)
        if not self._ready and self._streams:
            self._notify_ready(now)
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            self._log_rates.update(self._streams, now)
            for name, stats in self._streams.items():
                log.info("%s: %s", name, log_line(stats, self._log_rates.of(name), now))
        if now - self._notified_at >= NOTIFY_INTERVAL:
            self._notified_at = now
            sd_notify(f"STATUS={self.summary(now)}" + ("\nWATCHDOG=1" if self.is_alive(now) else ""))

    def is_alive(self, now: float) -> bool:
        """Whether every thread runs and is at most WATCHDOG_TIMEOUT late."""
        stuck = any(_is_stuck(due, now) for due in self._heartbeats().values())
        return not stuck and all(thread.is_alive() for thread in self._threads.values())

    def summary(self, now: float) -> str:
        """The state of all streams in one line. A stream whose state is unknown is not counted as one."""
        states = [_is_up(stats, now) for stats in self._streams.values()]
        up, known = states.count(True), len(states) - states.count(None)
        messages = sum(stats.messages for stats in self._streams.values())
        backlog = self._publisher.backlog
        role = role_words(self._collector())
        return f"{role}{up} of {known} streams up, {messages:,} messages, {backlog:,} buffered for Redis"

    def _heartbeats(self) -> dict[str, float]:
        """heartbeat_due of each thread, by what the log calls it."""
        due = {f"Stream {name}": stats.heartbeat_due for name, stats in self._streams.items()}
        due["The publisher (thread Redis)"] = self._publisher.heartbeat_due
        if self._leadership:
            due["The leadership (thread Leader)"] = self._leadership.heartbeat_due
        return due

    def _log_stuck_threads(self, now: float) -> None:
        """Logs a thread once when it becomes stuck, and once when it is back."""
        for name, due in self._heartbeats().items():
            if _is_stuck(due, now) and name not in self._stuck:
                self._stuck.add(name)
                log.error("%s is stuck: its thread is overdue by %.0f s; does a call not return?", name, now - due)
            elif name in self._stuck and not _is_stuck(due, now):
                self._stuck.remove(name)
                log.warning("%s is no longer stuck", name)

    def _notify_ready(self, now: float) -> None:
        """Notifies systemd when all streams are ready, at the latest after READY_TIMEOUT."""
        waiting = [name for name, stats in self._streams.items() if stats.watched and not stats.answered]
        if waiting and now - self._started < READY_TIMEOUT:
            return
        self._ready = True
        if waiting:
            log.warning("Streams without an answer of Bybit after %.0f s: %s", READY_TIMEOUT, ", ".join(waiting))
        sd_notify(f"READY=1\nSTATUS={self.summary(now)}")

    def _push_state(self, now: float) -> None:
        """Gives the publisher the fields of the state hash: regularly, and at once when more than counters changed."""
        notable = {name: _notable(stats, now) for name, stats in self._streams.items()}
        collector = self._collector()
        notable[RESERVED_NAME] = tuple(collector.get(name) for name in ("role", "term", "ready"))
        if notable == self._pushed and now - self._pushed_at < STATE_INTERVAL:
            return
        self._pushed, self._pushed_at = notable, now
        self._state_rates.update(self._streams, now)
        timestamp = round(time() * 1000)
        fields = {
            name: state_fields(stats, self._state_rates.of(name), now, timestamp)
            for name, stats in self._streams.items()
        }
        fields[RESERVED_NAME] = {**collector, "ts": timestamp}
        self._publisher.set_state({name: json.dumps(values) for name, values in fields.items()})


def role_words(collector: Mapping[str, object]) -> str:
    """What the summary begins with where collectors share a lease: deploy/rolling-restart.sh reads it."""
    if "ready" not in collector:
        return ""
    return f"{collector['role']}, {'ready' if collector['ready'] else 'not ready'}: "


def _is_stuck(heartbeat_due: float, now: float) -> bool:
    return heartbeat_due + WATCHDOG_TIMEOUT <= now


def _is_up(stats: StreamStats, now: float) -> bool | None:
    """Whether messages can come. None: unknown, a function of the user's own that uses no Connection."""
    if not stats.watched and not stats.connections:
        return None
    return stats.subscribed > 0 and not _is_stuck(stats.heartbeat_due, now)


def _notable(stats: StreamStats, now: float) -> tuple[object, ...]:
    """What is worth a new state at once when it changes."""
    first_message = stats.last_message is not None
    return (
        _is_up(stats, now),
        stats.subscribed,
        stats.connections,
        stats.answered,
        stats.rejected,
        stats.callback_failures,
        first_message,
    )


def state_fields(stats: StreamStats, rate: float, now: float, timestamp: int) -> dict[str, object]:
    """A stream's field of the state hash. rate: messages per second; now: monotonic; timestamp: in milliseconds.

    `up` is null if nothing is known of the stream.
    `age` and the delays are in seconds: since the last message, and from a message's `ts` to its arrival.
    """
    delays = list(stats.delays)  # one call in C: the stream's thread cannot append in the middle of it
    p50, p99 = percentile(delays, 0.50), percentile(delays, 0.99)
    return {
        "up": _is_up(stats, now),
        "topics": stats.subscribed,
        "rejected": stats.rejected,
        "messages": stats.messages,
        "rate": round(rate, 1),
        "connections": stats.connections,
        "age": None if stats.last_message is None else round(max(0.0, now - stats.last_message), 3),
        "delay_p50": None if p50 is None else round(p50, 4),
        "delay_p99": None if p99 is None else round(p99, 4),
        "gaps": stats.gaps,
        "callback_failures": stats.callback_failures,
        "ignored": stats.ignored,
        "ts": timestamp,
    }


def log_line(stats: StreamStats, rate: float, now: float) -> str:
    """The counters of a stream for the log. Counters that should stay 0 are left out while they do."""
    age = "none yet" if stats.last_message is None else f"the last {max(0.0, now - stats.last_message):.1f} s ago"
    parts = [f"{stats.messages:,} messages, {rate:,.1f}/s, {age}", _count(stats.connections, "connection") + " so far"]
    parts += [_count(stats.rejected, "rejected topic")] * bool(stats.rejected)
    parts += [_count(stats.gaps, "sequence gap")] * bool(stats.gaps)
    parts += [_count(stats.callback_failures, "callback failure")] * bool(stats.callback_failures)
    parts += [_count(stats.ignored, "ignored message")] * bool(stats.ignored)
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
