"""Wakes a thread that waits in poll()."""

import socket
import threading


class Waker:
    """One thread owns it, polls fileno() and calls take() and close(); any thread may wake(). Never blocks."""

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
