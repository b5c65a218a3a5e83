"""TLS over real sockets. The server's bytes pass through memory, where a test can cut them and add to them."""

import contextlib
import select
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from random import Random

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary import agreement, eventually
from websockets.frames import Frame, Opcode

from relay.bybit.connection import Connection
from relay.bybit.exchange import Exchange
from relay.bybit.tls import READ_SIZE, RECORD, TLS, _context
from relay.dispatch import batched
from relay.errors import ConnectionLost

WAIT = 10

keeps_data = pytest.mark.skipif(sys.platform != "linux", reason="the system forgets what came before a reset")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="the program openssl is not installed")


class Server:
    """The other end of `sock`."""

    def __init__(self, certificate, sock, version=ssl.TLSVersion.TLSv1_3):
        self.sock, self.error = sock, None
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.maximum_version = version
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def shakes_hands(self, behind=b"", piece=READ_SIZE, pause=0.0):
        """On a thread of its own, as the client waits for it. behind: data that is sent in one piece with the last
        bytes of the handshake; piece, pause: bytes that are sent at once, and seconds between them.
        """
        try:
            while True:
                try:
                    self.tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self.sends_slowly(self.outgoing.read(), piece, pause)
                    self.incoming.write(self.sock.recv(READ_SIZE))
            self.sock.sendall(self.outgoing.read() + (self.encrypted(behind) if behind else b""))
        except OSError as error:
            self.error = error

    def sends_slowly(self, encrypted, piece, pause):
        for start in range(0, len(encrypted), piece):
            self.sock.sendall(encrypted[start : start + piece])
            time.sleep(pause)

    def encrypted(self, *texts):
        """The bytes of these texts: a record each, where they are not longer than one."""
        for each in texts:
            if each:
                self.tls.write(each)
        return self.outgoing.read()

    def closing(self):
        """The bytes that end TLS."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    def sends(self, *texts):
        self.sock.sendall(self.encrypted(*texts))

    def reads(self):
        while True:
            try:
                return self.tls.read(READ_SIZE)
            except ssl.SSLWantReadError:
                self.incoming.write(self.sock.recv(READ_SIZE))

    def resets(self):
        """Ends TCP as a process does that has not read all."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@contextlib.contextmanager
def sockets():
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), WAIT)
        far, _ = listener.accept()
    with near, far:
        far.settimeout(WAIT)
        yield near, far


@contextlib.contextmanager
def connected(certificate, name="localhost", version=ssl.TLSVersion.TLSv1_3, timeout=WAIT, **shakes):
    """A client and its server."""
    with sockets() as (near, far):
        near.settimeout(timeout)
        server = Server(certificate, far, version)
        thread = threading.Thread(target=server.shakes_hands, kwargs=shakes)
        thread.start()
        try:
            client = TLS.wrap_socket(near, server_hostname=name)
        finally:
            if sys.exc_info()[0]:
                near.close()
            thread.join(WAIT)
        client.settimeout(0)
        yield client, server


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def both(certificate, request):
    with connected(certificate[0], version=request.param) as (client, server):
        server.sends(b"hello")
        assert received(client) == b"hello"  # behind session tickets
        yield client, server


def is_ready(client, seconds=0.0):
    poller = select.poll()
    poller.register(client, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def received(client):
    """The next data, which may come behind session tickets: these are none."""
    while is_ready(client, WAIT):
        with contextlib.suppress(BlockingIOError):
            return client.receive()
    raise AssertionError("nothing came")


def test_all_records_that_have_come_are_read_at_once(both):
    client, server = both
    texts = [b"%d," % number for number in range(500)]
    server.sends(*texts)
    assert received(client) == b"".join(texts)
    with pytest.raises(BlockingIOError):
        client.receive()


@pytest.fixture(scope="module")
def pair(authority, tmp_path_factory):
    """One for all examples of a property."""
    path = str(tmp_path_factory.mktemp("pair") / "server.pem")
    authority[0].issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", authority[1])
        with connected(path) as both:
            yield both


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 3 * RECORD), max_size=6), st.integers(100, READ_SIZE), st.integers())
def test_what_is_received_is_what_was_sent_however_the_bytes_are_cut(pair, sizes, piece, seed):
    client, server = pair
    random = Random(seed)
    texts = [random.randbytes(size) for size in sizes]
    writer = threading.Thread(target=server.sends_slowly, args=(server.encrypted(*texts), piece, 0))
    writer.start()
    got = b""
    while len(got) < sum(sizes):
        got += received(client)
    writer.join(WAIT)
    assert got == b"".join(texts)


