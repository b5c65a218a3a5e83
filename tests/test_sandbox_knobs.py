"""What the stand-in for Bybit does to one topic or one connection while all else goes on, and its outages."""

import json
import re
import socket
import time
from contextlib import ExitStack
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from sandbox.bybit import DEFAULT_SYMBOLS, Bybit
from sandbox.bybit.script import Knobs
from sandbox.bybit.view import View

CONTRACT = DEFAULT_SYMBOLS["option"][0]
BOOK, TRADES, TICKER = "orderbook.50.BTCUSDT", "publicTrade.BTCUSDT", "tickers.BTCUSDT"
ALL = {
    "linear": (BOOK, "orderbook.1.BTCUSDT", TRADES, TICKER, "allLiquidation.BTCUSDT"),
    "inverse": ("orderbook.200.BTCUSD", "publicTrade.BTCUSD", "tickers.BTCUSD", "allLiquidation.BTCUSD"),
    "spot": (BOOK, "orderbook.1.BTCUSDT", TRADES, TICKER),
    "option": (f"orderbook.25.{CONTRACT}", "publicTrade.BTC", f"tickers.{CONTRACT}"),
}
CATEGORIES = sorted(ALL)
RATE = 2000


class Client:
    """A consumer of one connection; `frames` are the data frames so far, parsed."""

    def __init__(self, bybit, websocket):
        self.bybit, self.websocket = bybit, websocket
        self.connection = bybit.connections[-1]
        self.frames, self.texts = [], []

    def asks(self, *topics, op="subscribe"):
        """Returns when it is acknowledged."""
        self.websocket.send(json.dumps({"op": op, "args": topics}))
        self.reads(until=lambda text: '"success"' in text)
        assert '"success":true' in self.texts[-1]

    def reads(self, count=0, until=None):
        """Reads `count` more frames, or until one that fits; returns them, parsed."""
        read = []
        while len(read) < count or (until and not (read and until(self.texts[-1]))):
            self.texts.append(self.websocket.recv(timeout=5))
            read.append(json.loads(self.texts[-1]))
            if "topic" in read[-1]:
                self.frames.append(read[-1])
        return read

    def catches_up(self):
        """Reads all that was sent; the market must stand still."""
        self.websocket.send('{"op":"ping"}')
        self.reads(until=lambda text: "pong" in text)

    def reads_until_nothing_comes(self):
        while True:
            assert "pong" not in self.websocket.recv(timeout=0.2)

    def of(self, topic):
        return [frame for frame in self.frames if frame["topic"] == topic]


@pytest.fixture
def serve():
    """Starts servers, without moving markets by default."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Bybit(**{"rate": 0, **options}))


@pytest.fixture
def client():
    """Opens clients, one after the other."""
    with ExitStack() as stack:

        def open_client(bybit, category="linear", door=0):
            options = {"compression": None, "ping_interval": None, "close_timeout": 0.05, "max_queue": None}
            return Client(bybit, stack.enter_context(connect(f"{bybit.urls[door]}/v5/public/{category}", **options)))

        yield open_client


def stops(bybit, *clients):
    """The market stands still, and all clients have read all."""
    bybit.rate = 0
    bybit.wait(lambda: not any(connection.holds_trades for connection in bybit.connections))
    for each in clients:
        each.catches_up()


def number(frame):
    """u of a book, cs of a ticker; None for a message that has neither."""
    return frame["data"]["u"] if frame["topic"].startswith("orderbook") else frame.get("cs")


def steady(frames):
    """Whether the numbers of a topic's messages rise: by one in a book."""
    numbers = [number(frame) for frame in frames]
    if frames[0]["topic"].startswith("orderbook"):
        return numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return numbers == sorted(set(numbers))


# One topic, all its connections.


