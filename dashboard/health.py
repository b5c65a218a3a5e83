"""Whether all is well, from the state hashes of the collectors in Redis. Pure: the caller gives the time.

A state is what one collector says of itself. Collectors with the same part of the symbols are a group; one of a group
publishes. All fields may be missing or of another type: what is not understood is not shown.
"""

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from relay.events import RESERVED_NAME, STATE_EXPIRY

Fields = Mapping[str, Any]

DEAD_AFTER, OLD_AFTER = 3.0, 10.0  # seconds after which a state is too old; the second where it names no interval
FORGOTTEN = 60.0  # seconds after which a collector that is gone is not shown, if another publishes in its place
MAX_STATES, SAMPLES = 64, 90  # states kept; rates kept of each stream, one a state
FILLING, FULL = 0.5, 0.9  # shares of the buffer
DROPPED = 60.0  # seconds for which a loss is a problem

OK, WARN, BAD = "ok", "warn", "bad"


class Problem(NamedTuple):
    """level: WARN or BAD. text: a sentence without a full stop. more: what helps to find the cause, or nothing."""

    level: str
    text: str
    more: str = ""


class Stream(NamedTuple):
    """A row of the page. fields: as in the state. rates: the last of them, oldest first. is_live: not an old state."""

    name: str
    fields: Fields
    rates: tuple[float, ...]
    is_live: bool


@dataclass
class State:
    """What one collector said of itself, and when. read_at: monotonic, of the age that it had then.

    is_gone: the state is no longer in Redis. was_stopped: and it was fresh until then, so it was deleted.
    """

    shard: str
    instance: str
    about: Fields = field(default_factory=dict)
    streams: Mapping[str, Fields] = field(default_factory=dict)
    age: float = 0.0
    read_at: float = 0.0
    is_gone: bool = False
    was_stopped: bool = False

    def age_at(self, now: float) -> float:
        """Seconds since it was written."""
        return self.age + now - self.read_at

    def is_alive(self, now: float) -> bool:
        interval = number(self.about.get("interval"))
        limit = OLD_AFTER if interval is None else max(DEAD_AFTER, 3 * interval)
        return not self.is_gone and self.age_at(now) <= limit

    @property
    def role(self) -> str:
        return str(self.about.get("role", "single"))

    @property
    def name(self) -> str:
        """What people call it: "Collector a of 1of2"."""
        words = ["Collector", self.instance] if self.instance else ["The collector"]
        return " ".join([*words, "of", self.shard] if self.shard else words)