def test_what_came_with_the_end_of_the_handshake_is_received_although_the_socket_is_empty(certificate):
    with connected(certificate[0], behind=b"HTTP/1.1 101\n" + b"x" * 100) as (client, _):
        client.settimeout(WAIT)
        assert b"".join(iter(lambda: client.recv(1), b"\n")) == b"HTTP/1.1 101"
        client.settimeout(0)
        assert client.receive() == b"x" * 100


def test_both_directions_work(both):
    client, server = both
    text = b"x" * 3 * RECORD
    client.settimeout(WAIT)
    assert client.send(text) == len(text)
    got = b""
    while len(got) < len(text):
        got += server.reads()
    assert got == text
    server.sends(b"y")
    assert client.recv(10) == b"y"


@pytest.mark.parametrize("data", [b"", b"data"])
@pytest.mark.parametrize("end", ["TLS", "TLS and TCP", "TCP", pytest.param("TLS and reset", marks=keeps_data)])
def test_the_end_comes_after_the_data_before_it(both, data, end):
    client, server = both
    server.sock.sendall(server.encrypted(data) + (server.closing() if "TLS" in end else b""))
    if "TCP" in end:
        server.sock.close()
    if "reset" in end:
        wait_for(client, data)
        server.resets()
    if data:
        assert received(client) == data
    if "reset" not in end:
        assert received(client) == b""


@pytest.mark.parametrize("end", ["", "TCP", pytest.param("reset", marks=keeps_data)])
@pytest.mark.parametrize("data", [b"", b"data"])
def test_garbage_is_an_error_after_the_data_before_it(both, data, end):
    """Though nothing else comes: poll() must say that there is something to be read."""
    client, server = both
    server.sock.sendall(server.encrypted(data) + b"garbage " * 10)
    if end:
        wait_for(client, data)
        server.sock.close() if end == "TCP" else server.resets()
    if data:
        assert received(client) == data
        with pytest.raises(ssl.SSLError):
            client.send(b"a pong, say: the reason is the garbage")
    with pytest.raises(OSError if end == "reset" else ssl.SSLError):
        received(client)


def wait_for(client, data):
    """Until this much, and more, has come: a reset overtakes what has not."""
    client.settimeout(WAIT)
    eventually(lambda: len(client._sock.recv(READ_SIZE, socket.MSG_PEEK)) > len(data))
    client.settimeout(0)


def test_close_closes_the_socket(both):
    client, server = both
    client.close()
    assert client.fileno() == -1
    with contextlib.suppress(ConnectionResetError):  # where the client had not read all
        assert server.sock.recv(READ_SIZE) == b""


def test_a_handshake_ends_in_time_however_slowly_the_server_sends(certificate):
    began = time.monotonic()
    with pytest.raises(TimeoutError), connected(certificate[0], timeout=0.2, piece=10, pause=0.05):
        pass
    assert time.monotonic() - began < 0.2 + 10 * 0.05


def test_a_timeout_ends_recv(both):
    client, _ = both
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)


class Silent:
    """A sink that nothing is expected of."""

    def flush(self):
        pass

    def announce(self, *_arguments, **_fields):
        pass


