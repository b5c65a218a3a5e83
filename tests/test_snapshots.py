"""Snapshots on request: real consumers on a real Redis, the stand-in for Bybit, and all that can go wrong between."""

import contextlib
import json
import logging
import socket
import threading
import time

import pytest
import redis
from conftest import Subscriber
from programs import by_topic
from vocabulary import Script, Timeouts, eventually

import main
from relay.bybit.requests import PART
from relay.bybit.snapshots import Snapshots
from relay.redis import listener as module
from relay.redis.link import DEFAULT_TIMEOUTS
from relay.redis.link import Timeouts as RedisTimeouts
from relay.redis.listener import Listener, Replies
from relay.redis.publisher import Publisher
from sandbox.bybit import Bybit

BOOK, TICKER = "orderbook.50.BTCUSDT", "tickers.BTCUSDT"
REQUESTS, PREFIX = "test:request", "test:reply_"


def request(*topics, reply="x", **members):
    return json.dumps({"op": "snapshot", "topics": topics, "reply": f"{PREFIX}{reply}"} | members)


class Service:
    """What answers requests, beside the streams of `collector`; and a consumer that gets all replies."""

    def __init__(self, collector, exchange, redis, timeouts=DEFAULT_TIMEOUTS, **options):
        self._collector, self._exchange, self._redis = collector, exchange, redis
        new_connection = Publisher("127.0.0.1", redis.port, timeouts=timeouts).new_connection
        self.snapshots = Snapshots(collector.exchange, Replies(new_connection), PREFIX, **options)
        self.rounds = self.snapshots._side._rounds
        handlers = (self.snapshots.receive, self.snapshots.tick)
        self._listener = Listener(new_connection, REQUESTS, *handlers, collector.stop)
        self._consumer = Subscriber(redis, f"{PREFIX}*", reconnect=True)
        self._client = redis.client(retry=None)

    def __enter__(self):
        self._consumer.__enter__()
        self._listener.start()
        eventually(self.takes_requests)
        return self

    def starts(self):
        self.snapshots.start()
        return self

    def __exit__(self, *_):
        self._collector.stop.set()
        self._collector.exchange.close_all()
        began = time.monotonic()
        self._listener.join(began + 5)
        self.snapshots.join(began + 5)
        self.ended_after = time.monotonic() - began
        self._client.close()
        self._consumer.__exit__()

    def takes_requests(self):
        return self._client.pubsub_numsub(REQUESTS)[0][1] == 1 and self._consumer.subscribed.is_set()

    def asks(self, *topics, **members):
        self._client.publish(REQUESTS, request(*topics, **members))

    def publishes(self, payload):
        self._client.publish(REQUESTS, payload)

    def replies(self, count=0, reply=None):
        """(end of the reply channel, message) so far; of one channel the messages. Waits until there are `count`."""

        def found():
            messages = [(name.removeprefix(PREFIX), json.loads(text)) for name, text in list(self._consumer.messages)]
            messages = messages if reply is None else [message for name, message in messages if name == reply]
            return (messages,) if len(messages) >= count else None

        return eventually(found, 20)[0]

    def counts(self):
        return tuple(self.snapshots.counts().values())

    def requested(self, connection=2):
        """What the side connection has asked of Bybit: (op, topics)."""
        return [(each["op"], each["args"]) for each in self._exchange.connections[connection - 1].requests]


@pytest.fixture
def service(collector, exchange, redis_server):
    """Starts the service; the stream of `topics` is subscribed before, as connection 1."""
    with contextlib.ExitStack() as stack:

        def start(redis=redis_server, kind="orderbook", symbols=("BTCUSDT",), **options):
            collector.streams(kind, *symbols)
            exchange.subscribed(1, len(symbols))
            # The exchange has answered; the collector may not have read it yet, and would reject requests.
            eventually(lambda: collector.exchange.streams[kind].subscribed == len(symbols))
            return stack.enter_context(Service(collector, exchange, redis, **options))

        yield start


def is_snapshot(message, topic):
    return (message.get("topic"), message.get("type")) == (topic, "snapshot")


def rejection(reason, *topics):
    return {"event": "rejected", "stream": "", "topics": list(topics), "reason": reason}


def without_time(message):
    return {name: value for name, value in message.items() if name != "ts"}


