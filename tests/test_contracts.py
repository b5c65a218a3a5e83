"""What relay/ relies on in pybit, websocket-client and redis-py without a promise of theirs, one test each.

A failure here means that an upgrade changed it. The message names package, version, what changed, and the place that
relies on it; change that place, or stay with the version in constraints.txt.
"""

import ast
import importlib.metadata
import inspect
import re
import socket
import textwrap
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import websocket
from conftest import eventually
from pybit.exceptions import InvalidRequestError
from pybit.unified_trading import HTTP, WebSocket
from redis import connection as redis_connection
from redis.backoff import NoBackoff
from redis.retry import Retry
from vocabulary import agreement
from websockets.frames import Frame, Opcode

from relay.bybit.client import Client
from relay.bybit.dial import interrupt
from relay.bybit.exchange import Exchange
from relay.bybit.rest import Bounded, Leash
from relay.bybit.tls import TLS, TLSSocket
from sandbox.bybit import Bybit, RestScript
from sandbox.redis import LocalRedis

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
WAIT = 10.0  # seconds for what should take milliseconds
CHANNEL_TYPES = ("linear", "spot", "inverse", "option")


def broken_contract(package, change, where):
    """The message of an assertion: which package changed what, and what relies on it."""
    return f"{package} {importlib.metadata.version(package)}: {change}. {where} relies on it"


def pybit(change, where="relay/bybit/client.py Client"):
    return broken_contract("pybit", change, where)


def client(change, where="relay/bybit/dial.py Dial"):
    return broken_contract("websocket-client", change, where)


def redis_py(broken, where="relay/redis/publisher.py Publisher.__init__"):
    return broken_contract("redis", broken, where)


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


def test_all_that_relay_relies_on_is_pinned():
    assert {"pybit", "redis", "python-dotenv", "websocket-client"} <= {package for package, _ in pins()}


# pybit: the constructor ends in _connect(url), and each *_stream() in subscribe(topic, callback, symbol).


class Passive(WebSocket):
    """pybit's WebSocket as Client uses it: it keeps the calls of the two methods that Client overrides."""

    def __init__(self, channel_type="linear", testnet=True):
        self.connects, self.subscribes = [], []
        super().__init__(channel_type, testnet=testnet)

    def _connect(self, *args, **kwargs):
        self.connects.append((args, kwargs))

    def subscribe(self, *args, **kwargs):
        self.subscribes.append((args, kwargs))


@pytest.mark.parametrize("channel_type", CHANNEL_TYPES)
def test_the_constructor_of_pybit_ends_in_connect_with_the_template_of_the_address(channel_type):
    before = set(threading.enumerate())
    made = Passive(channel_type)
    where = "relay/bybit/client.py Client._connect"
    [((url,), options)] = made.connects
    assert (url.rpartition("/")[2], options) == (channel_type, {}), pybit(f"_connect gets {url}, {options}", where)
    assert set(threading.enumerate()) == before, pybit("__init__ starts a thread beside _connect()", where)
    last = ast.parse(textwrap.dedent(inspect.getsource(WebSocket.__init__))).body[0].body[-1]
    assert ast.unparse(last) == "self._connect(self.WS_URL)", pybit("__init__ does more after _connect()", where)


@pytest.mark.parametrize("channel_type", CHANNEL_TYPES)
@pytest.mark.parametrize(("testnet", "host"), [(True, "stream-testnet.bybit.com"), (False, "stream.bybit.com")])
def test_the_address_is_the_one_that_pybit_makes_of_its_template(channel_type, testnet, host):
    class Connected(WebSocket):
        def is_connected(self):
            return True  # so that _connect() only makes the address

        def _send_initial_ping(self):
            """No timer."""

    theirs = Connected(channel_type, testnet=testnet).endpoint
    exchange = Exchange(channel_type, testnet=testnet, sink=None)
    ours = Client(exchange).endpoint
    assert ours == theirs == f"wss://{host}/v5/public/{channel_type}", pybit(
        f"it connects to {theirs}, we to {ours}", "relay/bybit/client.py Client._connect"
    )
    assert ours.startswith(f"{exchange.address}/"), "what --check shows is where the collector connects"


