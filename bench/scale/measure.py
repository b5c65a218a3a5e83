"""What is played, and what a play came to. Pure."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bench.scale.frames import CYCLE

SECOND = 1_000_000_000  # nanoseconds
BY_SYMBOL = "CHANNEL_BY_SYMBOL=True"


@dataclass(frozen=True)
class Case:
    """What is played.

    rate: messages a second. processes: collectors that share the symbols. parts: entries of STREAMS for each channel.
    together: frames share TLS records. readers: subscriptions at Redis. burst: one second of `rate`, out of a calm.
    standby: a second collector with the same symbols stands by. setting: NAME=value, one setting that is not the
    default.
    """

    series: str
    symbols: int = 800
    rate: int = 5000
    processes: int = 1
    parts: int = 1
    together: bool = False
    readers: int = 1
    burst: bool = False
    standby: bool = False
    setting: str = ""

    def __str__(self) -> str:
        words = [f"{self.series:<9}", f"{self.symbols:>4} symbols", f"{self.rate:>6,}/s"]
        words += [f"{self.processes} processes"] if self.processes > 1 else []
        words += [f"{self.parts} parts"] if self.parts > 1 else []
        words += [f"{self.readers} readers"] if self.readers > 1 else []
        words += ["with a standby"] if self.standby else []
        words += [self.setting] if self.setting else []
        return " ".join([*words, "together" if self.together else "alone"])


@dataclass(frozen=True)
class Result:
    """What a play came to.

    start: seconds from the start of the first process until the last topic was subscribed. start_cpu: seconds of CPU
    time until then. arrived: messages a second in the measured time. cpu: of the collectors, cores (1.0 = one core
    busy). standby, redis, sender, reader: the same of the others. memory, peak: MiB of all collectors, after the play
    (before it in a burst) and at most; standby_memory: of the standby. p50, p99, worst: from
    sending to arrival, milliseconds. missing, again, disordered: messages that never came, came twice, or came after a
    later one of their topic. lag: the longest that the sender kept a frame too long, milliseconds. size: bytes of a
    frame, on average. sending: seconds from the first to the last frame sent. until_last: from the first frame sent to
    the last arrived.
    """

    case: Case
    start: float
    start_cpu: float
    connections: int
    arrived: float
    cpu: float
    standby: float
    redis: float
    sender: float
    reader: float
    memory: float
    standby_memory: float
    peak: float
    p50: float
    p99: float
    worst: float
    count: int
    missing: int
    again: int
    disordered: int
    lost_connections: int
    lag: float
    size: float
    sending: float
    until_last: float

    def line(self) -> str:
        """For the terminal, while the benchmark runs."""
        text = (
            f"{self.case}: {self.connections} connections in {self.start:.1f} s; {self.arrived:,.0f}/s, "
            f"cpu {self.cpu:.0%} (redis {self.redis:.0%}, sender {self.sender:.0%}, reader {self.reader:.0%}), "
            f"{self.memory:.0f} MiB, peak {self.peak:.0f}, p50 {self.p50:.2f} p99 {self.p99:.2f} max {self.worst:.1f} "
            f"ms, lag {self.lag:.1f} ms"
        )
        if self.case.standby:
            text += f", standby: cpu {self.standby:.0%}, {self.standby_memory:.0f} MiB"
        if self.case.burst:
            text += f", sent in {self.sending:.2f} s, all there after {self.until_last:.2f} s"
        for number, what in (
            (self.missing, "missing"),
            (self.again, "again"),
            (self.disordered, "disordered"),
            (self.lost_connections, "connections lost"),
        ):
            text += f", {number} {what.upper()}" if number else ""
        return text


class Played(NamedTuple):
    """sent: when each message was sent, by its index - 1, in nanoseconds. lag: the longest that the sender itself kept
    one too long, in seconds. lost: connections that ended meanwhile. size: bytes of all the frames.
    """

    sent: array
    lag: float
    lost: int
    size: int


def result(facts: dict[str, Any], indexes: Sequence[int], times: Sequence[int], topics: Sequence[str]) -> Result:
    """The Result of a play: its messages have the indexes from 1, message n the topic topics[(n - 1) % CYCLE].

    indexes, times: of the arrivals, in their order. Pure.
    """
    played, (begun, ended) = facts.pop("played"), facts.pop("window")
    sent = played.sent
    burst = facts["case"].burst
    there = bytearray(len(sent) + 1)
    newest: dict[str, int] = {}
    again = disordered = 0
    delays = []
    for index, at in zip(indexes, times, strict=True):
        again += there[index]
        there[index] = 1
        topic = topics[(index - 1) % CYCLE]
        disordered += index < newest.get(topic, 0)
        newest[topic] = index
        if burst or begun <= sent[index - 1] < ended:
            delays.append(at - sent[index - 1])
    delays.sort()
    at = lambda share: delays[min(len(delays) - 1, int(len(delays) * share))] / 1e6 if delays else float("nan")  # noqa: E731
    took = (ended - begun) / SECOND
    return Result(
        **facts,
        arrived=sum(begun <= at < ended for at in times) / took,
        p50=at(0.5),
        p99=at(0.99),
        worst=at(1.0),
        count=len(sent),
        missing=len(sent) - sum(there),
        again=again,
        disordered=disordered,
        lost_connections=played.lost,
        lag=played.lag * 1e3,
        size=played.size / max(1, len(sent)),
        sending=(sent[-1] - sent[0]) / SECOND,
        until_last=(max(times, default=sent[0]) - sent[0]) / SECOND,
    )


def median(results: Sequence[Result]) -> Result:
    """One Result out of those of the same case: the median of what was measured, the sum of what went wrong."""
    middle: dict[str, Any] = {}
    for name, value in vars(results[0]).items():
        if name == "case":
            continue
        values = sorted(getattr(one, name) for one in results)
        wrong = name in ("missing", "again", "disordered", "lost_connections", "count")
        middle[name] = sum(values) if wrong else type(value)(values[len(values) // 2])
    return replace(results[0], **middle)
