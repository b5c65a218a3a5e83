"""All that the page shows, from what comes out of Redis. Pure: the caller gives the time, and holds the lock.

Only the messages of symbols that somebody looks at are parsed. Of the others the beginning is looked up, no more.
"""

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dashboard.health import BAD, OK, WARN, Health, number, seconds
from dashboard.market import MakeKeeper, Market
from relay.kinds import KINDS

BEGIN, TOPIC = b'{"topic":"', re.compile(rb'"topic"\s*:\s*"([^"\\]{1,200})"')
MAX_TOPICS, MAX_MARKETS, MAX_EVENTS = 20_000, 8, 100
UNWANTED = 60.0  # seconds after which a symbol that nobody looks at is no longer followed
SETTLING, MAX_LINES = 4.0, 4  # seconds after an outage of Redis; sentences below the first
TOGETHER = 2.0  # seconds within which events are said of several streams at once
TEMPLATES = {kind.topic.partition(".")[0]: kind.name for kind in KINDS}  # orderbook, trades and so on, by topic


class Topic(NamedTuple):
    """kind: the name of one of KINDS. symbol: what it names. by_symbol: whether that has a channel of its own."""

    name: str
    kind: str
    symbol: str
    by_symbol: bool


class Event(NamedTuple):
    """Events of the status channel that say the same, one after another. at: monotonic, of the last; fields: of it.
    streams: those that it was said of. topics, times: how many.
    """

    at: float
    fields: Mapping[str, Any]
    streams: tuple[str, ...]
    topics: int
    times: int = 1

    def joined(self, other: "Event") -> "Event | None":
        """Both as one, if the other one says the same, and soon or of the same streams."""
        is_same = all(self.fields.get(name) == other.fields.get(name) for name in ("event", "reason", "instance"))
        if not is_same or (other.at - self.at > TOGETHER and other.streams != self.streams):
            return None
        if set(other.streams) <= set(self.streams):
            return other._replace(streams=self.streams, times=self.times + 1)
        return other._replace(streams=self.streams + other.streams, topics=self.topics + other.topics, times=self.times)


class Outage(NamedTuple):
    """since: monotonic, when Redis was last heard. is_denied: it is there, but denies a login or a right."""

    since: float
    reason: str
    is_denied: bool


class Verdict(NamedTuple):
    """level: OK, WARN or BAD. title: in large letters. lines: below it."""

    level: str
    title: str
    lines: tuple[str, ...] = ()


