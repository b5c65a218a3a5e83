"""What is in flight to Redis, and what each reply does to it, without the socket.

Pure: no socket, no clock, no log. One law, which tests/test_pipeline.py checks: every message appended is confirmed,
rejected, dropped, waiting or in flight, and never two of these; every loss is announced once.

Ownership: any thread calls Backlog.append(). All of Pipeline belongs to the holder of the link's lock.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from relay.log import LogOnce
from relay.redis.backlog import Backlog
from relay.redis.notices import DropNotice, count_lost
from relay.redis.poison import PoisonDetector
from relay.redis.resp import Query, channel_of, parse_reply, publish_head, text_of
from relay.redis.retained import Retained

# Bytes in flight, up to the message that exceeds it: what may arrive twice when a connection breaks.
WINDOW = 256 * 1024
# Bytes of a reply, about: none that is asked for is nearly as long, so it is no Redis.
MAX_REPLY = 1 << 20
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


class Unavailable(Exception):
    """Redis answers, but does not serve us in its present state."""


class Refused(Unavailable):
    """Redis will never serve us as it is set up: the text is a sentence for the user."""


class Rejection(NamedTuple):
    """A message that Redis does not take, for the log. `text` is its beginning, `size` its bytes."""

    channel: str
    reason: str
    size: int
    text: str


class Pipeline:
    """Commands in flight and the replies to them. Survives its connections: what was in flight is sent again.

    backlog: where messages come from.
    status: the channel of announcements. What Redis rejects there is not announced, but they are made again.
    announcement: the text that announces lost messages, from channel and number.
    retains: whether what is confirmed is kept until verified(): it is worth nothing if the server was no master any
        more. Off, it costs nothing.
    """

    maxlen = 0  # of the streams of a DurablePipeline

    def __init__(self, backlog: Backlog, status: str, announcement: Callable[[str, int], bytes]) -> None:
        self.backlog = backlog
        self.status, self._announcement = status, announcement
        self.in_flight: deque[bytes] = deque()  # commands sent, oldest first, queries included
        self.queries = 0  # of these that are queries; any thread may read it
        self._tail = b""  # the beginning of a reply whose end has not come
        self._poison = PoisonDetector()
        self.rejected: Counter[str] = Counter()  # messages that Redis rejected since the start, by channel
        self._unannounced: Counter[str] = Counter()  # those of them that are not announced yet
        self._is_denied = False  # whether Redis has rejected an announcement since the last announce_rejected()
        self._log_once = LogOnce()
        self.rejections: deque[Rejection] = deque()  # the first by channel and error; the publisher takes them out
        self.confirmed = 0  # messages since the start; one that is sent again counts again
        self.retains = False
        self._retained = Retained()

    @property
    def messages(self) -> int:
        """Messages not confirmed yet. Any thread: a query that is just sent or answered may count for a moment."""
        return self.backlog.count_with(self.in_flight) - self.queries

    @property
    def dropped(self) -> Counter[str]:
        """Messages lost since the start by channel, for whatever reason. Any thread."""
        return self.backlog.overflowed_by_channel() + self.rejected.copy()

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to deliver, announcements included, except for those that Redis has just rejected."""
        unannounced = self._unannounced and not self._is_denied
        return not (self.messages or unannounced or self.backlog.unannounced)

    def undelivered(self) -> int:
        """How many messages wait or are in flight, announcements not counted."""
        commands = [*self.in_flight, *self.backlog.waiting]
        return sum(type(command) is not Query and channel_of(command) != self.status for command in commands)

    def ask(self, query: Query) -> bytes:
        """Puts a query in flight. Returns the bytes to send, behind all that was taken before."""
        self.in_flight.append(query)
        self.queries += 1
        self.backlog.in_flight_bytes += len(query)
        return bytes(query)

    def greeting(self) -> list[Query]:
        """What a new connection is asked before the first message."""
        return []

    def take(self) -> bytes:
        """The next messages to send, b"" if none waits or the window is full. Losses are announced where they are."""
        return b"".join(self.batch())

    def batch(self) -> list[bytes]:
        """The messages of take(), which are in flight now."""
        backlog = self.backlog
        room = WINDOW - backlog.in_flight_bytes
        if self._poison.one_by_one:
            room = 0 if self.in_flight else 1
        if room <= 0:
            return []
        if backlog.unannounced:
            self.announce_losses()
        return backlog.move(room, self.in_flight)

    def announce_losses(self) -> None:
        """Queues an announcement of each loss before all that waits. Composed without the backlog's lock: what is
        dropped meanwhile is announced by the next call.
        """
        losses = self.backlog.take_unannounced()
        self.backlog.put_back([self._drop_notice(channel, number) for channel, number in losses.items()])

    def announce_rejected(self) -> None:
        """Announces the messages that Redis rejected since the last call."""
        rejected, self._unannounced, self._is_denied = self._unannounced, Counter(), False
        self.backlog.add_unannounced(rejected)
        self.announce_losses()

    def _drop_notice(self, channel: str, messages: int) -> DropNotice:
        text = self._announcement(channel, messages)
        notice = DropNotice(b"%b%d\r\n%b\r\n" % (publish_head(self.status), len(text), text))
        notice.channel, notice.messages = channel, messages
        return notice

    def receive(self, data: bytes) -> None:
        """Takes bytes that Redis sent, cut anywhere. Raises Unavailable: the connection is no longer usable."""
        data = self._with_tail(data)
        if self.queries or b"-" in data:
            self._receive_each(data)
        else:  # the common case, at a third of the cost: nothing but confirmations
            self._tail = data[data.rfind(b"\n") + 1 :]
            self._confirm(data.count(b"\r\n"))

    def _with_tail(self, data: bytes) -> bytes:
        """What Redis has sent, beginning with a reply. Raises Unavailable if that has no end."""
        if len(self._tail) > MAX_REPLY:
            raise Unavailable(f"a reply of more than {MAX_REPLY:,} bytes")
        return self._tail + data

    def _confirm(self, messages: int) -> None:
        """The oldest in flight are confirmed. They are no queries."""
        if messages > len(self.in_flight):
            raise Unavailable("more replies than commands")
        popleft = self.in_flight.popleft
        confirmed = [popleft() for _ in range(messages)]
        size = sum(map(len, confirmed))
        self._settle(messages, 0, size)
        if self.retains:
            self._retain(confirmed, size)

    def _receive_each(self, data: bytes) -> None:
        in_flight = self.in_flight
        at = messages = rejected = freed = 0
        try:
            while data.find(b"\r\n", at) >= 0:
                if not in_flight:
                    raise Unavailable("more replies than commands")
                command = in_flight[0]
                if type(command) is Query:
                    if (end := self._answer(command, data, at)) < 0:
                        break
                else:
                    end, error = self._outcome(data, at)
                    if end < 0:
                        break
                    if error:
                        self._reject(command, error)
                        rejected += 1
                    elif self.retains:  # now, as the next reply may be that of a query which verifies it
                        self._retain([command], len(command))
                    messages += 1
                freed += len(in_flight.popleft())
                at = end
        finally:
            self._settle(messages, rejected, freed)
            self._tail = data[at:]

    def _settle(self, messages: int, rejected: int, freed: int) -> None:
        """Counts what left the window: messages, those of them that were rejected, and bytes with queries."""
        self.backlog.in_flight_bytes -= freed
        self.confirmed += messages - rejected
        if self._poison.one_by_one:
            self._poison.one_by_one = max(0, self._poison.one_by_one - messages)

    def _outcome(self, data: bytes, at: int) -> tuple[int, bytes]:
        """The reply to a message, of which a line has come: where it ends, -1 if it is not complete; and its error."""
        end = data.index(b"\r\n", at)
        return end + 2, data[at:end] if data.startswith(b"-", at) else b""

    def _answer(self, query: Query, data: bytes, at: int) -> int:
        """Hands a query its reply. Returns where the reply ends, -1 if it is not complete."""
        reply, after = parse_reply(data, at)
        if after < 0:
            return -1
        if data.startswith(UNAVAILABLE, at):
            raise Unavailable(str(reply))
        query.on_reply(reply)
        self.queries -= 1
        return after

    def _reject(self, command: bytes, error: bytes) -> None:
        if error.startswith(UNAVAILABLE_TO_MESSAGES):
            raise Unavailable(error[1:].decode(errors="replace"))
        channel = channel_of(command)
        if isinstance(command, DropNotice):  # what it announces must be announced again
            self._unannounced[command.channel] += command.messages
            self._is_denied = True
        else:
            count_lost(self.rejected, channel)
            if channel != self.status:
                self._unannounced[channel] += 1
        if self._log_once.first(error[:12].decode(errors="replace"), channel):
            text = text_of(command)
            reason, begin = error[1:].decode(errors="replace"), text[:80].decode(errors="replace")
            self.rejections.append(Rejection(channel, reason, len(text), begin))

    def connection_lost(self, broken: bool) -> None:
        """Makes all messages in flight wait again, and forgets queries. `broken`: a message may be the cause."""
        messages = [command for command in self.in_flight if type(command) is not Query]
        self.in_flight.clear()
        self.queries, self._tail = 0, b""
        if broken and messages and self._poison.connection_broke(messages):
            self._reject(messages.pop(), b"-Redis closed the connection on each attempt to deliver it")
        self.backlog.in_flight_bytes = 0  # before they wait: append() must not count them twice and drop some
        if self.backlog.unannounced:
            self.announce_losses()  # what was dropped is newer than all that was in flight
        self.backlog.put_back(messages)

    # Retention.

    @property
    def retained(self) -> int:
        """How many confirmed messages are kept. Any thread."""
        return len(self._retained)

    @property
    def squeezed_out(self) -> int:
        """How many of them were forgotten since the start for want of room. Any thread."""
        return self._retained.squeezed_out

    def mark(self) -> int:
        """What is confirmed by now, for verified() later. May be called by the on_reply of a query, as that."""
        return self._retained.added

    def verified(self, mark: int | None = None) -> None:
        """All that was confirmed until now, or until mark() returned this, is where it belongs: it is kept no longer.
        May be called by the on_reply of a query, and then is about what was confirmed before its reply.
        """
        self._retained.forget(self._retained.added if mark is None else mark)

    def send_again(self) -> int:
        """What was confirmed since verified() reached nobody: it waits again, before all that waits. Returns the number
        of messages. To be called between two connections, or on a new one before a message is sent. While this instance
        stands by it becomes pending, before all else.
        """
        assert len(self.in_flight) == self.queries, "what is in flight would come before what is older"
        backlog = self.backlog
        self.announce_losses()  # those that waited are missing behind what is put before them now
        self.fit()
        number = backlog.send_again(list(self._retained))
        self._retained.clear()
        if self._poison.one_by_one:  # the suspect waits behind these
            self._poison.one_by_one += number
        return number

    def _retain(self, confirmed: list[bytes], size: int) -> None:
        self._retained.add(confirmed, size)
        self.fit()

    def fit(self) -> None:
        """Forgets the oldest of what is retained, for which the buffer has no room beside what waits: more and more in
        an outage, so it is to be called now and then.
        """
        self._retained.fit(self.backlog.limit - self.backlog.waiting_bytes - self.backlog.in_flight_bytes)
