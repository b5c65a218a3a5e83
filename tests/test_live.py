"""Topics come and go while a connection runs, and connections end, over real sockets."""

import json
import logging
import random
import threading
import time

import pytest
from vocabulary import TIMER, Event, Script, StandIn, Timeouts, both_ways, eventually, message, subscribed

from relay.bybit import assignment, renewal
from relay.bybit import exchange as exchange_module
from relay.bybit.pacer import Pacer
from relay.stats import stream_of

A, B, C = "publicTrade.AUSDT", "publicTrade.BUSDT", "publicTrade.CUSDT"
BOOK, OTHER = "orderbook.50.BTCUSDT", "orderbook.50.ETHUSDT"
SLOW = Timeouts(timer=60)  # nothing happens by the clock

pytestmark = both_ways


def unsubscribed(*topics):
    return Event("unsubscribed", list(topics), {})


@pytest.fixture(autouse=True)
def _symbols(exchange):
    exchange.knows("AUSDT", "BUSDT", "CUSDT", "BTCUSDT", "ETHUSDT")


def asked(exchange, connection=1):
    """What a connection has asked of Bybit: (op, topics)."""
    return [(one["op"], one["args"]) for one in exchange.connections[connection - 1].requests if one["op"] != "ping"]


def is_quiet_for(collector, seconds):
    """Waits until the timer of a stream has run for so long."""
    due = collector.stats.heartbeat_due
    eventually(lambda: collector.stats.heartbeat_due > due + seconds)


# Topics.


def test_a_running_connection_subscribes_what_is_new_and_unsubscribes_what_is_gone(exchange, collector):
    collector.timeouts = SLOW
    collector.assigns("publicTrade", A, B)
    collector.streams("publicTrade", "AUSDT", "BUSDT")
    collector.events(1)
    began = time.monotonic()
    collector.assigns("publicTrade", B, C)
    assert collector.events(3) == [subscribed(A, B), unsubscribed(A), subscribed(C)]
    assert time.monotonic() - began < 1
    assert asked(exchange) == [("subscribe", [A, B]), ("unsubscribe", [A]), ("subscribe", [C])]
    exchange.publishes(message(B, 1), message(C, 2))
    assert collector.received(2) == [message(B, 1), message(C, 2)]
    assert (collector.stats.topics, collector.stats.subscribed) == (2, 2)
    assert collector.exchange.topics == {"publicTrade": {B, C}}
    assert collector.exchange.carries(C)
    assert not collector.exchange.carries(A)
    assert len(exchange.connections) == 1


def test_what_stays_flows_on_and_every_message_sent_arrives_once_and_in_order(collector):
    topics, generator = [f"orderbook.50.A{number}USDT" for number in range(40)], random.Random(7)
    with StandIn(rate=3000, record=True) as exchange:
        exchange.knows(*[f"A{number}USDT" for number in range(40)])
        collector.reads_from(exchange)
        wanted = set(topics[:20])
        collector.assigns("orderbook", *wanted)
        collector.streams("orderbook", "A0USDT")
        connection = exchange.subscribed(topics=20)
        for _ in range(15):
            wanted = {*topics[:5], *generator.sample(topics, 20)}
            collector.assigns("orderbook", *wanted)
            collector.received(len(collector.received()) + generator.randrange(200))
        exchange.wait(lambda: connection.topics == wanted)
        eventually(lambda: collector.stats.subscribed == len(wanted))
        exchange.rate = 0
        collector.received(exchange.run(lambda: len(connection.sent)))
        assert collector.received() == connection.sent
        assert len(exchange.connections) == 1
        assert (collector.stats.gaps, collector.stats.ignored) == (0, 0)
        told = set()
        for event in collector.events():
            one = set(event.topics)
            assert one.isdisjoint(told) if event.event == "subscribed" else one <= told
            told = told | one if event.event == "subscribed" else told - one
        assert told == wanted
        later = [topic for _, some in asked(exchange) for topic in some][20:]
        assert not {*topics[:5]}.intersection(later), "what stays is asked for once"
        collector.stops()


