"""The stand-in for Bybit's public server on real sockets: connections, timing and faults. Its answers are in
test_sandbox_dialect.py, its frames in test_sandbox_feeds.py."""

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
from recording import write
from websocket import WebSocketConnectionClosedException, create_connection
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from sandbox.bybit import DEFAULT_SYMBOLS, Bybit, Script

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = DEFAULT_SYMBOLS["option"][0]
BOOK, TRADES, TICKER = "orderbook.50.BTCUSDT", "publicTrade.BTCUSDT", "tickers.BTCUSDT"


@pytest.fixture
def serve():
    """Starts servers, without moving markets by default, and asserts that they end at once."""
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


def ask(websocket, *topics, op="subscribe", **fields):
    websocket.send(json.dumps({"op": op, "args": list(topics), **fields}))


def receive(websocket, count=1, timeout=2):
    return [websocket.recv(timeout=timeout) for _ in range(count)]


def until_closed(websocket):
    """All that still comes, and the exception that ends it."""
    frames = []
    while True:
        try:
            frames.append(websocket.recv(timeout=2))
        except ConnectionClosed as closed:
            return frames, closed


def test_requests_are_answered_and_text_that_is_no_json_leaves_the_socket_open(serve, client):
    bybit = serve()
    websocket = client(bybit, "spot")
    for text, answer in (("hello", "Failed to decode"), ('{"op":"ping"}', '"pong"'), ('{"op":"dance"}', "invalid op")):
        websocket.send(text)
        assert answer in websocket.recv(timeout=2)
    assert [request["op"] for request in bybit.connections[0].requests] == ["ping", "dance"]
    assert websocket.ping().wait(2)


def test_a_rejected_request_brings_no_data_and_the_next_one_does(serve, client):
    bybit = serve(rate=2000)
    websocket = client(bybit)
    ask(websocket, TICKER, "tickers.NOPE")
    assert json.loads(websocket.recv(timeout=2))["ret_msg"] == "error:handler not found,topic:tickers.NOPE"
    assert bybit.connections[0].topics == set()
    ask(websocket, TICKER)
    assert json.loads(websocket.recv(timeout=2))["success"]
    assert json.loads(websocket.recv(timeout=2))["topic"] == TICKER


def test_args_beyond_21000_characters_may_drop_the_connection(serve, client):
    bybit = serve(Script(overflow="close"))
    websocket = client(bybit)
    ask(websocket, *(f"publicTrade.COIN{n:04}USDT" for n in range(900)))
    assert until_closed(websocket)[0] == []


def test_a_late_subscriber_begins_with_the_state_that_the_others_have(serve, client):
    bybit = serve(rate=3000)
    early, late = client(bybit), client(bybit)
    ask(early, BOOK, TRADES)
    receive(early, 100)
    ask(late, BOOK)
    snapshot, following = (json.loads(text)["data"]["u"] for text in receive(late, 3)[1:])
    assert following == snapshot + 1


def test_an_unchanged_depth_1_book_is_sent_again(serve, client):
    websocket = client(serve(repush=0.1))
    ask(websocket, "orderbook.1.BTCUSDT")
    before, now = (json.loads(text) for text in receive(websocket, 3)[1:])
    assert now["data"] == before["data"]
    assert now["ts"] >= before["ts"] + 90


@pytest.mark.parametrize("path", ["/", "/v5/public/spread", "/v5/private"])
def test_other_paths_are_not_found(serve, path):
    bybit = serve()
    with pytest.raises(InvalidStatus, match="404"):
        connect(bybit.url + path)


def test_the_query_is_ignored(serve, client):
    bybit = serve()
    client(bybit, "spot?max_active_time=30s")
    assert (bybit.connections[0].path, bybit.connections[0].category) == ("/v5/public/spot", "spot")


def test_every_subscriber_of_a_topic_gets_the_same_frames(serve, client):
    bybit = serve(rate=3000)
    first, second = client(bybit), client(bybit)
    for websocket in (first, second):
        ask(websocket, "orderbook.200.SOLUSDT", "tickers.SOLUSDT")
        receive(websocket, 3)
    mark = receive(second)[0]
    assert mark in iter(lambda: first.recv(timeout=2), None)
    assert receive(first, 100) == receive(second, 100)


def test_option_delivers_only_known_topics_at_depth_25_and_100(serve, client):
    websocket = client(serve(), "option")
    topics = [f"orderbook.{depth}.{CONTRACT}" for depth in (1, 25, 50, 100)]
    ask(websocket, *topics, "orderbook.25.NOPE")
    receive(websocket)
    websocket.send('{"op":"ping"}')
    frames = [json.loads(text) for text in receive(websocket, 3)]
    assert [frame.get("topic", frame.get("op")) for frame in frames] == [topics[1], topics[3], "pong"]


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
    path = write(tmp_path / "frames.tsv")
    recorded = [line.split("\t")[1] for line in path.read_text(encoding="utf-8").splitlines()]
    bybit = serve(replay=path, speed=speed)
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
        raw.sendall(b"?")  # what is silent may yet become a client of REST
        bybit.wait(lambda: bybit.connections)
        for _ in range(3):
            client(bybit)
        began = time.monotonic()
    assert time.monotonic() - began < 0.5
    assert all(connection.closed for connection in bybit.connections)
    raw.close()


@pytest.mark.parametrize("handshake", ["ok", "never", "never tls"])
def test_tls(serve, tmp_path, handshake):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    bybit = serve(Script(handshake=handshake), tls=(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")))
    if handshake == "ok":
        # Not the client of the other tests: its two threads share one TLS connection, and now and then both hang.
        url = f"{bybit.url}/v5/public/linear"
        websocket = create_connection(url, timeout=2, sslopt={"context": trusting})
        ask(websocket, BOOK)
        assert BOOK in [websocket.recv(), websocket.recv()][1]
        bybit.connections[0].drop()
        with pytest.raises(WebSocketConnectionClosedException):
            websocket.recv()
        websocket.shutdown()
        with pytest.raises(ssl.SSLError):
            create_connection(url, timeout=2)
        bybit.wait(lambda: len(bybit.connections) == 2 and bybit.connections[1].closed)
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


def test_thousands_of_messages_a_second(serve, client):
    bybit = serve(rate=6000)
    websocket = client(bybit)
    ask(websocket, BOOK, TRADES, TICKER)
    receive(websocket, 4100, timeout=5)  # 0.7 s on an idle machine


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
        assert process.stdout.readline() == f"BYBIT_API_URL={url.replace('ws', 'http')}\n"
        with connect(f"{url}/v5/public/linear", close_timeout=0.1) as websocket:
            ask(websocket, "tickers.PEPEUSDT")
            assert not json.loads(websocket.recv(timeout=2))["success"]
            ask(websocket, "orderbook.50.PEPEUSDT")
            receive(websocket, 20)
            process.send_signal(number)
            sent, errors = process.communicate(timeout=5)
            assert int(re.fullmatch(r"Sent (\d+) messages\n", sent)[1]) >= 20
            assert errors == ""
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
