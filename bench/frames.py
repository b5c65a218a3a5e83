"""The frames that every runner gets: made up, with the shapes and sizes of Bybit's linear public stream.

Each carries a marker in numbers that survive in runners that parse, merge and dump again: the message's `ts`, also
`seq` of each trade and `T` of each liquidation, for those who hand on single ones. A marker is MARK and seven digits,
the message's index; before it `ts` and `T` have a 1, which makes them milliseconds in July 2025. The same seed gives
the same bytes to every runner.
"""

import json
import random
import re
from dataclasses import dataclass
from typing import Any

MARK = b"75384"
DIGITS = 7
MARKER = re.compile(MARK + rb"(\d{%d})" % DIGITS)
NOBODY = "0" * DIGITS  # the index of what is sent before a play: not counted

CYCLE = 16_384  # frames made; a play repeats them, each time with new indexes
SEED = 20260809
# Shares of the frames, and how many trades a trade message carries: as recorded on a calm day in 2026.
MIX = {"delta": 64.0, "ticker": 29.0, "trade": 6.0, "snapshot": 0.5, "liquidation": 0.5}
TRADES = {1: 63, 2: 20, 3: 6, 5: 4, 8: 3, 13: 2, 20: 1, 30: 1}
LEVELS_MEDIAN, LEVELS_SIGMA, LEVELS_MAX = 1.65, 1.1, 90  # order-book delta: 1 + lognormal
DEPTH = 50

CHANNELS = ("orderbook", "trades", "ticker", "liquidations")
TOPICS = {
    "orderbook": f"orderbook.{DEPTH}.",
    "trades": "publicTrade.",
    "ticker": "tickers.",
    "liquidations": "allLiquidation.",
}
# Price, tick and size step; eight groups of four for the benchmark with 32 connections.
BASES = {
    "BTC": (65_114.2, 1, "{:.3f}"),
    "ETH": (1_922.5, 2, "{:.2f}"),
    "SOL": (77.28, 3, "{:.1f}"),
    "DOGE": (0.0705, 5, "{:.0f}"),
}
WEIGHTS = (4, 3, 2, 1)


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


def symbols(groups: int) -> list[list[str]]:
    """`groups` lists of four symbols each."""
    return [[f"{base}{'' if n == 0 else n}USDT" for base in BASES] for n in range(groups)]


def text_frame(text: bytes) -> bytes:
    """A whole, unmasked text frame, as a server sends it."""
    size = len(text)
    if size < 126:
        return b"\x81" + bytes((size,)) + text
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + text
    return b"\x81\x7f" + size.to_bytes(8, "big") + text


