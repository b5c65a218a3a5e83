"""The market of one symbol, from the messages of the data channels. Pure: the caller gives the time."""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple, Protocol

SPAN, STEP = 300, 1.0  # price points kept, and the seconds that each is for
TRADES, LIQUIDATIONS, IDS = 40, 20, 1000  # kept of each; ids by which a trade that comes twice is known
LEVELS = 200  # of a side of the book that are shown


class Keeper(Protocol):
    """What keeps books and tickers in sync: examples/synced.py."""

    states: Mapping[str, Any]
    channels: Mapping[str, Sequence[str]]

    def receive(self, channel: str, payload: bytes, now: float) -> object: ...
    def connected(self, channel: str, now: float) -> object: ...
    def ask(self, now: float) -> set[str]: ...
    def requests(self, reply: str) -> list[dict[str, Any]]: ...
    def unheard(self, topics: Sequence[str], now: float) -> object: ...


MakeKeeper = Callable[[str, Collection[str], bool], Keeper]


class Trade(NamedTuple):
    """price and size in Bybit's own digits. ts: ms. side: Buy or Sell."""

    ts: int
    side: str
    price: str
    size: str


class Depth(NamedTuple):
    """A side of the book, best first: prices, and how much there is up to each."""

    prices: list[float]
    sums: list[float]


class Bar(NamedTuple):
    """What happened in STEP seconds. second: Unix time at which it begins. price: the last."""

    second: float
    price: float
    bought: float
    sold: float


class Market:
    """One symbol. keeper: keeps its book and its ticker; the owner sets it. book, ticker: their topics, or "".
    wanted_at: when somebody last looked at it, monotonic.
    """

    keeper: Keeper

    def __init__(self, symbol: str) -> None:
        self.symbol, self.book, self.ticker = symbol, "", ""
        self.wanted_at = -math.inf
        self.trades: deque[Trade] = deque(maxlen=TRADES)  # newest first
        self.liquidations: deque[Trade] = deque(maxlen=LIQUIDATIONS)
        self.bars: deque[Bar] = deque(maxlen=SPAN)
        self._ids: dict[str, None] = {}

    def receive(self, kind: str, message: Mapping[str, Any]) -> None:
        """Takes trades or liquidations. Raises KeyError, TypeError, ValueError for what is none."""
        for item in message["data"]:
            if item.get("s", self.symbol) != self.symbol:
                continue  # those of an option's coin are of all its contracts
            trade = Trade(int(item["T"]), str(item["S"]), str(item["p"]), str(item["v"]))
            price, size = float(trade.price), float(trade.size)
            if kind == "liquidations":
                if trade not in self.liquidations:  # they have no id; after a takeover some come twice
                    self.liquidations.appendleft(trade)
            elif self._is_new(str(item.get("i", ""))):
                self.trades.appendleft(trade)
                self._add(trade, price, size)

    def _is_new(self, trade: str) -> bool:
        if trade in self._ids:
            return False
        if trade:
            self._ids[trade] = None
            if len(self._ids) > IDS:
                del self._ids[next(iter(self._ids))]
        return True

    def _add(self, trade: Trade, price: float, size: float) -> None:
        second = trade.ts / 1000 // STEP * STEP
        bar = self.bars[-1] if self.bars else Bar(-math.inf, price, 0.0, 0.0)
        is_same = bar.second >= second  # one that comes late belongs to the last
        bought, sold = (bar.bought, bar.sold) if is_same else (0.0, 0.0)
        if trade.side == "Buy":
            bought += size
        else:
            sold += size
        if is_same:
            self.bars.pop()
        self.bars.append(Bar(max(second, bar.second), price, bought, sold))

    def state(self, topic: str) -> Any:
        """A book or ticker that is, or was, in sync; else None."""
        state = self.keeper.states.get(topic)
        return state if state is not None and state.ts else None

    def fields(self) -> Mapping[str, Any]:
        """The ticker."""
        state = self.state(self.ticker)
        return state.data if state else {}

    def last(self) -> str:
        """The last price, in Bybit's own digits; "" while there is none."""
        return self.trades[0].price if self.trades else str(self.fields().get("lastPrice", ""))

    def best(self) -> tuple[Sequence[str], Sequence[str]]:
        """(price, size) of the best bid and of the best ask; empty where there is none."""
        state = self.state(self.book)
        levels = state.levels if state else {"b": [], "a": []}
        bid, ask = (tuple(levels[side][0][1:]) if levels[side] else () for side in "ba")
        return bid, ask

    def depth(self) -> tuple[Depth, Depth]:
        """Bids and asks, as far as the book has them, LEVELS at most."""
        state = self.state(self.book)
        return _depth(state.levels["b"] if state else []), _depth(state.levels["a"] if state else [])

    def reason(self) -> str:
        """Why the book or the ticker is not in sync; "" if both are."""
        for topic, name in ((self.book, "Book"), (self.ticker, "Ticker")):
            if topic and not self.keeper.states[topic].synced:
                return f"{name} out of sync: {self.keeper.states[topic].reason}"
        return ""


def _depth(levels: Sequence[tuple[Any, str, str]]) -> Depth:
    shown = list(islice(levels, LEVELS))
    return Depth([float(price) for _, price, _ in shown], list(accumulate(float(size) for _, _, size in shown)))
