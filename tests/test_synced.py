"""The helper for consumers: a book or ticker that says it is in sync equals the exchange's, whatever is lost."""

import json
import math
from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.synced import QUEUE, REJECTED, RETRY, SILENCE, SOON, Synced

PREFIX = "test:bybit"
STATUS, BOOKS, TICKERS = f"{PREFIX}_status", f"{PREFIX}_orderbook", f"{PREFIX}_ticker"
BOOK, OTHER, TICKER = "orderbook.50.BTCUSDT", "orderbook.50.ETHUSDT", "tickers.BTCUSDT"
TOPICS = (BOOK, OTHER, TICKER)
ROUND = 0.1  # seconds between two rounds of requests


def book(u, kind="delta", topic=BOOK, bids=None, asks=(), seq=None):
    """An order-book message whose best bid has the size `u`, unless `bids` says otherwise."""
    bids = [["100.10", str(u)]] if bids is None else bids
    data = {"s": topic.split(".")[2], "b": bids, "a": asks, "u": u, "seq": seq or 1000 + u}
    return {"topic": topic, "type": kind, "ts": 1790134712130, "data": data, "cts": 1790134712126}


def ticker(cs, kind="delta", **fields):
    return {"topic": TICKER, "type": kind, "data": fields or {"lastPrice": str(cs)}, "cs": cs, "ts": 1790134712130}


def told(name, topics=(), **fields):
    """An event of the collector."""
    return {"event": name, "stream": "Books" if topics else "", "topics": list(topics), "ts": 1790134712130} | fields


LOST = {"reason": "…", "since": 1}


class Consumer:
    """A consumer that is connected, and whose request for all topics is under way."""

    def __init__(self, *topics):
        self.now = 1000.0
        self.synced = Synced(PREFIX, topics)
        self.synced.connected(STATUS, self.now)
        self.asked = self.later(0)
        self.reply = self.synced.states[topics[0]].reply

    def later(self, seconds):
        """Returns the topics that are asked for when so many seconds have passed."""
        self.now += seconds
        self.synced.look(self.now)
        requests = [one for reply in self.synced.ask(self.now) for one in self.synced.requests(reply)]
        return [topic for request in requests for topic in request["topics"]]

    def asks_within(self, seconds):
        """The same for each round of so many seconds; a list of (seconds until it, topics)."""
        start, found = self.now, []
        while self.now < start + seconds:
            if topics := self.later(ROUND):
                found.append((round(self.now - start, 1), topics))
        return found

    def gets(self, message, channel=None):
        if channel is None:
            channel = STATUS if "event" in message else BOOKS if message["topic"].startswith("orderbook") else TICKERS
        return self.synced.receive(channel, json.dumps(message), self.now)

    def gets_reply(self, message, channel=None):
        topic = message.get("topic") or message["topics"][0]
        return self.gets(message, channel or self.state(topic).reply or self.reply)

    def state(self, topic=BOOK):
        return self.synced.states[topic]