def test_what_came_with_the_handshake_is_read_before_a_connection_is_lent(certificate):
    """A close frame behind Bybit's answer, on a connection that asks for nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"wss://localhost:{listener.getsockname()[1]}"

        def accept():
            sock, _ = listener.accept()
            with sock:
                server = Server(certificate[0], sock)
                server.shakes_hands()
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    request += server.reads()
                server.sends(agreement(request), Frame(Opcode.CLOSE, b"\x03\xe9going").serialize(mask=False))
                while sock.recv(READ_SIZE):
                    pass

        thread = threading.Thread(target=accept)
        thread.start()
        exchange = Exchange("linear", testnet=False, sink=Silent(), url=url)
        exchange.rejected.add("publicTrade.BTCUSDT", time.monotonic())
        exchange.reactor.start()
        try:
            with pytest.raises(ConnectionLost, match="1001 going"):
                Connection(exchange, url, {"publicTrade.BTCUSDT": batched(lambda _each: None)}, stall_timeout=0).run()
        finally:
            exchange.reactor.stop()
            exchange.reactor.join(time.monotonic() + WAIT)
            thread.join(WAIT)


# Certificates.


def test_a_server_learns_why_its_certificate_is_not_trusted(certificate, monkeypatch):
    monkeypatch.delenv("WEBSOCKET_CLIENT_CA_BUNDLE")
    with sockets() as (near, far):
        server = Server(certificate[0], far)
        thread = threading.Thread(target=server.shakes_hands)
        thread.start()
        with pytest.raises(ssl.SSLCertVerificationError):
            TLS.wrap_socket(near, server_hostname="localhost")
        thread.join(WAIT)
    assert "UNKNOWN_CA" in str(server.error)


def test_the_name_of_the_host_is_checked(certificate):
    with (
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
        connected(certificate[0], name="a.test"),
    ):
        pass


def test_certificates_are_read_once_and_again_after_one_was_not_trusted(authority, certificate, tmp_path, monkeypatch):
    bundle = tmp_path / "bundle.pem"
    monkeypatch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", str(bundle))
    trustme.CA().cert_pem.write_to_path(bundle)
    with pytest.raises(ssl.SSLCertVerificationError), connected(certificate[0]):
        pass
    authority[0].cert_pem.write_to_path(bundle)
    with connected(certificate[0]):
        bundle.write_text("")
    with connected(certificate[0]):
        pass


def test_those_that_connect_at_the_same_time_read_the_certificates_once(certificate):
    _context.cache_clear()
    together = threading.Barrier(8)

    def connect():
        together.wait(WAIT)
        with connected(certificate[0]):
            pass

    threads = [threading.Thread(target=connect) for _ in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert _context.cache_info()[:2] == (together.parties - 1, 1)


@pytest.mark.parametrize("kind", ["file", pytest.param("folder", marks=needs_openssl)])
def test_a_bundle_is_a_file_or_a_folder(authority, certificate, tmp_path, monkeypatch, kind):
    bundle = tmp_path / "bundle"
    if kind == "folder":
        bundle.mkdir()
        name = subprocess.run(
            ["openssl", "x509", "-hash", "-noout", "-in", authority[1]], capture_output=True, text=True
        ).stdout.strip()
        authority[0].cert_pem.write_to_path(bundle / f"{name}.0")
    else:
        authority[0].cert_pem.write_to_path(bundle)
    monkeypatch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", str(bundle))
    with connected(certificate[0]):
        pass


@needs_openssl
def test_new_keys_that_the_server_asks_for_are_sent(certificate):
    """OpenSSL's server updates its keys on the line "K", and asks for new ones of ours: an answer to what is read."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", certificate[0], "-key", certificate[0]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        try:
            client = eventually(lambda: dialled(port))
            types(server, b"begin")
            assert received(client) == b"begin\n"
            seen = b""
            for number in range(3):
                types(server, b"K")
                assert is_ready(client, WAIT)
                with pytest.raises(BlockingIOError):
                    client.receive()
                types(server, b"%d" % number)
                assert received(client) == b"%d\n" % number
                client.settimeout(WAIT)
                client.send(b"answer %d\n" % number)
                client.settimeout(0)
                while b"answer %d\n" % number not in seen:
                    line = server.stdout.readline()
                    assert line, seen
                    seen += line
            client.close()
        finally:
            server.kill()
    assert b"error" not in seen.lower()


def types(program, line):
    program.stdin.write(line + b"\n")
    program.stdin.flush()


def dialled(port):
    try:
        sock = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
    except ConnectionRefusedError:
        return None
    client = TLS.wrap_socket(sock, server_hostname="localhost")
    client.settimeout(0)
    return client
