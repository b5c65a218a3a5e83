"""Publishes messages to Redis, for ever, through every outage.

The rule here: whoever publishes never waits for Redis. publish() only appends to the backlog; flush() sends what the
socket takes at once, on the thread that calls it, which spares waking another one; all that can take time (connecting,
a full socket, a Redis that hangs, the rest of a backlog) belongs to the publisher's thread, named Redis.
"""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from relay.events import encoded_event
from relay.redis.backlog import Backlog
from relay.redis.link import DEFAULT_TIMEOUTS, Link, Timeouts
from relay.redis.pipeline import Pipeline, Unavailable
from relay.redis.queries import Probe, StatusHash
from relay.redis.reports import RedisLog

log = logging.getLogger(__name__)

# What Redis and the network do; all else is a bug. UnicodeError: a host name that is none.
_EXPECTED = (OSError, UnicodeError, redis.RedisError, Unavailable)


def _now() -> int:
    """Wall-clock time in milliseconds."""
    return round(time() * 1000)


def _announcement_of_lost(channel: str, messages: int) -> bytes:
    return encoded_event("dropped", _now(), channel=channel, messages=messages)


class Publisher:
    """Publishes to the Redis at `host`:`port`. Start it with start(), end it with stop().

    buffer: bytes of messages kept during an outage; when it is full the oldest are dropped, counted and announced.
    status: the channel of announce(), and the key of the hash that set_state() writes.
    The other arguments are redis-py's.

    publish(channel, message): queues a message, bytes and str as they are, all else as JSON. Any thread, never waits;
        it is sent with the next flush(), or within 0.1 s by itself.
    fatal: why Redis refused the very first attempt for good, else None.
    heartbeat_due: monotonic time by which the publisher's thread runs again; inf before start().
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 6379,
        *,
        db: int = 0,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        buffer: int = 256 << 20,
        status: str = "stream:bybit_status",
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self.address, self.status = f"{host}:{port}", status
        self.fatal: str | None = None
        self.heartbeat_due = math.inf
        self._timeouts = timeouts
        # Not redis-py's retries (they resend whole pipelines, and sleep where no stop reaches them), not its greeting
        # (four round trips, and rights in the ACL that nothing else here needs).
        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "protocol": 2, "driver_info": None}
        options |= {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}
        options |= {"socket_timeout": timeouts.reply, "socket_connect_timeout": timeouts.connect}
        options |= {"host": host, "port": port, "db": db, "username": username, "password": password}
        connection_class = redis.SSLConnection if tls else redis.Connection
        self.new_connection: Callable[[], redis.Connection] = lambda: connection_class(**options)

        backlog = Backlog(buffer)
        self.publish = backlog.append  # not a method that calls it: this is the one call made for every message
        self._pipeline = Pipeline(backlog, status, _announcement_of_lost)
        self._link: Link | None = None  # set while messages may be sent
        self._probe = Probe()
        self._status_hash = StatusHash(status, timeouts.status_expiry)
        self._log = RedisLog(self.address, self._pipeline)

        self._wake = threading.Event()
        self._deadline: float | None = None  # monotonic time at which stop() gives up
        self._thread = threading.Thread(target=self._run, name="Redis", daemon=True)

    def start(self) -> None:
        """Starts the thread. Messages may be published before."""
        self._thread.start()

    def stop(self, deadline: float) -> int:
        """Sends what waits, until `deadline` (monotonic), and ends. Returns the number of messages that were not
        delivered, announcements not counted.
        """
        self._deadline = deadline
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - monotonic()) + self._timeouts.idle)
        self._log.update()  # the thread has ended, or is stuck and does not log
        self._log.end_overflow()
        return self._pipeline.undelivered()

    @property
    def connected(self) -> bool:
        """Whether messages reach Redis now. Any thread."""
        link = self._link
        return link is not None and link.open

    @property
    def backlog(self) -> int:
        """Messages that Redis has not confirmed yet. Any thread."""
        return self._pipeline.messages

    @property
    def published(self) -> int:
        """Messages that Redis has confirmed since the start, announcements included. Any thread."""
        return self._pipeline.confirmed

    @property
    def dropped(self) -> Counter[str]:
        """Messages lost since the start by channel, for whatever reason. Any thread."""
        return self._pipeline.dropped

    def announce(self, event: str, stream: str = "", topics: Sequence[str] = (), **fields: Any) -> None:
        """Publishes an event of a stream on the status channel, in order with the messages. Any thread."""
        self.publish(self.status, encoded_event(event, _now(), stream, topics, **fields))
        self.flush()

    def flush(self) -> None:
        """Sends what waits as far as the socket takes it at once. Any thread; waits 5 ms at most, and only while more
        than 1 MiB waits for a Redis that keeps replying.
        """
        link = self._link
        if link is not None:
            link.flush()

    def set_state(self, fields: Mapping[str, str]) -> None:
        """Replaces the state in the status hash: field by name of the stream. Any thread, never waits. The hash expires
        15 s after the last call.
        """
        self._status_hash.set(fields)

    # The publisher's thread.

    @property
    def _is_done(self) -> bool:
        return self._deadline is not None and (self._pipeline.is_settled or monotonic() >= self._deadline)

    def _run(self) -> None:
        pause, is_first = self._timeouts.retry, True
        while not self._is_done:
            try:
                self._session()
            except Exception as error:
                if is_first and (isinstance(error, redis.AuthenticationError) or str(error).startswith("NOAUTH")):
                    self.fatal = f"authentication failed at Redis {self.address}: {error}"
                    return
                if self._log.connected:
                    pause = self._timeouts.retry
                if self._log.lost(error) and not isinstance(error, _EXPECTED):
                    log.exception("Internal error; reconnecting to Redis")
            is_first = False
            self._log.update()
            if not self._is_done:
                self._sleep(pause if self._deadline is None else self._timeouts.retry)
                pause = min(pause * 2, self._timeouts.retry_max)

    def _sleep(self, seconds: float) -> None:
        """Until a reader or stop() wakes this thread, or for `seconds`."""
        self.heartbeat_due = monotonic() + seconds
        self._wake.wait(seconds)
        self._wake.clear()

    def _session(self) -> None:
        """One life of a connection. Ends with an exception, or when all is done after stop()."""
        self.heartbeat_due = monotonic() + self._timeouts.connect + self._timeouts.reply
        connection = self.new_connection()
        try:
            connection.connect()
            link = Link(connection, self._pipeline, self._wake, self._timeouts)
            try:
                self._wait_for_subscribers(link)
                self._status_hash.write_again()
                link.open, self._link = True, link
                self._drain(link)
            finally:
                self._link = None
                link.close()
        finally:
            connection.disconnect()

    def _wait_for_subscribers(self, link: Link) -> None:
        """Grace period: after a restart of Redis its subscribers are gone too, and the backlog waits for those that
        were there. Raises Unavailable if Redis is not a master.
        """
        deadline = monotonic() + self._timeouts.grace
        while not self._is_done:
            link.service(self._probe.queries(self._pipeline.backlog.channels))
            while self._probe.subscribers is None and not self._is_done:
                self.heartbeat_due = monotonic() + self._timeouts.idle
                link.wait()
                link.service()
            self._log.update()
            if self._probe.all_are_back or monotonic() >= deadline:
                return
            self._sleep(self._timeouts.retry)

    def _drain(self, link: Link) -> None:
        """Sends what flush() could not, reads the replies, and probes Redis now and then."""
        confirmed, buffered = self.published, self.backlog
        probe_at = monotonic() + self._timeouts.probe
        while not self._is_done:
            now = monotonic()
            self.heartbeat_due = now + self._timeouts.idle
            queries = self._status_hash.queries()
            if self._probe.subscribers is not None:  # else a probe is under way
                self._probe.expected = self._probe.subscribers
            is_probe_due = now >= probe_at and self._probe.subscribers is not None
            if is_probe_due:
                probe_at = now + self._timeouts.probe
                queries += self._probe.queries(self._pipeline.backlog.channels)
            if is_probe_due or self._deadline is not None:
                link.announce_rejected()
            all_sent = link.service(queries)
            if not self._log.connected and (self.published > confirmed or not self.backlog):
                self._on_reconnected(buffered)
            self._log.update()
            if error := self._status_hash.take_error():
                log.warning("Redis rejects the status hash %s: %s", self.status, error)
            if not all_sent or (self._deadline is not None and self._pipeline.in_flight):
                link.wait()
            elif not self._pipeline.backlog.waiting_bytes:  # else a flush() found the lock taken
                self._sleep(self._timeouts.idle)

    def _on_reconnected(self, buffered: int) -> None:
        seconds = self._log.back(buffered)
        if seconds is not None:
            self.announce("redis_reconnected", outage_seconds=round(seconds, 3), buffered=buffered)
