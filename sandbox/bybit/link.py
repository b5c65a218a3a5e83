"""The asyncio side of one connection: the TCP connection and the WebSocket on it. On the server's thread."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from sandbox.bybit.handshake import NONSENSE, handshake_response
from sandbox.bybit.loop import LoopThread
from sandbox.bybit.script import Script
from sandbox.bybit.state import Pause, Phase
from sandbox.bybit.writer import Writer


class Link(asyncio.Protocol):
    """One TCP connection, up to whole texts from the client; what is in them is for a subclass.

    Attributes:
        path: of the upgrade request, without its query; "" before it.
        accepted, closed: time.monotonic() of when the TCP connection began and ended; `closed` is None until then.
    """

    def __init__(self, loop: LoopThread, script: Script) -> None:
        self.loop, self.script = loop, script
        self.path = ""
        self.accepted = time.monotonic()
        self.closed: float | None = None
        self._websocket = ServerProtocol()
        self._writer = Writer(loop.later)
        self._phase = Phase.HANDSHAKE
        self._pause = Pause()
        self._last_read = time.monotonic()

    @property
    def category(self) -> str:
        return self.path.removeprefix("/v5/public/")

    @property
    def writable(self) -> asyncio.Event:
        """Set while the client keeps up."""
        return self._writer.room

    @property
    def idle(self) -> float:
        """Seconds since the latest frame either way; 0 before the handshake, in a freeze and at the end."""
        if self._phase is not Phase.OPEN or self._pause.frozen:
            return 0.0
        return time.monotonic() - max(self._last_read, self._writer.last_write)

    def abort(self) -> None:
        """Closes the TCP connection without waiting for anything."""
        if self.closed is None:
            self._writer.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._writer.attach(transport)
        if self._phase is Phase.ENDED:  # dropped before it was up
            self._writer.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection has ended, or never came about (TLS)."""
        if self.closed is None:
            self.closed = time.monotonic()
            self._phase = Phase.ENDED
            self.writable.set()
            self._ended()
            self.loop.notify()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.ENDED or self.script.handshake in ("never", "never tls"):
            return
        if self._pause.frozen:
            self._pause.unread += data
            return
        self._websocket.receive_data(data)
        for event in self._websocket.events_received():
            self._last_read = time.monotonic()
            if isinstance(event, Request):
                self._handshake(event)
            elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY) and self._open:
                self._received(bytes(event.data).decode(errors="replace"))
        if not self._pause.frozen:
            self._write_websocket()

    # For the subclass.

    def _opened(self) -> None:
        """The WebSocket is up."""

    def _received(self, text: str) -> None:
        """The client has sent a text."""

    def _ended(self) -> None:
        """The TCP connection has ended."""

    @property
    def _open(self) -> bool:
        return self._phase is Phase.OPEN

    @property
    def _sending(self) -> bool:
        return not self._pause.frozen and self._phase.sends

    def _write(self, data: bytes) -> None:
        if self._sending:
            self._writer.write(data)

    def _write_websocket(self) -> None:
        """Writes what websockets has to send: handshake, pong, answer to a close frame, end of stream."""
        for data in self._websocket.data_to_send():
            if data:
                self._writer.write_now(data)
            else:
                self._phase = max(self._phase, Phase.CLOSING, key=lambda phase: phase.value)
                self._writer.close()

    def _drop(self) -> None:
        self._phase = Phase.ENDED
        self._writer.half_close()

    def _handshake(self, request: Request) -> None:
        self.path = urlsplit(request.path).path
        if self.script.handshake == "nonsense":
            self._write(NONSENSE)
            self._drop()
            return
        response = handshake_response(self._websocket, request, self.script, self.category)
        self._websocket.send_response(response)
        self._write_websocket()
        if response.status_code == 101:
            self._phase = Phase.OPEN
            self._opened()
        self.loop.notify()
