"""Messages that wait for Redis, bounded. Pure: no socket, no clock, no log."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from threading import Lock
from typing import Any

from relay.batch import Batch
from relay.events import encoded
from relay.redis.lines import identify
from relay.redis.notices import DropNotice, Event, count_lost
from relay.redis.pending import Pending
from relay.redis.resp import channel_of, publish_head, text_of

# Bytes that a message takes in memory beside its text.
OVERHEAD = 64
# Channels whose names are remembered: so many of the latest, and as many before these. Where each symbol has its own,
# those of options come and go for ever.
MAX_CHANNELS = 10_000
# Bytes waiting above which the backlog counts as crowded, and the share of the limit above which readers wait for room:
# the rest is for what is in flight, and for what all readers together read before they notice.
CROWDED, HALF_FULL = 1 << 20, 0.5
# Messages that stand_by() moves in one go: what others wait for its lock meanwhile is a fraction of a millisecond.
MOVED_AT_ONCE = 200

_DIVERTED = -1  # a limit that every message exceeds


class Backlog:
    """Messages that wait for Redis, bounded: when it is full the oldest are dropped and counted.

    limit: bytes of waiting and in-flight messages together.
    pending: what gets the messages while the backlog is diverted, which it is from the beginning then. None: it never
        is. All of it is owned by the holder of this backlog's lock; its length and counters may be read without it.
    now: the time in milliseconds. channels: those that will have messages, as far as known.

    What is pending is newer than all that waits: nothing is added to the latter while the backlog is diverted.
    """

    def __init__(
        self,
        limit: int,
        pending: Pending | None = None,
        now: Callable[[], int] = lambda: 0,
        channels: Iterable[str] = (),
    ) -> None:
        self.limit, self.pending, self._now = limit, pending, now
        # What append() compares with: the limit, or what makes it look further.
        self._threshold = limit if pending is None else _DIVERTED
        # Written by the pipeline, that is by the holder of the link's lock. It counts against the limit.
        self.in_flight_bytes = 0
        # The beginning of PUBLISH by channel: of those that were named and the latest, and of those before these.
        self._named = {channel: publish_head(channel) for channel in channels}
        self._heads = self._named.copy()
        self._older: dict[str, bytes] = {}
        # Guards all below: every change is made under it. A single number or truth may be read without it. append()
        # takes it on threads that must never wait: whoever holds it only moves and counts.
        self._lock = Lock()
        self._stands_by = pending is not None  # from stand_by() to lead()
        self.waiting: deque[bytes] = deque()  # commands, oldest first
        self.waiting_bytes = 0
        self.overflowed: Counter[str] = Counter()  # messages dropped since the start, by channel
        self.unannounced: Counter[str] = Counter()  # lost messages that no DropNotice announces yet, by channel
        self.waited = 0.0  # seconds of back-pressure since the start, of all threads together

    @property
    def crowded(self) -> float:
        """Bytes waiting above which readers yield. Any thread."""
        return min(CROWDED, self.half_full)

    @property
    def half_full(self) -> float:
        """Bytes waiting above which readers wait for room. Any thread."""
        return self.limit * HALF_FULL

    @property
    def channels(self) -> list[str]:
        """The channels that will have a message, and those that had one: many, the latest among them. Any thread."""
        return list(self._older | self._heads)

    def append(self, channel: str, message: Any) -> None:
        """Queues a message: bytes and str as they are, all else as JSON; or a Batch. Any thread, never waits."""
        if not isinstance(message, bytes):
            if isinstance(message, Batch):
                return self._extend(channel, message)
            message = encoded(message)
        head = self._heads.get(channel) or self._head(channel)
        command = b"%b%d\r\n%b\r\n" % (head, len(message), message)
        with self._lock:
            self.waiting.append(command)
            self.waiting_bytes += len(command) + OVERHEAD
            if self.waiting_bytes + self.in_flight_bytes > self._threshold:
                self._exceeded(channel, message)

    def _extend(self, channel: str, messages: Batch) -> None:
        """Queues messages that came together, at a third of what append() costs for each."""
        head = self._heads.get(channel) or self._head(channel)
        commands = [b"%b%d\r\n%b\r\n" % (head, len(message), message) for message in messages]
        size = sum(map(len, commands)) + OVERHEAD * len(commands)
        with self._lock:
            if self.pending is None or self._threshold != _DIVERTED:
                self.waiting.extend(commands)
                self.waiting_bytes += size
                self._drop_oldest()
                return
        for message in messages:  # one by one: what is pending is hashed under the lock
            self.append(channel, message)

    def announce(self, channel: str, message: bytes, topics: Sequence[str]) -> None:
        """Queues an event, in order with the messages. Any thread."""
        command = Event(b"%b%d\r\n%b\r\n" % (self._heads.get(channel) or self._head(channel), len(message), message))
        command.topics = topics
        with self._lock:
            if self.pending is not None and self._threshold == _DIVERTED:
                self.pending.add_event(command, topics, self._now())
                return
            self.waiting.append(command)
            self.waiting_bytes += len(command) + OVERHEAD
            self._drop_oldest()

    def _head(self, channel: str) -> bytes:
        """Of a channel that is not among the latest."""
        with self._lock:
            if len(self._heads) >= MAX_CHANNELS:
                self._heads, self._older = self._named.copy(), self._heads
            head = self._heads[channel] = self._older.get(channel) or publish_head(channel)
        return head

    def _exceeded(self, channel: str, message: bytes) -> None:
        """The newest message exceeds the threshold."""
        if self.pending is None or self._threshold != _DIVERTED:
            self._drop_oldest()
            return
        command = self.waiting.pop()
        self.waiting_bytes -= len(command) + OVERHEAD
        self.pending.add(command, channel, message, self._now())

    def _drop_oldest(self) -> None:
        assert self._lock.locked()
        while self.waiting and self.waiting_bytes + self.in_flight_bytes > self.limit:
            oldest = self.waiting.popleft()
            self.waiting_bytes -= len(oldest) + OVERHEAD
            if isinstance(oldest, DropNotice):  # what it announces must be announced again
                self.unannounced[oldest.channel] += oldest.messages
            else:
                channel = channel_of(oldest)
                count_lost(self.overflowed, channel)
                self.unannounced[channel] += 1

    def count_waited(self, seconds: float) -> None:
        """A thread has waited because of back-pressure. Any thread."""
        with self._lock:
            self.waited += seconds

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

    def send_again(self, commands: list[bytes]) -> int:
        """As put_back(), for commands that were confirmed once. While this instance stands by they become pending.
        Returns their number. Others wait for the lock as for that of stand_by().
        """
        for end in range(len(commands), 0, -MOVED_AT_ONCE):
            some = commands[max(0, end - MOVED_AT_ONCE) : end]
            size = sum(map(len, some)) + OVERHEAD * len(some)
            with self._lock:
                self.waiting.extendleft(reversed(some))
                self.waiting_bytes += size
        while self._stands_by and self._move_newest_to_pending():
            pass
        return len(commands)

    def count_with(self, in_flight: deque[bytes]) -> int:
        """The number of commands that wait here or are in flight. Any thread: move() cannot come in between."""
        with self._lock:
            return len(self.waiting) + len(in_flight)

    def move(self, room: int, in_flight: deque[bytes]) -> list[bytes]:
        """Puts the oldest commands in flight, as many as it takes to fill `room` bytes, and returns them."""
        waiting = self.waiting
        with self._lock:
            size = self.waiting_bytes - OVERHEAD * len(waiting)
            if size <= room:  # nearly always: then nothing is done for each
                batch = list(waiting)
                waiting.clear()
                self.waiting_bytes = 0
            else:
                batch, size = [], 0
                while waiting and size < room:
                    batch.append(waiting.popleft())
                    size += len(batch[-1])
                self.waiting_bytes -= size + OVERHEAD * len(batch)
            # In the same moment: append() must see every byte, and count_with() every command, here or there.
            self.in_flight_bytes += size
            in_flight.extend(batch)
        return batch

    # Leader and standby, with `pending` only.

    @property
    def diverted(self) -> bool:
        """Whether what is appended becomes pending. Any thread."""
        return self._threshold == _DIVERTED

    def divert(self) -> None:
        """What is appended from now on becomes pending. Any thread."""
        with self._lock:
            if self.pending is not None:
                self._threshold = _DIVERTED

    def lead(self) -> None:
        """What is pending waits for Redis from now on, and so does what is appended. Any thread.

        What went because of the limit while it was pending counts as dropped now, and is announced before all else.
        """
        with self._lock:
            if self.pending is not None:
                commands, lost = self.pending.take()
                self.waiting.extend(commands)
                self.waiting_bytes += sum(map(len, commands)) + OVERHEAD * len(commands)
                for channel, messages in lost.items():
                    count_lost(self.overflowed, channel, messages)
                self.unannounced.update(lost)
            self._threshold = self.limit
            self._stands_by = False

    def stand_by(self) -> None:
        """Diverts, and makes pending what waits: before all that is pending, in its order. Any thread.

        Nothing must be in flight any more. Losses that no consumer was told of stay counted for the next lead().
        """
        self.divert()
        with self._lock:
            self._stands_by = self.pending is not None
        while self._move_newest_to_pending():
            pass

    def _move_newest_to_pending(self) -> bool:
        """Moves a part, and returns whether there may be more. What takes time is done without the lock."""
        with self._lock:
            newest = list(islice(reversed(self.waiting), MOVED_AT_ONCE))
        identities = [(channel_of(command), identify(text_of(command))) for command in newest]
        now = self._now()
        with self._lock:
            # lead() may have come in between: then what was moved before waits behind what was not, as it should.
            if self.pending is None or self._threshold != _DIVERTED or not self.waiting:
                return False
            for command, (channel, identity) in zip(newest, identities, strict=True):
                if not self.waiting or self.waiting[-1] is not command:
                    break  # another thread does the same
                self.waiting.pop()
                self.waiting_bytes -= len(command) + OVERHEAD
                if isinstance(command, DropNotice):
                    self.unannounced[command.channel] += command.messages
                elif isinstance(command, Event):
                    self.pending.put_event_before(command, command.topics, now)
                else:
                    self.pending.put_before(command, channel, identity, now)
            return bool(self.waiting)

    def strike(self, channel: str, message: bytes) -> None:
        """The leader has published this message. The leadership's thread."""
        with self._lock:
            if self.pending is not None:
                self.pending.strike(channel, message, self._now())

    def behind(self) -> float:
        """Seconds since the arrival of the oldest that is pending. Any thread."""
        with self._lock:
            since = None if self.pending is None else self.pending.since
        return 0.0 if since is None else max(0.0, (self._now() - since) / 1000)

    def prune(self, before_ms: int) -> None:
        """Strikes out what arrived before this time. For as long as the leader is known to publish all that it gets."""
        with self._lock:
            if self.pending is not None:
                self.pending.prune(before_ms)
