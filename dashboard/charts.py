"""The columns that the charts draw, from a market. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dashboard.market import SPAN, STEP, Depth, Market

BAR = 5.0  # seconds of a bar of volume
MARGIN = 0.12  # of the height, above and below the price
LEAD = 6.0  # seconds that stay free at the right
COLUMNS = {
    "price": ("time", "price", "low"),
    "last": ("time", "price"),
    "volume": ("time", "sold", "sum"),
    "liquidations": ("time", "price", "marker", "color"),
    "bids": ("price", "sum"),
    "asks": ("price", "sum"),
}
EMPTY: Mapping[str, dict[str, Any]] = {name: {column: [] for column in columns} for name, columns in COLUMNS.items()}

Columns = dict[str, Any]
Range = tuple[float, float]


def data(market: Market | None) -> dict[str, Columns]:
    """The columns of each source. Times in ms."""
    if market is None:
        return {name: dict(columns) for name, columns in EMPTY.items()}
    bids, asks = market.depth()
    seconds = np.array([bar.second for bar in market.bars], dtype=float)
    prices = np.array([bar.price for bar in market.bars], dtype=float)
    low, high = span(prices)
    time = (seconds + STEP / 2) * 1000
    first = time[0] if len(time) else 0.0
    struck = [trade for trade in market.liquidations if trade.ts >= first and low <= float(trade.price) <= high]
    return {
        "price": {"time": time, "price": prices, "low": np.full(len(prices), low)},
        "last": {"time": time[-1:], "price": prices[-1:]},
        "volume": volume(market),
        "liquidations": {
            "time": [trade.ts for trade in struck],
            "price": [float(trade.price) for trade in struck],
            "marker": ["triangle" if trade.side == "Sell" else "inverted_triangle" for trade in struck],
            "color": ["#d9932a"] * len(struck),
        },
        "bids": {name: column[::-1] for name, column in steps(bids).items()},
        "asks": steps(asks),
    }


def steps(side: Depth) -> Columns:
    """A side of the book as a line, from the best price on. Bokeh's own steps hang in the browser while it is empty."""
    prices, sums = np.repeat(side.prices, 2), np.repeat([0.0, *side.sums], 2)
    return {"price": prices, "sum": sums[1:-1]}


def volume(market: Market) -> Columns:
    """What was sold and bought in each BAR seconds."""
    sums: dict[float, list[float]] = {}
    for bar in market.bars:
        both = sums.setdefault(bar.second // BAR * BAR, [0.0, 0.0])
        both[0] += bar.sold
        both[1] += bar.bought
    sold = np.array([both[0] for both in sums.values()])
    return {
        "time": np.array([(start + BAR / 2) * 1000 for start in sums]),
        "sold": sold,
        "sum": sold + np.array([both[1] for both in sums.values()]),
    }


def span(prices: Any) -> Range:
    """From below the lowest to above the highest price."""
    if not len(prices):
        return 0.0, 1.0
    low, high = float(prices.min()), float(prices.max())
    margin = (high - low) * MARGIN or abs(high) * 1e-4 or 1.0
    return low - margin * 2.5, high + margin  # the volume is drawn below the price


def price_ranges(price: Columns, end: float) -> tuple[Range, Range]:
    """Of time, in ms, up to `end`; of prices. Half a minute at least, as much as there is, SPAN seconds at most."""
    begin = float(price["time"][0]) if len(price["time"]) else end
    begin = min(max(begin, end - SPAN * STEP * 1000), end - 30_000)
    return (begin, end + (end - begin) / 50), span(np.asarray(price["price"]))


def depth_ranges(bids: Columns, asks: Columns) -> tuple[Range, Range]:
    """Of prices, the middle of the book in the middle; of sums."""
    lowest, highest = bids["price"][:1], asks["price"][-1:]
    if not len(lowest) or not len(highest):
        return (0.0, 1.0), (0.0, 1.0)
    middle = float(bids["price"][-1] + asks["price"][0]) / 2
    half = min(middle - float(lowest[0]), float(highest[0]) - middle) or 1.0
    top = max(float(bids["sum"][0]), float(asks["sum"][-1]))
    return (middle - half, middle + half), (0.0, top * 1.08 or 1.0)
