"""The internals of pybit, websocket-client and redis-py that relay/ leans on, one test each.

A failure here means that an upgrade changed something that the packages never promised. The message says what and
where; change the place it names, or stay with the version in constraints.txt.
"""

import ast
import base64
import hashlib
import importlib.metadata
import inspect
import re
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
import redis
import websocket
from conftest import eventually
from pybit.unified_trading import WebSocket
from redis import connection as redis_connection
from redis.backoff import NoBackoff
from redis.retry import Retry

import relay.connection
from relay.connection import Connection
from sandbox.redis import LocalRedis

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
WAIT = 10.0  # seconds for what should take milliseconds
CHANNEL_TYPES = ("linear", "spot", "inverse", "option")


def leaned(package, broken, where):
    """The message of an assertion: which package broke what, and who leans on it."""
    return f"{package} {importlib.metadata.version(package)}: {broken}. Leaned on by {where}"


def pybit(broken, where="relay/connection.py Connection"):
    return leaned("pybit", broken, where)


def client(broken, where="relay/connection.py Connection"):
    return leaned("websocket-client", broken, where)


def redis_py(broken, where="relay/publisher.py Publisher"):
    return leaned("redis", broken, where)


def pins():
    """(package, version) of every line that pins one on any Python, of what the program needs to run."""
    found = []
    for name in ("requirements.txt", "constraints.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if pin := re.fullmatch(r"([\w.-]+)==([\w.]+)", line):
                found.append(pin.groups())
    return found


@pytest.mark.parametrize(("package", "version"), pins())
def test_the_pinned_version_is_the_installed_one(package, version):
    assert importlib.metadata.version(package) == version, f"{package} is not the one that the other tests speak for"


def test_all_that_relay_leans_on_is_pinned():
    assert {"pybit", "redis", "python-dotenv", "websocket-client"} <= {package for package, _ in pins()}


def text_frame(text, head=0x81):
    data = text.encode()
    return bytes([head]) + (bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack("!H", len(data))) + data


class Server:
    """Reads the request of each connection and answers in one write: `status`, and after 101 `frames`; never if None.

    The connections stay open until the end of the `with`, or until drop().
    """

    def __init__(self, status=101, frames=b""):
        self.status, self.frames = status, frames
        self.sockets = []
        self._listener = socket.create_server((HOST, 0))
        self._listener.settimeout(0.05)
        self.url = f"ws://{HOST}:{self._listener.getsockname()[1]}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._listener.close()
        self.drop()

    def drop(self):
        """Closes the connections that were made so far."""
        for sock in self.sockets:
            sock.close()

    def _run(self):
        while not self._stop.is_set():
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            sock.settimeout(WAIT)
            request = b""
            while not request.endswith(b"\r\n\r\n") and (data := sock.recv(4096)):
                request += data
            if self.status is not None:
                sock.sendall(self._answer(request))
            self.sockets.append(sock)

    def _answer(self, request):
        if self.status != 101:
            return b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % self.status
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)[1]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        head = b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
        return head % accept + self.frames


class Unconnected(WebSocket):
    """pybit's WebSocket with its network cut off, which notes what it would have done."""

    def __init__(self, channel_type="linear"):
        self.urls, self.subscriptions_made = [], []
        super().__init__(channel_type, testnet=True, restart_on_error=False, retries=0, ping_interval=0)

    def _connect(self, url):
        self.urls.append(url)

    def subscribe(self, *args, **kwargs):
        self.subscriptions_made.append((args, kwargs))


