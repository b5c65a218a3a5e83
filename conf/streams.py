"""Entries of STREAMS: checked, and split over as many connections as their topics need.

Pure. Every sentence that is raised names the entry.
"""

import reprlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from relay.kinds import Kind, is_symbol, kind_of

KEYS = ("name", "func", "args", "stall_timeout")
# The field of the state hash for the collector as a whole; the others have the names of streams.
RESERVED_NAME = "*"


class StreamSpec(NamedTuple):
    """What the thread `name` runs: func(*args, **options), again and again. One connection to Bybit at a time."""

    name: str
    func: Callable[..., object]
    args: tuple[Any, ...]
    options: dict[str, float]

    @property
    def kind(self) -> Kind | None:
        """The kind that its func carries; None for a func of the user's own."""
        return kind_of(self.func)


def plan_streams(entry: Any, category: str, depth: int, max_characters: int) -> Iterator[StreamSpec]:
    """The streams of an entry of STREAMS: one, or "Trades.1", "Trades.2" and so on if one connection cannot carry it.

    category, depth: CHANNEL_TYPE and ORDERBOOK_DEPTH, which the topics depend on. max_characters: of topics, as a JSON
    list, on one connection. A func of the user's own gets its args as they are. Raises ValueError with one sentence.
    """
    stream = _checked(entry)
    if stream.kind is None:
        yield stream
        return
    if category not in stream.kind.categories:
        raise _problem(stream.name, f"Bybit has no such topic for CHANNEL_TYPE={category}")
    symbols, callback = _symbols_and_callback(stream)
    topics: dict[str, str] = {}  # the first symbol of each topic, by topic
    for symbol in symbols:
        topic = stream.kind.topic_for(symbol, category, depth)
        if len(topic) + len('[""]') > max_characters:
            raise _problem(stream.name, f"{reprlib.repr(symbol)} is too long for a symbol")
        topics.setdefault(topic, symbol)
    parts = list(_split(topics, max_characters))
    for number, part in enumerate(parts, 1):
        name = stream.name if len(parts) == 1 else f"{stream.name}.{number}"
        yield stream._replace(name=name, args=([topics[topic] for topic in part], callback))


def _problem(name: str, sentence: str) -> ValueError:
    return ValueError(f"STREAMS: {name}: {sentence}")


def _checked(entry: Any) -> StreamSpec:
    """The entry, whose keys have values of the right types."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ValueError(f"STREAMS: {entry!r} is not a dict with a name, a func and args")
    name, func, args = entry["name"], entry.get("func"), entry.get("args")
    if name == RESERVED_NAME:
        raise _problem(name, "the name stands for the collector as a whole")
    if unknown := [key for key in entry if key not in KEYS]:
        raise _problem(name, f"unknown key {unknown[0]!r}")
    if not callable(func):
        raise _problem(name, "func is not a function")
    if not isinstance(args, tuple | list):
        raise _problem(name, "args is not a tuple")
    options = {"stall_timeout": entry["stall_timeout"]} if "stall_timeout" in entry else {}
    if not all(isinstance(seconds, int | float) and seconds >= 0 for seconds in options.values()):
        raise _problem(name, "stall_timeout is not a number of seconds, 0 or more")
    return StreamSpec(name, func, tuple(args), options)


def _symbols_and_callback(stream: StreamSpec) -> tuple[list[str], Callable[..., object]]:
    args = stream.args
    if len(args) != 2 or not isinstance(args[0], str | list | tuple) or not callable(args[1]):
        raise _problem(stream.name, "args is not (symbol or list of symbols, callback)")
    symbols = [args[0]] if isinstance(args[0], str) else list(args[0])
    if not symbols:
        raise _problem(stream.name, "the list of symbols is empty")
    for symbol in symbols:
        if not is_symbol(symbol):
            raise _problem(stream.name, f"{reprlib.repr(symbol)} is not a symbol")
    return symbols, args[1]


def _split(topics: dict[str, str], max_characters: int) -> Iterator[list[str]]:
    """The topics in order, in as few parts as possible, each within `max_characters` as a JSON list."""
    part: list[str] = []
    size = len("[]") - len(",")  # the first topic has no comma before it
    for topic in topics:
        if part and size + len(topic) + len('"",') > max_characters:
            yield part
            part, size = [], len("[]") - len(",")
        part.append(topic)
        size += len(topic) + len('"",')
    yield part