# A round.


def test_a_request_gets_bybits_own_frame_and_nobody_else_notices(service, collector, exchange):
    run = service().starts()
    before = collector.received(1)
    run.asks(BOOK)
    ((reply, message),) = run.replies(1)
    assert reply == "x"
    assert is_snapshot(message, BOOK)
    exchange.wait(lambda: not exchange.connections[1].topics)
    assert run.requested() == [("subscribe", [BOOK]), ("unsubscribe", [BOOK])]
    assert json.loads(exchange.connections[1].sent[0]) == message
    assert collector.received() == before
    assert exchange.connections[0].requests == [{"req_id": "1", "op": "subscribe", "args": [BOOK]}]
    assert run.counts() == (1, 0)
    assert [event.event for event in collector.events()] == ["subscribed"]


def test_two_who_have_asked_share_a_round(service):
    run = service()
    run.asks(BOOK, reply="x")
    run.asks(BOOK, reply="y")
    eventually(lambda: run.counts() == (2, 0))
    run.starts()
    assert {name for name, message in run.replies(2)} == {"x", "y"}
    eventually(lambda: run.requested() == [("subscribe", [BOOK]), ("unsubscribe", [BOOK])])


def test_who_asks_during_a_round_gets_the_next_one(service, exchange):
    """Its subscription may be younger than the snapshot of this round."""
    exchange.treats(Script(), then=Script(ack_delay=0.3))
    run = service().starts()
    run.asks(BOOK, reply="x")
    exchange.wait(lambda: len(exchange.connections) == 2 and run.requested())
    run.asks(BOOK, reply="y")
    eventually(lambda: run.counts() == (2, 0))
    assert [name for name, message in run.replies(1)] == ["x"]
    assert [name for name, message in run.replies(2)] == ["x", "y"]
    exchange.wait(lambda: not exchange.connections[1].topics)
    assert run.requested() == [("subscribe", [BOOK]), ("unsubscribe", [BOOK])] * 2


def test_no_round_waits_for_a_clock(service, collector):
    """The clocks of a connection are looked at every second: half of it would be added to each round."""
    collector.timeouts = Timeouts(timer=60)
    run = service().starts()
    for count in range(1, 4):
        run.asks(BOOK)
        assert is_snapshot(run.replies(count, "x")[-1], BOOK)
        eventually(lambda: not run.rounds.under_way)


def frame(kind, topic, mark):
    return json.dumps({"topic": topic, "type": kind, "ts": 1, "data": {"mark": mark}}, separators=(",", ":"))


def test_a_delta_is_no_snapshot(service, exchange):
    exchange.treats(Script(), then=Script(ack_delay=0.3))
    run = service().starts()
    run.asks(BOOK)
    exchange.wait(lambda: len(exchange.connections) == 2 and run.requested())
    exchange.connections[1].send(frame("delta", BOOK, 1))
    exchange.connections[1].send(frame("snapshot", BOOK, 2))
    exchange.connections[1].send(frame("snapshot", BOOK, 3))
    exchange.wait(lambda: run.requested() and run.requested()[-1][0] == "unsubscribe")
    (message,) = run.replies(1, "x")
    assert message["data"] == {"mark": 2}, "the first snapshot after the request, and this only"


def test_a_snapshot_from_before_the_subscription_is_no_answer(service, exchange):
    """It is older than the request: its consumer may have missed what followed it."""
    other = "orderbook.50.ETHUSDT"
    exchange.treats(Script(), then=Script(ack_delay=0.4))
    run = service(symbols=["BTCUSDT", "ETHUSDT"]).starts()
    run.asks(other, reply="other")
    run.replies(1, "other")
    exchange.wait(lambda: len(run.requested()) == 2)
    run.asks(BOOK)  # it waits until the unsubscription is acknowledged
    eventually(lambda: run.counts() == (2, 0))
    exchange.connections[1].send(frame("snapshot", BOOK, "stale"))
    (message,) = run.replies(1, "x")
    assert "mark" not in message["data"]
    assert [args for op, args in run.requested() if op == "subscribe"] == [[other], [BOOK]]


