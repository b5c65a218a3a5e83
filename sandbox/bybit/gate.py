"""A port on which the stand-in is reached, which can refuse connections for a while."""

from __future__ import annotations

import socket
from collections.abc import Callable

from sandbox.bybit.loop import LoopThread

BACKLOG = 512  # connections the kernel keeps until they are accepted


class Gate:
    """One port. Opened on any thread; all else is the server's thread.

    Args:
        port: 0 = a free one.
        accepted: called with each connection and the gate.

    Attributes:
        hangs: connections are accepted and then left alone.
    """

    def __init__(self, loop: LoopThread, host: str, port: int, accepted: Callable[[socket.socket, Gate], None]) -> None:
        self.host, self.port = host, port
        self.hangs = False
        self._loop, self._accepted = loop, accepted

    def open(self) -> None:
        """Listens. Raises OSError: the port is taken."""
        self._socket = socket.create_server((self.host, self.port), backlog=BACKLOG)
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]

    def begin(self) -> None:
        """Accepts connections from now on."""
        self._loop.watch(self._socket, self._accept)

    def refuse(self) -> None:
        """Refuses connections until `back`. The port stays ours: bound, but not listening."""
        self.close()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((self.host, self.port))

    def back(self) -> None:
        """Ends `refuse` and `hangs`, or does nothing."""
        self.hangs = False
        self._loop.unwatch(self._socket)
        self._socket.setblocking(False)
        self._socket.listen(BACKLOG)
        self.begin()

    def close(self) -> None:
        self._loop.unwatch(self._socket)
        self._socket.close()

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                client, _ = self._socket.accept()
            except OSError:  # there is no more, or it left before it was accepted
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._accepted(client, self)
