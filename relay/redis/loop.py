"""The publisher's thread, named Redis: connects, sends what flush() left, probes Redis, connects again, for ever."""

import logging
import math
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from relay.redis.link import Link, StoodBy, Timeouts
from relay.redis.pipeline import Pipeline, Unavailable
from relay.redis.queries import Probe, StateHash
from relay.redis.reports import RedisLog
from relay.redis.role import Role

log = logging.getLogger(__name__)

# What Redis and the network do; all else is a bug. UnicodeError: a host name that is none.
_EXPECTED = (OSError, UnicodeError, redis.RedisError, Unavailable)


def connections(timeouts: Timeouts, tls: bool, **options: Any) -> Callable[..., redis.Connection]:
    """What makes new connections, with these options of redis-py's; what it gets itself goes before them."""
    # Not redis-py's retries (they resend whole pipelines, and sleep where no stop reaches them), not its greeting
    # (four round trips, and rights in the ACL that nothing else here needs).
    options |= {"retry": Retry(NoBackoff(), 0), "protocol": 2, "driver_info": None}
    options |= {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}
    options |= {"socket_timeout": timeouts.reply, "socket_connect_timeout": timeouts.connect}
    connection_class = redis.SSLConnection if tls else redis.Connection
    return lambda **more: connection_class(**options | more)


class ReconnectLoop:
    """Keeps a connection to Redis. start() starts the thread, stop() ends it.

    announce: gets the event and its fields when Redis is back after an outage.
    link: the present life of the connection, any thread. probe: belongs to this thread.
    fatal, heartbeat_due: as in Publisher.
    """

    def __init__(
        self,
        new_connection: Callable[[], redis.Connection],
        address: str,
        pipeline: Pipeline,
        role: Role,
        state_hash: StateHash,
        timeouts: Timeouts,
        announce: Callable[..., None],
    ) -> None:
        self.fatal: str | None = None
        self.heartbeat_due = math.inf
        self.link: Link | None = None
        self.probe = Probe()
        self.wake = threading.Event()
        self._new_connection, self._address, self._timeouts = new_connection, address, timeouts
        self._pipeline, self._role, self._state_hash = pipeline, role, state_hash
        self._announce = announce
        self._log = RedisLog(address, pipeline, role)
        self._deadline: float | None = None  # monotonic time at which stop() gives up
        self.thread = threading.Thread(target=self._run, name="Redis", daemon=True)

    def stop(self, deadline: float) -> None:
        """Sends what waits, until `deadline` (monotonic), and ends the thread if it was started."""
        self._deadline = deadline
        self.wake.set()
        if self.thread.ident is not None:
            self.thread.join(max(0.0, deadline - monotonic()) + self._timeouts.idle)
        self._log.update()  # the thread has ended, or is stuck and does not log
        self._log.end_overflow()

    @property
    def _is_done(self) -> bool:
        """A standby has nothing to deliver."""
        if self._deadline is None:
            return False
        return self._pipeline.is_settled or not self._role.leading or monotonic() >= self._deadline

    def _run(self) -> None:
        pause, is_first = self._timeouts.retry, True
        while not self._is_done:
            try:
                self._session()
            except StoodBy:
                self._log.connected, pause = False, self._timeouts.retry
            except Exception as error:
                if is_first and (isinstance(error, redis.AuthenticationError) or str(error).startswith("NOAUTH")):
                    self.fatal = f"authentication failed at Redis {self._address}: {error}"
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
        self.wake.wait(seconds)
        self.wake.clear()

    def _session(self) -> None:
        """One life of a connection. Ends with an exception, or when all is done after stop()."""
        self.heartbeat_due = monotonic() + self._timeouts.connect + self._timeouts.reply
        connection = self._new_connection()
        try:
            connection.connect()
            link = self.link = Link(connection, self._pipeline, self.wake, self._timeouts)
            try:
                self._wait_for_subscribers(link)
                self._state_hash.write_again()
                self._drain(link)
            finally:
                link.close()  # before others lose sight of it: stand_by() relies on nothing being in flight then
                self.link = None
                self._role.carrier = None  # Redis may give its id and address to a later one
        finally:
            connection.disconnect()

    def _wait_for_subscribers(self, link: Link) -> None:
        """Grace period: after a restart of Redis its subscribers are gone too, and the backlog waits for those that
        were there. Raises Unavailable if Redis is not a master.
        """
        deadline = monotonic() + self._timeouts.grace
        queries = self._role.queries(link.is_client)
        while not self._is_done:
            link.service(queries + self.probe.queries(self._pipeline.backlog.channels))
            queries = []
            while self.probe.subscribers is None and not self._is_done:
                self.heartbeat_due = monotonic() + self._timeouts.idle
                link.wait()
                link.service()
            self._log.update()
            if self.probe.all_are_back or monotonic() >= deadline:
                return
            self._sleep(self._timeouts.retry)

    def _drain(self, link: Link) -> None:
        """Sends what flush() could not, reads the replies, and probes Redis now and then."""
        confirmed, buffered = self._pipeline.confirmed, self._pipeline.messages
        probe_at = monotonic() + self._timeouts.probe
        while not self._is_done:
            now = monotonic()
            self.heartbeat_due = now + self._timeouts.idle
            if link.open != (may_carry := self._role.may_carry(link.client)):
                link.allow(may_carry)
                confirmed, buffered = self._pipeline.confirmed, self._pipeline.messages
            queries = self._state_hash.queries()
            if self.probe.subscribers is not None:  # else a probe is under way
                self.probe.expected = self.probe.subscribers
            is_probe_due = now >= probe_at and self.probe.subscribers is not None
            if is_probe_due:
                probe_at = now + self._timeouts.probe
                queries += self.probe.queries(self._pipeline.backlog.channels)
            if link.open and (is_probe_due or self._deadline is not None or self._pipeline.backlog.diverted):
                link.announce_rejected()
            all_sent = link.service(queries)
            if not self._log.connected:
                self._on_connected(link, self._pipeline.confirmed > confirmed, buffered)
            self._log.update()
            if error := self._role.take_error():
                log.error("Redis does not tell CLIENT INFO: %s. Without it this instance never publishes", error)
            if error := self._state_hash.take_error():
                log.warning("Redis rejects the state hash %s: %s", self._state_hash.key, error)
            if not all_sent or (self._deadline is not None and self._pipeline.in_flight):
                link.wait()
            elif not link.open or not self._pipeline.backlog.waiting_bytes:  # else a flush() found the lock taken
                self._sleep(self._timeouts.idle)

    def _on_connected(self, link: Link, has_confirmed: bool, buffered: int) -> None:
        """The connection works as far as is known. A leader's has proved it when a message is confirmed."""
        if not self._role.leading:
            self._log.stands_by()
        elif link.open and (has_confirmed or not self._pipeline.messages):
            seconds = self._log.back(buffered)
            if seconds is not None:
                self._announce("redis_reconnected", outage_seconds=round(seconds, 3), buffered=buffered)
