"""Topics as Bybit writes them, byte for byte. Pure; the time comes from the market's clock.

A feed is one topic of one category. It makes frames; who gets them is not its business.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from sandbox.bybit.book import Levels, Window
from sandbox.bybit.market import Market
from sandbox.bybit.tickers import ticker
from sandbox.bybit.wire import compact

# How often a topic moves in relation to the others, roughly as on the real server.
WEIGHTS = {"1": 10, "25": 30, "50": 30, "100": 10, "200": 10, "1000": 5, "tickers": 8, "publicTrade": 8}
LIQUIDATION_WEIGHT = 1
# Changes of the book in one delta: 1 + lognormal, as recorded on a calm day in 2026.
CHANGES_MEDIAN, CHANGES_SIGMA, CHANGES_MAX = 1.5, 1.1, 90


class Feed:
    """One topic of one category.

    Attributes:
        weight: how often it moves in relation to other feeds.
        sent_at: when the latest frame was made, in seconds of the market's clock.
    """

    def __init__(self, topic: str, weight: int, markets: Sequence[Market]) -> None:
        self.topic, self.weight, self.markets, self.market = topic, weight, markets, markets[0]
        self.category = self.market.instrument.category
        self.sent_at = self.market.clock()

    def snapshot(self) -> str | None:
        """What a new subscriber gets first; None where Bybit sends nothing."""
        return None

    def advance(self) -> str:
        """Moves the market so that this topic has news, and returns the frame."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Catches up with the market; called while there is no subscriber."""

    def envelope(self, kind: str, seq: int) -> tuple[str, int]:
        """The frame up to its data field, in the category's order, and its time (Unix ms)."""
        self.sent_at = self.market.clock()
        now = int(self.sent_at * 1000)
        if self.category in ("spot", "option"):
            head = f'{{"topic":"{self.topic}","ts":{now},"type":"{kind}"'
            return (f'{head},"id":"{self.topic}-{seq}-{now}"' if self.category == "option" else head), now
        return f'{{"topic":"{self.topic}","type":"{kind}","ts":{now}', now


class BookFeed(Feed):
    """orderbook.{depth}.{symbol}: a window on the book, in the state of the latest frame, not of the book now."""

    def __init__(self, topic: str, depth: str, market: Market) -> None:
        super().__init__(topic, WEIGHTS[depth], [market])
        self.depth = int(depth)
        market.book.deepen(self.depth)
        self.u = market.random.randint(10**8, 10**9)
        self.seq = market.seq
        self.bids, self.asks = Window(market.book.bids, self.depth), Window(market.book.asks, self.depth)

    def _news(self) -> tuple[Levels, Levels]:
        """Moves the window to the present book and returns the changed levels, best first."""
        changes = self.bids.news(), self.asks.news()
        if changes != ([], []):
            self.u += 1
            self.seq = self.market.next_seq()
        return changes

    def refresh(self) -> None:
        self._news()

    def advance(self) -> str:
        changes: tuple[Levels, Levels] = ([], [])
        while changes == ([], []):
            count = self.market.random.lognormvariate(CHANGES_MEDIAN, CHANGES_SIGMA)
            self.market.change_book(self.depth, min(CHANGES_MAX, 1 + int(count)))
            changes = self._news()
        return self.snapshot() if self.depth == 1 else self._frame("delta", *changes)

    def snapshot(self) -> str:
        return self._frame("snapshot", *(sorted(side.levels.items(), reverse=True) for side in (self.bids, self.asks)))

    def _frame(self, kind: str, bids: Levels, asks: Levels) -> str:
        head, now = self.envelope(kind, self.seq)
        if self.depth == 1 and self.category in ("linear", "inverse"):
            head = f'{{"topic":"{self.topic}","ts":{now},"type":"{kind}"'
        return (
            f'{head},"data":{{"s":"{self.market.instrument.symbol}","b":[{self._levels(bids)}],'
            f'"a":[{self._levels(asks)}],"u":{self.u},"seq":{self.seq}}},"cts":{now - 2 - self.u % 4}}}'
        )

    def _levels(self, levels: Levels) -> str:
        level = self.market.instrument.level
        return ",".join([level(key, lots) for key, lots in levels])