# What follows a snapshot with u = 10, and whether the book is in sync after each.
BOOK_HISTORIES = {
    "all in order": [(book(11), True), (book(12), True), (book(13, "snapshot"), True), (book(14), True)],
    "a gap": [(book(12), False), (book(13), False), (book(20, "snapshot"), True), (book(21), True)],
    "a gap of another book": [(book(99, topic=OTHER), True), (book(11), True)],
    "the last ones come again": [(book(9), True), (book(10), True), (book(11), True), (book(11), True)],
    "the last ones come again after a gap": [(book(12), False), (book(10), False), (book(11), True), (book(13), True)],
    "a snapshot comes again": [(book(11), True), (book(10, "snapshot"), True), (book(11), True), (book(12), True)],
    "u lower, and yet new": [(book(5, seq=2000), False), (book(6, seq=2001), False)],
    "Bybit's service restarts": [(book(1), True), (book(2), True), (book(11), False)],
    "lost": [(told("lost", TOPICS, **LOST), False), (book(99), False), (book(7, "snapshot"), True)],
    "unsubscribed": [(told("unsubscribed", [BOOK]), False), (book(99), False), (book(7, "snapshot"), True)],
    "lost, and another collector goes on": [(told("lost", TOPICS, **LOST), False), (book(11), True)],
    "stalled": [(told("stalled", [BOOK], **LOST), False), (book(7, "snapshot"), True), (book(8), True)],
    "gap": [(told("gap", [BOOK], before=10, after=12), False), (book(12), False), (book(15, "snapshot"), True)],
    "silent": [(told("silent", [BOOK], seconds=30), False), (book(12, "snapshot"), True)],
    "another stream is lost": [(told("lost", ["publicTrade.BTCUSDT"], **LOST), True), (book(11), True)],
    "another book is lost": [(told("lost", [OTHER], **LOST), True), (book(11), True)],
    "stopped": [(told("stopped"), False), (book(7, "snapshot"), True), (book(8), True)],
    "dropped": [(told("dropped", channel=BOOKS, messages=5), False), (book(13), False), (book(14), False)],
    "dropped, but not of this book": [(told("dropped", channel=BOOKS, messages=5), False), (book(11), True)],
    "dropped elsewhere": [(told("dropped", channel=TICKERS, messages=5), True)],
    "events dropped": [(told("dropped", channel=STATUS, messages=1), False), (book(11), True)],
    "rejected": [(told("rejected", [BOOK], reason="…"), False), (book(11), True)],
    "other events": [
        (told("subscribed", TOPICS), True),
        (told("rejected", ["orderbook.50.NONE"], reason="…"), True),
        (told("redis_reconnected", outage_seconds=1.5, buffered=10), True),
        (told("leader", instance="b", term=2), True),
        (told("of a later version", TOPICS), True),
        (book(11), True),
    ],
}


@pytest.mark.parametrize("history", BOOK_HISTORIES.values(), ids=BOOK_HISTORIES)
def test_a_book_knows_whether_it_is_right(history):
    consumer = Consumer(BOOK, OTHER)
    consumer.gets(book(9))
    assert not consumer.state().synced, "there was no snapshot yet"
    consumer.gets(book(10, "snapshot", asks=[["100.20", "3"]]))
    consumer.gets(book(10, "snapshot", topic=OTHER))
    for message, synced in history:
        consumer.gets(message)
        state = consumer.state()
        assert state.synced is synced, message
        assert bool(state.reason) is not synced
        if synced:
            assert state.bids == [("100.10", str(state.last[1]))]


# What the consumer gets after it has asked; the reply; and whether the book is in sync then, and at which u.
REPLIES = {
    "nothing yet": ([], 20, (True, 20)),
    "deltas before and after": ([book(19), book(20), book(21), book(22)], 20, (True, 22)),
    "deltas after": ([book(21), book(22)], 20, (True, 22)),
    "deltas before": ([book(18), book(19)], 20, (True, 20)),
    "a gap before": ([book(15), book(18), book(19), book(20), book(21)], 20, (True, 21)),
    "a gap after": ([book(20), book(21), book(23)], 21, (False, 21)),
    "older than the first delta": ([book(22), book(23)], 20, (False, 20)),
    "a snapshot of the data channel": ([book(19), book(20, "snapshot"), book(21)], 19, (True, 21)),
    "the same again": ([book(20), book(21), book(20), book(21), book(22)], 20, (True, 22)),
}


@pytest.mark.parametrize(("before", "u", "expected"), REPLIES.values(), ids=REPLIES)
def test_a_reply_is_joined_to_the_deltas_around_it(before, u, expected):
    consumer = Consumer(BOOK)
    for message in before:
        consumer.gets(message)
    consumer.gets_reply(book(u, "snapshot", bids=[["100.10", "1"], ["99.00", "1"]]))
    state = consumer.state()
    assert (state.synced, state.last[1]) == expected
    if state.synced:
        following = expected[1] + 1
        consumer.gets(book(following))
        assert state.bids[0] == ("100.10", str(following))
        assert state.synced


def test_a_reply_from_before_a_restart_of_bybits_service_is_old_though_its_u_is_higher():
    consumer = Consumer(BOOK)
    consumer.gets(book(1, seq=3000))
    consumer.gets_reply(book(900, "snapshot", seq=2999))
    assert consumer.state().synced
    assert consumer.state().bids == [("100.10", "1")]


