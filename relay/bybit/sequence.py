"""Whether a message of an order book is missing: the updates of a topic, `u`, rise by one. Reads no clock."""

from collections.abc import Container, Iterable
from typing import NamedTuple

BOOK, DELTA = b'{"topic":"orderbook.', b'"type":"delta"'
# Where a topic stands in a message, cut generously; and the end of a message within which its `u` stands.
TOPIC, TAIL = slice(10, 74), slice(-80, None)


class Gap(NamedTuple):
    """A jump of `u`: messages of the topic are missing, an order book built from it is wrong."""

    topic: str
    before: int
    after: int


class Sequence:
    """The sequences of the order books of one connection: after a reconnect a book begins anew.

    exempt: topics whose updates are not compared; their owner changes it.

    What Bybit does: a snapshot may jump, and brings all that was missed. u = 1 is a restart of Bybit's service. Books
    of depth 1 are snapshots only and repeat their `u`.
    """

    def __init__(self, exempt: Container[bytes] = ()) -> None:
        self.next: dict[bytes, int] = {}  # the `u` that each topic should bring next
        self.repeated: set[bytes] = set()  # topics whose latest `u` was not that one; the owner empties it
        self._exempt = exempt

    def look(self, messages: Iterable[bytes]) -> list[tuple[bytes, Gap]]:
        """The gaps, each with the message that follows it. Every order-book message passes here: about 0.4 us each."""
        gaps: list[tuple[bytes, Gap]] = []
        expected = self.next
        get = expected.get
        for message in messages:
            # partition() is the cheapest call that finds anything in bytes; index() and a regular expression cost more.
            try:
                update = int(message[TAIL].partition(b'"u":')[2].partition(b",")[0])
            except ValueError:
                if (update := _update(message)) < 0:
                    continue
            topic = message[TOPIC].partition(b'"')[0]
            if get(topic) != update and not self._follows(topic, update, message, gaps):
                continue
            expected[topic] = update + 1
        return gaps

    def forget(self, topics: Iterable[bytes]) -> None:
        """The next message of each of these topics is its first."""
        for topic in topics:
            self.next.pop(topic, None)

    def _follows(self, topic: bytes, update: int, message: bytes, gaps: list[tuple[bytes, Gap]]) -> bool:
        """Whether an unexpected update is the one to go on from."""
        if not message.startswith(BOOK) or topic in self._exempt:
            return False
        self.repeated.add(topic)
        after = self.next.get(topic)
        if after is not None and update != 1 and DELTA in message:
            gaps.append((message, Gap(topic.decode(errors="replace"), after - 1, update)))
        return True


def _update(message: bytes) -> int:
    """The `u` of a message of another form; -1: it has none."""
    try:
        at = message.rindex(b'"u":') + 4
        return int(message[at : message.index(b",", at)])
    except ValueError:
        return -1
