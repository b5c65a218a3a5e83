"""What is in flight to Redis, and what each reply does to it, without the socket.

Pure: no socket, no clock, no log. One law, which tests/test_pipeline.py checks: every message appended is confirmed,
rejected, dropped, waiting or in flight, and never two of these; every loss is announced once.

Ownership: any thread calls Backlog.append(). All of Pipeline belongs to the holder of the link's lock.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from relay.redis.backlog import Backlog, DropNotice
from relay.redis.resp import Query, channel_of, parse_reply, publish_head, text_of

# Bytes in flight, up to the message that exceeds it: what may arrive twice when a connection breaks.
WINDOW = 256 * 1024
# Failed connections after which the one message in flight is held for the cause, and dropped. They take 7 s: a link
# that is cut again and again for some seconds breaks several in a row just when the same message is sent.
MAX_DELIVERY_ATTEMPTS = 10
# Errors that are about the state of Redis, not about the command: the connection is given up, messages are sent again.
UNAVAILABLE = (
    b"-BUSY",
    b"-LOADING",
    b"-MASTERDOWN",
    b"-NOAUTH",
    b"-READONLY",
    b"-DENIED",
    b"-ERR max number of clients",
)
UNAVAILABLE_TO_MESSAGES = (*UNAVAILABLE, b"-TRYAGAIN", b"-CLUSTERDOWN")

_ERROR = ord("-")


class Unavailable(Exception):
    """Redis answers, but does not serve us in its present state."""


class Rejection(NamedTuple):
    """A message that Redis does not take, for the log. `text` is its beginning, `size` its bytes."""

    channel: str
    reason: str
    size: int
    text: str


class PoisonDetector:
    """Finds the message that breaks connections.

    When two connections in a row break with the same message as the first in flight, all that was in flight is sent one
    by one. A message that is alone in flight when MAX_DELIVERY_ATTEMPTS connections in a row broke is poison.
    """

    def __init__(self) -> None:
        self.one_by_one = 0  # messages still to be sent one by one
        self._suspect: bytes | None = None
        self._failures = 0  # connections that broke in a row with _suspect as the first message in flight

    def connection_broke(self, in_flight: list[bytes]) -> bool:
        """Returns whether the only message of `in_flight` is poison. `in_flight` is not empty."""
        first = in_flight[0]
        self._failures = self._failures + 1 if first is self._suspect else 1
        self._suspect = first
        if self._failures >= MAX_DELIVERY_ATTEMPTS and len(in_flight) == 1:
            self._suspect = None
            return True
        if self._failures > 1:
            self.one_by_one = len(in_flight)
        return False


class Pipeline:
    """Commands in flight and the replies to them. Survives its connections: what was in flight is sent again.

    backlog: where messages come from.
    status: the channel of announcements; what Redis rejects there is not announced.
    announcement: the text that announces lost messages, from channel and number.
    """

    def __init__(self, backlog: Backlog, status: str, announcement: Callable[[str, int], bytes]) -> None:
        self.backlog = backlog
        self.status, self._announcement = status, announcement
        self.in_flight: deque[bytes] = deque()  # commands sent, oldest first, queries included
        self._queries = 0  # of these that are queries
        self._tail = b""  # the beginning of a reply whose end has not come
        self._poison = PoisonDetector()
        self.rejected: Counter[str] = Counter()  # messages that Redis rejected since the start, by channel
        self._unannounced: Counter[str] = Counter()  # those of them that are not announced yet
        self._kinds: set[tuple[str, bytes]] = set()  # channels and errors of rejections seen so far
        self.rejections: deque[Rejection] = deque()  # the first of each kind; the publisher's thread takes them out
        self.confirmed = 0  # messages since the start

    @property
    def messages(self) -> int:
        """Messages not confirmed yet. Any thread: a query that is just sent or answered may count for a moment."""
        return self.backlog.count_with(self.in_flight) - self._queries

    @property
    def dropped(self) -> Counter[str]:
        """Messages lost since the start by channel, for whatever reason. Any thread."""
        return self.backlog.overflowed_by_channel() + self.rejected.copy()

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to deliver, announcements included."""
        return not (self.messages or self._unannounced or self.backlog.unannounced)

    def undelivered(self) -> int:
        """How many messages wait or are in flight, announcements not counted."""
        commands = [*self.in_flight, *self.backlog.waiting]
        return sum(type(command) is not Query and channel_of(command) != self.status for command in commands)

    def ask(self, query: Query) -> bytes:
        """Puts a query in flight. Returns the bytes to send, behind all that was taken before."""
        self.in_flight.append(query)
        self._queries += 1
        self.backlog.in_flight_bytes += len(query)
        return bytes(query)

    def take(self) -> bytes:
        """The next messages to send, b"" if none waits or the window is full. Losses are announced where they are."""
        backlog = self.backlog
        room = WINDOW - backlog.in_flight_bytes
        if self._poison.one_by_one:
            room = 0 if self.in_flight else 1
        if room <= 0:
            return b""
        if backlog.unannounced:
            self.announce_losses()
        return b"".join(backlog.move(room, self.in_flight))

    def announce_losses(self) -> None:
        """Queues an announcement of each loss before all that waits. Composed without the backlog's lock: what is
        dropped meanwhile is announced by the next call.
        """
        losses = self.backlog.take_unannounced()
        self.backlog.put_back([self._drop_notice(channel, number) for channel, number in losses.items()])

    def announce_rejected(self) -> None:
        """Announces the messages that Redis rejected since the last call."""
        rejected, self._unannounced = self._unannounced, Counter()
        self.backlog.add_unannounced(rejected)
        self.announce_losses()

    def _drop_notice(self, channel: str, messages: int) -> DropNotice:
        text = self._announcement(channel, messages)
        notice = DropNotice(b"%b%d\r\n%b\r\n" % (publish_head(self.status), len(text), text))
        notice.channel, notice.messages = channel, messages
        return notice

    def receive(self, data: bytes) -> None:
        """Takes bytes that Redis sent, cut anywhere. Raises Unavailable: the connection is no longer usable."""
        data = self._tail + data
        if self._queries or b"-" in data:
            self._receive_each(data)
        else:  # the common case, at a third of the cost: nothing but confirmations
            lines = data.count(b"\r\n")
            if lines > len(self.in_flight):
                raise Unavailable("more replies than commands")
            self._tail = data[data.rfind(b"\n") + 1 :]
            popleft = self.in_flight.popleft
            self._settle(lines, 0, sum([len(popleft()) for _ in range(lines)]))

    def _receive_each(self, data: bytes) -> None:
        in_flight = self.in_flight
        at = messages = rejected = freed = 0
        try:
            while (end := data.find(b"\r\n", at)) >= 0:
                if not in_flight:
                    raise Unavailable("more replies than commands")
                command = in_flight[0]
                if type(command) is Query:
                    if (end := self._answer(command, data, at)) < 0:
                        break
                else:
                    if data[at] == _ERROR:
                        self._reject(command, data[at:end])
                        rejected += 1
                    messages += 1
                freed += len(in_flight.popleft())
                at = end + 2
        finally:
            self._settle(messages, rejected, freed)
            self._tail = data[at:]

    def _settle(self, messages: int, rejected: int, freed: int) -> None:
        """Counts what left the window: messages, those of them that were rejected, and bytes with queries."""
        self.backlog.in_flight_bytes -= freed
        self.confirmed += messages - rejected
        if self._poison.one_by_one:
            self._poison.one_by_one = max(0, self._poison.one_by_one - messages)

    def _answer(self, query: Query, data: bytes, at: int) -> int:
        """Hands a query its reply. Returns where the last line of the reply ends, -1 if it is not complete."""
        reply, after = parse_reply(data, at)
        if after < 0:
            return -1
        if data.startswith(UNAVAILABLE, at):
            raise Unavailable(str(reply))
        query.on_reply(reply)
        self._queries -= 1
        return after - 2

    def _reject(self, command: bytes, error: bytes) -> None:
        if error.startswith(UNAVAILABLE_TO_MESSAGES):
            raise Unavailable(error[1:].decode(errors="replace"))
        channel = channel_of(command)
        self.rejected[channel] += 1
        if channel != self.status:
            self._unannounced[channel] += 1
        kind = channel, error[:12]
        if kind not in self._kinds:
            self._kinds.add(kind)
            text = text_of(command)
            reason, begin = error[1:].decode(errors="replace"), text[:80].decode(errors="replace")
            self.rejections.append(Rejection(channel, reason, len(text), begin))

    def connection_lost(self, broken: bool) -> None:
        """Makes all messages in flight wait again, and forgets queries. `broken`: a message may be the cause."""
        messages = [command for command in self.in_flight if type(command) is not Query]
        self.in_flight.clear()
        self._queries, self._tail = 0, b""
        if broken and messages and self._poison.connection_broke(messages):
            self._reject(messages.pop(), b"-Redis closed the connection on each attempt to deliver it")
        self.backlog.in_flight_bytes = 0  # before they wait: append() must not count them twice and drop some
        self.backlog.put_back(messages)