def test_a_topic_that_comes_back_before_it_has_left_stays_and_gets_a_snapshot(exchange, collector):
    exchange.treats(then=Script(ack_delay=0.3))
    collector.assigns("orderbook", BOOK)
    collector.streams("orderbook", "BTCUSDT")
    collector.received(1)
    collector.assigns("orderbook")
    exchange.wait(lambda: len(asked(exchange)) == 2)
    collector.assigns("orderbook", BOOK)
    collector.received(2)
    assert [op for op, _ in asked(exchange)] == ["subscribe", "unsubscribe", "subscribe"]
    assert collector.events() == [subscribed(BOOK)], "it was carried all along"


def test_a_connection_that_starts_later_takes_what_is_assigned(exchange, collector):
    collector.assigns("publicTrade", A)
    collector.streams("publicTrade", "BUSDT")
    collector.events(1)
    collector.assigns("publicTrade", C)
    collector.events(3)
    exchange.drops()
    exchange.subscribed(2)
    assert asked(exchange, 2) == [("subscribe", [C])]


def test_what_is_assigned_while_there_is_no_connection_is_asked_for_first(exchange, collector):
    exchange.treats(Script(handshake="never"))
    collector.timeouts = Timeouts(timer=TIMER, connect=0.5)
    collector.assigns("publicTrade", A)
    collector.streams("publicTrade", "AUSDT")
    exchange.wait(lambda: exchange.connections)
    collector.assigns("publicTrade", B)
    exchange.subscribed(2)
    assert asked(exchange, 2) == [("subscribe", [B])]


def test_where_nothing_is_assigned_the_topics_are_those_of_the_func(exchange, collector):
    collector.streams("publicTrade", "AUSDT")
    collector.delivers(connection=1)
    assert collector.exchange.topics == {"publicTrade": {A}}
    assert collector.exchange.assigned == {}


def test_without_topics_no_connection_is_made_until_there_are_some(exchange, collector):
    collector.assigns("publicTrade")
    collector.streams("publicTrade", "AUSDT")
    eventually(lambda: collector.stats.answered)
    is_quiet_for(collector, 0.3)
    assert not exchange.connections
    collector.assigns("publicTrade", A)
    collector.delivers(connection=1)
    assert collector.stats.topics == 1


def test_a_connection_that_has_no_topics_left_waits(exchange, collector):
    """No data is due, so nothing stalls; and data is due again only once there is a topic."""
    collector.timeouts = Timeouts(timer=TIMER, silence=0.5, ping_interval=0.1)
    collector.assigns("publicTrade", A)
    collector.streams("publicTrade", "AUSDT", stall_timeout=0.6)
    collector.events(1)
    collector.assigns("publicTrade")
    collector.events(2)
    is_quiet_for(collector, 0.8)
    assert (collector.stats.topics, collector.stats.subscribed) == (0, 0)
    collector.assigns("publicTrade", B)
    collector.delivers(connection=1)
    assert not collector.lines("Lost Bybit")


@pytest.mark.parametrize("is_raw", [False, True])
def test_what_is_on_its_way_when_a_topic_leaves_is_delivered(exchange, collector, is_raw):
    parsed = []
    callback = collector.keep if is_raw else (lambda each: parsed.append(json.dumps(each)))
    collector.assigns("publicTrade", A, B, callback=callback)
    collector.streams("publicTrade", "AUSDT")
    collector.events(1)
    collector.assigns("publicTrade", B, callback=callback)
    collector.events(2)
    exchange.sends(message(A, 1), message(B, 2))
    exchange.sends(message(C, 3)) if is_raw else None
    received = eventually(lambda: (collector.received() or parsed)[1:] and (collector.received() or parsed))
    assert [json.loads(text)["ts"] for text in received[:2]] == [1, 2]
    assert not collector.lines("which was not requested")


