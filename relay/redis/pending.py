"""What a standby keeps: the messages that the leader has not published, as far as can be told. Pure.

Leader and standby get the same sequence of messages for each topic, over connections of their own. The standby keeps
its copies, watches what the leader publishes, and strikes that out. The two sequences are compared topic by topic:

- A message has a key, a hash of its text without the 13 digits after the first `"ts":`, as `ts` may differ between two
  connections. Its position is those digits, in milliseconds; 0 if there are none.
- The leader's copy is found here by its key: that entry and all older ones of the topic go.
- It is not found: entries that are more than SHIFT older go; without positions, those that arrived ARRIVAL before. Its
  key is remembered for a while: if our own copy comes later it is not kept, nor is anything older of the topic.

So nothing is struck out but what the leader has published, and what is older than that in the same topic. What cannot
be told is kept, until prune(): a takeover then publishes it a second time.

Ownership: whoever holds the lock of the Backlog that has this Pending, the leadership's thread with strike() included.
"""

from collections import Counter, deque
from collections.abc import Iterable

from relay.redis.lines import EARLY, SHIFT, Entry, Event, Identity, Line, count_out, identify

# Bytes that an entry takes in memory beside its command.
OVERHEAD = 320
# Messages of the leader's that are remembered of a topic because they came before our copies.
MAX_EARLY = 4096
# Topics above which the leader's messages introduce no new one: a foreign publisher might.
MAX_TOPICS = 20_000
# New topics after which those are forgotten that are not needed any more: contracts of options come and go for ever.
TIDY_EVERY = 2000


