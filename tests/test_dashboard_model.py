"""What the page says of states and messages: tables, without Redis and without a browser."""

import json

import pytest

from dashboard import charts, html
from dashboard.health import BAD, OK, WARN, Health, seconds
from dashboard.market import Depth, Trade
from dashboard.model import MAX_MARKETS, UNWANTED, Model
from examples.synced import Synced

PREFIX = "test:bybit"
STATE, STATUS, REPLY = f"{PREFIX}_state", f"{PREFIX}_status", f"{PREFIX}_reply_1"
NOW = 1000.0
UP = {"up": True, "topics": 2, "wanted": 2, "rejected": 0, "rate": 40.0, "messages": 7, "delay_p99": 0.002}
SINGLE = {"role": "single", "interval": 1, "ts": 1, "alive": True}
LEADER, STANDBY = SINGLE | {"role": "leader", "ready": True}, SINGLE | {"role": "standby", "ready": True}


def found(about, **streams):
    """A state hash as it is in Redis."""
    fields = {"*": about} | (streams or {"Trades": UP})
    return {name.encode(): json.dumps(value).encode() for name, value in fields.items()}


def health(*states, age=0.0):
    """Health that has seen these: (end of the key, hash)."""
    made = Health(STATE)
    for end, fields in states:
        made.see(STATE + end, fields, 15 - age, NOW)
    return made


def said(made, later=0.0):
    return [(problem.level, problem.text) for problem in made.problems(NOW + later)]


PAIR = ((":a", found(LEADER)), (":b", found(STANDBY)))


@pytest.mark.parametrize(
    ("states", "problems"),
    [
        ([("", found(SINGLE))], []),
        (PAIR, []),
        ([], [(BAD, "No collector is running")]),
        ([("", found(SINGLE, Trades=UP | {"up": False}, Books=UP))], [(BAD, "Trades is down")]),
        ([("", found(SINGLE, A=UP | {"up": False}, B=UP | {"up": False}))], [(BAD, "All 2 streams are down")]),
        ([("", found(SINGLE, Trades=UP | {"up": None}))], []),
        ([("", found(SINGLE, Trades=UP | {"topics": 1}))], [(WARN, "Trades has 1 of 2 topics")]),
        ([("", found(SINGLE, Trades=UP | {"topics": 1, "rejected": 1}))], []),
        ([("", found(SINGLE, Trades=UP | {"waits": True}))], [(WARN, "Trades waits for Bybit's list of instruments")]),
        ([("", found(SINGLE | {"alive": False}))], [(BAD, "The collector is stuck")]),
        ([("", found(SINGLE | {"buffer_share": 0.63}))], [(WARN, "The buffer for Redis is 63% full")]),
        ([("", found(SINGLE | {"buffer_share": 0.95}))], [(BAD, "The buffer for Redis is 95% full")]),
        ([(":a", found(LEADER))], [(WARN, "No standby is running")]),
        ([(":b", found(STANDBY))], [(BAD, "Nobody leads: nothing is published")]),
        (
            [(":a", found(LEADER)), (":b", found(STANDBY | {"ready": False}))],
            [(WARN, "Collector b stands by, but is not ready")],
        ),
        ([(":1of2", found(SINGLE)), (":2of2", found(SINGLE, Books=UP | {"up": False}))], [(BAD, "Books is down")]),
        ([(":1of2:a", found(LEADER)), (":1of2:b", found(STANDBY))], []),
        ([("", {b"*": json.dumps(SINGLE).encode()})], [(WARN, "The collector has no streams")]),
        ([("", {b"Trades": b'{"up": true}'})], []),  # no field of the collector as a whole
        ([("", {b"Trades": b"[1]", b"Ticker": b'{"up": true, "topics": "x", "wanted": {}}', b"*": b"no"})], []),
    ],
)
def test_what_is_wrong(states, problems):
    assert said(health(*states)) == problems


