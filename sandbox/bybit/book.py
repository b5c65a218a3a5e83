"""A made-up order book, and what of it a subscriber of some depth has seen. Pure; chance is handed in."""

from __future__ import annotations

import random
from bisect import insort
from math import log

Levels = list[tuple[int, int]]  # (key of a Side, lots); 0 lots = the level is gone


class Side:
    """One side of an order book. A key is the price in ticks, negated for asks: the greatest key is the best.

    Attributes:
        touched: for each Window on it, the keys that were put or removed since its latest news.
    """

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.sizes: dict[int, int] = {}
        self.touched: list[set[int]] = []

    @property
    def best(self) -> int:
        return self.keys[-1]

    def put(self, key: int, lots: int) -> None:
        if key not in self.sizes:
            insort(self.keys, key)
        self.sizes[key] = lots
        for touched in self.touched:
            touched.add(key)

    def remove(self, key: int) -> None:
        del self.sizes[key]
        self.keys.remove(key)
        for touched in self.touched:
            touched.add(key)


class Window:
    """The best levels of one side, in the state of the latest news. The side always has more of them.

    Attributes:
        levels: lots by key.
    """

    def __init__(self, side: Side, depth: int) -> None:
        self._side, self._depth = side, depth
        self.levels = {key: side.sizes[key] for key in side.keys[-depth:]}
        self._bottom = side.keys[-depth]
        self._touched: set[int] = set()
        side.touched.append(self._touched)

    def news(self) -> Levels:
        """Moves the window to the present state and returns what changed, best first.

        Only what was touched is looked at, and what has left or entered at the lower edge: to compare all levels with
        those before took a quarter of the time that a message takes.
        """
        keys, sizes, levels, touched = self._side.keys, self._side.sizes, self.levels, self._touched
        before, bottom = self._bottom, keys[-self._depth]
        changes = []
        for key in touched:
            lots = sizes.get(key, 0) if key >= bottom else 0
            if levels.get(key, 0) != lots:
                changes.append((key, lots))
        at = len(keys) - self._depth
        while at < len(keys) and keys[at] < before:  # it has entered
            if keys[at] not in touched:
                changes.append((keys[at], sizes[keys[at]]))
            at += 1
        at = len(keys) - self._depth - 1
        while at >= 0 and keys[at] >= before:  # it has left
            if keys[at] not in touched:
                changes.append((keys[at], 0))
            at -= 1
        for key, lots in changes:
            if lots:
                levels[key] = lots
            else:
                del levels[key]
        touched.clear()
        self._bottom = bottom
        changes.sort(reverse=True)
        return changes


class Book:
    """Bids and asks, always as many levels as the deepest window needs."""

    def __init__(self, start: int, level_lots: float, draw: random.Random) -> None:
        self.bids, self.asks = Side(), Side()
        self._level_lots, self._random = level_lots, draw
        self._levels = 0  # per side
        self.bids.put(start - 1, self.lots())
        self.asks.put(-start, self.lots())
        self.deepen(50)

    @property
    def mid(self) -> float:
        """The middle of the spread, in ticks."""
        return (self.bids.best - self.asks.best) / 2

    def lots(self) -> int:
        """A random size."""
        return 1 + int(-log(1 - self._random.random()) * self._level_lots)  # expovariate, without its two calls

    def deepen(self, depth: int) -> None:
        """Makes the book deep enough for a window of `depth` levels on each side."""
        self._levels = max(self._levels, depth + 10)
        for side in (self.bids, self.asks):
            self._fill(side)

    def _fill(self, side: Side) -> None:
        while len(side.keys) < self._levels:
            side.put(side.keys[0] - 1 - int(self._random.expovariate(1)), self.lots())
        while len(side.keys) > self._levels:
            side.remove(side.keys[0])

    def change(self, depth: int, pull: float) -> None:
        """Changes, adds or removes one level among the best `depth` ones.

        Every second change is near the best price. A positive `pull` (-1 to 1) makes bids disappear more often and
        asks less often, so the price falls.
        """
        draw = self._random
        bid = draw.random() < 0.5
        side, other = (self.bids, self.asks) if bid else (self.asks, self.bids)
        spread = -self.asks.keys[-1] - self.bids.keys[-1]
        if spread > 1 and draw.random() < 0.5:
            rank = 0  # an order inside the spread closes it
        else:
            near = draw.random() < 0.5
            rank = min(int(-5 * log(1 - draw.random()) if near else draw.random() * depth), depth - 1)
        key = side.keys[-1 - rank]
        limit = side.keys[-rank] if rank else -other.best  # the next better level, or the other side
        roll = draw.random()
        if roll < (0.4 if rank else 0.8) and key + 1 < limit:
            side.put(key + 1 + int(draw.random() * (limit - key - 1)), self.lots())
        elif roll > 0.85 - (0.1 if bid else -0.1) * pull:
            side.remove(key)
        else:
            side.put(key, self.lots() + (side.sizes[key] % 2))
        if len(side.keys) != self._levels:
            self._fill(side)

    def take(self, buy: bool, orders: int) -> list[tuple[int, int]]:
        """A market order meets that many resting orders at the best price: [(ticks, lots), ...]."""
        side = self.asks if buy else self.bids
        fills = []
        for _ in range(orders):
            key = side.best
            lots = min(side.sizes[key], 1 + self.lots() // 4)
            if lots == side.sizes[key]:
                side.remove(key)
            else:
                side.put(key, side.sizes[key] - lots)
            fills.append((abs(key), lots))
        self._fill(side)
        return fills
