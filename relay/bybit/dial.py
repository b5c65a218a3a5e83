"""Opens a WebSocket within a deadline, whatever hangs.

Of websocket-client are used the public create_connection(), and the fact that connect() reads the answer to the
handshake from `sock` alone.
"""

import socket
import ssl
import threading
from typing import Any
from urllib.parse import urlsplit

import websocket

from relay.bybit.tls import TLS
from relay.log import shorten

MAX_ANSWER = 1 << 17  # bytes of the answer to a handshake: its headers, and the page of one that is refused


class Answer:
    """A socket from which only so much is read. It ends the handshake then."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self._left = sock, MAX_ANSWER

    def recv(self, size: int) -> bytes:
        data = self.sock.recv(size)
        self._left -= len(data)
        if self._left < 0:
            raise websocket.WebSocketException(f"the handshake was answered with more than {MAX_ANSWER:,} bytes")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class BoundedWebSocket(websocket.WebSocket):
    """websocket-client reads the answer to a handshake whatever its length. This one reads no more than MAX_ANSWER."""

    _sock: Any = None
    _connecting = False

    def connect(self, url: str, **options: Any) -> None:
        self._connecting = True
        super().connect(url, **options)
        if isinstance(self._sock, Answer):
            self._sock = self._sock.sock

    @property
    def sock(self) -> Any:
        return self._sock

    @sock.setter
    def sock(self, sock: Any) -> None:
        self._sock = Answer(sock) if sock and self._connecting else sock


class Dial:
    """One attempt to connect, on a thread of its own: a name that does not resolve cannot be interrupted.

    The connection's thread makes it and waits; any thread may cancel(). Whoever comes too late for the outcome leaves
    it to the attempt's own thread, which closes what it has opened: _lock guards that decision.
    """

    def __init__(self, url: str, step_timeout: float) -> None:
        """step_timeout: seconds for each of name resolution (where possible), TCP, TLS and handshake. Raises OSError if
        the system has no thread to give, as a container with a limit on them.
        """
        self._url, self._step_timeout = url, step_timeout
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._outcome: websocket.WebSocket | Exception | None = None
        self._abandoned = False
        self._ws: websocket.WebSocket | None = None  # set before anything is opened
        name = f"{threading.current_thread().name} connecting"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError as error:
            raise OSError(f"no thread to connect with: {error}") from error

    def wait(self, seconds: float) -> websocket.WebSocket:
        """Raises what connecting raised, or TimeoutError, or ConnectionAbortedError after cancel()."""
        in_time = self._done.wait(seconds)
        with self._lock:
            outcome, self._outcome = self._outcome, None
            abandoned, self._abandoned = self._abandoned, True
        if isinstance(outcome, Exception):
            raise outcome
        if abandoned:
            if outcome is not None:
                outcome.shutdown()
            raise ConnectionAbortedError("stopped")
        if not in_time and outcome is None:
            interrupt(self._ws)
            raise TimeoutError(f"no connection within {seconds:g} s")
        assert outcome is not None
        return outcome

    def cancel(self) -> None:
        """Ends the attempt, and the connection if it was handed over already. Any thread, any time, never blocks."""
        with self._lock:
            self._abandoned = True
        self._done.set()
        interrupt(self._ws)

    def _run(self) -> None:
        outcome: websocket.WebSocket | Exception
        try:
            outcome = websocket.create_connection(
                self._url, timeout=self._step_timeout, class_=self._make, sslopt={"context": TLS}
            )
        except Exception as error:
            outcome = error
        with self._lock:
            if not self._abandoned:
                self._outcome = outcome
                self._done.set()
                return
        if not isinstance(outcome, Exception):
            outcome.shutdown()

    def _make(self, **options: Any) -> websocket.WebSocket:
        """Keeps the WebSocket while it is being opened: a handshake that is never answered can be interrupted."""
        self._ws = BoundedWebSocket(**options)
        return self._ws


def interrupt(ws: websocket.WebSocket | None) -> None:
    """Ends what another thread waits for on this WebSocket, if it has a socket. Any thread; never blocks."""
    if ws and (sock := ws.sock):
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed already


def is_refusal(error: BaseException) -> bool:
    """Whether Bybit has answered that it does not want this address: its region, or too many connections."""
    return isinstance(error, websocket.WebSocketBadStatusException) and error.status_code in (403, 429)


def describe(error: BaseException, url: str) -> str:
    """Why a connection failed, in words for the operator."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        hint = {
            403: " (Bybit refuses this address: usually its region, or too many connections; that ban ends by itself)",
            429: " (too many connections from this address)",
        }
        return f"the handshake was answered with HTTP {error.status_code}{hint.get(error.status_code, '')}"
    if isinstance(error, websocket.WebSocketAddressException | socket.gaierror):
        return f"the host name {urlsplit(url).hostname} cannot be resolved: {shorten(error)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return shorten(error) or type(error).__name__
