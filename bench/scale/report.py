"""What the results say: the tables of docs/scaling.md, and its picture."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.chart import GRID, OTHER, OURS, text
from bench.proc import ROOT
from bench.report import number
from bench.scale.measure import Case, Result, median
from bench.scale.summary import lost, per_message, share, summary

PAGE, PICTURE = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.svg"
# What stands between these lines of the page is written here; the name of a table follows.
BEGIN, END = "<!-- made by python -m bench.scale --report: {} -->", "<!-- end -->"
LAG = 50.0  # milliseconds that the sender itself was late from which a figure is marked as disturbed

Column = tuple[str, Callable[[Result], str]]


def sending(case: Case) -> str:
    return "together" if case.together else "alone"


SYMBOLS: Column = ("symbols", lambda one: f"{one.case.symbols:,}")
RATE: Column = ("messages/s", lambda one: f"{one.case.rate:,}")
SENDING: Column = ("frames", lambda one: sending(one.case))
CONNECTIONS: Column = ("connections", lambda one: f"{one.connections}")
START: Column = ("subscribed after s", lambda one: f"{one.start:.1f}")
MEMORY: Column = ("memory MiB", lambda one: f"{one.memory:.0f}")
CPU: Column = ("CPU, of a core", lambda one: share(one.cpu))
COST: Column = ("CPU µs/message", per_message)
P50: Column = ("p50 ms", lambda one: number(one.p50))
P99: Column = ("p99 ms", lambda one: number(one.p99))
REDIS: Column = ("CPU of Redis", lambda one: share(one.redis))
BANDWIDTH: Column = ("from Bybit, Mbit/s", lambda one: number(one.size * one.arrived * 8 / 1e6))
LOST: Column = ("lost, twice, out of order", lost)

TABLES: dict[str, list[Column]] = {
    "symbols": [SYMBOLS, CONNECTIONS, START, MEMORY, CPU, COST, P50, P99, LOST],
    "rates": [RATE, SENDING, CPU, COST, MEMORY, P50, P99, REDIS, BANDWIDTH, LOST],
    "processes": [
        RATE,
        ("processes", lambda one: f"{one.case.processes}"),
        CONNECTIONS,
        ("CPU, of a core, all", lambda one: share(one.cpu)),
        ("CPU, of a core, each", lambda one: share(one.cpu / one.case.processes)),
        ("memory MiB, all", MEMORY[1]),
        P50,
        P99,
        LOST,
    ],
    "parts": [("entries a kind", lambda one: f"{one.case.parts}"), CONNECTIONS, CPU, COST, MEMORY, P50, P99, LOST],
    "readers": [
        ("subscribers", lambda one: f"{one.case.readers}"),
        REDIS,
        ("Redis, µs/message", lambda one: number(one.redis / one.arrived * 1e6)),
        ("from Redis, Mbit/s", lambda one: number(one.case.readers * one.size * one.arrived * 8 / 1e6)),
        P50,
        P99,
        LOST,
    ],
    "settings": [
        ("setting", lambda one: f"`{one.case.setting}`" if one.case.setting else "as it is"),
        CPU,
        COST,
        REDIS,
        MEMORY,
        P50,
        P99,
        LOST,
    ],
    "standby": [
        RATE,
        ("leader: CPU", CPU[1]),
        ("standby: CPU", lambda one: share(one.standby)),
        ("leader: MiB", MEMORY[1]),
        ("standby: MiB", lambda one: f"{one.standby_memory:.0f}"),
        REDIS,
        P50,
        P99,
        LOST,
    ],
    "burst": [
        ("processes", lambda one: f"{one.case.processes}"),
        SENDING,
        ("sent", lambda one: f"{one.count:,}"),
        ("sent in s", lambda one: f"{one.sending:.2f}"),
        ("all there after s", lambda one: f"{one.until_last:.2f}"),
        ("longest delay, ms", lambda one: number(one.worst)),
        ("memory before and at the peak, MiB", lambda one: f"{one.memory:.0f}, {one.peak:.0f}"),
        LOST,
    ],
}


def read(path: Path) -> tuple[dict[str, Any], dict[str, list[Result]]]:
    """What a reader must know, by series, and the medians of the cases of each series, in the order of the first."""
    data = json.loads(path.read_text())
    plays: dict[Case, list[Result]] = {}
    for play in data["plays"]:
        case = Case(**play.pop("case"))
        plays.setdefault(case, []).append(Result(case=case, **play))
    series: dict[str, list[Result]] = {}
    for case, results in plays.items():
        series.setdefault(case.series, []).append(median(results))
    return data["about"], series


def table(columns: Sequence[Column], results: Sequence[Result]) -> str:
    """Markdown. A row has a * if the sender itself was late: its delays are not the collector's."""
    rows = [[name for name, _ in columns], ["---:"] * len(columns)]
    for one in results:
        cells = [value(one) for _, value in columns]
        cells[0] += "*" if one.lag > LAG else ""
        rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def origin(about: dict[str, Any]) -> str:
    """The sentence under a table."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    frames = "recorded frames" if about["recorded"] else "the stand-in's frames"
    rounds = f"medians of {about['rounds']} plays" if about["rounds"] > 1 else "one play each"
    return f"{about['date']}, {about['machine']}, {versions}; {rounds} of {about['seconds']:g} s, {frames}."


def write_report(path: Path) -> None:
    """Replaces what stands between the markers of the page, and the picture."""
    about, series = read(path)
    page = PAGE.read_text(encoding="utf-8")
    made = {"summary": "\n".join(f"- {sentence}" for sentence in summary(series))}
    for name, columns in TABLES.items():
        if name in series:
            made[name] = f"{table(columns, series[name])}\n\n<sub>{origin(about[name])}</sub>"
    for name, content in made.items():
        before, found, rest = page.partition(BEGIN.format(name))
        if found:
            page = f"{before}{found}\n\n{content}\n\n{rest[rest.index(END) :]}"
    PAGE.write_text(page, encoding="utf-8")
    PICTURE.write_text(chart(series), encoding="utf-8")
    print(f"Written: {PAGE.relative_to(ROOT)}, {PICTURE.relative_to(ROOT)}")


# The picture: two panels side by side.

WIDTH, HEIGHT, PANEL, LEFT, TOP, BOTTOM, ROOM = 860, 300, 400, 44, 56, 34, 34.0  # pixels
Line = tuple[str, str, list[tuple[float, float]]]  # label, colour, points


def chart(series: dict[str, list[Result]]) -> str:
    """SVG for light and dark pages: no background."""
    rates = series.get("rates", [])
    lines: list[Line] = []
    for together, colour, label in ((False, OURS, "each frame alone"), (True, OTHER, "frames together")):
        points = [(one.case.rate / 1000, one.cpu * 100) for one in rates if one.case.together == together]
        lines.append((label, colour, sorted(points)))
    symbols = [(one.case.symbols, one.memory) for one in series.get("symbols", [])]
    panels = [
        panel(0, "CPU of one process, % of a core, by 1,000 messages/s", lines, 100),
        panel(WIDTH - PANEL, "Memory of one process, MiB, by symbols", [("5,000 messages/s", OURS, symbols)], 100),
    ]
    style = "font-family='-apple-system,Segoe UI,Helvetica,Arial,sans-serif' font-size='12'"
    view = f"viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}'"
    return "\n".join((f"<svg xmlns='http://www.w3.org/2000/svg' {view} {style}>", *panels, "</svg>", ""))


def panel(x: int, title: str, lines: list[Line], top: float) -> str:
    """One diagram. top: the least upper end of its y axis."""
    high_x = max((px for _, _, points in lines for px, _ in points), default=1.0)
    high_y = max([top, *(py * 1.1 for _, _, points in lines for _, py in points)])
    width, height, base = PANEL - LEFT - 10, HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM

    def place(px: float, py: float) -> str:
        return f"{x + LEFT + px / high_x * width:.1f} {base - py / high_y * height:.1f}"

    parts = [text(x, 16, title, weight="600")]
    for part in range(5):
        value = high_y * part / 4
        parts.append(f"<path d='M{place(0, value)}L{place(high_x, value)}' stroke='{GRID}' stroke-opacity='0.3'/>")
        parts.append(text(x + LEFT - 6, base - part / 4 * height + 4, f"{value:.0f}", anchor="end"))
    latest = -WIDTH * 1.0
    for value in sorted({px for _, _, points in lines for px, _ in points}):
        at = x + LEFT + value / high_x * width
        if at - latest >= ROOM:  # a label for each point, where there is room
            parts.append(text(latest := at, base + 18, f"{value:,g}", anchor="middle"))
    for row, (label, colour, points) in enumerate(lines):
        if not points:
            continue
        path = "L".join(place(px, py) for px, py in points)
        parts.append(f"<path d='M{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for px, py in points:
            cx, cy = place(px, py).split()
            parts.append(f"<circle cx='{cx}' cy='{cy}' r='3' fill='{colour}'/>")
        parts.append(text(x + LEFT + 8, TOP - 22 + 16 * row, label, colour=colour, weight="600"))
    return "\n".join(parts)
