"""Which topics are to be subscribed anew, and which of them still owe their snapshot. Reads no clock."""

from collections.abc import Iterable

# Seconds between two renewals of a topic, and for its snapshot to come. Nothing says that Bybit sends one to a
# connection that subscribes a second time. A new connection always brings one.
RENEW_EVERY, SNAPSHOT_WITHIN = 1.0, 10.0


class Renewals:
    """The renewals of one connection. Counts only time that its owner passes in: time in which the socket was watched.

    awaited: topics that are being renewed and have not sent their snapshot, with the time since which.
    """

    def __init__(self) -> None:
        self.awaited: dict[bytes, float] = {}
        self._wrong: dict[bytes, None] = {}  # in the order in which they became so
        self._renewed: dict[bytes, float] = {}  # when each topic was renewed last
        self._now = 0.0  # seconds

    def want(self, topic: bytes) -> None:
        """What consumers have of this topic is wrong."""
        self._wrong[topic] = None

    def begin(self) -> list[bytes]:
        """The topics to be renewed now; from now on their snapshots are awaited."""
        due = [
            topic
            for topic in self._wrong
            if topic not in self._renewed or self._now - self._renewed[topic] >= RENEW_EVERY
        ]
        for topic in due:
            del self._wrong[topic]
            self._renewed[topic] = self.awaited[topic] = self._now
        return due

    def advance(self, seconds: float) -> list[bytes]:
        """Adds watched time. Returns the topics whose snapshot is overdue."""
        self._now += seconds
        return [topic for topic, since in self.awaited.items() if self._now - since >= SNAPSHOT_WITHIN]

    def forget(self, topic: bytes) -> None:
        """No snapshot is awaited of it any more."""
        self.awaited.pop(topic, None)

    def drop(self, topics: Iterable[bytes]) -> None:
        """These topics have left the connection."""
        for topic in topics:
            self.forget(topic)
            self._wrong.pop(topic, None)
            self._renewed.pop(topic, None)

    def seen(self, messages: Iterable[bytes]) -> None:
        """Takes what arrived, while snapshots are awaited."""
        for message in messages:
            topic = message[10 : message.find(b'"', 10)]
            if topic in self.awaited and b'"type":"snapshot"' in message:
                del self.awaited[topic]
