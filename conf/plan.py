"""From STREAMS and Bybit's list of instruments to connections, again and again. Pure."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from conf.streams import Entry, StreamSpec, Topics, checked, equal
from relay.bybit.subscription import MAX_TOPIC_CHARACTERS
from relay.packing import Packing, name_of

Instruments = Collection[str] | None  # None: there is no list yet


class Planned(NamedTuple):
    """A connection as it should be, or a func of the user's own. topics: with the callback of each; None = its own."""

    entry: Entry
    spec: StreamSpec
    topics: Mapping[str, Callable[..., object]] | None


class Changes(NamedTuple):
    """What update() found.

    problems: a sentence for each entry that is wrong since now. newly_listed: the topics, also of plain names, whose
    symbols Bybit has begun to list. listed, delisted: by entry, the topics that its patterns bring and end for it, with
    their symbols.
    """

    problems: list[str]
    newly_listed: list[str]
    listed: dict[str, Topics]
    delisted: dict[str, Topics]


@dataclass
class _Kept:
    """An entry as it runs."""

    entry: Entry
    packing: Packing
    topics: Topics = field(default_factory=dict)


class Plan:
    """The main thread owns it.

    category, depth: CHANNEL_TYPE and ORDERBOOK_DEPTH. no_list: why there can be no list of instruments, a sentence;
    "" = there can. limit: characters of topics on a connection.

    connections: all that should run, by name. wanted: how many topics each of these wants; None: not known, because the
    func is the user's own, or because an entry waits for the list of instruments. waiting: the names of the latter.
    needs_list: whether an entry has patterns.
    """

    def __init__(self, category: str, depth: int, no_list: str = "", limit: int = MAX_TOPIC_CHARACTERS) -> None:
        self.connections: dict[str, Planned] = {}
        self.wanted: dict[str, int | None] = {}
        self.waiting: tuple[str, ...] = ()
        self.needs_list = False
        self._category, self._depth, self._no_list, self._limit = category, depth, no_list, limit
        self._kept: dict[str, _Kept] = {}
        self._seen: list[Any] = []
        self._listed: Instruments = None
        self._problems: frozenset[str] = frozenset()

    @property
    def entries(self) -> list[Entry]:
        """Those that run, in the order of STREAMS."""
        return [kept.entry for kept in self._kept.values()]

    def update(self, streams: Sequence[Any], listed: Instruments) -> Changes | None:
        """Plans what should run from now on. None: nothing has changed.

        streams: STREAMS, which its user may change at any time and in any way. Where an entry is wrong, its earlier
        version goes on.
        """
        now = list(streams)
        seen = [_copy(entry) for entry in now]
        if (listed is self._listed or listed == self._listed) and equal(seen, self._seen):
            return None
        entries, problems = self._checked(now)  # what changes since the copy is seen the next time
        before, self._listed, self._seen = self._listed, listed, seen
        changes = Changes([one for one in problems if one not in self._problems], [], {}, {})
        self._problems = frozenset(problems)
        self._kept = {entry.name: self._advanced(entry, before, changes) for entry in entries}
        self.connections = {one.spec.name: one for kept in self._kept.values() for one in _connections(kept)}
        patterned = tuple(name for name, kept in self._kept.items() if kept.entry.has_patterns)
        self.needs_list, self.waiting = bool(patterned), patterned if listed is None else ()
        self.wanted = {name: None if one.topics is None else len(one.topics) for name, one in self.connections.items()}
        self.wanted.update((name, None) for name in self.waiting if not self.wanted[name])
        return changes

    def _checked(self, streams: Sequence[Any]) -> tuple[list[Entry], list[str]]:
        """The entries that should run, and what is wrong with the others."""
        entries: dict[str, Entry] = {}
        problems = []
        for one in streams:
            name = one.get("name") if isinstance(one, dict) else None
            try:
                entry = checked(one, self._category, self._no_list)
                if name in entries:
                    raise ValueError(f"STREAMS: {name}: the name is used twice")
                entries[entry.name] = entry
            except Exception as mistake:  # also what an object of the user's raises
                problems.append(str(mistake) if isinstance(mistake, ValueError) else f"STREAMS: {name}: {mistake!r}")
                if isinstance(name, str) and name in self._kept:
                    entries.setdefault(name, self._kept[name].entry)
        return list(entries.values()), problems

    def _advanced(self, entry: Entry, before: Instruments, changes: Changes) -> _Kept:
        """An entry as it runs from now on. before: the list of instruments until now. Adds to `changes`."""
        listed = self._listed
        kept = self._kept.get(entry.name)
        topics = entry.topics(self._category, self._depth, listed)
        if kept is None:
            kept = _Kept(entry, Packing(self._limit))
        elif before is not None and listed is not None:
            news = {topic: symbol for topic, symbol in topics.items() if symbol in listed and symbol not in before}
            gone = {topic: symbol for topic, symbol in kept.topics.items() if symbol in before and symbol not in listed}
            changes.newly_listed.extend(news)
            if brought := {topic: symbol for topic, symbol in news.items() if topic not in kept.topics}:
                changes.listed[entry.name] = brought
            if ended := {topic: symbol for topic, symbol in gone.items() if topic not in topics}:
                changes.delisted[entry.name] = ended
        kept.packing.update(topics)
        return _Kept(entry, kept.packing, topics)


def _connections(kept: _Kept) -> list[Planned]:
    entry = kept.entry
    if entry.kind is None:
        return [Planned(entry, StreamSpec(entry.name, entry.func, entry.args, entry.options), None)]
    planned = []
    for number, topics in kept.packing.connections.items():
        args = ([kept.topics[topic] for topic in topics], entry.callback)
        spec = StreamSpec(name_of(entry.name, number), entry.func, args, entry.options)
        planned.append(Planned(entry, spec, dict.fromkeys(topics, entry.callback)))
    return planned


def _copy(entry: Any) -> Any:
    """An entry of STREAMS that does not change with its lists of symbols."""
    if not isinstance(entry, dict):
        return entry
    args = entry.get("args")
    if isinstance(args, tuple | list):
        args = tuple(tuple(one) if isinstance(one, list) else one for one in args)
    return {**entry, "args": args}
