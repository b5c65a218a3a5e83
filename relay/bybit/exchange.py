"""What all connections to Bybit share: main makes one Exchange and hands it on."""

import logging
import threading
from time import monotonic
from typing import Protocol

from relay.bybit.health import Timeouts
from relay.bybit.pacer import Pacer
from relay.bybit.subscription import RejectedTopics
from relay.kinds import KINDS
from relay.log import LogOnce
from relay.stats import StreamStats

log = logging.getLogger(__name__)

# https://bybit-exchange.github.io/docs/v5/ws/connect: 500 new connections in 300 s, less a margin for restarts; topics
# in a request, fewer on spot.
NEW_CONNECTIONS_BURST, NEW_CONNECTIONS_RATE = 150, 1.0  # at once; a second
TOPICS_PER_REQUEST, TOPICS_PER_REQUEST_SPOT = 200, 10
# Seconds after which a stream that waits for its place looks again: another may have found that Bybit is back.
LOOK_AGAIN = 0.2


class Sink(Protocol):
    """Where messages go and who is told of events: the Publisher, for one. Both methods may be called by any thread."""

    def flush(self) -> object: ...

    def announce(self, event: str, stream: str, topics: list[str], **fields: object) -> object: ...


class Runnable(Protocol):
    """A Connection."""

    stats: StreamStats

    def run(self) -> None: ...

    def close(self) -> None: ...


class Exchange:
    """Bybit's public channels of one category.

    category: linear, spot, inverse or option. url: a base URL in place of Bybit's own, "" = Bybit's.
    stop: set when the program ends. streams: what each stream has done, by its name; add_stream() makes the entries.
    topics: what each stream has asked for in its latest life, by its name; its thread replaces the entry.
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
        self.rejected = RejectedTopics()
        self.log_once = LogOnce()
        self.streams: dict[str, StreamStats] = {}
        self.topics: dict[str, frozenset[str]] = {}
        self._live: set[Runnable] = set()  # each stream's thread adds and discards its own; a set does both at once

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
        """Makes the statistics of a stream. Main thread, before the stream's thread is started."""
        return self.streams.setdefault(name, StreamStats())

    def carries(self, topic: str) -> bool:
        """Whether a stream asks for this topic. Any thread."""
        return any(topic in topics for topics in list(self.topics.values()))

    def flows(self, topic: str) -> bool:
        """Whether a stream that asks for this topic is subscribed now. Any thread."""
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
        """Runs a connection once the pacer allows it. The stream's thread."""
        self._live.add(connection)  # before the look at stop: close_all() finds it, or it finds stop
        try:
            while not self.stop.is_set() and (pause := self.pacer.reserve(now := monotonic())):
                if not self.pacer.failing and self.log_once.first("paced"):
                    log.warning(
                        "%d new connections in a short time: waiting before the next; from now on %g a second",
                        self.pacer.burst,
                        self.pacer.rate,
                    )
                connection.stats.heartbeat_due = now + pause
                self.stop.wait(min(pause, LOOK_AGAIN))
            if not self.stop.is_set():
                connection.run()
        finally:
            self._live.discard(connection)

    def close_all(self) -> None:
        """Ends every connection, also those that are being opened. Any thread."""
        for connection in list(self._live):
            connection.close()
