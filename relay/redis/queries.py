"""What Redis is asked beside publishing: its role, its subscribers, to keep the state hash. Pure.

Queries travel in the pipeline between the messages. The replies are stored by whichever thread reads them, under the
link's lock; the publisher's thread makes the queries and acts on the replies.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from relay.redis.cluster import REPLICA, Nodes
from relay.redis.pipeline import Unavailable
from relay.redis.resp import Query, ReplyError, ignore

# Channels asked for at once: some thousand are not to keep Redis, or this process, from the messages.
SLICE = 200


class Probe:
    """Asks whether Redis is a master, and who is subscribed, to a part of the channels each time.

    on_master: gets the number of replicas, whenever Redis says that it is a master; None, whenever the user lacks the
        right to ask; under the link's lock.
    watched: the channels that collectors subscribe to which stand by.
    standby_channel: each of these subscribes to it too, so that they can be told from consumers; "" = there are none.

    subscribers: their number by channel as far as known on this connection, and under b"" the number of patterns that
    somebody is subscribed to; None while a probe is under way.
    expected: the same, from when Redis last took messages, without those that had none.
    rounds: how often all channels have been asked for.
    nodes: what it says of the other nodes, if it is one of a Cluster. Their queries go before those of the probe.
    """

    def __init__(
        self,
        on_master: Callable[[int | None], None] = lambda _: None,
        standby_channel: str = "",
        watched: Iterable[str] = (),
    ) -> None:
        self.subscribers: dict[bytes, int] | None = None
        self.expected: dict[bytes, int] = {}
        self.rounds = 0
        self._known: dict[bytes, int] = {}
        self._next = 0  # of the channels
        self._is_taken = True
        self._on_master = on_master
        self._standby_channel, self._watched = standby_channel, {channel.encode() for channel in watched}
        self.nodes = Nodes()

    def begin(self) -> None:
        """On a new connection nothing is known."""
        self._known, self.subscribers, self._is_taken, self._next = {}, {}, True, 0

    def queries(self, channels: Sequence[str]) -> list[Query]:
        """A new probe, of the next of these channels."""
        if self._next >= len(channels):
            self._next = 0
        part = channels[self._next : self._next + SLICE]
        self._next += SLICE
        self.rounds += self._next >= len(channels)
        self.subscribers, self._is_taken = None, False
        standbys = [self._standby_channel] if self._standby_channel else []
        return [
            Query(self._on_role, "ROLE"),
            Query(self._on_channels, "PUBSUB", "NUMSUB", *standbys, *part),
            Query(self._on_patterns, "PUBSUB", "NUMPAT"),
        ]

    def keep(self, channels: Sequence[str]) -> None:
        """There are no channels but these: nobody is expected on others. Not during a probe."""
        if self._next >= len(channels):
            those = {b"", *(channel.encode() for channel in channels)}
            self.expected = {channel: number for channel, number in self.expected.items() if channel in those}
            for channel in self._known.keys() - those:
                del self._known[channel]

    def _on_role(self, reply: Any) -> None:
        # A replica takes PUBLISH without an error. A ReplyError: the user lacks the right to ask.
        if not isinstance(reply, list):
            self._on_master(None)
            return
        if reply[0] != b"master":
            raise Unavailable(REPLICA)
        self._on_master(len(reply[2]) if len(reply) > 2 else 0)

    def _on_channels(self, reply: Any) -> None:
        if not isinstance(reply, list):
            return
        found = dict(zip(reply[::2], reply[1::2], strict=True))
        standbys = found.pop(self._standby_channel.encode(), 0) if self._standby_channel else 0
        for channel, number in found.items():
            self._known[channel] = number - (standbys if self._is_watched(channel) else 0)

    def _is_watched(self, channel: bytes) -> bool:
        """Whether a standby subscribes to it by name; to that of a symbol it does by a pattern."""
        return channel in self._watched or channel.rpartition(b":")[0] not in self._watched

    def _on_patterns(self, reply: Any) -> None:
        self._known[b""] = reply if isinstance(reply, int) else 0
        self.subscribers = self._known

    @property
    def has_ended(self) -> bool:
        """Whether a probe has ended that take() has not told of."""
        return self.subscribers is not None and not self._is_taken

    def take(self) -> bool:
        """Whether a probe has ended, once."""
        if has_ended := self.has_ended:
            self._is_taken = True
        return has_ended

    def accept(self) -> None:
        """Those that are subscribed now are expected from now on."""
        known = self._known  # what was not asked for again on this connection is expected as before
        self.expected = {c: n for c, n in (self.expected | known).items() if n > 0}

    @property
    def missing(self) -> list[str]:
        """The channels that have fewer subscribers than expected, as far as known on this connection."""
        known = self._known
        return [c.decode() for c, n in self.expected.items() if c and known.get(c, 0) < n]

    @property
    def all_are_back(self) -> bool:
        """Whether at least as many are subscribed to each channel as expected, and can be reached."""
        return self.nodes.reaches_all and not self.missing and self._known.get(b"", 0) >= self.expected.get(b"", 0)

    @property
    def nobody(self) -> bool:
        """Whether nobody is subscribed where somebody was expected, and can be reached."""
        return not any(self._known.get(channel, 0) > 0 for channel in self.expected)


class Heartbeat:
    """The event that tells consumers again and again that the collector publishes.

    It is no message: it is not kept while Redis is away, it is not counted, and no Redis Stream has it.
    """

    def __init__(self) -> None:
        self._next: Query | None = None

    def set(self, channel: str, event: bytes) -> None:
        """What is to be published next. Any thread: one may replace another, which nobody misses."""
        self._next = Query(ignore, "PUBLISH", channel, event.decode(errors="backslashreplace"))

    def take(self) -> list[Query]:
        """What publishes it, once."""
        taken, self._next = self._next, None
        return [taken] if taken else []


class StateHash:
    """The hash that keeps the collector's state for late subscribers. It expires when nobody writes it any more.

    heartbeat: what tells of the state those who are there.
    """

    def __init__(self, key: str, expiry: int) -> None:
        self._reasons: set[str] = set()  # why Redis has rejected it since it last took it, the beginnings
        self._changes: deque[str] = deque()  # what take_change() has not told yet
        self._moved: str | None = None  # the last answer that names another node
        self.key, self._expiry = key, expiry
        self._fields: Mapping[str, str] = {}
        self._is_due = False
        self._is_first = True
        self._is_there = False  # whether we have written it
        self.heartbeat = Heartbeat()

    def set(self, fields: Mapping[str, str]) -> None:
        """Replaces the state; without fields it is deleted. Any thread: the mapping is stored before the flag is set,
        and read after it is reset.
        """
        gone = self._fields.keys() - fields.keys()
        self._fields = dict(fields)
        if gone:  # a stream was removed: HSET alone would leave its field
            self._is_first = True
        self._is_due = True

    def write_again(self) -> None:
        """Makes queries() write the last state anew: this Redis may have lost it, or the DEL of the last connection."""
        self._is_due = self._is_first = True

    def queries(self, anew: bool = False) -> list[Query]:
        """What writes the state, if there is a new one. anew: instead of all that is there."""
        if not self._is_due:
            return []
        self._is_due = False
        fields = self._fields
        was_there, self._is_there = self._is_there, bool(fields)
        if not fields:
            return [Query(ignore, "DEL", self.key)] if was_there else []
        queries = [
            Query(self._on_written, "HSET", self.key, *(text for pair in fields.items() for text in pair)),
            Query(ignore, "EXPIRE", self.key, str(self._expiry)),
        ]
        if self._is_first or anew:  # another run may have left fields of streams that this one does not have
            queries.insert(0, Query(ignore, "DEL", self.key))
            self._is_first = False
        return queries

    def take_moved(self) -> str | None:
        """The answer of a node that does not have the slot of the hash, "MOVED …", once; else None."""
        moved, self._moved = self._moved, None
        return moved

    def take_change(self) -> str | None:
        """What is new, in order: why Redis rejects the hash, each reason once until it takes it again; "" when it does.
        Then None.
        """
        return self._changes.popleft() if self._changes else None  # only this thread takes them out

    def _on_written(self, reply: Any) -> None:
        error = str(reply) if isinstance(reply, ReplyError) else ""
        if error.startswith("MOVED "):
            self._moved = error
        elif error and error[:12] not in self._reasons:
            self._reasons.add(error[:12])
            self._changes.append(error)
        elif not error and self._reasons:
            self._reasons.clear()
            self._changes.append("")