def test_a_book_is_sorted_and_keeps_the_numbers_as_bybit_wrote_them():
    consumer = Consumer(BOOK)
    bids, asks = [["9.5", "1"], ["10.10", "2.0"], ["2", "3"]], [["100.0", "1"], ["11", "0.001"], ["20", "5"]]
    consumer.gets(book(10, "snapshot", bids=bids, asks=asks))
    state = consumer.state()
    assert state.bids == [("10.10", "2.0"), ("9.5", "1"), ("2", "3")]
    assert state.asks == [("11", "0.001"), ("20", "5"), ("100.0", "1")]
    consumer.gets(book(11, bids=[["10.1", "0"], ["7", "0"]], asks=[["100", "0.000"], ["20.0", "6"]]))
    assert state.bids == [("9.5", "1"), ("2", "3")]
    assert state.asks == [("11", "0.001"), ("20.0", "6")]
    consumer.gets(book(12, "snapshot", bids=[], asks=[["5", "1"]]))
    assert (state.bids, state.asks) == ([], [("5", "1")])


def test_a_ticker_is_a_snapshot_and_the_later_deltas():
    consumer = Consumer(TICKER)
    for message in (ticker(18, lastPrice="1"), ticker(20, lastPrice="2"), ticker(25, markPrice="3")):
        consumer.gets(message)
    consumer.gets_reply(ticker(20, "snapshot", lastPrice="2", markPrice="2", fundingRate="0.0001"))
    state = consumer.state(TICKER)
    assert state.synced
    assert state.data == {"lastPrice": "2", "markPrice": "3", "fundingRate": "0.0001"}
    consumer.gets(ticker(24, markPrice="none: it is old"))
    consumer.gets(ticker(25, fundingRate="0.0002"))  # between two events of the matching engine
    consumer.gets(ticker(31, lastPrice="4"))
    assert state.data == {"lastPrice": "4", "markPrice": "3", "fundingRate": "0.0002"}
    consumer.gets(told("lost", [TICKER], **LOST))
    consumer.gets(ticker(35, lastPrice="5"))
    assert not state.synced, "a delta does not show what was missed"
    consumer.gets(ticker(40, "snapshot", lastPrice="6"))
    assert state.synced
    assert state.data == {"lastPrice": "6"}


def test_option_has_no_positions_and_needs_none():
    consumer = Consumer(TICKER)
    snapshot = {"topic": TICKER, "ts": 1, "type": "snapshot", "id": "…", "data": {"lastPrice": "1"}}
    consumer.gets_reply(snapshot)
    assert consumer.state(TICKER).synced
    consumer.gets(snapshot | {"data": {"lastPrice": "2"}})
    assert consumer.state(TICKER).data == {"lastPrice": "2"}


@pytest.mark.parametrize("loss", [told("dropped", channel=BOOKS, messages=1), None], ids=["dropped", "own connection"])
def test_a_reply_to_a_request_from_before_a_loss_does_not_count(loss):
    """Else a book that is quiet from then on would be old, and never show it."""
    consumer = Consumer(BOOK, TICKER)
    if loss:
        consumer.gets(loss)
    else:
        consumer.synced.connected(STATUS, consumer.now)
    consumer.gets_reply(book(20, "snapshot"), consumer.reply)
    assert not consumer.state().synced
    assert any(BOOK in topics for _, topics in consumer.asks_within(SOON + ROUND))
    consumer.gets_reply(book(20, "snapshot"), consumer.reply)
    assert not consumer.state().synced
    consumer.gets_reply(book(21, "snapshot"))
    assert consumer.state().synced


def test_the_heartbeat_of_the_collector_is_heard_and_changes_nothing():
    consumer = Consumer(BOOK, TICKER)
    states = consumer.synced.states.values()
    consumer.later(7)
    before = [(state.synced, state.reason, state.ask_at) for state in states]
    assert consumer.synced.receive(STATUS, json.dumps(told("alive", up=4)), consumer.now) == []
    assert consumer.synced.heard == consumer.now
    assert [(state.synced, state.reason, state.ask_at) for state in states] == before


def test_a_loss_of_one_topic_leaves_the_requests_for_others_alone():
    consumer = Consumer(BOOK, OTHER)
    consumer.gets(told("gap", [BOOK], before=10, after=12))
    consumer.gets_reply(book(20, "snapshot", topic=OTHER), consumer.reply)
    assert consumer.state(OTHER).synced
    assert consumer.asks_within(SOON + ROUND)[0][1] == [BOOK]


