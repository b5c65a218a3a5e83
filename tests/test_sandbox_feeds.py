"""The stand-in's market and feeds: frames with Bybit's fields, and books that add up. No socket, a clock of its own."""

import json
import random
import re
from pathlib import Path

import pytest
from websockets.frames import Frame, Opcode

import sandbox.bybit
from sandbox.bybit import DEFAULT_SYMBOLS
from sandbox.bybit.book import Book, Window
from sandbox.bybit.feeds import new_feed
from sandbox.bybit.market import Market, instrument
from sandbox.bybit.wire import text_frame

CONTRACT = DEFAULT_SYMBOLS["option"][0]


class World:
    """Feeds over shared markets; the clock stands at 1,790,000,000 s."""

    def __init__(self, category="linear", seed=1):
        self.category, self.seed = category, seed
        self.markets, self.feeds = {}, {}

    def market(self, symbol):
        if symbol not in self.markets:
            self.markets[symbol] = Market(instrument(self.category, symbol), self.seed, lambda: 1_790_000_000.25)
        return self.markets[symbol]

    def feed(self, topic, contracts=()):
        if topic not in self.feeds:
            self.feeds[topic] = new_feed(topic, self.market, contracts)
        return self.feeds[topic]

    def advance(self, topic):
        return json.loads(self.feed(topic).advance())

    def snapshot(self, topic):
        return json.loads(self.feed(topic).snapshot())


def apply(book, message):
    """Applies an order-book message; book is {"b": {price: size}, "a": {price: size}, "u": int}."""
    data = message["data"]
    if message["type"] == "snapshot":
        book.update(b={}, a={})
    else:
        assert data["u"] == book["u"] + 1
        assert data["b"] or data["a"]
    for side in "ba":
        for price, size in data[side]:
            if size == "0":
                del book[side][price]
            else:
                assert book[side].get(price) != size
                book[side][price] = size
    book["u"] = data["u"]


