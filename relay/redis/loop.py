"""The publisher's thread, named Redis: connects, sends what flush() left, probes Redis, connects again, for ever."""

import logging
import math
import select
import threading
from collections.abc import Callable
from time import monotonic

import redis

from relay.redis.address import Address, named
from relay.redis.dial import told_of_tls
from relay.redis.endpoint import Endpoint
from relay.redis.link import REDIS_ERRORS, Link, StoodBy, Timeouts
from relay.redis.login import is_denied
from relay.redis.pipeline import Pipeline, Refused, Unavailable
from relay.redis.queries import SLICE, Probe, StateHash
from relay.redis.reports import Outages, RedisLog
from relay.redis.role import Role
from relay.redis.state import StateWriter
from relay.redis.trust import ELSEWHERE, Trust
from relay.waker import Waker

log = logging.getLogger(__name__)

# What a Cluster answers to SELECT, and what a server with fewer databases does, as redis-py hands it on.
NO_DATABASE = ("SELECT is not allowed in cluster mode", "DB index is out of range", "invalid DB index")

# What poll() is asked to report when the peer closes a connection; macOS reports that unasked.
HANG_UP = getattr(select, "POLLRDHUP", 0)
# The part of Timeouts.probe by which a probe may come early or late: so it goes with the state, which comes once a
# second, and the thread does not wake for each of them.
SLACK = 0.1


