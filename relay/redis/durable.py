"""Redis Streams beside Pub/Sub: each message is also added to a stream that has its channel's name as its key. Pure.

Words: in this file a stream is Redis's, a list of entries that consumers can read at any time; elsewhere it is an entry
of STREAMS.

What waits, is in flight, retained or pending is a PUBLISH command here too. What goes over the socket is made of it at
the last moment: so the buffer holds as many messages, and all that handles commands knows one kind of them.

XADD goes first. If the connection breaks between the two, the stream has a message that nobody was told of, and it is
sent again. The other way round a standby would see it published and strike it out, and the stream would never have it.
"""

from collections.abc import Callable
from typing import Any

from relay.redis.backlog import MAX_CHANNELS, Backlog
from relay.redis.pipeline import Pipeline, Refused, Unavailable
from relay.redis.resp import Query, ReplyError, parse_reply, publish_head, split

# The field of an entry that has the message.
FIELD = b"message"
# Where the number of bytes of a channel's name begins in PUBLISH.
_NAME = len(publish_head("")) - len(b"0\r\n\r\n$")
# Lines of the replies to one message: the id of the entry takes two, the number of receivers one.
_LINES = 3
_ELSEWHERE = ("MOVED", "ASK", "CROSSSLOT")
# What follows XADD and the key in a command that Redis never executes, and replies to as it would to a real one.
DRY_RUN = ("0-0", FIELD.decode(), "")


def xadd_head(channel: str, maxlen: int) -> bytes:
    """The beginning of an XADD command; f"{size}\\r\\n{message}\\r\\n" completes it, as it does a PUBLISH."""
    words = b"XADD", channel.encode(), b"MAXLEN", b"~", b"%d" % maxlen, b"*", FIELD
    return b"*%d\r\n%b$" % (len(words) + 1, b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))


def refusal(reply: Any) -> str:
    """Why this Redis cannot have streams beside the channels, "" = it can. reply: to `INFO cluster` or to XADD."""
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)
    if "cluster_enabled:1" in text:
        text = "it is one"
    elif not text.startswith((*_ELSEWHERE, "ERR unknown command", "unknown command")):
        return ""
    return f"REDIS_STREAM_MAXLEN needs a Redis 5 or newer that is no Cluster: {text}"


def is_welcome(reply: Any) -> bool:
    """Whether the reply to DRY_RUN says that only the id is wrong."""
    return "ID specified in XADD must be greater than 0-0" in str(reply)


class DurablePipeline(Pipeline):
    """A pipeline whose messages go to streams too, each kept at `maxlen` entries, or some more (`MAXLEN ~`).

    A message is confirmed when both commands are, and rejected, counted and announced once, when one of them is.
    """

    def __init__(self, backlog: Backlog, status: str, announcement: Callable[[str, int], bytes], maxlen: int) -> None:
        super().__init__(backlog, status, announcement)
        self.maxlen = maxlen
        self._heads: dict[bytes, bytes] = {}  # the beginning of XADD by that of PUBLISH

    def greeting(self) -> list[Query]:
        """Asks whether Redis would take an XADD: what speaks against it must come to light before the first message,
        which would be published, not be added, and be sent again for ever.
        """
        return [Query(_check, "INFO", "cluster"), Query(_check, "XADD", self.status, *DRY_RUN)]

    def take(self) -> bytes:
        """As Pipeline.take(): both commands of each message."""
        heads = self._heads
        parts: list[bytes] = []
        for command in self.batch():
            # The end of the channel's name, unless the name has this in it: then no head is found.
            at = command.find(b"\r\n$", _NAME) + 3
            head = heads.get(command[:at])
            if head is None:
                channel, at = split(command)
                if len(heads) >= MAX_CHANNELS:
                    heads.clear()
                head = heads[command[:at]] = xadd_head(channel, self.maxlen)
            parts += head, command[at:], command
        return b"".join(parts)

    def receive(self, data: bytes) -> None:
        """As Pipeline.receive()."""
        data = self._with_tail(data)
        if self.queries or b"\r\n-" in data or data.startswith(b"-"):
            self._receive_each(data)
            return
        messages, begun = divmod(data.count(b"\r\n"), _LINES)
        end = data.rfind(b"\n")
        for _ in range(begun):
            end = data.rfind(b"\n", 0, end)
        self._tail = data[end + 1 :]
        self._confirm(messages)

    def _outcome(self, data: bytes, at: int) -> tuple[int, bytes]:
        added, after = parse_reply(data, at)
        published, end = parse_reply(data, after) if after >= 0 else (None, -1)
        if end < 0:
            return -1, b""
        if isinstance(added, ReplyError):
            _check(added)
            return end, data[at : after - 2] + b" (XADD)"
        return end, data[after : end - 2] if isinstance(published, ReplyError) else b""


def _check(reply: Any) -> None:
    """The reply to XADD, or to the greeting. What is not about the state of Redis, such as a missing right, is the same
    for each message: that is rejected then, counted and announced.
    """
    if reason := refusal(reply):
        raise Refused(reason)
    if str(reply).startswith("NOREPLICAS"):
        raise Unavailable(str(reply))
