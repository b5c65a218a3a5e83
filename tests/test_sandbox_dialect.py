"""The stand-in's dialect: what Bybit answers to a request, per category. No socket."""

import json

import pytest

from sandbox.bybit import DEFAULT_SYMBOLS, Script
from sandbox.bybit.dialect import Dialect, Reply, has_topic

NOW = 1_790_134_712_130
BOOK, TRADES, TICKER = "orderbook.50.BTCUSDT", "publicTrade.BTCUSDT", "tickers.BTCUSDT"
ID = '"conn_id":"id"'


def dialect(category="linear", symbols=DEFAULT_SYMBOLS, **script):
    return Dialect(Script(**script), "id", lambda *asked: has_topic(symbols, *asked), category)


def subscribe(one, *topics, op="subscribe"):
    return one.answer(json.dumps({"op": op, "args": list(topics)}), NOW)


def ret_msg(reply):
    return json.loads(reply.text)["ret_msg"]


@pytest.mark.parametrize(
    ("category", "request_", "answer"),
    [
        ("linear", {"op": "ping"}, f'{{"success":true,"ret_msg":"pong",{ID},"req_id":"","op":"ping"}}'),
        (
            "inverse",
            {"op": "ping", "req_id": "7"},
            f'{{"success":true,"ret_msg":"pong",{ID},"req_id":"7","op":"ping"}}',
        ),
        ("spot", {"op": "ping", "args": []}, f'{{"success":true,"ret_msg":"pong",{ID},"op":"ping"}}'),
        ("option", {"op": "ping"}, f'{{"args":["{NOW}"],"op":"pong"}}'),
        (
            "linear",
            {"op": "subscribe", "args": [TRADES]},
            f'{{"success":true,"ret_msg":"",{ID},"req_id":"","op":"subscribe"}}',
        ),
        (
            "spot",
            {"op": "subscribe", "args": [TRADES], "req_id": "10001"},
            f'{{"success":true,"ret_msg":"subscribe",{ID},"req_id":"10001","op":"subscribe"}}',
        ),
        (
            "option",
            {"op": "subscribe", "args": ["publicTrade.BTC", "kline.1.X"], "req_id": "1"},
            f'{{"success":true,{ID},"data":{{"failTopics":[],"successTopics":["publicTrade.BTC","kline.1.X"]}},'
            '"type":"COMMAND_RESP"}',
        ),
        (
            "option",
            {"op": "unsubscribe", "args": ["publicTrade.BTC"]},
            f'{{"success":true,{ID},"data":{{"failTopics":[],"successTopics":["publicTrade.BTC"]}},'
            '"type":"COMMAND_RESP"}',
        ),
        (
            "linear",
            {"op": "unsubscribe", "args": [TRADES], "req_id": "3"},
            f'{{"success":true,"ret_msg":"",{ID},"req_id":"3","op":"unsubscribe"}}',
        ),
        (
            "spot",
            {"op": "unsubscribe", "args": [TRADES]},
            f'{{"success":true,"ret_msg":"unsubscribe",{ID},"op":"unsubscribe"}}',
        ),
        (
            "spot",
            {"op": "subscribe", "args": [f"tickers.{n}" for n in range(11)], "req_id": "2"},
            f'{{"success":false,"ret_msg":"args size \\u003e10",{ID},"req_id":"2","op":"subscribe"}}',
        ),
        (
            "spot",
            {"op": "subscribe", "args": ["publicTrade.NOPEUSDT"]},
            f'{{"success":false,"ret_msg":"Invalid symbol :[publicTrade.NOPEUSDT]",{ID},"op":"subscribe"}}',
        ),
        ("linear", {"op": "dance"}, f'{{"success":false,"ret_msg":"error:invalid op",{ID},"req_id":"","op":""}}'),
    ],
)
def test_each_category_has_its_own_dialect(category, request_, answer):
    reply = dialect(category).answer(json.dumps(request_), NOW)
    assert reply.text == answer
    assert reply.request == request_
    assert reply.acknowledges == (request_["op"] in ("subscribe", "unsubscribe"))


def test_text_that_is_not_json_is_answered_and_is_no_request():
    one = dialect()
    assert ret_msg(one.answer("hello", NOW)) == (
        "Failed to decode incoming data:readObjectStart: expect { or n, but found h, error found in #1 byte of "
        "...|hello|..., bigger context ...|hello|..."
    )
    for broken in ('{"op":', "[]", '{"op":"subscribe","args":3}'):
        reply = one.answer(broken, NOW)
        assert ret_msg(reply).startswith("Failed to decode incoming data:")
        assert reply.request is None


