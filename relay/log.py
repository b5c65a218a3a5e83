"""Log once: the first event of a kind is worth a line, the thousandth is not. And how a line shows what it names."""

import sys
from collections.abc import Iterable

LIMIT = 1000  # kinds of a category that are remembered
FEW = 4  # names that a line shows where there may be many


class LogOnce:
    """Remembers what was logged. Any thread.

    Each category has a budget of its own: a thousand topics with a sequence gap must not silence a failing callback.
    Two threads may both be first with the same kind: then it is logged twice, which is harmless and needs no lock.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._logged: dict[str, set[int]] = {}  # hashes of kinds, by category

    def first(self, category: str, kind: object = None, limit: int | None = None) -> bool:
        """Whether this kind is new. When a category is full, everything further in it counts as known. limit: of this
        category, in place of that of all.
        """
        logged = self._logged.setdefault(category, set())
        remembered = hash(kind)  # a kind may be a text of the peer, of many megabytes
        if remembered in logged or len(logged) >= (limit or self._limit):
            return False
        logged.add(remembered)
        return True


def printable(text: str) -> str:
    """Text from the network on one line, without escape sequences for the operator's terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def shorten(text: object, limit: int = 200) -> str:
    """Text from the network on one line of bounded length: it may be a whole frame or an HTML page."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= limit else line[:limit] + "…"


class Names(list[str]):
    """Names that the sentence of a line joins, while LOG_FORMAT=json has a list. shown: how many the sentence has; it
    says how many more there are.
    """

    def __init__(self, names: Iterable[str], shown: int = sys.maxsize) -> None:
        super().__init__(names)
        self._shown = shown

    def __str__(self) -> str:
        more = f" and {len(self) - self._shown} more" if len(self) > self._shown else ""
        return ", ".join(self[: self._shown]) + more


class Grouped(int):
    """A number that the sentence of a line shows with thousands separators."""

    def __str__(self) -> str:
        return f"{int(self):,}"