@pytest.mark.parametrize(
    ("about", "age", "problems"),
    [
        (SINGLE, 2.9, []),
        (SINGLE, 3.1, [(BAD, "The collector is gone")]),
        ({"role": "single", "ts": 1}, 9.0, []),  # a collector that does not say how often it writes
        ({"role": "single", "ts": 1}, 11.0, [(BAD, "The collector is gone")]),
    ],
)
def test_a_collector_is_gone_when_its_state_is_too_old(about, age, problems):
    assert said(health(("", found(about)), age=age)) == problems
    assert said(health(("", found(about))), later=age) == problems


def test_a_state_that_was_deleted_is_of_a_collector_that_was_stopped():
    made = health(("", found(SINGLE)))
    made.see(STATE, {}, -2, NOW + 1)
    assert said(made, 5) == [(BAD, "The collector was stopped 5 s ago")]
    assert [stream.is_live for stream in made.streams(NOW + 5)] == [False]


def test_one_that_is_gone_while_another_publishes_is_forgotten_after_a_minute():
    made = health(*PAIR)
    for later in (1, 30, 70):
        made.see(f"{STATE}:a", found(LEADER | {"ts": later}), 15, NOW + later)
        made.see(f"{STATE}:b", {}, -2, NOW + later)
        expected = [(WARN, f"Collector b was stopped {later} s ago; a publishes"), (WARN, "No standby is running")]
        assert said(made, later) == (expected if later < 70 else expected[1:])


def test_rates_are_kept_of_each_new_state_of_who_publishes():
    made = health(*PAIR)
    for ts in (2, 2, 3):
        made.see(f"{STATE}:a", found(LEADER | {"ts": ts}, Trades=UP | {"rate": float(ts)}), 15, NOW)
    assert [stream.rates for stream in made.streams(NOW)] == [(40.0, 2.0, 3.0)]


# Messages.


def trade(symbol="BTCUSDT", price="100.5", side="Buy", number="i1", size="2", ts=1790134712130):
    item = {"T": ts, "s": symbol, "S": side, "v": size, "p": price, "i": number}
    return {"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": ts, "data": [item]}


def book(u=1, kind="snapshot", bids=(("100.4", "1"), ("100.3", "2")), asks=(("100.6", "3"),), symbol="BTCUSDT"):
    data = {"s": symbol, "b": list(bids), "a": list(asks), "u": u, "seq": u}
    return {"topic": f"orderbook.50.{symbol}", "type": kind, "ts": 1790134712130, "data": data}


def model(*messages, suffix=""):
    """A model that has Redis, and has got these messages: (channel without prefix, message)."""
    made = Model(PREFIX, Synced)
    made.read(NOW)
    made.subscribed(NOW)
    gets(made, *messages, suffix=suffix)
    return made


def gets(made, *messages, suffix="", now=NOW):
    for name, message in messages:
        payload = message if isinstance(message, bytes) else json.dumps(message, separators=(",", ":")).encode()
        made.receive(f"{PREFIX}_{name}{suffix}".encode(), payload, now)


@pytest.mark.parametrize("suffix", ["", ":BTCUSDT"])
def test_a_symbol_is_known_by_its_first_message_and_followed_when_it_is_looked_at(suffix):
    made = model(("trades", trade()), ("orderbook", book()), suffix=suffix)
    assert made.symbols() == ["BTCUSDT"]
    market = made.watch("BTCUSDT", NOW)
    assert (market.last(), market.best()) == ("", ((), ()))
    gets(made, ("trades", trade(price="101.5", number="i2")), ("orderbook", book(u=5)), suffix=suffix)
    gets(made, ("orderbook", book(6, "delta", [("100.4", "0")], [("100.5", "4")])), suffix=suffix)
    assert market.last() == "101.5"
    assert market.best() == (("100.3", "2"), ("100.5", "4"))
    assert market.depth() == (([100.3], [2.0]), ([100.5, 100.6], [4.0, 7.0]))
    assert (market.reason(), made.unreadable) == ("", 0)


