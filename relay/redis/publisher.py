"""Publishes messages to Redis, for ever, through every outage.

The rule here: whoever publishes never waits for a Redis that is away or hangs. publish() only appends to the backlog;
flush() sends what the socket takes at once, on the thread that calls it, which spares waking another one, and slows a
reader down that is faster than Redis; all else that can take time (connecting, a full socket, a Redis that hangs, the
rest of a backlog) belongs to the publisher's thread, named Redis.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic, time
from typing import Any

from relay.events import encoded_event
from relay.redis.backlog import Backlog
from relay.redis.dial import connections
from relay.redis.durable import DurablePipeline
from relay.redis.endpoint import Endpoint, Hosts
from relay.redis.link import DEFAULT_TIMEOUTS, StoodBy, Timeouts
from relay.redis.loop import ReconnectLoop
from relay.redis.pending import Pending
from relay.redis.pipeline import Pipeline
from relay.redis.queries import StateHash
from relay.redis.reports import Outages
from relay.redis.role import Client, Role
from relay.redis.trust import Trust

log = logging.getLogger(__name__)


def _now() -> int:
    """Wall-clock time in milliseconds."""
    return round(time() * 1000)


def _monotonic() -> int:
    """Milliseconds on a clock that nobody sets."""
    return round(monotonic() * 1000)


def _announcement_of_lost(channel: str, messages: int) -> bytes:
    return encoded_event("dropped", _now(), channel=channel, messages=messages)


class Publisher:
    """Publishes to the Redis at `host`:`port`, or where `endpoint` says. Start it with start(), end it with stop().

    address: where that is, for people. new_connection: makes a connection to there; any thread, without waiting: the
        connection looks where Redis is when it connects.
    buffer: bytes of messages kept during an outage; when it is full the oldest are dropped, counted and announced.
    status: the channel of announce(). state_key: that of the hash which set_state() writes.
    channels: those that will have messages, as far as known; the grace period is for their subscribers.
    pending: what keeps messages while another instance publishes. With it the publisher begins as a standby, which
        publishes nothing until lead(); without it the publisher leads for ever.
    stream_maxlen: messages that a Redis Stream of each channel keeps; 0 = there is none.
    options: redis-py's for each connection, such as db, password, credential_provider, ssl_certfile.

    publish(channel, message): queues a message, or each of a Batch: bytes and str as they are, all else as JSON. Any
        thread, never waits; it is sent with the next flush(), or within 1.3 s by itself.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 6379,
        *,
        endpoint: Endpoint | None = None,
        tls: bool = False,
        buffer: int = 256 << 20,
        status: str = "stream:bybit_status",
        state_key: str = "stream:bybit_state",
        channels: Collection[str] = (),
        pending: Pending | None = None,
        stream_maxlen: int = 0,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        **options: Any,
    ) -> None:
        endpoint = endpoint or Hosts([(host, port)])
        self.address = endpoint.name
        self.new_connection = connections(endpoint, timeouts, tls, **options)
        # Each standby subscribes to it beside the channels of the data: so it can be told from a consumer.
        self.standby_channel = "" if pending is None else f"{status}_standby"
        self._backlog = Backlog(buffer, pending, _monotonic, channels)
        self.publish = self._backlog.append  # not a method that calls it: this is the one call made for every message
        self._pipeline = (
            DurablePipeline(self._backlog, status, _announcement_of_lost, stream_maxlen)
            if stream_maxlen
            else Pipeline(self._backlog, status, _announcement_of_lost)
        )
        self._role = Role(shared=pending is not None)
        self._trust = Trust(
            self._pipeline, endpoint.several, endpoint.asked_at != math.inf, self.standby_channel, channels
        )
        self._state_hash = StateHash(state_key, timeouts.state_expiry)
        self._loop = ReconnectLoop(
            self.new_connection,
            endpoint,
            self._pipeline,
            self._role,
            self._trust,
            self._state_hash,
            timeouts,
            self.announce,
        )

    @property
    def fatal(self) -> str | None:
        """Why Redis refused the very first attempt for good, else None."""
        return self._loop.fatal

    @property
    def heartbeat_due(self) -> float:
        """Monotonic time by which the publisher's thread runs again; inf before start()."""
        return self._loop.heartbeat_due

    @property
    def status(self) -> str:
        """The channel of announce()."""
        return self._pipeline.status

    @property
    def state_key(self) -> str:
        """The key of the hash that set_state() writes."""
        return self._state_hash.key

    @property
    def channels(self) -> list[str]:
        """All channels that had a message, or were named at the start. Any thread."""
        return self._backlog.channels

    @property
    def stream_maxlen(self) -> int:
        """Messages that a Redis Stream of each channel keeps; 0 = there is none."""
        return self._pipeline.maxlen

    def start(self) -> None:
        """Starts the thread. Messages may be published before."""
        self._loop.start()

    def stop(self, deadline: float) -> int:
        """Sends what waits, until `deadline` (monotonic), and ends. Returns the number of messages that were not
        delivered, announcements not counted; a standby has none.
        """
        self._state_hash.set({})  # deleted: nobody is to take the last state for the present one
        self._loop.stop(deadline)
        return self._pipeline.undelivered()

    @property
    def connected(self) -> bool:
        """Whether messages reach Redis now. Any thread."""
        link = self._loop.link
        return link is not None and link.open

    @property
    def backlog(self) -> int:
        """Messages that Redis has not confirmed yet. Any thread."""
        return self._pipeline.messages

    @property
    def published(self) -> int:
        """Messages that Redis has confirmed since the start, announcements included; never falls. Any thread."""
        return self._pipeline.confirmed

    @property
    def dropped(self) -> Counter[str]:
        """Messages lost since the start by channel, for whatever reason. Any thread."""
        return self._pipeline.dropped

    @property
    def lost(self) -> int:
        """The sum of `dropped`, which costs less. Any thread."""
        return self._backlog.overflowed.total() + self._pipeline.rejected.total()

    @property
    def outages(self) -> Outages:
        """The outages of Redis since the start. Any thread."""
        return self._loop.outages

    @property
    def buffer(self) -> int:
        """Bytes of messages that are kept at most. Any thread."""
        return self._backlog.limit

    @property
    def buffered_bytes(self) -> int:
        """Bytes of messages that Redis has not confirmed yet, or that are pending. Any thread."""
        backlog = self._backlog
        return backlog.waiting_bytes + backlog.in_flight_bytes + (backlog.pending.bytes if backlog.pending else 0)

    @property
    def waited(self) -> float:
        """Seconds since the start that flush() has waited, all threads together. Any thread."""
        return self._backlog.waited

    def announce(self, event: str, stream: str = "", topics: Sequence[str] = (), **fields: Any) -> None:
        """Publishes an event of a stream on the status channel, in order with the messages. Any thread, never waits."""
        self._backlog.announce(self.status, encoded_event(event, _now(), stream, topics, **fields), topics)
        link = self._loop.link
        if link is not None:
            link.flush()  # without back-pressure: the publisher's thread itself announces, and that of a lease

    def flush(self) -> None:
        """Sends what waits as far as the socket takes it at once. For threads that read from Bybit: while Redis keeps
        replying, waits 5 ms if more than 1 MiB waits for it, and up to 1 s for room if the buffer is half full.
        """
        link = self._loop.link
        if link is not None and not link.flush():
            link.give_way()

    def beat(self, **fields: Any) -> None:
        """Publishes the event `alive` beside the messages, if they reach Redis now. Any thread, never waits."""
        self._state_hash.heartbeat.set(self.status, encoded_event("alive", _now(), **fields))
        self._loop.waker.wake()

    def set_state(self, fields: Mapping[str, str]) -> None:
        """Replaces the state in the state hash: field by name of the stream. Any thread, never waits. The hash expires
        15 s after the last call.
        """
        self._state_hash.set(fields)
        self._loop.waker.wake()

    # Leader and standby, for a publisher with `pending`. What waits and what is pending moves under the backlog's lock,
    # so whatever these calls meet, no message is lost, nor is its place among those of its topic.

    @property
    def leading(self) -> bool:
        """Whether this instance publishes, or will as soon as it can. Any thread."""
        return self._role.leading

    @property
    def client(self) -> Client | None:
        """Id and address of the present connection, as Redis knows it; None while there is none. Any thread."""
        link = self._loop.link
        return link.client if link is not None and link.error is None else None

    @property
    def pending(self) -> int:
        """How many messages and events are pending. Any thread."""
        pending = self._backlog.pending
        return 0 if pending is None else len(pending)

    @property
    def behind(self) -> float:
        """Seconds since the arrival of the oldest that is pending. Any thread."""
        return self._backlog.behind()

    @property
    def drained(self) -> bool:
        """Whether all is confirmed that waited at divert(). Any thread."""
        return self._backlog.diverted and self._pipeline.is_settled

    def tell_of_clients(self, tell: Callable[[], object]) -> None:
        """Has `tell` called whenever `client` is a new one. It must not block. To be called before start()."""
        self._role.on_client = tell

    def lead(self, client: Client) -> None:
        """Publishes from now on, beginning with what is pending, on the connection of this client only: if it has ended
        or ends later, all waits for the next lead(). The leadership's thread.
        """
        self._role.carrier = client
        self._backlog.lead()
        self._role.leading = True
        self._loop.waker.wake()

    def divert(self) -> None:
        """What is published from now on becomes pending; what waits is still sent. Any thread, never waits."""
        self._backlog.divert()
        self._loop.waker.wake()  # the confirmations of the rest are read at once

    def stand_by(self) -> None:
        """Ends the connection, so that nothing more is sent, and makes all pending that is not confirmed. Any thread;
        strike() belongs after it.
        """
        if not self._role.shared or not self._role.leading:
            return
        # In this order: the publisher's thread opens no connection any more, or has stored it before it asked.
        self._role.leading = False
        self._backlog.divert()
        link = self._loop.link
        if link is not None:
            link.end(StoodBy())
        self._backlog.stand_by()
        self._loop.waker.wake()

    def strike(self, channel: str, message: bytes) -> None:
        """The leader has published this message: it is not pending any longer. The leadership's thread.

        Not while this Redis may be the wrong one: then nobody may have got it.
        """
        if self._trust.proved:
            self._backlog.strike(channel, message)

    def prune(self, before_ms: int) -> None:
        """What arrived before this time (monotonic) is not pending any longer: the leader is known to have published
        all that it had got by then. The leadership's thread.
        """
        if (seconds := self._trust.hindsight) < math.inf:
            self._backlog.prune(before_ms - round(seconds * 1000))