@pytest.mark.parametrize("category", CATEGORIES)
def test_numbers_belong_to_the_topic_not_to_the_connection(serve, client, category):
    bybit = serve(rate=RATE, repush=60)
    first, second = client(bybit, category), client(bybit, category)
    first.asks(*ALL[category])
    first.reads(300)
    second.asks(*ALL[category])
    second.reads(300)
    stops(bybit, first, second)
    for topic in ALL[category]:
        mine, theirs = first.of(topic), second.of(topic)
        snapshot, *rest = theirs
        if topic.startswith(("orderbook", "tickers")):
            assert snapshot["type"] == "snapshot"
            assert rest == mine[-len(rest) :]
            assert number(snapshot) == number(mine[-len(rest) - 1])
        else:
            assert theirs == mine[-len(theirs) :]


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_topic_subscribed_again_begins_with_the_snapshot_of_the_latest_frame(serve, client, category, others):
    bybit = serve(rate=RATE, repush=60)
    one, *more = [client(bybit, category) for _ in range(1 + others)]
    topics = [topic for topic in ALL[category] if topic.startswith(("orderbook", "tickers"))]
    for each in (one, *more):
        each.asks(*topics)
    one.reads(200)
    one.asks(topics[0], op="unsubscribe")
    one.frames.clear()
    one.asks(topics[0])
    one.reads(300)
    stops(bybit, one, *more)
    snapshot, *rest = one.of(topics[0])
    assert snapshot["type"] == "snapshot"
    assert number(rest[0]) == number(snapshot) + 1
    assert steady([snapshot, *rest])
    for topic in topics[1:]:
        if number(one.of(topic)[0]) is not None:
            assert steady(one.of(topic))
    for each in more:
        assert each.of(topics[0])[-len(rest) :] == rest


def test_a_topic_subscribed_again_may_begin_without_a_snapshot(serve, client):
    bybit = serve(rate=RATE)
    bybit.snapshot_again = False
    one = client(bybit)
    one.asks(BOOK, TICKER)
    assert "snapshot" in {frame["type"] for frame in one.reads(10)}
    one.asks(BOOK, op="unsubscribe")
    one.frames.clear()
    one.asks(BOOK)
    one.reads(100)
    assert {frame["type"] for frame in one.of(BOOK)} == {"delta"}
    another = client(bybit)
    another.asks(BOOK)
    assert another.reads(1)[0]["type"] == "snapshot"


# Each connection its own.


@pytest.mark.parametrize("category", CATEGORIES)
def test_each_connection_may_have_its_own_ts(serve, client, category):
    bybit = serve(rate=RATE, repush=60)
    clients = [client(bybit, category) for _ in range(3)]
    for each in clients:
        each.asks(*ALL[category])
    stops(bybit, *clients)
    bybit.own_ts = True
    for each in clients:
        each.frames.clear()
        each.texts.clear()
    bybit.rate = RATE
    clients[0].reads(300)
    stops(bybit, *clients)
    bybit.own_ts = False
    frames = [[text for text in each.texts if '"topic"' in text] for each in clients]
    shifts = set()
    for of_all in zip(*frames, strict=True):
        assert len({re.sub(r'"ts":\d{13}', "", text) for text in of_all}) == 1
        times = [json.loads(text)["ts"] for text in of_all]
        shifts.add(tuple(time - times[0] for time in times))
    assert shifts == {(0, 3, 6)}


@pytest.mark.parametrize(("category", "topic"), [("linear", TRADES), ("spot", TRADES), ("option", "publicTrade.BTC")])
def test_each_connection_may_have_its_trades_cut_in_its_own_way(serve, client, category, topic):
    bybit = serve(rate=RATE)
    clients = [client(bybit, category) for _ in range(2)]
    for each in clients:
        each.asks(topic)
    stops(bybit, *clients)
    for each in clients:
        each.frames.clear()
    bybit.cut_trades = True
    bybit.rate = RATE
    clients[0].reads(300)
    stops(bybit, *clients)
    frames = [[[trade["i"] for trade in frame["data"]] for frame in each.frames] for each in clients]
    trades = [[trade for frame in of_one for trade in frame] for of_one in frames]
    assert trades[0] == trades[1]
    assert len(set(trades[0])) == len(trades[0])
    assert min(len(frame) for of_one in frames for frame in of_one) >= 1
    common = {tuple(frame) for frame in frames[0]} & {tuple(frame) for frame in frames[1]}
    assert len(common) < 0.8 * len(frames[0])


