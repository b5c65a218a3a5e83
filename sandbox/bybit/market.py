"""One symbol of a made-up market: its order book, its trades and the figures that a ticker reports.

Pure: no socket, no thread, and the clock is handed in. The same seed and clock give the same market.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from sandbox.bybit.book import Book

# Price, tick, decimals of a price and of a size, as on linear.
COINS = {
    "BTC": (65114.2, 0.1, 2, 3),
    "ETH": (1922.48, 0.01, 2, 2),
    "SOL": (77.31, 0.01, 3, 1),
    "DOGE": (0.07053, 0.00001, 5, 0),
    "XRP": (1.1432, 0.0001, 4, 0),
}
OPTION = (24465.0, 5.0, 0, 2)
LEVEL_VALUE = 5_000  # average value of one order-book level, in quote coin
OPTION_LEVEL_LOTS = 10  # average size of one order-book level of a contract, before decimals
# How many trades one market order makes, and how often, as recorded on a calm day in 2026.
FILLS = {1: 63, 2: 20, 3: 6, 5: 4, 8: 3, 13: 2, 20: 1, 30: 1}


@dataclass(frozen=True)
class Instrument:
    """How prices and sizes of one symbol are counted and written.

    Attributes:
        start: the price at which the market begins, in quote coin.
        tick: the price step, in quote coin. Prices are counted in ticks.
        decimals: digits of a price after the point.
        size_decimals: digits of a size after the point. A lot is one unit of the last digit.
        level_lots: the average size of one order-book level, in lots.
    """

    category: str
    symbol: str
    start: float
    tick: float
    decimals: int
    size_decimals: int
    level_lots: float

    def price(self, ticks: float) -> str:
        """A price as Bybit writes it; the sign of `ticks` is ignored, see `Side`."""
        return self.number(abs(ticks) * self.tick, self.decimals)

    def size(self, lots: float) -> str:
        return self.number(lots / 10**self.size_decimals, self.size_decimals) if lots else "0"

    def level(self, ticks: float, lots: float) -> str:
        """A level of an order book, as JSON; 0 lots = it is gone."""
        if not lots or self.category in ("spot", "option"):
            return f'["{self.price(ticks)}","{self.size(lots)}"]'
        return self._level % (abs(ticks) * self.tick, lots / 10**self.size_decimals)

    @cached_property
    def _level(self) -> str:
        """A template: of all that a message costs, formatting numbers was a quarter."""
        return f'["%.{self.decimals}f","%.{self.size_decimals}f"]'

    def number(self, value: float, decimals: int) -> str:
        """Fixed decimals on linear and inverse; spot and option trim zeros."""
        text = f"{value:.{decimals}f}"
        return text.rstrip("0").rstrip(".") if decimals and self.category in ("spot", "option") else text


def instrument(category: str, symbol: str) -> Instrument:
    """The instrument of any symbol; a coin that is not in COINS gets invented prices."""
    coin = re.split(r"USD|-|PERP|EUR", symbol)[0]
    price, tick, decimals, size_decimals = COINS.get(coin) or invented_coin(symbol)
    level_size = LEVEL_VALUE / price
    if category == "spot":
        size_decimals += 3
    elif category == "inverse":  # sizes are in US dollars
        size_decimals, level_size = 0, LEVEL_VALUE
    elif category == "option":
        price, tick, decimals, size_decimals = OPTION
        level_size = OPTION_LEVEL_LOTS
    level_lots = max(2.0, level_size * 10**size_decimals)
    return Instrument(category, symbol, price, tick, decimals, size_decimals, level_lots)


def invented_coin(symbol: str) -> tuple[float, float, int, int]:
    """Price, tick and decimals for a symbol that is not in COINS."""
    code = zlib.crc32(symbol.encode())
    magnitude = code % 6 - 2
    decimals = max(0, 4 - magnitude)
    return 10.0**magnitude * (1 + code // 6 % 8), 10.0 ** (magnitude - 4), decimals, max(0, magnitude)


class Statistics:
    """What the trades of a day leave behind: prices in ticks, volume in lots, turnover in lots x ticks."""

    def __init__(self, start: int, volume: float) -> None:
        self.last = start
        self.direction = "ZeroPlusTick"
        self.high, self.low, self.hour_ago, self.day_ago = (round(start * x) for x in (1.004, 0.995, 0.999, 0.998))
        self.volume, self.turnover = volume, volume * start

    def add(self, ticks: int, lots: int) -> str:
        """Counts a trade and returns its tick direction."""
        if ticks != self.last:
            self.direction = "PlusTick" if ticks > self.last else "MinusTick"
        elif not self.direction.startswith("Zero"):
            self.direction = "Zero" + self.direction
        self.last, self.high, self.low = ticks, max(self.high, ticks), min(self.low, ticks)
        self.volume += lots
        self.turnover += lots * ticks
        return self.direction


class Market:
    """One symbol: its book, its trades and what does not come from either (index, mark, open interest, funding).

    Attributes:
        clock: Unix seconds.
        random: all chance of this market, feeds included, comes from here.
        start, index, mark: ticks.
        open_interest: lots.
        seq: Bybit's cross sequence, which rises over all messages of a symbol.
    """

    def __init__(self, instrument: Instrument, seed: int, clock: Callable[[], float]) -> None:
        self.instrument, self.clock = instrument, clock
        self.random = draw = random.Random(f"{seed}/{instrument.category}/{instrument.symbol}")
        self.start = round(instrument.start / instrument.tick)
        self.book = Book(self.start, instrument.level_lots, draw)
        self.day = Statistics(self.start, draw.randint(10**4, 10**5) * instrument.level_lots)
        self.open_interest = draw.randint(10**4, 10**5) * int(instrument.level_lots)
        self.index, self.mark = self.start * 1.0004, float(self.start)
        self.funding = 0.0001
        self.seq = draw.randint(10**11, 10**12 - 10**10)

    @property
    def pull(self) -> float:
        """From -1 to 1: how strongly the price tends back to where it began."""
        return max(-1.0, min(1.0, (self.book.mid - self.start) / (0.02 * self.start)))

    def next_seq(self) -> int:
        self.seq += self.random.randint(1, 40)
        return self.seq

    def change_book(self, depth: int, count: int = 1) -> None:
        """Changes `count` of the best `depth` levels of either side."""
        pull = self.pull
        for _ in range(count):
            self.book.change(depth, pull)

    def trade(self) -> tuple[str, list[tuple[int, int, str]]]:
        """A market order takes orders off the best levels: taker side, [(ticks, lots, tick direction)]."""
        buy = self.random.random() < 0.5 - self.pull / 2
        (orders,) = self.random.choices(list(FILLS), list(FILLS.values()))
        fills = [(ticks, lots, self.day.add(ticks, lots)) for ticks, lots in self.book.take(buy, orders)]
        return ("Buy" if buy else "Sell"), fills

    def drift(self) -> None:
        """Moves the figures that do not come from the book; how often each moves is as recorded."""
        draw, mid = self.random, self.book.mid
        if draw.random() < 0.1:
            self.index = mid * (1.0004 + draw.gauss(0, 0.00002))
        if draw.random() < 0.12:
            self.mark = 0.9 * mid + 0.1 * self.index
        if draw.random() < 0.03:
            self.open_interest = max(1, self.open_interest + self.book.lots() - self.book.lots())
        if draw.random() < 0.003:
            self.funding = 0.0001 + draw.randint(-20, 20) * 1e-8
