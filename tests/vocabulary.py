"""The words of the tests of Bybit's end. `exchange` is the stand-in for Bybit, `collector` runs streams against it.

    def test_a_dropped_connection_is_replaced(exchange, collector):
        collector.streams("publicTrade", "BTCUSDT")
        exchange.drops()
        collector.delivers(connection=2)

Verbs in the third person act or wait; collector.received() and collector.events() return what there is.
"""

import itertools
import logging
import re
import threading
import time
from functools import partial
from typing import NamedTuple

import pytest
from websockets.utils import accept_key

import main
from conf.streams import StreamSpec
from relay.backoff import Backoff
from relay.batch import Batch
from relay.bybit.client import Client
from relay.bybit.exchange import Exchange
from relay.bybit.health import Timeouts
from relay.bybit.pacer import Pacer
from relay.dispatch import batched, raw
from relay.stats import stream_of
from sandbox.bybit import Bybit, Script

POLL = 0.01  # seconds between two checks of a condition
TIMER = 0.02  # seconds between two checks of a connection's clocks, where a test waits for one of them
PAUSE = 0.02  # seconds between two attempts, where a test is not about them
# A test is run with connections that their own threads read, and with those that are lent to the Reader.
both_ways = pytest.mark.parametrize("lends", [False, True], ids=["own thread", "reader"])
# The methods of pybit by the first part of their topics.
METHODS = {
    "orderbook": ("orderbook_stream", {"depth": 50}),
    "publicTrade": ("trade_stream", {}),
    "tickers": ("ticker_stream", {}),
    "allLiquidation": ("all_liquidation_stream", {}),
}


def agreement(request):
    """What a server answers to the request of a WebSocket handshake, as RFC 6455 wants it."""
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)[1]
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_key(key.decode()).encode()
    )


