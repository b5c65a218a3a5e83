"""A market that changes: the real program between the stand-in for Bybit, whose REST lists symbols, and a Redis."""

import json
from collections import defaultdict

import pytest
from conftest import Subscriber, eventually
from programs import topic_of

from sandbox.bybit import Bybit, RestScript
from sandbox.bybit.catalogue import many_symbols

KINDS = ("orderbook.50", "publicTrade", "tickers", "allLiquidation")
STREAMS = {"OrderBook", "Trades", "Ticker", "Liquidations"}
QUICK = {"INSTRUMENTS_INTERVAL": 1}


def subscribed(bybit):
    """The topics of all connections that are open, each once."""
    topics = [topic for one in bybit.connections if one.closed is None for topic in one.topics]
    assert len(topics) == len(set(topics)), "a topic is carried twice"
    return set(topics)


def topics_of(*symbols, kinds=KINDS):
    return {f"{kind}.{symbol}" for kind in kinds for symbol in symbols}


class Status:
    """The events of the status channel."""

    def __init__(self, subscriber):
        self._subscriber = subscriber

    def events(self, *names):
        found = map(json.loads, self._subscriber.of("stream:bybit_status"))
        return [(one["event"], one["stream"], one["topics"]) for one in found if one["event"] in names]


def state_of(redis):
    found = redis.client(decode_responses=True).hgetall("stream:bybit_state")
    return {name: json.loads(text) for name, text in found.items() if name != "*"}


@pytest.fixture
def start(program, own_redis):
    def run(bybit, **settings):
        return program(own_redis, bybit, BYBIT_API_URL=bybit.api_url, **QUICK | settings)

    return run


def test_the_market_grows_and_shrinks_while_it_runs(start, own_redis):
    """A new symbol is subscribed, one that is gone is unsubscribed, on the connections that run; who is told of it is
    told before the data comes, and nothing of the others is missing.
    """
    with (
        Bybit(symbols={"linear": ["BTCUSDT", "ETHUSDT", "BTCPERP"]}, rate=300, record=True) as bybit,
        Subscriber(own_redis, "stream:bybit_*") as subscriber,
    ):
        collector = start(bybit, SYMBOLS="*USDT")
        eventually(lambda: subscribed(bybit) == topics_of("BTCUSDT", "ETHUSDT"))
        bybit.list("linear", "NEWUSDT")
        eventually(lambda: subscribed(bybit) == topics_of("BTCUSDT", "ETHUSDT", "NEWUSDT"))
        eventually(
            lambda: any(topic_of(payload) == "publicTrade.NEWUSDT" for payload in subscriber.of("stream:bybit_trades"))
        )
        bybit.delist("linear", "ETHUSDT")
        status = Status(subscriber)
        eventually(lambda: len(status.events("unsubscribed")) == 4)
        eventually(lambda: all(one["wanted"] == one["topics"] == 2 for one in state_of(own_redis).values()))
        code, _ = collector.stop()
        connections = list(bybit.connections)
    assert code == 0, collector.log
    assert len(connections) == 4, "none of this cost a connection"
    for event, symbol in (("listed", "NEWUSDT"), ("delisted", "ETHUSDT")):
        told = status.events(event)
        assert {stream for _, stream, _ in told} == STREAMS
        assert {topic for _, _, topics in told for topic in topics} == topics_of(symbol)
    order = [
        event
        for event, stream, _ in status.events("listed", "subscribed", "delisted", "unsubscribed")
        if stream == "Trades"
    ]
    assert order == ["subscribed", "listed", "subscribed", "delisted", "unsubscribed"]
    got = defaultdict(list)
    for channel, payload in subscriber.messages:
        if channel.rpartition("_")[2] not in ("status", "request"):
            got[topic_of(payload)].append(payload)
    sent = defaultdict(list)
    for text in (text.encode() for one in connections for text in one.sent):
        sent[topic_of(text)].append(text)
    for topic in topics_of("BTCUSDT", "NEWUSDT", "ETHUSDT"):
        assert got[topic] == sent[topic][: len(got[topic])], topic
        assert len(sent[topic]) - len(got[topic]) < 100
    lines = [text for _, text in collector.lines()]
    assert "Bybit now lists NEWUSDT: 4 topics more" in lines
    assert "Bybit no longer lists ETHUSDT: 4 topics less" in lines
    assert not collector.lines("ERROR") + collector.lines("WARNING"), collector.log