def test_three_hundred_topics_in_one_request(service, exchange):
    symbols = [f"COIN{number}USDT" for number in range(300)]
    exchange.knows(*symbols)
    run = service(symbols=symbols).starts()
    topics = [f"orderbook.50.{symbol}" for symbol in symbols]
    run.asks(*topics)
    assert {message["topic"] for message in run.replies(300, "x")} == set(topics)
    exchange.wait(lambda: not exchange.connections[1].topics)
    assert [len(args) for op, args in run.requested()] == [200, 100, 200, 100]


def test_more_topics_than_a_connection_carries_take_turns(service, collector, exchange):
    symbols = [f"{number}{'X' * 900}" for number in range(30)]
    exchange.knows(*symbols)
    run = service(kind="tickers", symbols=symbols[:15]).starts()
    collector.streams("tickers", *symbols[15:], name="second")
    exchange.subscribed(2, 15)
    topics = [f"tickers.{symbol}" for symbol in symbols]
    eventually(lambda: all(map(collector.exchange.flows, topics)))
    run.asks(*topics)
    assert {message["topic"] for message in run.replies(30, "x")} == set(topics)
    assert len(exchange.connections) == 3
    assert sum(len(args) for op, args in run.requested(3) if op == "subscribe") == 30


def test_a_flood_for_one_topic_costs_one_connection_and_a_round_at_a_time(service, exchange, collector):
    exchange.treats(Script(), then=Script(ack_delay=0.05))
    run = service().starts()
    exchange.rate = 1000
    with run._client.pipeline(transaction=False) as pipeline:
        for number in range(2000):
            pipeline.publish(REQUESTS, request(BOOK, reply=number % 1000))
        pipeline.execute()
    names = {str(number) for number in range(1000)}
    eventually(lambda: {name for name, message in run.replies()} == names, 20)
    eventually(lambda: run.counts() == (2000, 0) and not run.rounds.waiting and not run.rounds.under_way, 20)
    assert all(is_snapshot(message, BOOK) for name, message in run.replies())
    assert len(exchange.connections) == 2
    ops = [op for op, args in run.requested()]
    assert ops == ["subscribe", "unsubscribe"] * (len(ops) // 2), "two rounds at once"
    exchange.rate = 0
    eventually(lambda: collector.received() == exchange.connections[0].sent)


# What is rejected.


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (request("orderbook.50.NOPE"), rejection("this collector does not carry the topic", "orderbook.50.NOPE")),
        (request(op="replay"), rejection('"topics" is a list of topics, at least one')),
        (request(BOOK, op="replay"), rejection('"op" is "snapshot"', BOOK)),
        (request(BOOK, reply="x" * 300), None),
        (json.dumps({"op": "snapshot", "topics": [BOOK], "reply": "test:orderbook"}), None),
        ("\x1b[2J{", None),
        ("x" * 100_000, None),
    ],
    ids=range(7),
)
def test_what_cannot_be_served_is_rejected_counted_and_logged_once(service, exchange, collector, payload, expected):
    run = service().starts()
    run.publishes(payload)
    run.publishes(payload)
    if expected:
        assert [without_time(message) for message in run.replies(2, "x")] == [expected] * 2
    eventually(lambda: run.counts() == (2, 2))
    (line,) = collector.logs("Rejecting a consumer's request: ")
    assert line.isprintable()
    assert len(line) < 400
    assert len(exchange.connections) == 1
    assert not [name for name, message in run.replies() if name != "x"]


def test_topics_that_can_be_served_are_served(service):
    """Those without a snapshot, and those that are not carried, are rejected each with its reason."""
    run = service().starts()
    run.asks(BOOK, "publicTrade.BTCUSDT", "allLiquidation.BTCUSDT", TICKER)
    first, second, third = run.replies(3, "x")
    assert is_snapshot(third, BOOK)
    trades = ("publicTrade.BTCUSDT", "allLiquidation.BTCUSDT")
    assert without_time(first) == rejection("Bybit has no snapshots of such topics", *trades)
    assert without_time(second) == rejection("this collector does not carry the topic", TICKER)
    assert run.counts() == (1, 2)