def eventually(check, timeout=10.0):
    """Call `check` until it returns something true and return that; AssertionError with its last answer if never.

    An AssertionError raised by `check` itself counts as "not yet".
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            last = check()
        except AssertionError as error:
            last = error
        else:
            if last:
                return last
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s, last answer: {last!r}")
        time.sleep(POLL)


def message(topic, number=1, **members):
    """A message of a topic as Bybit writes it."""
    more = "".join(f',"{name}":{value}' for name, value in members.items())
    return f'{{"topic":"{topic}","type":"snapshot","ts":{number},"data":[]{more}}}'


class Event(NamedTuple):
    """What was announced to consumers."""

    event: str
    topics: list
    fields: dict


def subscribed(*topics):
    return Event("subscribed", list(topics), {})


def rejected(topic, reason):
    return Event("rejected", [topic], {"reason": reason})


class StandIn(Bybit):
    """The stand-in for Bybit. What it does to a connection, it does to the newest one, once that is subscribed."""

    def knows(self, *symbols, category="linear"):
        """The symbols of a category; there are no others."""
        self.symbols = {category: symbols}

    def treats(self, *scripts, then=None):
        """How the next connections are treated, one script each; `then` is for all later ones."""
        self.script, self.then = list(scripts), then or self.then

    def subscribed(self, connection=None, topics=1):
        """Waits until a connection (its number, None = the newest) is subscribed to `topics` topics; returns it."""
        index = -1 if connection is None else connection - 1
        self.wait(lambda: len(self.connections) > max(0, index) and len(self.connections[index].topics) >= topics)
        return self.connections[index]

    def open_connections(self):
        return [one for one in self.connections if one.closed is None]

    def requested(self, connection):
        """The topics that a connection asked for, a list for each request."""
        return [
            request["args"] for request in self.connections[connection - 1].requests if request["op"] == "subscribe"
        ]

    def pings(self):
        """How many pings the newest connection has sent."""
        return sum(request["op"] == "ping" for request in self.connections[-1].requests)

    def publishes(self, *texts):
        """Sends messages to whoever is subscribed to their topics."""
        self.subscribed()
        for text in texts:
            self.publish(text)

    def sends(self, *texts):
        """Sends text frames, whatever is in them."""
        for text in texts:
            self.subscribed().send(text)

    def sends_bytes(self, data):
        """Puts bytes on the socket as they are."""
        self.subscribed().send_raw(data)

    def drops(self):
        self.subscribed().drop()

    def resets(self):
        self.subscribed().reset()

    def closes(self, code=1000, reason=""):
        self.subscribed().close(code, reason)

    def freezes(self):
        self.subscribed().freeze()

    def freezes_inside_a_frame(self):
        self.subscribed().freeze_inside_frame()

    def falls_silent(self, *topics):
        """Sends no more data, of these topics or of all, though it answers pings."""
        self.subscribed().silence(*topics)

    def omits(self, topic):
        """Leaves out the next message of a topic."""
        self.subscribed().omit(topic)


class Collector:
    """Streams that run in this process as main.py runs them. It is also their sink: what they announce is kept.

    lends: whether its connections are lent to the Reader, on which callbacks run then. All else is each stream's own.
    The attributes of the first group may be set before the first stream is started.
    """

    def __init__(self, exchange, caplog, lends=False):
        self.url, self.category = exchange.url, "linear"
        self.timeouts = Timeouts(timer=TIMER)
        self.pacer = Pacer(10_000, 1000, probe_every=0)
        self.backoff = partial(Backoff, PAUSE, PAUSE)  # called once a stream
        self.stop = threading.Event()
        self.sink = self
        self.exchange_type = Exchange

        self.threads = []
        self._stand_in, self._caplog = exchange, caplog
        self._exchange = None
        self._messages, self._events = [], []
        self._flushed = 0  # messages
        self._numbers = itertools.count(1)
        self.lends, self.read_on = lends, set()
        self.keep = batched(lambda each: self._keep(each)) if lends else raw(lambda text: self._messages.append(text))

    def _keep(self, messages):
        """What the Reader calls, or a stream while its connection is not lent."""
        self.read_on.add(threading.current_thread().name)
        if isinstance(messages, Batch):
            self._messages.extend(messages)
        else:
            self._messages.append(messages)

    # What the streams do with a sink.

    def flush(self):
        self._flushed = len(self._messages)

    def announce(self, event, stream, topics, **fields):
        assert stream == stream_of(threading.current_thread().name)
        self._events.append(Event(event, list(topics), fields))

    # What a test does.

    def reads_from(self, exchange):
        """Another stand-in than that of the fixture `exchange`."""
        self._stand_in, self.url = exchange, exchange.url

    @property
    def exchange(self):
        """What the streams share: relay's Exchange, made once."""
        if self._exchange is None:
            options = {"testnet": True, "url": self.url, "stop": self.stop, "sink": self.sink}
            self._exchange = self.exchange_type(self.category, timeouts=self.timeouts, pacer=self.pacer, **options)
            if self.lends:
                self._exchange.reactor.start()
        return self._exchange

    def streams(self, kind, *symbols, callback=None, stall_timeout=0.0, name=None):
        """Starts a stream; `kind` is the first part of its topics. Without a callback its messages are received()."""
        callback = callback or self.keep
        method, options = METHODS[kind]

        def subscribe():
            client = Client(self.exchange, stall_timeout)
            getattr(client, method)(symbol=list(symbols), callback=callback, **options)
            client.run()

        stream = StreamSpec(name or kind, subscribe, (), {})
        self.exchange.add_stream(stream.name)
        args = (stream, self.exchange, self.backoff())
        thread = threading.Thread(target=main.run_stream, args=args, name=stream.name)
        self.threads.append(thread)
        thread.start()

    def assigns(self, name, *topics, callback=None):
        """Gives a connection these topics; without a callback its messages are received()."""
        self.exchange.assign(name, dict.fromkeys(topics, callback or self.keep))

    def received(self, count=0, timeout=10.0):
        """The messages so far, as text; waits until there are `count`."""
        eventually(lambda: len(self._messages) >= count, timeout)
        return [each.decode() for each in self._messages]

    def events(self, count=0):
        """The events so far; waits until there are `count`."""
        eventually(lambda: len(self._events) >= count)
        return list(self._events)

    def delivers(self, connection=None):
        """Waits until only the connection with this number (None = any) is open; a message sent then arrives, once."""
        exchange = self._stand_in

        def is_the_only_one():
            wanted = exchange.connections if connection is None else exchange.connections[connection - 1 :][:1]
            return len(live := exchange.open_connections()) == 1 and live[0] in wanted and live[0].topics

        exchange.wait(is_the_only_one)
        live = exchange.connections[-1]
        text = message(min(live.topics), next(self._numbers), delivers="true")
        exchange.publish(text)
        eventually(lambda: text in self.received())
        assert self.received().count(text) == 1
        assert exchange.connections[-1] is live, "it was replaced"

    def logs(self, text, times=1):
        """Waits until lines with this text were logged `times` times; returns them."""
        return eventually(lambda: len(found := self.lines(text)) >= times and found)

    def lines(self, text="", level=logging.NOTSET):
        return [
            line for record in self._caplog.records if record.levelno >= level and text in (line := record.getMessage())
        ]

    @property
    def thread(self):
        """Of its only stream."""
        (thread,) = self.threads
        return thread

    @property
    def stats(self):
        """Of its only stream."""
        return self.exchange.streams[self.thread.name]

    def stops(self):
        """Ends all streams; returns the seconds that it took."""
        began = time.monotonic()
        self.stop.set()
        self.exchange.close_all()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive(), f"the stream {thread.name} does not end"
        self._ends_the_reader()
        assert self._flushed == len(self._messages), "messages were not flushed"
        return time.monotonic() - began

    def _ends_the_reader(self):
        if self._exchange is None:
            return
        reactor = self._exchange.reactor
        reactor.stop()
        reactor.join(time.monotonic() + 10)
        assert not reactor.is_running
        names = {record.threadName for record in self._caplog.records}
        assert "Reader" not in names, "what is logged of a connection bears the name of its thread"


__all__ = [
    "Collector",
    "Event",
    "Script",
    "StandIn",
    "Timeouts",
    "both_ways",
    "eventually",
    "message",
    "rejected",
    "subscribed",
]