def test_a_topic_that_left_long_ago_has_no_callback_any_more(exchange, collector, monkeypatch):
    monkeypatch.setattr(assignment, "LATE", 0.0)
    parsed = []
    collector.assigns("publicTrade", A, B, callback=parsed.append)
    collector.streams("publicTrade", "AUSDT")
    for count, topics in enumerate([(B,), (B, C)], 1):
        collector.events(count)
        collector.assigns("publicTrade", *topics, callback=parsed.append)
    collector.events(3)
    exchange.sends(message(A, 1), message(B, 2))
    eventually(lambda: parsed)
    assert [each["ts"] for each in parsed] == [2]
    assert collector.stats.ignored == 1


def test_each_topic_may_have_a_callback_of_its_own(exchange, collector):
    parsed = []
    collector.assigns("publicTrade", A)
    collector.streams("publicTrade", "AUSDT")
    collector.events(1)
    collector.exchange.assign("publicTrade", {A: collector.keep, B: parsed.append})
    collector.events(2)
    exchange.publishes(message(A, 1), message(B, 2), message(A, 3))
    assert collector.received(2) == [message(A, 1), message(A, 3)]
    assert parsed == [json.loads(message(B, 2))]
    collector.exchange.assign("publicTrade", {A: parsed.append})
    collector.events(3)
    exchange.publishes(message(A, 4))
    eventually(lambda: len(parsed) == 2)


def test_on_spot_ten_topics_go_in_a_request(exchange, collector):
    symbols = [f"A{number}USDT" for number in range(25)]
    exchange.knows(*symbols, category="spot")
    collector.category = "spot"
    collector.assigns("publicTrade", *[f"publicTrade.{symbol}" for symbol in symbols[:1]])
    collector.streams("publicTrade", "A0USDT")
    collector.events(1)
    collector.assigns("publicTrade", *[f"publicTrade.{symbol}" for symbol in symbols])
    eventually(lambda: collector.stats.subscribed == 25)
    assert [len(topics) for _, topics in asked(exchange)] == [1, 10, 10, 4]


def test_a_topic_that_bybit_does_not_know_leaves_the_others_alone(exchange, collector):
    collector.assigns("publicTrade", A)
    collector.streams("publicTrade", "AUSDT")
    collector.events(1)
    collector.assigns("publicTrade", A, "publicTrade.NOPE", B)
    collector.events(3)
    assert exchange.subscribed(topics=2).topics == {A, B}
    collector.assigns("publicTrade", A)
    assert collector.events(4)[-1] == unsubscribed(B), "what was rejected was never subscribed"
    assert (collector.stats.topics, collector.stats.rejected) == (1, 0)


def test_a_rejection_that_is_forgotten_is_asked_for_again_at_once(exchange, collector):
    collector.timeouts = SLOW
    collector.assigns("publicTrade", A, "publicTrade.NEWUSDT")
    collector.streams("publicTrade", "AUSDT")
    eventually(lambda: collector.stats.rejected == 1)
    exchange.knows("AUSDT", "NEWUSDT")
    assert collector.exchange.rejected.forget("publicTrade.NEWUSDT")
    eventually(lambda: collector.stats.subscribed == 2, 1)
    assert collector.events()[-1] == subscribed("publicTrade.NEWUSDT")


def test_a_symbol_that_is_listed_before_its_topics_are_taken_costs_two_lines_of_the_log(exchange, collector):
    collector.exchange.rejected.first_retry = collector.exchange.rejected.retry_after = 0.1
    new = "publicTrade.NEWUSDT"
    collector.assigns("publicTrade", A)
    collector.streams("publicTrade", "AUSDT")
    collector.events(1)
    collector.assigns("publicTrade", A, new)
    eventually(lambda: asked(exchange).count(("subscribe", [new])) >= 4)
    exchange.knows("AUSDT", "NEWUSDT")
    eventually(lambda: collector.stats.subscribed == 2)
    assert [event.event for event in collector.events()] == ["subscribed", "rejected", "subscribed"]
    assert len(collector.lines(f"Bybit rejects {new}", logging.ERROR)) == 1
    assert len(collector.lines(f"Bybit now accepts {new}", logging.INFO)) == 1


