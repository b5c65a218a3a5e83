"""Mends the topics of a running connection: one that misses a message or has fallen silent is subscribed anew."""

import logging
from itertools import groupby
from operator import itemgetter

from relay.bybit.exchange import Exchange
from relay.bybit.renewal import SNAPSHOT_WITHIN, Renewals
from relay.bybit.sequence import BOOK, Gap, Sequence
from relay.bybit.silence import Silence
from relay.bybit.subscription import State, Subscription
from relay.errors import ConnectionLost
from relay.stats import StreamStats

log = logging.getLogger(__name__)

LOGGED = 10  # topics, of gaps and of silence each: a fault of Bybit may hit hundreds at once
NO_SNAPSHOT = "orderbook.full."  # sends deltas only: renewing it would bring nothing


class Repair:
    """A part of one connection, on its thread. Watches the topics that begin with a snapshot, whichever it has.

    stream: for events. watches: whether there is such a topic; look() is to be called only then.
    """

    def __init__(self, exchange: Exchange, stream: str, subscription: Subscription, stats: StreamStats) -> None:
        self._exchange, self._stream, self._subscription, self._stats = exchange, stream, subscription, stats
        self._renewals, self._silence = Renewals(), Silence()
        self._sequence: Sequence | None = None  # once there is a book
        self._beginnings: set[bytes] = set()
        self._updates: dict[bytes, int] = {}  # of the books, at the last tick
        self._topics: frozenset[bytes] = frozenset()
        self.follow()

    def follow(self) -> None:
        """Watches the topics that the subscription has now. To be called before new ones are requested."""
        self._followed = self._subscription.changes
        names = self._subscription.states
        topics = [topic.encode() for topic in names if topic.startswith(self._exchange.snapshot_first)]
        books = [topic for topic in topics if topic.startswith(b"orderbook.")]
        left, self._topics = self._topics.difference(topics), frozenset(topics)
        self.watches = bool(topics)
        if books and not self._sequence:
            self._sequence = Sequence(self._renewals.awaited)
        self._only_books = len(books) == len(names)
        # Of the others is kept, until the next tick, in C: as many bytes of each message as the longest topic has.
        self._beginning = itemgetter(slice(10, 10 + max(map(len, topics), default=0)))
        self._keep = len(books) < len(topics)
        if left:
            self._renewals.drop(left)
            self._silence.forget(left)
        if self._sequence:  # also what came after its topic had left
            self._sequence.forget(self._sequence.updates().keys() - self._topics)

    def look(self, messages: list[bytes]) -> list[tuple[bytes, Gap]]:
        """Takes what has arrived, before it is delivered. Returns the gaps, each with the message that follows it."""
        if self._renewals.awaited:
            self._renewals.seen(messages)
        if self._keep:
            self._beginnings.update(map(self._beginning, messages))
        if self._sequence is None:
            return []
        if self._only_books:
            return self._sequence.look(messages)
        return self._sequence.look([message for message in messages if message.startswith(BOOK)])

    def report(self, gap: Gap) -> None:
        """Tells of a gap, between the messages that it lies between, and begins to mend it."""
        topic, before, after = gap
        self._stats.gaps += 1
        self._exchange.sink.announce("gap", self._stream, [topic], before=before, after=after)
        if self._exchange.log_once.first("gap", topic, LOGGED):
            log.warning(
                "%(topic)s: sequence gap: u jumped from %(before)d to %(after)d; subscribing it anew, for a snapshot "
                "(logged once a topic, for ten topics)",
                {"topic": topic, "before": before, "after": after},
            )
        if topic.encode() in self._topics and self._stays(topic) and not topic.startswith(NO_SNAPSHOT):
            self._renewals.want(topic.encode())
            self._begin()

    def tick(self, watched: float) -> None:
        """What is due by the clock. watched: seconds since the last call in which the socket was watched. Raises
        ConnectionLost if a renewed topic has not sent its snapshot.
        """
        if self._followed != self._subscription.changes:
            self.follow()
        for topic in list(self._renewals.awaited):
            if not self._stays(topic.decode()):  # it was delisted meanwhile
                self._renewals.forget(topic)
        if overdue := self._renewals.advance(watched):
            raise ConnectionLost(
                f"{min(overdue).decode()}: no snapshot within {SNAPSHOT_WITHIN:g} s, though it was subscribed anew"
            )
        self._report_silent(self._silence.tick(self._seen()))
        self._begin()

    def _stays(self, topic: str) -> bool:
        """Whether Bybit is to send a topic: it was neither rejected nor released."""
        state = self._subscription.states.get(topic)
        return state not in (None, State.REJECTED) and not self._subscription.is_released(topic)

    def _begin(self) -> None:
        """Renews the topics that it is time for."""
        if topics := self._renewals.begin():
            self._subscription.renew(topic.decode() for topic in topics)
            if self._sequence:
                self._sequence.forget(topics)

    def _seen(self) -> set[bytes]:
        """The topics that sent something since the last call."""
        seen = {beginning.partition(b'"')[0] for beginning in self._beginnings}
        self._beginnings.clear()
        if self._sequence:
            before, self._updates = self._updates, self._sequence.updates()
            seen.update(topic for topic, update in self._updates.items() if before.get(topic) != update)
            seen |= self._sequence.repeated
            self._sequence.repeated.clear()
        return seen & self._topics

    def _report_silent(self, silent: dict[bytes, int]) -> None:
        """Tells of the topics that have fallen silent, and begins to mend them."""
        names = {topic.decode(): ticks for topic, ticks in silent.items()}
        states = self._subscription.states
        subscribed = [name for name in names if states.get(name) is State.SUBSCRIBED and self._stays(name)]
        subscribed.sort()
        for ticks, group in groupby(sorted(subscribed, key=names.__getitem__), key=names.__getitem__):
            self._report_silent_for(round(ticks * self._exchange.timeouts.timer, 3), list(group))

    def _report_silent_for(self, seconds: float, topics: list[str]) -> None:
        self._exchange.sink.announce("silent", self._stream, topics, seconds=seconds)
        for topic in topics:
            if self._exchange.log_once.first("silent", topic, LOGGED):
                log.warning(
                    "%(topic)s: nothing for %(seconds)g s while others of its connection flow; subscribing it anew, "
                    "for a snapshot (logged once a topic, for ten topics)",
                    {"topic": topic, "seconds": seconds},
                )
        # Once, and without a claim to a snapshot: a contract that was delisted, or an option that has expired, may be
        # accepted again and stay silent. That must not cost the connection of all others.
        self._subscription.renew(topics)