class Pending:
    """The messages and events that a standby keeps.

    limit: bytes; the oldest go. bytes: of all that is kept.
    struck, overflowed: how many were struck out or left out, and how many went because of the limit, since the start.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = self.struck = self.overflowed = 0
        self._count = 0
        self._serial = 0  # of the newest
        self._order: deque[Entry] = deque()  # by age; some of them have gone
        self._lines: dict[tuple[str, bytes], Line] = {}  # by channel and topic
        self._tidy_at, self._pruned = TIDY_EVERY, 0  # number of these; the latest `before_ms` of prune()
        self._events: dict[bytes, deque[Event]] = {}  # by topic, oldest first

    def __len__(self) -> int:
        """The number of messages and events. Any thread."""
        return self._count

    @property
    def since(self) -> int | None:
        """The arrival of the oldest message, in ms; None if there is none. An event tells nothing: it may be about a
        topic that has no messages.
        """
        return next((entry.arrival for entry in self._order if entry.command and entry.line is not None), None)

    def add(self, command: bytes, channel: str, message: bytes, now_ms: int) -> None:
        """Keeps a message, unless the leader has published it. now_ms: the time of its arrival, for prune()."""
        topic, key, position = identify(message)
        line = self._lines.get((channel, topic)) or self._new_line(channel, topic, now_ms)
        self._serial = serial = self._serial + 1
        if line.early and (key in line.early_keys or 0 < position < line.passed - SHIFT):
            self._add_struck(line, topic, key)
            return
        entry = Entry(command, line, key, position, serial, now_ms)
        line.entries.append(entry)
        line.keys[key] = line.keys.get(key, 0) + 1
        self._order.append(entry)
        self._keep(entry)

    def add_event(self, command: bytes, topics: Iterable[str], now_ms: int) -> None:
        """Keeps an event about topics for as long as one of them has nothing newer that was struck out. An event
        without topics, which is about this instance only, is left out.
        """
        self._serial += 1
        event = Event(command, topics, self._serial, now_ms)
        for topic in event.topics:
            self._events.setdefault(topic, deque()).append(event)
        if event.topics:
            self._order.append(event)
            self._keep(event)
        else:
            self.struck += 1

    def put_before(self, command: bytes, channel: str, identity: Identity, now_ms: int) -> None:
        """Keeps a message that is older than all that is kept. identity: what identify() tells of it."""
        topic, key, position = identity
        line = self._lines.get((channel, topic)) or self._new_line(channel, topic, now_ms)
        entry = Entry(command, line, key, position, self._older(), now_ms)
        line.entries.appendleft(entry)
        line.keys[key] = line.keys.get(key, 0) + 1
        self._order.appendleft(entry)
        self._keep(entry)

    def put_event_before(self, command: bytes, topics: Iterable[str], now_ms: int) -> None:
        """Keeps an event that is older than all that is kept."""
        event = Event(command, topics, self._older(), now_ms)
        for topic in event.topics:
            self._events.setdefault(topic, deque()).appendleft(event)
        if event.topics:
            self._order.appendleft(event)
            self._keep(event)
        else:
            self.struck += 1

    def strike(self, channel: str, message: bytes, now_ms: int) -> None:
        """The leader has published this message. now_ms: the time, as add() gets it."""
        topic, key, position = identify(message)
        line = self._lines.get((channel, topic))
        if line is None:
            if len(self._lines) >= MAX_TOPICS:
                return
            line = self._new_line(channel, topic, now_ms)
        entries, newest = line.entries, None
        if key in line.keys:
            while newest is None or newest.key != key:
                newest = entries.popleft()
                self._strike(newest)
            # The leader's messages that were not found are older than this one: copies of them will not come any more.
            if line.early:
                line.early.clear()
                line.early_keys.clear()
        else:
            while entries and entries[0].is_older(position, now_ms):
                newest = entries.popleft()
                self._strike(newest)
            self._remember(line, key, position, now_ms)
        if newest is not None:
            self._published_since(line, topic, newest.serial)

    def prune(self, before_ms: int) -> None:
        """Strikes out what arrived before this time. For as long as the leader is known to publish all that it gets."""
        self._pruned = max(self._pruned, before_ms)
        while self._order and (not self._order[0].command or self._order[0].arrival < before_ms):
            oldest = self._order.popleft()
            if oldest.command:
                self._leave(oldest)
                self._strike(oldest)
                if oldest.line is not None:
                    oldest.line.lost = 0

    def _add_struck(self, line: Line, topic: bytes, key: int) -> None:
        """Our copy of a message that the leader has published, or that is older. The newest of all."""
        if key in line.early_keys:
            found = None
            while found != key:
                found, _ = line.early.popleft()
                count_out(line.early_keys, found)
            while line.entries:
                self._strike(line.entries.popleft())
        self.struck += 1
        self._published_since(line, topic, self._serial)

    def _remember(self, line: Line, key: int, position: int, now_ms: int) -> None:
        line.passed = position
        line.early.append((key, now_ms))
        line.early_keys[key] = line.early_keys.get(key, 0) + 1
        while len(line.early) > MAX_EARLY or line.early[0][1] < now_ms - EARLY:
            count_out(line.early_keys, line.early.popleft()[0])

    def _published_since(self, line: Line, topic: bytes, serial: int) -> None:
        """Nothing of the topic is missing up to this serial number: what was lost, and events, are overtaken."""
        line.lost = 0
        if topic in self._events:
            self._cross_off(topic, serial)
        # What has gone leaves `_order` at its front at once, elsewhere when it is most of it.
        order = self._order
        while order and not order[0].command:
            order.popleft()
        if len(order) > 2 * self._count + 1000:
            self._order = deque(entry for entry in order if entry.command)

    def _cross_off(self, topic: bytes, serial: int) -> None:
        events = self._events[topic]
        while events and events[0].serial < serial:
            event = events.popleft()
            event.topics.remove(topic)
            if not event.topics:
                self._strike(event)
        if not events:
            del self._events[topic]

    # A takeover.

    def take(self) -> tuple[list[bytes], Counter[str]]:
        """All commands in order of arrival; and by channel how many messages went because of the limit although the
        leader is not known to have published them or anything newer of their topics. All of it is forgotten here.
        """
        commands = [entry.command for entry in self._order if entry.command]
        lost: Counter[str] = Counter()
        for (channel, _), line in self._lines.items():
            if line.lost:
                lost[channel] += line.lost
        self._order, self._lines, self._events = deque(), {}, {}
        self._count = self.bytes = 0
        return commands, lost

    # Parts.

    def _new_line(self, channel: str, topic: bytes, now_ms: int) -> Line:
        if len(self._lines) >= self._tidy_at:
            for name in [one for one, line in self._lines.items() if not line.is_needed(now_ms, self._pruned)]:
                del self._lines[name]
            self._tidy_at = len(self._lines) + TIDY_EVERY
        line = self._lines[channel, topic] = Line()
        return line

    def _older(self) -> int:
        """A serial number before all others."""
        return self._order[0].serial - 1 if self._order else self._serial

    def _keep(self, entry: Entry) -> None:
        """Counts a new entry, and drops the oldest if the limit asks for it."""
        self._count += 1
        self.bytes += len(entry.command) + OVERHEAD
        while self.bytes > self.limit:
            oldest = self._order.popleft()
            if oldest.command:
                self._leave(oldest)
                self._strike(oldest)
                self.struck -= 1
                self.overflowed += 1
                if oldest.line is not None:
                    oldest.line.lost += 1
                    oldest.line.lost_at = oldest.arrival

    def _leave(self, oldest: Entry) -> None:
        """Takes the oldest of all entries out of its line, or its topics, where it is the oldest too."""
        if oldest.line is not None:
            oldest.line.entries.popleft()
        elif isinstance(oldest, Event):
            for topic in oldest.topics:
                events = self._events[topic]
                events.popleft()
                if not events:
                    del self._events[topic]

    def _strike(self, entry: Entry) -> None:
        """Counts an entry as struck out that has left its line. `_order` still has it, until that is tidied up."""
        if entry.line is not None:
            count_out(entry.line.keys, entry.key)
        self.struck += 1
        self._count -= 1
        self.bytes -= len(entry.command) + OVERHEAD
        entry.command = b""
