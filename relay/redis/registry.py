"""Who shares the lease: the entries of all instances in the registry, and what follows from them. Pure.

The registry is a hash in Redis, instance -> entry. Each instance writes its own every half second; its `beat` rises, so
that everybody else sees on a clock of their own whether it lives: the clocks of the machines may differ by hours.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from relay.redis.role import Client
from relay.stats import StreamStats

LEADER, STANDBY = "leader", "standby"
# What a leader that ends leaves behind in its place, for its term: no instance, as no name has this letter.
LAST = "*"

# Seconds since the last change of an entry: up to FRESH its instance lives; after OUTDATED the leader removes it.
FRESH, OUTDATED = 3.0, 60.0
# Seconds for which the lease must have been free before an instance that is not ready takes it, while one that is ready
# may be about to take it.
PATIENCE = 1.0
# Seconds for which an entry must not change until its instance counts as gone: more than two beats.
SILENCE = 1.5
# Messages that wait at the leader up to which it counts as up to date: a standby may then forget what is old.
UP_TO_DATE = 1000


@dataclass(frozen=True)
class Entry:
    """What an instance says of itself.

    client, addr: the connection that it publishes over, 0 and "" while it has none.
    ready: all its streams are subscribed and it could publish at once.
    pending: messages that it keeps as a standby, or that wait for Redis as the leader.
    topics: fingerprint() of what it carries, "" while it does not know.
    beat: rises each time that the entry is written.
    """

    client: int
    addr: str
    role: str
    term: int
    ready: bool
    pending: int
    topics: str
    beat: int

    def encoded(self) -> str:
        """The entry as JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def decoded(cls, text: bytes) -> Self:
        """The entry in JSON; members that are unknown are ignored. Raises ValueError if it is none."""
        members = json.loads(text)
        if not isinstance(members, dict):
            raise ValueError("no object")
        values: dict[str, Any] = {name: members.get(name) for name in cls.__dataclass_fields__}
        for name, field in cls.__dataclass_fields__.items():
            if type(values[name]) is not field.type:
                raise ValueError(f"no {name}")
        return cls(**values)


