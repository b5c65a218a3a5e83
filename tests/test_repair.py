"""A topic that misses a message or falls silent is subscribed anew on the running connection, over real sockets."""

import json
import logging
import time

import pytest
from vocabulary import METHODS, TIMER, Event, StandIn, Timeouts, both_ways, eventually, message, subscribed

from relay.bybit import renewal
from relay.bybit.silence import MIN_TICKS
from sandbox.bybit import Script

BOOK, OTHER, TICKER = "orderbook.50.BTCUSDT", "orderbook.50.ETHUSDT", "tickers.BTCUSDT"

pytestmark = both_ways


class Book:
    """Deltas of a topic that follow each other, made by hand."""

    def __init__(self, exchange, topic=BOOK):
        self.exchange, self.topic = exchange, topic
        self.u = json.loads(exchange.subscribed().sent[-1])["data"]["u"]

    def moves(self, jump=0):
        self.u += 1 + jump
        text = '{"topic":"%s","type":"delta","ts":%d,"data":{"s":"X","b":[],"a":[],"u":%d,"seq":7},"cts":1790134712126}'
        self.exchange.publish(text % (self.topic, time.time() * 1000, self.u))


def events(collector, kind):
    return [event for event in collector.events() if event.event == kind]


def snapshots(collector, topic=BOOK):
    """How many snapshots of a topic were received."""
    return sum(f'"topic":"{topic}"' in text and '"type":"snapshot"' in text for text in collector.received())


def unsubscriptions(exchange, connection=1):
    return [one["args"] for one in exchange.connections[connection - 1].requests if one["op"] == "unsubscribe"]


# Gaps.


def test_a_gap_is_announced_in_its_place_and_mended_by_a_snapshot(exchange, collector):
    collector.timeouts = Timeouts(timer=60)  # it is mended at once, not at the next tick
    order = []
    collector.announce = lambda event, _stream, topics, **fields: order.append(Event(event, topics, fields))
    collector.streams("orderbook", "BTCUSDT", callback=lambda each: order.append((each["type"], each["data"]["u"])))
    exchange.wait(lambda: exchange.connections and exchange.connections[0].sent)
    book = Book(exchange)
    first = book.u
    book.moves()
    book.moves(jump=2)
    eventually(lambda: len(order) == 6)
    assert order == [
        subscribed(BOOK),
        ("snapshot", first),
        ("delta", first + 1),
        Event("gap", [BOOK], {"before": first + 1, "after": first + 4}),
        ("delta", first + 4),
        ("snapshot", first),
    ]
    assert unsubscriptions(exchange) == [[BOOK]]
    assert collector.stats.gaps == 1
    assert len(collector.lines(f"{BOOK}: sequence gap: u jumped from {first + 1} to {first + 4}", logging.WARNING)) == 1


def test_every_gap_is_found_at_any_rate_and_the_others_flow_on(collector):
    with StandIn(rate=3000, record=True, truth=True) as exchange:
        exchange.knows(*[f"A{number}USDT" for number in range(20)])
        collector.reads_from(exchange)
        collector.streams("orderbook", *[f"A{number}USDT" for number in range(20)])
        exchange.subscribed(topics=20)
        collector.received(1000)
        for number in range(20):
            exchange.omit(f"orderbook.50.A{number}USDT")
        eventually(lambda: len(events(collector, "gap")) == 20)
        eventually(lambda: sum(snapshots(collector, f"orderbook.50.A{number}USDT") for number in range(20)) == 40)
        assert collector.stats.gaps == 20
        assert len(exchange.connections) == 1
        exchange.rate = 0
        collector.stops()


def test_a_topic_that_is_being_renewed_is_not_compared_until_its_snapshot(exchange, collector):
    exchange.treats(then=Script(ack_delay=0.5))
    text = '{"topic":"%s","type":"delta","ts":1790134712126,"data":{"s":"X","b":[],"a":[],"u":%d,"seq":7},"cts":1}'
    collector.streams("orderbook", "BTCUSDT")
    collector.received(1)
    (connection,) = exchange.connections
    connection.send(text % (BOOK, 7))
    exchange.wait(lambda: unsubscriptions(exchange))
    for update in (9, 70):
        connection.send(text % (BOOK, update))
    eventually(lambda: snapshots(collector) == 2)
    assert [event.fields["after"] for event in events(collector, "gap")] == [7]
    connection.send(text % (BOOK, 700))
    assert [event.fields["after"] for event in collector.events(3) if event.event == "gap"] == [7, 700]


