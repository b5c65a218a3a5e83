"""Opening a connection within a deadline, and keeping new ones under Bybit's limit."""

import socket
import ssl
import threading
from collections import deque
from contextlib import closing, suppress

import pytest
import websocket
from vocabulary import agreement

from relay.bybit.dial import Dial, describe, is_refusal

STEP = 0.3  # seconds for a step of connecting: as long as an attempt goes on at most, once it is abandoned
AT_ONCE = 5.0  # seconds; far less than the deadline of who waits
LONG = 60.0


class Server:
    """A TCP server without a thread: the system accepts connections, and nothing is answered unless a test does it."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(AT_ONCE)
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/v5/public/linear"

    def accept(self):
        """The server's end of the next connection, after its request."""
        peer, _ = self._listener.accept()
        peer.settimeout(AT_ONCE)
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += peer.recv(4096)
        return peer, request

    def close(self):
        self._listener.close()


def attempts():
    return [thread for thread in threading.enumerate() if thread.name.endswith(" connecting")]


def closed_by_client(peer):
    """Waits until the client has closed its end."""
    with closing(peer):
        try:
            return peer.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def server():
    with closing(Server()) as server:
        yield server
    for thread in attempts():
        thread.join(AT_ONCE)
    assert attempts() == [], "an attempt outlived its step"


@pytest.fixture
def too_late_to_interrupt(monkeypatch):
    """The attempt succeeds in the moment in which it is abandoned."""
    monkeypatch.setattr("relay.bybit.dial.interrupt", lambda ws: None)


def test_an_open_websocket_is_handed_over(server):
    dial = Dial(server.url, LONG)
    peer, request = server.accept()
    peer.sendall(agreement(request))
    ws = dial.wait(AT_ONCE)
    assert request.startswith(b"GET /v5/public/linear HTTP/1.1\r\n")
    peer.sendall(b"\x81\x05hello")
    assert ws.recv() == "hello"
    ws.shutdown()
    assert closed_by_client(peer)


def test_a_server_that_never_answers_costs_no_more_than_the_deadline(server):
    dial = Dial(server.url, LONG)
    peer, _ = server.accept()
    with pytest.raises(TimeoutError, match=r"^no connection within 0\.01 s$"):
        dial.wait(0.01)
    assert closed_by_client(peer)


def test_a_step_that_takes_too_long_fails_before_the_deadline(server):
    dial = Dial(server.url, 0.05)
    with pytest.raises(websocket.WebSocketTimeoutException):
        dial.wait(LONG)
    peer, _ = server.accept()
    assert closed_by_client(peer)


@pytest.mark.parametrize(
    "endless",
    [b"HTTP/1.1 101 OK\r\nX: ", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 999999999999\r\n\r\n"],
    ids=["header", "body"],
)
def test_an_answer_without_end_is_given_up_after_128_kibibytes(server, endless):
    dial = Dial(server.url, LONG)
    peer, _ = server.accept()
    with closing(peer):
        peer.sendall(endless)
        with suppress(OSError):  # it hangs up
            for _ in range(64):
                peer.sendall(b"x" * (1 << 20))
    with pytest.raises(
        websocket.WebSocketException, match=r"^the handshake was answered with more than 131,072 bytes$"
    ):
        dial.wait(AT_ONCE)


def test_cancel_from_another_thread_ends_the_wait_at_once(server):
    dial = Dial(server.url, LONG)
    outcome = deque()

    def wait():
        try:
            outcome.append(dial.wait(LONG))
        except Exception as error:
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    peer, _ = server.accept()  # it is in the midst of the handshake
    dial.cancel()
    waiting.join(AT_ONCE)
    assert not waiting.is_alive()
    assert repr(outcome.pop()) == "ConnectionAbortedError('stopped')"
    assert closed_by_client(peer)


def test_cancel_before_the_wait_ends_it_at_once(server):
    dial = Dial(server.url, STEP)
    dial.cancel()
    with pytest.raises(ConnectionAbortedError):
        dial.wait(LONG)


def test_a_connection_that_opens_after_the_deadline_is_closed(server, too_late_to_interrupt):
    dial = Dial(server.url, LONG)
    peer, request = server.accept()
    with pytest.raises(TimeoutError):
        dial.wait(0)
    peer.sendall(agreement(request))
    assert closed_by_client(peer)


def test_a_connection_that_opens_after_cancel_is_closed(server, too_late_to_interrupt):
    dial = Dial(server.url, LONG)
    peer, request = server.accept()
    dial.cancel()
    peer.sendall(agreement(request))
    with pytest.raises(ConnectionAbortedError):
        dial.wait(LONG)
    assert closed_by_client(peer)


def test_a_connection_that_opened_before_cancel_is_closed(server):
    dial = Dial(server.url, LONG)
    peer, request = server.accept()
    peer.sendall(agreement(request))
    for thread in attempts():
        thread.join(AT_ONCE)
    dial.cancel()
    with pytest.raises(ConnectionAbortedError):
        dial.wait(LONG)
    assert closed_by_client(peer)


def test_cancel_after_a_failure_reports_the_failure_and_may_be_repeated(server):
    server.close()
    dial = Dial(server.url, STEP)
    for thread in attempts():
        thread.join(AT_ONCE)
    dial.cancel()
    dial.cancel()
    with pytest.raises(ConnectionRefusedError):
        dial.wait(LONG)


def test_the_thread_of_an_attempt_bears_the_name_of_its_stream(server):
    dial = Dial(server.url, STEP)
    assert [thread.name for thread in attempts()] == [f"{threading.current_thread().name} connecting"]
    dial.cancel()


# Why a connection failed.


def untrusted(message):
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = message
    return error


def status(code):
    return websocket.WebSocketBadStatusException("Handshake status %d %s", code, "x" * 5000)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            status(403),
            "the handshake was answered with HTTP 403 (Bybit refuses this address: usually its region, or too many "
            "connections; that ban ends by itself)",
        ),
        (status(429), "the handshake was answered with HTTP 429 (too many connections from this address)"),
        (status(503), "the handshake was answered with HTTP 503"),
        (
            socket.gaierror(-2, "Name or service not known"),
            "the host name stream.bybit.com cannot be resolved: [Errno -2] Name or service not known",
        ),
        (
            websocket.WebSocketAddressException("no\naddress"),
            "the host name stream.bybit.com cannot be resolved: no address",
        ),
        (untrusted("self-signed certificate"), "its certificate is not trusted: self-signed certificate"),
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
        (TimeoutError("no connection within 12 s"), "no connection within 12 s"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("<HTML>\n" * 1000), "<HTML> " * 28 + "<HTM…"),
    ],
)
def test_a_failed_connection_is_described_for_the_operator(error, reason):
    assert describe(error, "wss://stream.bybit.com/v5/public/linear") == reason


@pytest.mark.parametrize(
    ("error", "refusal"),
    [(status(403), True), (status(429), True), (status(503), False), (ConnectionRefusedError(), False)],
)
def test_what_is_a_refusal_of_this_address(error, refusal):
    assert is_refusal(error) is refusal
