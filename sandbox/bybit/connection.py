"""The asyncio side of one connection: the TCP connection, the WebSocket, and the faults to hit the client with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from sandbox.bybit.dialect import Dialect, Reply
from sandbox.bybit.handshake import NONSENSE, handshake_response
from sandbox.bybit.loop import LoopThread, on_loop
from sandbox.bybit.script import Script
from sandbox.bybit.state import Delivery, Pause, Phase
from sandbox.bybit.wire import binary_frame, text_frame, topic_of
from sandbox.bybit.writer import CLOSE_TIMEOUT, Writer

if TYPE_CHECKING:
    from sandbox.bybit.sources import Source


class Connection(asyncio.Protocol):
    """One TCP connection. The faults and `send*` may be called from any thread; all else is the server's thread.

    Attributes:
        path: of the upgrade request, without its query; "" before it.
        accepted, closed: time.monotonic() of when the TCP connection began and ended; `closed` is None until then.
        requests: the client's requests, parsed, in order.
        feeds: topics subscribed now, each with what feeds it.
    """

    def __init__(self, loop: LoopThread, source: Source, script: Script, conn_id: str, record: bool) -> None:
        self.loop, self.script = loop, script
        self.path = ""
        self.accepted = time.monotonic()
        self.closed: float | None = None
        self.requests: list[dict[str, object]] = []
        self.feeds: dict[str, object] = {}
        self._source = source
        self._dialect = Dialect(script, conn_id, source.knows)
        self._websocket = ServerProtocol()
        self._writer = Writer(loop.later)
        self._delivery = Delivery(record)
        self._phase = Phase.HANDSHAKE
        self._pause = Pause()
        self._last_read = time.monotonic()

    def __repr__(self) -> str:
        end = "open" if self.closed is None else f"closed after {self.closed - self.accepted:.3f} s"
        return f"<{self.path or 'no handshake'} {end}, {len(self.requests)} requests, {self.count} data, {self.topics}>"

    @property
    def category(self) -> str:
        return self._dialect.category

    @property
    def topics(self) -> set[str]:
        """The topics now subscribed (and acknowledged, if acknowledgements come first)."""
        return set(self.feeds)

    @property
    def count(self) -> int:
        """Data frames sent."""
        return self._delivery.count

    @property
    def sent(self) -> list[str]:
        """The data frames sent, if the server records."""
        return self._delivery.texts

    @property
    def writable(self) -> asyncio.Event:
        """Set while the client keeps up."""
        return self._writer.room

    @on_loop
    def drop(self) -> None:
        """Ends the TCP connection with FIN, without a close frame, after what was already sent."""
        self._phase = Phase.ENDED
        self._writer.half_close()

    @on_loop
    def reset(self) -> None:
        """Ends the TCP connection with RST."""
        self._phase = Phase.ENDED
        self._writer.reset()

    @on_loop
    def close(self, code: int = 1000, reason: str = "") -> None:
        """Sends a close frame; the TCP connection ends when the client has answered it, or soon after."""
        if self._phase is Phase.OPEN and not self._pause.frozen:
            self._websocket.send_close(code, reason)
            self._write_websocket()
            self._phase = Phase.CLOSING
            self.loop.later(CLOSE_TIMEOUT, self._writer.abort)

    @on_loop
    def freeze(self) -> None:
        """Nothing more is read, sent or answered, and the TCP connection stays open."""
        self._writer.flush()
        self._pause.frozen = True

    @on_loop
    def freeze_inside_frame(self) -> None:
        """Sends the header and the first half of a data frame (the last one again), then freezes."""
        text = self._delivery.last
        frame = text_frame(text)
        middle = len(frame) - len(text.encode()) // 2
        self._write(frame[:middle])
        self._pause.unsent = text, frame[middle:]
        self.freeze()

    @on_loop
    def silence(self) -> None:
        """No more data; requests and pings are still answered."""
        self._pause.silent = True

    @on_loop
    def resume(self) -> None:
        """Ends freeze and silence; the data of the meantime is lost, so topics of the market begin with a snapshot."""
        pause, self._pause = self._pause, Pause()
        if pause.unsent:
            text, rest = pause.unsent
            self._write(rest)
            self._count(text)
        if pause.unread:
            self.data_received(pause.unread)
        self._source.resume(self, list(self.feeds))

    @on_loop
    def send(self, text: str) -> None:
        """Sends a text frame to this connection, even if silenced."""
        self._write(text_frame(text))
        if topic_of(text):
            self._count(text)

    @on_loop
    def send_binary(self, data: bytes) -> None:
        """Sends a binary frame."""
        self._write(binary_frame(data))

    @on_loop
    def send_raw(self, data: bytes) -> None:
        """Puts bytes on the socket as they are, for broken frames."""
        self._write(data)

    # From here on the server's thread.

    @property
    def idle(self) -> float:
        """Seconds since the latest frame either way; 0 before the handshake, in a freeze and at the end."""
        if self._phase is not Phase.OPEN or self._pause.frozen:
            return 0.0
        return time.monotonic() - max(self._last_read, self._writer.last_write)

    def data(self, text: str, frame: bytes) -> None:
        """Sends a data frame (its text, its bytes) unless silenced or frozen."""
        if not self._pause.silent and self._sending:
            self._write(frame)
            self._count(text)

    def abort(self) -> None:
        """Closes the TCP connection without waiting for anything."""
        if self.closed is None:
            self._writer.abort()

    @property
    def _sending(self) -> bool:
        return not self._pause.frozen and self._phase.sends

    def _write(self, data: bytes) -> None:
        if self._sending:
            self._writer.write(data)

    def _count(self, text: str) -> None:
        """Counts a data frame and does what is due after it."""
        if not self._sending:
            return
        for reply in self._delivery.add(text):
            self._write(text_frame(reply))
        count, script = self.count, self.script
        for after, payload in script.inject:
            if after == count:
                self.send(payload) if isinstance(payload, str) else self.send_binary(payload)
        if script.end and script.end_after == count:
            self._end()

    def _end(self) -> None:
        """The end that the script wants."""
        if self.script.end == "close":
            self.close(self.script.close_code)
        elif self.script.end:
            getattr(self, self.script.end.replace(" ", "_"))()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._writer.attach(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection has ended, or never came about (TLS)."""
        if self.closed is None:
            self.closed = time.monotonic()
            self._phase = Phase.ENDED
            self.writable.set()
            self._source.leave(self, list(self.feeds))
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
            elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY):
                self._request(bytes(event.data).decode(errors="replace"))
        if not self._pause.frozen:
            self._write_websocket()

    def _write_websocket(self) -> None:
        """Writes what websockets has to send: handshake, pong, answer to a close frame, end of stream."""
        for data in self._websocket.data_to_send():
            if data:
                self._writer.write_now(data)
            else:
                self._phase = max(self._phase, Phase.CLOSING, key=lambda phase: phase.value)
                self._writer.close()

    def _handshake(self, request: Request) -> None:
        self.path = urlsplit(request.path).path
        self._dialect.category = self.path.removeprefix("/v5/public/")
        if self.script.handshake == "nonsense":
            self._write(NONSENSE)
            self.drop()
            return
        response = handshake_response(self._websocket, request, self.script, self.category)
        self._websocket.send_response(response)
        self._write_websocket()
        if response.status_code == 101:
            self._phase = Phase.OPEN
            if self.script.end and not self.script.end_after:
                self._end()
        self.loop.notify()

    def _request(self, text: str) -> None:
        if self._phase is not Phase.OPEN:
            return
        reply = self._dialect.answer(text, time.time_ns() // 1_000_000)
        if reply.request is not None:
            self.requests.append(reply.request)
            self.loop.notify()
        if not reply.text:
            self.drop()
            return
        self._source.leave(self, reply.end)
        for topic in reply.end:
            self.feeds.pop(topic, None)
        if reply.acknowledges:
            self._acknowledge(reply)
        else:
            self._write(text_frame(reply.text))

    def _acknowledge(self, reply: Reply) -> None:
        """Answers a (un)subscription when the script says, and lets its data flow before or after."""
        delay, before = self.script.ack_delay, self.script.data_before_ack
        if before and reply.begin:
            if delay is not None:
                self._delivery.waiting.append((self.count + before, reply.text))
            self._begin(reply.begin)
        elif delay is not None:

            def answer() -> None:
                self._write(text_frame(reply.text))
                self._begin(reply.begin)

            self.loop.later(delay, answer)

    def _begin(self, topics: Iterable[str]) -> None:
        """Lets the data of those topics flow that were not unsubscribed meanwhile."""
        wanted = [topic for topic in topics if topic in self._dialect.requested]
        if wanted and self._phase.sends:
            self.feeds.update(dict.fromkeys(wanted, self._source.begin(self, wanted)))
            self.loop.notify()