class TickerFeed(Feed):
    """tickers.{symbol}: deltas of changed fields on linear and inverse, snapshots elsewhere."""

    TOGETHER = (("bid1Price", "bid1Size"), ("ask1Price", "ask1Size"))  # sent both when one changes

    def __init__(self, topic: str, market: Market) -> None:
        super().__init__(topic, WEIGHTS["tickers"], [market])
        self.trades = True  # False while somebody is subscribed to the trades, who would miss the trades made here
        self.refresh()

    def refresh(self) -> None:
        self.fields, self.seq = ticker(self.market), self.market.seq

    def snapshot(self) -> str:
        return self._frame("snapshot", self.fields)

    def advance(self) -> str:
        market, before = self.market, self.fields
        market.drift()
        if self.trades and market.random.random() < 0.2:
            market.trade()
        while (fields := ticker(market)) == before:
            market.change_book(1)
            if self.category == "spot":  # its tickers report nothing of the book
                market.drift()
        self.fields, self.seq = fields, market.next_seq()
        if self.category in ("spot", "option"):
            return self.snapshot()
        names = {name for name, value in self.fields.items() if before[name] != value}
        for pair in self.TOGETHER:
            if not names.isdisjoint(pair):
                names.update(pair)
        names.add("symbol")
        return self._frame("delta", {name: value for name, value in self.fields.items() if name in names})

    def _frame(self, kind: str, fields: dict[str, str]) -> str:
        head, now = self.envelope(kind, self.seq)
        data = compact(fields)
        if self.category == "spot":
            return f'{head},"cs":{self.seq},"data":{data}}}'
        if self.category == "option":
            return f'{head},"data":{data}}}'
        return f'{{"topic":"{self.topic}","type":"{kind}","data":{data},"cs":{self.seq},"ts":{now}}}'


class TradeFeed(Feed):
    """publicTrade.{symbol}, on option of all contracts of a base coin: market orders that take from the book."""

    def __init__(self, topic: str, markets: Sequence[Market]) -> None:
        super().__init__(topic, WEIGHTS["publicTrade"], markets)

    def advance(self) -> str:
        market = self.market.random.choice(self.markets)
        side, fills = market.trade()
        seq = market.next_seq()
        head, now = self.envelope("snapshot", seq)
        trades = ",".join([self._trade(market, side, now - 1, seq, *fill) for fill in fills])
        return f'{head},"data":[{trades}]}}'

    def _trade(self, market: Market, side: str, at: int, seq: int, ticks: int, lots: int, direction: str) -> str:
        unit = market.instrument
        price, size, symbol = unit.price(ticks), unit.size(lots), unit.symbol
        bits = market.random.getrandbits(128)
        identity = f"229{bits % 10**16:016}" if self.category == "spot" else str(uuid.UUID(int=bits, version=5))
        if self.category in ("linear", "inverse"):
            return (
                f'{{"T":{at},"s":"{symbol}","S":"{side}","v":"{size}","p":"{price}","L":"{direction}",'
                f'"i":"{identity}","BT":false,"RPI":false,"seq":{seq}}}'
            )
        rest = '"RPI":false' if self.category == "spot" else self._prices(market)
        return (
            f'{{"i":"{identity}","T":{at},"p":"{price}","v":"{size}","S":"{side}","seq":{seq},"s":"{symbol}",'
            f'"BT":false,{rest}}}'
        )

    @staticmethod
    def _prices(market: Market) -> str:
        """The mark price, index price and volatilities in a trade of an option."""
        mark = market.book.mid * market.instrument.tick
        return f'"mP":"{mark:.7f}","iP":"{market.index * 3.5:.8f}","mIv":"0.1389","iv":"0.14"'


class LiquidationFeed(Feed):
    """allLiquidation.{symbol}, linear and inverse only."""

    def __init__(self, topic: str, market: Market) -> None:
        super().__init__(topic, LIQUIDATION_WEIGHT, [market])

    def advance(self) -> str:
        market, unit, draw = self.market, self.market.instrument, self.market.random
        head, now = self.envelope("snapshot", market.seq)
        entries = [
            f'{{"T":{now - 60 + 15 * n},"s":"{unit.symbol}","S":"{draw.choice(("Buy", "Sell"))}",'
            f'"v":"{unit.size(market.book.lots())}","p":"{unit.price(market.book.mid * draw.gauss(1, 0.001))}"}}'
            for n in range(min(4, 1 + int(draw.expovariate(1))))
        ]
        return f'{head},"data":[{",".join(entries)}]}}'


def new_feed(topic: str, market: Callable[[str], Market], contracts: Sequence[str] = ()) -> Feed:
    """The feed of a topic that Bybit has.

    Args:
        market: gives the market of a symbol.
        contracts: for publicTrade.{coin} of option: the symbols of that coin's contracts.
    """
    kind, *depth, symbol = topic.split(".")
    if kind == "orderbook":
        return BookFeed(topic, depth[0], market(symbol))
    if kind == "publicTrade":
        return TradeFeed(topic, [market(name) for name in contracts or (symbol,)])
    return TickerFeed(topic, market(symbol)) if kind == "tickers" else LiquidationFeed(topic, market(symbol))
