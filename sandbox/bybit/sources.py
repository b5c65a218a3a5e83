"""Where the data of subscribed topics comes from: a generated market, or a recording. On the server's thread."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from sandbox.bybit.connection import Connection
from sandbox.bybit.dialect import CATEGORIES, contracts_of, has_topic
from sandbox.bybit.feeds import BookFeed, Feed, TickerFeed, TradeFeed, new_feed
from sandbox.bybit.loop import LoopThread
from sandbox.bybit.market import Market, instrument
from sandbox.bybit.state import Made
from sandbox.bybit.wire import text_frame, topic_of

TICK = 0.005  # seconds between two bursts of the generated market
BURST = 20  # ticks that a late burst may make up for
REPLAY_PIECE = 64  # frames of a replay at full speed between two chances to write


class Source(Protocol):
    """Where the data of subscribed topics comes from."""

    def knows(self, category: str, topic: str) -> bool:
        """Whether a subscription to the topic is accepted."""

    def begin(self, connection: Connection, topics: list[str]) -> object:
        """Lets data flow; returns what feeds the topics from now on."""

    def resume(self, connection: Connection, topics: list[str]) -> None:
        """Goes on after a pause in which data was lost."""

    def leave(self, connection: Connection, topics: Iterable[str]) -> None:
        """Ends the data of the topics."""


class GeneratedMarket:
    """Feeds move at random, weighted, and each frame goes to all subscribers of its topic.

    Args:
        symbols: known symbols by category. May be replaced while running, as `rate`.
        rate: frames a second over all subscribed topics; 0 = nothing moves by itself.
        repush: seconds after which an unchanged depth-1 book is sent again.
        truth: keep every frame made; a feed that once had a subscriber then moves on without one.

    Attributes:
        paused: nothing moves.
    """

    def __init__(
        self, symbols: Mapping[str, Sequence[str]], rate: float, repush: float, seed: int, truth: bool = False
    ) -> None:
        self.symbols, self.rate = symbols, rate
        self.paused = False
        self._repush, self._seed, self._keeps_truth = repush, seed, truth
        self._random = random.Random(seed)
        self._markets: dict[tuple[str, str], Market] = {}
        self._feeds: dict[tuple[str, str], Feed] = {}
        self._subscribers: dict[Feed, list[Connection]] = {}  # only feeds that move
        self._moving: tuple[list[Feed], list[int]] | None = None  # those feeds and the sums of their weights
        self._made: defaultdict[tuple[str, str], list[Made]] = defaultdict(list)

    def knows(self, category: str, topic: str) -> bool:
        return has_topic(self.symbols, category, topic)

    def begin(self, connection: Connection, topics: list[str]) -> object:
        """Subscribes a connection; topics that have a snapshot begin with one."""
        for topic in topics:
            feed = self._feed(connection.category, topic)
            if feed is None:
                continue
            if feed not in self._subscribers:
                feed.refresh()
                self._subscribers[feed] = []
                self._moving = None
            subscribers = self._subscribers[feed]
            if connection not in subscribers:
                subscribers.append(connection)
            if text := feed.snapshot():
                connection.snapshot(topic, text)
        if self._moving is None:
            self._share_trades()
        return self

    def resume(self, connection: Connection, topics: list[str]) -> None:
        self.begin(connection, topics)

    def leave(self, connection: Connection, topics: Iterable[str]) -> None:
        for topic in topics:
            feed = self._feeds.get((connection.category, topic))
            if feed and connection in self._subscribers.get(feed, ()):
                self._subscribers[feed].remove(connection)
                if not self._subscribers[feed] and not self._keeps_truth:
                    del self._subscribers[feed]
                    self._moving = None
        if self._moving is None:
            self._share_trades()

    def add_symbol(self, category: str, symbol: str) -> None:
        """A new symbol. Topics that were subscribed before it was there have to be subscribed again."""
        names = self.symbols.get(category, ())
        if symbol in names:
            return
        self.symbols = {**self.symbols, category: [*names, symbol]}
        for feed in self._trades_of_coin(category, symbol):
            feed.markets = [*feed.markets, self._market(category, symbol)]

    def remove_symbol(self, category: str, symbol: str) -> None:
        """Ends the data of a symbol, also where it is subscribed."""
        self.symbols = {**self.symbols, category: [name for name in self.symbols.get(category, ()) if name != symbol]}
        market = self._markets.pop((category, symbol), None)
        for key, feed in list(self._feeds.items()):
            if market in feed.markets:
                feed.markets = [each for each in feed.markets if each is not market]
                if not feed.markets:
                    del self._feeds[key]
                    self._subscribers.pop(feed, None)
                    self._moving = None

    def _trades_of_coin(self, category: str, symbol: str) -> Iterable[Feed]:
        """The feed that carries the trades of an option contract beside those of others."""
        feed = self._feeds.get((category, f"publicTrade.{symbol.split('-')[0]}")) if category == "option" else None
        return [feed] if feed else []

    def snapshot(self, category: str, topic: str) -> str | None:
        feed = self._feed(category, topic)
        return feed.snapshot() if feed else None

    def truth(self, category: str) -> dict[str, list[Made]]:
        """Every frame made, by topic."""
        return {topic: list(made) for (own, topic), made in self._made.items() if own == category}

    def note_published(self, topic: str, text: str) -> None:
        """A frame that a test has made, for whoever is subscribed."""
        if self._keeps_truth:
            made = Made(time.monotonic(), text)
            for category in CATEGORIES:
                if self.knows(category, topic):
                    self._made[category, topic].append(made)

    def _share_trades(self) -> None:
        """A ticker makes trades of its own only where the symbol's trades have no subscriber."""
        traded = {market for feed in self._subscribers if isinstance(feed, TradeFeed) for market in feed.markets}
        for feed in self._subscribers:
            if isinstance(feed, TickerFeed):
                feed.trades = feed.market not in traded

    def _feed(self, category: str, topic: str) -> Feed | None:
        key = category, topic
        if key not in self._feeds and self.knows(category, topic):
            contracts = contracts_of(self.symbols[category], topic.rpartition(".")[2]) if category == "option" else ()
            self._feeds[key] = new_feed(topic, lambda symbol: self._market(category, symbol), contracts)
        return self._feeds.get(key)

    def _market(self, category: str, symbol: str) -> Market:
        key = category, symbol
        if key not in self._markets:
            self._markets[key] = Market(instrument(category, symbol), self._seed, time.time)
        return self._markets[key]

    def _send(self, feed: Feed, text: str) -> None:
        if self._keeps_truth:
            self._made[feed.category, feed.topic].append(Made(time.monotonic(), text))
        frame = text_frame(text)
        for connection in self._subscribers.get(feed, ()):
            connection.data(feed.topic, text, frame)

    async def move(self) -> None:
        """`rate` frames a second over the topics that have subscribers."""
        clock = asyncio.get_running_loop().time
        owed, before = 0.0, clock()
        while True:
            await asyncio.sleep(TICK)
            now = clock()
            owed = min(owed + (now - before) * self.rate, 1 + self.rate * BURST * TICK)
            before = now
            if self._moving is None:
                self._moving = list(self._subscribers), list(accumulate(feed.weight for feed in self._subscribers))
            feeds, weights = self._moving
            if not feeds or self.paused:
                owed = 0.0
                continue
            count = int(owed)
            owed -= count
            for feed in self._random.choices(feeds, cum_weights=weights, k=count):
                self._send(feed, feed.advance())

    async def repeat_books(self) -> None:
        """Sends unchanged depth-1 books again, with the same u."""
        while True:
            await asyncio.sleep(self._repush / 10)
            for feed in list(self._subscribers):
                due = feed.market.clock() - feed.sent_at >= self._repush and not self.paused
                if due and isinstance(feed, BookFeed) and feed.depth == 1:
                    self._send(feed, feed.snapshot())


