"""Entries of STREAMS: checked, and the topics that each of them wants.

Pure. Every sentence that is raised names the entry.
"""

import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple
from zlib import crc32

from conf.converters import Shard
from relay.bybit.instruments import expand
from relay.bybit.subscription import MAX_TOPIC_CHARACTERS, characters
from relay.events import RESERVED_NAME
from relay.kinds import DEPTHS, Kind, is_pattern, is_symbol, kind_of
from relay.log import shorten

KEYS = ("name", "func", "args", "stall_timeout", "depth", "shard")

Topics = dict[str, str]  # by topic: the first symbol that it is for


class StreamSpec(NamedTuple):
    """What the thread `name` runs: func(*args, **options), again and again. One connection to Bybit at a time."""

    name: str
    func: Callable[..., object]
    args: tuple[Any, ...]
    options: Mapping[str, float]

    @property
    def kind(self) -> Kind | None:
        """The kind that its func carries; None for a func of the user's own."""
        return kind_of(self.func)


class Entry(NamedTuple):
    """An entry of STREAMS, checked: a stream. It is carried by as many connections as its topics need.

    wanted: symbols and patterns of symbols; none for a func of the user's own, which gets its args as they are.
    """

    name: str
    func: Callable[..., object]
    args: tuple[Any, ...]
    options: dict[str, float]
    wanted: tuple[str, ...] = ()
    shard: Shard | None = None

    @property
    def kind(self) -> Kind | None:
        """The kind that its func carries; None for a func of the user's own."""
        return kind_of(self.func)

    @property
    def callback(self) -> Callable[..., object]:
        """Who gets its messages. Not for a func of the user's own."""
        callback: Callable[..., object] = self.args[-1]
        return callback

    @property
    def has_patterns(self) -> bool:
        """Whether its symbols depend on Bybit's list of instruments."""
        return any(map(is_pattern, self.wanted))

    def runs_as(self, other: "Entry") -> bool:
        """Whether what runs for the other one may go on for this one, with other topics at most."""
        mine, theirs = ((one.func, one.options, one.args[-1:] if one.kind else one.args) for one in (self, other))
        return equal(mine, theirs)

    def topics(self, category: str, depth: int, listed: Collection[str] | None) -> Topics:
        """The topics that it wants now. depth: ORDERBOOK_DEPTH. listed: Bybit's instruments, None = there is no list
        yet: then patterns stand for nothing.
        """
        found: Topics = {}
        kind = self.kind
        if kind is None:
            return found
        depth = int(self.options.get("depth", depth))
        for symbol in expand(self.wanted, listed):
            if in_shard(kind.subject(symbol, category), self.shard):
                found.setdefault(kind.topic_for(symbol, category, depth), symbol)
        return found


def in_shard(subject: str, shard: Shard | None) -> bool:
    """Whether this part of the symbols has what a topic names. All parts together have each subject once."""
    return shard is None or crc32(subject.encode(errors="surrogatepass")) % shard[1] == shard[0] - 1


def equal(one: object, other: object) -> bool:
    """Whether they are equal. What a user puts into an entry may refuse to be compared, as numpy's arrays do."""
    try:
        return bool(one == other)
    except Exception:
        return False


def checked(entry: Any, category: str, no_list: str = "") -> Entry:
    """An entry of STREAMS, whose values are of the right types. Raises ValueError with one sentence.

    category: CHANNEL_TYPE. no_list: why there can be no list of instruments, a sentence; "" = there can.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ValueError(f"STREAMS: {shorten(repr(entry))} is not a dict with a name, a func and args")
    name, func, args = entry["name"], entry.get("func"), entry.get("args")
    if name == RESERVED_NAME:
        raise _problem(name, "the name stands for the collector as a whole")
    if not _is_text(name):
        raise _problem(shorten(name), "the name has half of a surrogate pair")
    if "#" in name:
        raise _problem(name, 'a name has no "#": that numbers the connections of an entry')
    if unknown := [key for key in entry if key not in KEYS]:
        raise _problem(name, f"unknown key {unknown[0]!r}")
    if not callable(func):
        raise _problem(name, "func is not a function")
    if not isinstance(args, tuple | list):
        raise _problem(name, "args is not a tuple")
    kind = kind_of(func)
    options, shard = _options(name, entry, kind, category), _shard(name, entry, kind)
    if kind is None:
        return Entry(name, func, tuple(args), options)
    if category not in kind.categories:
        raise _problem(name, f"Bybit has no such topic for CHANNEL_TYPE={category}")
    wanted, callback = _symbols_and_callback(name, args)
    checked_entry = Entry(name, func, (wanted, callback), options, wanted, shard)
    if no_list and checked_entry.has_patterns:
        raise _problem(name, no_list)
    depth = max(DEPTHS[category])
    for symbol in wanted:
        if characters([kind.topic_for(symbol, category, depth)]) > MAX_TOPIC_CHARACTERS:
            raise _problem(name, f"{reprlib.repr(symbol)} is too long for a symbol")
    return checked_entry


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem(name: str, sentence: str) -> ValueError:
    return ValueError(f"STREAMS: {name}: {sentence}")


def _options(name: str, entry: Mapping[str, Any], kind: Kind | None, category: str) -> dict[str, float]:
    """What func gets beside its args."""
    options: dict[str, float] = {}
    if "stall_timeout" in entry:
        seconds = options["stall_timeout"] = entry["stall_timeout"]
        if not isinstance(seconds, int | float) or not seconds >= 0:
            raise _problem(name, "stall_timeout is not a number of seconds, 0 or more")
    if "depth" in entry:
        depth = options["depth"] = entry["depth"]
        if kind is None or not kind.has_depth:
            raise _problem(name, "depth is for order books only")
        if type(depth) is not int or depth not in DEPTHS[category]:
            names = ", ".join(map(str, DEPTHS[category]))
            raise _problem(name, f"depth is not one of {names}, the depths that Bybit has for {category}")
    return options


def _shard(name: str, entry: Mapping[str, Any], kind: Kind | None) -> Shard | None:
    shard = entry.get("shard")
    if shard is None:
        return None
    if (
        not isinstance(shard, tuple | list)
        or [type(one) for one in shard] != [int, int]
        or not 1 <= shard[0] <= shard[1]
    ):
        raise _problem(name, "shard is not (number, how many), such as (1, 3)")
    if kind is None:
        raise _problem(name, "shard is for the functions that subscribe to one kind of data")
    return shard[0], shard[1]


def _symbols_and_callback(name: str, args: Collection[Any]) -> tuple[tuple[str, ...], Callable[..., object]]:
    symbols, callback = args if len(args) == 2 else ((), None)
    if not isinstance(symbols, str | list | tuple) or not callable(callback):
        raise _problem(name, "args is not (symbol or list of symbols, callback)")
    found = (symbols,) if isinstance(symbols, str) else tuple(symbols)
    if not found:
        raise _problem(name, "the list of symbols is empty")
    for symbol in found:
        if not is_symbol(symbol) and not is_pattern(symbol):
            raise _problem(name, f"{reprlib.repr(symbol)} is not a symbol")
    return found, callback
