"""TLS whose socket is read by one system call for all that has come.

ssl.SSLSocket reads each record by itself, its header and then its body, and nearly every message of Bybit's is a record
of its own. Here the bytes come at once, and are decrypted from memory.
"""

import math
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from threading import Lock
from time import monotonic
from typing import Any

READ_SIZE = 65536  # bytes asked of the socket at once
RECORD = 16384  # bytes of a record at most, decrypted


class TLSSocket:
    """What websocket-client uses of a socket: recv, send, fileno, settimeout, gettimeout, shutdown, close, _closed. And
    receive() for whoever reads afterwards.

    One thread at a time calls these; any may shutdown(). The constructor makes the handshake. That and recv() wait for
    twice the timeout of `sock` at most, send() for one timeout for each part that the socket takes. Raises OSError:
    TimeoutError, ssl.SSLError and others.
    """

    _closed = False  # websocket-client closes what it is told is open

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_hostname: str) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()  # encrypted
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._unsent = b""  # encrypted, goes out before all else
        self._error: ssl.SSLError | None = None  # what the next receive() is to raise
        self.fileno, self.close, self.shutdown = sock.fileno, sock.close, sock.shutdown
        self.settimeout, self.gettimeout = sock.settimeout, sock.gettimeout
        try:
            self._complete(self._tls.do_handshake)
        except ssl.SSLError:
            with suppress(OSError):
                self._flush()  # the alert, which tells the server why
            raise
        self._flush()

    def receive(self) -> bytes:
        """All that has come, decrypted; b"" at the end. Raises BlockingIOError if nothing has.

        To be called once before the socket is polled: bytes that came together with the handshake's are here already.
        """
        if self._error:
            return _end(self._error)
        try:
            self._fill()
        except BlockingIOError:
            if not (self._incoming.pending or self._tls.pending()):
                raise
        read, incoming = self._tls.read, self._incoming
        parts: list[bytes] = []
        error: ssl.SSLError | None = None
        try:
            while part := read(RECORD):
                parts.append(part)
                if not incoming.pending:
                    break
            else:
                error = ssl.SSLZeroReturnError()
        except ssl.SSLWantReadError:
            pass  # the rest of a record is on its way
        except ssl.SSLError as other:
            error = other.with_traceback(None)  # it refers to this frame: a cycle, which would keep all this for long
        if self._outgoing.pending:  # such as new keys, which the peer asks for now and then
            with suppress(OSError):  # what a full socket does not take goes out with the next send()
                self._flush()
        if not parts:
            if error:
                return _end(error)
            raise BlockingIOError
        if error:
            self._error = error
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)  # so poll() says at once that there is something to be read
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def recv(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end."""
        try:
            data: bytes = self._complete(self._tls.read, size)
        except ssl.SSLError as error:
            return _end(error)
        return data

    def send(self, data: bytes) -> int:
        """Sends all of it. After an error the connection is of no use."""
        if self._error:
            _end(self._error)  # raises what was read, as that is why the connection ends; not where it was a clean end
        self._complete(self._tls.write, data)
        self._flush()
        return len(data)

    def _complete(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Does what may need an answer of the peer first, such as a handshake."""
        deadline = monotonic() + (self._sock.gettimeout() or math.inf)
        while True:
            try:
                return act(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
            if monotonic() >= deadline:  # a peer that sends a byte now and then
                raise TimeoutError("timed out")
            self._fill()

    def _fill(self) -> None:
        if encrypted := self._sock.recv(READ_SIZE):
            self._incoming.write(encrypted)
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]


def _end(error: ssl.SSLError) -> bytes:
    """What reading returns where the peer has closed TLS, or TCP without it. All else is raised."""
    if isinstance(error, ssl.SSLZeroReturnError | ssl.SSLEOFError):
        return b""
    try:
        raise error
    finally:
        del error  # its traceback leads here: a cycle


def receiver(sock: Any) -> Callable[[], bytes]:
    """TLSSocket.receive(), or what does the same without TLS, which only tests and the sandbox do."""
    return sock.receive if isinstance(sock, TLSSocket) else partial(sock.recv, READ_SIZE)


class TLS:
    """What websocket-client takes for an ssl.SSLContext. All connections share one: the certificates of a system take
    more than a megabyte.
    """

    _lock = Lock()  # only one of those that connect at the same time makes it

    @classmethod
    def wrap_socket(cls, sock: socket.socket, server_hostname: str, **_options: Any) -> TLSSocket:
        """As that of ssl.SSLContext, for a client. Any thread."""
        with cls._lock:
            context = _context(os.environ.get("WEBSOCKET_CLIENT_CA_BUNDLE", ""))
        try:
            return TLSSocket(sock, context, server_hostname)
        except ssl.SSLCertVerificationError:
            _context.cache_clear()  # the certificates may have changed since they were read
            raise


@lru_cache(maxsize=1)
def _context(bundle: str) -> ssl.SSLContext:
    """Trusts what websocket-client would. bundle: a file or a folder of certificates; where there is none, the
    system's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if os.path.isfile(bundle):
            context.load_verify_locations(cafile=bundle)
        elif os.path.isdir(bundle):
            context.load_verify_locations(capath=bundle)
        else:
            context.load_default_certs()
    except OSError as error:
        raise OSError(f"WEBSOCKET_CLIENT_CA_BUNDLE={bundle} cannot be used: {error}") from error
    if keys := os.environ.get("SSLKEYLOGFILE"):
        context.keylog_filename = keys
    return context
