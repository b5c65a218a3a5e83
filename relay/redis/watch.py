"""A subscription of our own to the channels of the data: what a standby sees of what the leader publishes.

redis-py makes the connection; then its socket is read from here, without blocking, at a seventh of the cost of its own
PubSub, which also reconnects without a word.
"""

import select
from collections.abc import Callable, Collection, Iterable, Iterator
from time import monotonic
from typing import Any

import redis

from relay.redis.link import WOULD_BLOCK
from relay.redis.resp import Query, ReplyError, ignore, parse_reply

CHUNK = 65536  # bytes read at once


class Watch:
    """One subscription at a time. The thread "Leader" owns it.

    connect: makes a connection to Redis, with redis-py's options as keywords. timeout: seconds for the connection and
    for the confirmation.
    """

    def __init__(self, connect: Callable[..., redis.Connection], timeout: float) -> None:
        self._connect, self._timeout = connect, timeout
        self.channels: tuple[str, ...] = ()  # that are subscribed
        self._connection: redis.Connection | None = None
        self._sock: Any = None
        self._unread = b""

    @property
    def is_open(self) -> bool:
        """Whether the subscription stands, as far as is known."""
        return bool(self.channels)

    def open(self, channels: Iterable[str], patterns: Collection[str] = ()) -> None:
        """Subscribes to these channels, one at least, and patterns, and returns when Redis has confirmed all. A message
        comes once for each channel and pattern that matches it. Raises OSError, redis.RedisError.
        """
        self.close()
        wanted = tuple(sorted(channels))
        self._connection = self._connect(socket_timeout=self._timeout, socket_connect_timeout=self._timeout)
        self._connection.connect()
        self._sock = self._connection._get_socket()
        patterned = Query(ignore, "PSUBSCRIBE", *patterns) if patterns else b""
        self._sock.sendall(Query(ignore, "SUBSCRIBE", *wanted) + patterned)
        self._sock.settimeout(0)
        deadline = monotonic() + self._timeout
        confirmed = 0
        while confirmed < len(wanted) + len(patterns):
            if (left := deadline - monotonic()) <= 0:
                raise redis.TimeoutError("no answer to SUBSCRIBE")
            for reply in self._replies(left):
                if isinstance(reply, ReplyError):
                    raise redis.ResponseError(str(reply))
                confirmed += reply[0] in (b"subscribe", b"psubscribe")
        self.channels = wanted

    def read(self, seconds: float) -> list[tuple[str, bytes]]:
        """Channels and messages that have come; waits up to `seconds` for the first. Raises OSError."""
        replies = self._replies(seconds)  # of a pattern: b"pmessage", the pattern, and then as without
        return [(reply[-2].decode(), reply[-1]) for reply in replies if reply[0] in (b"message", b"pmessage")]

    def _replies(self, seconds: float) -> Iterator[Any]:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        data = b""
        for attempt in range(2):
            try:
                data = self._sock.recv(CHUNK)
                break
            except WOULD_BLOCK:
                if attempt or not poll.poll(seconds * 1000):
                    return
        if not data:
            raise ConnectionResetError("Redis ended the subscription")
        data = self._unread + data
        at = 0
        while True:
            reply, after = parse_reply(data, at)
            if after < 0:
                break
            at = after
            yield reply
        self._unread = data[at:]

    def close(self) -> None:
        """Ends the subscription."""
        if self._connection:
            self._connection.disconnect()
        self._connection, self._unread, self.channels = None, b"", ()
