"""How one connection gets the frames that all subscribers of a topic get. Pure."""

import random
import re
from collections import Counter
from collections.abc import Iterable

from sandbox.bybit.script import Knobs

TS = re.compile(r'(?<="ts":)\d+')  # of the envelope: the fields of `data` have other names
SHIFT, SHIFTS = 3, 50  # milliseconds between the `ts` of two connections; below this many of them
FIRST_TRADE, BETWEEN = '"data":[{', "},{"  # a trade is a flat object
MOST_HELD = 3  # trades that are held back for the next frame


class View:
    """One connection's view of the data.

    Args:
        knobs: of the server; they may change at any time.
        number: of the connection, in the order of TCP accept.

    Attributes:
        silent: topics without data.
        omitted: frames still to be left out, by topic.
        bare: topics that begin without a snapshot.
    """

    def __init__(self, knobs: Knobs, number: int) -> None:
        self.silent: set[str] = set()
        self.omitted: Counter[str] = Counter()
        self.bare: set[str] = set()
        self._knobs = knobs
        self._shift = number * SHIFT % SHIFTS
        self._random = random.Random(number)
        self._begun: set[str] = set()
        self._held: dict[str, tuple[str, list[str]]] = {}  # by topic: the head of the latest frame, and trades

    @property
    def clear(self) -> bool:
        """Whether every frame is what all others get."""
        knobs = self._knobs
        return not (knobs.own_ts or knobs.cut_trades or self.silent or self.omitted or self._held)

    def begin(self, topics: Iterable[str]) -> None:
        """The topics are subscribed; which ends their faults."""
        topics = set(topics)
        self.silent -= topics
        self.bare = set() if self._knobs.snapshot_again else topics & self._begun
        self._begun |= topics

    def end(self, topics: Iterable[str]) -> None:
        """The topics are not subscribed any more."""
        for topic in topics:
            self._held.pop(topic, None)
            self.omitted.pop(topic, None)

    def resume(self) -> None:
        self.silent, self.bare, self._held = set(), set(), {}

    def stamped(self, text: str) -> str:
        """The frame with this connection's own time, if the knob wants that."""
        if not self._knobs.own_ts:
            return text
        return TS.sub(lambda found: str(int(found[0]) + self._shift), text, count=1)

    def texts(self, topic: str, text: str) -> list[str]:
        """What this connection gets in place of a frame; nothing, if it is left out."""
        if topic in self.silent:
            return []
        if self.omitted[topic] > 0:
            self.omitted[topic] -= 1
            self.omitted += Counter()  # keeps what is above 0
            return []
        cut = self._knobs.cut_trades or topic in self._held
        if cut and topic.startswith("publicTrade.") and FIRST_TRADE in text:
            return [self.stamped(each) for each in self._cut(topic, text)]
        return [self.stamped(text)]

    def holds(self, topic: str) -> bool:
        """Whether trades wait for the next frame, or for `release`."""
        return topic in self._held

    @property
    def holds_any(self) -> bool:
        """The same for any topic."""
        return bool(self._held)

    def release(self, topic: str) -> list[str]:
        """The trades that were held back, as a frame."""
        head, trades = self._held.pop(topic, ("", []))
        return [self.stamped(joined(head, trades))] if trades else []

    def _cut(self, topic: str, text: str) -> list[str]:
        """The same trades in the same order, in other frames; the last ones may be held back for the next."""
        _, held = self._held.pop(topic, ("", []))
        head, new = split(text)
        trades, draw = held + new, self._random
        if self._knobs.cut_trades and draw.random() < 0.5:
            keep = draw.randint(1, min(MOST_HELD, len(trades)))
            self._held[topic] = head, trades[-keep:]
            trades = trades[:-keep]
        border = draw.randint(0, len(trades))
        return [joined(head, part) for part in (trades[:border], trades[border:]) if part]


def split(text: str) -> tuple[str, list[str]]:
    """A frame of trades as what stands before them and each of them, without its braces."""
    head, _, data = text.partition(FIRST_TRADE)
    return head, data.removesuffix("}]}").split(BETWEEN)


def joined(head: str, trades: Iterable[str]) -> str:
    """The contrary of `split`."""
    return head + FIRST_TRADE + BETWEEN.join(trades) + "}]}"
