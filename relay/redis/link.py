"""One life of a connection to Redis: the socket, and the lock that all who use it take.

Threads: readers of Bybit call flush(), which sends what the socket takes at once, and give_way(); the publisher's
thread calls the rest and does all that can take time. Nobody waits for the network or logs while holding the lock, and
flush() takes the lock only when it is free, so no reader ever waits for it.

redis-py makes the connection (names, TLS, AUTH, SELECT); then its socket is driven from here, because its own way of
publishing costs several times more and its retries send whole pipelines again. This relies on two
internals, checked in tests/test_contracts.py: Connection._get_socket(), and that nothing is read ahead.
"""

import fcntl
import select
import ssl
import struct
import termios
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, TypeVar

import redis

from relay.events import STATE_EXPIRY
from relay.redis.pipeline import Pipeline, Unavailable
from relay.redis.progress import Progress
from relay.redis.resp import Query
from relay.redis.role import Client
from relay.waker import Waker

T = TypeVar("T")

# Seconds of give_way().
YIELD = 0.005  # while the backlog is crowded
MAX_WAIT = 1.0  # for room, while it is half full
CHECK_EVERY = 0.1  # between two checks of whether waiting still helps
# Seconds without a reply after which Redis counts as hanging: then nobody gives way to it.
SILENCE = 1.0
# Bytes of replies read at once; TLS gives at most one record of 16 KiB.
CHUNK = 16384
# flush() reads replies only when this many are due, or for so long; the last ones the publisher's thread reads.
LAZY_REPLIES, LAZY_SECONDS = 64, 0.2

# What Redis and the network do; all else is a bug. UnicodeError: the host is no name of a host.
REDIS_ERRORS = (OSError, UnicodeError, redis.RedisError)
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True)
class Timeouts:
    """Seconds.

    connect: for Redis to accept a connection.
    reply: for Redis to reply to whatever it was sent; a slow link that still carries it gets more (Progress).
    retry, retry_max: between two attempts to connect; the first, doubling to the last.
    wait: that the publisher's thread watches the socket at once, at most.
    idle: between two turns of that thread when nothing happens, at most.
    probe: between two probes of Redis's role and subscribers, about.
    grace: that a backlog waits for the subscribers that a restarted Redis had before.
    state_expiry: until the state hash is gone when nobody writes it any more.
    """

    connect: float = 2.0
    reply: float = 5.0
    retry: float = 0.05
    retry_max: float = 1.0
    wait: float = 0.2
    idle: float = 1.25
    probe: float = 1.0
    grace: float = 2.0
    state_expiry: int = STATE_EXPIRY


DEFAULT_TIMEOUTS = Timeouts()


class StoodBy(Exception):
    """Another instance publishes from now on: this life was ended from inside."""


