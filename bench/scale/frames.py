"""The frames of a market of any size: one cycle, sent again and again, in which every message has a number.

The texts are those of the stand-in's market, or recorded ones, each with another symbol in it. Symbols differ in how
often they trade: the first forty times as much as the eight-hundredth. Two numbers are written before each sending:
the index of the message into its `ts`, and a book's next `u`, so that no book has a gap however often the cycle comes.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.frames import COINS, DIGITS, MARK, SEED, TOPICS, UNCOUNTED, Clock, Stream
from sandbox.bybit.wire import text_frame

CYCLE = 40_000  # frames
TEXTS = 64  # of each kind and coin
# Shares of the frames as recorded on a calm day in 2026.
MIX = {"delta": 64.5, "ticker": 29.0, "trade": 6.0, "liquidation": 0.5}
RANK = 20  # a symbol's share of the frames is 1 / (its place in the list + RANK)
FIRST_U = 100_000_000  # nine digits, and nine they stay
INDEX = re.compile(rb'"ts":1' + MARK + rb"(\d{%d})" % DIGITS)
U = re.compile(rb'"u":(\d{9}),')

Texts = dict[str, list[tuple[str, str]]]  # by kind: (the symbol in it, text)


@dataclass(slots=True)
class Frame:
    """One WebSocket frame as it goes over the wire.

    topic: as in the subscription. wire: header and text. index_at, u_at: where the two numbers are; u_at 0 = no book.
    """

    topic: str
    wire: bytearray
    index_at: int
    u_at: int

    def number(self, index: int, u: int) -> bytearray:
        """The wire's bytes with these numbers, valid until the next call."""
        self.wire[self.index_at : self.index_at + DIGITS] = b"%07d" % index
        if self.u_at:
            self.wire[self.u_at : self.u_at + 9] = b"%d" % u
        return self.wire


@dataclass(frozen=True)
class Cycle:
    """snapshots: what follows the subscription of a topic, where something does; moves: the frames of a play."""

    snapshots: dict[str, Frame]
    moves: list[Frame]

    @property
    def topics(self) -> set[str]:
        """All that a collector of this market subscribes to: also what does not come up in the moves."""
        symbols = {topic.rpartition(".")[2] for topic in self.snapshots}
        return {prefix + symbol for prefix in TOPICS.values() for symbol in symbols}


def symbols(count: int) -> list[str]:
    """Names of nine letters, as Bybit's are on average."""
    return [f"C{number:04d}USDT" for number in range(count)]


def cycle(count: int, recorded: Path | None = None, length: int = CYCLE) -> Cycle:
    """The frames for `count` symbols; the same bytes at every call. recorded: lines of time, tab, text."""
    rng, names = random.Random(SEED), symbols(count)
    made = simulated()
    texts = made | texts_of(line.split("\t", 1)[1] for line in recorded.open()) if recorded else made
    weights = [1 / (place + RANK) for place in range(count)]
    kinds = rng.choices(list(MIX), list(MIX.values()), k=length)
    owners = rng.choices(names, weights, k=length)
    moves = [frame(*rng.choice(texts[kind]), name) for kind, name in zip(kinds, owners, strict=True)]
    first = [frame(*texts[kind][0], name) for name in names for kind in ("book snapshot", "ticker snapshot")]
    return Cycle({one.topic: one for one in first}, moves)


def simulated() -> Texts:
    """Texts from the stand-in's market."""
    clock, found = Clock(), Texts()
    for coin in COINS:
        stream = Stream(coin, 0, clock)
        found.setdefault("book snapshot", []).append((f"{coin}USDT", stream.book.snapshot()))
        found.setdefault("ticker snapshot", []).append((f"{coin}USDT", stream.ticker.snapshot()))
        for kind in MIX:
            for _ in range(TEXTS):
                clock.now += 0.02
                found.setdefault(kind, []).append((f"{coin}USDT", stream.kinds[kind].advance()))
    return found


def texts_of(lines: Iterable[str]) -> Texts:
    """Texts from a recording; kinds that are not in it are left out."""
    found = Texts()
    for kind, symbol, text in recorded_kinds(lines):
        found.setdefault(kind, []).append((symbol, text))
    return found


def recorded_kinds(lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    for line in lines:
        text = line.strip()
        head = re.match(r'{"topic":"(\w+)\.(?:\d+\.)?(\w+)","type":"(\w+)"', text) or re.match(
            r'{"topic":"(\w+)\.(?:\d+\.)?(\w+)"()', text
        )
        if head is None:
            continue
        name, symbol, type_ = head.groups()
        text = re.sub(r'"orderbook\.\d+\.', f'"{TOPICS["orderbook"]}', text)
        if name == "orderbook":
            yield ("book snapshot" if type_ == "snapshot" else "delta"), symbol, text
        elif name == "tickers":
            yield ("ticker snapshot" if type_ == "snapshot" else "ticker"), symbol, text
        elif name == "publicTrade":
            yield "trade", symbol, text


def frame(symbol: str, text: str, name: str) -> Frame:
    """The text with the symbol `name` in place of its own."""
    text = text.replace(symbol, name)
    text = re.sub(r'"ts":\d+', f'"ts":1{MARK.decode()}{UNCOUNTED}', text, count=1)
    topic = text[len('{"topic":"') : text.index('"', len('{"topic":"'))]
    if topic.startswith("orderbook."):
        text = re.sub(r'"u":\d+', f'"u":{FIRST_U}', text, count=1)
    wire = bytearray(text_frame(text))
    index, u = INDEX.search(wire), U.search(wire) if topic.startswith("orderbook.") else None
    assert index, text
    return Frame(topic, wire, index.start(1), u.start(1) if u else 0)
