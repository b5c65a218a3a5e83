"""Who publishes: one of several collectors, the holder of the lease. The others stand by and take over.

    standby --- takes the free lease, ends all connections of the others, announces itself -----------> leader
    leader  --- stops or loses a stream, and a standby is ready: waits for its last messages, releases -> standby
    leader  --- the lease is not renewed in time, or somebody else holds it -------------------------> standby

The thread "Leader" does all of it. What makes it safe: an entry of the registry with the connection that publishes is
written only while the lease is held, and before anything is published over it; whoever takes the lease reads the
registry after that, and has Redis end all these connections before it publishes. So a collector that slept anywhere in
between finds its connection dead, whatever it believes. Its own clock makes it stop besides.
"""

import logging
import math
import threading
from collections.abc import Collection
from time import monotonic

import redis
from redis.exceptions import ClusterCrossSlotError, MovedError

from relay.redis.lease import ATTEMPT, Lease
from relay.redis.member import Member, Streams
from relay.redis.publisher import Publisher
from relay.redis.registry import LEADER, STANDBY
from relay.redis.role import Client
from relay.redis.standby import SETTLE, TRY, Standby

log = logging.getLogger(__name__)

# Seconds that the last messages of a leader may take to be confirmed; that a leader that stops waits for its successor.
DRAIN, AWAIT = 1.0, 1.0
NOT_OURS = "it is gone, or somebody else's"
# Seconds without a stream or a connection to Redis until a leader looks for a successor; in which nothing that waits is
# confirmed until it is not ready; after an error that will not pass by itself, such as a missing right.
IMPAIRED, STUCK, PAUSE = 1.0, 2.0, 1.0
# Seconds that one turn of the thread may take; that close() waits for it, at most.
STOPS, CLOSES = ATTEMPT + DRAIN + AWAIT + SETTLE, 1.0


class _Stop:
    """How the end goes. The main thread sets `asked`, then `ended`; the thread "Leader" sets the others."""

    def __init__(self) -> None:
        self.asked, self.decided, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.relieved = False  # another instance publishes, or takes over: nothing is left to do here