class Link:
    """A live connection. Whoever holds its lock owns the pipeline.

    open: whether messages may be sent; while it is False only queries are. Written under the lock.
    error: what ended the connection. Written under the lock.
    client: this connection as Redis knows it, once Redis has told. Written under the lock.
    """

    def __init__(self, connection: redis.Connection, pipeline: Pipeline, waker: Waker, timeouts: Timeouts):
        self.open = False
        self.error: Exception | None = None
        self.client: Client | None = None
        self._is_over = False  # whether what was in flight waits again
        self._pipeline, self._backlog = pipeline, pipeline.backlog
        self._waker, self._timeouts = waker, timeouts
        sock: Any = connection._get_socket()
        sock.settimeout(0)
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(self._sock)
        self._lock = threading.Lock()
        self._unsent: bytes | memoryview = b""  # what the socket has not taken yet
        self._progress = Progress(timeouts.reply, monotonic())
        # Seconds since the last reply in which the publisher's thread watched the socket for one: not those in which
        # this process, or this thread of it, did not get to run. Any thread resets it: at worst the next reply does.
        self._silence = 0.0
        self._relieved = threading.Event()  # the backlog is not half full, or this life has ended

    def flush(self) -> bool:
        """Sends what waits, as far as the socket takes it now. Any thread. Returns whether give_way() has no reason.

        If another thread holds the lock, it sends these messages too: every holder checks the backlog again after it
        has released the lock. flush() does so once, then leaves the rest to the publisher's thread: no reader is to be
        kept sending for all others.
        """
        for _ in range(2):
            if not self._backlog.waiting_bytes or not self.open:
                return True
            if not self._lock.acquire(False):
                break
            try:
                if not self.open:
                    return True
                all_sent = self._send()
                if len(self._pipeline.in_flight) >= LAZY_REPLIES or monotonic() - self._progress.since >= LAZY_SECONDS:
                    self._receive()  # behind the message, which is not to wait for it
                    all_sent = all_sent or self._send()
                if not all_sent:
                    self._waker.wake()
                    break
            except Exception as error:  # the publisher's thread ends this life
                self.open, self.error = False, error
                self._waker.wake()
                return True
            finally:
                self._lock.release()
        else:
            self._waker.wake()
        return False

    def give_way(self) -> None:
        """Back-pressure, after a flush(). Readers of Bybit only: nothing but their own connection waits for them.

        Many busy readers can keep the interpreter from the thread that sends, so they yield to it. When the buffer is
        half full they wait for room, as TCP holds what they do not read; not earlier, as the buffer holds more than
        TCP. Nobody waits for a Redis that is away or hangs, nor while what is published does not go there.
        """
        backlog = self._backlog
        if backlog.waiting_bytes <= backlog.crowded or not self._is_relieving:
            return
        began = monotonic()
        if backlog.waiting_bytes <= backlog.half_full:
            sleep(YIELD)
        while backlog.waiting_bytes > backlog.half_full and self._is_relieving and monotonic() - began < MAX_WAIT:
            # Another thread may clear an event that was meant for this one: it looks again after CHECK_EVERY.
            self._relieved.clear()
            if backlog.waiting_bytes > backlog.half_full and self.open:
                self._relieved.wait(CHECK_EVERY)
        backlog.count_waited(monotonic() - began)

    @property
    def _is_relieving(self) -> bool:
        """Whether the backlog gets shorter by itself, as far as is known."""
        return self.open and self._silence < SILENCE and not self._backlog.diverted

    # The publisher's thread.

    def fileno(self) -> int:
        return int(self._sock.fileno())

    def service(self, queries: Sequence[Query] = ()) -> bool:
        """One turn: sends queries, reads replies, sends what flush() left. Returns whether all is sent.

        Raises what ended the connection: OSError, Unavailable, TimeoutError.
        """
        with self._lock:
            if self.error:
                raise self.error
            try:
                is_first = not self._pipeline.in_flight
                for query in queries:
                    self._unsent = bytes(self._unsent) + self._pipeline.ask(query)
                if queries and is_first:
                    self._progress.begin(monotonic(), len(self._unsent))
                self._receive()
                all_sent = self._send()
                if self._is_overdue():
                    self._receive()  # where this process hardly gets to run, sending took long enough for a reply
                if self._is_overdue():
                    raise TimeoutError(f"no reply within {self._timeouts.reply:g} s")
            except Exception as error:
                self.open, self.error = False, error
                raise
        if self._backlog.waiting_bytes <= self._backlog.half_full:
            self._relieved.set()
        return all_sent

    def wait(self) -> None:
        """Waits for a reply, or for room in the socket if something is unsent. The lock is free meanwhile, so a reader
        may change `_unsent` now: then this waits for the wrong event, `wait` seconds at most.
        """
        self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        if not self._poll.poll(self._timeouts.wait * 1000):
            self._silence += self._timeouts.wait

    def exclusively(self, act: Callable[[], T]) -> T:
        """Does what only the holder of the lock may do. It must not take time."""
        with self._lock:
            return act()

    def set_client(self, client: Client) -> None:
        """Redis knows this connection as that client. The lock is held."""
        self.client = client

    def allow(self, messages: bool) -> None:
        """Opens the connection for messages, or closes it for them."""
        with self._lock:
            self.open = messages and self.error is None

    def end(self, error: Exception) -> None:
        """Ends this life: nothing more is sent, what was in flight waits again when this returns. Any thread: nobody
        waits for the network with the lock. The publisher's thread finds the error at its next turn.
        """
        with self._lock:
            self._end()
            self.error = self.error or error

    def close(self) -> None:
        """Ends this life: what was in flight waits again. The caller closes the connection."""
        with self._lock:
            self._end()

    # The lock is held.

    def _is_overdue(self) -> bool:
        return bool(self._pipeline.in_flight) and self._progress.is_overdue(monotonic(), queued_in(self._sock))

    def _end(self) -> None:
        assert self._lock.locked()
        self.open = False
        self._relieved.set()
        if self._is_over:
            return
        self._is_over = True
        if not isinstance(self.error, Unavailable):
            try:
                self._receive()  # replies that came before the break: the fewer messages arrive twice
            except Exception:
                pass  # the connection is broken
        self._pipeline.connection_lost(
            broken=self.error is not None and not isinstance(self.error, TimeoutError | Unavailable)
        )

    def _send(self) -> bool:
        """Sends what is unsent, else what waits now. Returns False if the socket or the window is full."""
        unsent = self._unsent
        if not unsent:
            if not self._backlog.waiting_bytes or not self.open:
                return True
            is_first = not self._pipeline.in_flight
            unsent = self._pipeline.take()
            if not unsent:
                return False
            if is_first:
                self._progress.begin(monotonic(), len(unsent))
        while unsent:
            try:
                taken = self._sock.send(unsent)
            except WOULD_BLOCK:
                self._unsent = unsent
                return False
            self._progress.sent += taken
            unsent = memoryview(unsent)[taken:] if taken < len(unsent) else b""
        self._unsent = b""
        return True

    def _receive(self) -> None:
        """Reads the replies that have come."""
        while True:
            try:
                data = self._sock.recv(CHUNK)
            except WOULD_BLOCK:
                return
            if not data:
                raise ConnectionResetError("Redis closed the connection")
            self._silence = 0.0
            self._progress.begin(monotonic(), len(self._unsent))
            self._pipeline.receive(data)
            if len(data) < CHUNK:
                return


def queued_in(sock: Any) -> int:
    """Bytes that a socket has taken, and that the other machine has not acknowledged; 0 where that is not told."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):
        return 0
