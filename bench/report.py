"""The results: tables for the terminal and for Markdown."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SATURATION = 0  # the rate that means: as fast as they are read
BURST = -1  # the rate that means: many at once, and nothing else
LATE = 1.0  # seconds on the way after which a message counts as late
BEHIND = 0.01  # share of late and missing messages from which a runner did not keep up
REFERENCES = ("naive", "go", "limit")  # the runners that ratios are taken to


@dataclass
class Result:
    """One play.

    Attributes:
        rate: asked for, messages a second; 0 = saturation, -1 = a burst.
        arrived: a second, within the measured seconds.
        cpu: of the runner, microseconds for each arrived message; None when nothing arrived.
        p50, p99, p999, worst: delay from sending to arrival, milliseconds; only at a rate.
        last: from the beginning of a burst to the arrival of its last message, milliseconds; None in other plays.
        late: messages more than LATE on the way (at a rate), or not there when the play was over (not at saturation).
        missing: messages that never arrive: later ones of their connection did, or all was quiet.
        count: messages sent within the measured seconds.
        again: arrivals of a message that was there already.
        publishes: PUBLISH commands that came, of which `unmarked` carried no marker.
        memory: peak of the process tree, MB.
        lag: the longest that the sender itself kept a frame too long, milliseconds.
        lost_connections: that ended during the play.
    """

    runner: str
    turn: int
    rate: int
    arrived: float
    cpu: float | None
    p50: float | None
    p99: float | None
    p999: float | None
    worst: float | None
    last: float | None
    late: int
    missing: int
    count: int
    again: int
    publishes: int
    unmarked: int
    memory: float
    lag: float
    lost_connections: int

    @property
    def behind(self) -> bool:
        """Whether the runner could not keep up with the rate, or did not deliver a burst."""
        if self.rate == BURST and self.late:
            return True
        return self.rate != SATURATION and self.late + self.missing > BEHIND * self.count

    def line(self) -> str:
        """For the terminal, while the benchmark runs."""
        rate = {SATURATION: "saturation", BURST: "burst"}.get(self.rate, f"{self.rate:,}/s")
        cpu = "-" if self.cpu is None else f"{self.cpu:.1f}"
        text = f"{self.turn}  {self.runner:<11}{rate:>11}  {self.arrived:>9,.0f}/s  {cpu:>7} µs"
        for name, delay in (("p50", self.p50), ("p99", self.p99), ("p99.9", self.p999), ("max", self.worst)):
            text += "" if delay is None else f"  {name} {delay:8.3f}"
        text += "" if self.last is None else f"  last after {self.last:,.0f} ms"
        for number, what in ((self.late, "late"), (self.missing, "missing"), (self.again, "in parts")):
            text += f"  {number} {what}" if number else ""
        return text + (f"  {self.lost_connections} connections lost" if self.lost_connections else "")


@dataclass
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """For a terminal."""
        lines = [self.title, ""]
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        for row in (self.header, *self.rows):
            cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            lines.append("  ".join((row[0].ljust(widths[0]), *cells)))
        return "\n".join(lines)

    def markdown(self) -> str:
        ruler = ["---"] + ["---:"] * (len(self.header) - 1)
        rows = ("| " + " | ".join(row) + " |" for row in (self.header, ruler, *self.rows))
        return "\n".join((f"### {self.title}", "", *rows))


class Summary:
    """Medians over the rounds, and ratios taken within a round."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.cells: dict[tuple[str, int], dict[int, Result]] = {}
        for result in results:
            self.cells.setdefault((result.runner, result.rate), {})[result.turn] = result
        self.runners = list(dict.fromkeys(runner for runner, _ in self.cells))
        self.rates = sorted({rate for _, rate in self.cells})
        self.references = [reference for reference in REFERENCES if reference in self.runners]
        self.times = [f"× {reference}" for reference in self.references]

    def plays(self, runner: str, rate: int) -> list[Result]:
        return list(self.cells.get((runner, rate), {}).values())

    def behind(self, runner: str, rate: int) -> bool:
        """Whether the runner could not keep up in half of the rounds."""
        plays = self.plays(runner, rate)
        return sum(play.behind for play in plays) * 2 >= len(plays)

    def verdict(self, runner: str, rate: int) -> str:
        """What a runner that could not keep up does: gets them late, or never."""
        plays = self.plays(runner, rate)
        return "behind" if sum(play.late for play in plays) > sum(play.missing for play in plays) else "loses"

    def kept(self, runner: str) -> int:
        """The highest rate played that the runner kept up with; 0 = none."""
        rates = (rate for rate in self.rates if rate > 0 and self.plays(runner, rate))
        return max((rate for rate in rates if not self.behind(runner, rate)), default=0)

    def stalls(self, runner: str) -> bool:
        """Whether flooded it gets less through than at a rate: it reads without end and does nothing else."""
        return (self.median(runner, SATURATION, "arrived") or 0) < self.kept(runner) / 2

    def remark(self, runner: str, rate: int) -> str:
        """What stands in the place of a value that would mislead; empty if there is no such reason."""
        if not self.plays(runner, rate):
            return ""
        if rate == SATURATION:
            return "stalls" if self.stalls(runner) else ""
        return self.verdict(runner, rate) if self.behind(runner, rate) else ""

    @property
    def burst_size(self) -> int:
        """Messages a burst."""
        return max((play.count for (_, rate), plays in self.cells.items() if rate == BURST for play in plays.values()))

    def median(self, runner: str, rate: int, name: str) -> float | None:
        values = [value for play in self.plays(runner, rate) if (value := getattr(play, name)) is not None]
        return statistics.median(values) if values else None

    def cell(self, runner: str, rate: int, name: str) -> list[str]:
        """The value, and how many times the references' value it is."""
        return [
            number(self.median(runner, rate, name)),
            *(self.ratio(runner, rate, name, one) for one in self.references),
        ]

    def ratio(self, runner: str, rate: int, name: str, reference: str) -> str:
        """How many times the reference's value, as the median over the rounds."""
        if self.behind(reference, rate) and name != "cpu":
            return "-"
        ratios = []
        for turn, play in self.cells.get((runner, rate), {}).items():
            other = self.cells.get((reference, rate), {}).get(turn)
            if other and getattr(other, name) and getattr(play, name) is not None:
                ratios.append(getattr(play, name) / getattr(other, name))
        return number(statistics.median(ratios) if ratios else None)

    def tables(self) -> list[Table]:
        special = {SATURATION: self.saturation, BURST: self.burst}
        order = sorted(self.rates, key=lambda rate: (rate != SATURATION, rate))
        return [special[rate]() if rate in special else self.paced(rate) for rate in order]

    def saturation(self) -> Table:
        header = ["runner", "messages/s", *self.times, "CPU µs/message", *self.times]
        header += ["peak MB", "lost", "keeps up with"]
        rows = []
        for runner in self.runners:
            if plays := self.plays(runner, SATURATION):
                row = [runner, *self.cell(runner, SATURATION, "arrived"), *self.cell(runner, SATURATION, "cpu")]
                if self.stalls(runner):
                    row = [runner, "stalls"] + ["-"] * (len(row) - 2)
                lost = sum(play.missing for play in plays)
                row += [number(self.median(runner, SATURATION, "memory")), f"{lost:,}"]
                rows.append([*row, f"{kept:,}/s" if (kept := self.kept(runner)) else "-"])
        return Table("At saturation", header, rows)

    def burst(self) -> Table:
        header = ["runner", "last after ms", *self.times, "CPU µs/message", *self.times, "lost", "peak MB"]
        rows = []
        for runner in self.runners:
            if not (plays := self.plays(runner, BURST)):
                continue
            last = self.cell(runner, BURST, "last")
            if self.behind(runner, BURST):
                last = [self.verdict(runner, BURST)] + ["-"] * (len(last) - 1)
            row = [runner, *last, *self.cell(runner, BURST, "cpu")]
            sent, missing = (sum(getattr(play, name) for play in plays) for name in ("count", "missing"))
            rows.append([*row, share(missing, sent), number(self.median(runner, BURST, "memory"))])
        return Table(f"A burst of {self.burst_size:,} messages", header, rows)

    def paced(self, rate: int) -> Table:
        header = ["runner", "arrived/s", "CPU µs/message", *self.times]
        header += ["p50 ms", *self.times, "p99 ms", *self.times, "p99.9 ms", "max ms", "late", "lost", "peak MB"]
        rows = []
        for runner in self.runners:
            plays = self.plays(runner, rate)
            if not plays:
                continue
            row = [runner, number(self.median(runner, rate, "arrived")), *self.cell(runner, rate, "cpu")]
            delays = [*self.cell(runner, rate, "p50"), *self.cell(runner, rate, "p99")]
            delays += [number(self.median(runner, rate, "p999")), number(max(play.worst or 0 for play in plays))]
            sent, late, missing = (sum(getattr(play, name) for play in plays) for name in ("count", "late", "missing"))
            if self.behind(runner, rate):
                delays = [self.verdict(runner, rate)] + ["-"] * (len(delays) - 1)
            row += [*delays, share(late, sent), share(missing, sent)]
            rows.append([*row, number(self.median(runner, rate, "memory"))])
        return Table(f"At {rate:,} messages/s", header, rows)