class ReconnectLoop:
    """Keeps a connection to Redis. start() starts the thread, stop() ends it.

    announce: gets the event and its fields when Redis is back after an outage.
    link: the present life of the connection, any thread. trust: belongs to this thread.
    fatal, heartbeat_due: as in Publisher.
    """

    def __init__(
        self,
        new_connection: Callable[[], redis.Connection],
        endpoint: Endpoint,
        pipeline: Pipeline,
        role: Role,
        trust: Trust,
        state_hash: StateHash,
        timeouts: Timeouts,
        announce: Callable[..., None],
    ) -> None:
        self.fatal: str | None = None
        self.heartbeat_due = math.inf
        self.link: Link | None = None
        self.trust = trust
        self.waker = Waker()
        self._new_connection, self._endpoint, self._timeouts = new_connection, endpoint, timeouts
        self._pipeline, self._role = pipeline, role
        self._state = StateWriter(state_hash, new_connection)
        self._announce = announce
        self._log = RedisLog(endpoint.name, pipeline, role)
        self._deadline: float | None = None  # monotonic time at which stop() gives up
        self.thread = threading.Thread(target=self._run, name="Redis", daemon=True)

    def start(self) -> None:
        """Starts the thread. Raises RuntimeError if the system has none to give."""
        self.thread.start()

    def stop(self, deadline: float) -> None:
        """Sends what waits, until `deadline` (monotonic), and ends the thread if it was started."""
        self._deadline = deadline
        self.waker.wake()
        if self.thread.ident is not None:
            self.thread.join(max(0.0, deadline - monotonic()) + self._timeouts.wait)
            self._endpoint.end(max(deadline, monotonic() + self._timeouts.wait))
        self._state.stop()
        if not self.thread.is_alive():
            self.waker.close()
        self._log.update()  # the thread has ended, or is stuck and does not log
        self._log.end_overflow()

    @property
    def probe(self) -> Probe:
        return self.trust.probe

    @property
    def outages(self) -> Outages:
        """The outages of Redis. Any thread."""
        return self._log.outages

    @property
    def _is_done(self) -> bool:
        """A standby has nothing to deliver."""
        if self._deadline is None:
            return False
        if not self._role.leading or monotonic() >= self._deadline:
            return True
        return self._pipeline.is_settled and not (self.trust.is_left and self._pipeline.retained)

    def _run(self) -> None:
        pause, untried = self._timeouts.retry, self._endpoint.choices  # addresses, while all have refused
        while not self._is_done:
            try:
                self._session()
            except StoodBy:
                self._log.connected, pause, untried = False, self._timeouts.retry, 0
            except Exception as error:
                reason = self._refusal(error) if untried and not self._log.connected else ""
                untried = untried - 1 if reason else 0
                if reason and not untried:
                    self.fatal = reason
                    return
                if self._log.connected:
                    pause = self._timeouts.retry
                # After a connection that worked and was merely cut, the same host is tried first.
                if not self._log.connected or not isinstance(error, OSError) or isinstance(error, TimeoutError):
                    self._endpoint.move_on()
                if self._log.lost(error) and not isinstance(error, (*REDIS_ERRORS, Unavailable)):
                    log.exception("Internal error; reconnecting to Redis")
            self._pipeline.fit()  # there is no link, hence this thread owns what is retained
            self._log.update()
            if not self._is_done:
                self._sleep(pause if self._deadline is None else self._timeouts.retry)
                pause = min(pause * 2, self._timeouts.retry_max)

    def _refusal(self, error: Exception) -> str:
        """Why there is no sense in trying again, "" = there is. Of the first attempts only, one at each host: what
        worked once may do so again, and the backlog is kept until then.
        """
        if isinstance(error, Refused):
            return f"Redis at {self._endpoint.name}: {error}"
        if is_denied(error):
            return f"authentication failed at Redis {self._endpoint.name}: {error}"
        if str(error).startswith(NO_DATABASE):
            return f"Redis at {self._endpoint.name}: REDIS_DB: {error} (a Cluster has database 0 only)"
        return ""

    def _sleep(self, seconds: float) -> None:
        """Until somebody wakes this thread or Redis hangs up, or for `seconds`."""
        self.heartbeat_due = monotonic() + seconds
        self.waker.wait(seconds, self.link, HANG_UP)

    def _session(self) -> None:
        """One life of a connection. Ends with an exception, or when all is done after stop()."""
        began = monotonic()
        self.heartbeat_due = began + self._timeouts.connect + self._timeouts.reply
        self._endpoint.lead(self.waker.wake)
        connection = self._new_connection()
        try:
            connection.connect()
            address = self._endpoint.place = connection.host, connection.port
            if self._endpoint.several:
                self._log.address = named(address)
            link = self.link = Link(connection, self._pipeline, self.waker, self._timeouts)
            try:
                self._wait_for_subscribers(link, began)
                self._state.hash.write_again()
                self._state.hash.heartbeat.take()  # it is of the time before
                self._drain(link, address)
                link.service(self._state.queries())  # the state is deleted
            finally:
                self._endpoint.place = None
                self.trust.end()
                link.close()  # before others lose sight of it: stand_by() relies on nothing being in flight then
                self.link = None
                self._role.carrier = None  # Redis may give its id and address to a later one
        except REDIS_ERRORS as error:
            if self.trust.since == -math.inf:  # it has never answered
                raise told_of_tls(connection, error) from None
            raise
        finally:
            connection.disconnect()

    def _wait_for_subscribers(self, link: Link, began: float) -> None:
        """Grace period: after a restart of Redis its subscribers are gone too, and the backlog waits for those that
        were there. Raises Unavailable if Redis is not a master.
        """
        deadline = monotonic() + self._timeouts.grace
        self.probe.nodes.begin(self._role.shared)
        queries = self._role.queries(link.set_client) + self._pipeline.greeting() + self.trust.begin()
        is_met = False
        while not self._is_done:
            missing = self.probe.missing
            link.service(queries + self.probe.nodes.queries() + self.probe.queries(missing))
            queries = []
            while self.probe.subscribers is None and not self._is_done:
                self.heartbeat_due = monotonic() + self._timeouts.wait
                link.wait()
                link.service()
            self._log.update()
            if not is_met and self.probe.subscribers is not None:
                is_met = True
                self._log.sends_again(link.exclusively(lambda: self.trust.meet(began)))
            if self.probe.all_are_back or monotonic() >= deadline:
                break
            if len(self.probe.missing) > len(missing) - SLICE:  # else all that were asked for are back
                self._sleep(self._timeouts.retry)
        self.trust.settle(monotonic())

    def _drain(self, link: Link, address: Address) -> None:
        """Sends what flush() could not, reads the replies, and probes Redis now and then."""
        confirmed, buffered = self._pipeline.confirmed, self._pipeline.messages
        probed_at, probe = monotonic(), self._timeouts.probe
        while not self._is_done:
            now = monotonic()
            self.heartbeat_due = now + self._timeouts.idle
            self._look(link, now, address)
            if link.open != (may_carry := self._role.may_carry(link.client)):
                link.allow(may_carry)
                confirmed, buffered = self._pipeline.confirmed, self._pipeline.messages
            heartbeat = self._state.hash.heartbeat.take()  # where this does not publish it is not told
            queries = self._state.queries() + (heartbeat if link.open else [])
            # Not while a probe is under way.
            if now - probed_at >= probe * (1 - SLACK) and self.probe.subscribers is not None:
                probed_at = now
                queries += self.probe.nodes.queries() + self.probe.queries(
                    self.trust.channels(self._pipeline.backlog.channels)
                )
            # Somebody waits for the rest.
            is_ending = self._deadline is not None or (link.open and self._pipeline.backlog.diverted)
            is_probing = self.probe.subscribers is None
            all_sent = link.service(queries)
            if link.open and (is_ending or (is_probing and self.probe.subscribers is not None)):
                link.exclusively(self._pipeline.announce_rejected)
            if not self._log.connected:
                self._on_connected(link, self._pipeline.confirmed > confirmed, buffered)
            self._log_changes()
            if all_sent and link.open and self._pipeline.backlog.waiting_bytes:
                continue  # a flush() found the lock taken
            # The replies to queries are read at once, and so are the last ones; all others wait for each other.
            is_awaited = self._pipeline.queries or not self._log.connected or is_ending
            if not all_sent or (is_awaited and self._pipeline.in_flight):
                link.wait()
            elif not (self._is_done or self.probe.has_ended):  # else there is something to look at
                wait = self._timeouts.wait
                due = min(probed_at + probe * (1 + SLACK), max(now + wait, self.trust.decides_at))
                self._sleep(wait if is_ending else min(self._timeouts.idle, due - now))

    def _log_changes(self) -> None:
        """What the log is to tell of the last turn."""
        self._log.update()
        if error := self._role.take_error():
            log.error(
                "Redis does not tell CLIENT INFO: %(reason)s. Without it this instance never publishes",
                {"reason": error},
            )
        self._state.log_changes()

    def _look(self, link: Link, now: float, address: Address) -> None:
        """Whether this is still the right Redis. Raises Unavailable if it is to be left."""
        asked_at = self._endpoint.asked_at  # before elsewhere()
        leave = self.trust.look(now, asked_at, self._endpoint.elsewhere(address, self.trust.since) is not None)
        if self.trust.marks.right is not None:
            link.exclusively(self.trust.verify)
        if leave or (self._deadline is not None and self._pipeline.is_settled and self.trust.is_left):
            raise Unavailable(leave or f"{ELSEWHERE}, and this is the end")
        self._log.doubts(self.trust.doubt)

    def _on_connected(self, link: Link, has_confirmed: bool, buffered: int) -> None:
        """The connection works as far as is known. A leader's has proved it when a message is confirmed."""
        if not self._role.leading:
            self._log.stands_by()
        elif link.open and (has_confirmed or not self._pipeline.messages):
            seconds = self._log.back(buffered)
            if seconds is not None:
                self._announce("redis_reconnected", outage_seconds=round(seconds, 3), buffered=buffered)
