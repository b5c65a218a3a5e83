"""The stand-in's server: accepts connections, hands each a script, and lets data flow to them."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from sandbox.bybit.catalogue import CONTINUOUS, Catalogue
from sandbox.bybit.connection import Connection
from sandbox.bybit.gate import Gate
from sandbox.bybit.loop import LoopThread, on_loop
from sandbox.bybit.rest import Entrance, Rest
from sandbox.bybit.script import Knobs, Script
from sandbox.bybit.sources import GeneratedMarket, Replay, Source
from sandbox.bybit.state import Made
from sandbox.bybit.view import View
from sandbox.bybit.wire import text_frame, topic_of

R = TypeVar("R")
Frames = list[Made]

DEFAULT_SYMBOLS: dict[str, Sequence[str]] = {
    "spot": ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT", "XRPUSDT"),
    "linear": ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT", "XRPUSDT"),
    "inverse": ("BTCUSD", "ETHUSD"),
    "option": ("BTC-25JUN27-106000-P-USDT", "BTC-25JUN27-106000-C-USDT", "ETH-25JUN27-4000-C-USDT"),
}
HANGING = Script(handshake="never tls")  # nothing is read and nothing answered
IDLE_POLL = 0.2  # seconds between two checks for idle connections
ID_LETTERS = "0123456789abcdefghijklmnopqrstuv"  # of a conn_id


class Bybit(Knobs):
    """The server, running inside `with`. Attributes may be read and methods called from any thread.

    As on the real server `u`, `seq` and `cs` belong to a topic, not to a connection.

    Args:
        symbols: known symbols by category; a category that is not named has none. None = DEFAULT_SYMBOLS.
        rate: data messages a second of the generated market, over all subscribed topics; 0 = nothing moves by
            itself. May be changed while running.
        replay: a TSV of Unix seconds and frame; data then comes from it, for each acknowledged request from the
            file's beginning, and its topics are known beside those of `symbols`.
        speed: of the replay; 0 = as fast as the client reads.
        script: one per connection, in the order in which their first bytes arrive; `then` is for all later ones.
            None = without faults.
        tls: certificate and key file.
        port: 0 = a free one.
        doors: how many ports lead to it, each further one a free one; `Connection.port` tells who came by which.
        record: keep the data frames sent in `Connection.sent`.
        truth: keep every frame that is made, see `truth`; topics that once had a subscriber then go on without one.
        idle_cut: seconds without a frame either way after which a connection is dropped.
        repush: seconds after which an unchanged depth-1 book is sent again.

    Attributes:
        connections: all there were, in the order in which their first bytes arrived; without those of REST.
        rest_requests: the queries that REST was asked: "category=spot".
        catalogue: what REST lists. On the server's thread.
        loop: the server's thread.
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
        doors: int = 1,
        truth: bool = False,
    ) -> None:
        self.script, self.then = list(script), then or Script()
        self.record, self.idle_cut = record, idle_cut
        self.connections: list[Connection] = []
        self.loop = LoopThread("bybit", self._close)
        self.rest_requests: list[str] = []
        self._random = random.Random(seed)
        self._guests: set[asyncio.Transport] = set()  # that are not in `connections`
        self._gates = [Gate(self.loop, host, 0 if n else port, self._accepted) for n in range(doors)]
        self._market = GeneratedMarket(DEFAULT_SYMBOLS if symbols is None else symbols, rate, repush, seed, truth)
        self.catalogue = Catalogue(lambda: self._market.symbols)
        self._source: Source = Replay(self.loop, replay, speed, self._market) if replay else self._market
        self._tls: ssl.SSLContext | None = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*tls)

    def __enter__(self) -> Bybit:
        for gate in self._gates:
            gate.open()
        self.loop.start()
        self.loop.call_soon(self._begin)
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.stop()

    @property
    def host(self) -> str:
        return self._gates[0].host

    @property
    def port(self) -> int:
        return self._gates[0].port

    @property
    def url(self) -> str:
        """The base URL, without /v5/public: the collector's BYBIT_WS_URL."""
        return self.urls[0]

    @property
    def urls(self) -> Sequence[str]:
        """The base URL of each door."""
        return [
            f"wss://localhost:{gate.port}" if self._tls else f"ws://{gate.host}:{gate.port}" for gate in self._gates
        ]

    @property
    def api_url(self) -> str:
        """The base URL of REST: the collector's BYBIT_API_URL."""
        return self.url.replace("ws", "http", 1)

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
        self.loop.call_soon(lambda: self._publish(topic, text, frame))

    @on_loop
    def truth(self, category: str = "linear") -> dict[str, Frames]:
        """Every frame of each topic since the start, in order; sent or not. Only with `truth`."""
        return self._market.truth(category)

    @on_loop
    def snapshot(self, topic: str, category: str = "linear") -> str | None:
        """What a new subscriber of the topic would get first; None, if nothing."""
        return self._market.snapshot(category, topic)

    @on_loop
    def list(self, category: str, symbol: str, status: str = "Trading", phase: str = "", delivery: int = 0) -> None:
        """Lists an instrument, or changes what is said of it. It has topics if it trades.

        Args:
            status: PreLaunch: it trades in the `phase` ContinuousTrading.
            phase: of pre-market trading; "" = it is none.
            delivery: Unix ms, 0 = none. Nothing happens by itself then.
        """
        self.catalogue.put(category, symbol, status, phase, delivery)
        if status == "Trading" or phase == CONTINUOUS:
            self._market.add_symbol(category, symbol)

    @on_loop
    def delist(self, category: str, symbol: str) -> None:
        """Ends an instrument: its data ends without a word, and later subscriptions are rejected."""
        self.catalogue.remove(category, symbol)
        self._market.remove_symbol(category, symbol)

    @on_loop
    def omit(self, topic: str) -> None:
        """Leaves out the next frame of a topic on all connections that are subscribed to it; see Connection.omit."""
        for connection in self.connections:
            if topic in connection.feeds:
                connection.omit(topic)

    @on_loop
    def away(self, door: int | None = None, hang: bool = False) -> None:
        """An outage, of one door or of the exchange: then its market stands still too.

        Args:
            hang: all connections stay open and are left alone, new ones too. Otherwise all are dropped and new ones
                refused.
        """
        for number, gate in enumerate(self._gates):
            if door not in (None, number):
                continue
            gate.hangs = hang
            if not hang:
                gate.refuse()
            for connection in self._open(gate):
                connection.freeze() if hang else connection.drop()
        self._market.paused = door is None

    @on_loop
    def back(self) -> None:
        """The end of all outages, on the same ports. What hung is reset."""
        for gate in self._gates:
            for connection in self._open(gate) if gate.hangs else ():
                connection.reset()
            gate.back()
        self._market.paused = False

    def wait(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Returns when the condition holds.

        Raises:
            AssertionError: it did not within `timeout` seconds; the text has the state of every connection.
        """
        if not self.loop.wait(condition, timeout):
            raise AssertionError(f"not within {timeout} s; connections: {self.connections}")

    def run(self, action: Callable[[], R]) -> R:
        """Runs an action on the server's thread and returns its result."""
        return self.loop.run(action)

    # From here on the server's thread.

    def _begin(self) -> None:
        for gate in self._gates:
            gate.begin()
        for work in (self._cut_idle(), self._market.move(), self._market.repeat_books()):
            self.loop.spawn(work)

    def _close(self) -> None:
        for gate in self._gates:
            gate.close()
        for connection in self.connections:
            connection.abort()
        for guest in self._guests:
            guest.abort()

    def _open(self, gate: Gate) -> Sequence[Connection]:
        return [one for one in self.connections if one.port == gate.port and one.closed is None]

    def _publish(self, topic: str, text: str, frame: bytes) -> None:
        self._market.note_published(topic, text)
        for connection in self.connections:
            if topic in connection.feeds:
                connection.data(topic, text, frame)

    def _accepted(self, client: socket.socket, gate: Gate) -> None:
        if gate.hangs or self._next_script.handshake == "never tls":  # its first bytes are not read
            self.loop.spawn(self._connect(self._new_connection(gate), client))
        else:
            entrance = Entrance(lambda: self._new_connection(gate), lambda: Rest(self, self.loop.later), self._guests)
            self.loop.spawn(self._connect(entrance, client))

    @property
    def _next_script(self) -> Script:
        return self.script[0] if self.script else self.then

    def _new_connection(self, gate: Gate) -> Connection:
        script = HANGING if gate.hangs else self.script.pop(0) if self.script else self.then
        view = View(self, len(self.connections))
        connection = Connection(self.loop, self._source, script, self._new_id(), self.record, view, gate.port)
        self.connections.append(connection)
        self.loop.notify()
        return connection

    async def _cut_idle(self) -> None:
        """Drops connections on which no frame has gone either way for long, as Bybit does: no close frame."""
        while True:
            await asyncio.sleep(min(self.idle_cut, IDLE_POLL))
            for connection in self.connections:
                if connection.idle >= self.idle_cut:
                    connection.drop()

    async def _connect(self, connection: Connection | Entrance, client: socket.socket) -> None:
        tls = self._tls if isinstance(connection, Entrance) else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, client, ssl=tls)
        except OSError:  # the client did not accept the certificate, or left
            connection.connection_lost(None)

    def _new_id(self) -> str:
        draw = self._random.choices
        return "".join(draw(ID_LETTERS, k=20)) + "-" + "".join(draw(ID_LETTERS, k=5))
