"""What all connections to Bybit share: main makes one Exchange and hands it on."""

import logging
import threading
from time import monotonic
from typing import Protocol

from relay.bybit.dial import Pacer
from relay.bybit.health import Timeouts
from relay.bybit.subscription import RejectedTopics
from relay.kinds import KINDS
from relay.log import LogOnce
from relay.stats import StreamStats

log = logging.getLogger(__name__)

# https://bybit-exchange.github.io/docs/v5/ws/connect: 500 new connections in 300 s, less a margin for restarts;
# topics in a request, fewer on spot.
MAX_CONNECTIONS, CONNECTIONS_PERIOD = 450, 300.0
TOPICS_PER_REQUEST, TOPICS_PER_REQUEST_SPOT = 200, 10


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
        self.pacer = pacer or Pacer(MAX_CONNECTIONS, CONNECTIONS_PERIOD)
        self.rejected = RejectedTopics()
        self.log_once = LogOnce()
        self.streams: dict[str, StreamStats] = {}
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

    def run(self, connection: Runnable) -> None:
        """Runs a connection once Bybit's limit on new connections allows it. The stream's thread."""
        self._live.add(connection)  # before the look at stop: close_all() finds it, or it finds stop
        try:
            while not self.stop.is_set() and (pause := self.pacer.reserve(now := monotonic())):
                if self.log_once.first("paced"):
                    log.warning(
                        "%d connections in %g s: waiting before the next",
                        self.pacer.limit,
                        self.pacer.seconds,
                    )
                connection.stats.heartbeat_due = now + pause
                self.stop.wait(pause)
            if not self.stop.is_set():
                connection.run()
        finally:
            self._live.discard(connection)

    def close_all(self) -> None:
        """Ends every connection, also those that are being opened. Any thread."""
        for connection in list(self._live):
            connection.close()
