"""What one play came to: the two columns of the board made into a Result. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.report import BURST, LATE, Result

SECOND = 1_000_000_000  # nanoseconds


@dataclass(frozen=True)
class Window:
    """The measured part of a play.

    Attributes:
        begun, ended: nanoseconds of time.monotonic_ns().
        cpu: seconds of CPU time the runner used within it.
        quiet: nothing more was on its way when the play was over, so what is not there is lost.
    """

    begun: int
    ended: int
    cpu: float
    quiet: bool = False

    def holds(self, at: int) -> bool:
        return self.begun <= at < self.ended


@dataclass
class Delays:
    """The messages sent within a window.

    Attributes:
        delays: nanoseconds, sorted.
        late, missing: see Result.
    """

    count: int
    delays: list[int]
    late: int
    missing: int

    def at(self, share: float) -> float:
        """A percentile in milliseconds."""
        return self.delays[min(len(self.delays) - 1, int(len(self.delays) * share))] / 1e6


def delays(window: Window, sent: Sequence[int], received: Sequence[int], route: Sequence[Any], paced: bool) -> Delays:
    """Follows each message sent within the window.

    Args:
        sent, received: nanoseconds by message index, from 1; 0 = never.
        route: the connection of message n is route[(n - 1) % len(route)].
        paced: at a rate, so that a delay means something.
    """
    newest: dict[Any, int] = {}  # connection -> its last message that arrived
    for index in range(len(sent) - 1, 0, -1):
        if received[index]:
            newest.setdefault(route[(index - 1) % len(route)], index)
    found, late, missing, count = [], 0, 0, 0
    for index in range(1, len(sent)):
        if not window.holds(sent[index]):
            continue
        count += 1
        if not received[index]:
            overtaken = index < newest.get(route[(index - 1) % len(route)], 0)
            if window.quiet or overtaken:
                missing += 1
            elif paced:
                late += 1
            continue
        delay = received[index] - sent[index]
        found.append(delay)
        late += paced and delay > LATE * SECOND
    return Delays(count, sorted(found), late, missing)


def result(
    window: Window,
    sent: Sequence[int],
    received: Sequence[int],
    route: Sequence[Any],
    facts: dict[str, Any],
) -> Result:
    """The Result of a play; `facts` has the fields of Result that the board does not know, `rate` among them."""
    paced, burst = facts["rate"] > 0, facts["rate"] == BURST
    if burst:
        window = replace(window, ended=max(window.begun, *received[1:]) + 1)
    arrived = sum(map(window.holds, received[1:]))
    found = delays(window, sent, received, route, paced)
    if burst:
        found.late = found.count - len(found.delays) - found.missing
    timed = paced and len(found.delays) > 1
    return Result(
        **facts,
        arrived=arrived / (window.ended - window.begun) * SECOND,
        cpu=window.cpu / arrived * 1e6 if arrived else None,
        p50=found.at(0.5) if timed else None,
        p99=found.at(0.99) if timed else None,
        p999=found.at(0.999) if timed else None,
        worst=found.at(1) if timed else None,
        last=found.at(1) if burst and found.delays else None,
        late=found.late,
        missing=found.missing,
        count=found.count,
    )
