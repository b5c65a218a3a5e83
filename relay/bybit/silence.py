"""Which topics have fallen silent while others of their connection flow. Reads no clock: it counts ticks.

A quiet contract is no fault: its book may send nothing for minutes. So each topic is measured by itself:

    k        ticks since it was last seen. Only ticks count in which the connection had data: a calm of the whole
             market, an outage and a suspended machine make nothing silent.
    p        the share of ticks, from the first in which it was seen to the last, in which it was seen.
    longest  the longest time, in ticks, that it was quiet and came back by itself. It forgets with every tick in which
             the topic is seen, half of it in 700: what is normal at night is not at noon.

A topic is silent when k >= MIN_TICKS, p * k >= EXPECTED and k >= 2 * longest. Were the ticks independent, it would be
so by chance with a probability of at most exp(-20) each: once in years for 700 topics. They are not, which is what
`longest` is for. At a tick a second a busy topic is silent after 30 s, one seen every 10 s after 200 s.

A topic that was silent counts as one that was quiet for so long: the bound is doubled. So what is really quiet, and
sends its snapshot and no more when it is subscribed anew, is reported ever more rarely; and what sends nothing even
then is reported once.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

MIN_OBSERVED = 60  # ticks from a topic's first message on, before anything is concluded
MIN_TICKS, EXPECTED = 30, 20.0
FORGET = 0.999  # of `longest`, at each tick in which the topic is seen


@dataclass(slots=True)
class Topic:
    first: int  # the tick in which it was first seen
    last: int  # and last
    seen: int = 1  # ticks
    longest: float = 0.0
    reported: bool = False  # as silent, and not seen since


class Silence:
    """The topics of one connection. What never sent anything is not among them: it may have nothing to send."""

    def __init__(self) -> None:
        self._tick = 0
        self._topics: dict[bytes, Topic] = {}

    def tick(self, seen: Collection[bytes]) -> dict[bytes, int]:
        """Takes the topics that were seen since the last call. Returns those that are silent now: topic and ticks."""
        if not seen:
            return {}
        self._tick = tick = self._tick + 1
        topics = self._topics
        for name in seen:
            topic = topics.get(name)
            if topic is None:
                topics[name] = Topic(tick, tick)
                continue
            topic.seen += 1
            topic.longest = max(topic.longest * FORGET, tick - topic.last)
            topic.last, topic.reported = tick, False
        silent = {
            name: tick - topic.last
            for name, topic in topics.items()
            if tick - topic.last >= MIN_TICKS and tick - topic.last >= self._bound(topic)
        }
        for name in [name for name in silent if topics[name].reported]:
            del silent[name], topics[name]
        for name, ticks in silent.items():
            topic = topics[name]
            topic.longest, topic.last, topic.reported = ticks, tick, True
        return silent

    def forget(self, topics: Iterable[bytes]) -> None:
        """These topics have left the connection."""
        for topic in topics:
            self._topics.pop(topic, None)

    def _bound(self, topic: Topic) -> float:
        """Ticks for which it may be quiet."""
        observed = topic.last - topic.first + 1
        if observed < MIN_OBSERVED:
            return math.inf
        return max(EXPECTED * observed / topic.seen, 2 * topic.longest)