@pytest.mark.parametrize("back", [told("subscribed", [BOOK]), told("leader", instance="b", term=2)])
def test_while_a_stream_is_lost_no_reply_counts_and_nothing_is_asked(back):
    """Bybit's side connection may work, but the deltas after its snapshot would be missing."""
    consumer = Consumer(BOOK)
    consumer.gets(told("lost", [BOOK], **LOST))
    consumer.gets_reply(book(20, "snapshot"), consumer.reply)
    assert not consumer.state().synced
    assert consumer.asks_within(SILENCE - 1) == []
    assert consumer.state().reason == "lost: …"
    consumer.gets(back)
    assert [topics for _, topics in consumer.asks_within(SOON + ROUND)] == [[BOOK]]


def test_where_each_symbol_has_channels_those_of_the_topics_are_read():
    coin = "tickers.BTC-25JUN27-106000-P-USDT"
    synced = Synced(PREFIX, (*TOPICS, coin, BOOK), by_symbol=True)
    assert synced.channels == {
        STATUS: [*TOPICS, coin],
        f"{BOOKS}:BTCUSDT": [BOOK],
        f"{BOOKS}:ETHUSDT": [OTHER],
        f"{TICKERS}:BTCUSDT": [TICKER],
        f"{TICKERS}:BTC-25JUN27-106000-P-USDT": [coin],
    }
    for channel in synced.channels:
        synced.connected(channel, 1.0)
    for topic, channel in synced.data.items():
        message = book(10, "snapshot", topic) if topic.startswith("orderbook") else ticker(10, "snapshot")
        assert synced.receive(channel, json.dumps(message | {"topic": topic}), 1.0) == [topic]
        assert synced.states[topic].synced
    dropped = told("dropped", channel=f"{BOOKS}:ETHUSDT", messages=1)
    assert synced.receive(STATUS, json.dumps(dropped), 1.0) == [OTHER]
    assert synced.connected(f"{BOOKS}:BTCUSDT", 2.0) == [BOOK]
    assert [topic for topic, state in synced.states.items() if state.synced] == [TICKER, coin]


# Requests.


def test_one_request_has_all_topics():
    topics = [f"orderbook.50.COIN{number}USDT" for number in range(800)]
    consumer = Consumer(*topics)
    assert consumer.asked == topics
    assert consumer.asks_within(RETRY - 2 * ROUND) == []


def test_large_requests_are_split_and_ask_for_each_topic_once():
    consumer = Consumer(*(f"orderbook.50.COIN{number}USDT" for number in range(2500)))
    sizes = [len(request["topics"]) for request in consumer.synced.requests(consumer.reply)]
    assert sizes == [1000, 1000, 500]


def test_messages_of_other_topics_are_ignored():
    consumer = Consumer(BOOK)
    for message in (ticker(1), book(7, topic=OTHER), told("gap", [OTHER], before=1, after=3)):
        assert consumer.gets(message) == []


def test_a_request_without_a_reply_is_repeated_on_the_same_channel():
    """So the collector takes it as the same while it waits."""
    consumer = Consumer(BOOK)
    for _ in range(3):
        consumer.gets(ticker(1))
        assert [topics for _, topics in consumer.asks_within(RETRY + ROUND)] == [[BOOK]]
        assert consumer.state().reply == consumer.reply


def test_a_request_that_nobody_got_is_repeated_soon():
    consumer = Consumer(BOOK)
    for _ in range(100):
        consumer.gets(ticker(1))
        consumer.synced.unheard(consumer.asked, consumer.now)
        assert "is the collector running" in consumer.state().reason
        assert [topics for _, topics in consumer.asks_within(SOON + ROUND)] == [[BOOK]]
    consumer.gets_reply(book(20, "snapshot"))
    assert consumer.state().synced


def test_a_reply_that_is_always_too_old_is_not_asked_for_in_a_loop():
    consumer = Consumer(BOOK)
    asked = 0
    for u in range(100, 700):  # a minute
        consumer.gets(book(u))
        if consumer.later(ROUND):
            asked += 1
            consumer.gets_reply(book(5, "snapshot"))
    assert 15 <= asked <= 20


