"""The stand-in's REST, on the same port as its WebSocket. On the server's thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol
from urllib.parse import urlsplit

from sandbox.bybit.catalogue import Catalogue
from sandbox.bybit.script import RestScript
from sandbox.bybit.wire import compact

START = b"GET /v5/market/"  # of a request; that of a WebSocket is another
PATH = "/v5/market/instruments-info"
HEAD_END = b"\r\n\r\n"
DRIP = 0.02  # seconds between two bytes
PIECE = b" " * 65_536  # of an answer without an end


class Server(Protocol):
    """What REST needs of the server.

    Attributes:
        rest: how the next requests are answered.
        rest_requests: the queries so far.
    """

    rest: RestScript
    rest_requests: list[str]
    catalogue: Catalogue


class Rest(asyncio.Protocol):
    """One connection of a REST client; it may make several requests, one after the other."""

    def __init__(self, server: Server, later: Callable[[float, Callable[[], None]], None]) -> None:
        self._server, self._later = server, later
        self._unread = b""
        self._waits = False  # for an answer that comes later, or has no end
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unread += data
        self._next()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def _next(self) -> None:
        """Answers the next request, if it is whole."""
        head, end, rest = self._unread.partition(HEAD_END)
        if not end or self._waits:
            return
        self._unread, self._waits = rest, True
        url = urlsplit(head.split(b" ", 2)[1].decode(errors="replace"))
        self._server.rest_requests.append(url.query)
        script = self._server.rest
        self._later(script.delay, lambda: self._answer(url.path, url.query, script))

    def _answer(self, path: str, query: str, script: RestScript) -> None:
        if self._transport.is_closing() or script.body == "hang":
            return
        if script.body in ("drip", "flood"):
            self._write(head_of(200, script))
            self._go_on(script.body)
            return
        status = script.status if path == PATH else 404
        text = "<html>not here</html>"
        if status == 200:
            answer = self._server.catalogue.answer(query, script, time.time_ns() // 1_000_000)
            text = compact(answer) if script.body == "json" else "<html>{garbage\xff"
        body = text.encode()
        self._write(head_of(status, script, f"Content-Length: {len(body)}") + body)
        self._waits = False
        self._next()

    def _go_on(self, how: str) -> None:
        """An answer without an end: byte by byte, or as fast as it is read."""
        if self._transport.is_closing():
            return
        if not self._full:
            self._write(b" " if how == "drip" else PIECE)
        self._later(DRIP if how == "drip" else 0.001, lambda: self._go_on(how))

    def _write(self, data: bytes) -> None:
        self._transport.write(data)


class Entrance(asyncio.Protocol):
    """A connection until its first bytes tell what it is: of a REST client, or of a WebSocket.

    Args:
        websocket: makes what takes it over. Called too when it ends before that.
        rest: the same for REST.
        guests: those of the connections that are no WebSocket's, or not yet; to be closed at the end.
    """

    def __init__(
        self,
        websocket: Callable[[], asyncio.Protocol],
        rest: Callable[[], asyncio.Protocol],
        guests: set[asyncio.Transport],
    ) -> None:
        self._websocket, self._rest, self._guests = websocket, rest, guests
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._guests.add(transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) < len(START) and START.startswith(self._data):
            return
        if self._data.startswith(START):
            protocol = self._rest()
        else:
            self._guests.discard(self._transport)
            protocol = self._websocket()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._websocket().connection_lost(exc)


def head_of(status: int, script: RestScript, *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json; charset=utf-8"]
    lines += [f"{name}: {value}" for name, value in script.headers]
    return "\r\n".join([*lines, *fields, "", ""]).encode()