def test_what_nobody_looks_at_is_not_parsed():
    made = model(("trades", trade()))
    gets(made, ("trades", b'{"topic":"publicTrade.BTCUSDT", and no JSON'))
    assert made.unreadable == 0
    made.watch("BTCUSDT", NOW)
    gets(made, ("trades", b'{"topic":"publicTrade.BTCUSDT", and no JSON'))
    assert made.unreadable == 1


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"topic":5}',
        b'{"topic":"publicTrade.BTCUSDT"}',
        b'{"topic":"x"}',
        b"[" * 9999,
        b'{"a":1}',
    ],
)
def test_nothing_that_comes_ends_it(message):
    made = model(("trades", trade()), ("orderbook", book()))
    made.watch("BTCUSDT", NOW)
    for channel in ("trades", "orderbook", "status", "reply_1", "ticker:X", "else"):
        gets(made, (channel, message))
    gets(made, ("trades", trade(price="7", number="i7")))
    assert made.watch("BTCUSDT", NOW).last() == "7"


def test_a_trade_that_comes_twice_counts_once_and_bars_add_up():
    made = model(("trades", trade()))
    market = made.watch("BTCUSDT", NOW)
    for number, side, ts in (("a", "Buy", 1000), ("a", "Buy", 1000), ("b", "Sell", 1900), ("c", "Buy", 2000)):
        gets(made, ("trades", trade(number=number, side=side, ts=ts)))
    assert [(bar.second, bar.bought, bar.sold) for bar in market.bars] == [(1.0, 2.0, 2.0), (2.0, 2.0, 0.0)]
    assert charts.data(market)["volume"]["sum"].tolist() == [6.0]
    assert len(market.trades) == 3


def test_trades_of_an_options_coin_are_those_of_the_contract():
    contract = "BTC-25JUN27-106000-P-USDT"
    made = model(("ticker", {"topic": f"tickers.{contract}", "type": "snapshot", "ts": 1, "data": {}}))
    market = made.watch(contract, NOW)
    for symbol, price in ((contract, "5"), ("BTC-OTHER", "6")):
        message = trade(symbol, price, number=price) | {"topic": "publicTrade.BTC"}
        gets(made, ("trades", message))
    assert [one.price for one in market.trades] == ["5"]


def test_the_deepest_book_is_shown_and_a_topic_that_comes_later_is_taken_in():
    made = model(("orderbook", book() | {"topic": "orderbook.1.BTCUSDT"}))
    assert made.watch("BTCUSDT", NOW).book == "orderbook.1.BTCUSDT"
    gets(made, ("orderbook", book()), ("ticker", {"topic": "tickers.BTCUSDT", "type": "snapshot", "ts": 1, "data": {}}))
    market = made.watch("BTCUSDT", NOW)
    assert (market.book, market.ticker) == ("orderbook.50.BTCUSDT", "tickers.BTCUSDT")


def test_symbols_that_nobody_looks_at_are_followed_no_longer():
    symbols = [f"S{number}" for number in range(MAX_MARKETS + 1)]
    made = model(*(("trades", trade(symbol)) for symbol in symbols))
    assert [made.watch(symbol, NOW) is not None for symbol in symbols] == [True] * MAX_MARKETS + [False]
    made.forget(NOW + UNWANTED + 1)
    assert made.markets == {}
    assert made.watch(symbols[-1], NOW) is not None


def event(name, **fields):
    return "status", {"event": name, "stream": "Trades", "topics": ["publicTrade.BTCUSDT"], "ts": 1} | fields


def test_events_are_kept_newest_first_without_heartbeats():
    made = model(event("alive"), event("lost", reason="r"), event("lost", reason="r"), event("subscribed"))
    assert [(one.fields["event"], one.times) for one in made.events] == [("subscribed", 1), ("lost", 2)]


