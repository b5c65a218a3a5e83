"""What Redis is asked beside publishing: its role, its subscribers, to keep the state hash. Pure.

Queries travel in the pipeline between the messages. The replies are stored by whichever thread reads them, under the
link's lock; the publisher's thread makes the queries and acts on the replies.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from relay.redis.pipeline import Unavailable
from relay.redis.resp import Query, ReplyError


class Probe:
    """Asks whether Redis is a master, and who is subscribed.

    subscribers: their number by channel as of the last answer, and under b"" the number of patterns that somebody is
    subscribed to; None while a probe is under way.
    expected: the same, from when Redis last took messages.
    """

    def __init__(self) -> None:
        self.subscribers: dict[bytes, int] | None = None
        self.expected: dict[bytes, int] = {}
        self._channels: dict[bytes, int] = {}

    def queries(self, channels: Iterable[str]) -> list[Query]:
        """A new probe of these channels."""
        self.subscribers, self._channels = None, {}
        return [
            Query(self._on_role, "ROLE"),
            Query(self._on_channels, "PUBSUB", "NUMSUB", *channels),
            Query(self._on_patterns, "PUBSUB", "NUMPAT"),
        ]

    def _on_role(self, reply: Any) -> None:
        # A replica takes PUBLISH without an error. A ReplyError: the user lacks the right to ask.
        if isinstance(reply, list) and reply[0] != b"master":
            raise Unavailable("it is a replica, whose messages would not reach the subscribers of its master")

    def _on_channels(self, reply: Any) -> None:
        if isinstance(reply, list):
            self._channels = dict(zip(reply[::2], reply[1::2], strict=True))

    def _on_patterns(self, reply: Any) -> None:
        self.subscribers = self._channels | {b"": reply if isinstance(reply, int) else 0}

    @property
    def all_are_back(self) -> bool:
        """Whether at least as many are subscribed to each channel as expected."""
        now = self.subscribers or {}
        return all(now.get(channel, 0) >= number for channel, number in self.expected.items())


class StateHash:
    """The hash that keeps the collector's state for late subscribers. It expires when nobody writes it any more."""

    def __init__(self, key: str, expiry: int) -> None:
        self._error: str | None = None  # why Redis first rejected it
        self._is_error_taken = False
        self.key, self._expiry = key, expiry
        self._fields: Mapping[str, str] = {}
        self._is_due = False
        self._is_first = True

    def set(self, fields: Mapping[str, str]) -> None:
        """Replaces the state. Any thread: the mapping is stored before the flag is set, and read after it is reset."""
        self._fields = dict(fields)
        self._is_due = True

    def write_again(self) -> None:
        """Makes queries() write the last state anew: this Redis may have lost it, or the DEL of the last connection."""
        self._is_due = self._is_first = True

    def queries(self) -> list[Query]:
        """What writes the state, if there is a new one."""
        if not self._is_due:
            return []
        self._is_due = False
        fields = self._fields
        if not fields:
            return []
        queries = [
            Query(self._on_written, "HSET", self.key, *(text for pair in fields.items() for text in pair)),
            Query(_ignore, "EXPIRE", self.key, str(self._expiry)),
        ]
        if self._is_first:  # another run may have left fields of streams that this one does not have
            queries.insert(0, Query(_ignore, "DEL", self.key))
            self._is_first = False
        return queries

    def take_error(self) -> str | None:
        """Why Redis rejected the hash, once; else None."""
        if self._error is None or self._is_error_taken:
            return None
        self._is_error_taken = True
        return self._error

    def _on_written(self, reply: Any) -> None:
        if isinstance(reply, ReplyError) and self._error is None:
            self._error = str(reply)


def _ignore(_reply: Any) -> None:
    pass
