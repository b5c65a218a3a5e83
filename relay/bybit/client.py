"""How a stream subscribes: pybit names the topics and the address, our Connection does the rest."""

from collections.abc import Mapping
from typing import Any

from pybit.unified_trading import WebSocket

from relay.bybit.connection import Connection
from relay.bybit.exchange import Exchange
from relay.bybit.subscription import MAX_TOPIC_CHARACTERS, characters
from relay.dispatch import Callback
from relay.errors import InvalidStream


class Client(WebSocket):
    """pybit's WebSocket, passive: its *_stream() methods name the topics, run() opens one connection for them all.

        bybit = Client(exchange)
        bybit.trade_stream(symbol="BTCUSDT", callback=handle_trades)
        bybit.run()

    Made and run on the thread of its stream, which bears the stream's name, as main.py starts it.
    stall_timeout: seconds without data after which the connection is given up, 0 = never.

    Two internals of pybit are relied on; tests/test_contracts.py names them if an upgrade changes one: the constructor
    ends in _connect(url template), and each *_stream() ends in subscribe(topic template, callback, symbol).
    """

    def __init__(self, exchange: Exchange, stall_timeout: float = 0.0) -> None:
        self._exchange, self._stall_timeout = exchange, stall_timeout
        self._topics: dict[str, Callback] = {}
        super().__init__(exchange.category, testnet=exchange.testnet)

    def _connect(self, url: str) -> None:
        """Overridden: pybit would open a connection here, on a thread of its own, and in an endless loop."""
        address = {"SUBDOMAIN": "stream-testnet" if self.testnet else "stream", "DOMAIN": "bybit", "TLD": "com"}
        base = self._exchange.url
        self.endpoint = f"{base}/v5/public/{self._exchange.category}" if base else url.format(**address)

    def subscribe(self, topic: str, callback: Callback, symbol: Any = "") -> None:
        """Overridden: only notes the topics. symbol: one, several, or none (pybit passes False)."""
        for one in [symbol] if isinstance(symbol, str) else symbol or [""]:
            self._topics[topic.format(symbol=one)] = callback

    def run(self) -> None:
        """Connects, subscribes and delivers until the connection is lost. Raises ConnectionLost, or InvalidStream if
        one connection cannot carry the topics, or main has assigned others than its func would subscribe to; returns
        after Exchange.close_all(), or if it was dropped.
        """
        exchange = self._exchange
        connection = Connection(exchange, self.endpoint, self._topics, self._stall_timeout)
        assigned = exchange.assigned.get(connection.name)
        size = characters(self._topics)
        if assigned:
            self._compare(assigned)
        elif size > MAX_TOPIC_CHARACTERS:
            raise InvalidStream(f"{size:,} characters of topics: one connection carries {MAX_TOPIC_CHARACTERS:,}")
        exchange.run(connection)

    def _compare(self, assigned: Mapping[str, Callback]) -> None:
        """What is assigned takes the place of what the func has named, so it must be of the same form. The symbols may
        have changed since.
        """
        form = next(iter(assigned)).rpartition(".")[0]
        for topic in self._topics:
            if topic.rpartition(".")[0] != form:
                raise InvalidStream(
                    f"its func subscribes to {topic}, and the kind of its @carries has {form}.*: a depth stands in the "
                    "entry; for other topics leave out @carries"
                )
