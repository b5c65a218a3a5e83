"""Whether a message of an order book is missing: the updates of a topic, `u`, rise by one. Reads no clock."""

from collections.abc import Container, Iterable
from typing import NamedTuple

BOOK, DELTA = b'{"topic":"orderbook.', b'"type":"delta"'
UPDATE = b'"u":%d,'
# Where a topic stands in a message, cut generously.
TOPIC = slice(10, 74)
# A part of a message that has the topic, if it is not uncommonly long, and of what follows only what hardly ever
# changes: the type and the first digit of `ts`. So finding the topic's end is spared.
BEGINNING = slice(10, 50)


class Gap(NamedTuple):
    """A jump of `u`: messages of the topic are missing, an order book built from it is wrong."""

    topic: str
    before: int
    after: int


class _Book:
    """The sequence of one topic. due: its next `u`, and as text. place: where the last one stood, from the end of the
    message.
    """

    __slots__ = ("due", "place", "text")

    def __init__(self) -> None:
        self.due, self.text, self.place = -1, b"none", slice(0, 0)


_UNKNOWN = _Book()


class Sequence:
    """The sequences of the order books of one connection: after a reconnect a book begins anew.

    exempt: topics whose updates are not compared; their owner changes it.

    What Bybit does: a snapshot may jump, and brings all that was missed. u = 1 is a restart of Bybit's service. Books
    of depth 1 are snapshots only and repeat their `u`.
    """

    def __init__(self, exempt: Container[bytes] = ()) -> None:
        self.repeated: set[bytes] = set()  # topics whose latest `u` was not the one due; the owner empties it
        self._exempt = exempt
        self._books: dict[bytes, _Book] = {}
        self._by_beginning: dict[bytes, _Book] = {}  # the same, as look() finds them; a few for each

    def look(self, messages: Iterable[bytes]) -> list[tuple[bytes, Gap]]:
        """The gaps, each with the message that follows it. Every order-book message passes here: about 0.2 us each."""
        gaps: list[tuple[bytes, Gap]] = []
        get = self._by_beginning.get
        for message in messages:
            book = get(message[BEGINNING], _UNKNOWN)
            # Nearly always the `u` that is due stands where the last one stood. Else it is searched for.
            if message[book.place] == book.text:
                book.due += 1
                book.text = UPDATE % book.due
            else:
                self._search(message, gaps)
        return gaps

    def updates(self) -> dict[bytes, int]:
        """The `u` that is due, by topic."""
        return {topic: book.due for topic, book in self._books.items()}

    def forget(self, topics: Iterable[bytes]) -> None:
        """The next message of each of these topics is its first."""
        self._by_beginning.clear()
        for topic in topics:
            self._books.pop(topic, None)

    def _search(self, message: bytes, gaps: list[tuple[bytes, Gap]]) -> None:
        """As look(), for a message of any form."""
        try:
            start = message.rindex(b'"u":')
            end = message.index(b",", start) + 1
            update = int(message[start + 4 : end - 1])
        except ValueError:
            return
        if not 0 <= update < 1 << 63:
            return  # made up
        topic, _, _ = message[TOPIC].partition(b'"')
        book = self._books.get(topic)
        if book is None or update != book.due:
            if not message.startswith(BOOK) or topic in self._exempt:
                return
            self.repeated.add(topic)
            if book is None:
                book = self._books[topic] = _Book()
            elif update != 1 and DELTA in message:
                gaps.append((message, Gap(topic.decode(errors="replace"), book.due - 1, update)))
        book.due, book.text = update + 1, UPDATE % (update + 1)
        book.place = slice(start - len(message), end - len(message))
        if b'"' in (beginning := message[BEGINNING]):  # the topic is whole
            if len(self._by_beginning) >= 4 * len(self._books):  # of delta and snapshot, at two times
                self._by_beginning.clear()
            self._by_beginning[beginning] = book
