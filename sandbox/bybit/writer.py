"""The sending side of one TCP connection. On the server's thread."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable

OUTBOX_HIGH = 1 << 20  # bytes a connection may lag before a replay at full speed waits
OUTBOX_MAX = 64 << 20  # bytes a connection may lag before it is cut
CLOSE_TIMEOUT = 0.2  # seconds a peer has to answer a FIN or a close frame
WRITTEN_POLL = 0.005  # seconds between two checks whether everything is written

Later = Callable[[float, Callable[[], None]], None]  # (delay in seconds, action); 0 = at the end of this loop turn


class Writer:
    """Joins what one turn of the loop sends into one write, and ends the TCP connection in three ways.

    Attributes:
        last_write: time.monotonic() of the latest write.
        room: set while the peer keeps up with what is written.
    """

    def __init__(self, later: Later) -> None:
        self.last_write = time.monotonic()
        self.room = asyncio.Event()
        self.room.set()
        self._later = later
        self._transport: asyncio.Transport | None = None
        self._outbox: list[bytes] = []

    def attach(self, transport: asyncio.Transport) -> None:
        """The TCP connection (and TLS) is up."""
        self._transport = transport
        transport.set_write_buffer_limits(high=OUTBOX_HIGH)

    def write(self, data: bytes) -> None:
        """Sends at the end of this turn of the loop."""
        if self._transport is None:
            return
        self.last_write = time.monotonic()
        self._outbox.append(data)
        if len(self._outbox) == 1:
            self._later(0, self.flush)

    def write_now(self, data: bytes) -> None:
        """Sends at once, after what waits."""
        if self._transport is not None:
            self.last_write = time.monotonic()
            self.flush()
            self._transport.write(data)

    def flush(self) -> None:
        """Hands to the transport what waits. A peer that lags too far is cut."""
        waiting = b"".join(self._outbox)
        self._outbox.clear()
        if waiting and self._transport is not None and not self._transport.is_closing():
            self._transport.write(waiting)
            if self._transport.get_write_buffer_size() > OUTBOX_MAX:
                self.reset()

    def close(self) -> None:
        """Ends the TCP connection after what waits."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def half_close(self) -> None:
        """Sends what waits, then FIN. The peer should close its end; if it does not, the connection is aborted."""
        self.flush()
        self._send_fin(time.monotonic() + CLOSE_TIMEOUT)

    def _send_fin(self, deadline: float) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() and time.monotonic() < deadline:
            self._later(WRITTEN_POLL, lambda: self._send_fin(deadline))
            return
        try:
            self._transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer was faster
        self._later(CLOSE_TIMEOUT, self.abort)

    def reset(self) -> None:
        """Ends the TCP connection with RST, after what waits."""
        self.flush()
        if self._transport is not None and not self._transport.is_closing():
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()

    def abort(self) -> None:
        """Ends the TCP connection without waiting for anything."""
        if self._transport is not None:
            self._transport.abort()
