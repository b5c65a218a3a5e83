"""Brings the threads of the streams in line with STREAMS and Bybit's list of instruments, again and again."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from typing import Any, Protocol

from conf.plan import Changes, Plan, Planned
from conf.streams import StreamSpec
from ops.rows import count, retire
from relay.bybit.exchange import Exchange
from relay.log import FEW, Names
from relay.stats import StreamStats, stream_of

log = logging.getLogger(__name__)

# Seconds that the thread of a removed stream may take to end before this is logged.
END_TIMEOUT = 60.0


class Listing(Protocol):
    """What Bybit lists: Instruments."""

    @property
    def symbols(self) -> frozenset[str] | None: ...

    def start(self) -> None: ...


# Runs a stream until it has ended(), on the thread of the stream.
Run = Callable[[StreamSpec], object]


@dataclass
class _Running:
    """A connection, or a function of the user's own, and its thread."""

    planned: Planned
    thread: Thread
    dropped_at: float = 0.0  # monotonic time
    is_reported: bool = False  # that it does not end


class Reconciler:
    """The main thread makes it and calls it.

    exchange: of the streams. instruments: started when an entry has patterns. run: what the thread of a stream runs.

    threads: those of the streams that should run, by name. retired: what connections had done that are no more, by the
    name of their entry, which goes on.
    """

    def __init__(self, plan: Plan, exchange: Exchange, instruments: Listing | None, run: Run) -> None:
        self.threads: dict[str, Thread] = {}
        self.retired: dict[str, StreamStats] = {}
        self._plan, self._exchange, self._instruments, self._run = plan, exchange, instruments, run
        self._running: dict[str, _Running] = {}  # by name, as `threads`
        self._ending: dict[str, _Running] = {}
        self._waited_for_list: set[str] = set()  # entries of which this was logged
        self._lack = ""  # why the system had no thread to give at the last tick

    def tick(self, streams: Sequence[Any]) -> None:
        """Does what is to be done now. Never waits. streams: STREAMS."""
        symbols = self._instruments.symbols if self._instruments else None
        if changes := self._plan.update(streams, symbols):
            for problem in changes.problems:
                log.error("%(problem)s; ignoring this entry", {"problem": problem})
            self._announce(changes)
            self._change()
        lacked, self._lack = self._lack, ""
        self._wait_for_list()
        self._end()
        self._start()
        for name in self._plan.connections:
            if stats := self._exchange.streams.get(name):
                stats.waits = name in self._plan.waiting
        if self._lack and not lacked:
            log.error("No thread to be had for a stream: %(reason)s; trying again", {"reason": self._lack})
        elif lacked and not self._lack:
            log.info("All streams have their threads again")

    def join(self, deadline: float) -> None:
        """Waits for all threads, until `deadline` (monotonic) at most."""
        for running in (*self._running.values(), *self._ending.values()):
            running.thread.join(max(0.0, deadline - monotonic()))

    def _announce(self, changes: Changes) -> None:
        """What Bybit's list brings, before anything is subscribed or unsubscribed."""
        for event, words, found in (
            ("delisted", "Bybit no longer lists %(symbols)s: %(counted)s less", changes.delisted),
            ("listed", "Bybit now lists %(symbols)s: %(counted)s more", changes.listed),
        ):
            for entry, topics in found.items():
                self._exchange.sink.announce(event, entry, list(topics))
            if found:
                symbols = list(dict.fromkeys(symbol for topics in found.values() for symbol in topics.values()))
                all_topics = [topic for topics in found.values() for topic in topics]
                counted = count(len(all_topics), "topic")
                log.info(words, {"symbols": Names(symbols, FEW), "counted": counted, "topics": all_topics})
        for topic in changes.newly_listed:
            self._exchange.rejected.forget(topic)

    def _change(self) -> None:
        """Ends what should not run any more, and tells the others their topics."""
        for name, running in list(self._running.items()):
            planned = self._plan.connections.get(name)
            if planned is None or not planned.entry.runs_as(running.planned.entry):
                self._drop(name)
            elif planned.topics is not None and planned.topics.keys() != (running.planned.topics or {}).keys():
                self._exchange.assign(name, planned.topics)
                running.planned = planned

    def _drop(self, name: str) -> None:
        running = self._ending[name] = self._running.pop(name)
        del self.threads[name]
        running.dropped_at = monotonic()
        self._exchange.add_stream(name).watched = False  # what ends on purpose is no reason to hand over to a standby
        self._exchange.drop(name)

    def _end(self) -> None:
        """Forgets those that have ended."""
        for name, running in list(self._ending.items()):
            if running.thread.is_alive():
                if not running.is_reported and monotonic() - running.dropped_at >= END_TIMEOUT:
                    running.is_reported = True
                    log.warning(
                        "Stream %(connection)s is to end, but its function does not return",
                        {"connection": name, "stream": stream_of(name)},
                    )
                continue
            del self._ending[name]
            if stats := self._exchange.streams.get(name):
                entry = stream_of(name)
                self.retired[entry] = retire(self.retired.get(entry), stats)
            self._exchange.forget(name)
        for name in self._exchange.streams.keys() - self._plan.connections.keys() - self._ending.keys():
            self._exchange.forget(name)  # it waited for the list, in vain
        names = {entry.name for entry in self._plan.entries}
        self._waited_for_list &= names
        for entry in self.retired.keys() - names:
            del self.retired[entry]

    def _start(self) -> None:
        """Starts what should run and does not, also what died, which none should."""
        for name, planned in self._plan.connections.items():
            running = self._running.get(name)
            if name in self._ending or (running and running.thread.is_alive()):
                continue
            if running:
                log.error(
                    "Stream thread %(connection)s died; restarting it", {"connection": name, "stream": stream_of(name)}
                )
            elif planned.topics is not None and not planned.topics:
                self._await_topics(name)
                continue
            if planned.topics is not None:
                self._exchange.assign(name, planned.topics)
            self._exchange.add_stream(name).watched = planned.topics is not None
            thread = Thread(target=self._run, args=(planned.spec,), name=name, daemon=True)
            if self._has_started(thread.start):
                self._running[name], self.threads[name] = _Running(planned, thread), thread
            else:
                self._running.pop(name, None)
                self.threads.pop(name, None)

    def _has_started(self, start: Callable[[], None]) -> bool:
        """Whether the system had a thread to give. If not, the next tick tries again."""
        try:
            start()
        except RuntimeError as error:
            self._lack = str(error)
            return False
        return True

    def _await_topics(self, name: str) -> None:
        """An entry without topics, for now, has no connection. While it waits for the list it counts as a stream."""
        if name in self._plan.waiting:
            self._exchange.add_stream(name)
        else:
            self._exchange.forget(name)

    def _wait_for_list(self) -> None:
        """Has Bybit asked for its list when it is needed."""
        if self._instruments and self._plan.needs_list:
            self._has_started(self._instruments.start)
        if new := [name for name in self._plan.waiting if name not in self._waited_for_list]:
            self._waited_for_list.update(new)
            log.info("%(streams)s: waiting for Bybit's list of instruments", {"streams": Names(new, FEW)})