@pytest.mark.parametrize(
    ("category", "topics"),
    [
        ("linear", (BOOK, "orderbook.1.BTCUSDT", "orderbook.1000.XRPUSDT", TRADES, TICKER, "allLiquidation.BTCUSDT")),
        ("inverse", ("orderbook.200.ETHUSD", "tickers.BTCUSD", "allLiquidation.BTCUSD")),
        ("spot", (BOOK, TRADES, TICKER)),
        ("option", ("publicTrade.BTC", f"orderbook.25.{DEFAULT_SYMBOLS['option'][0]}")),
    ],
)
def test_known_topics(category, topics):
    assert all(has_topic(DEFAULT_SYMBOLS, category, topic) for topic in topics)


@pytest.mark.parametrize(
    ("category", "topic"),
    [
        ("linear", "orderbook.50.btcusdt"),
        ("linear", "orderbook.500.BTCUSDT"),
        ("linear", "orderbook.25.BTCUSDT"),
        ("linear", "tickers.BTCUSD"),
        ("linear", "order"),
        ("inverse", "tickers.BTCUSDT"),
    ],
)
def test_an_unknown_topic_rejects_the_whole_request(category, topic):
    one = dialect(category)
    known = f"orderbook.1.{DEFAULT_SYMBOLS[category][0]}"
    reply = subscribe(one, known, topic, "tickers.NOPE")
    assert ret_msg(reply) == f"error:handler not found,topic:{topic}"
    assert reply.begin == ()
    assert subscribe(one, known).begin == (known,)


def test_spot_and_option_have_no_liquidations():
    assert not has_topic(DEFAULT_SYMBOLS, "spot", "allLiquidation.BTCUSDT")
    assert not has_topic(DEFAULT_SYMBOLS, "option", f"allLiquidation.{DEFAULT_SYMBOLS['option'][0]}")


def test_option_knows_depths_25_and_100():
    contract = DEFAULT_SYMBOLS["option"][0]
    known = [
        depth
        for depth in (1, 25, 50, 100, 200)
        if has_topic(DEFAULT_SYMBOLS, "option", f"orderbook.{depth}.{contract}")
    ]
    assert known == [25, 100]


def test_a_second_subscription_to_a_topic_rejects_the_whole_request():
    one = dialect()
    subscribe(one, BOOK)
    assert ret_msg(subscribe(one, TICKER, BOOK)) == f"error:already subscribed,topic:{BOOK}"
    assert ret_msg(subscribe(one, TICKER, TICKER)) == f"error:already subscribed,topic:{TICKER}"
    assert one.requested == {BOOK}
    assert subscribe(one, BOOK, op="unsubscribe").end == (BOOK,)
    assert subscribe(one, TICKER, BOOK).begin == (TICKER, BOOK)


@pytest.mark.parametrize("overflow", ["refuse", "close"])
def test_args_beyond_21000_characters(overflow):
    topics = [f"publicTrade.COIN{n:04}USDT" for n in range(900)]
    symbols = {"linear": [topic.removeprefix("publicTrade.") for topic in topics]}
    one = dialect(symbols=symbols, overflow=overflow)
    assert subscribe(one, *topics[:700]).begin == tuple(topics[:700])
    reply = subscribe(one, *topics[700:])
    if overflow == "refuse":
        assert ret_msg(reply) == "args length >21000"
    else:
        assert reply == Reply("", reply.request)


@pytest.mark.parametrize(
    ("category", "unnamed", "reason"),
    [
        ("linear", False, f"error:handler not found,topic:{TICKER}"),
        ("linear", True, "error:handler not found"),
        ("spot", False, f"Invalid symbol :[{TICKER}]"),
        ("spot", True, "Invalid symbol"),
    ],
)
def test_the_script_rejects_a_known_topic(category, unnamed, reason):
    assert ret_msg(subscribe(dialect(category, refuse=(TICKER,), unnamed=unnamed), BOOK, TICKER)) == reason


def test_option_subscribes_the_rest_of_a_request():
    reply = subscribe(dialect("option", refuse=("publicTrade.ETH",)), "publicTrade.ETH", "publicTrade.BTC")
    assert json.loads(reply.text)["success"] is False
    assert json.loads(reply.text)["data"] == {"failTopics": ["publicTrade.ETH"], "successTopics": ["publicTrade.BTC"]}
    assert reply.begin == ("publicTrade.BTC",)