class Feed(WebSocket):
    """pybit's WebSocket as Connection uses it: what is called, and on which thread, is kept in `calls`."""

    def __init__(self, url):
        self.calls, self._url = [], url
        super().__init__("linear", testnet=True, restart_on_error=False, retries=0, ping_interval=0)

    def _note(self, name, value=None):
        self.calls.append((name, threading.current_thread(), value))

    def of(self, wanted):
        return [(thread, value) for name, thread, value in list(self.calls) if name == wanted]

    def _connect(self, url):
        super()._connect(self._url)

    def _send_initial_ping(self):
        self._note("ping")

    def _on_open(self):
        self._note("open", self.ws.sock)

    def _on_error(self, error):
        self._note("error", error)

    def _on_close(self):
        self._note("close")

    def is_connected(self):
        self._note("asked", hasattr(self, "wst") and self.wst.is_alive())
        if self.of("error"):
            raise ConnectionError("enough")
        return bool(self.of("open"))

    def end(self):
        if core := self.ws.sock:
            core.abort()
        self.wst.join(WAIT)
        assert not self.wst.is_alive()


STREAMS = [
    ("orderbook_stream", {"depth": 50}, "orderbook.50.{symbol}"),
    ("trade_stream", {}, "publicTrade.{symbol}"),
    ("ticker_stream", {}, "tickers.{symbol}"),
    ("all_liquidation_stream", {}, "allLiquidation.{symbol}"),
]


@pytest.mark.parametrize("symbol", ["BTCUSDT", ["BTCUSDT", "ETHUSDT"]])
@pytest.mark.parametrize(("method", "options", "topic"), STREAMS)
def test_pybit_stream_methods_end_in_subscribe(method, options, topic, symbol):
    def callback(message):
        """Never called."""

    feed = Unconnected()
    getattr(feed, method)(symbol=symbol, callback=callback, **options)
    assert feed.subscriptions_made == [((topic, callback, symbol), {})], pybit(
        f"{method}() no longer ends in self.subscribe({topic!r}, callback, symbol)",
        "relay/connection.py Connection.subscribe",
    )


@pytest.mark.parametrize("channel_type", CHANNEL_TYPES)
def test_pybit_constructor_ends_in_connect_with_the_channel_type_filled_in(channel_type):
    feed = Unconnected(channel_type)
    [url] = feed.urls
    assert url.endswith(f"/v5/public/{channel_type}"), pybit(
        f"__init__ calls _connect({url!r})", "relay/connection.py Connection._connect"
    )


@pytest.mark.parametrize("testnet", [True, False])
@pytest.mark.parametrize("given", ["", "ws://127.0.0.1:8765/v5/public/linear", "wss://stream.bybit.kz/v5/public/spot"])
def test_pybit_makes_the_endpoint_from_the_url_given_to_connect(testnet, given):
    class Connected(WebSocket):
        def _connect(self, url):
            super()._connect(given or url)

        def is_connected(self):
            return True

        def _send_initial_ping(self):
            """No timer."""

    host = "stream-testnet" if testnet else "stream"
    feed = Connected("linear", testnet=testnet, restart_on_error=False, retries=0, ping_interval=0)
    assert feed.endpoint == (given or f"wss://{host}.bybit.com/v5/public/linear"), pybit(
        f"the URL is {feed.endpoint}", "relay/connection.py Connection._connect and its use of self.endpoint"
    )
    assert not hasattr(feed, "ws"), pybit("_connect() no longer asks is_connected() before its first attempt")


def test_pybit_asks_is_connected_until_it_is_true():
    """Before the first attempt and while it is made; then the constructor returns, without threads but the one."""
    before = set(threading.enumerate())
    with Server() as server:
        feed = Feed(server.url)
        try:
            asked = feed.of("asked")
            where = "relay/connection.py Connection.is_connected"
            assert asked[0][1] is False, pybit("is_connected() is not asked before wst is there", where)
            assert len(asked) >= 2, pybit("is_connected() is asked only once", where)
            assert {thread for thread, _ in asked} == {threading.current_thread()}, pybit(
                "is_connected() is asked on another thread than the constructor's", where
            )
            assert isinstance(feed.ws, websocket.WebSocketApp), pybit("self.ws is no WebSocketApp")
            assert set(threading.enumerate()) - before - {server._thread} == {feed.wst}, pybit(
                "it starts threads beside self.wst, in spite of ping_interval=0 and our _send_initial_ping",
                "relay/connection.py, whose rule is that one thread touches the socket",
            )
            assert feed.of("ping"), pybit(
                "_send_initial_ping() is not what starts its timer", "relay/connection.py Connection._send_initial_ping"
            )
        finally:
            feed.end()


