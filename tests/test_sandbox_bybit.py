"""The stand-in for Bybit's public server speaks as Bybit does and fails as told."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from sandbox.bybit import DEFAULT_SYMBOLS, Bybit, Script

ROOT = Path(__file__).resolve().parent.parent
FRAMES = ROOT.parent / "shared" / "frames" / "linear-2026-08.tsv"
CONTRACT = DEFAULT_SYMBOLS["option"][0]
BOOK, TRADES, TICKER = "orderbook.50.BTCUSDT", "publicTrade.BTCUSDT", "tickers.BTCUSDT"
REFUSED = "error:handler not found,topic:"


@pytest.fixture
def serve():
    """Starts servers, quiet unless told otherwise, and asserts that they end at once."""
    with ExitStack() as stack:

        def start(*script, **options):
            return stack.enter_context(Bybit(script=script, **{"rate": 0, **options}))

        yield start
        began = time.monotonic()
        stack.close()
        assert time.monotonic() - began < 1


@pytest.fixture
def client():
    """Opens clients that are closed in the end without waiting for the server."""
    with ExitStack() as stack:

        def open_client(bybit, category="linear", **options):
            options = {"compression": None, "ping_interval": None, "close_timeout": 0.05, "max_queue": None, **options}
            return stack.enter_context(connect(f"{bybit.url}/v5/public/{category}", **options))

        yield open_client


def ask(websocket, *topics, op="subscribe", **members):
    websocket.send(json.dumps({"op": op, "args": list(topics), **members}))


def receive(websocket, count=1, timeout=2):
    return [websocket.recv(timeout=timeout) for _ in range(count)]


def reply(websocket):
    """The next frame with the connection's id masked."""
    return re.sub(r'"conn_id":"[0-9a-v]{20}-[0-9a-v]{5}"', '"conn_id":"…"', websocket.recv(timeout=2))


def until_closed(websocket):
    """All that still comes, and the exception that ends it."""
    frames = []
    while True:
        try:
            frames.append(websocket.recv(timeout=2))
        except ConnectionClosed as closed:
            return frames, closed


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
    ("category", "request_", "answer"),
    [
        ("linear", {"op": "ping"}, '{"success":true,"ret_msg":"pong","conn_id":"…","req_id":"","op":"ping"}'),
        (
            "inverse",
            {"op": "ping", "req_id": "7"},
            '{"success":true,"ret_msg":"pong","conn_id":"…","req_id":"7","op":"ping"}',
        ),
        ("spot", {"op": "ping", "args": []}, '{"success":true,"ret_msg":"pong","conn_id":"…","op":"ping"}'),
        (
            "linear",
            {"op": "subscribe", "args": [TRADES]},
            '{"success":true,"ret_msg":"","conn_id":"…","req_id":"","op":"subscribe"}',
        ),
        (
            "spot",
            {"op": "subscribe", "args": [TRADES], "req_id": "10001"},
            '{"success":true,"ret_msg":"subscribe","conn_id":"…","req_id":"10001","op":"subscribe"}',
        ),
        (
            "option",
            {"op": "subscribe", "args": ["publicTrade.BTC", "kline.1.X"], "req_id": "1"},
            '{"success":true,"conn_id":"…","data":{"failTopics":[],"successTopics":["publicTrade.BTC","kline.1.X"]},'
            '"type":"COMMAND_RESP"}',
        ),
        (
            "linear",
            {"op": "unsubscribe", "args": [TRADES], "req_id": "3"},
            '{"success":true,"ret_msg":"","conn_id":"…","req_id":"3","op":"unsubscribe"}',
        ),
        (
            "spot",
            {"op": "subscribe", "args": [f"tickers.{n}" for n in range(11)], "req_id": "2"},
            '{"success":false,"ret_msg":"args size \\u003e10","conn_id":"…","req_id":"2","op":"subscribe"}',
        ),
        (
            "spot",
            {"op": "subscribe", "args": ["publicTrade.NOPEUSDT"]},
            '{"success":false,"ret_msg":"Invalid symbol :[publicTrade.NOPEUSDT]","conn_id":"…","op":"subscribe"}',
        ),
        (
            "linear",
            {"op": "dance"},
            '{"success":false,"ret_msg":"error:invalid op","conn_id":"…","req_id":"","op":""}',
        ),
    ],
)
def test_each_category_answers_in_its_own_dialect(serve, client, category, request_, answer):
    websocket = client(serve(), category)
    websocket.send(json.dumps(request_))
    assert reply(websocket) == answer