@pytest.mark.parametrize(
    "reason",
    [
        "too many requests are waiting",
        "no snapshot within 10 s: …",
        "the stream of the topic is down: its snapshot will come to all",
    ],
)
def test_a_rejection_that_passes_is_followed_by_another_request_soon(reason):
    consumer = Consumer(BOOK)
    consumer.gets_reply(told("rejected", [BOOK], reason=reason))
    assert next(seconds for seconds, topics in consumer.asks_within(REJECTED / 2)) <= RETRY + ROUND


def test_a_rejected_topic_is_shown_and_asked_for_once_a_minute():
    """The collector may come to carry it."""
    consumer = Consumer(BOOK)
    rejected = told("rejected", [BOOK], reason="this collector does not carry the topic")
    assert consumer.gets_reply(rejected) == [BOOK]
    assert consumer.state().reason == "rejected: this collector does not carry the topic"
    asked = 0
    for _ in range(3600):
        consumer.gets(ticker(1))
        if consumer.later(1):
            asked += 1
            consumer.gets_reply(rejected)
    assert asked == 60
    consumer.gets(told("leader", instance="b", term=2))
    assert consumer.later(SOON) == [BOOK], "the new leader may carry it"


def test_a_rejection_that_a_snapshot_of_the_data_channel_has_overtaken_does_not_count():
    """Such as that of a stream which has come up meanwhile: replies have a connection of their own."""
    consumer = Consumer(BOOK)
    consumer.gets(book(20, "snapshot"))
    rejected = told("rejected", [BOOK], reason="the stream of the topic is down: its snapshot will come to all")
    consumer.gets_reply(rejected, consumer.reply)
    assert consumer.state().synced


def test_when_nothing_arrives_all_are_out_of_sync_and_asked_for():
    """A collector that is killed announces nothing."""
    consumer = Consumer(BOOK, TICKER)
    consumer.gets(ticker(20, "snapshot"))
    consumer.gets_reply(book(20, "snapshot"))
    assert consumer.asks_within(SILENCE - ROUND) == []
    assert consumer.state(BOOK).synced
    assert [topics for _, topics in consumer.asks_within(3 * ROUND)] == [[BOOK, TICKER]]
    for topic in (BOOK, TICKER):
        assert not consumer.state(topic).synced
        assert consumer.state(topic).reason == "nothing received for 10 s"


def test_what_waits_for_a_snapshot_is_bounded():
    consumer = Consumer(BOOK, TICKER)
    for number in range(2, 3 * QUEUE):
        consumer.gets(book(number))
        consumer.gets(ticker(number))
        assert all(len(state.queue) <= QUEUE for state in consumer.synced.states.values())
    assert consumer.asks_within(RETRY)
    consumer.gets_reply(book(number - 1, "snapshot"))
    consumer.gets_reply(ticker(number - 1, "snapshot"))
    assert all(state.synced and number in state.last for state in consumer.synced.states.values())


# Random histories.


class Topic:
    """The exchange's truth of one topic: all states that it ever had, by position."""

    def __init__(self, name):
        self.name, self.is_book = name, name.startswith("orderbook.")
        self.channel = BOOKS if self.is_book else TICKERS
        self.position, self.version = (10**9, 10**6), 0  # (seq, u), or (cs, ts)
        self.restarted = False
        self.state = {"b1": "1", "a9": "1"}
        self.history = {}  # position: (version, state)
        self.keep()

    def keep(self):
        if not self.is_book:
            self.position = self.position[0], 1
        self.history[self.position] = self.version, dict(self.state)

    def message(self, kind, changes):
        if not self.is_book:
            return {"topic": self.name, "type": kind, "data": dict(changes), "cs": self.position[0], "ts": 1}
        sides = {side: [[key[1:], size] for key, size in changes.items() if key[0] == side] for side in "ba"}
        return {
            "topic": self.name,
            "type": kind,
            "ts": 1,
            "data": sides | {"u": self.position[1], "seq": self.position[0]},
        }

    def snapshot(self):
        return self.message("snapshot", self.state)

    def delta(self, restart=False):
        """The exchange moves; if it has restarted, it sends the whole book with u = 1. It restarts once at most."""
        self.version += 1
        restart, self.restarted = restart and not self.restarted, restart or self.restarted
        self.position = (self.position[0] + 3, 1 if restart else self.position[1] + 1)
        size = self.version % 4 if self.is_book else self.version
        changes = {f"{'ba'[self.version // 2 % 2]}{self.version % 5}": str(size), f"b{self.version % 3}": "7"}
        self.state |= changes
        if self.is_book:
            self.state = {key: size for key, size in self.state.items() if size != "0"}
        self.keep()
        return self.snapshot() if restart and self.is_book else self.message("delta", changes)

    def check(self, state):
        """What a state that is in sync says is what the exchange said at that position. Returns the version."""
        version, expected = self.history[state.last]
        if self.is_book:
            sides = ("b", state.bids), ("a", state.asks)
            found = {side + price: size for side, levels in sides for price, size in levels}
        else:
            found = state.data
        assert found == expected
        return version


