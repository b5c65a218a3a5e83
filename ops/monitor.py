"""What the operator sees of a running collector: lines in the log, systemd's view, and the state hash in Redis.

All of it runs on the main thread and only reads: the counters of the streams and the heartbeats of all threads.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Protocol

from ops.rows import Row, is_stuck, rows
from ops.state import Rates, State
from ops.systemd import sd_notify
from relay.log import Names
from relay.stats import StreamStats, stream_of

log = logging.getLogger(__name__)

# Seconds between two log lines of a stream; between two notifications of systemd, events `alive`, beats of the pulse.
LOG_INTERVAL, NOTIFY_INTERVAL = 60.0, 5.0
# Of a stream's field of the state hash, what its line in the log has for machines.
LOGGED = ("messages", "rate", "age", "connections", "rejected", "gaps", "callback_failures", "ignored")
# Seconds after which systemd gets READY=1 although a stream has no answer of Bybit: it arms the watchdog only then.
READY_TIMEOUT = 60.0


class MonitoredPublisher(Protocol):
    """What the monitor needs of a publisher."""

    @property
    def heartbeat_due(self) -> float: ...

    @property
    def backlog(self) -> int: ...


class MonitoredLeadership(Protocol):
    """What the monitor needs of a leadership."""

    heartbeat_due: float


class Pulse:
    """The file that is touched while every thread turns, for health checks that do not ask Redis. path: "" = none."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_failing = False

    def beat(self) -> None:
        """Touches it. Never raises: without it the collector does its work all the same."""
        if not self._path:
            return
        try:
            Path(self._path).touch()
        except OSError as error:
            if not self._is_failing:
                log.warning("Cannot touch PULSE_FILE: %(reason)s", {"reason": error})
            self._is_failing = True
        else:
            self._is_failing = False


class Monitor:
    """Watches `streams` and `threads`, both by the name of a connection, and `publisher`, whenever tick() is called.

    state: what writes the state hash. leadership: where collectors share a lease.
    wanted: how many topics each connection should have, None where that is not known. retired: what connections had
    done that are no more, by entry. The main thread makes it and calls tick(), and is the only one that changes these.
    beat: tells consumers how many streams are up, of how many. pulse: the path of the pulse file, "" = none.
    """

    def __init__(
        self,
        streams: Mapping[str, StreamStats],
        threads: Mapping[str, Thread],
        publisher: MonitoredPublisher,
        state: State,
        leadership: MonitoredLeadership | None = None,
        wanted: Callable[[], Mapping[str, int | None]] = dict,
        retired: Mapping[str, StreamStats] | None = None,
        beat: Callable[[int, int], None] = lambda _up, _streams: None,
        pulse: str = "",
    ) -> None:
        self._streams, self._threads, self._publisher = streams, threads, publisher
        self._state, self._leadership = state, leadership
        self._beat, self._pulse = beat, Pulse(pulse)
        self._rows: Callable[[float], list[Row]] = lambda now: rows(streams, wanted(), retired or {}, now)
        now = monotonic()
        self._started = self._logged_at = self._notified_at = now
        self._log_rates = Rates(now)
        self._ready = False
        self._stuck: set[tuple[str, str]] = set()  # threads that were logged as stuck and have not come back

    def tick(self, now: float | None = None) -> None:
        """Does whatever is due. Never waits. now: monotonic, for tests."""
        now = monotonic() if now is None else now
        self._log_stuck_threads(now)
        entries = self._rows(now)
        is_alive = self.is_alive(now)
        self._state.push(entries, is_alive, now)
        if not self._ready and entries:
            self._notify_ready(entries, now)
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            self._log_rates.update(entries, now)
            for row in entries:
                rate = self._log_rates.of(row.name)
                numbers = row.fields(rate, now, 0)
                named = {"stream": row.name, "counters": row.log_line(rate, now)}
                log.info("%(stream)s: %(counters)s", named | {name: numbers[name] for name in LOGGED})
        if now - self._notified_at >= NOTIFY_INTERVAL:
            self._notified_at = now
            sd_notify(f"STATUS={self.summary(entries)}" + ("\nWATCHDOG=1" if is_alive else ""))
            if is_alive:
                self._pulse.beat()
            self._beat(*streams_up(entries))

    def is_alive(self, now: float) -> bool:
        """Whether every thread runs and is at most WATCHDOG_TIMEOUT late."""
        stuck = any(is_stuck(due, now) for due in self._heartbeats().values())
        return not stuck and all(thread.is_alive() for thread in self._threads.values())

    def summary(self, entries: Sequence[Row]) -> str:
        """The state of all streams in one line. A stream whose state is unknown is not counted as one."""
        up, known = streams_up(entries)
        messages = sum(row.total.messages for row in entries)
        backlog = self._publisher.backlog
        role = role_words(self._state.collector())
        return f"{role}{up} of {known} streams up, {messages:,} messages, {backlog:,} buffered for Redis"

    def _heartbeats(self) -> dict[tuple[str, str], float]:
        """heartbeat_due of each thread, by what the log calls it and the entry of STREAMS, "" = of none."""
        due = {(f"Stream {name}", stream_of(name)): stats.heartbeat_due for name, stats in self._streams.items()}
        due["The publisher (thread Redis)", ""] = self._publisher.heartbeat_due
        if self._leadership:
            due["The leadership (thread Leader)", ""] = self._leadership.heartbeat_due
        return due

    def _log_stuck_threads(self, now: float) -> None:
        """Logs a thread once when it becomes stuck, and once when it is back."""
        for thread, due in self._heartbeats().items():
            fields = {"part": thread[0], "stream": thread[1], "seconds": now - due}
            if is_stuck(due, now) and thread not in self._stuck:
                self._stuck.add(thread)
                log.error(
                    "%(part)s is stuck: its thread is overdue by %(seconds).0f s; does a call not return?", fields
                )
            elif thread in self._stuck and not is_stuck(due, now):
                self._stuck.remove(thread)
                log.warning("%(part)s is no longer stuck", {"part": thread[0], "stream": thread[1]})

    def _notify_ready(self, entries: Sequence[Row], now: float) -> None:
        """Notifies systemd when all streams are ready, at the latest after READY_TIMEOUT."""
        waiting = [row.name for row in entries if row.awaited]
        if waiting and now - self._started < READY_TIMEOUT:
            return
        self._ready = True
        if waiting:
            log.warning(
                "Streams without an answer of Bybit after %(seconds).0f s: %(streams)s",
                {"seconds": READY_TIMEOUT, "streams": Names(waiting)},
            )
        sd_notify(f"READY=1\nSTATUS={self.summary(entries)}")


def role_words(collector: Mapping[str, object]) -> str:
    """What the summary begins with where collectors share a lease: deploy/rolling-restart.sh reads it."""
    if "ready" not in collector:
        return ""
    return f"{collector['role']}, {'ready' if collector['ready'] else 'not ready'}: "


def streams_up(entries: Sequence[Row]) -> tuple[int, int]:
    """How many streams are up, and of how many that is known."""
    states = [row.up for row in entries]
    return states.count(True), len(states) - states.count(None)