def test_what_another_collector_carries_is_left_to_it_silently(service, exchange):
    run = service(foreign=lambda topic: topic.endswith("ETHUSDT")).starts()
    run.asks("orderbook.50.ETHUSDT", "publicTrade.ETHUSDT", reply="none")
    run.asks("orderbook.50.ETHUSDT", BOOK, "tickers.NOPE", reply="some")
    replies = run.replies(2)
    assert {name for name, _ in replies} == {"some"}
    assert sorted(str(message.get("topic") or message["topics"]) for _, message in replies) == [
        "['tickers.NOPE']",
        BOOK,
    ]
    exchange.wait(lambda: run.requested() == [("subscribe", [BOOK]), ("unsubscribe", [BOOK])])
    assert run.counts() == (2, 1)
    assert run.replies() == replies


@pytest.mark.parametrize("payload", ["no JSON", request(BOOK, op="?"), request(BOOK, topics=[])])
def test_of_collectors_that_share_the_symbols_one_rejects_what_is_invalid_as_a_whole(service, payload, monkeypatch):
    monkeypatch.setattr(main, "SHARD", (2, 2))
    second = service(foreign=lambda topic: main.Collector.is_foreign(None, topic))
    second.publishes(payload)
    second.asks("tickers.ETHUSDT")
    eventually(lambda: second.counts()[0] == 2)
    silent = second.counts()[1]
    monkeypatch.setattr(main, "SHARD", (1, 2))
    second.publishes(payload)
    eventually(lambda: second.counts()[0] == 3)
    assert (silent, second.counts()[1]) == (0, 1)


def test_too_many_who_wait_are_rejected(service, exchange):
    exchange.treats(Script(), then=Script(handshake="never"))
    run = service(symbols=["BTCUSDT", "ETHUSDT"])
    run.rounds._max_waiting = 1000
    run.starts()
    with run._client.pipeline(transaction=False) as pipeline:
        for number in range(999):
            pipeline.publish(REQUESTS, request(BOOK, reply=number))
        pipeline.execute()
    run.asks("orderbook.50.ETHUSDT", BOOK, reply="last")
    (message,) = run.replies(1, "last")
    assert without_time(message) == rejection("too many requests are waiting", BOOK)


def test_a_topic_that_bybit_rejects_is_rejected_with_its_reason(service, exchange, collector):
    """At once when somebody asks again soon; others are served."""
    other = "orderbook.50.ETHUSDT"
    exchange.treats(Script(), then=Script(refuse=(BOOK,)))
    run = service(symbols=["BTCUSDT", "ETHUSDT"]).starts()
    run.asks(BOOK, other)
    messages = run.replies(2, "x")
    expected = rejection(f"error:handler not found,topic:{BOOK}", BOOK)
    assert expected in [without_time(message) for message in messages]
    assert any(is_snapshot(message, other) for message in messages)
    run.asks(BOOK, reply="y")
    assert [without_time(message) for message in run.replies(1, "y")] == [expected]
    assert sum(BOOK in args for op, args in run.requested() if op == "subscribe") == 1
    (line,) = collector.lines("Bybit rejects ")
    assert line.endswith("retrying in 1 min")
    assert collector.exchange.rejected.add(BOOK, 0), "the streams do not know of it"


# The real program.


def truth(frames):
    """The state to which the frames of a topic lead, as the stand-in has sent them."""
    state = State()
    for text in frames:
        state.apply(json.loads(text))
    return state


class State:
    """A book or a ticker, built from a snapshot and what follows it; `position` is the `u` or the `cs`."""

    def __init__(self):
        self.values, self.position, self.queued, self.synced, self.dropped = {}, 0, [], False, 0

    def apply(self, message):
        data = message["data"]
        is_book = "u" in data
        position = data["u"] if is_book else message["cs"]
        if message["type"] == "snapshot":
            self.values, self.position, self.synced = {}, position, True
        elif not self.synced:
            self.queued.append(message)
            return
        elif position <= self.position:
            self.dropped += 1
            return
        elif is_book:
            assert position == self.position + 1, "a hole"
        self.position = position
        levels = [(side, *level) for side in "ba" for level in data[side]] if is_book else []
        changes = {(side, price): size for side, price, size in levels} if is_book else data
        self.values |= changes
        self.values = {name: value for name, value in self.values.items() if not is_book or value != "0"}
        queued, self.queued = self.queued, []
        for one in queued:
            self.apply(one)


