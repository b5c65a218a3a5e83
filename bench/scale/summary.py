"""What to remember of the results, a sentence each. Pure."""

from collections.abc import Iterator, Mapping

from bench.report import number
from bench.scale.measure import Result

KEEPS_UP = 50.0  # milliseconds that the 99th percentile of the delay must be below
RATE = 12_000  # messages a second: about an ordinary day of all linear contracts

Series = Mapping[str, list[Result]]


def share(value: float) -> str:
    return f"{value:.0%}"


def per_message(result: Result) -> str:
    return number(result.cpu / result.arrived * 1e6) if result.arrived else "-"


def lost(result: Result) -> str:
    wrong = {"lost": result.missing, "twice": result.again, "out of order": result.disordered}
    return ", ".join(f"{count:,} {what}" for what, count in wrong.items() if count) or "0"


def summary(series: Series) -> list[str]:
    """Of the series that were played."""
    return [sentence for part in (symbols, rates, bursts, processes, readers, standbys) for sentence in part(series)]


def symbols(series: Series) -> Iterator[str]:
    found = {one.case.symbols: one for one in series.get("symbols", [])}
    if {1, 800, 3000} <= found.keys():
        least, many, most = (found[count] for count in (1, 800, 3000))
        yield (
            f"**Symbols** cost little: {least.memory:.0f} MiB of memory with one, {many.memory:.0f} MiB with 800, "
            f"{most.memory:.0f} MiB with 3,000. 800 are subscribed {many.start:.1f} s after the start of the process."
        )


def rates(series: Series) -> Iterator[str]:
    found = {(one.case.rate, one.case.together): one for one in series.get("rates", [])}
    if {(RATE, False), (RATE, True)} <= found.keys():
        alone, together = found[RATE, False], found[RATE, True]
        yield (
            f"**Messages** cost CPU: {RATE:,} a second take {share(together.cpu)} of a core if many come together, "
            f"{share(alone.cpu)} if each comes alone ({per_message(together)} and {per_message(alone)} µs a message). "
            f"The 99th percentile of the delay, Redis included, is {number(together.p99)} and {number(alone.p99)} ms."
        )
    kept = [one for one in found.values() if not one.case.together and lost(one) == "0" and one.p99 < KEEPS_UP]
    if kept:
        best = max(kept, key=lambda one: one.case.rate)
        yield (
            f"**One process** keeps up with {best.case.rate:,} messages a second, each alone, the highest rate that "
            f"was tried: {share(best.cpu)} of a core, 99th percentile {number(best.p99)} ms."
        )


def bursts(series: Series) -> Iterator[str]:
    for one in series.get("burst", []):
        if one.case.processes == 1 and not one.case.together:
            yield (
                f"**A burst** of {one.count:,} messages, each alone, sent within {one.sending:.2f} s: the last is "
                f"there {one.until_last:.2f} s after the first was sent; lost, twice or out of order: {lost(one)}; "
                f"memory at the peak: {one.peak:.0f} MiB."
            )


def processes(series: Series) -> Iterator[str]:
    found = {(one.case.rate, one.case.processes): one for one in series.get("processes", [])}
    high = max((rate for rate, _ in found), default=0)
    if {(high, 1), (high, 2)} <= found.keys():
        one, two = found[high, 1], found[high, 2]
        yield (
            f"**Two processes** with half of the symbols each take {share(two.cpu / 2)} of a core each at {high:,} "
            f"messages a second, where one takes {share(one.cpu)}; the 99th percentile is {number(two.p99)} ms and "
            f"{number(one.p99)} ms."
        )


def readers(series: Series) -> Iterator[str]:
    found = {one.case.readers: one.redis / one.arrived * 1e6 for one in series.get("readers", [])}
    if {1, 8} <= found.keys():
        yield (
            f"**Redis** needs {number(found[1])} µs of CPU a message that comes with others, and "
            f"{number((found[8] - found[1]) / 7)} µs more for each further subscriber."
        )


def standbys(series: Series) -> Iterator[str]:
    for one in series.get("standby", []):
        if one.case.rate == RATE:
            yield (
                f"**A standby** takes {share(one.standby)} of a core where its leader takes {share(one.cpu)}, and "
                f"{one.standby_memory:.0f} MiB."
            )