class Market:
    """One symbol's book and prices; makes its messages, consistent with one another (every deleted level exists)."""

    def __init__(self, symbol: str, rng: random.Random) -> None:
        self.symbol = symbol
        self.rng = rng
        price, self.digits, self.size_format = BASES[re.sub(r"\d*USDT$", "", symbol)]
        self.middle = round(price * 10**self.digits)  # in ticks
        self.u = rng.randrange(10_000_000, 90_000_000)
        self.cross = rng.randrange(200_000_000_000, 300_000_000_000)
        self.ts = 1_790_134_712_130
        self.book: dict[str, dict[int, str]] = {"b": {}, "a": {}}
        for n in range(DEPTH):
            self.book["b"][self.middle - n] = self.size()
            self.book["a"][self.middle + 1 + n] = self.size()

    def price(self, ticks: int) -> str:
        return f"{ticks / 10**self.digits:.{max(self.digits, 2)}f}"

    def size(self) -> str:
        scale = 100_000 if self.digits > 4 else 1
        return self.size_format.format(scale * self.rng.lognormvariate(0, 1.5) + 1)  # never 0, which means: deleted

    def sequence(self) -> int:
        """Bybit's cross sequence, which rises over all of a symbol's messages."""
        self.cross += self.rng.randrange(1, 9_000)
        return self.cross

    def distance(self) -> int:
        """Ticks from the best price: most changes are near it."""
        return int(self.rng.expovariate(1 / 12))

    def levels(self, side: str, prices: list[int]) -> list[list[str]]:
        return [[self.price(ticks), self.book[side].get(ticks, "0")] for ticks in sorted(prices, reverse=side == "b")]

    def book_message(self, kind: str, b: list[list[str]], a: list[list[str]]) -> dict[str, Any]:
        self.u += 1
        data = {"s": self.symbol, "b": b, "a": a, "u": self.u, "seq": self.sequence()}
        topic = TOPICS["orderbook"] + self.symbol
        return {"topic": topic, "type": kind, "ts": "1" + MARKED, "data": data, "cts": self.ts - 4}

    def snapshot(self) -> dict[str, Any]:
        return self.book_message("snapshot", *(self.levels(side, list(self.book[side])) for side in "ba"))

    def delta(self) -> dict[str, Any]:
        count = min(LEVELS_MAX, 1 + int(self.rng.lognormvariate(LEVELS_MEDIAN, LEVELS_SIGMA)))
        touched: dict[str, set[int]] = {"b": set(), "a": set()}
        before = {side: set(book) for side, book in self.book.items()}
        while sum(map(len, touched.values())) < count:
            side = self.rng.choice("ba")
            book, away = self.book[side], -1 if side == "b" else 1
            best, worst = (max(book), min(book)) if side == "b" else (min(book), max(book))
            ticks = self.rng.choice(sorted(book)) if self.rng.random() < 0.5 else best + away * self.distance()
            if ticks in book and self.rng.random() < 0.4:  # a level goes, the next one beyond the depth comes in
                del book[ticks]
                touched[side].add(ticks)
                ticks = worst + away
            book[ticks] = self.size()
            touched[side].add(ticks)
            if len(book) > DEPTH:  # the one beyond the depth leaves
                worst = min(book) if side == "b" else max(book)
                del book[worst]
                touched[side].add(worst)
        # A level that came and went within this message is not mentioned: a delete names a known level.
        mentioned = (
            [ticks for ticks in touched[side] if ticks in before[side] or ticks in self.book[side]] for side in "ba"
        )
        return self.book_message(
            "delta", *(self.levels(side, prices) for side, prices in zip("ba", mentioned, strict=True))
        )

    def trade(self) -> dict[str, Any]:
        count = self.rng.choices(list(TRADES), list(TRADES.values()))[0]
        side = self.rng.choice(("Buy", "Sell"))
        data = []
        for n in range(count):
            unique = f"{self.rng.getrandbits(128):032x}"
            data.append(
                {
                    "T": self.ts - 1,
                    "s": self.symbol,
                    "S": side,
                    "v": self.size(),
                    "p": self.price(self.middle),
                    "L": "ZeroPlusTick" if n else "PlusTick",
                    "i": "-".join((unique[:8], unique[8:12], unique[12:16], unique[16:20], unique[20:])),
                    "BT": False,
                    "RPI": False,
                    "seq": MARKED,
                }
            )
        return {"topic": TOPICS["trades"] + self.symbol, "type": "snapshot", "ts": "1" + MARKED, "data": data}

    def ticker(self, kind: str = "delta") -> dict[str, Any]:
        price, rng = self.price(self.middle), self.rng
        quotes = {"bid1Price": price, "bid1Size": self.size(), "ask1Price": price, "ask1Size": self.size()}
        interest = {"openInterest": "59891.732", "openInterestValue": f"{rng.uniform(3e9, 4e9):.2f}"}
        single = {"singleOpenInterest": "29945.866", "singleOpenInterestValue": f"{rng.uniform(1e9, 2e9):.2f}"}
        day = {"turnover24h": f"{rng.uniform(1e9, 2e9):.4f}", "volume24h": f"{rng.uniform(1e4, 2e4):.4f}"}
        last = {"tickDirection": "ZeroPlusTick", "price24hPcnt": "0.001624", "lastPrice": price}
        mark = {"markPrice": price, "indexPrice": price}
        data: dict[str, str] = {"symbol": self.symbol}
        if kind == "snapshot":
            history = dict.fromkeys(("prevPrice24h", "highPrice24h", "lowPrice24h", "prevPrice1h"), price)
            funding = {
                "fundingIntervalHour": "8",
                "fundingCap": "0.005",
                "nextFundingTime": "1786320000000",
                "fundingRate": "0.0001",
            }
            listing = {"preOpenPrice": "", "preQty": "", "curPreListingPhase": ""}
            for part in (last, history, mark, interest, single, day, funding, quotes, listing):
                data.update(part)
        else:
            for part, share in ((last, 0.04), (mark, 0.12), (interest, 0.05), (single, 0.05), (day, 0.05)):
                if rng.random() < share:
                    data.update(part)
            names = rng.choices((list(quotes)[:2], list(quotes)[2:], list(quotes)), (4, 4, 2))[0]
            data.update({name: quotes[name] for name in names})
        topic = TOPICS["ticker"] + self.symbol
        return {"topic": topic, "type": kind, "data": data, "cs": self.sequence(), "ts": "1" + MARKED}

    def liquidation(self) -> dict[str, Any]:
        data = [{"T": "1" + MARKED, "s": self.symbol, "S": "Buy", "v": self.size(), "p": self.price(self.middle)}]
        return {"topic": TOPICS["liquidations"] + self.symbol, "type": "snapshot", "ts": "1" + MARKED, "data": data}

    def message(self, kind: str) -> dict[str, Any]:
        """The next message of a kind of MIX; moves the price and the clock a little."""
        self.ts += self.rng.randrange(5, 40)
        self.middle += self.rng.choice((-1, 0, 0, 0, 1))
        made: dict[str, Any] = getattr(self, kind)()
        return made


MARKED = f"{MARK.decode()}{NOBODY}"  # made as a string, written as a number


def frame(message: dict[str, Any]) -> Frame:
    text = json.dumps(message, separators=(",", ":"))
    text = re.sub(rf'"(1?{MARKED})"', r"\1", text)
    wire = bytearray(text_frame(text.encode()))
    return Frame(message["topic"], wire, tuple(found.start(1) for found in MARKER.finditer(wire)))


def make(groups: int) -> tuple[dict[str, Frame], list[Frame]]:
    """The frames for `groups` groups of symbols.

    Returns:
        The snapshot of each order-book and ticker topic that follows its acknowledgement, and the CYCLE frames of a
        play. The cycle begins with all snapshots, so it can be repeated.
    """
    rng = random.Random(SEED)
    markets = [[Market(symbol, rng) for symbol in group] for group in symbols(groups)]
    every = [market for group in markets for market in group]
    cycle = [frame(message) for market in every for message in (market.snapshot(), market.ticker("snapshot"))]
    first = {one.topic: Frame(one.topic, one.wire[:], one.marks) for one in cycle}
    kinds = rng.choices(list(MIX), list(MIX.values()), k=CYCLE - len(cycle))
    for kind in kinds:
        market = rng.choices(rng.choice(markets), WEIGHTS)[0]
        cycle.append(frame(market.message(kind)))
    return first, cycle


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
