"""The frames that every runner gets: the stand-in's market, with the mix and the sizes of Bybit's linear stream.

Each frame carries a marker in numbers that survive in runners that parse, merge and dump again: the message's `ts`,
also `seq` of each trade and `T` of each liquidation, for those who publish single ones. A marker is MARK and seven
digits, the message's index; before it `ts` and `T` have a 1, which makes them milliseconds in July 2025. The same seed
gives the same bytes to every runner.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sandbox.bybit.feeds import BookFeed, Feed, LiquidationFeed, TickerFeed, TradeFeed
from sandbox.bybit.market import Market, instrument
from sandbox.bybit.wire import text_frame

MARK = b"75384"
DIGITS = 7
MARKER = re.compile(MARK + rb"(\d{%d})" % DIGITS)
UNCOUNTED = "0" * DIGITS  # the index of what is sent before a play
MARKED = MARK.decode() + UNCOUNTED

CYCLE = 16_384  # frames made; a play repeats them, each time with new indexes
SEED = 20260809
START = 1_790_134_712.130  # Unix seconds
# Shares of the frames as recorded on a calm day in 2026.
MIX = {"delta": 64.0, "ticker": 29.0, "trade": 6.0, "snapshot": 0.5, "liquidation": 0.5}
DEPTH = "50"

CHANNELS = ("orderbook", "trades", "ticker", "liquidations")
TOPICS = {
    "orderbook": f"orderbook.{DEPTH}.",
    "trades": "publicTrade.",
    "ticker": "tickers.",
    "liquidations": "allLiquidation.",
}
# The number that becomes a marker beside `ts`, by topic.
MARKED_FIELDS = {"publicTrade": (r'"seq":\d+', f'"seq":{MARKED}'), "allLiquidation": (r'"T":\d+', f'"T":1{MARKED}')}
COINS = {"BTC": 4, "ETH": 3, "SOL": 2, "DOGE": 1}  # each with its share of the frames; a group of symbols has all


@dataclass(slots=True)
class Frame:
    """One WebSocket frame as it goes over the wire.

    Attributes:
        topic: as in the subscription.
        wire: header and text; the marker's digits are overwritten before each sending.
        marks: where the digits are (a trade message has one marker for each trade).
    """

    topic: str
    wire: bytearray
    marks: tuple[int, ...]

    def mark(self, index: int) -> bytearray:
        """Write the index and return the wire's bytes, valid until the next call."""
        digits = b"%07d" % index
        wire = self.wire
        for at in self.marks:
            wire[at : at + DIGITS] = digits
        return wire


def symbol_of(coin: str, group: int) -> str:
    return f"{coin}{group or ''}USDT"


def symbols(groups: int) -> list[list[str]]:
    """`groups` lists of four symbols each."""
    return [[symbol_of(coin, n) for coin in COINS] for n in range(groups)]


class Clock:
    """The market's time in Unix seconds; it moves by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Stream:
    """The four feeds of one symbol."""

    def __init__(self, coin: str, group: int, clock: Clock) -> None:
        market = Market(replace(instrument("linear", symbol_of(coin, 0)), symbol=symbol_of(coin, group)), SEED, clock)
        topics = {channel: prefix + market.instrument.symbol for channel, prefix in TOPICS.items()}
        self.book = BookFeed(topics["orderbook"], DEPTH, market)
        self.ticker = TickerFeed(topics["ticker"], market)
        self.ticker.trades = False  # the trades feed makes them
        self.kinds: dict[str, Feed] = {
            "delta": self.book,
            "ticker": self.ticker,
            "trade": TradeFeed(topics["trades"], [market]),
            "liquidation": LiquidationFeed(topics["liquidations"], market),
        }

    def snapshots(self) -> list[Frame]:
        return [frame(self.book.topic, self.book.snapshot()), frame(self.ticker.topic, self.ticker.snapshot())]

    def next(self, kind: str) -> Frame:
        """The next message of a kind of MIX."""
        if kind == "snapshot":
            return frame(self.book.topic, self.book.snapshot())
        feed = self.kinds[kind]
        return frame(feed.topic, feed.advance())


def frame(topic: str, text: str) -> Frame:
    """A data frame with markers in it."""
    text = re.sub(r'"ts":\d+', f'"ts":1{MARKED}', text)
    if field := MARKED_FIELDS.get(topic.partition(".")[0]):
        text = re.sub(*field, text)
    wire = bytearray(text_frame(text))
    return Frame(topic, wire, tuple(found.start(1) for found in MARKER.finditer(wire)))


def make(groups: int) -> tuple[dict[str, Frame], list[Frame]]:
    """The frames for `groups` groups of symbols.

    Returns:
        The snapshot of each order-book and ticker topic that follows its acknowledgement, and the CYCLE frames of a
        play. The cycle begins with all snapshots, so it can be repeated.
    """
    clock = Clock()
    streams = [[Stream(coin, n, clock) for coin in COINS] for n in range(groups)]
    cycle = [one for group in streams for stream in group for one in stream.snapshots()]
    first = {one.topic: Frame(one.topic, one.wire[:], one.marks) for one in cycle}
    cycle += moves(streams, clock, CYCLE - len(cycle))
    return first, cycle


def moves(streams: list[list[Stream]], clock: Clock, count: int) -> Iterator[Frame]:
    rng = random.Random(SEED)
    for kind in rng.choices(list(MIX), list(MIX.values()), k=count):
        clock.now += rng.uniform(0.005, 0.04)
        (stream,) = rng.choices(rng.choice(streams), list(COINS.values()))
        yield stream.next(kind)


def sizes(cycle: list[Frame]) -> dict[str, tuple[int, int, int, int, int]]:
    """For each kind of message: count, and bytes of text as minimum, median, 95th percentile and maximum."""
    found: dict[str, list[int]] = {}
    for one in cycle:
        kind = one.topic.split(".")[0] + (" snapshot" if b'"type":"snapshot"' in one.wire[:80] else " delta")
        found.setdefault(kind, []).append(len(one.wire) - (2 if one.wire[1] < 126 else 4))
    return {
        kind: (len(all_), min(all_), sorted(all_)[len(all_) // 2], sorted(all_)[len(all_) * 95 // 100], max(all_))
        for kind, all_ in found.items()
    }
