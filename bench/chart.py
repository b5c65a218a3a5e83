"""The chart of the results, as SVG."""

import math
from xml.sax.saxutils import escape

from bench.report import SATURATION, Summary, number

CHART_RATE = 800  # messages a second, for the delays in the chart
# One picture for light and dark pages: no background, and colours that stand out on both.
TEXT, GRID, OURS, OTHER, FLOOR = "#7a828c", "#7a828c", "#2f81f7", "#8b949e", "#3fa36c"
WIDTH, LEFT, RIGHT, ROW, BAR, TOP, GAP = 860, 96, 70, 30, 11, 44, 34  # pixels


Bars = tuple[tuple[str, str], ...]  # for each of a runner's bars: a value of Result, and its label


def chart(summary: Summary) -> str:
    """The chart as SVG: CPU time a message at saturation, and delays at CHART_RATE, both on a logarithmic scale."""
    panels: list[tuple[str, int, Bars]] = [("CPU time a message at saturation, µs", SATURATION, (("cpu", ""),))]
    if CHART_RATE in summary.rates:
        panels.append((f"Delay at {CHART_RATE:,} messages/s, ms", CHART_RATE, (("p50", "p50"), ("p99", "p99"))))
    drawn, y = [], 0
    for title, rate, names in panels:
        runners = [runner for runner in summary.runners if summary.median(runner, rate, names[0][0])]
        drawn.append(panel(summary, runners, title, rate, names, y))
        y += TOP + ROW * len(runners) + GAP
    style = "font-family='-apple-system,Segoe UI,Helvetica,Arial,sans-serif' font-size='12'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {y}' width='{WIDTH}' height='{y}' {style}>"
    return "\n".join((head, *drawn, "</svg>", ""))


def panel(summary: Summary, runners: list[str], title: str, rate: int, names: Bars, y: int) -> str:
    shown = {
        (runner, name): summary.median(runner, rate, name)
        for runner in runners
        for name, _ in names
        if not (summary.stalls(runner) if rate == SATURATION else summary.behind(runner, rate))
    }
    values = [value for value in shown.values() if value]
    low = 10.0 ** math.floor(math.log10(min(values) / 1.5))
    high = max(values)
    scale = (WIDTH - LEFT - RIGHT) / math.log10(high / low)
    bottom = y + TOP + ROW * len(runners)
    parts = [text(0, y + 18, title, weight="600"), text(WIDTH, y + 18, "log scale, shorter is better", anchor="end")]
    steps = (1, 2, 5) if high / low < 100 else (1,)
    for tick in (step * low * 10**n for n in range(9) for step in steps if step * low * 10**n <= high):
        x = LEFT + math.log10(tick / low) * scale
        parts.append(f"<path d='M{x:.1f} {y + TOP - 8}V{bottom}' stroke='{GRID}' stroke-opacity='0.3'/>")
        parts.append(text(x, bottom + 16, f"{tick:g}", anchor="middle"))
    for n, runner in enumerate(runners):
        middle = y + TOP + ROW * n + ROW / 2 - 4
        colour = {"ours": OURS, "limit": FLOOR}.get(runner, OTHER)
        parts.append(text(LEFT - 8, middle + 4, runner, anchor="end", colour=colour, weight="600"))
        for m, (name, label) in enumerate(names):
            value = shown.get((runner, name))
            height = BAR * 2 if len(names) == 1 else BAR
            top = middle - BAR + m * (BAR + 1)
            if value is None:
                remark = "stalls" if rate == SATURATION else f"{summary.verdict(runner, rate)}, see the tables"
                if m == 0:
                    parts.append(text(LEFT + 6, middle + 4, remark))
                continue
            length = max(2, math.log10(value / low) * scale)
            paint = f"fill='{colour}'" + (" fill-opacity='0.55'" if m else "")
            parts.append(f"<rect x='{LEFT}' y='{top:.1f}' width='{length:.1f}' height='{height}' rx='2' {paint}/>")
            at = top + height / 2 + 4
            parts.append(
                text(LEFT + length + 5, at, f"{number(value)} {label}".strip(), size=11 if len(names) > 1 else 12)
            )
    return "\n".join(parts)


def text(
    x: float, y: float, content: str, anchor: str = "start", colour: str = TEXT, weight: str = "400", size: int = 12
) -> str:
    style = f"text-anchor='{anchor}' fill='{colour}' font-weight='{weight}' font-size='{size}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(content)}</text>"
