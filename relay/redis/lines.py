"""Parts of pending.py: a topic, and what is kept of it. Pure."""

from collections import deque
from collections.abc import Iterable

# Milliseconds by which the `ts` of the same message may differ between two connections.
SHIFT = 1000
# Milliseconds by which the same message may arrive earlier here than it is published by the leader.
ARRIVAL = 3000
# Milliseconds for which a message of the leader's is remembered that came before our copy.
EARLY = 5000

_TS, _TOPIC, _BEGIN = b'"ts":', b'"topic":"', b'{"topic":"'

Identity = tuple[bytes, int, int]


def identify(message: bytes) -> Identity:
    """Topic, key and position of a message. The topic is empty and the position 0 where the message has none."""
    start = 10 if message.startswith(_BEGIN) else message.find(_TOPIC) + 9
    topic = message[start : message.find(b'"', start)] if start > 8 else b""
    head, _, rest = message.partition(_TS)
    digits = rest[:13]
    if len(digits) == 13 and digits.isdigit():
        return topic, hash((head, rest[13:])), int(digits)
    return topic, hash(message), 0


def count_out(keys: dict[int, int], key: int) -> None:
    number = keys.pop(key)
    if number > 1:
        keys[key] = number - 1


class Line:
    """The messages of one topic in one channel."""

    __slots__ = ("early", "early_keys", "entries", "keys", "lost", "lost_at", "passed")

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()  # oldest first
        self.keys: dict[int, int] = {}  # number of entries by key
        self.early: deque[tuple[int, int]] = deque()  # key and ms of the leader's messages that were not found
        self.early_keys: dict[int, int] = {}  # number of these by key
        self.passed = 0  # the position of the newest of these
        self.lost = 0  # entries that went because of the limit; 0 again when the leader publishes something newer
        self.lost_at = 0  # the arrival of the newest of these, ms

    def is_needed(self, now_ms: int, published_ms: int) -> bool:
        """Whether it says more than a new one would. published_ms: all that arrived before it was published."""
        return bool(
            self.entries
            or (self.early and self.early[-1][1] >= now_ms - EARLY)
            or (self.lost and self.lost_at >= published_ms)
        )


class Entry:
    """A message, which has a line, or an event, which has none."""

    __slots__ = ("arrival", "command", "key", "line", "position", "serial")

    def __init__(self, command: bytes, line: Line | None, key: int, position: int, serial: int, arrival: int) -> None:
        self.command = command  # b"" once the entry has gone
        self.line, self.key, self.position = line, key, position
        self.serial, self.arrival = serial, arrival  # by age; ms

    def is_older(self, position: int, now_ms: int) -> bool:
        """Than a message of its line that was published now."""
        if self.position and position:
            return self.position < position - SHIFT
        return self.arrival < now_ms - ARRIVAL


class Event(Entry):
    __slots__ = ("topics",)

    def __init__(self, command: bytes, topics: Iterable[str], serial: int, arrival: int) -> None:
        super().__init__(command, None, 0, 0, serial, arrival)
        self.topics = {topic.encode() for topic in topics}  # those that have nothing newer that was struck out
