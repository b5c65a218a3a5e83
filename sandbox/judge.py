"""Compares what a consumer received with what the exchange made, message by message. Pure.

    verdict = judge(bybit.truth(), [(arrival, payload), ...])
    assert verdict.total.lost == 0, verdict

Two frames are the same where their identities are, whatever their `ts` and however their trades are cut: `u` of an
order book, `cs` of a ticker, `i` of each trade; else the text without `ts`. So all counts are of messages, but in
publicTrade of trades. That `u` begins anew (Bybit's service restarts) is not provided for.
"""

import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

TS = re.compile(r'(?<="ts":)\d+')  # of the envelope: the fields of `data` have other names
SUMS = ("made", "received", "twice", "disorder", "foreign", "snapshots")


@dataclass(frozen=True)
class Findings:
    """About one topic, or all. Times are those of the truth and of the arrivals, in seconds."""

    made: int = 0
    """What the consumer should have got: in the truth, from its first on."""
    received: int = 0
    """Of the truth, each counted once."""
    twice: int = 0
    """Received once more, for each time. A repeated snapshot is none."""
    disorder: int = 0
    """Received for the first time after something younger of the topic; also snapshots that throw a book back."""
    foreign: int = 0
    """Received, but never made."""
    snapshots: int = 0
    """Snapshots that are not in the truth, as a connection gets them when it subscribes."""
    missing: tuple[float, ...] = ()
    """When each of those was made that were never received, in order."""
    silence: float = 0.0
    """The longest time between two messages."""
    silent_from: float = 0.0
    """When that began."""
    delay: float = 0.0
    """The longest time from making to arrival."""

    @property
    def lost(self) -> int:
        return len(self.missing)

    def __str__(self) -> str:
        return (
            f"{self.received} of {self.made} received, {self.lost} lost, {self.twice} twice, {self.disorder} out of "
            f"order, {self.foreign} foreign, {self.snapshots} snapshots, {self.silence:.3f} s silence"
        )


@dataclass(frozen=True)
class Verdict:
    """`topics` has every topic of the truth and of what was received."""

    total: Findings
    topics: Mapping[str, Findings]

    def __str__(self) -> str:
        return "\n".join([str(self.total), *(f"  {topic}: {each}" for topic, each in sorted(self.topics.items()))])


def judge(
    truth: Mapping[str, Sequence[tuple[float, str]]],
    received: Iterable[tuple[float, str | bytes]],
    since: float | None = None,
    until: float = float("inf"),
) -> Verdict:
    """The verdict on one consumer.

    Args:
        truth: for each topic the frames in the order in which they were made, each with its time.
        received: payloads in order of arrival, each with its time; what has no topic is ignored.
        since: what was made from then on is due. None: for each topic what was made after the first that was received,
            and where none was, what was made after the first message of any topic.
        until: what was made later is not due.
    """
    arrivals: defaultdict[str, list[tuple[float, Frame]]] = defaultdict(list)
    times = []
    for at, payload in received:
        frame = parsed(payload)
        if frame.topic:
            arrivals[frame.topic].append((at, frame))
            times.append(at)
    begin = since if since is not None else min(times, default=float("-inf"))
    topics = {}
    for topic in truth.keys() | arrivals.keys():
        made = Truth(truth.get(topic, ()))
        topics[topic] = findings(made, arrivals[topic], begin, until, since is None)
    silence, silent_from = longest_silence(times)
    total = Findings(
        **{name: sum(getattr(each, name) for each in topics.values()) for name in SUMS},
        missing=tuple(sorted(at for each in topics.values() for at in each.missing)),
        silence=silence,
        silent_from=silent_from,
        delay=max((each.delay for each in topics.values()), default=0.0),
    )
    return Verdict(total, topics)


@dataclass(frozen=True)
class Frame:
    """A frame, as far as it counts.

    Attributes:
        topic: "" for what is no data.
        units: the identities of what is in it.
        number: u or cs; 0 = none.
        snapshot: a snapshot of a book or a ticker.
    """

    topic: str
    units: tuple[Hashable, ...] = ()
    number: int = 0
    snapshot: bool = False