def test_a_topic_that_gaps_again_and_again_is_counted_each_time_and_renewed_now_and_then(
    exchange, collector, monkeypatch
):
    monkeypatch.setattr(renewal, "RENEW_EVERY", 1000)
    collector.streams("orderbook", "BTCUSDT")
    collector.received(1)
    book = Book(exchange)
    book.moves(jump=1)
    eventually(lambda: snapshots(collector) == 2)
    book = Book(exchange)
    for _ in range(4):
        book.moves(jump=1)
    collector.received(7)
    assert collector.stats.gaps == len(events(collector, "gap")) == 5
    assert len(collector.lines("sequence gap")) == len(unsubscriptions(exchange)) == 1
    monkeypatch.setattr(renewal, "RENEW_EVERY", 0)  # the time has passed
    eventually(lambda: snapshots(collector) == 3)
    assert len(unsubscriptions(exchange)) == 2


def test_a_book_whose_snapshot_does_not_come_has_the_connection_replaced(exchange, collector, monkeypatch):
    """Nothing says that Bybit sends one to a topic that was subscribed before on the same connection."""
    monkeypatch.setattr(renewal, "SNAPSHOT_WITHIN", 0.3)
    exchange.snapshot_again = False
    collector.timeouts = Timeouts(timer=TIMER)
    collector.streams("orderbook", "BTCUSDT")
    collector.received(1)
    Book(exchange).moves(jump=1)
    exchange.subscribed(2)
    assert collector.lines(f"Lost Bybit: {BOOK}: no snapshot within")
    eventually(lambda: snapshots(collector) == 2)
    assert [event.event for event in collector.events(4)] == ["subscribed", "gap", "lost", "subscribed"]
    assert events(collector, "lost")[0].topics == [BOOK]


def test_a_book_that_was_delisted_while_it_was_renewed_is_rejected_and_the_connection_stays(
    exchange, collector, monkeypatch
):
    monkeypatch.setattr(renewal, "SNAPSHOT_WITHIN", 0.3)
    collector.timeouts = Timeouts(timer=TIMER)
    collector.streams("orderbook", "ETHUSDT", "BTCUSDT")
    collector.received(2)
    exchange.knows("ETHUSDT")
    Book(exchange).moves(jump=1)
    collector.logs(f"Bybit rejects {BOOK}")
    pings = collector.stats.heartbeat_due
    eventually(lambda: collector.stats.heartbeat_due > pings + 0.5)
    exchange.publishes(message(OTHER, 7))
    eventually(lambda: '"ts":7' in collector.received()[-1])
    assert len(exchange.connections) == 1
    assert (collector.stats.subscribed, collector.stats.rejected) == (1, 1)


def test_on_spot_gaps_of_many_topics_are_mended_ten_topics_a_request(exchange, collector):
    symbols = [f"A{number}USDT" for number in range(25)]
    exchange.knows(*symbols, category="spot")
    collector.category = "spot"
    collector.streams("orderbook", *symbols)
    collector.received(25)
    (connection,) = exchange.connections
    asked = len(connection.requests)
    texts = [text.replace('"snapshot"', '"delta"') for text in connection.sent]
    for text in texts:  # in one piece: they lie in one chunk, or few
        update = json.loads(text)["data"]["u"]
        connection.send(text.replace(f'"u":{update}', f'"u":{update + 2}'))
    topics = {json.loads(text)["topic"] for text in texts}
    eventually(lambda: all(snapshots(collector, topic) == 2 for topic in topics))
    assert collector.stats.gaps == len(events(collector, "gap")) == 25
    for op in ("unsubscribe", "subscribe"):
        parts = [one["args"] for one in connection.requests[asked:] if one["op"] == op]
        assert max(map(len, parts)) <= 10
        assert sorted(topic for part in parts for topic in part) == sorted(topics)
    assert len(exchange.connections) == 1