class Replay:
    """A recording, played to each acknowledged request from its beginning.

    Args:
        path: of a TSV file, see `read_frames`.
        speed: 1 = as recorded; 0 = as fast as the client reads.
        market: knows further topics, on which nothing comes by itself.
    """

    def __init__(self, loop: LoopThread, path: str | Path, speed: float, market: GeneratedMarket) -> None:
        self._loop, self._speed, self._market = loop, speed, market
        self._frames = read_frames(path)
        self._topics = {topic for _, topic, _ in self._frames}

    def knows(self, category: str, topic: str) -> bool:
        return topic in self._topics or self._market.knows(category, topic)

    def begin(self, connection: Connection, topics: list[str]) -> object:
        token = object()
        self._loop.spawn(self._play(connection, token))
        return token

    def resume(self, connection: Connection, topics: list[str]) -> None:
        """The replay has gone on meanwhile."""

    def leave(self, connection: Connection, topics: Iterable[str]) -> None:
        """The replay checks the connection's feeds before each frame."""

    async def _play(self, connection: Connection, token: object) -> None:
        """Gives one connection the frames of the topics that hold the token."""
        await asyncio.sleep(0)  # until the topics hold it
        clock = asyncio.get_running_loop().time
        began, first = clock(), self._frames[0][0]
        for arrival, topic, text in self._frames:
            if self._speed:
                wait = began + (arrival - first) / self._speed - clock()
                if wait > 0:
                    await asyncio.sleep(wait)
            if connection.feeds.get(topic) is token:
                connection.data(topic, text, text_frame(text))
                if not self._speed and connection.count % REPLAY_PIECE == 0:
                    await asyncio.sleep(0)  # lets it write, which shows whether the client keeps up
                    await connection.writable.wait()
            if connection.closed:
                return


def read_frames(path: str | Path) -> list[tuple[float, str, str]]:
    """The data frames of a TSV file as (Unix seconds of arrival, topic, text); control frames are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has no data frames.
    """
    frames = []
    for line in Path(path).read_text(encoding="utf-8").split("\n"):
        arrival, _, text = line.partition("\t")
        if topic := topic_of(text):
            frames.append((float(arrival), topic, text))
    if not frames:
        raise ValueError(f"{path}: no data frames; a line is Unix seconds, a tab, the frame")
    return frames
