"""The table of the kinds of market data. What differs between them is here; the rest of the program derives from it.

Pure. To add a kind, add a row here, a subscribe_* that carries it in main.py, and a callback in callbacks/.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., object])

# Bybit's categories, as in wss://stream.bybit.com/v5/public/{category}.
CATEGORIES = ("linear", "spot", "inverse", "option")
# Levels on each side of an order book that Bybit offers in each category.
# https://bybit-exchange.github.io/docs/v5/websocket/public/orderbook
DEPTHS = dict.fromkeys(CATEGORIES, (1, 50, 200, 1000)) | {"option": (25, 100)}


@dataclass(frozen=True)
class Kind:
    """One kind of market data.

    name: the end of its channel's name, and the name of its module in callbacks/.
    topic: the template of its topics, with {symbol} and, if it has levels, {depth}.
    categories: the categories in which Bybit has such topics.
    starts_with_snapshot: whether Bybit sends something as soon as a topic is subscribed; if not, a healthy topic may be
        quiet for hours.
    by_base_coin: the categories in which a topic names a base coin (BTC) and not a symbol.
    """

    name: str
    topic: str
    categories: tuple[str, ...] = CATEGORIES
    starts_with_snapshot: bool = False
    by_base_coin: tuple[str, ...] = ()

    def subject(self, symbol: str, category: str) -> str:
        """What the topic of `symbol` names: the symbol, or its base coin."""
        return symbol.split("-")[0] if category in self.by_base_coin else symbol

    @property
    def has_depth(self) -> bool:
        """Whether its topics name a number of levels."""
        return "{depth}" in self.topic

    def topic_for(self, symbol: str, category: str, depth: int) -> str:
        """The topic to subscribe to: "orderbook.50.BTCUSDT"; the trades of an option contract are "publicTrade.BTC"."""
        return self.topic.format(symbol=self.subject(symbol, category), depth=depth)


# https://bybit-exchange.github.io/docs/v5/websocket/public/orderbook, and trade, ticker, all-liquidation beside it.
ORDERBOOK = Kind("orderbook", "orderbook.{depth}.{symbol}", starts_with_snapshot=True)
TRADES = Kind("trades", "publicTrade.{symbol}", by_base_coin=("option",))
TICKER = Kind("ticker", "tickers.{symbol}", starts_with_snapshot=True)
LIQUIDATIONS = Kind("liquidations", "allLiquidation.{symbol}", categories=("linear", "inverse"))

KINDS = (ORDERBOOK, TRADES, TICKER, LIQUIDATIONS)


def carries(kind: Kind) -> Callable[[F], F]:
    """Marks a subscribe_* function with the kind of its topics, so that its entries of STREAMS can be planned."""

    def mark(func: F) -> F:
        func.kind = kind  # type: ignore[attr-defined]
        return func

    return mark


def kind_of(func: Any) -> Kind | None:
    """The kind that `func` carries; None for a function of the user's own."""
    kind = getattr(func, "kind", None)
    return kind if isinstance(kind, Kind) else None


def is_symbol(value: object) -> bool:
    """Whether `value` can be a symbol: a str of letters of any script (Bybit lists some), digits, "_" and "-"."""
    return isinstance(value, str) and re.fullmatch(r"[\w-]+", value) is not None


def is_pattern(value: object) -> bool:
    """Whether `value` stands for all symbols of Bybit's list that match it: "ALL", or a str in which each "*" stands
    for any characters, or none: "BTC*", "*USDT".
    """
    return value == "ALL" or (isinstance(value, str) and re.fullmatch(r"(?=.*\*)[\w*-]+", value) is not None)