def number(value: object) -> float | None:
    """A finite number as such, all else as None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None  # type: ignore[arg-type, return-value]


def parsed(found: Mapping[bytes, bytes]) -> tuple[Fields, dict[str, Fields]]:
    """The field of the collector as a whole, and those of its streams. What is no JSON object is left out."""
    state: dict[str, Fields] = {}
    for name, text in found.items():
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(fields, dict):
            state[name.decode(errors="replace")] = fields
    return state.pop(RESERVED_NAME, {}), dict(sorted(state.items()))


class Health:
    """The states of all collectors of a prefix, and what follows from them. base: "stream:bybit_state"."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.states: dict[str, State] = {}  # by key
        self.dropped_at = -math.inf  # monotonic: of the last announced loss in the buffer
        self._rates: dict[tuple[str, str], deque[float]] = {}  # by shard and stream

    def see(self, key: str, found: Mapping[bytes, bytes], ttl: float, now: float) -> None:
        """Takes a state as it is in Redis. ttl: seconds that it has to live there. Nothing found: it is gone."""
        state = self.states.get(key)
        if not found:
            if state and not state.is_gone:
                state.was_stopped = state.is_alive(now) and state.age_at(now) < STATE_EXPIRY - 1
                state.is_gone = True
            self._forget(now)
            return
        if state is None:
            if len(self.states) >= MAX_STATES:
                return
            state = self.states[key] = State(*self._names(key))
        about, streams = parsed(found)
        is_new = about.get("ts") != state.about.get("ts") or not state.about
        state.about, state.streams, state.is_gone, state.was_stopped = about, streams, False, False
        state.age, state.read_at = max(0.0, STATE_EXPIRY - ttl) if ttl >= 0 else 0.0, now
        if is_new and state.role != "standby":
            for name, fields in streams.items():
                rates = self._rates.setdefault((state.shard, name), deque(maxlen=SAMPLES))
                rates.append(number(fields.get("rate")) or 0.0)

    def _names(self, key: str) -> tuple[str, str]:
        """Shard and instance in the name of a key."""
        match = re.fullmatch(r"(?::(\d+of\d+))?(?::(.*))?", key[len(self.base) :], re.S)
        return (match[1] or "", match[2] or "") if match else ("", key)

    def _forget(self, now: float) -> None:
        living = {state.shard for state in self.states.values() if state.is_alive(now) and state.role != "standby"}
        for key, state in list(self.states.items()):
            if state.is_gone and state.shard in living and state.age_at(now) > FORGOTTEN:
                del self.states[key]
        shown = {(state.shard, name) for state in self.states.values() for name in state.streams}
        for stream in self._rates.keys() - shown:
            del self._rates[stream]

    def groups(self) -> dict[str, list[State]]:
        """The states by shard; in each the names in order."""
        found: dict[str, list[State]] = {}
        for _, state in sorted(self.states.items()):
            found.setdefault(state.shard, []).append(state)
        return found

    def publishers(self, now: float) -> list[State]:
        """Of each group who publishes; if nobody does, who was the last to say something."""
        return [
            max(group, key=lambda state: (state.is_alive(now), state.role != "standby", -state.age_at(now)))
            for group in self.groups().values()
        ]

    def streams(self, now: float) -> list[Stream]:
        """The rows of the page."""
        rows = []
        for state in self.publishers(now):
            for name, fields in state.streams.items():
                rates = tuple(self._rates.get((state.shard, name), ()))
                title = f"{name} {state.shard}" if state.shard else name
                rows.append(Stream(title, fields, rates, state.is_alive(now)))
        return rows

    def problems(self, now: float) -> list[Problem]:
        """All that is not well, the worst first."""
        if not self.states:
            return [Problem(BAD, "No collector is running", f"There is no {self.base} in Redis")]
        found: list[Problem] = []
        for group in self.groups().values():
            found += _problems_of(group, now)
        if now - self.dropped_at <= DROPPED:
            found.append(Problem(BAD, f"Messages were dropped {seconds(now - self.dropped_at)} ago"))
        return sorted(found, key=lambda problem: problem.level != BAD)


def _problems_of(group: list[State], now: float) -> Iterable[Problem]:
    living = [state for state in group if state.is_alive(now)]
    leaders = [state for state in living if state.role != "standby"]
    for state in group:
        if state not in living:
            ago = f"{seconds(state.age_at(now))} ago"
            level, instead = (WARN, f"; {leaders[0].instance} publishes") if leaders else (BAD, "")
            if state.was_stopped:
                yield Problem(level, f"{state.name} was stopped {ago}{instead}")
            else:
                yield Problem(level, f"{state.name} is gone{instead}", f"Its last sign of life was {ago}")
    if living and not leaders:
        yield Problem(BAD, "Nobody leads: nothing is published")
    for state in living:
        if state.about.get("alive") is False:
            yield Problem(BAD, f"{state.name} is stuck", "A thread of it does not turn")
        if state.role == "standby" and state.about.get("ready") is False:
            yield Problem(WARN, f"{state.name} stands by, but is not ready")
    if len(living) == 1 and living[0].role == "leader":
        yield Problem(WARN, "No standby is running", f"{living[0].name} publishes alone")
    for state in leaders:
        yield from _problems_of_streams(state)
        share = number(state.about.get("buffer_share")) or 0.0
        if share >= FILLING:
            yield Problem(BAD if share >= FULL else WARN, f"The buffer for Redis is {share:.0%} full")


def _problems_of_streams(state: State) -> Iterable[Problem]:
    if not state.streams:
        yield Problem(WARN, f"{state.name} has no streams")
    down = [name for name, fields in state.streams.items() if fields.get("up") is False]
    if down:
        who = f"All {len(down)} streams" if 1 < len(down) == len(state.streams) else listed(down)
        yield Problem(BAD, f"{who} {'is' if len(down) == 1 else 'are'} down")
    for name, fields in state.streams.items():
        if name in down:
            continue
        topics, rejected, wanted = (number(fields.get(key)) for key in ("topics", "rejected", "wanted"))
        if fields.get("waits") is True:
            yield Problem(WARN, f"{name} waits for Bybit's list of instruments")
        elif wanted is not None and topics is not None and topics + (rejected or 0) < wanted:
            yield Problem(WARN, f"{name} has {topics:,.0f} of {wanted:,.0f} topics")


def listed(names: list[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def seconds(value: float) -> str:
    """A time that has passed, for people: "12 s", "3 min", "5 h"."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{max(0.0, value):.0f} s"