class Model:
    """prefix: CHANNEL_PREFIX. make_keeper: makes what keeps the topics of a symbol in sync. address: Redis, for people.

    markets: those that are followed, by symbol. unreadable: messages that were of no known shape.
    outage: that of Redis, None = it is there. back_at: monotonic, when the last one was over.
    """

    def __init__(self, prefix: str, make_keeper: MakeKeeper, address: str = "") -> None:
        self.prefix, self.address, self._make_keeper = prefix, address, make_keeper
        self.health = Health(f"{prefix}_state")
        self.markets: dict[str, Market] = {}
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)  # newest first
        self.outage: Outage | None = None
        self.back_at, self.unreadable = -math.inf, 0
        self._is_known = self._is_subscribed = False  # whether the states were read; whether messages come
        self._topics: dict[bytes, Topic] = {}  # by the beginning of their messages
        self._symbols: dict[str, dict[str, Topic]] = {}  # by symbol, by name
        self._wanted: dict[str, list[Market]] = {}  # who is to get the messages of a topic

    # What comes from Redis.

    def away(self, reason: str, since: float, is_denied: bool = False) -> None:
        """Redis is away, or denies. since: when it was last heard, monotonic."""
        self.outage, self._is_subscribed = Outage(since, reason, is_denied), False

    def read(self, now: float) -> None:
        """All states were read: Redis is there."""
        if self.outage:
            self.outage, self.back_at = None, now
        self._is_known = True

    def subscribed(self, now: float) -> None:
        """Redis has confirmed the subscription, on a new connection: what was published before is missed."""
        self._is_subscribed = True
        for market in self.markets.values():
            market.keeper.connected(f"{self.prefix}_status", now)

    def receive(self, channel: bytes, payload: bytes, now: float) -> None:
        """Takes a message of any channel. Never raises."""
        head = payload[: payload.find(b'"', len(BEGIN))] if payload.startswith(BEGIN) else b""
        topic = self._topics.get(head)
        if topic is not None and topic.name not in self._wanted:
            return  # nearly all of them end here
        try:
            self._receive(channel.decode(), payload, head, now)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            self.unreadable += 1

    def _receive(self, channel: str, payload: bytes, head: bytes, now: float) -> None:
        if channel == f"{self.prefix}_status":
            self._receive_event(payload, now)
        elif channel.startswith(f"{self.prefix}_reply_"):
            for market in self.markets.values():
                market.keeper.receive(channel, payload, now)
        elif topic := self._topic_of(channel, payload, head):
            for market in self._wanted.get(topic.name, ()):
                if topic.kind in ("orderbook", "ticker"):
                    market.keeper.receive(channel, payload, now)
                else:
                    market.receive(topic.kind, json.loads(payload))

    def _topic_of(self, channel: str, payload: bytes, head: bytes) -> Topic | None:
        by_symbol = ":" in channel[len(self.prefix) :]
        known = self._topics.get(head)
        if known and known.by_symbol == by_symbol:
            return known
        match = TOPIC.search(payload)
        name = match[1].decode() if match else ""
        kind, symbol = TEMPLATES.get(name.partition(".")[0]), name.rpartition(".")[2]
        if kind is None or not symbol or (len(self._topics) >= MAX_TOPICS and not known):
            return None
        topic = self._topics[BEGIN + name.encode()] = Topic(name, kind, symbol, by_symbol)
        self._symbols.setdefault(symbol, {})[name] = topic
        return topic

    def _receive_event(self, payload: bytes, now: float) -> None:
        event = json.loads(payload)
        name = event["event"]
        if name == "alive":
            return
        topics = event["topics"]
        new = Event(now, event, (str(event.get("stream", "")),), len(topics))
        if self.events and (both := self.events[0].joined(new)):
            self.events[0] = both
        else:
            self.events.appendleft(new)
        if name == "dropped":
            self.health.dropped_at = now
        if name == "unsubscribed":
            self._remove(topics)
        for market in self.markets.values():
            market.keeper.receive(f"{self.prefix}_status", payload, now)

    def _remove(self, topics: Iterable[str]) -> None:
        for name in topics:
            symbol = name.rpartition(".")[2]
            found = self._symbols.get(symbol, {})
            found.pop(name, None)
            if not found:
                self._symbols.pop(symbol, None)
            self._topics.pop(BEGIN + name.encode(), None)

    # Which symbols are followed.

    def symbols(self) -> list[str]:
        """Those that had a message, in order."""
        return sorted(self._symbols)

    def watch(self, symbol: str, now: float) -> Market | None:
        """The market of a symbol that somebody looks at; None if nothing is known of it, or too many are followed."""
        market = self.markets.get(symbol)
        topics = self._symbols.get(symbol, {})
        book = max(
            (t for t in topics.values() if t.kind == "orderbook"), key=lambda topic: depth_of(topic.name), default=None
        )
        ticker = next((topic for topic in topics.values() if topic.kind == "ticker"), None)
        names = [topic.name if topic else "" for topic in (book, ticker)]
        if topics and (market is None or [market.book, market.ticker] != names):
            if market is None and len(self.markets) >= MAX_MARKETS:
                return None
            by_symbol = next(iter(topics.values())).by_symbol
            keeper = self._make_keeper(self.prefix, list(filter(None, names)), by_symbol)
            if self._is_subscribed:
                keeper.connected(f"{self.prefix}_status", now)
            market = market or Market(symbol)
            market.keeper, (market.book, market.ticker) = keeper, names
            self.markets[symbol] = market
            self._want()
        if market:
            market.wanted_at = now
        return market

    def forget(self, now: float) -> None:
        """Follows no longer what nobody looks at. To be called now and then."""
        for symbol, market in list(self.markets.items()):
            if now - market.wanted_at > UNWANTED:
                del self.markets[symbol]
        self._want()

    def _want(self) -> None:
        self._wanted = {}
        for market in self.markets.values():
            coin = market.symbol.partition("-")[0]  # on option the trades are by coin
            for subject in {market.symbol, coin}:
                for topic in (f"publicTrade.{subject}", f"allLiquidation.{subject}"):
                    self._wanted.setdefault(topic, []).append(market)
            for topic in filter(None, (market.book, market.ticker)):
                self._wanted.setdefault(topic, []).append(market)

    # What is to be said of it.

    def verdict(self, now: float) -> Verdict:
        """Whether all is well, in words."""
        if self.outage:
            away = f"Redis is away for {seconds(now - self.outage.since)}"
            return Verdict(BAD, "Redis denies access" if self.outage.is_denied else away, (self.outage.reason,))
        if not self._is_known:
            return Verdict(WARN, "Connecting to Redis")
        problems = self.health.problems(now)
        if problems and now - self.back_at < SETTLING:
            return Verdict(WARN, "Redis is back", ("Waiting for the collectors",))
        if not problems:
            return Verdict(OK, "All well", (self._summary(now),))
        first, *others = problems
        lines = [first.more] * bool(first.more) + [problem.text for problem in others[:MAX_LINES]]
        return Verdict(first.level, first.text, tuple(lines))

    def _summary(self, now: float) -> str:
        rows = self.health.streams(now)
        rate = sum(number(row.fields.get("rate")) or 0.0 for row in rows)
        delays = [delay for row in rows if (delay := number(row.fields.get("delay_p99"))) is not None]
        streams = f"{len(rows)} stream{'' if len(rows) == 1 else 's'} up, {rate:,.0f} messages a second"
        return f"{streams}, 99% within {max(delays) * 1000:,.1f} ms" if delays else streams


def depth_of(topic: str) -> int:
    """The levels of an order book, by its topic; 0 if it names none."""
    level = topic.split(".")[1]
    return int(level) if level.isdecimal() else 0