def test_raising_in_is_connected_gets_out_of_the_constructor():
    """The handshake is never answered: there is no other way out of pybit's loop."""

    class Impatient(Feed):
        def is_connected(self):
            made.append(self)
            super().is_connected()
            if len(self.of("asked")) >= 5:
                raise LookupError("out of here")
            return False

    made = []
    with Server(status=None) as server:
        with pytest.raises(LookupError, match="out of here"):
            Impatient(server.url)
        assert len(made) == 5, pybit("is_connected() is not asked again and again while the handshake hangs")
        # run_forever ends once the socket is shut down, from another thread, in the middle of the handshake.
        eventually(lambda: made[0].ws.sock and made[0].ws.sock.sock)
        socket.socket.shutdown(made[0].ws.sock.sock, socket.SHUT_RDWR)
        made[0].wst.join(WAIT)
        assert not made[0].wst.is_alive(), client(
            "run_forever does not return when its socket is shut down during the handshake",
            "relay/connection.py Connection.close",
        )


def test_pybit_calls_on_open_on_its_socket_thread():
    with Server() as server:
        feed = Feed(server.url)
        try:
            [(thread, core)] = eventually(lambda: feed.of("open"))
            where = "relay/connection.py Connection._on_open, which stays there for the life of the connection"
            assert thread is feed.wst, pybit("_on_open is called on another thread than self.wst", where)
            assert isinstance(core, websocket.WebSocket), client("WebSocketApp.sock is no WebSocket", where)
            assert isinstance(core.sock, socket.socket), client("WebSocket.sock is no socket", where)
        finally:
            feed.end()


def test_pybit_calls_on_error_on_its_socket_thread_and_makes_no_second_attempt():
    """A refused handshake. `restart_on_error=False, retries=0` and a raising is_connected() mean one attempt."""
    made = []

    class Refused(Feed):
        def __init__(self, url):
            made.append(self)
            super().__init__(url)

    with Server(status=403) as server:
        with pytest.raises(ConnectionError, match="enough"):
            Refused(server.url)
        [feed] = made
        feed.wst.join(WAIT)
        assert not feed.wst.is_alive(), pybit("its thread lives on after a refused handshake")
        [(thread, error)] = feed.of("error")
        assert thread is feed.wst, pybit("_on_error is not called on self.wst", "relay/connection.py _on_error")
        assert isinstance(error, websocket.WebSocketBadStatusException), client(
            f"a refused handshake is {error!r}", "relay/connection.py reason()"
        )
        assert error.status_code == 403, client("the exception has no status_code", "relay/connection.py reason()")
        assert len(server.sockets) == 1, pybit("it tried again", "relay/connection.py: main.py owns the reconnect loop")


def test_pybit_does_not_reconnect_a_lost_connection():
    with Server() as server:
        feed = Feed(server.url)
        eventually(lambda: server.sockets)
        server.drop()
        feed.wst.join(WAIT)
        assert not feed.wst.is_alive(), pybit("its thread lives on after the connection was lost")
        assert feed.of("error"), pybit("_on_error is not called for a lost connection")
        assert len(server.sockets) == 1, pybit(
            "it reconnects in spite of restart_on_error=False", "relay/connection.py: main.py owns the reconnect loop"
        )


OVERRIDDEN = {"_connect", "is_connected", "_send_initial_ping", "subscribe", "_on_open", "_on_error"}


