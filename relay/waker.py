"""Wakes a thread that waits in poll()."""

import select
import socket
import threading
from typing import Any


class Waker:
    """One thread owns it and calls all but wake(): either wait(), or take() after it has polled fileno(). Any thread
    may wake(), which never blocks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # wake() must not write to a descriptor that close() has given back
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._closed = False
        self.woken = False  # whether take() has something to take; its owner reads it

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        with self._lock:
            if not self.woken and not self._closed:
                self.woken = True
                self._writer.send(b"\0")

    def wait(self, seconds: float, sock: Any = None, events: int = select.POLLIN) -> bool:
        """Waits until wake() is called or `sock` has one of `events`, or for `seconds`. Returns whether it was one of
        these two. POLLHUP and POLLERR are always among the events.
        """
        poller = select.poll()
        poller.register(self, select.POLLIN)
        if sock is not None:
            poller.register(sock, events)
        ready = poller.poll(max(0.0, seconds) * 1000)
        self.take()
        return bool(ready)

    def take(self) -> bool:
        """Whether wake() was called since the last time."""
        if not self.woken:
            return False
        with self._lock:
            self.woken = False
            self._reader.recv(1)
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._reader.close()
            self._writer.close()