class Item(NamedTuple):
    """What is under way to the consumer. `versions`: by topic, what it must know of once it has this and is in sync."""

    channel: str
    message: dict
    versions: dict
    again: bool = False


class World:
    """An exchange, a collector and a consumer on one clock. What is published waits in `pipe` until it is delivered."""

    def __init__(self, topics=TOPICS):
        self.now, self.topics = 1000.0, {name: Topic(name) for name in TOPICS}
        self.synced = Synced(PREFIX, topics)
        self.sent, self.pipe = [], deque()
        self.inbox, self.answers = deque(), deque()
        self.up = dict.fromkeys(TOPICS, True)  # whether the collector gets the topic
        self.required, self.waiting = dict.fromkeys(TOPICS, 0), set()
        self.linked = False

    # The collector.

    def publish(self, channel, message):
        versions = {name: topic.version for name, topic in self.topics.items() if self.up[name]}
        self.sent.append(Item(channel, message, versions))
        if self.linked:
            self.pipe.append(self.sent[-1])

    def announce(self, name, topics=(), **fields):
        self.publish(STATUS, {"event": name, "stream": "", "topics": list(topics), "ts": 1} | fields)

    def delta(self, name, count=1, restart=False):
        topic = self.topics[name]
        for _ in range(count):
            message = topic.delta(restart)
            if self.up[name]:
                self.publish(topic.channel, message)

    def again(self, count):
        """The collector's link to Redis broke, or another collector took over: the last messages are sent once more."""
        if self.linked:
            self.pipe.extend(item._replace(again=True) for item in self.sent[-count:])

    def drop(self, name, count):
        topic = self.topics[name]
        if self.up[name]:
            for _ in range(count):
                topic.delta()
            self.announce("dropped", channel=topic.channel, messages=count)

    def gap(self, name, count):
        """Bybit omits messages; the collector sees it and subscribes anew, which omits some more."""
        topic = self.topics[name]
        if self.up[name] and topic.is_book:
            before = topic.position[1]
            for _ in range(count):
                topic.delta()
            self.delta(name)
            self.announce("gap", [name], before=before, after=topic.position[1])
            self.up[name] = False

    def end(self, name, event):
        if self.up[name]:
            self.up[name] = False
            self.announce(event, [name], reason="…", since=1)

    def kill(self, *_):
        self.up = dict.fromkeys(TOPICS, False)

    def begin(self, name, *_):
        if not self.up[name]:
            self.announce("subscribed", [name])
            self.up[name] = True
            self.publish(self.topics[name].channel, self.topics[name].snapshot())

    def take_snapshots(self):
        """Bybit makes the snapshots that the oldest request is about. Not if the collector does not get the topic."""
        if self.inbox:
            request = self.inbox.popleft()
            for name in request["topics"]:
                if self.up[name]:
                    self.answers.append((request["reply"], self.topics[name].snapshot()))

    def answer(self, count=1):
        """Replies have a connection of their own: every second one overtakes all data."""
        for number in range(min(count, len(self.answers))):
            add = self.pipe.append if number % 2 else self.pipe.appendleft
            add(Item(*self.answers.popleft(), {}))

    def reject(self):
        if self.inbox:
            request = self.inbox.popleft()
            rejected = {"event": "rejected", "stream": "", "topics": request["topics"], "ts": 1, "reason": "…"}
            self.answers.append((request["reply"], rejected))

    # The consumer.

    def connect(self):
        """A new connection; what was under way on the old one is lost."""
        self.pipe.clear()
        self.linked = True
        self.waiting.clear()
        self.synced.connected(STATUS, self.now)
        self.look()

    def cut(self):
        self.pipe.clear()
        self.linked = False
        self.synced.lose(self.synced.states, "Redis: …", math.inf)

    def look(self, seconds=0.0):
        self.now += seconds
        if self.linked:
            self.synced.look(self.now)
            self.pipe.extend(Item(reply, {}, {}) for reply in self.synced.ask(self.now))  # confirmations

    def deliver(self, count=math.inf):
        while self.pipe and count > 0:
            count -= 1
            item = self.pipe.popleft()
            if not item.message:
                self.inbox.extend(self.synced.requests(item.channel))
                continue
            changed = self.synced.receive(item.channel, json.dumps(item.message), self.now)
            assert set(changed) <= self.synced.states.keys()
            self.check(item)
            self.look()

    def check(self, item):
        """No state that is in sync is wrong, or older than what the consumer can know of."""
        name = item.message.get("topic")
        if item.channel in (BOOKS, TICKERS):
            self.waiting.discard(name)
        elif item.message.get("event") in ("lost", "stalled"):
            self.waiting.update(item.message["topics"])
        elif item.message.get("event") == "leader":
            self.waiting.clear()
        for name, version in item.versions.items():
            self.required[name] = max(version, self.required[name])
        for name, state in self.synced.states.items():
            if state.synced:
                version = self.topics[name].check(state)
                assert name not in self.waiting
                assert item.again or version >= self.required[name], (name, item)
            else:
                assert state.reason

    def serve(self):
        """Whatever is under way arrives, and all requests are answered."""
        self.deliver()
        while self.inbox:
            self.take_snapshots()
        self.answer(len(self.answers))
        self.deliver()

    def settle(self):
        """All faults are over, and nothing more happens. Soon everything is in sync."""
        if not self.linked:
            self.connect()
        for name in TOPICS:
            self.begin(name)
        for _ in range(int(2 * REJECTED)):
            self.serve()
            self.look(1.0)
        for name, state in self.synced.states.items():
            assert state.synced, (name, vars(state))
            assert self.topics[name].check(state) == self.topics[name].version