def test_option_pong_carries_the_time(serve, client):
    websocket = client(serve(), "option")
    websocket.send('{"op":"ping"}')
    pong = json.loads(websocket.recv(timeout=2))
    assert list(pong) == ["args", "op"]
    assert pong["op"] == "pong"
    assert abs(int(pong["args"][0]) / 1000 - time.time()) < 5


def test_text_that_is_not_json_is_answered_and_the_socket_lives(serve, client):
    websocket = client(serve())
    websocket.send("hello")
    assert json.loads(websocket.recv(timeout=2))["ret_msg"] == (
        "Failed to decode incoming data:readObjectStart: expect { or n, but found h, error found in #1 byte of "
        "...|hello|..., bigger context ...|hello|..."
    )
    for broken in ('{"op":', "[]", '{"op":"subscribe","args":3}'):
        websocket.send(broken)
        assert json.loads(websocket.recv(timeout=2))["ret_msg"].startswith("Failed to decode incoming data:")
    assert websocket.ping().wait(2)


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
def test_an_unknown_topic_refuses_the_whole_request(serve, client, category, topic):
    bybit = serve(rate=2000)
    websocket = client(bybit, category)
    known = "orderbook.1.BTCUSD" if category == "inverse" else "orderbook.1.BTCUSDT"
    ask(websocket, known, topic, "tickers.NOPE")
    assert json.loads(websocket.recv(timeout=2))["ret_msg"] == REFUSED + topic
    assert bybit.connections[0].topics == set()
    ask(websocket, known)
    assert json.loads(websocket.recv(timeout=2))["success"]
    assert json.loads(websocket.recv(timeout=2))["topic"] == known


def test_liquidations_are_for_linear_and_inverse_only(serve, client):
    bybit = serve()
    for category, success in (("linear", True), ("spot", False)):
        websocket = client(bybit, category)
        ask(websocket, "allLiquidation.BTCUSDT")
        assert json.loads(websocket.recv(timeout=2))["success"] is success


def test_a_second_subscription_to_a_topic_refuses_the_whole_request(serve, client):
    bybit = serve()
    websocket = client(bybit)
    ask(websocket, BOOK)
    receive(websocket, 2)
    ask(websocket, TICKER, BOOK)
    assert json.loads(websocket.recv(timeout=2))["ret_msg"] == f"error:already subscribed,topic:{BOOK}"
    assert bybit.connections[0].topics == {BOOK}
    ask(websocket, BOOK, op="unsubscribe")
    receive(websocket)
    ask(websocket, TICKER, BOOK)
    assert json.loads(websocket.recv(timeout=2))["success"]


@pytest.mark.parametrize("overflow", ["refuse", "close"])
def test_args_beyond_21000_characters(serve, client, overflow):
    names = [f"COIN{n:04}USDT" for n in range(900)]
    bybit = serve(then=Script(overflow=overflow), symbols={"linear": names})
    websocket = client(bybit)
    ask(websocket, *(f"publicTrade.{name}" for name in names[:700]))
    assert json.loads(websocket.recv(timeout=2))["success"]
    ask(websocket, *(f"publicTrade.{name}" for name in names[700:]))
    if overflow == "refuse":
        assert not json.loads(websocket.recv(timeout=2))["success"]
    else:
        assert until_closed(websocket)[0] == []


