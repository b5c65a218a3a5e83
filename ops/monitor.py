"""What the operator sees of a running collector: lines in the log, systemd's view, and the state hash in Redis.

All of it runs on the main thread and only reads: the counters of the streams and the heartbeats of all threads.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
from time import monotonic, time
from typing import Protocol

from conf.streams import RESERVED_NAME
from ops.rows import Row, is_stuck, rows
from ops.systemd import sd_notify
from relay.stats import StreamStats

log = logging.getLogger(__name__)

# Seconds between two log lines of a stream, two notifications of systemd, two states of the state hash.
LOG_INTERVAL, NOTIFY_INTERVAL, STATE_INTERVAL = 60.0, 5.0, 5.0
# Seconds over which a rate is measured at least: states that follow each other faster repeat the last rate.
RATE_INTERVAL = 1.0
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

    def update(self, entries: Sequence[Row], now: float) -> None:
        """Measures, unless less than RATE_INTERVAL has passed since the last time."""
        elapsed = now - self._since
        if elapsed < RATE_INTERVAL:
            return
        messages = {row.name: row.total.messages for row in entries}
        # A stream that was removed, and came back, begins at 0.
        self._rates = {name: max(0, count - self._messages.get(name, 0)) / elapsed for name, count in messages.items()}
        self._since, self._messages = now, messages

    def of(self, name: str) -> float:
        """Messages per second; 0 for a stream that was not measured yet."""
        return self._rates.get(name, 0.0)


class Monitor:
    """Watches `streams` and `threads`, both by the name of a connection, and `publisher`, whenever tick() is called.

    collector: what the state hash says of the collector as a whole. leadership: where collectors share a lease.
    wanted: how many topics each connection should have, None where that is not known. retired: what connections had
    done that are no more, by entry. The main thread makes it and calls tick(), and is the only one that changes these.
    """

    def __init__(
        self,
        streams: Mapping[str, StreamStats],
        threads: Mapping[str, Thread],
        publisher: MonitoredPublisher,
        collector: Callable[[], Mapping[str, object]],
        leadership: MonitoredLeadership | None = None,
        wanted: Callable[[], Mapping[str, int | None]] = dict,
        retired: Mapping[str, StreamStats] | None = None,
    ) -> None:
        self._streams, self._threads, self._publisher = streams, threads, publisher
        self._collector, self._leadership = collector, leadership
        self._rows: Callable[[float], list[Row]] = lambda now: rows(streams, wanted(), retired or {}, now)
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
        entries = self._rows(now)
        self._push_state(entries, now)
        if not self._ready and entries:
            self._notify_ready(entries, now)
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            self._log_rates.update(entries, now)
            for row in entries:
                log.info("%s: %s", row.name, row.log_line(self._log_rates.of(row.name), now))
        if now - self._notified_at >= NOTIFY_INTERVAL:
            self._notified_at = now
            sd_notify(f"STATUS={self.summary(entries)}" + ("\nWATCHDOG=1" if self.is_alive(now) else ""))

    def is_alive(self, now: float) -> bool:
        """Whether every thread runs and is at most WATCHDOG_TIMEOUT late."""
        stuck = any(is_stuck(due, now) for due in self._heartbeats().values())
        return not stuck and all(thread.is_alive() for thread in self._threads.values())

    def summary(self, entries: Sequence[Row]) -> str:
        """The state of all streams in one line. A stream whose state is unknown is not counted as one."""
        states = [row.up for row in entries]
        up, known = states.count(True), len(states) - states.count(None)
        messages = sum(row.total.messages for row in entries)
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
            if is_stuck(due, now) and name not in self._stuck:
                self._stuck.add(name)
                log.error("%s is stuck: its thread is overdue by %.0f s; does a call not return?", name, now - due)
            elif name in self._stuck and not is_stuck(due, now):
                self._stuck.remove(name)
                log.warning("%s is no longer stuck", name)

    def _notify_ready(self, entries: Sequence[Row], now: float) -> None:
        """Notifies systemd when all streams are ready, at the latest after READY_TIMEOUT."""
        waiting = [row.name for row in entries if row.awaited]
        if waiting and now - self._started < READY_TIMEOUT:
            return
        self._ready = True
        if waiting:
            log.warning("Streams without an answer of Bybit after %.0f s: %s", READY_TIMEOUT, ", ".join(waiting))
        sd_notify(f"READY=1\nSTATUS={self.summary(entries)}")

    def _push_state(self, entries: Sequence[Row], now: float) -> None:
        """Gives the publisher the fields of the state hash: regularly, and at once when more than counters changed."""
        notable = {row.name: row.notable() for row in entries}
        collector = self._collector()
        notable[RESERVED_NAME] = tuple(collector.get(name) for name in ("role", "term", "ready"))
        if notable == self._pushed and now - self._pushed_at < STATE_INTERVAL:
            return
        self._pushed, self._pushed_at = notable, now
        self._state_rates.update(entries, now)
        timestamp = round(time() * 1000)
        fields = {row.name: row.fields(self._state_rates.of(row.name), now, timestamp) for row in entries}
        fields[RESERVED_NAME] = {**collector, "ts": timestamp}
        self._publisher.set_state({name: json.dumps(values) for name, values in fields.items()})


def role_words(collector: Mapping[str, object]) -> str:
    """What the summary begins with where collectors share a lease: deploy/rolling-restart.sh reads it."""
    if "ready" not in collector:
        return ""
    return f"{collector['role']}, {'ready' if collector['ready'] else 'not ready'}: "