def test_connection_overrides_what_it_means_to_and_nothing_else():
    """A method that pybit dropped would never be called; one that it added under a name of ours would be broken."""
    ours = {name for name in vars(Connection) if not name.startswith("__")}
    theirs = {name for kind in WebSocket.__mro__[:-1] for name in vars(kind)}
    assert ours & theirs == OVERRIDDEN, pybit(
        f"gone: {OVERRIDDEN - theirs or 'none'}, now overridden by accident: {ours & theirs - OVERRIDDEN or 'none'}"
    )


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_an_overridden_method_can_be_called_as_pybit_calls_its_own(name):
    theirs, ours = (inspect.signature(getattr(kind, name)).parameters.values() for kind in (WebSocket, Connection))
    required = [parameter.name for parameter in theirs if parameter.default is parameter.empty]
    assert [parameter.name for parameter in theirs] == [parameter.name for parameter in ours], pybit(
        f"{name}() has other parameters", f"relay/connection.py Connection.{name}"
    )
    for parameter in ours:
        assert parameter.name in required or parameter.default is not parameter.empty, pybit(
            f"{name}() may be called without {parameter.name}", f"relay/connection.py Connection.{name}"
        )


def attributes(*kinds):
    """Every name that the methods of these classes assign to self."""
    trees = [ast.parse(Path(inspect.getsourcefile(kind)).read_text(encoding="utf-8")) for kind in kinds]
    classes = [
        node
        for tree, kind in zip(trees, kinds, strict=True)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    ]
    return {
        node.attr
        for found in classes
        for node in ast.walk(found)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_no_attribute_of_connection_is_one_of_pybits():
    ours, theirs = attributes(Connection), attributes(*WebSocket.__mro__[:-1])
    assert {"_pending", "_rest", "_callbacks"} <= ours, "this test no longer finds the attributes of Connection"
    assert {"ws", "wst", "endpoint", "callback"} <= theirs, pybit("self.ws, wst, endpoint are not what they were")
    theirs |= vars(Unconnected()).keys() - {"urls", "subscriptions_made"}
    theirs |= {name for kind in WebSocket.__mro__[:-1] for name in vars(kind)}
    assert not ours & theirs, pybit(f"these attributes are both ours and its: {ours & theirs}")


# A text in three fragments, cut inside a character, with a ping in the middle; then whole frames of each length form.
EURO = "10 €".encode()
STREAM = [
    (b"\x01" + bytes([4]) + EURO[:4], None),
    (b"\x89\x04ping", (websocket.ABNF.OPCODE_PING, b"ping")),
    (b"\x00\x01" + EURO[4:5], None),
    (b"\x80\x05" + EURO[5:] + b"ever", (websocket.ABNF.OPCODE_TEXT, EURO + b"ever")),
    (text_frame('{"topic":"tickers.BTCUSDT"}'), (websocket.ABNF.OPCODE_TEXT, b'{"topic":"tickers.BTCUSDT"}')),
    (text_frame("x" * 200), (websocket.ABNF.OPCODE_TEXT, b"x" * 200)),
    (b"\x8a\x00", (websocket.ABNF.OPCODE_PONG, b"")),
    (b"\x82\x7f" + struct.pack("!Q", 300) + b"y" * 300, (websocket.ABNF.OPCODE_BINARY, b"y" * 300)),
    (b"\x81\x00", (websocket.ABNF.OPCODE_TEXT, b"")),
]


class Dry(Exception):
    """No bytes now."""


class Taker:
    """A WebSocket whose frame buffer reads from `feed`, as Connection._take gives it what has arrived."""

    def __init__(self):
        self.rest = b""
        self.core = websocket.WebSocket(enable_multithread=True)
        self.core.sock, self.peer = socket.socketpair()
        self.core.connected = True
        self.core.frame_buffer.recv = self.take

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.core.sock.close()
        self.peer.close()

    def take(self, size):
        if not self.rest:
            raise Dry
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def feed(self, data):
        """What comes of these bytes: (opcode, data)s."""
        self.rest += data
        found = []
        while True:
            try:
                opcode, frame = self.core.recv_data_frame(True)
            except Dry:
                return found
            found.append((opcode, bytes(frame.data)))

    def answers(self):
        """What was sent to the server, unmasked: (first byte, payload)s."""
        self.core.sock.shutdown(socket.SHUT_WR)
        self.peer.settimeout(WAIT)
        data = b"".join(iter(lambda: self.peer.recv(4096), b""))
        found = []
        while data:
            length, mask = data[1] & 0x7F, data[2:6]
            found.append((data[0], bytes(byte ^ mask[n % 4] for n, byte in enumerate(data[6 : 6 + length]))))
            data = data[6 + length :]
        return found


WIRE = b"".join(frame for frame, _ in STREAM)
ARRIVALS = [arrival for _, arrival in STREAM if arrival]


def test_an_exception_of_frame_buffer_recv_loses_nothing_wherever_it_comes():
    """At every byte: recv_data_frame() goes on where it was, and answers the ping once."""
    for cut in range(len(WIRE) + 1):
        with Taker() as taker:
            assert taker.feed(WIRE[:cut]) + taker.feed(WIRE[cut:]) == ARRIVALS, client(
                f"what is interrupted after byte {cut} of a stream is not resumed",
                "relay/connection.py Connection._take and _protocol",
            )
            assert taker.answers() == [(0x8A, b"ping")], client(
                f"a ping interrupted at byte {cut} is not answered once", "relay/connection.py Connection._protocol"
            )


def test_an_exception_before_every_single_byte_loses_nothing_either():
    with Taker() as taker:
        found = [arrival for n in range(len(WIRE)) for arrival in taker.feed(WIRE[n : n + 1])]
        assert found == ARRIVALS, client(
            "bytes that come one by one are not put together", "relay/connection.py Connection._take and _protocol"
        )


def test_frames_are_read_from_frame_buffer_recv_and_no_further_than_they_go():
    """What follows a frame must be left for relay to cut out by itself."""
    after = b"\x81\x05after"
    for frame, arrival in STREAM[4:]:
        with Taker() as taker:
            taker.rest = frame + after
            opcode, got = taker.core.recv_data_frame(True)
            assert ((opcode, bytes(got.data)), taker.rest) == (arrival, after), client(
                "recv_data_frame() does not read exactly one frame from frame_buffer.recv",
                "relay/connection.py Connection._take",
            )


def test_a_close_frame_is_returned_with_its_code_and_answered():
    with Taker() as taker:
        found = taker.feed(b"\x88\x07" + struct.pack("!H", 1001) + b"later")
        assert found == [(websocket.ABNF.OPCODE_CLOSE, struct.pack("!H", 1001) + b"later")], client(
            "recv_data_frame(True) does not return a close frame", "relay/connection.py Connection._protocol"
        )
        assert [head for head, _ in taker.answers()] == [0x88], client(
            "a close frame is not answered", "relay/connection.py Connection._protocol"
        )


@pytest.mark.parametrize("wire", [b"\x81\x02\xff\xfe", b"\x01\x01\xff\x80\x01\xfe"], ids=["whole", "fragmented"])
def test_the_check_of_utf8_can_be_switched_off_where_relay_does_it(wire):
    """It is done in Python, byte by byte; relay decodes strictly by itself."""
    where = "relay/connection.py Connection._read"
    with Taker() as taker:
        with pytest.raises(websocket.WebSocketPayloadException):
            taker.feed(wire)
        for part in (taker.core.frame_buffer, taker.core.cont_frame):
            assert part.skip_utf8_validation is False, client("it checks no UTF-8 by default", where)
    with Taker() as taker:
        taker.core.frame_buffer.skip_utf8_validation = taker.core.cont_frame.skip_utf8_validation = True
        assert taker.feed(wire) == [(websocket.ABNF.OPCODE_TEXT, b"\xff\xfe")], client(
            "skip_utf8_validation of frame_buffer and cont_frame does nothing any more", where
        )


def test_nothing_is_read_ahead_in_the_handshake():
    """Frames in the same write as the 101 are still on the socket, all of them, for relay's own recv."""
    frames = text_frame('{"topic":"tickers.BTCUSDT"}') * 3
    with Server(frames=frames) as server:
        core = websocket.WebSocket()
        core.connect(server.url)
        try:
            core.sock.settimeout(WAIT)
            found = b""
            while len(found) < len(frames) and (data := core.sock.recv(65536)):
                found += data
            where = "relay/connection.py Connection._read"
            assert found == frames, client("the handshake reads more than the response", where)
            assert core.frame_buffer.recv_buffer == [], client("the handshake leaves bytes in the frame buffer", where)
        finally:
            core.shutdown()


def test_shutdown_inside_on_open_ends_run_forever():
    """At once, with no callback after it but on_close, though frames lie on the socket."""
    calls = []

    def on_open(app):
        calls.append("open")
        app.sock.shutdown()

    with Server(frames=text_frame("never read")) as server:
        app = websocket.WebSocketApp(
            server.url,
            on_open=on_open,
            on_message=lambda app, message: calls.append("message"),
            on_error=lambda app, error: calls.append(repr(error)),
            on_close=lambda app, *_: calls.append("close"),
        )
        began = time.monotonic()
        app.run_forever(ping_interval=0, ping_timeout=10)
        where = "relay/connection.py Connection._on_open"
        assert calls == ["open", "close"], client(f"after shutdown() in on_open came {calls[1:]}", where)
        assert time.monotonic() - began < 5, client("run_forever does not return after shutdown() in on_open", where)


def test_the_default_timeout_is_ours_and_bounds_the_handshake(monkeypatch):
    where = "relay/connection.py setdefaulttimeout"
    assert websocket.getdefaulttimeout() == relay.connection.STEP_TIMEOUT, client("setdefaulttimeout() has gone", where)
    errors = []
    with Server(status=None) as server:
        websocket.setdefaulttimeout(0.1)
        try:
            app = websocket.WebSocketApp(server.url, on_error=lambda app, error: errors.append(error))
            app.run_forever(ping_interval=0, ping_timeout=10)
        finally:
            websocket.setdefaulttimeout(relay.connection.STEP_TIMEOUT)
    assert [type(error) for error in errors] == [websocket.WebSocketTimeoutException], client(
        f"a handshake that is never answered ends with {errors}", where
    )


PARSERS = [redis_connection._RESP2Parser]
if redis_connection.HIREDIS_AVAILABLE:
    PARSERS.append(redis_connection.DefaultParser)
PASSWORD = "pässwörd 'of' \"tests\""


@pytest.fixture(scope="module")
def locked_redis():
    """A Redis that wants a password."""
    with LocalRedis(password=PASSWORD) as server:
        yield server


def connect(port, **options):
    """A connection as relay/publisher.py makes it."""
    made = redis.Connection(
        host=HOST,
        port=port,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        socket_timeout=WAIT,
        socket_connect_timeout=WAIT,
        **options,
    )
    try:
        made.connect()
    except BaseException:
        made.disconnect()
        raise
    return made


def exchange(sock, command, size):
    """Sends and reads as the publisher does, past redis-py, until `size` bytes are there."""
    sock.sendall(command)
    answer = b""
    while len(answer) < size and (data := sock.recv(65536)):
        answer += data
    return answer


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("login", [False, True], ids=["no password", "password, database"])
def test_redis_py_lets_us_use_its_socket(parser, login, redis_server, locked_redis):
    """_get_socket() is the live socket, nothing is read ahead of us, and redis-py works as before afterwards."""
    server, options = (locked_redis, {"password": PASSWORD, "db": 2}) if login else (redis_server, {})
    connection = connect(server.port, parser_class=parser, **options)
    where = "relay/publisher.py Publisher._session"
    try:
        sock = connection._get_socket()
        assert isinstance(sock, socket.socket), redis_py("Connection._get_socket() returns no socket", where)
        assert sock.getpeername()[1] == server.port, redis_py("_get_socket() is not the live socket", where)
        assert not connection.can_read(0), redis_py("answers are left over after connect()", where)
        for round_of in range(3):
            publish = b"*3\r\n$7\r\nPUBLISH\r\n$7\r\nnowhere\r\n$2\r\nhi\r\n"
            answer = exchange(sock, publish * 50 + b"*1\r\n$4\r\nPING\r\n", 50 * 4 + 7)
            assert answer == b":0\r\n" * 50 + b"+PONG\r\n", redis_py("answers on its socket are not ours", where)
            connection.send_command("ECHO", str(round_of))
            assert connection.read_response() == str(round_of).encode(), redis_py(
                "send_command/read_response do not work after we used the socket", "relay/publisher.py Publisher._ask"
            )
            assert connection._get_socket() is sock, redis_py("it changed its socket", where)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    finally:
        connection.disconnect()


@pytest.mark.parametrize(
    ("options", "greeting"),
    [
        ({}, []),
        ({"password": "p"}, [b"AUTH", b"p"]),
        ({"username": "u", "password": "p", "db": 1}, [b"AUTH", b"u", b"p", b"SELECT", b"1"]),
    ],
)
def test_redis_py_sends_nothing_before_us_but_the_password_and_the_database(options, greeting):
    """No HELLO, no CLIENT SETINFO: they cost round trips, and rights in an ACL."""
    heard = bytearray()

    def answer():
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(WAIT)
            while b"MARK" not in heard:
                heard.extend(sock.recv(4096))
                sock.sendall(b"+OK\r\n")

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=answer, name="fake Redis")
        thread.start()
        connection = connect(listener.getsockname()[1], **options)
        connection.send_command("MARK")
        connection.read_response()
        connection.disconnect()
        thread.join(WAIT)
    assert re.findall(rb"\$\d+\r\n(\S+)\r\n", heard) == [*greeting, b"MARK"], redis_py(
        "it greets Redis with more than it is told to", "relay/publisher.py Publisher.__init__"
    )


