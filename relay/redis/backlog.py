"""Messages that wait for Redis, bounded. Pure: no socket, no clock, no log."""

from collections import Counter, deque
from collections.abc import Mapping
from threading import Lock
from typing import Any

from relay.events import encoded
from relay.redis.resp import channel_of, publish_head

# Bytes that a message takes in memory beside its text.
OVERHEAD = 64


class Gap(bytes):
    """A PUBLISH that announces lost messages. It knows what it announces, in case it is dropped itself."""

    channel: str
    messages: int


class Backlog:
    """Messages that wait for Redis, bounded: when it is full the oldest are dropped and counted.

    limit: bytes of waiting and in-flight messages together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Written by the pipeline, that is by the holder of the link's lock. It counts against the limit.
        self.in_flight_bytes = 0
        self._heads: dict[str, bytes] = {}  # the beginning of PUBLISH, by channel
        # Guards all below: every change is made under it. A single number or truth may be read without it. append()
        # takes it on threads that must never wait: whoever holds it only moves and counts.
        self._lock = Lock()
        self.waiting: deque[bytes] = deque()  # commands, oldest first
        self.waiting_bytes = 0
        self.overflowed: Counter[str] = Counter()  # messages dropped since the start, by channel
        self.unannounced: Counter[str] = Counter()  # lost messages that no Gap announces yet, by channel

    @property
    def channels(self) -> list[str]:
        """All channels that had a message. Any thread."""
        return list(self._heads)

    def append(self, channel: str, message: Any) -> None:
        """Queues a message: bytes and str as they are, all else as JSON. Any thread; never waits for Redis."""
        if not isinstance(message, bytes):
            message = encoded(message)
        head = self._heads.get(channel) or self._head(channel)
        command = b"%b%d\r\n%b\r\n" % (head, len(message), message)
        with self._lock:
            self.waiting.append(command)
            self.waiting_bytes += len(command) + OVERHEAD
            if self.waiting_bytes + self.in_flight_bytes > self.limit:
                self._drop_oldest()

    def _head(self, channel: str) -> bytes:
        head = self._heads[channel] = publish_head(channel)
        return head

    def _drop_oldest(self) -> None:
        assert self._lock.locked()
        while self.waiting and self.waiting_bytes + self.in_flight_bytes > self.limit:
            oldest = self.waiting.popleft()
            self.waiting_bytes -= len(oldest) + OVERHEAD
            if isinstance(oldest, Gap):  # what it announces must be announced again
                self.unannounced[oldest.channel] += oldest.messages
            else:
                channel = channel_of(oldest)
                self.overflowed[channel] += 1
                self.unannounced[channel] += 1

    def add_unannounced(self, messages: Mapping[str, int]) -> None:
        """Lost messages, by channel, that wait to be announced like those that were dropped here."""
        with self._lock:
            self.unannounced.update(messages)

    def take_unannounced(self) -> Counter[str]:
        """Lost messages by channel. The caller must announce them: they are forgotten here."""
        with self._lock:
            unannounced, self.unannounced = self.unannounced, Counter()
        return unannounced

    def overflowed_by_channel(self) -> Counter[str]:
        """A copy of `overflowed`. Any thread."""
        with self._lock:
            return self.overflowed.copy()

    def put_back(self, commands: list[bytes]) -> None:
        """Makes commands wait again, in their order and before all others."""
        size = sum(map(len, commands)) + OVERHEAD * len(commands)
        with self._lock:
            self.waiting.extendleft(reversed(commands))
            self.waiting_bytes += size

    def count_with(self, in_flight: deque[bytes]) -> int:
        """The number of commands that wait here or are in flight. Any thread: move() cannot come in between."""
        with self._lock:
            return len(self.waiting) + len(in_flight)

    def move(self, room: int, in_flight: deque[bytes]) -> list[bytes]:
        """Puts the oldest commands in flight, as many as it takes to fill `room` bytes, and returns them."""
        batch: list[bytes] = []
        waiting = self.waiting
        size = 0
        with self._lock:
            while waiting and size < room:
                command = waiting.popleft()
                size += len(command)
                batch.append(command)
            self.waiting_bytes -= size + OVERHEAD * len(batch)
            # In the same moment: append() must see every byte, and count_with() every command, here or there.
            self.in_flight_bytes += size
            in_flight.extend(batch)
        return batch