def test_what_is_said_of_several_streams_at_once_is_one_line():
    made = model(event("lost", stream="A", reason="r"), event("lost", stream="B", reason="r"))
    gets(made, event("lost", stream="C", reason="r"), now=NOW + 3)
    lines = [(one.streams, one.topics, one.times) for one in made.events]
    assert lines == [(("C",), 1, 1), (("A", "B"), 2, 1)]


def test_a_symbol_is_gone_when_its_topics_are():
    made = model(("trades", trade()), event("unsubscribed"))
    assert made.symbols() == []


def test_a_loss_is_a_problem_for_a_minute():
    made = model(event("dropped", channel="c", messages=5))
    made.health.see(STATE, found(SINGLE), 15, NOW)
    assert made.verdict(NOW + 2)[:2] == (BAD, "Messages were dropped 2 s ago")
    made.health.see(STATE, found(SINGLE), 15, NOW + 61)
    assert made.verdict(NOW + 61).level == OK


def test_the_verdict_on_redis():
    made = Model(PREFIX, Synced)
    assert made.verdict(NOW)[:2] == (WARN, "Connecting to Redis")
    made.read(NOW)
    made.health.see(STATE, found(SINGLE), 15, NOW)
    assert made.verdict(NOW) == (OK, "All well", ("1 stream up, 40 messages a second, 99% within 2.0 ms",))
    made.away("refused", NOW)
    assert made.verdict(NOW + 12) == (BAD, "Redis is away for 12 s", ("refused",))
    made.away("no right", NOW, is_denied=True)
    assert made.verdict(NOW + 13) == (BAD, "Redis denies access", ("no right",))
    made.read(NOW + 20)
    assert made.verdict(NOW + 21)[:2] == (WARN, "Redis is back")  # the state is not there again yet
    assert made.verdict(NOW + 25)[:2] == (BAD, "The collector is gone")


# HTML.


def test_all_that_comes_from_redis_is_escaped():
    evil = "<script>"
    about = LEADER | {"role": evil, "version": evil, "term": evil, "pending": evil, "dropped": {"c": evil}}
    made = model(event(evil, stream=evil, reason=evil), event("leader", instance=evil), ("trades", trade(price="1")))
    made.health.see(f"{STATE}:{evil}", found(about, **{evil: UP | {"rate": evil, "age": evil}}), 15, NOW)
    market = made.watch("BTCUSDT", NOW)
    market.trades.appendleft(Trade(1, evil, evil, evil))
    parts = (
        html.verdict_html(made.verdict(NOW)),
        html.streams_html(made.health.streams(NOW), False),
        html.collectors_html(made.health, NOW, False),
        html.redis_html(made, NOW),
        html.events_html(made.events, NOW),
        html.market_html(market, False),
        html.trades_html(market.trades, 5, False),
    )
    assert [part for part in parts if evil in part] == []
    assert "&lt;script&gt;" in parts[1]


@pytest.mark.parametrize(
    ("value", "text"), [(-1, "0 s"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (3e5, "3 d")]
)
def test_times_for_people(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("bid", "ask", "text"), [("65113.30", "65113.40", "0.10 · 0.02 bp"), ("0.5", "1", "0.5 · 5000.00 bp")]
)
def test_the_spread_has_the_digits_of_the_prices(bid, ask, text):
    assert html.spread((bid, "1"), (ask, "1")) == text
    assert html.spread((), (ask, "1")) == "–"


def test_a_side_of_the_book_is_drawn_as_steps():
    line = charts.steps(Depth([10.0, 11.0], [2.0, 5.0]))
    assert list(zip(line["price"].tolist(), line["sum"].tolist(), strict=True)) == [(10, 0), (10, 2), (11, 2), (11, 5)]
    assert [len(column) for column in charts.steps(Depth([], [])).values()] == [0, 0]


def test_empty_charts_have_ranges():
    data = charts.data(None)
    assert charts.depth_ranges(data["bids"], data["asks"]) == ((0.0, 1.0), (0.0, 1.0))
    assert charts.price_ranges(data["price"], 60_000.0) == ((30_000.0, 60_600.0), (0.0, 1.0))
