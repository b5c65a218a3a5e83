"""This instance among those that share a lease: what it tells the others, what it sees of them, what it logs of it."""

import logging
import math
from collections.abc import Iterable
from time import monotonic
from typing import Protocol

import redis

from relay.log import LogOnce, Names
from relay.redis.lease import Lease
from relay.redis.registry import (
    LAST,
    STANDBY,
    Entry,
    Registry,
    all_subscribed,
    fingerprint,
    one_is_down,
    other_topics,
    same_name,
    something_else,
)
from relay.redis.role import Client
from relay.stats import StreamStats, stream_of

log = logging.getLogger(__name__)

# Seconds between two entries in the registry.
BEAT = 0.5
# Seconds for which the topics of collectors that had the same may differ before that is a mistake: each reads Bybit's
# list of instruments when it is its time.
LISTS_DIFFER = 600.0


class Streams(Protocol):
    """What is needed of the Exchange. streams, topics: what each stream does, and asks for, by its name."""

    category: str
    streams: dict[str, StreamStats]
    topics: dict[str, frozenset[str]]


class Troubles:
    """Logs each trouble once, and that it is over."""

    def __init__(self) -> None:
        self._logged: dict[str, str] = {}
        self._log_once = LogOnce()  # of causes

    def report(
        self, kind: str, sentence: str | None, level: int = logging.ERROR, cause: Exception | None = None
    ) -> None:
        """sentence: what is wrong, None = nothing of this kind. cause: whose traceback is worth showing, once."""
        if sentence == self._logged.get(kind):
            return
        if sentence is None:
            log.info("Over: %(trouble)s", {"trouble": self._logged.pop(kind), "kind": kind})
        else:
            self._logged[kind] = sentence
            is_new = cause is not None and self._log_once.first("cause", type(cause))
            log.log(level, "%(trouble)s", {"trouble": sentence, "kind": kind}, exc_info=cause if is_new else None)


class Member:
    """The thread "Leader" owns it.

    term: of this instance, when it last led; 0 = never. prefix: of the channels.
    """

    def __init__(self, lease: Lease, name: str, prefix: str) -> None:
        self.lease, self.name = lease, name
        self.registry = Registry(name)
        self.troubles = Troubles()
        self.term = 0
        self.ready = False  # as it last told the others
        self.leaving = False  # it is about to end: not to be counted on
        self._prefix = prefix
        self._exchange: Streams | None = None
        self._complete_at = math.inf  # monotonic time at which all streams were first subscribed
        self._led_at = -math.inf  # monotonic time at which this instance was last known to lead
        self._beat = 0
        self._due = 0.0  # monotonic time of the next entry
        self._alike_at = -math.inf  # monotonic time at which another was last seen to carry the same

    def watch(self, exchange: Streams) -> None:
        """Sets the streams whose state is told."""
        self._exchange = exchange

    @property
    def is_subscribed(self) -> bool:
        """Whether Bybit has answered for all topics of all streams, and all of them carry data."""
        return self._exchange is not None and all_subscribed(list(self._exchange.streams.values()))

    @property
    def has_lost_a_stream(self) -> bool:
        return self._exchange is not None and one_is_down(list(self._exchange.streams.values()))

    @property
    def topics(self) -> str:
        """What this instance carries, as the others compare it; "" until every stream has asked for its topics."""
        exchange = self._exchange
        if exchange is None:
            return ""
        watched = [name for name, stats in list(exchange.streams.items()) if stats.watched]
        if not all(name in exchange.topics for name in watched):
            return ""
        return fingerprint(exchange.category, self._prefix, frozenset().union(*list(exchange.topics.values())))

    def entry(self, role: str, client: Client | None, ready: bool, pending: int) -> Entry:
        """The next entry of this instance."""
        self._beat += 1
        number, addr = client or (0, "")
        self.ready = ready and not self.leaving
        return Entry(number, addr, role, self.term, self.ready, pending, self.topics, self._beat)

    def is_due(self) -> bool:
        """Whether it is time for the next entry; the one after it is due a beat later."""
        now = monotonic()
        if now < self._due:
            return False
        self._due = now + BEAT
        return True

    def hurry(self) -> None:
        """Makes the next entry due at once."""
        self._due = 0.0

    def look(self) -> None:
        """Reads the registry."""
        asked_at = monotonic()
        if self.is_subscribed:
            self._complete_at = min(self._complete_at, asked_at)
        self.registry.update(self.lease.read(), asked_at)
        mine, now = self.topics, monotonic()
        differing = self.registry.differing(mine, now)
        if mine and any(entry.topics == mine for entry in self.registry.others(now).values()):
            self._alike_at = now
        if now - self._alike_at < LISTS_DIFFER:
            differing = None
        self.troubles.report(
            "topics", differing and other_topics(self.lease.key, self.name, mine, *differing), logging.WARNING
        )

    def tell(self, entry: Entry) -> None:
        """Writes the entry of a standby, unless another instance has the same name."""
        now = monotonic()
        self.troubles.report("name", same_name(self.name) if self.registry.name_is_shared(now) else None)
        if not self.registry.name_is_taken(now):
            self.cut(self.registry.former())
            self.registry.written = self.lease.write(entry)

    def cut(self, clients: Iterable[Client]) -> None:
        """Has Redis end these connections. Without the right to it: better a leader that cannot do this than none."""
        try:
            self.lease.cut(clients)
        except redis.ResponseError as error:
            self.troubles.report("cut", f"Redis does not end the connections of an earlier leader: {error}")

    def tell_as_holder(self, entry: Entry, channel: str = "", event: bytes = b"") -> bool:
        """Writes the entry of the holder, and publishes an event. Returns False if the lease is somebody else's."""
        written = self.lease.write_as_holder(entry, channel, event)
        if written is not None:
            self.registry.written, self._led_at = written, monotonic()
        return written is not None

    def missing(self) -> dict[str, list[str]]:
        """The topics of each stream, where messages are missing between the last leader and this one: this instance had
        not all streams when somebody was last known to lead. To be asked before tell_as_holder(). What it has lost
        since then is told by its own events, which are pending.
        """
        exchange, led_at = self._exchange, max(self.registry.leader_at, self._led_at)
        if exchange is None or not self.registry.term or self._complete_at <= led_at:
            return {}
        missing: dict[str, list[str]] = {}
        for name in list(exchange.streams):  # of connections
            missing.setdefault(stream_of(name), []).extend(exchange.topics.get(name, ()))
        return {stream: sorted(topics) for stream, topics in missing.items() if topics}

    def examine(self) -> None:
        """Logs what is wrong with the key of the lease, if something is."""
        flaw = self.lease.flaw()
        self.troubles.report("key", flaw and something_else(self.lease.key, flaw))

    def leave_term(self) -> None:
        """Keeps the term of this leader in the registry, where its own entry will not be: the next one is higher."""
        self.lease.write(self.entry(STANDBY, None, False, 0), LAST)

    def leave(self) -> None:
        """Removes the own entry."""
        if not self.registry.name_is_taken(monotonic()):
            self.lease.remove([self.name])

    def successor(self) -> str | None:
        """A standby that could take over at once."""
        return self.registry.successor(self.topics, monotonic())

    def remove_outdated(self) -> None:
        """Removes entries that have not changed for a minute."""
        if names := self.registry.outdated(monotonic()):
            log.info("Removing %(instances)s from the registry: silent for a minute", {"instances": Names(names)})
            self.lease.remove(names)