def test_on_option_whose_answers_have_no_id_a_gap_is_mended_too(exchange, collector, monkeypatch):
    monkeypatch.setitem(METHODS, "orderbook", ("orderbook_stream", {"depth": 25}))  # option has no books of depth 50
    symbols = ["BTC-25JUN27-106000-P-USDT", "BTC-25JUN27-106000-C-USDT"]
    exchange.knows(*symbols, category="option")
    collector.category = "option"
    collector.streams("orderbook", *symbols)
    collector.received(2)
    topic = json.loads(exchange.subscribed(topics=2).sent[-1])["topic"]
    book = Book(exchange, topic)
    book.moves(jump=1)
    eventually(lambda: snapshots(collector, topic) == 2)
    assert unsubscriptions(exchange) == [[topic]]
    assert collector.stats.subscribed == 2
    Book(exchange, topic).moves(jump=1)
    assert [event.topics for event in collector.events(3) if event.event == "gap"] == [[topic]] * 2


def test_a_connection_whose_unsubscription_is_not_answered_is_replaced(exchange, collector):
    collector.timeouts = Timeouts(timer=TIMER, acknowledgement=0.3)
    collector.streams("orderbook", "BTCUSDT")
    collector.received(1)
    (connection,) = exchange.connections
    connection.script = Script(ack_delay=None)
    Book(exchange).moves(jump=1)
    collector.logs("Lost Bybit: a subscription was not acknowledged within 0.3 s")
    eventually(lambda: snapshots(collector) == 2)
    assert unsubscriptions(exchange) == [[BOOK]]
    assert [event.event for event in collector.events(4)] == ["subscribed", "gap", "lost", "subscribed"]
    assert events(collector, "lost")[0].topics == [BOOK]


def test_streams_without_books_and_tickers_are_not_watched(exchange, collector):
    collector.streams("publicTrade", "BTCUSDT")
    collector.delivers(connection=1)
    exchange.publishes(*[message("publicTrade.BTCUSDT", number, u=number * 7) for number in range(5)])
    collector.received(6)
    assert collector.stats.gaps == 0


# Silence.


@pytest.fixture
def flowing(exchange, collector):
    """Streams whose topics all flow, a tick every 20 ms, so long that each is known."""

    def start(kind, *symbols):
        collector.timeouts = Timeouts(timer=TIMER)
        exchange.rate = 500
        collector.streams(kind, *symbols)
        connection = exchange.subscribed(topics=len(symbols))
        collector.received(1000)
        return connection

    yield start
    exchange.rate = 0
    collector.stops()


@pytest.mark.parametrize(("kind", "topic"), [("orderbook", BOOK), ("tickers", TICKER)])
def test_a_topic_that_falls_silent_while_another_flows_is_subscribed_anew(exchange, collector, flowing, kind, topic):
    connection = flowing(kind, "BTCUSDT", "ETHUSDT")
    connection.silence(topic)
    collector.logs(f"{topic}: nothing for ")
    eventually(lambda: snapshots(collector, topic) == 2)
    (event,) = events(collector, "silent")
    assert event.topics == [topic]
    assert event.fields["seconds"] >= MIN_TICKS * TIMER
    assert unsubscriptions(exchange) == [[topic]]
    assert len(exchange.connections) == 1
    before = len(collector.received())
    eventually(lambda: any(topic in text for text in collector.received()[before:]))
    assert (collector.stats.gaps, len(events(collector, "silent"))) == (0, 1)


def test_when_all_topics_fall_silent_none_is(exchange, collector, flowing):
    flowing("tickers", "BTCUSDT", "ETHUSDT")
    exchange.rate = 0
    due = collector.stats.heartbeat_due
    eventually(lambda: collector.stats.heartbeat_due > due + 3 * MIN_TICKS * TIMER)
    assert not events(collector, "silent")


@pytest.mark.parametrize(
    ("category", "gone", "other"),
    [
        ("linear", "ETHUSDT", "BTCUSDT"),
        ("option", "BTC-25JUN27-106000-P-USDT", "BTC-25JUN27-106000-C-USDT"),
    ],
)
def test_a_contract_that_has_gone_costs_no_connection(exchange, collector, flowing, monkeypatch, category, gone, other):
    """Bybit may accept its topic again and stay silent."""
    monkeypatch.setattr(renewal, "SNAPSHOT_WITHIN", 0.1)
    collector.category = category
    exchange.snapshot_again = False
    connection = flowing("tickers", gone, other)
    connection.silence(f"tickers.{gone}")
    collector.logs(f"tickers.{gone}: nothing for ")
    exchange.wait(lambda: len(unsubscriptions(exchange)) == 1)
    due = collector.stats.heartbeat_due
    eventually(lambda: collector.stats.heartbeat_due > due + 0.5)
    assert len(exchange.connections) == 1