def test_a_topic_that_was_leaving_when_the_connection_was_lost_is_told_to_have_left(exchange, collector):
    exchange.treats(Script(ack_delay=0.01))
    collector.assigns("publicTrade", A, B)
    collector.streams("publicTrade", "AUSDT")
    collector.events(1)
    exchange.connections[0].script = Script(ack_delay=None)
    collector.assigns("publicTrade", B)
    exchange.wait(lambda: len(asked(exchange)) == 2)
    exchange.drops()
    events = collector.events(4)
    assert [(event.event, event.topics) for event in events] == [
        ("subscribed", [A, B]),
        ("lost", [B]),
        ("unsubscribed", [A]),
        ("subscribed", [B]),
    ]


# What watches the topics follows them.


def test_a_gap_of_a_topic_that_came_later_is_found_and_mended(exchange, collector):
    """Also on a connection that had nothing to watch."""
    collector.timeouts = SLOW
    collector.assigns("mixed", A)
    collector.streams("publicTrade", "AUSDT", name="mixed")
    collector.events(1)
    collector.assigns("mixed", A, BOOK)
    first = json.loads(collector.received(1)[0])["data"]["u"]
    text = '{"topic":"%s","type":"delta","ts":1790134712126,"data":{"s":"X","b":[],"a":[],"u":%d,"seq":7},"cts":1}'
    exchange.publishes(text % (BOOK, first + 1), text % (BOOK, first + 5))
    eventually(lambda: Event("gap", [BOOK], {"before": first + 1, "after": first + 5}) in collector.events())
    collector.received(4)
    assert asked(exchange)[1:] == [("subscribe", [BOOK]), ("unsubscribe", [BOOK]), ("subscribe", [BOOK])]


def test_a_book_that_leaves_while_it_is_mended_costs_no_connection(exchange, collector, monkeypatch):
    monkeypatch.setattr(renewal, "SNAPSHOT_WITHIN", 0.3)
    collector.timeouts = Timeouts(timer=TIMER)
    exchange.treats(then=Script(ack_delay=0.2))
    collector.assigns("orderbook", BOOK, OTHER)
    collector.streams("orderbook", "BTCUSDT")
    collector.received(2)
    text = '{"topic":"%s","type":"delta","ts":1790134712126,"data":{"s":"X","b":[],"a":[],"u":%d,"seq":7},"cts":1}'
    exchange.publishes(text % (BOOK, 7_000_000))
    exchange.wait(lambda: len(asked(exchange)) == 2)
    collector.assigns("orderbook", OTHER)
    eventually(lambda: unsubscribed(BOOK) in collector.events())
    is_quiet_for(collector, 0.5)
    assert len(exchange.connections) == 1
    assert exchange.subscribed().topics == {OTHER}


def test_a_topic_that_has_left_is_not_silent_and_one_that_came_later_may_be(exchange, collector):
    exchange.rate = 500
    collector.timeouts = Timeouts(timer=TIMER)
    collector.assigns("tickers", "tickers.AUSDT", "tickers.BUSDT")
    collector.streams("tickers", "AUSDT")
    collector.received(200)
    collector.assigns("tickers", "tickers.BUSDT", "tickers.CUSDT")
    collector.received(950)
    exchange.connections[0].silence("tickers.CUSDT")
    collector.logs("tickers.CUSDT: nothing for ")
    exchange.rate = 0
    assert {tuple(event.topics) for event in collector.events() if event.event == "silent"} == {("tickers.CUSDT",)}
    collector.stops()


# Connections.


