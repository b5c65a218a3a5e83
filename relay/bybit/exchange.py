"""What all connections to Bybit share: main makes one Exchange and hands it on."""

import logging
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Protocol

from relay.bybit.health import Timeouts
from relay.bybit.pacer import Pacer
from relay.bybit.reactor import Reactor
from relay.bybit.rejected import RejectedTopics
from relay.dispatch import Callback
from relay.kinds import KINDS
from relay.log import LogOnce
from relay.stats import StreamStats

log = logging.getLogger(__name__)

# https://bybit-exchange.github.io/docs/v5/ws/connect: 500 new connections in 300 s, less a margin for restarts; topics
# in a request, fewer on spot.
NEW_CONNECTIONS_BURST, NEW_CONNECTIONS_RATE = 150, 1.0  # at once; a second
TOPICS_PER_REQUEST, TOPICS_PER_REQUEST_SPOT = 200, 10
# Seconds after which a stream that waits for its place looks again: another may have found that Bybit is back, or there
# are topics for it now. Seconds within which a stream that waits notices that it was dropped.
LOOK_AGAIN, NOTICE_DROP = 0.2, 0.5


class Sink(Protocol):
    """Where messages go and who is told of events: the Publisher, for one. Both methods may be called by any thread."""

    def flush(self) -> object: ...

    def announce(self, event: str, stream: str, topics: list[str], **fields: object) -> object: ...


class Runnable(Protocol):
    """A Connection. name: that of its thread."""

    name: str
    stats: StreamStats

    def run(self) -> None: ...

    def close(self) -> None: ...

    def wake(self) -> None: ...