def test_eight_hundred_symbols_are_two_connections_for_each_kind(start, own_redis):
    """All within seconds, and no line of the log and no event that grows with them, but for its topics."""
    symbols = many_symbols(["BTCUSDT"], 800)
    with (
        Bybit(symbols={"linear": symbols}, rate=200) as bybit,
        Subscriber(own_redis, "stream:bybit_status") as subscriber,
    ):
        collector = start(bybit, SYMBOLS="ALL")
        eventually(lambda: subscribed(bybit) == topics_of(*symbols), 30)
        bybit.list("linear", "NEWUSDT")
        eventually(lambda: subscribed(bybit) == topics_of(*symbols, "NEWUSDT"), 30)
        eventually(lambda: all(one["up"] and one["topics"] == 801 for one in state_of(own_redis).values()))
        state = state_of(own_redis)
        code, _ = collector.stop()
        count = len(bybit.connections)
    assert code == 0, collector.log
    assert count == sum(one["connections"] for one in state.values()) <= 8
    assert state.keys() == STREAMS
    assert max(map(len, collector.log.splitlines())) < 250
    assert max(map(len, subscriber.of("stream:bybit_status"))) < 21_000
    assert not collector.lines("ERROR") + collector.lines("WARNING"), collector.log


def test_two_collectors_share_the_symbols_and_the_requests(start, own_redis):
    """No topic comes twice, and no request is answered twice: nor is it by nobody, if nobody has the topic."""
    symbols = many_symbols(["BTCUSDT"], 20)
    reply = "stream:bybit_reply_x"
    with Bybit(symbols={"linear": symbols}, rate=0) as bybit, Subscriber(own_redis, reply) as subscriber:
        both = [start(bybit, SYMBOLS="ALL", SHARD=f"{number}/2") for number in (1, 2)]
        eventually(lambda: subscribed(bybit) == topics_of(*symbols))
        parts = [set(one.topics) for one in bybit.connections]
        books = sorted(topics_of(*symbols, "NOPEUSDT", kinds=["orderbook.50"]))
        client = own_redis.client()
        eventually(lambda: client.pubsub_numsub("stream:bybit_request")[0][1] == 2)
        for collector in both:  # before it knows Bybit's answer it takes its books for down
            collector.wait_for_log("[OrderBook] Subscribed to ")
        client.publish("stream:bybit_request", json.dumps({"op": "snapshot", "topics": books, "reply": reply}))
        eventually(lambda: len(subscriber.of(reply)) >= len(books))
        assert all(collector.stop()[0] == 0 for collector in both)
    halves = {frozenset(topic.rpartition(".")[2] for topic in part) for part in parts}
    assert len(halves) == 2, "a collector has all kinds of its symbols"
    assert all(halves)
    replies = list(map(json.loads, subscriber.of(reply)))
    assert sorted(one.get("topic") or one["topics"][0] for one in replies) == books
    assert [one["topics"] for one in replies if one.get("event") == "rejected"] == [["orderbook.50.NOPEUSDT"]]


def test_without_a_list_plain_names_run_and_patterns_follow(start, own_redis):
    with Bybit(symbols={"linear": ["BTCUSDT", "ETHUSDT"]}, rate=0) as bybit:
        bybit.rest = RestScript(status=503)
        collector = start(bybit, SYMBOLS="BTCUSDT,ETH*")
        eventually(lambda: subscribed(bybit) == topics_of("BTCUSDT"))
        collector.wait_for_log("list of instruments cannot be")
        assert "OrderBook, Trades, Ticker, Liquidations: waiting for Bybit's list of instruments" in collector.log
        bybit.rest = RestScript()
        eventually(lambda: subscribed(bybit) == topics_of("BTCUSDT", "ETHUSDT"))
        assert len(bybit.connections) == 4
        assert collector.stop()[0] == 0


def test_a_pattern_without_a_server_for_the_list_ends_it_at_the_start(program):
    collector = program(BYBIT_WS_URL="ws://127.0.0.1:1", SYMBOLS="BTC*")
    code, _ = collector.wait()
    assert code == 2
    assert collector.log.startswith("Cannot start: STREAMS: OrderBook: BYBIT_API_URL is empty: ")
    assert collector.log.count("\n") == 1