def test_events_name_the_stream_and_statistics_the_connection(exchange, collector):
    """The collector of these tests compares the stream that an event names with the name of its thread."""
    for name, topic in (("Trades", A), ("Trades#2", B)):
        collector.assigns(name, topic)
        collector.streams("publicTrade", "AUSDT", name=name)
    collector.events(2)
    assert collector.exchange.streams.keys() == {"Trades", "Trades#2"}
    assert collector.exchange.topics == {"Trades": {A}, "Trades#2": {B}}
    assert stream_of("Trades#2") == stream_of("Trades") == "Trades"


def ends(collector, name):
    """Drops a connection as main does; returns the seconds until its thread has ended."""
    (thread,) = [thread for thread in collector.threads if thread.name == name and thread.is_alive()]
    began = time.monotonic()
    collector.exchange.drop(name)
    thread.join(5)
    assert not thread.is_alive()
    collector.exchange.forget(name)
    return time.monotonic() - began


def test_a_connection_that_is_dropped_ends_and_leaves_nothing_and_the_others_flow_on(exchange, collector):
    for name, topic in (("Trades", A), ("Trades#2", B)):
        collector.assigns(name, topic)
        collector.streams("publicTrade", "AUSDT", name=name)
    collector.events(2)
    assert ends(collector, "Trades#2") < 1
    assert collector.events()[2:] == [unsubscribed(B)]
    assert collector.exchange.streams.keys() == collector.exchange.topics.keys() == {"Trades"}
    exchange.wait(lambda: len(exchange.open_connections()) == 1)
    exchange.publish(message(A))
    assert collector.received(1) == [message(A)]
    assert not collector.lines("Lost Bybit")


def test_a_name_that_was_dropped_may_begin_anew(exchange, collector):
    collector.assigns("Trades", A)
    collector.streams("publicTrade", "AUSDT", name="Trades")
    collector.events(1)
    ends(collector, "Trades")
    collector.streams("publicTrade", "BUSDT", name="Trades")
    assert collector.events(3)[1:] == [unsubscribed(A), subscribed(B)]
    assert (collector.exchange.streams["Trades"].connections, collector.exchange.assigned) == (1, {})


@pytest.mark.parametrize("state", ["waits to reconnect", "connects", "waits for its place", "has no topics", "is lost"])
def test_a_connection_is_dropped_in_any_state(exchange, collector, state, monkeypatch):
    monkeypatch.setattr(exchange_module, "NOTICE_DROP", 0.1)
    collector.assigns("publicTrade", *[A] * (state != "has no topics"))
    if state == "waits to reconnect":
        collector.backoff = lambda: type("Long", (), {"after": lambda *_: 60.0})()
    if state == "connects":
        exchange.treats(then=Script(handshake="never"))
    if state == "waits for its place":
        collector.pacer = Pacer(1, 0.001)
    collector.streams("publicTrade", "AUSDT")
    if state in ("waits to reconnect", "waits for its place"):
        exchange.drops()
        collector.logs("Lost Bybit")
    if state == "connects":
        exchange.wait(lambda: exchange.connections)
    if state == "is lost":
        exchange.subscribed().freeze()
    assert ends(collector, "publicTrade") < 1
    assert collector.exchange.streams == collector.exchange.topics == collector.exchange.assigned == {}
    assert collector.exchange.ended("publicTrade") is False


def test_a_func_of_the_users_own_that_makes_no_connection_ends_when_it_returns(collector):
    import main
    from conf.streams import StreamSpec

    calls, go = [], threading.Event()

    def func():
        calls.append(go.wait(10))

    collector.exchange.add_stream("own")
    args = (StreamSpec("own", func, (), {}), collector.exchange, collector.backoff())
    thread = threading.Thread(target=main.run_stream, args=args, name="own")
    thread.start()
    collector.threads.append(thread)
    collector.exchange.drop("own")
    go.set()
    thread.join(5)
    assert calls == [True]
    assert not collector.lines(level=logging.WARNING)