class Exchange:
    """Bybit's public channels of one category.

    category: linear, spot, inverse or option. url: a base URL in place of Bybit's own, "" = Bybit's.
    stop: set when the program ends. reactor: reads for connections whose messages only have to be handed on, once it
    is started; main starts and stops it.

    A stream, an entry of STREAMS, has one connection or several, with a thread each. Here everything is by the name of
    the connection: "Trades", "Trades#2". streams: what each has done; add_stream() makes the entries.
    assigned: the topics that main has given to it, with their callbacks. topics: what it asks for: these, or else what
    its func asked for in its latest life. Main replaces the entries of both, the connection's thread only those of
    `topics` to which nothing is assigned.

    Main begins a connection by assign(), add_stream(), start of the thread; it ends one by drop(), the end of the
    thread, forget(). Then the name may begin anew.
    """

    def __init__(
        self,
        category: str,
        *,
        testnet: bool,
        sink: Sink,
        url: str = "",
        stop: threading.Event | None = None,
        timeouts: Timeouts | None = None,
        pacer: Pacer | None = None,
    ) -> None:
        self.category, self.testnet, self.url = category, testnet, url
        self.sink = sink
        self.stop = stop or threading.Event()
        self.timeouts = timeouts or Timeouts()
        self.pacer = pacer or Pacer(NEW_CONNECTIONS_BURST, NEW_CONNECTIONS_RATE)
        self.rejected = RejectedTopics(forgotten=self._wake_for)
        self.log_once = LogOnce()
        self.reactor = Reactor(sink)
        self.streams: dict[str, StreamStats] = {}
        self.topics: dict[str, frozenset[str]] = {}
        # The inner dicts are never changed, only replaced: Assignment compares by identity.
        self.assigned: dict[str, dict[str, Callback]] = {}
        # Each connection's thread adds and discards its own; a set and a dict do both at once.
        self._live: set[Runnable] = set()
        self._running: dict[str, Runnable] = {}  # by name: those of this exchange, without those aside

    @property
    def address(self) -> str:
        """The base URL, for people."""
        return self.url or f"wss://stream{'-testnet' if self.testnet else ''}.bybit.com"

    @property
    def topics_per_request(self) -> int:
        return TOPICS_PER_REQUEST_SPOT if self.category == "spot" else TOPICS_PER_REQUEST

    @property
    def snapshot_first(self) -> tuple[str, ...]:
        """Beginnings of the topics that push a snapshot as soon as they are subscribed."""
        return tuple(kind.topic.partition("{")[0] for kind in KINDS if kind.starts_with_snapshot)

    def add_stream(self, name: str) -> StreamStats:
        """Makes the statistics of a connection. Main thread, before the connection's thread is started."""
        return self.streams.setdefault(name, StreamStats())

    def assign(self, name: str, topics: Mapping[str, Callback]) -> None:
        """Sets the topics of a connection, by topic the callback, in place of what its func asks for. If it runs it is
        woken: it subscribes what is new and unsubscribes what is gone, and the others flow on. If not, it begins with
        these. Without topics it waits for some. Main thread, the first time before the connection's thread is started.
        """
        if self.assigned.get(name) == topics:
            return
        self.assigned[name] = dict(topics)
        self.topics[name] = frozenset(topics)
        if connection := self._running.get(name):  # if it comes later, it finds what is assigned
            connection.wake()

    def drop(self, name: str) -> None:
        """Ends a connection and its thread soon: ended() is true from now on. Its func is called no more, if that is to
        return. Main thread; never blocks. Call forget() when the thread has ended.
        """
        self.add_stream(name).dropped = True  # before the look at what runs: run() finds it, or is found
        if connection := self._running.get(name):
            connection.close()

    def forget(self, name: str) -> None:
        """Forgets the statistics and topics of a connection that was dropped; its thread has ended. Main thread."""
        for by_name in (self.streams, self.topics, self.assigned):
            by_name.pop(name, None)

    def ended(self, name: str) -> bool:
        """Whether a connection is not to run again: it was dropped, or the program ends. Any thread."""
        stats = self.streams.get(name)
        return self.stop.is_set() or (stats is not None and stats.dropped)

    def pause(self, name: str, seconds: float) -> None:
        """Waits for so long, or until ended(name). The connection's thread."""
        until = monotonic() + seconds
        while not self.ended(name) and seconds > 0:
            self.stop.wait(min(seconds, NOTICE_DROP))
            seconds = until - monotonic()

    def carries(self, topic: str) -> bool:
        """Whether a connection asks for this topic. Any thread."""
        return any(topic in topics for topics in list(self.topics.values()))

    def flows(self, topic: str) -> bool:
        """Whether a connection that asks for this topic is subscribed now. Any thread."""
        names = [name for name, topics in list(self.topics.items()) if topic in topics]
        return any(name not in self.streams or self.streams[name].subscribed for name in names)

    def aside(self, sink: Sink) -> "Exchange":
        """The same exchange for connections whose messages go elsewhere: they share its stop, its limit on new
        connections and its log_once, and end with close_all(). Streams and rejected topics are their own.
        """
        aside = Exchange(
            self.category,
            testnet=self.testnet,
            sink=sink,
            url=self.url,
            stop=self.stop,
            timeouts=self.timeouts,
            pacer=self.pacer,
        )
        aside.log_once, aside._live = self.log_once, self._live
        return aside

    def run(self, connection: Runnable) -> None:
        """Runs a connection once it has topics and the pacer allows it. The connection's thread."""
        name, stats = connection.name, connection.stats
        # Before the look at ended(): close_all() and drop() find it, or it finds what they have set.
        self._live.add(connection)
        self._running[name] = connection
        try:
            while not self.ended(name) and self.assigned.get(name) == {}:
                stats.topics, stats.answered = 0, True
                stats.heartbeat_due = monotonic() + LOOK_AGAIN
                self.stop.wait(LOOK_AGAIN)
            while not self.ended(name) and (pause := self.pacer.reserve(now := monotonic())):
                if not self.pacer.failing and self.log_once.first("paced"):
                    log.warning(
                        "%(connections)d new connections in a short time: waiting before the next; from now on "
                        "%(per_second)g a second",
                        {"connections": self.pacer.burst, "per_second": self.pacer.rate},
                    )
                stats.heartbeat_due = now + pause
                self.stop.wait(min(pause, LOOK_AGAIN))
            if not self.ended(name):
                connection.run()
        finally:
            self._live.discard(connection)
            if self._running.get(name) is connection:
                del self._running[name]

    def _wake_for(self, topic: str) -> None:
        """Has the connections that want a topic look again at what they may ask for. Any thread."""
        for name, topics in list(self.topics.items()):
            if topic in topics and (connection := self._running.get(name)):
                connection.wake()

    def close_all(self) -> None:
        """Ends every connection, also those that are being opened. Any thread."""
        for connection in list(self._live):
            connection.close()