CHANGES = """
import sys
import threading
import main

symbols = ["BTCUSDT"]

def trades(name):
    return {"name": name, "func": main.subscribe_trades, "args": (symbols, main.handle_trades)}

main.STREAMS[:] = [trades("Mine"), trades("Other") | {"args": ("SOLUSDT", main.handle_trades)}]

def change():
    sys.stdin.readline()
    symbols.append("ETHUSDT")
    sys.stdin.readline()
    main.STREAMS[0]["args"] = ("DOGE USDT", main.handle_trades)
    sys.stdin.readline()
    book = {"name": "Mine", "func": main.subscribe_orderbook, "args": ("DOGEUSDT", main.handle_orderbook), "depth": 200}
    main.STREAMS[0] = book
    sys.stdin.readline()
    main.STREAMS[:] = main.STREAMS[1:]

threading.Thread(target=change, daemon=True).start()
sys.exit(main.main())
"""


def test_a_user_changes_streams_in_every_way(program, own_redis):
    """Symbols in place, a mistake, another thing under the same name, and an end. The other entry never notices."""
    with Bybit(rate=100) as bybit, Subscriber(own_redis, "stream:bybit_status") as subscriber:
        collector = program(own_redis, bybit, script=CHANGES)
        eventually(lambda: subscribed(bybit) == {"publicTrade.BTCUSDT", "publicTrade.SOLUSDT"})
        collector.send_line()
        eventually(lambda: subscribed(bybit) == topics_of("BTCUSDT", "ETHUSDT", "SOLUSDT", kinds=["publicTrade"]))
        collector.send_line()
        collector.wait_for_log("STREAMS: Mine: 'DOGE USDT' is not a symbol; ignoring this entry")
        assert len(subscribed(bybit)) == 3
        collector.send_line()
        eventually(lambda: subscribed(bybit) == {"orderbook.200.DOGEUSDT", "publicTrade.SOLUSDT"})
        eventually(lambda: state_of(own_redis)["Mine"]["wanted"] == state_of(own_redis)["Mine"]["topics"] == 1)
        collector.send_line()
        eventually(lambda: subscribed(bybit) == {"publicTrade.SOLUSDT"})
        eventually(lambda: state_of(own_redis).keys() == {"Other"})
        events = Status(subscriber).events("unsubscribed", "lost", "stalled")
        assert events == [
            ("unsubscribed", "Mine", ["publicTrade.BTCUSDT", "publicTrade.ETHUSDT"]),
            ("unsubscribed", "Mine", ["orderbook.200.DOGEUSDT"]),
        ]
        assert len(bybit.connections) == 3
        code, _ = collector.stop()
    assert code == 0, collector.log
    assert len(collector.lines("ERROR")) == 1


def test_the_check_says_what_patterns_stand_for(program, own_redis):
    with Bybit(symbols={"linear": ["BTCUSDT", "ETHUSDT", "BTCPERP"]}, rate=500) as bybit:
        checked = program(own_redis, bybit, arguments=["--check"], BYBIT_API_URL=bybit.api_url, SYMBOLS="BTC*,NOPE*")
        assert checked.wait()[0] == 1
        lines = [line.split(maxsplit=2) for line in checked.output.splitlines()]
    assert ["Instruments", "ok", f"{bybit.api_url}: 3 symbols"] in lines
    assert ["BTC*", "ok", "2 symbols"] in lines
    assert ["NOPE*", "FAILED", "matches no symbol that Bybit lists"] in lines
    assert any(line[:2] == ["OrderBook", "ok"] and line[2].startswith("2 topics subscribed") for line in lines)


def test_the_check_without_a_list_says_so(program, own_redis):
    with Bybit(rate=500) as bybit:
        bybit.rest = RestScript(status=503)
        checked = program(own_redis, bybit, arguments=["--check"], BYBIT_API_URL=bybit.api_url, SYMBOLS="ALL")
        assert checked.wait()[0] == 1
        lines = [line.split(maxsplit=2) for line in checked.output.splitlines()]
    assert ["Instruments", "FAILED", f"{bybit.api_url}: HTTP 503"] in lines
    assert ["Trades", "?", "not tested: its symbols are not known without the list"] in lines
