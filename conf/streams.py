"""Entries of STREAMS: checked when the program takes them, and cut to what one connection can carry."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Job(NamedTuple):
    """What the thread of a stream runs: func(*args, **options), again and again."""

    name: str
    func: Callable[..., object]
    args: tuple[Any, ...]
    options: dict[str, float]


def jobs(entry: Any, topics: Mapping[Any, Callable[[str], str] | None], most: int) -> Iterator[Job]:
    """The jobs of an entry of STREAMS: one, or as many ("Trades.1", "Trades.2") as its topics need connections.

    topics: by func its topic for a symbol, None where Bybit has no such topics here; other funcs are the user's own.
    most: characters of topics that one connection may ask for. Raises ValueError: a sentence that names the entry.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ValueError(f"STREAMS: {entry!r} is not a dict with a name, a func and args")
    name, func, args = entry["name"], entry.get("func"), entry.get("args")
    if unknown := entry.keys() - {"name", "func", "args", "stall_timeout"}:
        raise ValueError(f"STREAMS: {name} has an unknown key: {', '.join(map(repr, unknown))}")
    if not callable(func) or not isinstance(args, tuple | list):
        raise ValueError(f"STREAMS: {name} needs a func to call and a tuple of args")
    options = {"stall_timeout": entry["stall_timeout"]} if "stall_timeout" in entry else {}
    if not all(isinstance(seconds, int | float) and seconds >= 0 for seconds in options.values()):
        raise ValueError(f"STREAMS: the stall_timeout of {name} is not a number of seconds, 0 or more")
    if not (known := [topic for its, topic in topics.items() if its is func]):
        yield Job(name, func, tuple(args), options)
        return
    topic = known[0]
    if topic is None:
        raise ValueError(f"STREAMS: {name} cannot be had: Bybit has no such topics for this CHANNEL_TYPE")
    symbols = [args[0]] if args and isinstance(args[0], str) else args[0] if args else None
    if not isinstance(symbols, list | tuple) or not symbols or len(args) != 2 or not callable(args[1]):
        raise ValueError(f"STREAMS: the args of {name} are not (symbol or list of symbols, callback)")
    if bad := [symbol for symbol in symbols if not isinstance(symbol, str) or not symbol.strip()]:
        raise ValueError(f"STREAMS: {name} has a symbol that is none: {bad[0]!r}")
    parts: list[list[str]] = []
    room = 0
    for name_of_topic, symbol in {topic(symbol): symbol for symbol in symbols}.items():
        size = len(name_of_topic) + len('"",')
        if size > room:
            parts.append([])
            room = most - 1  # the list's brackets, less one comma
        parts[-1].append(symbol)
        room -= size
    for number, part in enumerate(parts, 1):
        yield Job(name if len(parts) == 1 else f"{name}.{number}", func, (part, args[1]), options)