STEPS = {
    "delta": lambda world, name, count: world.delta(name, count),
    "restart": lambda world, name, count: world.delta(name, restart=True),
    "again": lambda world, name, count: world.again(count),
    "drop": World.drop,
    "gap": World.gap,
    "lost": lambda world, name, count: world.end(name, "lost"),
    "stalled": lambda world, name, count: world.end(name, "stalled"),
    "silent": lambda world, name, count: world.end(name, "silent"),
    "kill": World.kill,
    "begin": World.begin,
    "leader": lambda world, name, count: (world.again(count), world.announce("leader", instance="b", term=2)),
    "cut": lambda world, name, count: world.cut(),
    "connect": lambda world, name, count: world.connect(),
    "deliver": lambda world, name, count: world.deliver(count),
    "deliver all": lambda world, name, count: world.deliver(),
    "take snapshots": lambda world, name, count: world.take_snapshots(),
    "answer": lambda world, name, count: world.answer(count),
    "request lost": lambda world, name, count: world.inbox and world.inbox.popleft(),
    "answer lost": lambda world, name, count: world.answers and world.answers.popleft(),
    "reject": lambda world, name, count: world.reject(),
    "serve": lambda world, name, count: world.serve(),
    "wait": lambda world, name, count: world.look(count / 5),
    "wait long": lambda world, name, count: world.look(count * 2.0),
}
STEP = st.tuples(st.sampled_from([*STEPS, "serve", "delta"]), st.sampled_from(TOPICS), st.integers(1, 6))
HISTORY = st.lists(STEP, min_size=20, max_size=80)


@given(HISTORY, st.sampled_from([TOPICS, (BOOK, TICKER)]))
@settings(max_examples=300, deadline=None)
def test_whatever_happens_a_state_in_sync_is_the_exchanges_and_in_the_end_all_are_in_sync(history, topics):
    world = World(topics)
    for step, name, count in history:
        if not world.linked and step == "deliver":
            step = "connect"
        STEPS[step](world, name, count)
        world.look()
    world.settle()
