"""Requests come in and replies go out over two connections of their own to Redis: neither can delay a message.

Nothing is kept through an outage. A consumer that gets no reply asks again; the backlog of the publisher is for data.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import redis

from relay.log import LogOnce, shorten
from relay.redis.dial import has_moved
from relay.redis.link import REDIS_ERRORS
from relay.waker import Waker

log = logging.getLogger(__name__)

# Seconds between two calls of tick(); between two attempts to connect, and after one that Redis has denied.
TICK, RETRY, RETRY_DENIED = 1.0, 0.5, 30.0
# Seconds without a word of Redis before a PING, and before the connection is given up.
PING_AFTER, SILENCE = 5.0, 12.0
# Seconds of work after which the thread rests as long: a flood of requests must not take the interpreter from the data.
SLICE = 0.001
# Bytes of requests taken without a pause after which it is looked whether more wait; twice as many without one end the
# connection: redis-py keeps all it has received until it has handed out the last of it.
CATCH_UP = 8 * 1024 * 1024
# Seconds after a failure for which replies are dropped at once: who waits for a Redis that hangs answers nobody.
MUTE = 1.0

# What redis-py raises where a reply is none.
GARBLED = (*REDIS_ERRORS, ValueError, TypeError, LookupError)

NewConnection = Callable[[], redis.Connection]


class Listener:
    """Hands each message of a channel to receive(), on a thread of its own, named Requests.

    tick: called on the same thread once a second, also while Redis is away, but for the seconds of an attempt.
    stop: ends the thread at its next turn; join() wakes it and waits for it.
    """

    def __init__(
        self,
        new_connection: NewConnection,
        channel: str,
        receive: Callable[[bytes], None],
        tick: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        self._new_connection, self._channel, self._stop = new_connection, channel, stop
        self._receive, self._tick = receive, tick
        self._log_once = LogOnce()
        self._waker: Waker | None = None
        self._thread = threading.Thread(target=self._run, name="Requests", daemon=True)

    def start(self) -> None:
        """Starts the thread. Raises RuntimeError or OSError if the system has no thread or no descriptor to give."""
        self._waker = self._waker or Waker()
        self._thread.start()

    def join(self, deadline: float) -> None:
        """Waits until the thread has ended, after `stop` was set; until `deadline` (monotonic) at most."""
        if self._waker:
            self._waker.wake()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - monotonic()))

    def _run(self) -> None:
        assert self._waker
        try:
            self._listen_again_and_again()
        finally:
            self._waker.close()

    def _listen_again_and_again(self) -> None:
        while not self._stop.is_set():
            pause = RETRY
            try:
                self._listen()
            except redis.ResponseError as error:  # a right is missing
                pause = RETRY_DENIED
                if self._log_once.first("denied", str(error)):
                    log.warning(
                        "Redis denies the requests of consumers on %(channel)s: %(reason)s",
                        {"channel": self._channel, "reason": shorten(error)},
                    )
            except REDIS_ERRORS as error:
                # The publisher tells of the outage.
                log.debug("No requests are taken: %(reason)s", {"reason": shorten(error)})
            except Exception as error:
                if self._log_once.first("internal", type(error)):
                    log.exception("Internal error; subscribing to %(channel)s again", {"channel": self._channel})
            until = monotonic() + pause
            while monotonic() < until and not self._stop.wait(min(pause, TICK)):
                self._tick_alone()

    def _tick_alone(self) -> None:
        """Where an error is not to end the thread."""
        try:
            self._tick()
        except Exception as error:
            if self._log_once.first("internal", type(error)):
                log.exception("Internal error; waiting to subscribe to %(channel)s again", {"channel": self._channel})

    def _listen(self) -> None:
        """One life of the connection. Raises what ended it; returns after `stop`, when too many requests wait, and when
        the publisher is somewhere else.
        """
        connection = self._new_connection()
        try:
            connection.connect()
            connection.send_command("SUBSCRIBE", self._channel)
            connection.read_response()
            log.debug("Taking requests on %(channel)s", {"channel": self._channel})
            heard = asked = ticked = monotonic()
            worked, behind = 0.0, 0  # seconds; bytes since the connection had nothing to read
            while not self._stop.is_set() and behind < 2 * CATCH_UP:
                if self._has_data(connection):
                    began = monotonic()
                    behind += self._take(connection)
                    heard = monotonic()
                    worked += heard - began
                    if behind >= CATCH_UP and not connection.can_read(0):
                        behind = 0
                if worked >= SLICE:
                    worked = 0.0
                    self._stop.wait(SLICE)
                now = monotonic()
                if now - ticked >= TICK:
                    ticked = now
                    self._tick()
                    if has_moved(connection):
                        return
                if now - heard >= SILENCE:
                    raise TimeoutError(f"nothing received for {SILENCE:g} s, not even the reply to a PING")
                if now - max(heard, asked) >= PING_AFTER:
                    asked = now
                    connection.send_command("PING")
            if behind and not self._stop.is_set() and self._log_once.first("behind"):
                log.warning(
                    "More requests than can be taken on %(channel)s: those that wait are dropped",
                    {"channel": self._channel},
                )
        finally:
            connection.disconnect()

    def _has_data(self, connection: Any) -> bool:
        """Whether the connection has something to read. Waits for it until TICK has passed or this thread is woken."""
        assert self._waker
        if connection.can_read(0):  # redis-py may have read it already
            return True
        return self._waker.wait(TICK, connection._get_socket()) and bool(connection.can_read(0))

    def _take(self, connection: redis.Connection) -> int:
        """Returns the bytes of the request, 0 if it is none."""
        try:
            kind, *_, payload = connection.read_response()
        except redis.ResponseError:
            return 0  # PING is not among our rights; the error is a sign of life, too
        if kind != b"message":
            return 0
        self._receive(payload)
        return len(payload)


class Replies:
    """Publishes replies. Any thread that may wait for Redis: none that reads a stream.

    When Redis is away or hangs, replies are dropped.
    """

    def __init__(self, new_connection: NewConnection) -> None:
        self._new_connection = new_connection
        self._lock = threading.Lock()  # guards the connection, and is held while Redis is waited for
        self._connection: redis.Connection | None = None
        self._muted_until = 0.0  # monotonic
        self._log_once = LogOnce()

    def send(self, replies: Sequence[tuple[str, bytes]]) -> None:
        """Publishes each (channel, message), in order."""
        with self._lock:
            if monotonic() < self._muted_until:
                return
            try:
                self._publish(self._live_connection(), replies)
            except GARBLED as error:
                self._disconnect()
                self._muted_until = monotonic() + MUTE
                fields = {"replies": len(replies), "reason": shorten(error)}
                log.debug("%(replies)d replies are dropped: %(reason)s", fields)

    def close(self) -> None:
        """Closes the connection; the next reply opens another."""
        with self._lock:
            self._disconnect()

    # The lock is held.

    def _live_connection(self) -> redis.Connection:
        """The connection: a new one where there is none, where Redis has closed it since the last reply, or where the
        publisher is somewhere else.
        """
        try:
            if self._connection and (has_moved(self._connection) or self._connection.can_read()):
                self._disconnect()  # nothing is due: it was closed
        except REDIS_ERRORS:
            self._disconnect()
        if self._connection is None:
            self._connection = self._new_connection()
            self._connection.connect()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.disconnect()
            self._connection = None

    def _publish(self, connection: redis.Connection, replies: Sequence[tuple[str, bytes]]) -> None:
        connection.send_packed_command(connection.pack_commands([("PUBLISH", *reply) for reply in replies]))
        for _ in replies:
            try:
                connection.read_response()
            except redis.ResponseError as error:
                if self._log_once.first("rejected", str(error).partition(" ")[0]):
                    log.error("Redis rejects a reply (logged once): %(reason)s", {"reason": shorten(error)})