class Registry:
    """All instances, as the instance `me` sees them. Times are monotonic seconds of this process.

    term: the highest that was ever seen here, also in registries that are gone.
    leader_at: when another instance was last seen to lead.
    """

    def __init__(self, me: str) -> None:
        self.me = me
        self.term = 0
        self.leader_at = -math.inf
        self.entries: dict[str, Entry] = {}
        self.written = b""  # what this instance last wrote as its own
        self._texts: dict[str, bytes] = {}
        self._unchanged_since: dict[str, float] = {}  # when an entry was first seen as it is
        self._changed_at: dict[str, float] = {}  # when it was seen to change; one that never did is not in it
        self._before: dict[str, tuple[Entry, float]] = {}  # the entry before that, and the last look that found it
        self._looked_at = 0.0

    def update(self, found: Mapping[bytes, bytes], now: float) -> None:
        """Takes the registry as it is in Redis. What is no entry is not there. now: of the question, not the answer."""
        previous, self.entries = self.entries, {}
        for name, text in ((name.decode(errors="replace"), text) for name, text in found.items()):
            try:
                entry = Entry.decoded(text)
            except (ValueError, RecursionError):
                continue
            self.term = max(self.term, entry.term)
            if name == LAST:
                continue
            self.entries[name] = entry
            if name == self.me and text == self.written:
                self._forget(name)
                continue
            before = self._texts.get(name)
            if before is not None and before != text:
                self._changed_at[name] = now
                if LEADER in (entry.role, previous[name].role):  # it leads, or has led until now
                    self.leader_at = now
                self._before[name] = previous[name], self._looked_at
            if before != text:
                self._unchanged_since[name] = now
            self._texts[name] = text
        for name in self._texts.keys() - self.entries.keys():
            self._forget(name)
        self._looked_at = now

    def _forget(self, name: str) -> None:
        for memory in (self._texts, self._unchanged_since, self._changed_at, self._before):
            memory.pop(name, None)

    def others(self, now: float) -> dict[str, Entry]:
        """The other instances that live."""
        return {
            name: entry
            for name, entry in self.entries.items()
            if name != self.me and now - self._changed_at.get(name, -FRESH) < FRESH
        }

    def successor(self, topics: str, now: float) -> str | None:
        """Another instance that could publish these topics at once."""
        for name, entry in self.others(now).items():
            if entry.ready and entry.topics == topics != "" and now - self._unchanged_since[name] < SILENCE:
                return name
        return None

    def patience(self, ready: bool, now: float) -> float:
        """Seconds for which the lease must have been free before this instance takes it."""
        if ready:
            return 0.0
        others = [name for name in self.entries if name != self.me]
        unknown = any(
            name not in self._changed_at and now - self._unchanged_since[name] < SILENCE and self.entries[name].ready
            for name in others
        )
        return PATIENCE if unknown or any(entry.ready for entry in self.others(now).values()) else 0.0

    def name_is_taken(self, now: float) -> bool:
        """Whether the own name may be in use by another instance: its entry is not ours, and changes or may change."""
        return self.me in self._texts and now - self._unchanged_since[self.me] < SILENCE

    def name_is_shared(self, now: float) -> bool:
        """Whether the own name is in use by another instance: its entry was seen to change, and not by us."""
        return now - self._changed_at.get(self.me, -FRESH) < FRESH

    def published_until(self, now: float) -> float | None:
        """The time of receipt up to which a leader that lives has published what it got, None if that is not known.

        Its last two entries must say that it is ready and that nearly nothing waits. The second was written after a
        look that still found the first, but perhaps not much later: Redis may have been frozen since.
        """
        for name, entry in self.others(now).items():
            before, seen_at = self._before.get(name, (entry, now))
            if _is_up_to_date(entry) and _is_up_to_date(before) and entry.term == before.term:
                return seen_at
        return None

    def clients(self) -> list[Client]:
        """The connections of all other instances. With their addresses: after a restart of Redis ids begin anew."""
        return [
            (entry.client, entry.addr)
            for name, entry in self.entries.items()
            if name != self.me and entry.client and entry.addr
        ]

    def former(self) -> list[Client]:
        """The connection of an earlier life of this instance: one that only sleeps must not publish either."""
        entry = self.entries.get(self.me) if self.me in self._texts else None
        return [(entry.client, entry.addr)] if entry and entry.client and entry.addr else []

    def outdated(self, now: float) -> list[str]:
        """The other instances whose entries have not changed for so long that they are not coming back."""
        return [name for name, since in self._unchanged_since.items() if name != self.me and now - since >= OUTDATED]

    def differing(self, topics: str, now: float) -> tuple[str, str] | None:
        """An instance that carries something else, and what."""
        if not topics:
            return None
        return next(
            ((name, entry.topics) for name, entry in self.others(now).items() if entry.topics not in ("", topics)), None
        )


def _is_up_to_date(entry: Entry) -> bool:
    return entry.role == LEADER and entry.ready and entry.pending <= UP_TO_DATE


def fingerprint(category: str, prefix: str, topics: Collection[str]) -> str:
    """What an instance carries, for people and to compare; "" for no topics."""
    if not topics:
        return ""
    digest = hashlib.sha256("\n".join(sorted(topics)).encode()).hexdigest()[:8]
    return f"{category}, {prefix}, {len(topics)} topic{'' if len(topics) == 1 else 's'} ({digest})"


def all_subscribed(streams: Collection[StreamStats]) -> bool:
    """Whether Bybit has accepted or rejected all that these streams ask for, and they know what that is."""
    return bool(streams) and all(
        _has_asked(stats) and not stats.waits and stats.subscribed + stats.rejected >= stats.topics
        for stats in streams
        if stats.watched
    )


def one_is_down(streams: Collection[StreamStats]) -> bool:
    """Whether one of these streams has no connection that carries data, though there should be some."""
    return any(
        not stats.subscribed and (not _has_asked(stats) or stats.rejected < stats.topics)
        for stats in streams
        if stats.watched
    )


def _has_asked(stats: StreamStats) -> bool:
    """Whether it is known what the stream asks for, which may be nothing."""
    return stats.topics > 0 or stats.answered


# Sentences for the log.


def something_else(key: str, what: str) -> str:
    """The key of the lease holds no lease."""
    return f"LEADER_KEY {key} holds something else ({what}): nobody leads until it is deleted"


def same_name(me: str) -> str:
    """Another collector has the name of this one."""
    return f"Another collector is running as INSTANCE {me}: this one stays idle until it has a name of its own"


def other_topics(key: str, me: str, mine: str, other: str, theirs: str) -> str:
    """Two collectors share a lease, but not their topics."""
    return f"LEADER_KEY {key} is shared by collectors of different topics: {me} has {mine}; {other} has {theirs}"
