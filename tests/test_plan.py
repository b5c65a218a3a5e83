"""A connection whose topics change while it runs: its plan wants, releases and renews, and any thread may wake it."""

import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from vocabulary import eventually, message, subscribed

from relay.bybit.client import Client
from relay.bybit.connection import Connection
from relay.bybit.health import Timeouts
from relay.dispatch import raw
from relay.waker import Waker

BOOK, TICKER = "orderbook.50.BTCUSDT", "tickers.BTCUSDT"
SLOW = Timeouts(timer=60)  # nothing happens by the clock


class Side:
    """A connection aside, its plan, and what it received. `do` is what the plan does next, once."""

    def __init__(self, collector):
        self.events, self.received = [], []
        self.exchange = collector.exchange.aside(self)
        self.plans = 0
        self.do = lambda _subscription: None
        self.callbacks = {}
        self.connection = None
        self.ready = threading.Event()

    def flush(self):
        pass

    def announce(self, event, stream, topics, **_fields):
        assert stream == "Side"
        self.events.append((event, list(topics)))

    def run(self):
        url = Client(self.exchange).endpoint
        self.connection = Connection(self.exchange, url, self.callbacks, 0, self.plan)
        self.ready.set()
        self.exchange.run(self.connection)

    def plan(self, subscription, now):
        assert threading.current_thread().name == "Side"
        assert abs(now - time.monotonic()) < 10
        self.plans += 1
        do, self.do = self.do, lambda _subscription: None
        do(subscription)

    def wants(self, *topics):
        """Has the plan want these topics, and waits for their snapshots."""

        def want(subscription):
            self.callbacks.update(dict.fromkeys(topics, raw(lambda text: self.received.append(json.loads(text)))))
            subscription.want(topics)

        before = len(self.received)
        self.plans_to(want)
        eventually(lambda: {each["topic"] for each in self.received[before:]} >= set(topics))

    def plans_to(self, do):
        self.do = do
        self.connection.wake()


@pytest.fixture
def side(collector):
    """It runs, connected or soon."""
    collector.timeouts = SLOW
    side = Side(collector)
    with running(side, collector):
        yield side


@contextmanager
def running(side, collector):
    thread = threading.Thread(target=side.run, name="Side")
    thread.start()
    try:
        assert side.ready.wait(10)
        yield
    finally:
        collector.exchange.stop.set()
        collector.exchange.close_all()
        thread.join(10)
        assert not thread.is_alive(), "close_all() of the main exchange ends it"


def test_the_plan_is_called_before_the_first_request_and_when_it_is_woken(exchange, side):
    side.wants(BOOK)
    side.wants(TICKER)
    assert exchange.requested(1) == [[BOOK], [TICKER]]
    assert side.events == [("subscribed", [BOOK]), ("subscribed", [TICKER])]
    assert [each["type"] for each in side.received] == ["snapshot", "snapshot"]


def test_the_plan_is_called_at_every_tick_of_the_timer(collector):
    collector.timeouts = Timeouts(timer=0.02)
    side = Side(collector)
    with running(side, collector):
        eventually(lambda: side.plans >= 5)


def test_a_thousand_wakes_call_it_as_often_as_there_is_time(exchange, side):
    exchange.wait(lambda: exchange.connections)
    threads = [threading.Thread(target=lambda: [side.connection.wake() for _ in range(250)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = side.plans
    side.wants(BOOK)
    assert side.plans <= before + 1003, "and not without end"


def test_what_the_plan_releases_sends_nothing_more(exchange, side):
    side.wants(BOOK, TICKER)
    side.plans_to(lambda subscription: subscription.release([BOOK]))
    exchange.wait(lambda: exchange.connections[0].topics == {TICKER})
    exchange.publish(message(BOOK))
    exchange.publish(message(TICKER, 7))
    eventually(lambda: side.received[-1]["ts"] == 7)
    assert [each["topic"] for each in side.received].count(BOOK) == 1


def test_what_the_plan_renews_sends_a_new_snapshot(exchange, side):
    side.wants(BOOK)
    side.plans_to(lambda subscription: subscription.renew([BOOK]))
    eventually(lambda: len(side.received) == 2)
    assert [each["type"] for each in side.received] == ["snapshot", "snapshot"]
    ops = [request["op"] for request in exchange.connections[0].requests]
    assert ops == ["subscribe", "unsubscribe", "subscribe"]
    assert side.events == [("subscribed", [BOOK])], "it was subscribed all along"


def test_a_connection_tells_of_its_subscription_once_the_rest_is_for_the_curious(exchange, side, caplog):
    side.wants(BOOK)
    side.wants(TICKER)
    lines = [record for record in caplog.records if record.getMessage().startswith("Subscribed to ")]
    assert [record.levelname for record in lines] == ["INFO"]


def test_a_connection_aside_shares_what_bybit_counts_and_keeps_the_rest_apart(collector):
    main, side = collector.exchange, Side(collector).exchange
    assert (side.category, side.url, side.testnet) == (main.category, main.url, main.testnet)
    assert side.stop is main.stop
    assert side.pacer is main.pacer
    assert side.timeouts is main.timeouts
    assert side.log_once is main.log_once
    assert side.rejected is not main.rejected
    assert side.streams is not main.streams
    assert side.topics is not main.topics


def test_the_exchange_knows_what_its_streams_ask_for_even_between_their_lives(exchange, collector):
    assert not collector.exchange.carries(TICKER)
    collector.streams("tickers", "BTCUSDT", "NOPE")
    assert collector.events(2)[-1] == subscribed(TICKER)
    assert collector.exchange.carries(TICKER)
    assert collector.exchange.carries("tickers.NOPE")
    assert not collector.exchange.carries(BOOK)
    assert (collector.stats.topics, collector.stats.subscribed, collector.stats.rejected) == (2, 1, 1)
    collector.stops()
    assert collector.exchange.topics == {"tickers": frozenset({TICKER, "tickers.NOPE"})}
    assert (collector.stats.topics, collector.stats.subscribed) == (2, 0)


# The waker.


def test_who_waits_is_woken_once_and_told_of_the_socket():
    waker = Waker()
    near, far = socket.socketpair()
    with near, far:
        assert not waker.wait(0.0, near)
        waker.wake()
        assert waker.wait(10.0, near)
        assert not waker.wait(-1.0)
        far.send(b"x")
        assert waker.wait(10.0, near)
    waker.close()


def test_a_waker_is_readable_until_it_is_taken_and_mute_when_it_is_closed():
    waker = Waker()
    assert not waker.take()
    waker.wake()
    waker.wake()
    assert waker.take()
    assert not waker.take()
    waker.close()
    waker.wake()
