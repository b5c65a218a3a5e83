"""The chart of the results, as SVG."""

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.report import BURST, SATURATION, Summary, number

CHART_RATES = (800, 20_000, 40_000)  # messages a second, of those that were played
# One picture for light and dark pages: no background, and colours that stand out on both.
TEXT, GRID, OURS, OTHER, FLOOR = "#7a828c", "#7a828c", "#2f81f7", "#8b949e", "#3fa36c"
WIDTH, LEFT, ROW, BAR, TOP, BOTTOM = 980, 84, 22, 14, 46, 40  # pixels
SPACE, VALUE, TICK = 14, 52, 38  # pixels between two columns, for the value behind the longest bar, for a tick's label


@dataclass(frozen=True)
class Column:
    """One value of each runner: `name`, of Result, at a rate. Columns of a panel with the same name share a scale."""

    title: str
    rate: int
    name: str


Shown = dict[tuple[str, Column], float | None]  # a value, None where the runner has none to show


def panels(summary: Summary) -> list[tuple[str, list[Column]]]:
    """Title and columns of each panel, from what was played."""
    rates = [rate for rate in CHART_RATES if rate in summary.rates]
    titles = {rate: f"{rate:,}/s" for rate in rates}
    costs = [Column(titles[rate], rate, "cpu") for rate in rates]
    delays = [Column(f"p99 at {titles[rate]}", rate, "p99") for rate in rates]
    if SATURATION in summary.rates:
        costs.append(Column("saturation", SATURATION, "cpu"))
    if BURST in summary.rates:
        costs.append(Column("burst", BURST, "cpu"))
        delays.append(Column(f"burst of {summary.burst_size:,}, to the last", BURST, "last"))
    found = [("CPU time a message, µs", costs), ("Delay, ms", delays)]
    return [(title, columns) for title, columns in found if columns]


def chart(summary: Summary) -> str:
    """The chart as SVG: a panel for the CPU time and one for the delay, a row a runner, all on logarithmic scales."""
    height = TOP + ROW * len(summary.runners) + BOTTOM
    found = panels(summary)
    drawn = [panel(summary, title, columns, n * height) for n, (title, columns) in enumerate(found)]
    size = f"viewBox='0 0 {WIDTH} {height * len(found)}' width='{WIDTH}' height='{height * len(found)}'"
    style = "font-family='-apple-system,Segoe UI,Helvetica,Arial,sans-serif' font-size='12'"
    return "\n".join((f"<svg xmlns='http://www.w3.org/2000/svg' {size} {style}>", *drawn, "</svg>", ""))


def panel(summary: Summary, title: str, columns: list[Column], y: int) -> str:
    parts = [text(0, y + 16, title, weight="600"), text(WIDTH, y + 16, "log scale, shorter is better", anchor="end")]
    shown = {(runner, one): value(summary, runner, one) for runner in summary.runners for one in columns}
    for n, runner in enumerate(summary.runners):
        middle = y + TOP + ROW * (n + 0.5) + 4
        parts.append(text(LEFT - 8, middle, runner, anchor="end", colour=colour_of(runner), weight="600"))
    width = (WIDTH - LEFT) / len(columns)
    for n, one in enumerate(columns):
        parts += drawn_column(summary, shown, one, LEFT + n * width, y, width - SPACE - VALUE)
    return "\n".join(parts)


def value(summary: Summary, runner: str, column: Column) -> float | None:
    """As in the tables: who cannot keep up has a CPU time but no delay, who stalls has neither."""
    hidden = summary.remark(runner, column.rate) and (column.name != "cpu" or column.rate == SATURATION)
    return None if hidden else summary.median(runner, column.rate, column.name)


def drawn_column(summary: Summary, shown: Shown, column: Column, x: float, y: int, width: float) -> list[str]:
    """A column from x on; its longest bar would have that width."""
    alike = [found for (_, other), found in shown.items() if other.name == column.name and found]
    low, high = limits(alike)
    decade = width / math.log10(high / low)  # pixels
    bottom = y + TOP + ROW * len(summary.runners)
    parts = [text(x, y + TOP - 10, column.title)]
    for n in range(math.floor(math.log10(high / low)) + 1):
        at = x + n * decade
        parts.append(f"<path d='M{at:.1f} {y + TOP - 4}V{bottom}' stroke='{GRID}' stroke-opacity='0.3'/>")
        if n % math.ceil(TICK / decade) == 0:
            parts.append(text(at, bottom + 14, f"{low * 10**n:g}", anchor="middle", size=11))
    for n, runner in enumerate(summary.runners):
        top = y + TOP + ROW * n + (ROW - BAR) / 2
        found = shown[runner, column]
        if not found:
            parts.append(text(x + 4, top + BAR - 3, summary.remark(runner, column.rate) or "-"))
            continue
        length = max(2, math.log10(found / low) * decade)
        paint = f"fill='{colour_of(runner)}'"
        parts.append(f"<rect x='{x:.1f}' y='{top:.1f}' width='{length:.1f}' height='{BAR}' rx='2' {paint}/>")
        parts.append(text(x + length + 4, top + BAR - 3, number(found)))
    return parts


def limits(values: list[float]) -> tuple[float, float]:
    """Where the bars begin, a power of ten well below all values, and the largest value."""
    low = 10.0 ** math.floor(math.log10(min(values, default=1.0) / 1.5))
    return low, max(values, default=10 * low)


def colour_of(runner: str) -> str:
    return {"ours": OURS, "limit": FLOOR}.get(runner, OTHER)


def text(
    x: float, y: float, content: str, anchor: str = "start", colour: str = TEXT, weight: str = "400", size: int = 12
) -> str:
    style = f"text-anchor='{anchor}' fill='{colour}' font-weight='{weight}' font-size='{size}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(content)}</text>"
