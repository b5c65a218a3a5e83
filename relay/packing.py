"""Which topics are carried by which connection of an entry of STREAMS. Pure.

A connection is a number, from 1 on. A topic never moves from one to another while it lives: that would cost messages.
"""

from collections.abc import Collection
from math import ceil

from relay.bybit.subscription import MAX_TOPIC_CHARACTERS, characters, width

# The part of its room that a connection is filled to when it is new. The rest is for topics that come later, a few at a
# time: a batch of at most this part of the room.
NEW_FILL, SMALL_BATCH = 0.8, 0.05


class Packing:
    """limit: characters of topics on a connection, as characters() counts them.

    connections: the topics of each, in the order in which they came. The first is always there, also without topics.
    The main thread owns it.
    """

    def __init__(self, limit: int = MAX_TOPIC_CHARACTERS) -> None:
        self._limit = limit
        self.connections: dict[int, list[str]] = {1: []}

    def update(self, topics: Collection[str]) -> None:
        """Takes the topics that are carried from now on. What is gone leaves its connection, what is new goes to the
        emptiest one. Where the new ones have no room, connections are added; without topics they end, but the first.
        Each topic must fit on a connection.
        """
        wanted = frozenset(topics)
        for number, carried in self.connections.items():
            self.connections[number] = [topic for topic in carried if topic in wanted]
        lasting = {topic for part in self.connections.values() for topic in part}
        self._place([topic for topic in dict.fromkeys(topics) if topic not in lasting])
        self.connections = {number: part for number, part in sorted(self.connections.items()) if part or number == 1}

    def _place(self, new: list[str]) -> None:
        if not new:
            return
        used = {number: characters(part) for number, part in self.connections.items()}
        batch = sum(map(width, new))
        small = batch <= self._limit * SMALL_BATCH
        fill = self._limit if small and any(self.connections.values()) else int(self._limit * NEW_FILL)
        if not small:
            # While there are so many, the emptiest has room for the longest topic: they are filled evenly.
            room = max(1, fill - max(map(width, new)))
            for _ in range(ceil((sum(used.values()) + batch) / room) - len(used)):
                self._open(used)
        for topic in new:
            number = min(used, key=used.__getitem__)
            if used[number] + width(topic) > fill and self.connections[number]:
                number = self._open(used)
            self.connections[number].append(topic)
            used[number] += width(topic)

    def _open(self, used: dict[int, int]) -> int:
        """Adds a connection, with the lowest number that is free. Returns it."""
        number = next(number for number in range(1, len(used) + 2) if number not in used)
        self.connections[number], used[number] = [], characters(())
        return number


def name_of(entry: str, number: int) -> str:
    """The name of a connection, which its thread bears: "Trades", "Trades#2" and so on."""
    return entry if number == 1 else f"{entry}#{number}"