@pytest.mark.parametrize(
    ("category", "depth", "symbol"),
    [
        ("linear", 50, "BTCUSDT"),
        ("linear", 200, "DOGEUSDT"),
        ("linear", 1000, "XRPUSDT"),
        ("linear", 50, "NOBODYUSDT"),
        ("spot", 50, "BTCUSDT"),
        ("inverse", 200, "ETHUSD"),
        ("option", 25, CONTRACT),
    ],
)
def test_deltas_applied_to_the_snapshot_give_a_later_snapshot(category, depth, symbol):
    world = World(category)
    topic = f"orderbook.{depth}.{symbol}"
    other_depth = {"option": 100, "linear": 1}.get(category, 1000)
    others = [f"orderbook.{other_depth}.{symbol}", f"publicTrade.{symbol}"]
    book, sizes = {}, []
    apply(book, world.snapshot(topic))
    for n in range(300):
        text = world.feed(topic).advance()
        apply(book, json.loads(text))
        assert (len(book["b"]), len(book["a"])) == (depth, depth)
        assert max(map(float, book["b"])) < min(map(float, book["a"]))
        sizes.append(len(text))
        world.advance(others[n % len(others)])  # moves the same book
    snapshot = world.snapshot(topic)["data"]
    assert snapshot["u"] == book["u"]
    assert {side: dict(snapshot[side]) for side in "ba"} == {side: book[side] for side in "ba"}
    prices = {side: [float(price) for price, _ in snapshot[side]] for side in "ba"}
    assert prices == {"b": sorted(prices["b"], reverse=True), "a": sorted(prices["a"])}
    assert sorted(sizes)[len(sizes) // 2] < 800


def test_depth_1_is_always_a_snapshot():
    world = World()
    messages = [world.advance("orderbook.1.BTCUSDT") for _ in range(50)]
    assert {message["type"] for message in messages} == {"snapshot"}
    numbers = [message["data"]["u"] for message in messages]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_ticker_deltas_carry_what_changed_and_add_up_to_the_snapshot():
    world = World()
    state = world.snapshot("tickers.BTCUSDT")
    fields, sets, cs = state["data"], set(), state["cs"]
    order = list(fields)
    for _ in range(300):
        message = world.advance("tickers.BTCUSDT")
        assert (message["type"], list(message)) == ("delta", ["topic", "type", "data", "cs", "ts"])
        data = message["data"]
        assert any(fields[name] != value for name, value in data.items())
        assert list(data) == [name for name in order if name in data]
        assert message["cs"] > cs
        cs = message["cs"]
        sets.add(tuple(data))
        fields.update(data)
    assert len(sets) > 10
    assert fields == world.snapshot("tickers.BTCUSDT")["data"]


@pytest.mark.parametrize(("category", "symbol"), [("linear", "BTCUSDT"), ("spot", "DOGEUSDT"), ("inverse", "BTCUSD")])
def test_trades_take_off_the_best_price_of_the_book(category, symbol):
    world = World(category)
    book, sequences = {}, []
    apply(book, world.snapshot(f"orderbook.50.{symbol}"))
    for _ in range(100):
        apply(book, world.advance(f"orderbook.50.{symbol}"))
        message = world.advance(f"publicTrade.{symbol}")
        trades = message["data"]
        assert message["type"] == "snapshot"
        assert 1 <= len(trades) <= 30
        assert len({trade["i"] for trade in trades}) == len(trades)
        sequences.append(trades[0]["seq"])
        best = min(book["a"], key=float) if trades[0]["S"] == "Buy" else max(book["b"], key=float)
        assert trades[0]["p"] == best
        first = [float(trade["v"]) for trade in trades if trade["p"] == best]
        assert sum(first) <= float({**book["b"], **book["a"]}[best]) * 1.000001
    assert sequences == sorted(sequences)


BOOK_FIELDS = "s,b,a,u,seq"
SPOT_TICKER = "symbol,lastPrice,highPrice24h,lowPrice24h,prevPrice24h,volume24h,turnover24h,price24hPcnt,usdIndexPrice"
OPTION_TICKER = (
    "symbol,bidPrice,bidSize,bidIv,askPrice,askSize,askIv,lastPrice,highPrice24h,lowPrice24h,markPrice,indexPrice,"
    "markPriceIv,underlyingPrice,openInterest,turnover24h,volume24h,totalVolume,totalTurnover,delta,gamma,vega,theta,"
    "predictedDeliveryPrice,change24h"
)
LINEAR_TRADE = "T,s,S,v,p,L,i,BT,RPI,seq"


@pytest.mark.parametrize(
    ("category", "topic", "envelope", "fields"),
    [
        ("linear", "orderbook.50.BTCUSDT", "topic,type,ts,data,cts", BOOK_FIELDS),
        ("linear", "orderbook.1.BTCUSDT", "topic,ts,type,data,cts", BOOK_FIELDS),
        ("linear", "publicTrade.BTCUSDT", "topic,type,ts,data", LINEAR_TRADE),
        ("linear", "allLiquidation.BTCUSDT", "topic,type,ts,data", "T,s,S,v,p"),
        ("inverse", "orderbook.200.BTCUSD", "topic,type,ts,data,cts", BOOK_FIELDS),
        ("inverse", "publicTrade.BTCUSD", "topic,type,ts,data", LINEAR_TRADE),
        ("inverse", "allLiquidation.BTCUSD", "topic,type,ts,data", "T,s,S,v,p"),
        ("spot", "orderbook.50.BTCUSDT", "topic,ts,type,data,cts", BOOK_FIELDS),
        ("spot", "orderbook.1.BTCUSDT", "topic,ts,type,data,cts", BOOK_FIELDS),
        ("spot", "publicTrade.BTCUSDT", "topic,ts,type,data", "i,T,p,v,S,seq,s,BT,RPI"),
        ("spot", "tickers.BTCUSDT", "topic,ts,type,cs,data", SPOT_TICKER),
        ("option", f"orderbook.25.{CONTRACT}", "topic,ts,type,id,data,cts", BOOK_FIELDS),
        ("option", "publicTrade.BTC", "topic,ts,type,id,data", "i,T,p,v,S,seq,s,BT,mP,iP,mIv,iv"),
        ("option", f"tickers.{CONTRACT}", "topic,ts,type,id,data", OPTION_TICKER),
    ],
)
def test_fields_come_in_the_category_s_order(category, topic, envelope, fields):
    world = World(category)
    text = world.feed(topic, (CONTRACT,) if topic == "publicTrade.BTC" else ()).advance()
    message = json.loads(text)
    data = message["data"][0] if isinstance(message["data"], list) else message["data"]
    assert (",".join(message), ",".join(data)) == (envelope, fields)
    assert text == json.dumps(message, separators=(",", ":"))
    assert message["ts"] == 1_790_000_000_250


def test_the_same_seed_gives_the_same_bytes():
    def story(seed):
        world = World(seed=seed)
        topics = ("orderbook.50.BTCUSDT", "publicTrade.BTCUSDT", "tickers.BTCUSDT", "allLiquidation.BTCUSDT")
        return [world.feed(topics[n % 4]).advance() for n in range(100)]

    assert story(5) == story(5) != story(6)


def test_numbers_are_written_as_each_category_does():
    assert [instrument(category, "BTCUSDT").price(651_000) for category in ("linear", "spot")] == ["65100.00", "65100"]
    assert [instrument(category, "BTCUSDT").size(1500) for category in ("linear", "spot")] == ["1.500", "0.0015"]
    assert all(re.fullmatch(r"\d+(\.\d+)?", instrument("linear", f"X{n}USDT").price(12_345)) for n in range(50))


@pytest.mark.parametrize(
    "room",
    ["book", "catalogue", "dialect", "feeds", "handshake", "market", "script", "state", "tickers", "view", "wire"],
)
def test_pure_rooms_import_no_clock_socket_or_thread(room):
    source = (Path(sandbox.bybit.__file__).parent / f"{room}.py").read_text()
    assert not re.search(r"^(import|from) (asyncio|logging|socket|ssl|threading|time)\b", source, re.MULTILINE)
    assert not re.search(
        r"^from sandbox\.bybit\.(connection|gate|link|loop|server|sources|writer)\b", source, re.MULTILINE
    )


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_a_text_frame_has_the_bytes_that_websockets_gives_it(size):
    text = "é" * (size // 2) + "x" * (size % 2)
    assert text_frame(text) == Frame(Opcode.TEXT, text.encode()).serialize(mask=False)


@pytest.mark.parametrize("seed", range(3))
def test_a_window_is_what_the_book_shows_and_its_news_are_the_difference(seed):
    draw = random.Random(seed)
    book = Book(20_000, 50.0, draw)
    book.deepen(200)
    windows = [(side, depth, Window(side, depth)) for side in (book.bids, book.asks) for depth in (1, 50, 200)]
    for _ in range(300):
        for _ in range(draw.choice((0, 1, 3, 20))):
            book.change(draw.choice((1, 50, 200)), draw.uniform(-1, 1))
        if draw.random() < 0.3:
            book.take(draw.random() < 0.5, draw.choice((1, 5, 30)))
        for side, depth, window in draw.sample(windows, 3):
            before, now = dict(window.levels), {key: side.sizes[key] for key in side.keys[-depth:]}
            news = window.news()
            gone = dict.fromkeys(before.keys() - now.keys(), 0)
            assert dict(news) == gone | {key: lots for key, lots in now.items() if before.get(key) != lots}
            assert news == sorted(set(news), reverse=True)
            assert window.levels == now