FRAMES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(FRAMES, FRAMES, st.integers(0, 100), st.booleans())
def test_however_they_are_cut_the_trades_are_the_same(cut, whole, number, own_ts):
    knobs = Knobs()
    knobs.own_ts = own_ts
    view = View(knobs, number)
    trades = iter(range(10**6))
    sent, got = [], []
    for sizes, knobs.cut_trades in ((cut, True), (whole, False)):
        for size in sizes:
            data = ",".join(f'{{"i":"{next(trades)}","p":"1.5"}}' for _ in range(size))
            text = f'{{"topic":"{TRADES}","type":"snapshot","ts":1790000000000,"data":[{data}]}}'
            sent += json.loads(text)["data"]
            for each in view.texts(TRADES, text):
                frame = json.loads(each)
                assert list(frame) == ["topic", "type", "ts", "data"]
                assert frame["data"]
                got += frame["data"]
    assert not view.holds(TRADES)
    assert view.clear is not own_ts
    assert got == sent


# One topic, one connection.


@pytest.mark.parametrize("topic", [BOOK, TICKER, TRADES])
def test_a_gap_on_one_connection(serve, client, topic):
    bybit = serve(rate=RATE, truth=True)
    one, other = client(bybit), client(bybit)
    for each in (one, other):
        each.asks(BOOK, TICKER, TRADES)
        each.reads(100)
    one.connection.omit(topic)
    # What it has not read yet may be more than 200 frames: these were sent before.
    one.reads(200, until=lambda _text: not one.connection._view.omitted[topic])
    stops(bybit, one, other)
    made = [json.loads(text) for _, text in bybit.truth()[topic]]
    missed = [frame for frame in made[made.index(one.of(topic)[1]) :] if frame not in one.of(topic)]
    assert len(missed) == 1
    assert missed[0] in other.of(topic)
    for untouched in {BOOK, TICKER, TRADES} - {topic}:
        late = other.of(untouched)
        assert one.of(untouched)[-len(late) + 1 :] == late[1:]


def test_a_gap_on_all_connections(serve, client):
    bybit = serve(rate=RATE)
    clients = [client(bybit), client(bybit)]
    for each in clients:
        each.asks(BOOK, TICKER)
        each.reads(50)
    bybit.omit(BOOK)
    for each in clients:
        each.reads(200)
    stops(bybit, *clients)
    jumps = []
    for each in clients:
        numbers = [number(frame) for frame in each.of(BOOK)]
        jumps.append([(a, b) for a, b in pairwise(numbers) if b != a + 1])
    assert len(jumps[0]) == 1
    assert jumps[0] == jumps[1]
    assert jumps[0][0][1] == jumps[0][0][0] + 2


def test_a_silent_topic_among_others_that_flow_until_it_is_subscribed_again(serve, client):
    bybit = serve(rate=RATE)
    one, other = client(bybit), client(bybit)
    for each in (one, other):
        each.asks(BOOK, TICKER)
        each.reads(20)
    one.connection.silence(BOOK)
    one.frames.clear()
    one.catches_up()
    before = len(one.of(BOOK))  # what was under way
    one.reads(100)
    assert len(one.of(BOOK)) == before
    assert other.reads(until=lambda text: BOOK in text)
    one.asks(BOOK, op="unsubscribe")
    one.asks(BOOK)
    one.reads(until=lambda text: BOOK in text)
    one.reads(100)
    snapshot, *rest = one.of(BOOK)[before:]
    assert (snapshot["type"], number(rest[0])) == ("snapshot", number(snapshot) + 1)


# The truth.


def test_the_truth_has_every_frame_in_order_whoever_is_subscribed(serve, client):
    bybit = serve(rate=RATE, truth=True, repush=60)
    began = time.monotonic()
    one = client(bybit)
    one.asks(*ALL["linear"])
    one.reads(200)
    one.websocket.close()
    bybit.wait(lambda: one.connection.closed)
    alone = len(bybit.truth()[BOOK])
    bybit.wait(lambda: len(bybit.truth()[BOOK]) > alone)
    late = client(bybit)
    late.asks(BOOK)
    late.reads(50)
    stops(bybit, late)
    truth = bybit.truth()
    assert set(truth) == set(ALL["linear"])
    assert bybit.truth("spot") == {}
    made = [json.loads(text) for _, text in truth[BOOK]]
    assert steady(made)
    assert number(made[-1]) == number(json.loads(bybit.snapshot(BOOK)))
    assert made[: len(one.of(BOOK)) - 1] == one.of(BOOK)[1:]
    assert made[-len(late.of(BOOK)) + 1 :] == late.of(BOOK)[1:]
    times = [at for at, _ in truth[BOOK]]
    assert times == sorted(times)
    assert began < times[0]
    assert times[-1] < time.monotonic()