def number(value: float | None) -> str:
    """With as many digits as mean something."""
    if value is None:
        return "-"
    return (
        f"{value:,.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
        if value >= 0.1
        else f"{value:.3f}"
    )


def share(part: int, whole: int) -> str:
    return "0" if not part else f"{part / whole:.1%}" if part >= 0.001 * whole else f"{part:,}"


def markdown(summary: Summary, about: dict[str, Any], chart: str) -> str:
    """The whole report; `about` is what `bench.__main__.about` returns, `chart` the file name of the picture."""
    parts = [
        "# Benchmark",
        f"The same frames, {about['connections']} TLS connections, a real Redis, a subscriber: delay and CPU time "
        f"of the runner in between. {about['date']}, {about['machine']}. Medians of {about['rounds']} interleaved "
        f"rounds of {about['seconds']:g} s; ratios are taken within a round. Other load on the machine changes "
        "the absolute values, so trust the ratios.",
        f"![CPU time a message and delay of each runner]({chart})",
        "\n".join(f"- **{name}**: {what}" for name, what in about["runners"].items()),
    ]
    if about["skipped"]:
        parts.append("\n".join(f"- **{name}** is left out: {reason}" for name, reason in about["skipped"].items()))
    parts += [table.markdown() for table in summary.tables()]
    parts += [
        "CPU is user and system time of the runner's processes for each message that arrived. Late: more than "
        f'{LATE:g} s on the way. "behind" and "loses" in place of figures: more than {BEHIND:.0%} of the messages '
        'were late, or lost. "stalls": at saturation it keeps reading and publishes nearly nothing. At a rate each '
        "frame has its own TLS record; at saturation and in a burst "
        f"{about['frames_per_write_at_saturation']} share one on average. The sender, Redis and the subscriber share "
        "the machine with the runner: the fastest wait for them. A burst comes to a runner "
        "that was idle since it subscribed; the time is from the first write to the last arrival, behind if messages "
        "still arrive after 30 s. Peak MB sums the processes' peaks.",
        f"{about['sender']} {about['lag']}",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + ".",
        "Frames in bytes (count, smallest, median, 95th percentile, largest): "
        + "; ".join(f"{kind} {', '.join(f'{size:,}' for size in sizes)}" for kind, sizes in about["frames"].items())
        + ".",
        f"Again: `{about['command']}`",
    ]
    return "\n\n".join(parts) + "\n"