@pytest.mark.parametrize("symbol", ["BTCUSDT", ["BTCUSDT", "ETHUSDT"]])
@pytest.mark.parametrize(
    ("method", "options", "topic"),
    [
        ("orderbook_stream", {"depth": 50}, "orderbook.50.{symbol}"),
        ("trade_stream", {}, "publicTrade.{symbol}"),
        ("ticker_stream", {}, "tickers.{symbol}"),
        ("all_liquidation_stream", {}, "allLiquidation.{symbol}"),
        ("kline_stream", {"interval": 1}, "kline.1.{symbol}"),
    ],
)
def test_the_stream_methods_of_pybit_end_in_subscribe(method, options, topic, symbol):
    made = Passive()
    getattr(made, method)(symbol=symbol, callback=print, **options)
    assert made.subscribes == [((topic, print, symbol), {})], pybit(
        f"{method}() does not end in self.subscribe({topic!r}, callback, symbol)",
        "relay/bybit/client.py Client.subscribe",
    )


@pytest.mark.parametrize("name", ["_connect", "subscribe"])
def test_what_is_overridden_takes_the_same_parameters(name):
    theirs, ours = (list(inspect.signature(getattr(kind, name)).parameters.values()) for kind in (WebSocket, Client))
    assert [one.name for one in theirs] == [one.name for one in ours], pybit(
        f"{name}() has other parameters", f"relay/bybit/client.py Client.{name}"
    )
    required = {one.name for one in ours if one.default is one.empty}
    assert required <= {one.name for one in theirs if one.default is one.empty}, pybit(
        f"{name}() may be called with less", f"relay/bybit/client.py Client.{name}"
    )


def test_no_other_name_of_ours_is_one_of_pybits():
    """Methods and attributes: one of the same name would be overridden, or overwritten."""
    theirs = set(vars(Passive())) | {name for kind in WebSocket.__mro__[:-1] for name in vars(kind)}
    tree = ast.parse(textwrap.dedent(inspect.getsource(Client)))
    assigned = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and type(node.ctx) is ast.Store}
    ours = assigned | {name for name in vars(Client) if not name.startswith("__")}
    assert ours & theirs == {"_connect", "subscribe"}, pybit(f"it has these names too: {ours & theirs}")


# pybit's HTTP and requests below it: the address, retries, authorities, and the connection that can be cut.

REST = "relay/bybit/rest.py Reading"


def requests_(change, where="relay/bybit/rest.py Leash"):
    return broken_contract("requests", change, where)


@pytest.mark.parametrize(
    ("testnet", "url"), [(True, "https://api-testnet.bybit.com"), (False, "https://api.bybit.com")]
)
def test_the_address_of_rest_is_an_attribute_and_needs_no_key(testnet, url):
    assert HTTP(testnet=testnet).endpoint == url, pybit("HTTP.endpoint is not its base URL", REST)


def test_an_error_of_bybit_is_raised_at_once_if_its_code_is_not_to_be_retried():
    with Bybit(rate=0) as bybit:
        bybit.rest = RestScript(ret_code=10006, headers=(("X-Bapi-Limit-Reset-Timestamp", "4102444800000"),))
        http = HTTP(retry_codes={-1})
        http.endpoint = bybit.api_url
        with pytest.raises(InvalidRequestError) as raised:
            http.get_instruments_info(category="linear")
        assert raised.value.status_code == 10006, pybit("status_code is not Bybit's retCode", REST)
        assert len(bybit.rest_requests) == 1, pybit("retry_codes is not heeded", REST)
        http.client.close()


def test_a_cursor_goes_out_as_it_came_in():
    with Bybit(rate=0) as bybit:
        http = HTTP()
        http.endpoint = bybit.api_url
        http.get_instruments_info(category="linear", cursor="first%3DA%26last%3DB")
        assert bybit.rest_requests == ["category=linear&cursor=first%3DA%26last%3DB"], pybit(
            "a cursor is encoded once more", "relay/bybit/instruments.py _pages"
        )
        http.client.close()


def test_requests_makes_its_connections_where_they_are_noted_and_reads_its_answers_where_they_are_bounded():
    with Bybit(rate=0) as bybit:
        http, leash = HTTP(), Leash()
        http.endpoint = bybit.api_url
        http.client.mount("http://", leash)
        pieces = []
        read = Bounded.stream

        def stream(self, *arguments, **options):
            for piece in read(self, *arguments, **options):
                pieces.append(len(piece))
                yield piece

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bounded, "stream", stream)
            assert http.get_instruments_info(category="linear")["retCode"] == 0
        assert isinstance(leash._opened, socket.socket), requests_("its connections are made elsewhere")
        assert pieces, requests_("it does not read an answer by raw.stream()", "relay/bybit/rest.py Bounded")
        http.client.close()


# websocket-client: create_connection(), and the WebSocket that it returns.