def test_late_consumers_have_exact_books_and_tickers_while_data_flows(program, own_redis):
    """Compared with what the stand-in has sent. Who was there before gets the same messages as ever."""
    symbols = ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    topics = [f"{kind}.{symbol}" for symbol in symbols for kind in ("orderbook.50", "tickers")]
    channels = ("stream:bybit_orderbook", "stream:bybit_ticker")
    with Bybit(rate=0, record=True) as bybit, contextlib.ExitStack() as consumers:
        early = consumers.enter_context(Subscriber(own_redis, *channels))
        collector = program(own_redis, bybit, SYMBOLS=",".join(symbols))
        bybit.wait(lambda: len(bybit.connections) == 4 and all(one.topics for one in bybit.connections))
        main = {path.topics.copy().pop().split(".")[0]: path for path in bybit.connections}
        bybit.rate = 1500
        client = own_redis.client()
        eventually(lambda: client.pubsub_numsub("stream:bybit_request")[0][1] == 1)
        late = []
        for number in range(8):
            reply = f"stream:bybit_reply_{number}"
            count = len(early.messages)
            eventually(lambda count=count: len(early.messages) > count + 100)
            late.append(consumers.enter_context(Subscriber(own_redis, *channels, reply)))
            text = json.dumps({"op": "snapshot", "topics": topics, "reply": reply})
            client.publish("stream:bybit_request", text)
        eventually(lambda: all(len(one.of(f"stream:bybit_reply_{n}")) == len(topics) for n, one in enumerate(late)))
        count = len(early.messages)
        eventually(lambda: len(early.messages) > count + 500)
        bybit.rate = 0
        # On the exchange's own thread: it sends nothing more after this.
        sent = bybit.run(lambda: by_topic(text for kind in ("orderbook", "tickers") for text in main[kind].sent))
        everything = sum(map(len, sent.values()))
        eventually(lambda: len(early.messages) == everything)
        assert by_topic(payload for channel, payload in early.messages) == {
            topic: [text.encode() for text in texts] for topic, texts in sent.items()
        }
        expected = {topic: truth(texts).values for topic, texts in sent.items()}
        last = [early.of(channel)[-1] for channel in channels]
        for one in late:
            eventually(lambda one=one: all(text in one.of(name) for name, text in zip(channels, last, strict=True)))
            states = {topic: State() for topic in topics}
            for _, payload in list(one.messages):
                message = json.loads(payload)
                states[message["topic"]].apply(message)
            assert {topic: state.values for topic, state in states.items()} == expected
        assert collector.stop()[0] == 0
        assert len(bybit.connections) == 5, "all shared one side connection"
        assert collector.lines("WARNING") == []


# Trouble.


def test_the_side_connection_is_closed_when_nobody_asks_any_more(service, exchange):
    run = service(idle=0.2).starts()
    run.asks(BOOK)
    run.replies(1)
    exchange.wait(lambda: exchange.connections[1].closed)
    run.asks(BOOK)
    run.replies(2)
    assert len(exchange.connections) == 3
    assert exchange.connections[0].closed is None


def test_without_bybit_a_request_is_rejected_and_later_ones_are_served(service, exchange, collector):
    exchange.treats(Script(), then=Script(handshake=503))
    run = service(expiry=0.5).starts()
    run.asks(BOOK)
    (message,) = run.replies(1, "x")
    reason = "no snapshot within 0.5 s: the handshake was answered with HTTP 503"
    assert without_time(message) == rejection(reason, BOOK)
    assert run.counts() == (1, 1)
    assert len(collector.lines("Requests for snapshots have to wait")) <= 1
    exchange.then = Script()

    def is_served():
        run.asks(BOOK, reply="later")
        return any(is_snapshot(message, BOOK) for message in run.replies(1, "later"))

    eventually(is_served, 20)


def test_a_connection_lost_in_a_round_costs_time_only(service, exchange):
    exchange.treats(Script(), Script(ack_delay=None))
    run = service().starts()
    run.asks(BOOK)
    exchange.wait(lambda: len(exchange.connections) == 2 and run.requested())
    exchange.connections[1].reset()
    (message,) = run.replies(1, "x")
    assert is_snapshot(message, BOOK)
    assert run.requested(3)[0] == ("subscribe", [BOOK])