class Leadership:
    """The sink of the exchange where several collectors share a lease. The main thread calls start(), stop(), close().

    publisher: one with a Pending. key: of the lease. name: of this instance. prefix: of the channels. channels: where
    data may be, beside those that the publisher has seen. by_symbol: those of them beside which each symbol has one.
    flush: as the publisher's. heartbeat_due: monotonic time by which the thread runs again.
    """

    def __init__(
        self,
        publisher: Publisher,
        key: str,
        name: str,
        prefix: str,
        channels: Collection[str],
        by_symbol: Collection[str] = (),
    ) -> None:
        self.flush = publisher.flush
        self.heartbeat_due = math.inf
        self._publisher = publisher
        self._member = Member(Lease(publisher.new_connection, key, name), name, prefix)
        self._standby = Standby(publisher, self._member, channels, by_symbol)
        self._led: Client | None = None  # the connection that publishes; None = this is a standby
        # Written by the thread "Leader", read by those of connections: whom this leader could hand over to.
        self._successor: str | None = None
        self._diverted = threading.Event()  # a connection's thread has diverted the publisher: time to hand over
        self._impaired_since = math.inf  # monotonic
        self._published, self._moved_at = 0, -math.inf  # messages at an earlier entry; when there were more, monotonic
        self._stop = _Stop()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="Leader", daemon=True)

    def start(self, exchange: Streams) -> None:
        """Starts the thread. exchange: the streams that must be subscribed before this instance counts as ready."""
        self._member.watch(exchange)
        self._publisher.tell_of_clients(self._wake.set)
        self._thread.start()

    def stop(self, deadline: float) -> bool:
        """To be called before the connections to Bybit are closed. A leader hands over if a standby is ready. Returns
        whether another instance publishes now: if not, this one still does, until close(). Waits until `deadline`
        (monotonic) at most: a Redis that hangs is not to cost the time that the rest needs.
        """
        self._stop.asked.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._stop.decided.wait(deadline - monotonic())
        return self._stop.relieved

    def close(self) -> None:
        """Gives the lease away, if this instance has it, and ends the thread."""
        self._stop.ended.set()
        self._wake.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join(CLOSES)

    @property
    def is_leader(self) -> bool:
        """Whether this instance publishes. Any thread."""
        return self._led is not None

    def state(self) -> dict[str, object]:
        """For the status: what this instance is, and how far behind. Any thread.

        pending: messages that a standby keeps, or that wait for Redis. behind: seconds since the oldest of those that
        are kept arrived.
        """
        member, publisher = self._member, self._publisher
        return {
            "instance": member.name,
            "role": LEADER if self.is_leader else STANDBY,
            "term": member.term,
            "ready": member.ready,
            "pending": publisher.pending + publisher.backlog,
            "behind": round(publisher.behind, 3),
        }

    def announce(self, event: str, stream: str, topics: list[str], **fields: object) -> None:
        """As the publisher's. When a leader loses a stream while a standby is ready, then all that comes from here on,
        this event included, is left to the standby. Any thread; never waits.
        """
        if event in ("lost", "stalled") and self._led is not None and self._successor is not None:
            # The flag after it: the thread "Leader" clears it before it ends a diversion, so that none is left behind.
            self._publisher.divert()
            self._diverted.set()
            self._wake.set()
        self._publisher.announce(event, stream, topics, **fields)

    # The thread "Leader".

    def _run(self) -> None:
        while not self._stop.ended.is_set():
            self.heartbeat_due = monotonic() + STOPS
            try:
                self._turn()
            except Exception as error:
                self._on_failure(error)
            if self._led is not None and not self._member.lease.is_valid:
                self._step_down("Redis did not renew the lease in time")
        try:
            if self._led is not None:
                self._member.leave_term()
                self._member.lease.release()
            self._member.leave()
        except (OSError, redis.RedisError):
            pass  # Redis is unreachable: the lease expires
        self._close()

    def _turn(self) -> None:
        if self._stop.asked.is_set() and not self._stop.decided.is_set():
            self._decide_stop()
        elif self._led is not None:
            self._lead()
        elif self._stop.asked.is_set():
            self._rest()
        elif led := self._standby.turn():
            self._begin(led)
        self._member.troubles.report("redis", None)

    def _rest(self) -> None:
        self._wake.wait(TRY)
        self._wake.clear()

    def _on_failure(self, error: Exception) -> None:
        """Redis did not answer, or not as it should: everything begins anew with other connections."""
        if self._stop.asked.is_set() and not self._stop.decided.is_set():
            self._stop.relieved = self._led is None and bool(self._member.registry.others(monotonic()))
            self._stop.decided.set()
        self._close()
        self._member.hurry()
        if isinstance(error, MovedError | ClusterCrossSlotError):
            pass  # a Cluster, which the publisher refuses
        elif isinstance(error, redis.ResponseError):
            self._member.troubles.report("redis", f"LEADER_KEY {self._member.lease.key}: Redis replies: {error}")
        elif not isinstance(error, OSError | redis.RedisError):
            self._member.troubles.report("redis", f"Internal error in the leadership: {error!r}", cause=error)
        elif self._publisher.connected or isinstance(error, redis.TimeoutError):  # else the publisher logs the outage
            self._member.troubles.report("redis", f"Lost Redis for the lease: {error}", logging.WARNING)
        is_lasting = self._led is None and not isinstance(error, OSError | redis.ConnectionError | redis.TimeoutError)
        self._stop.ended.wait(PAUSE if is_lasting and not self._stop.asked.is_set() else TRY / 2)

    def _close(self) -> None:
        self._standby.close()
        self._member.lease.close()

    def _begin(self, led: Client) -> None:
        self._diverted.clear()  # of an earlier term; before _led is set, as announce() looks at that first
        self._impaired_since = math.inf
        self._led = led
        self._member.hurry()

    def _lead(self) -> None:
        """One turn: renews the lease, tells of a new connection before it is used, hands over if that is better."""
        member, publisher = self._member, self._publisher
        if member.is_due():
            if monotonic() + ATTEMPT > member.lease.valid_until:  # it could end when the lease has expired
                self._rest()
                return
            if not member.lease.renew():
                self._step_down(NOT_OURS)
                return
            member.look()
            self._successor = member.successor()
            self._tell(self._led)
            member.remove_outdated()
        client = publisher.client
        # It leads on the next connection only when that is told: if telling fails, the next turn tries again.
        if self._led not in (None, client) and client is not None and self._tell(client):
            self._led = client
            publisher.lead(client)
        if self._diverted.is_set() or self._is_impaired():
            self._hand_over()
        self._rest()

    def _tell(self, client: Client | None) -> bool:
        """Writes the entry of the leader, with the connection that publishes. Returns False if it is none any more."""
        member, publisher = self._member, self._publisher
        if publisher.published != self._published or not publisher.backlog:
            self._published, self._moved_at = publisher.published, monotonic()
        is_stuck = monotonic() - self._moved_at >= STUCK
        ready = publisher.client == client and member.is_subscribed and not is_stuck
        if member.tell_as_holder(member.entry(LEADER, client, ready, publisher.backlog)):
            return True
        self._step_down(NOT_OURS)
        return False

    def _is_impaired(self) -> bool:
        """Whether this leader has been without a stream, or without its connection to Redis, for a while."""
        now = monotonic()
        if not self._member.has_lost_a_stream and self._publisher.client is not None:
            self._impaired_since = math.inf
        elif self._impaired_since == math.inf:
            self._impaired_since = now
        long = now - self._impaired_since >= IMPAIRED
        return long and self._successor is not None and not self._stop.asked.is_set()

    def _step_down(self, reason: str) -> None:
        """The lease is lost. What is not confirmed is kept."""
        self._publisher.stand_by()
        self._led = self._successor = None
        self._member.lease.valid_until = 0.0
        self._member.hurry()
        me = self._member.name
        log.warning("%(instance)s has lost the lease: %(reason)s; it stands by", {"instance": me, "reason": reason})

    def _hand_over(self) -> bool:
        """Leaves the lead to a standby, if one is ready; returns whether."""
        member, publisher = self._member, self._publisher
        if self._led is None:
            return False
        member.look()
        self._successor = member.successor()
        if self._successor is None:
            if self._diverted.is_set():
                self._diverted.clear()
                publisher.lead(self._led)  # what was diverted goes first
            return False
        if not member.lease.renew():
            self._step_down(NOT_OURS)
            return False
        log.warning("%(instance)s hands over to %(successor)s", {"instance": member.name, "successor": self._successor})
        publisher.divert()
        try:
            deadline = monotonic() + DRAIN
            while publisher.client and not publisher.drained and monotonic() < deadline:
                self._stop.ended.wait(0.005)
            self._standby.subscribe()  # before the first message of the successor
        finally:
            publisher.stand_by()
            self._diverted.clear()
            self._led = self._successor = None
            member.lease.valid_until = 0.0
        self._standby.tell()
        member.lease.release()
        return True

    def _decide_stop(self) -> None:
        """Somebody else publishes when this instance ends; if nobody does, this one does until its end."""
        member, stop = self._member, self._stop
        member.leaving = True
        if self._hand_over():
            deadline = monotonic() + AWAIT
            while member.lease.holder() is None and monotonic() < deadline:
                self._standby.strike(TRY / 2)
        if self._led is None:
            self._standby.subscribe()
            member.look()
            self._standby.tell()
            if led := self._standby.take():  # nobody leads: what is pending must not be lost
                self._begin(led)
        stop.relieved = self._led is None and member.lease.holder() is not None
        stop.decided.set()
