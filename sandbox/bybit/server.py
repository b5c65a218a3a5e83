"""The stand-in's server: accepts connections, hands each a script, and lets data flow to them."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from sandbox.bybit.connection import Connection
from sandbox.bybit.loop import LoopThread
from sandbox.bybit.script import Script
from sandbox.bybit.sources import GeneratedMarket, Replay, Source
from sandbox.bybit.wire import text_frame, topic_of

R = TypeVar("R")

DEFAULT_SYMBOLS: dict[str, Sequence[str]] = {
    "spot": ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT", "XRPUSDT"),
    "linear": ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT", "XRPUSDT"),
    "inverse": ("BTCUSD", "ETHUSD"),
    "option": ("BTC-25JUN27-106000-P-USDT", "BTC-25JUN27-106000-C-USDT", "ETH-25JUN27-4000-C-USDT"),
}
BACKLOG = 512  # connections the kernel keeps until they are accepted
IDLE_POLL = 0.2  # seconds between two checks for idle connections
ID_LETTERS = "0123456789abcdefghijklmnopqrstuv"  # of a conn_id


class Bybit:
    """The server, running inside `with`. Attributes may be read and methods called from any thread.

    Args:
        symbols: known symbols by category; a category that is not named has none. None = DEFAULT_SYMBOLS.
        rate: data messages a second of the generated market, over all subscribed topics; 0 = nothing moves by
            itself. May be changed while running.
        replay: a TSV of Unix seconds and frame; data then comes from it, for each acknowledged request from the
            file's beginning, and its topics are known beside those of `symbols`.
        speed: of the replay; 0 = as fast as the client reads.
        script: one per connection in the order of TCP accept; `then` is for all later ones. None = without faults.
        tls: certificate and key file.
        record: keep the data frames sent in `Connection.sent`.
        idle_cut: seconds without a frame either way after which a connection is dropped.
        repush: seconds after which an unchanged depth-1 book is sent again.

    Attributes:
        connections: all there were, in the order of TCP accept.
    """

    def __init__(
        self,
        symbols: dict[str, Sequence[str]] | None = None,
        rate: float = 200.0,
        replay: str | Path | None = None,
        speed: float = 1.0,
        script: Iterable[Script] = (),
        then: Script | None = None,
        tls: tuple[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 1,
        record: bool = False,
        idle_cut: float = 60.0,
        repush: float = 3.0,
    ) -> None:
        self.script, self.then = list(script), then or Script()
        self.host, self.port = host, port
        self.record, self.idle_cut = record, idle_cut
        self.connections: list[Connection] = []
        self._random = random.Random(seed)
        self._loop = LoopThread("bybit", self._close)
        self._market = GeneratedMarket(DEFAULT_SYMBOLS if symbols is None else symbols, rate, repush, seed)
        self._source: Source = Replay(self._loop, replay, speed, self._market) if replay else self._market
        self._tls: ssl.SSLContext | None = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*tls)

    def __enter__(self) -> Bybit:
        self._listener = socket.create_server((self.host, self.port), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._loop.start()
        self._loop.call_soon(self._begin)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.stop()

    @property
    def url(self) -> str:
        """The base URL, without /v5/public: the collector's BYBIT_WS_URL."""
        return f"wss://localhost:{self.port}" if self._tls else f"ws://{self.host}:{self.port}"

    @property
    def rate(self) -> float:
        return self._market.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._market.rate = rate

    @property
    def symbols(self) -> Mapping[str, Sequence[str]]:
        return self._market.symbols

    @symbols.setter
    def symbols(self, symbols: Mapping[str, Sequence[str]]) -> None:
        self._market.symbols = symbols

    def publish(self, text: str) -> None:
        """Sends a data frame to every connection subscribed to its topic. Returns at once; the order is kept."""
        topic = topic_of(text)
        if topic is None:
            raise ValueError(f"no topic in {text[:100]!r}")
        frame = text_frame(text)
        self._loop.call_soon(lambda: self._publish(topic, text, frame))

    def wait(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Returns when the condition holds.

        Raises:
            AssertionError: it did not within `timeout` seconds; the text has the state of every connection.
        """
        if not self._loop.wait(condition, timeout):
            raise AssertionError(f"not within {timeout} s; connections: {self.connections}")

    def run(self, action: Callable[[], R]) -> R:
        """Runs an action on the server's thread and returns its result."""
        return self._loop.run(action)

    # From here on the server's thread.

    def _begin(self) -> None:
        for work in (self._accept(), self._cut_idle(), self._market.move(), self._market.repeat_books()):
            self._loop.spawn(work)

    def _close(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.abort()

    def _publish(self, topic: str, text: str, frame: bytes) -> None:
        for connection in self.connections:
            if topic in connection.feeds:
                connection.data(text, frame)

    async def _accept(self) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            script = self.script.pop(0) if self.script else self.then
            connection = Connection(self._loop, self._source, script, self._new_id(), self.record)
            self.connections.append(connection)
            self._loop.notify()
            self._loop.spawn(self._connect(connection, client))

    async def _cut_idle(self) -> None:
        """Drops connections on which no frame has gone either way for long, as Bybit does: no close frame."""
        while True:
            await asyncio.sleep(min(self.idle_cut, IDLE_POLL))
            for connection in self.connections:
                if connection.idle >= self.idle_cut:
                    connection.drop()

    async def _connect(self, connection: Connection, client: socket.socket) -> None:
        tls = None if connection.script.handshake == "never tls" else self._tls
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, client, ssl=tls)
        except OSError:  # the client did not accept the certificate, or left
            connection.connection_lost(None)

    def _new_id(self) -> str:
        draw = self._random.choices
        return "".join(draw(ID_LETTERS, k=20)) + "-" + "".join(draw(ID_LETTERS, k=5))