def test_what_a_test_publishes_is_true_as_well(serve):
    bybit = serve(truth=True)
    text = f'{{"topic":"{TRADES}","type":"snapshot","ts":1,"data":[]}}'
    bybit.publish(text)
    bybit.wait(lambda: bybit.truth())
    assert [made for _, made in bybit.truth()[TRADES]] == [made for _, made in bybit.truth("spot")[TRADES]] == [text]
    assert bybit.truth("inverse") == {}


# Outages.


def test_an_outage_drops_all_refuses_new_connections_and_ends_on_the_same_port(serve, client):
    bybit = serve(rate=RATE, truth=True)
    one = client(bybit)
    one.asks(BOOK)
    one.reads(10)
    port = bybit.port
    bybit.away()
    with pytest.raises(ConnectionClosed):
        one.reads(until=lambda text: False)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            client(bybit)
    made = len(bybit.truth()[BOOK])
    time.sleep(0.05)  # ten bursts of the market
    assert len(bybit.truth()[BOOK]) == made
    bybit.back()
    assert bybit.port == port
    again = client(bybit)
    again.asks(BOOK)
    again.reads(10)


def test_an_outage_in_which_nothing_is_answered(serve, client):
    bybit = serve(rate=RATE)
    one = client(bybit)
    one.asks(BOOK)
    bybit.away(hang=True)
    one.websocket.send('{"op":"ping"}')
    with pytest.raises(TimeoutError):
        one.reads_until_nothing_comes()
    with socket.create_connection((bybit.host, bybit.port), timeout=0.2) as raw:
        raw.sendall(b"GET /v5/public/linear HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            raw.recv(1)
        bybit.back()
        with pytest.raises(ConnectionResetError):
            raw.recv(1)
    with pytest.raises(ConnectionClosed):
        one.websocket.recv(timeout=2)
    client(bybit).asks(BOOK)


def test_an_outage_of_one_door_leaves_those_of_the_other_alone(serve, client):
    bybit = serve(rate=RATE, doors=2)
    first, second = client(bybit, door=0), client(bybit, door=1)
    assert [one.port for one in bybit.connections] == [int(url.rpartition(":")[2]) for url in bybit.urls]
    for each in (first, second):
        each.asks(BOOK)
    bybit.away(door=0)
    with pytest.raises(ConnectionRefusedError):
        client(bybit, door=0)
    bybit.wait(lambda: first.connection.closed)
    second.reads(100)
    assert steady(second.of(BOOK))
    bybit.back()
    client(bybit, door=0).asks(BOOK)


def test_an_outage_does_not_delay_the_end(client):
    for hang in (True, False):
        with Bybit(rate=RATE) as bybit:
            client(bybit).asks(BOOK)
            bybit.away(hang=hang)
            began = time.monotonic()
        assert time.monotonic() - began < 0.5


def test_eight_hundred_symbols(serve, client):
    """The time is the server's own, so that a busy machine is no fault."""
    names = [f"COIN{n:03}USDT" for n in range(800)]
    bybit = serve(rate=RATE, symbols={"linear": names})
    one = client(bybit)
    began = bybit.run(time.thread_time)
    for topic in ("orderbook.50.{}", "tickers.{}"):
        one.asks(*(topic.format(name) for name in names[:400]))
    one.reads(800)
    assert bybit.run(time.thread_time) - began < 3  # 0.5
    one.catches_up()
    began, count = bybit.run(time.thread_time), one.connection.count
    one.reads(RATE)
    taken = one.connection.count - count
    assert bybit.run(time.thread_time) - began < taken / 2000  # a quarter of that