def test_a_topic_without_a_snapshot_is_given_up(service, exchange):
    """Bybit accepts any topic on option, and may have nothing to send elsewhere."""
    exchange.treats(Script(), then=Script(ack_delay=0.2))
    run = service(expiry=0.6).starts()
    run.asks(BOOK)
    exchange.wait(lambda: len(exchange.connections) == 2 and run.requested())
    exchange.connections[1].silence()
    (message,) = run.replies(1, "x")
    assert without_time(message) == rejection("no snapshot within 0.6 s", BOOK)
    eventually(lambda: run.requested() == [("subscribe", [BOOK]), ("unsubscribe", [BOOK])])
    exchange.connections[1].resume()
    run.asks(BOOK, reply="later")
    assert is_snapshot(run.replies(1, "later")[0], BOOK)


def test_where_a_second_subscription_brings_no_snapshot_each_round_gets_a_new_connection(service, exchange, collector):
    """It is learnt once, from a round that has to wait; from there on no round has to."""
    exchange.snapshot_again = False
    run = service(symbols=["BTCUSDT", "ETHUSDT"]).starts()
    for count in range(1, 4):
        run.asks(BOOK)
        assert is_snapshot(run.replies(count, "x")[-1], BOOK)
    exchange.wait(lambda: len(exchange.connections) == 4)
    assert run.requested(2)[:3] == [("subscribe", [BOOK]), ("unsubscribe", [BOOK]), ("subscribe", [BOOK])]
    assert run.requested(3)[0] == run.requested(4)[0] == ("subscribe", [BOOK])
    assert ("subscribe", [BOOK]) not in run.requested(3)[1:]
    run.asks("orderbook.50.ETHUSDT")
    assert is_snapshot(run.replies(4, "x")[-1], "orderbook.50.ETHUSDT")
    assert len(exchange.connections) == 4, "a topic that is new on a connection needs none of its own"
    assert run.counts() == (4, 0)
    assert len(collector.lines("Bybit sends no snapshot to a connection")) == 1


def test_a_topic_that_has_nothing_to_send_teaches_nothing(service, exchange):
    """It costs the connection once, and brings no snapshot on a new one either."""
    run = service(expiry=4).starts()
    run.asks(BOOK)
    run.replies(1, "x")
    eventually(lambda: not run.rounds.under_way)
    exchange.snapshot_again = False
    exchange.then = Script(ack_delay=None)
    run.asks(BOOK)
    assert run.replies(2, "x")[-1]["reason"] == "no snapshot within 4 s"
    assert len(exchange.connections) == 3
    assert not run.snapshots._side._repeats.needs_fresh


def test_requests_work_again_after_a_restart_of_redis(service, own_redis, collector, exchange):
    run = service(own_redis).starts()
    run.asks(BOOK)
    run.replies(1)
    own_redis.kill()
    own_redis.start()
    eventually(run.takes_requests, 20)
    run.asks(BOOK)
    run.replies(2)
    assert len(exchange.connections) == 2
    assert collector.lines(level=30) == []


def test_a_redis_that_hangs_holds_up_no_stream(service, own_redis, collector, exchange, monkeypatch):
    monkeypatch.setattr(module, "PING_AFTER", 0.1)
    monkeypatch.setattr(module, "SILENCE", 0.3)
    run = service(own_redis, timeouts=RedisTimeouts(reply=0.5)).starts()
    run.asks(BOOK)
    run.replies(1)
    own_redis.pause()
    run.snapshots.receive(request(BOOK).encode())
    exchange.wait(lambda: len(run.requested()) == 4)
    exchange.rate = 1000
    collector.received(200)
    own_redis.resume()
    exchange.rate = 0
    eventually(run.takes_requests, 20)

    def is_served():
        run.asks(BOOK, reply="later")
        return run.replies(0, "later")

    eventually(is_served, 20)


def test_who_does_not_publish_does_not_answer(service, exchange):
    leading = []
    run = service(answers=lambda: bool(leading)).starts()
    run.snapshots.receive(request(BOOK, reply="early").encode())
    run.snapshots.receive(b"nonsense")
    leading.append(True)
    run.asks(BOOK, reply="x")
    run.replies(1, "x")
    assert run.replies(0, "early") == []
    assert run.counts() == (1, 0)


