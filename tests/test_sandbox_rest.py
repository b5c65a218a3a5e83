"""The stand-in's REST and its list of instruments: pages as Bybit's, and what comes and goes while it runs."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from websockets.sync.client import connect

from sandbox.bybit import DEFAULT_SYMBOLS, Bybit, RestScript, Script
from sandbox.bybit.catalogue import many_symbols

ROOT = Path(__file__).resolve().parent.parent
MANY = many_symbols([], 1100)
NEW = "BTC-25JUN27-4000-C-USDT"


@pytest.fixture
def serve():
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Bybit(**{"rate": 0, **options}))


@pytest.fixture
def session():
    with requests.Session() as session:
        yield session


class Client:
    """A subscriber of the stand-in."""

    def __init__(self, bybit, stack, category="linear"):
        url = f"{bybit.url}/v5/public/{category}"
        self.websocket = stack.enter_context(connect(url, compression=None, ping_interval=None, close_timeout=0.05))

    def asks(self, *topics, op="subscribe"):
        """Returns the answer."""
        self.websocket.send(json.dumps({"op": op, "args": topics}))
        return self.reads(lambda frame: "topic" not in frame)

    def reads(self, fits):
        """The first frame that fits."""
        while True:
            frame = json.loads(self.websocket.recv(timeout=5))
            if fits(frame):
                return frame

    def topics(self, count):
        """Of the next frames."""
        return {json.loads(self.websocket.recv(timeout=5)).get("topic") for _ in range(count)}


@pytest.fixture
def subscriber():
    with ExitStack() as stack:
        yield lambda bybit, category="linear": Client(bybit, stack, category)


def ask(session, bybit, query):
    answer = session.get(f"{bybit.api_url}/v5/market/instruments-info?{query}", timeout=5).json()
    assert answer["retCode"] == 0
    result = answer["result"]
    return [each["symbol"] for each in result["list"]], result.get("nextPageCursor")


# What is listed.


@pytest.mark.parametrize(
    ("query", "sizes"),
    [("", [500, 500, 100]), ("&limit=1000", [1000, 100]), ("&limit=2000", [1000, 100]), ("&limit=1100", [1000, 100])],
)
def test_linear_comes_in_pages(serve, session, query, sizes):
    bybit = serve(symbols={"linear": MANY})
    found, cursor, pages = [], "", []
    while cursor or not pages:
        symbols, cursor = ask(session, bybit, f"category=linear{query}" + (f"&cursor={cursor}" if cursor else ""))
        assert not cursor or cursor == f"first%3D{symbols[0]}%26last%3D{symbols[-1]}"
        pages.append(len(symbols))
        found += symbols
    assert pages == sizes
    assert found == sorted(MANY)
    assert not bybit.connections  # those are of WebSockets
    assert len(bybit.rest_requests) == len(pages)


def test_a_cursor_that_was_encoded_twice_is_refused(serve, session):
    bybit = serve()
    query = "category=linear&limit=2&cursor=first%253DBTCUSDT%2526last%253DDOGEUSDT"
    answer = session.get(f"{bybit.api_url}/v5/market/instruments-info?{query}", timeout=5).json()
    assert answer["retCode"] == 10001


@pytest.mark.parametrize(
    ("query", "symbols"),
    [
        ("category=spot&limit=1", sorted(DEFAULT_SYMBOLS["spot"])),  # spot has no pages
        ("category=inverse", ["BTCUSD", "ETHUSD"]),
        ("category=inverse&baseCoin=ETH", ["ETHUSD"]),
        ("category=option", ["BTC-25JUN27-106000-C-USDT", "BTC-25JUN27-106000-P-USDT"]),
        ("category=option&baseCoin=ETH", ["ETH-25JUN27-4000-C-USDT"]),
        ("category=option&baseCoin=XRP", []),
        ("category=linear&status=PreLaunch", ["AUSDT", "BUSDT"]),
        ("category=linear&status=Closed", ["OLDUSDT"]),
        ("category=linear&symbol=XRPUSDT", ["XRPUSDT"]),
    ],
)
def test_what_a_query_finds(serve, session, query, symbols):
    bybit = serve()
    bybit.list("linear", "AUSDT", status="PreLaunch", phase="CallAuction")
    bybit.list("linear", "BUSDT", status="PreLaunch", phase="ContinuousTrading")
    bybit.list("linear", "OLDUSDT", status="Closed")
    assert ask(session, bybit, query)[0] == symbols


def test_an_instrument_has_the_members_of_bybit(serve, session):
    bybit = serve()
    bybit.list("linear", "BTC-26JUN26", delivery=1782460800000)
    bybit.list("linear", "NEWUSDT", status="PreLaunch", phase="CallAuction")
    found = {}
    for query in ("linear", "linear&status=PreLaunch", "inverse", "spot", "option"):
        answer = session.get(f"{bybit.api_url}/v5/market/instruments-info?category={query}", timeout=5).json()
        found |= {(query[:6], each["symbol"]): each for each in answer["result"]["list"]}
    plain, dated, new = (found["linear", name] for name in ("BTCUSDT", "BTC-26JUN26", "NEWUSDT"))
    assert (plain["contractType"], plain["baseCoin"], plain["settleCoin"]) == ("LinearPerpetual", "BTC", "USDT")
    assert (plain["deliveryTime"], plain["isPreListing"], plain["preListingInfo"]) == ("0", False, None)
    assert (dated["contractType"], dated["deliveryTime"]) == ("LinearFutures", "1782460800000")
    assert (new["isPreListing"], new["preListingInfo"]["curAuctionPhase"]) == (True, "CallAuction")
    assert found["invers", "BTCUSD"]["settleCoin"] == "BTC"
    assert found["option", "BTC-25JUN27-106000-P-USDT"]["optionsType"] == "Put"
    assert found["spot", "BTCUSDT"]["status"] == "Trading"


@pytest.mark.parametrize("path", ["/v5/market/tickers", "/v5/market/"])
def test_other_paths_are_not_found(serve, session, path):
    assert session.get(f"{serve().api_url}{path}", timeout=5).status_code == 404


def test_rest_and_websockets_share_a_port_and_scripts_are_for_websockets(serve, session, subscriber):
    bybit = serve(script=[Script(refuse=("tickers.BTCUSDT",))])
    ask(session, bybit, "category=spot")
    first, second = subscriber(bybit), subscriber(bybit)
    ask(session, bybit, "category=spot")
    assert not first.asks("tickers.BTCUSDT")["success"]
    assert second.asks("tickers.BTCUSDT")["success"]
    assert [one.path for one in bybit.connections] == ["/v5/public/linear"] * 2


def test_requests_in_one_write_are_answered_one_after_the_other(serve):
    bybit = serve()
    bybit.rest = RestScript(delay=0.02)
    head = "GET /v5/market/instruments-info?category={} HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection((bybit.host, bybit.port), timeout=5) as raw:
        raw.sendall(head.format("spot").encode() + head.format("inverse").encode())
        received = b""
        while received.count(b'"retCode"') < 2:
            received += raw.recv(65_536)
    assert received.index(b'"category":"spot"') < received.index(b'"category":"inverse"')


def test_a_server_that_ends_ends_rest_too():
    with Bybit(rate=0) as bybit:
        bybit.rest = RestScript(body="drip")
        response = requests.get(f"{bybit.api_url}/v5/market/instruments-info", stream=True, timeout=5)
    assert set(response.content) <= {ord(" ")}  # and it has an end


# What comes and goes.


def test_a_new_symbol_is_accepted_and_has_data(serve, subscriber):
    bybit = serve(rate=1000)
    client = subscriber(bybit)
    assert client.asks("tickers.NEWUSDT")["ret_msg"] == "error:handler not found,topic:tickers.NEWUSDT"
    bybit.list("linear", "NEWUSDT", status="PreLaunch", phase="CallAuction")
    assert not client.asks("tickers.NEWUSDT")["success"]
    bybit.list("linear", "NEWUSDT")
    assert client.asks("tickers.NEWUSDT")["success"]
    assert client.topics(3) == {"tickers.NEWUSDT"}


def test_a_delisted_symbol_falls_silent_and_is_rejected_by_name_afterwards(serve, subscriber, session):
    bybit = serve(rate=1000)
    client = subscriber(bybit)
    client.asks("tickers.BTCUSDT", "orderbook.50.BTCUSDT", "tickers.ETHUSDT")
    bybit.delist("linear", "BTCUSDT")
    client.reads(lambda frame: frame.get("topic") == "tickers.ETHUSDT")
    client.websocket.send('{"op":"ping"}')  # whatever was on the way is here before the answer
    client.reads(lambda frame: frame.get("op") == "ping")
    assert client.topics(200) == {"tickers.ETHUSDT"}
    assert ask(session, bybit, "category=linear")[0] == ["DOGEUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"]
    assert ask(session, bybit, "category=spot")[0] == sorted(DEFAULT_SYMBOLS["spot"])
    other = subscriber(bybit)
    assert other.asks("tickers.BTCUSDT")["ret_msg"] == "error:handler not found,topic:tickers.BTCUSDT"
    assert client.asks("tickers.BTCUSDT", op="unsubscribe")["success"]
    bybit.list("linear", "BTCUSDT")
    assert client.asks("tickers.BTCUSDT")["success"]
    client.reads(lambda frame: frame.get("topic") == "tickers.BTCUSDT")


def test_the_trades_of_a_coin_have_the_contracts_that_are_listed(serve, subscriber):
    bybit = serve(rate=2000)
    client = subscriber(bybit, "option")
    client.asks("publicTrade.BTC")

    def contracts(frame):
        return {trade["s"] for trade in frame.get("data", ())}

    bybit.list("option", NEW)
    client.reads(lambda frame: NEW in contracts(frame))
    for contract in DEFAULT_SYMBOLS["option"][:2]:
        bybit.delist("option", contract)
    client.websocket.send('{"op":"ping"}')
    client.reads(lambda frame: frame.get("op") == "pong")
    for _ in range(50):
        assert contracts(json.loads(client.websocket.recv(timeout=5))) == {NEW}
    bybit.delist("option", NEW)
    bybit.publish('{"topic":"publicTrade.BTC","last":true}')  # the topic is still subscribed
    client.reads(lambda frame: "last" in frame)


def test_the_command_lists_as_many_symbols_as_it_is_told():
    command = [sys.executable, "-m", "sandbox.bybit", "--port", "0", "--count", "800", "--rate", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("BYBIT_WS_URL=ws://")
        name, url = process.stdout.readline().strip().split("=")
        assert name == "BYBIT_API_URL"
        query = "/v5/market/instruments-info?category=linear&limit=1000"
        listed = requests.get(url + query, timeout=5).json()["result"]["list"]
        process.terminate()
        process.communicate(timeout=5)  # its last line, too
    assert len({each["symbol"] for each in listed}) == 800
    assert process.returncode == 0