def test_refusals_of_the_script_named_and_unnamed(serve, client):
    bybit = serve(Script(refuse=(TICKER,)), Script(refuse=(TICKER,), unnamed=True), Script(refuse=("publicTrade.ETH",)))
    for category, message in (("linear", REFUSED + TICKER), ("linear", "error:handler not found")):
        websocket = client(bybit, category)
        ask(websocket, TICKER)
        assert json.loads(websocket.recv(timeout=2))["ret_msg"] == message
    websocket = client(bybit, "option")
    ask(websocket, "publicTrade.ETH", "publicTrade.BTC")
    answer = json.loads(websocket.recv(timeout=2))
    assert answer["data"] == {"failTopics": ["publicTrade.ETH"], "successTopics": ["publicTrade.BTC"]}


@pytest.mark.parametrize("path", ["/", "/v5/public/spread", "/v5/private"])
def test_other_paths_are_not_found(serve, path):
    bybit = serve()
    with pytest.raises(InvalidStatus, match="404"):
        connect(bybit.url + path)


def test_the_query_is_ignored(serve, client):
    bybit = serve()
    client(bybit, "spot?max_active_time=30s")
    assert (bybit.connections[0].path, bybit.connections[0].category) == ("/v5/public/spot", "spot")


@pytest.mark.parametrize(
    ("category", "topic"),
    [
        ("linear", "orderbook.50.BTCUSDT"),
        ("linear", "orderbook.200.DOGEUSDT"),
        ("linear", "orderbook.1000.XRPUSDT"),
        ("spot", "orderbook.50.BTCUSDT"),
        ("inverse", "orderbook.200.ETHUSD"),
        ("option", f"orderbook.25.{CONTRACT}"),
    ],
)
def test_deltas_applied_to_the_snapshot_give_a_later_snapshot(serve, client, category, topic):
    bybit = serve(rate=5000)
    early, late = client(bybit, category), client(bybit, category)
    other = topic.replace("orderbook.50.", "orderbook.200.").replace("orderbook.1000.", "orderbook.1.")
    ask(early, *{topic, other, topic.replace(re.search(r"orderbook\.\d+", topic)[0], "publicTrade")} - {""})
    book, depth = {}, int(topic.split(".")[1])
    receive(early)
    sizes = []

    def follow(u=None):
        for _ in range(100) if u is None else iter(lambda: book["u"] < u, False):
            text = early.recv(timeout=2)
            message = json.loads(text)
            if message["topic"] == topic:
                apply(book, message)
                assert (len(book["b"]), len(book["a"])) == (depth, depth)
                assert max(map(float, book["b"])) < min(map(float, book["a"]))
                sizes.append(len(text))

    follow()
    ask(late, topic)
    receive(late)
    snapshot = json.loads(late.recv(timeout=2))
    assert snapshot["type"] == "snapshot"
    bybit.rate = 0
    follow(snapshot["data"]["u"])
    assert book["u"] == snapshot["data"]["u"]
    assert {side: dict(snapshot["data"][side]) for side in "ba"} == {side: book[side] for side in "ba"}
    prices = {side: [float(price) for price, _ in snapshot["data"][side]] for side in "ba"}
    assert prices == {"b": sorted(prices["b"], reverse=True), "a": sorted(prices["a"])}
    assert sorted(sizes)[len(sizes) // 2] < 800


def test_every_subscriber_of_a_topic_gets_the_same_frames(serve, client):
    bybit = serve(rate=3000)
    first, second = client(bybit), client(bybit)
    for websocket in (first, second):
        ask(websocket, "orderbook.200.SOLUSDT", "tickers.SOLUSDT")
        receive(websocket, 3)
    mark = receive(second)[0]
    assert mark in iter(lambda: first.recv(timeout=2), None)
    assert receive(first, 100) == receive(second, 100)


def test_depth_1_is_always_a_snapshot_and_said_again_when_unchanged(serve, client):
    bybit = serve(rate=1000, repush=0.1)
    websocket = client(bybit)
    ask(websocket, "orderbook.1.BTCUSDT")
    messages = [json.loads(text) for text in receive(websocket, 50)[1:]]
    assert {message["type"] for message in messages} == {"snapshot"}
    numbers = [message["data"]["u"] for message in messages]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    bybit.rate = 0
    before, now = messages[-1], json.loads(websocket.recv(timeout=2))
    while now["data"]["u"] != before["data"]["u"]:
        before, now = now, json.loads(websocket.recv(timeout=2))
    assert now["data"] == before["data"]
    assert now["ts"] >= before["ts"] + 90


def test_ticker_deltas_carry_what_changed_and_end_in_a_later_snapshot(serve, client):
    bybit = serve(rate=2000)
    early, late = client(bybit), client(bybit)
    ask(early, TICKER)
    state = json.loads(receive(early, 2)[1])
    assert (state["type"], list(state)) == ("snapshot", ["topic", "type", "data", "cs", "ts"])
    members, sets = state["data"], set()
    order = list(members)

    def follow(message):
        assert (message["type"], list(message)) == ("delta", ["topic", "type", "data", "cs", "ts"])
        data = message["data"]
        assert any(members[name] != value for name, value in data.items())
        assert list(data) == [name for name in order if name in data]
        sets.add(tuple(data))
        members.update(data)
        return message["cs"]

    for _ in range(200):
        follow(json.loads(early.recv(timeout=2)))
    assert len(sets) > 10
    ask(late, TICKER)
    snapshot = json.loads(receive(late, 2)[1])
    bybit.rate = 0
    while follow(json.loads(early.recv(timeout=2))) < snapshot["cs"]:
        pass
    assert members == snapshot["data"]


@pytest.mark.parametrize(("category", "symbol"), [("linear", "BTCUSDT"), ("spot", "DOGEUSDT"), ("inverse", "BTCUSD")])
def test_trades_take_off_the_best_price_of_the_book(serve, client, category, symbol):
    bybit = serve(rate=3000)
    websocket = client(bybit, category)
    ask(websocket, f"orderbook.50.{symbol}", f"publicTrade.{symbol}")
    receive(websocket)
    book, fresh, checked, sequences = {}, False, 0, []
    while checked < 50:
        message = json.loads(websocket.recv(timeout=2))
        if message["topic"].startswith("orderbook"):
            apply(book, message)
            fresh = True
            continue
        trades = message["data"]
        assert message["type"] == "snapshot"
        assert 1 <= len(trades) <= 10
        assert len({trade["i"] for trade in trades}) == len(trades)
        sequences.append(trades[0]["seq"])
        if fresh:  # the book as of just now
            best = min(book["a"], key=float) if trades[0]["S"] == "Buy" else max(book["b"], key=float)
            assert trades[0]["p"] == best
            first = [float(trade["v"]) for trade in trades if trade["p"] == best]
            assert sum(first) <= float({**book["b"], **book["a"]}[best]) * 1.000001
            checked += 1
        fresh = False
    assert sequences == sorted(sequences)


@pytest.mark.parametrize(
    ("category", "topics"),
    [
        (
            "linear",
            {
                "orderbook.50.BTCUSDT": ("topic,type,ts,data,cts", "s,b,a,u,seq"),
                "orderbook.1.BTCUSDT": ("topic,ts,type,data,cts", "s,b,a,u,seq"),
                "publicTrade.BTCUSDT": ("topic,type,ts,data", "T,s,S,v,p,L,i,BT,RPI,seq"),
                "allLiquidation.BTCUSDT": ("topic,type,ts,data", "T,s,S,v,p"),
            },
        ),
        (
            "inverse",
            {
                "orderbook.200.BTCUSD": ("topic,type,ts,data,cts", "s,b,a,u,seq"),
                "publicTrade.BTCUSD": ("topic,type,ts,data", "T,s,S,v,p,L,i,BT,RPI,seq"),
                "allLiquidation.BTCUSD": ("topic,type,ts,data", "T,s,S,v,p"),
            },
        ),
        (
            "spot",
            {
                "orderbook.50.BTCUSDT": ("topic,ts,type,data,cts", "s,b,a,u,seq"),
                "orderbook.1.BTCUSDT": ("topic,ts,type,data,cts", "s,b,a,u,seq"),
                "publicTrade.BTCUSDT": ("topic,ts,type,data", "i,T,p,v,S,seq,s,BT,RPI"),
                "tickers.BTCUSDT": (
                    "topic,ts,type,cs,data",
                    "symbol,lastPrice,highPrice24h,lowPrice24h,prevPrice24h,volume24h,turnover24h,price24hPcnt,"
                    "usdIndexPrice",
                ),
            },
        ),
        (
            "option",
            {
                f"orderbook.25.{CONTRACT}": ("topic,ts,type,id,data,cts", "s,b,a,u,seq"),
                "publicTrade.BTC": ("topic,ts,type,id,data", "i,T,p,v,S,seq,s,BT,mP,iP,mIv,iv"),
                f"tickers.{CONTRACT}": (
                    "topic,ts,type,id,data",
                    "symbol,bidPrice,bidSize,bidIv,askPrice,askSize,askIv,lastPrice,highPrice24h,lowPrice24h,"
                    "markPrice,indexPrice,markPriceIv,underlyingPrice,openInterest,turnover24h,volume24h,totalVolume,"
                    "totalTurnover,delta,gamma,vega,theta,predictedDeliveryPrice,change24h",
                ),
            },
        ),
    ],
)
def test_members_come_in_the_category_s_order(serve, client, category, topics):
    websocket = client(serve(rate=5000), category)
    ask(websocket, *topics)
    receive(websocket)
    seen = {}
    while seen.keys() != topics.keys():
        text = websocket.recv(timeout=2)
        message = json.loads(text)
        data = message["data"][0] if isinstance(message["data"], list) else message["data"]
        seen[message["topic"]] = ",".join(message), ",".join(data)
        assert seen[message["topic"]] == topics[message["topic"]]
        assert text == json.dumps(message, separators=(",", ":"))
        assert abs(message["ts"] / 1000 - time.time()) < 2


def test_option_delivers_only_known_topics_at_depth_25_and_100(serve, client):
    websocket = client(serve(), "option")
    topics = [f"orderbook.{depth}.{CONTRACT}" for depth in (1, 25, 50, 100)]
    ask(websocket, *topics, "orderbook.25.NOPE")
    receive(websocket)
    websocket.send('{"op":"ping"}')
    frames = [json.loads(text) for text in receive(websocket, 3)]
    assert [frame.get("topic", frame.get("op")) for frame in frames] == [topics[1], topics[3], "pong"]


def test_the_same_seed_tells_the_same_story(serve, client):
    def story(seed):
        websocket = client(serve(rate=2000, seed=seed))
        ask(websocket, BOOK, TRADES)
        return [re.sub(r'"(ts|cts|T)":\d+', "", text) for text in receive(websocket, 50)]

    assert story(5) == story(5) != story(6)


def test_quiet_means_snapshots_and_what_is_published(serve, client):
    bybit = serve(record=True)
    websocket = client(bybit)
    other = client(bybit)
    ask(other, "tickers.ETHUSDT")
    ask(websocket, BOOK, TRADES)
    bybit.wait(lambda: bybit.connections[0].topics == {BOOK, TRADES})
    frames = [f'{{"topic":"publicTrade.BTCUSDT","n":{n},"текст":"ü"}}' for n in range(500)]
    for frame in frames:
        bybit.publish(frame)
    received = receive(websocket, 502)[1:]
    assert received[1:] == frames
    connection = bybit.connections[0]
    bybit.wait(lambda: connection.count == 501)
    assert connection.sent == received
    assert bybit.connections[1].count == 1


def test_unsubscribed_topics_fall_silent(serve, client):
    bybit = serve(rate=2000)
    websocket = client(bybit)
    ask(websocket, BOOK, TICKER)
    receive(websocket, 10)
    ask(websocket, BOOK, op="unsubscribe")
    bybit.wait(lambda: bybit.connections[0].topics == {TICKER})
    while "unsubscribe" not in websocket.recv(timeout=2):
        pass
    assert all(TICKER in text for text in receive(websocket, 50))


@pytest.mark.parametrize("speed", [0, 50])
def test_a_replay_gives_each_connection_its_topics_in_file_order(serve, client, tmp_path, speed):
    if not FRAMES.exists():
        pytest.skip("the recorded frames are not beside the repository")
    recorded = [line.split("\t")[1] for line in FRAMES.read_text().splitlines()]
    bybit = serve(replay=FRAMES, speed=speed)
    wanted = ["orderbook.200.BTCUSDT", "publicTrade.SOLUSDT", "tickers.ETHUSDT"]
    websocket = client(bybit)
    ask(websocket, *wanted)
    expected = [text for text in recorded if any(f'"topic":"{topic}"' in text for topic in wanted)]
    assert receive(websocket, 1 + len(expected))[1:] == expected
    websocket.send('{"op":"ping"}')
    assert '"pong"' in websocket.recv(timeout=2)


def test_a_replay_waits_for_a_slow_reader(serve, client, tmp_path):
    frames = [f'{{"topic":"any.Thing","n":{n},"x":"{"x" * 10_000}"}}' for n in range(2500)]
    lines = [f'{n}\t{text}\n{n}\t{{"op":"ping"}}\n' for n, text in enumerate(frames)]
    (tmp_path / "frames.tsv").write_text("".join(lines))
    bybit = serve(replay=tmp_path / "frames.tsv", speed=0)
    websocket = client(bybit, max_queue=4)
    ask(websocket, "any.Thing")
    bybit.wait(lambda: bybit.connections[0].topics and not bybit.connections[0].writable.is_set())
    assert bybit.connections[0].count < len(frames)
    assert receive(websocket, 1 + len(frames))[1:] == frames


def test_an_empty_replay_is_an_error(tmp_path):
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(ValueError, match="no data frames"):
        Bybit(replay=tmp_path / "empty.tsv")


@pytest.mark.parametrize(("status", "text"), [(403, "CloudFront"), (429, ""), (502, ""), (503, ""), (504, "")])
def test_refused_handshakes(serve, status, text):
    bybit = serve(Script(handshake=status))
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{bybit.url}/v5/public/linear")
    assert refused.value.response.status_code == status
    assert text in refused.value.response.body.decode()
    bybit.wait(lambda: bybit.connections[0].closed)


def test_unanswered_and_nonsensical_handshakes(serve, client):
    bybit = serve(Script(handshake="never"), Script(handshake="nonsense"))
    with pytest.raises(TimeoutError):
        client(bybit, open_timeout=0.1)
    with pytest.raises(InvalidMessage):
        client(bybit)
    client(bybit)
    assert [connection.path for connection in bybit.connections] == ["", "/v5/public/linear", "/v5/public/linear"]
    bybit.wait(lambda: bybit.connections[0].closed and bybit.connections[1].closed)


def test_exit_is_quick_whatever_hangs(client):
    with Bybit(script=[Script(handshake="never"), Script(end="freeze"), Script(end="silence")], rate=1000) as bybit:
        raw = socket.create_connection((bybit.host, bybit.port))
        bybit.wait(lambda: bybit.connections)
        for _ in range(3):
            client(bybit)
        began = time.monotonic()
    assert time.monotonic() - began < 0.5
    assert all(connection.closed for connection in bybit.connections)
    raw.close()


@pytest.mark.parametrize("handshake", ["ok", "never", "never tls"])
def test_tls(serve, client, tmp_path, handshake):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    bybit = serve(Script(handshake=handshake), tls=(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")))
    if handshake == "ok":
        websocket = client(bybit, ssl=trusting)
        ask(websocket, BOOK)
        assert BOOK in receive(websocket, 2)[1]
        bybit.connections[0].drop()
        assert until_closed(websocket)[1].rcvd is None
        with pytest.raises(ssl.SSLError):
            client(bybit)
        bybit.wait(lambda: bybit.connections[1].closed)
        return
    with socket.create_connection(("localhost", bybit.port), timeout=0.2) as raw:
        if handshake == "never tls":
            with pytest.raises(TimeoutError):
                trusting.wrap_socket(raw, server_hostname="localhost")
        else:
            with trusting.wrap_socket(raw, server_hostname="localhost") as wrapped, pytest.raises(TimeoutError):
                shake_hands(wrapped)


@pytest.mark.parametrize(
    ("delay", "before", "kinds"),
    [(0, 0, "abbb"), (0.05, 0, "abbb"), (0, 2, "bbab"), (None, 1, "bbb"), (0.05, 3, "bbba")],
)
def test_acknowledgements_come_when_the_script_says(serve, client, delay, before, kinds):
    bybit = serve(Script(ack_delay=delay, data_before_ack=before))
    websocket = client(bybit)
    began = time.monotonic()
    ask(websocket, BOOK, "orderbook.1.BTCUSDT", TICKER)
    frames = receive(websocket, len(kinds))
    assert "".join("b" if '"topic"' in frame else "a" for frame in frames) == kinds
    if kinds.startswith("a"):
        assert time.monotonic() - began >= delay


def test_an_acknowledgement_that_never_comes_brings_no_data(serve, client):
    bybit = serve(Script(ack_delay=None), rate=1000)
    websocket = client(bybit)
    ask(websocket, BOOK)
    websocket.send('{"op":"ping"}')
    assert '"pong"' in websocket.recv(timeout=2)
    assert bybit.connections[0].topics == set()


@pytest.mark.parametrize("after", [0, 7])
@pytest.mark.parametrize("end", ["drop", "reset", "close", "freeze", "silence"])
def test_the_script_ends_the_connection_after_so_many_data_frames(serve, client, end, after):
    bybit = serve(Script(end=end, end_after=after, close_code=1012), rate=2000, record=True)
    websocket = client(bybit)
    connection = bybit.connections[0]
    frames = []
    if after:
        ask(websocket, BOOK, TICKER)
        frames = receive(websocket, after + 1)[1:]
    if end in ("freeze", "silence"):
        websocket.send('{"op":"ping"}')
        if end == "silence":
            assert '"pong"' in websocket.recv(timeout=2)
        with pytest.raises(TimeoutError):
            websocket.recv(timeout=0.1)
        assert connection.closed is None
        if after:
            connection.resume()
            kinds = [json.loads(text) for text in receive(websocket, 4 + (end == "freeze"))]
            assert {"snapshot", "delta"} == {kind.get("type") for kind in kinds} - {None}
        websocket.socket.close()
    else:
        rest, closed = until_closed(websocket)
        assert rest == []
        assert (closed.rcvd.code if closed.rcvd else None) == (1012 if end == "close" else None)
        assert isinstance(closed.__cause__, ConnectionResetError) == (end == "reset")
        bybit.wait(lambda: connection.closed)
        assert connection.count == after
    assert connection.sent[:after] == frames


def shake_hands(raw):
    """Upgrades a raw socket."""
    raw.sendall(
        b"GET /v5/public/linear HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    received = b""
    while b"\r\n\r\n" not in received:
        received += raw.recv(4096)


def test_a_freeze_inside_a_frame_leaves_it_half_sent(serve):
    bybit = serve(Script(end="freeze inside frame", end_after=1, ack_delay=0))
    with socket.create_connection((bybit.host, bybit.port), timeout=2) as raw:
        shake_hands(raw)
        raw.sendall(masked(f'{{"op":"subscribe","args":["{TICKER}"]}}'))
        bybit.wait(lambda: bybit.connections[0].count == 1)
        bybit.run(lambda: None)  # what follows that frame has been done too
        _, whole, half = raw.recv(65536).split(b"\x81\x7e")
        length = int.from_bytes(whole[:2], "big")
        assert len(whole) == 2 + length
        assert whole.startswith(half)
        assert len(half) == 2 + length - length // 2
        bybit.connections[0].resume()
        assert raw.recv(65536).startswith(whole[len(half) :])


def masked(text):
    """A client's text frame of at most 125 bytes, with a mask of zeros."""
    data = text.encode()
    return bytes([0x81, 0x80 | len(data)]) + bytes(4) + data


def test_injected_frames_come_at_their_place(serve, client):
    trade = '{"topic":"publicTrade.BTCUSDT","data":[]}'
    bybit = serve(Script(inject=((1, "{broken"), (2, b"\x00\x01"), (3, trade))), record=True)
    websocket = client(bybit)
    ask(websocket, BOOK, "orderbook.200.BTCUSDT", TICKER)
    frames = receive(websocket, 7)[1:]
    assert [frames[1], frames[3], frames[5]] == ["{broken", b"\x00\x01", trade]
    assert bybit.connections[0].sent == [frames[0], frames[2], frames[4], trade]


def test_faults_called_at_any_time(serve, client):
    bybit = serve(rate=2000)
    for fault in ("drop", "reset", "close", "send", "send_binary", "send_raw"):
        websocket = client(bybit)
        connection = bybit.connections[-1]
        ask(websocket, BOOK)
        receive(websocket, 3)
        match fault:
            case "send":
                connection.silence()
                connection.send("hello")
                assert "hello" in iter(lambda ws=websocket: ws.recv(timeout=2), None)
            case "send_binary":
                connection.send_binary(b"\xff")
                assert b"\xff" in iter(lambda ws=websocket: ws.recv(timeout=2), None)
            case "send_raw":
                connection.send_raw(b"\x81\x02\xff\xff")  # a text frame that is not UTF-8
                assert until_closed(websocket)[1].sent.code == 1007
            case _:
                getattr(connection, fault)()
                until_closed(websocket)
                bybit.wait(lambda c=connection: c.closed)


def test_an_idle_connection_is_cut_without_a_close_frame(serve, client):
    bybit = serve(idle_cut=0.3)
    idle, pinging = client(bybit), client(bybit)
    while bybit.connections[0].closed is None:
        pinging.send('{"op":"ping"}')
        pinging.recv(timeout=2)
    assert until_closed(idle)[1].rcvd is None
    assert bybit.connections[0].closed - bybit.connections[0].accepted >= 0.3
    assert bybit.connections[1].closed is None


def test_scripts_go_to_connections_in_order_then_then(serve, client):
    bybit = serve(Script(handshake=503), Script(), then=Script(handshake=429))
    for status in (503, None, 429, 429):
        if status:
            with pytest.raises(InvalidStatus, match=str(status)):
                client(bybit)
        else:
            client(bybit)


def test_wait_says_what_it_waited_for(serve, client):
    bybit = serve()
    client(bybit)
    with pytest.raises(AssertionError, match=r"not within 0\.05 s.*/v5/public/linear open, 0 requests"):
        bybit.wait(lambda: False, timeout=0.05)


def test_five_thousand_messages_a_second(serve, client):
    bybit = serve(rate=6000)
    websocket = client(bybit)
    ask(websocket, BOOK, TRADES, TICKER)
    receive(websocket, 100)
    began, before = time.monotonic(), bybit.connections[0].count
    receive(websocket, 4000, timeout=5)
    assert time.monotonic() - began < 1.5  # 0.7 on an idle machine
    assert bybit.connections[0].count >= before + 3900


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_starts_serves_and_stops(client, number):
    command = [sys.executable, "-m", "sandbox.bybit", "--port", "0", "--symbols", "PEPEUSDT", "--rate", "500"]
    with subprocess.Popen(
        [*command, "--refuse", "tickers.PEPEUSDT"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        name, url = process.stdout.readline().strip().split("=")
        assert name == "BYBIT_WS_URL"
        with connect(f"{url}/v5/public/linear", close_timeout=0.1) as websocket:
            ask(websocket, "tickers.PEPEUSDT")
            assert not json.loads(websocket.recv(timeout=2))["success"]
            ask(websocket, "orderbook.50.PEPEUSDT")
            receive(websocket, 20)
            process.send_signal(number)
            assert process.communicate(timeout=5) == ("", "")
        assert process.returncode == 0


def test_the_command_says_what_is_wrong_with_its_options(serve):
    bybit = serve()
    for options, message in (
        (["--port", str(bybit.port)], "in use"),
        (["--replay", "nowhere.tsv"], "nowhere.tsv"),
        (["--tls-cert", "x"], "go together"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sandbox.bybit", *options], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
