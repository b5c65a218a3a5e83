"""What the comparisons of a few settings of this collector share: the order of their plays, and a table of medians."""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from typing import TypeVar

from bench.report import SATURATION, Result
from sandbox.redis import LocalRedis

T = TypeVar("T")


def parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """The options --rounds, --seconds and --rates. doc: of the module, whose first line describes it."""
    found = argparse.ArgumentParser(prog=prog, description=(doc or "").partition("\n")[0])
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--seconds", type=float, default=5, help="measured in each play")
    found.add_argument("--rates", default="1000,5000", help="messages a second; saturation is always played")
    return found


def plays(options: argparse.Namespace, subjects: Sequence[T]) -> Iterator[tuple[int, int, T]]:
    """The round from 1 on, the rate and the subject of each play. Interleaved, and each round begins with another
    subject, so that other load on the machine affects all alike.
    """
    rates = [*(int(rate) for rate in options.rates.split(",") if rate), SATURATION]
    for turn in range(options.rounds):
        for rate in rates:
            for number in range(len(subjects)):
                yield turn + 1, rate, subjects[(turn + number) % len(subjects)]


def cpu_of(redis: LocalRedis) -> float:
    """Seconds of CPU time that this server has used."""
    with redis.client() as client:
        info = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def in_order(rate: int) -> float:
    """For sorting: saturation comes last."""
    return rate or float("inf")


def cells(rate: int, name: str, results: Sequence[Result], server: Sequence[float]) -> list[str]:
    """The cells of a row: rate, name, then medians: messages a second, CPU of the collector and of Redis in
    microseconds a message, delays in milliseconds. server: the CPU of Redis in each play.
    """
    found = [f"{rate:,}/s" if rate else "saturation", name]
    found += [f"{statistics.median(result.arrived for result in results):,.0f}"]
    found += [f"{statistics.median(result.cpu or 0 for result in results):.1f}"]
    found += [f"{statistics.median(server):.1f}"]
    for delay in ("p50", "p99"):
        delays = [getattr(result, delay) for result in results]
        found.append("-" if None in delays else f"{statistics.median(delays):.2f}")
    return found