def parsed(payload: str | bytes) -> Frame:
    """What is in a frame. Raises ValueError: it is no JSON object."""
    text = payload.decode() if isinstance(payload, bytes) else payload
    message = json.loads(text)
    topic = message.get("topic", "")
    kind = topic.partition(".")[0]
    if kind == "publicTrade":
        return Frame(topic, tuple(trade["i"] for trade in message["data"]))
    number = message["data"]["u"] if kind == "orderbook" else message.get("cs", 0)
    if not number:
        return Frame(topic, (TS.sub("", text, count=1),))
    snapshot = message["type"] == "snapshot"
    return Frame(topic, ((snapshot, number),), number, snapshot)


@dataclass
class Truth:
    """The frames of one topic, and where each unit stands among all."""

    frames: Sequence[tuple[float, str]]
    times: list[float] = field(default_factory=list)
    """When each unit was made."""
    places: dict[Hashable, list[int]] = field(default_factory=lambda: defaultdict(list))
    numbers: list[int] = field(default_factory=list)
    """u or cs of each unit, rising; empty for topics without."""

    def __post_init__(self) -> None:
        for at, text in self.frames:
            frame = parsed(text)
            if frame.snapshot and frame.units[0] in self.places:
                continue  # unchanged books of depth 1 are sent again
            if frame.number:
                self.numbers.append(frame.number)
            for unit in frame.units:
                self.places[unit].append(len(self.times))
                self.times.append(at)

    def after(self, number: int) -> int:
        """The place of the first unit with a higher number."""
        return bisect_right(self.numbers, number)

    def begins_with(self, number: int) -> bool:
        """Whether a snapshot with that number can be one that a new subscriber got."""
        place = self.after(number)
        return place == 0 or self.numbers[place - 1] == number


def findings(
    truth: Truth, arrivals: Sequence[tuple[float, Frame]], begin: float, until: float, from_first: bool
) -> Findings:
    """The findings about one topic; `from_first`: nothing is due that was made before the first that was received."""
    counts: Counter[str] = Counter()
    seen: Counter[Hashable] = Counter()
    order: list[int] = []  # the places of what was received for the first time
    newest, delay = -1, 0.0  # newest: the highest number so far
    first: int | None = None  # the place from which on all is due
    for at, frame in arrivals:
        for unit in frame.units:
            places = truth.places.get(unit, ())
            seen[unit] += 1
            if seen[unit] <= len(places):
                place = places[seen[unit] - 1]
                order.append(place)
                first = place if first is None else first
                delay = max(delay, at - truth.times[place])
            elif frame.snapshot and (places or truth.begins_with(frame.number)):
                first = truth.after(frame.number) if first is None else first
                counts["snapshots"] += not places
                counts["disorder"] += seen[unit] == 1 and frame.number < newest
            else:
                counts["twice" if places else "foreign"] += 1
        newest = max(newest, frame.number)
    counts["disorder"] += backward(order)
    got = set(order)
    due = [place for place, at in enumerate(truth.times) if begin <= at <= until]
    if from_first and first is not None:
        due = [place for place, at in enumerate(truth.times) if place >= first and at <= until]
    silence, silent_from = longest_silence([at for at, _ in arrivals])
    return Findings(
        made=len(due),
        received=len(got),
        missing=tuple(truth.times[place] for place in due if place not in got),
        silence=silence,
        silent_from=silent_from,
        delay=delay,
        **counts,
    )


def backward(places: Iterable[int]) -> int:
    """How many stand after a higher one."""
    highest, count = -1, 0
    for place in places:
        count += place < highest
        highest = max(highest, place)
    return count


def longest_silence(times: Sequence[float]) -> tuple[float, float]:
    """Seconds between two messages, at most, and when that began; (0, 0) for less than two messages."""
    return max(((later - earlier, earlier) for earlier, later in pairwise(times)), default=(0.0, 0.0))