def test_a_wrong_password_is_an_authentication_error(locked_redis):
    with pytest.raises(redis.AuthenticationError):
        connect(locked_redis.port, password="wrong")


@pytest.mark.parametrize("database", [0, 1])
def test_a_missing_password_is_an_authentication_error(locked_redis, database):
    """At the latest when something is asked, as the publisher does right after connecting."""

    def ask():
        connection = connect(locked_redis.port, db=database)
        try:
            connection.send_command("ROLE")
            connection.read_response()
        finally:
            connection.disconnect()

    with pytest.raises(redis.AuthenticationError):
        ask()


def test_an_authentication_error_is_no_response_error():
    """A ResponseError is what Redis says of a command that the user may not use, and is lived with."""
    where = "relay/publisher.py Publisher._ask and _run"
    assert not issubclass(redis.AuthenticationError, redis.ResponseError), redis_py("it is one now", where)
    assert issubclass(redis.AuthenticationError, redis.RedisError), redis_py("it is no RedisError", where)
    assert issubclass(redis.exceptions.NoPermissionError, redis.ResponseError), redis_py("NOPERM is none", where)


@pytest.mark.parametrize("options", [{"password": "p"}, {"db": 1}])
def test_without_retries_there_is_one_attempt_to_connect(options):
    """Against a server that hangs up on the first command."""
    accepted = []
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def hang_up():
            while not stop.is_set():
                try:
                    accepted.append(listener.accept()[0])
                except TimeoutError:
                    continue
                accepted[-1].settimeout(WAIT)
                accepted[-1].recv(4096)
                accepted[-1].close()

        thread = threading.Thread(target=hang_up, name="fake Redis")
        thread.start()
        try:
            with pytest.raises(redis.ConnectionError):
                connect(listener.getsockname()[1], **options)
            # Another attempt would lie in the listener's queue by now, and be accepted in the next round.
            socket.create_connection(listener.getsockname()).close()
            eventually(lambda: len(accepted) >= 2)
        finally:
            stop.set()
            thread.join(WAIT)
    assert len(accepted) == 2, redis_py("it retries with Retry(NoBackoff(), 0)", "relay/publisher.py Publisher")