def test_a_redis_that_denies_the_subscription_is_logged_once(collector, own_redis, monkeypatch):
    monkeypatch.setattr(module, "RETRY_DENIED", 0.05)
    own_redis.client().execute_command("ACL", "SETUSER", "pub", "on", ">p", "allchannels", "-@all", "+publish")
    new_connection = Publisher("127.0.0.1", own_redis.port, username="pub", password="p").new_connection
    listener = Listener(new_connection, REQUESTS, print, lambda: None, collector.stop)
    listener.start()
    collector.logs("Redis denies the requests of consumers on test:request: ")
    info = own_redis.client().info("stats")
    eventually(
        lambda: own_redis.client().info("stats")["total_connections_received"] > info["total_connections_received"] + 3
    )
    collector.stop.set()
    listener.join(time.monotonic() + 5)
    assert len(collector.lines("Redis denies")) == 1


def test_a_stop_does_not_wait_for_the_next_turn(collector, own_redis, monkeypatch):
    monkeypatch.setattr(module, "TICK", 60.0)
    new_connection = Publisher("127.0.0.1", own_redis.port).new_connection
    listener = Listener(new_connection, REQUESTS, print, lambda: None, collector.stop)
    listener.start()
    eventually(lambda: own_redis.client().pubsub_numsub(REQUESTS) == [(REQUESTS.encode(), 1)])
    collector.stop.set()
    listener.join(time.monotonic() + 30)
    eventually(lambda: own_redis.client().pubsub_numsub(REQUESTS) == [(REQUESTS.encode(), 0)], 5)


def test_a_flood_that_never_pauses_fills_no_memory(collector, own_redis, monkeypatch):
    """redis-py keeps what it has handed out until nothing is left to read; later requests are taken again."""
    monkeypatch.setattr(module, "CATCH_UP", 100_000)
    monkeypatch.setattr(module, "RETRY", 0.01)
    flooded, taken, client = threading.Event(), [], own_redis.client()

    def receive(payload):
        flooded.wait(10)
        taken.append(payload)

    listener = Listener(Publisher("127.0.0.1", own_redis.port).new_connection, REQUESTS, receive, print, collector.stop)
    listener.start()
    eventually(lambda: client.publish(REQUESTS, "first"))
    for _ in range(50):
        client.publish(REQUESTS, "x" * 10_000)
    flooded.set()
    collector.logs("More requests than can be taken on test:request: those that wait are dropped")
    assert sum(map(len, taken)) < 220_000
    eventually(lambda: client.publish(REQUESTS, "last") and b"last" in taken)
    collector.stop.set()
    listener.join(time.monotonic() + 5)


def test_without_the_right_to_ping_requests_are_taken_all_the_same(collector, own_redis, monkeypatch):
    monkeypatch.setattr(module, "TICK", 0.02)
    monkeypatch.setattr(module, "PING_AFTER", 0.05)
    monkeypatch.setattr(module, "SILENCE", 0.3)
    rights = ("allchannels", "-@all", "+publish", "+subscribe")
    own_redis.client().execute_command("ACL", "SETUSER", "pub", "on", ">p", *rights)
    new_connection = Publisher("127.0.0.1", own_redis.port, username="pub", password="p").new_connection
    ticks, taken = [], []
    listener = Listener(new_connection, REQUESTS, taken.append, lambda: ticks.append(1), collector.stop)
    listener.start()
    eventually(lambda: len(ticks) > 6)
    client = own_redis.client()
    eventually(lambda: client.publish(REQUESTS, "a") and taken)
    assert len([one for one in client.client_list() if one["user"] == "pub"]) == 1
    assert client.info("commandstats")["cmdstat_subscribe"]["calls"] == 1
    collector.stop.set()
    listener.join(time.monotonic() + 5)


def test_a_connection_that_died_without_a_word_is_replaced(collector, monkeypatch):
    """Nothing may come on the request channel for hours: only a PING shows whether Redis is there."""
    monkeypatch.setattr(module, "TICK", 0.02)
    monkeypatch.setattr(module, "PING_AFTER", 0.05)
    monkeypatch.setattr(module, "SILENCE", 0.5)
    monkeypatch.setattr(module, "RETRY", 0.01)
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as sockets:
        server.settimeout(10)
        listener = Listener(
            Publisher("127.0.0.1", server.getsockname()[1]).new_connection,
            REQUESTS,
            print,
            lambda: None,
            collector.stop,
        )
        listener.start()
        for _ in range(2):
            peer = sockets.enter_context(server.accept()[0])
            peer.sendall(b"*3\r\n$9\r\nsubscribe\r\n$12\r\ntest:request\r\n:1\r\n")
            peer.settimeout(10)
            while not (heard and b"PING" in heard[-1]):
                heard.append(peer.recv(4096))
            heard.clear()
        collector.stop.set()
        listener.join(time.monotonic() + 5)