class Server:
    """Answers the request of each connection in one write: `status`, and after 101 `frames`; never if None.

    The connections stay open until the end of the `with`.
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
        for sock in (self._listener, *self.sockets):
            sock.close()

    def received(self, size):
        """The next bytes from the first client, at least `size`."""
        data = b""
        while len(data) < size and (more := self.sockets[0].recv(4096)):
            data += more
        return data

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
                sock.sendall(self._response(request))
            self.sockets.append(sock)

    def _response(self, request):
        if self.status != 101:
            return b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % self.status
        return agreement(request) + self.frames


@pytest.mark.parametrize("frames", [1, 3, 300])
def test_nothing_is_read_ahead_of_the_handshake(frames):
    """Frames in the same segment as the response are still on the socket, all of them."""
    wire = Frame(Opcode.TEXT, b'{"topic":"tickers.BTCUSDT"}').serialize(mask=False) * frames
    where = "relay/bybit/connection.py Connection._read"
    before = set(threading.enumerate())
    with Server(frames=wire) as server:
        ws = websocket.create_connection(server.url, timeout=WAIT)
        assert set(threading.enumerate()) - before == {server._thread}, client("it starts a thread", where)
        found = b""
        while len(found) < len(wire) and (data := ws.sock.recv(65536)):
            found += data
        assert found == wire, client("the handshake reads more than the response", where)
        ws.shutdown()


def test_the_socket_is_the_live_one_and_takes_any_timeout():
    where = "relay/bybit/connection.py Connection._read"
    with Server() as server:
        ws = websocket.create_connection(server.url, timeout=WAIT)
        assert isinstance(ws.sock, socket.socket), client(f"WebSocket.sock is a {type(ws.sock)}", where)
        assert ws.sock.getpeername()[1] == int(server.url.rpartition(":")[2]), client(
            "it is not the live socket", where
        )
        ws.sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            ws.sock.recv_into(bytearray(1))
        ws.shutdown()


def test_under_tls_the_context_that_is_given_wraps_the_socket(tls_exchange):
    where = "relay/bybit/dial.py Dial._run, which gives it relay/bybit/tls.py TLS"
    host = urlsplit(tls_exchange.url).hostname
    calls = []

    class Recorder:
        @staticmethod
        def wrap_socket(sock, **options):
            calls.append((type(sock), options["server_hostname"]))
            return TLS.wrap_socket(sock, **options)

    ws = websocket.create_connection(f"{tls_exchange.url}/v5/public/linear", timeout=WAIT, sslopt={"context": Recorder})
    assert calls == [(socket.socket, host)], client(f"wrap_socket() was called with {calls}", where)
    assert isinstance(ws.sock, TLSSocket), client(f"WebSocket.sock is a {type(ws.sock)}", where)
    ws.shutdown()


@pytest.mark.parametrize("name", ["send", "pong"])
def test_send_and_pong_write_one_masked_frame(name):
    where = "relay/bybit/connection.py Connection._send"
    with Server() as server:
        ws = websocket.create_connection(server.url, timeout=WAIT)
        getattr(ws, name)({"send": "tickers", "pong": b"payload"}[name])
        sent = eventually(lambda: server.sockets) and server.received(13)
        mask, payload = sent[2:6], sent[6:]
        found = sent[0], sent[1], bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
        wanted = {"send": (0x81, 0x87, b"tickers"), "pong": (0x8A, 0x87, b"payload")}[name]
        assert found == wanted, client(f"{name}() writes {sent.hex()}", where)
        ws.shutdown()


def test_shutdown_closes_the_socket_under_tls_too(tls_exchange):
    ws = websocket.create_connection(f"{tls_exchange.url}/v5/public/linear", timeout=WAIT, sslopt={"context": TLS})
    sock = ws.sock
    ws.shutdown()
    assert sock.fileno() == -1, client("shutdown() leaves the socket open", "relay/bybit/tls.py TLSSocket._closed")


def test_shutdown_closes_the_socket_at_once_and_says_nothing():
    where = "relay/bybit/connection.py Connection.run"
    with Server() as server:
        ws = websocket.create_connection(server.url, timeout=WAIT)
        eventually(lambda: server.sockets)
        began, sock = time.monotonic(), ws.sock
        ws.shutdown()
        assert server.received(1) == b"", client("shutdown() writes to the socket", where)
        assert time.monotonic() - began < 1, client("shutdown() waits", where)
        assert sock.fileno() == -1, client("shutdown() leaves the socket open", where)
        ws.shutdown()  # twice is no error


@pytest.mark.parametrize("status", [403, 503])
def test_a_refused_handshake_is_an_exception_with_its_status(status):
    with Server(status=status) as server:
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            websocket.create_connection(server.url, timeout=WAIT)
        assert refused.value.status_code == status, client(
            "the exception has no status_code", "relay/bybit/dial.py describe()"
        )


def test_every_failure_of_it_is_an_exception_of_its_own_or_of_the_socket():
    where = "relay/bybit/connection.py Connection.run"
    for name in ("BadStatus", "Address", "Timeout", "ConnectionClosed"):
        kind = getattr(websocket, f"WebSocket{name}Exception")
        assert issubclass(kind, websocket.WebSocketException), client(f"{kind} is no WebSocketException", where)


def test_the_timeout_bounds_the_handshake():
    with Server(status=None) as server:
        began = time.monotonic()
        with pytest.raises(websocket.WebSocketTimeoutException):
            websocket.create_connection(server.url, timeout=0.1)
        assert time.monotonic() - began < 1, client("create_connection() does not keep its timeout")


def test_a_handshake_that_hangs_can_be_interrupted_from_another_thread():
    """The WebSocket is made by class_, and has its socket while the handshake is made."""
    made, failed = [], []

    def make(**options):
        made.append(websocket.WebSocket(**options))
        return made[0]

    def connect():
        try:
            websocket.create_connection(server.url, timeout=WAIT, class_=make)
        except (OSError, websocket.WebSocketException) as error:
            failed.append(error)

    with Server(status=None) as server:
        thread = threading.Thread(target=connect)
        thread.start()
        assert eventually(lambda: server.sockets and made and made[0].sock), client("class_ is not used")
        interrupt(made[0])
        thread.join(1)
        assert failed, client("it does not end when its socket is shut down")
    thread.join(WAIT)


# redis-py: a live socket that is ours once it is connected.

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
    """A connection as relay/redis/publisher.py makes it."""
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
    where = "relay/redis/link.py Link"
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
                "send_command/read_response do not work after we used the socket", "check.py _ask"
            )
            assert connection._get_socket() is sock, redis_py("it changed its socket", where)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    finally:
        connection.disconnect()


@pytest.mark.parametrize("kind", [redis.Connection, redis.SSLConnection])
def test_redis_py_looks_at_host_and_port_when_it_connects_and_only_in_connect(kind, redis_server):
    """Whatever makes it connect: connect(), or a command after disconnect(). The timeout is looked at then, too."""
    where, calls = "relay/redis/dial.py _Dialled", []

    class Elsewhere(kind):
        def _connect(self):
            calls.append(self.socket_connect_timeout)
            self.host, self.port = "127.0.0.1", redis_server.port
            return redis.Connection._connect(self)  # without TLS, which this server has not

    connection = Elsewhere(host="192.0.2.1", port=1, protocol=2, socket_connect_timeout=3, retry=Retry(NoBackoff(), 0))
    try:
        connection.connect()
        connection.disconnect()
        connection.host, connection.port = "192.0.2.1", 1
        connection.send_command("PING")
        assert connection.read_response() == b"PONG"
        assert calls == [3, 3], redis_py("it does not connect in _connect()", where)
    finally:
        connection.disconnect()


def test_redis_py_asks_for_the_login_whenever_it_connects_and_sends_none_for_an_empty_one():
    where, logins = "relay/redis/login.py", [("word",), ()]

    class Provider(redis.CredentialProvider):
        def get_credentials(self):
            return logins.pop(0)

    with LocalRedis(password="word") as server:
        options = {"protocol": 2, "driver_info": None, "credential_provider": Provider()}
        connection = redis.Connection("127.0.0.1", server.port, **options)
        try:
            connection.connect()
            connection.disconnect()
            connection.send_command("PING")
            with pytest.raises(redis.AuthenticationError, match="Authentication required"):
                connection.read_response()
            assert logins == [], redis_py("it does not ask for the login again", where)
        finally:
            connection.disconnect()


@pytest.mark.parametrize("name", ["path", "_host_error"])
def test_redis_py_has_the_path_of_a_unix_socket_in_one_place(name):
    found = hasattr(redis.UnixDomainSocketConnection(path="/a"), name)
    assert found, redis_py(f"{name} is gone", "relay/redis/dial.py _Unix")


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
        "it greets Redis with more than it is told to", "relay/redis/publisher.py Publisher.__init__"
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
    where = "relay/redis/publisher.py Publisher._run"
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
    assert len(accepted) == 2, redis_py(
        "it retries with Retry(NoBackoff(), 0)", "relay/redis/publisher.py Publisher.__init__"
    )
