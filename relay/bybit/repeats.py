"""Whether one connection may ask for a topic again and again. Pure: reads no clock.

Nothing says that Bybit sends a snapshot to a connection that subscribes to a topic a second time. A new connection
always gets one. So a topic that has sent its snapshot on this connection, and sends none when it is subscribed again,
costs the connection; if a new one then brings the snapshot, each round of a topic gets a new connection from there on.
"""

from collections.abc import Iterable, Set

# Seconds after the acknowledgement within which a snapshot should come: it comes at once. And at most so many of them
# count between two looks: a machine that was suspended has not waited.
SNAPSHOT_WITHIN, MOST_COUNTED = 2.0, 1.0


class Repeats:
    """What has been learnt, for the life of the process, and the topics of the present connection. One thread's.

    needs_fresh: a topic needs a new connection for each of its rounds.
    """

    def __init__(self) -> None:
        self.needs_fresh = False
        self._served: set[str] = set()  # topics that have sent a snapshot on this connection
        self._waited: dict[str, float] = {}  # seconds, by topic that was subscribed again
        self._suspects: set[str] = set()  # topics that cost the connection before
        self._looked_at = self._age = 0.0  # monotonic time; seconds that this connection was looked at

    def connected(self) -> None:
        """A new connection begins."""
        self._served, self._waited, self._age = set(), {}, -MOST_COUNTED  # the first look has none before it

    def served(self, topic: str) -> bool:
        """A snapshot has come. Returns whether it shows for the first time that a new connection is needed."""
        self._served.add(topic)
        learnt = topic in self._suspects and not self.needs_fresh
        if learnt:
            self.needs_fresh = True
        self._suspects.discard(topic)
        return learnt

    def exhausted(self, wanted: Set[str]) -> bool:
        """Whether a topic among these cannot be served on this connection: no other round is to begin."""
        return self.needs_fresh and not self._served.isdisjoint(wanted)

    @property
    def has_waited(self) -> bool:
        """Whether rounds that are still without a snapshot had time enough: others do not wait for them."""
        return self._age >= SNAPSHOT_WITHIN

    def overdue(self, awaited: Iterable[str], now: float) -> list[str]:
        """Those that should have sent their snapshot again. awaited: acknowledged, and without a snapshot since."""
        elapsed, self._looked_at = min(now - self._looked_at, MOST_COUNTED), now
        self._age += elapsed
        repeated = self._served.intersection(awaited)
        self._waited = {topic: self._waited[topic] + elapsed if topic in self._waited else 0.0 for topic in repeated}
        late = [topic for topic, seconds in self._waited.items() if seconds >= SNAPSHOT_WITHIN]
        if late:
            self._suspects = set(late)
        return late