def test_an_error_while_redis_is_away_does_not_end_the_thread_and_is_logged_once(collector, monkeypatch):
    monkeypatch.setattr(module, "TICK", 0.01)
    ticks = []

    def tick():
        ticks.append(1)
        raise ValueError("not enough values")

    listener = Listener(lambda: redis.Connection(port=1), REQUESTS, print, tick, collector.stop)
    listener.start()
    eventually(lambda: len(ticks) > 5)
    collector.stop.set()
    listener.join(time.monotonic() + 5)
    assert len(collector.lines(level=logging.ERROR)) == 1


def test_a_redis_that_answers_nonsense_to_a_reply_harms_nobody(collector):
    """redis-py fails over its own words then: whoever rejects a request is not to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        replies = Replies(Publisher("127.0.0.1", server.getsockname()[1]).new_connection)
        sender = threading.Thread(target=replies.send, args=([("a", b"b")],))
        sender.start()
        with server.accept()[0] as peer:
            peer.recv(4096)
            peer.sendall(b"-MOVED\r\n")
            sender.join(10)
            assert peer.recv(4096) == b"", "it hangs up"
    assert collector.lines(level=logging.ERROR) == []


def test_replies_do_not_wait_again_and_again_for_a_redis_that_is_away():
    attempts = []

    def fails():
        attempts.append(1)
        raise redis.ConnectionError

    replies = Replies(fails)
    for _ in range(100):
        replies.send([("a", b"b")])
    assert len(attempts) == 1


@pytest.mark.parametrize("script", [Script(handshake="never"), Script(ack_delay=None)], ids=["connecting", "asked"])
def test_a_stop_waits_for_nobody(service, exchange, script):
    exchange.treats(Script(), then=script)
    run = service().starts()
    run.asks(BOOK)
    exchange.wait(lambda: len(exchange.connections) == 2)
    run.__exit__()
    assert run.ended_after < 2
    run.__exit__()


class Noting:
    """Replies to a Redis that takes everything."""

    def __init__(self):
        self.sent = []

    def send(self, replies):
        self.sent.append(list(replies))

    def close(self):
        pass


def test_many_who_wait_for_a_snapshot_are_not_served_in_one_piece(exchange, collector):
    collector.streams("orderbook", "BTCUSDT")
    eventually(lambda: collector.exchange.flows(BOOK))
    replies = Noting()
    snapshots = Snapshots(collector.exchange, replies, PREFIX)
    for number in range(1000):
        snapshots.receive(request(BOOK, reply=str(number)).encode())
    snapshots.start()
    eventually(lambda: sum(map(len, replies.sent)) == 1000)
    assert max(map(len, replies.sent)) <= PART
    assert [reply for part in replies.sent for reply, _ in part] == [f"{PREFIX}{number}" for number in range(1000)]
    collector.stop.set()
    collector.exchange.close_all()
    snapshots.join(time.monotonic() + 5)


class Hanging:
    """Replies to a Redis that takes nothing, until a test lets it."""

    def __init__(self):
        self.ends = threading.Event()

    def send(self, replies):
        self.ends.wait(10)

    def close(self):
        self.ends.wait(10)


def test_a_stop_does_not_wait_for_a_redis_that_hangs(exchange, collector):
    collector.streams("orderbook", "BTCUSDT")
    eventually(lambda: collector.exchange.flows(BOOK))
    replies = Hanging()
    snapshots = Snapshots(collector.exchange, replies, PREFIX)
    snapshots.start()
    snapshots.receive(request(BOOK).encode())
    exchange.wait(lambda: len(exchange.connections) == 2)
    collector.stop.set()
    collector.exchange.close_all()
    began = time.monotonic()
    snapshots.join(began + 0.2)
    assert time.monotonic() - began < 3
    replies.ends.set()
