"""What `make demo CHAOS=1` shows while it runs, and at its end."""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from sandbox.proof import Outcome, Proof

BLOCKS, CHARACTERS = "▁▂▃▄▅▆▇█", "_.:-=+*#"  # of the sparkline; the first is for nothing at all
SAMPLES = 200  # of the sparkline, kept
LABEL = 13  # columns of what stands before each line
NAME = 27  # columns of a fault's name
HEAD = f"{'fault':<{NAME}}{'silence s':>10}{'waited':>8}{'twice':>7}{'lost':>6}"
HOW = """\
Each message that the exchange made was looked for among
those that a subscriber of Redis received, topic by topic:
books by u, tickers by cs, trades by id. Those that waited
were made while nothing arrived, and came later.\
"""
ROLE_STYLES = {
    "leads": "bold green",
    "stands by": "green",
    "buffers": "yellow",
    "connects": "yellow",
    "killed": "bold red",
}
REDIS_STYLES = {"runs": "green", "killed": "bold red", "hangs": "bold red"}
# What stands before a fault: a mark, the same in ASCII, and the style of both.
MARKS = {
    "waits": ("·", " ", "dim"),
    "runs": ("▸", ">", "bold"),
    "done": ("✔", "+", "green"),
    "fails": ("✘", "x", "red"),
}


@dataclass
class Row:
    """One fault of the script. state: a name in MARKS; outcome: as soon as it is measured."""

    name: str
    state: str = "waits"
    outcome: Outcome | None = None

    @property
    def cells(self) -> str:
        """The line of the table."""
        if self.outcome is None:
            return self.name
        one = self.outcome
        return f"{self.name:<{NAME}}{one.silence:>10.2f}{one.waited:>8,}{one.twice:>7,}{one.lost:>6,}"


@dataclass
class Board:
    """The main thread writes, the thread of the live view reads: a field is replaced as a whole, or only grows.

    Attributes:
        rate: messages a second that the exchange makes.
        collectors: name, role (of ROLE_STYLES) and open connections to the exchange.
        redis: a name in REDIS_STYLES.
        rates: messages that came, a second, in each SAMPLE; the latest is the last.
        headline, words: what is going on.
        total: what was compared so far.
    """

    rate: float
    rows: Sequence[Row]
    began: float = field(default_factory=time.monotonic)
    collectors: Sequence[tuple[str, str, int]] = ()
    redis: str = "runs"
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    headline: str = "Everything starts"
    words: str = ""
    total: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height, plain = options.max_width, options.height or options.size.height, options.ascii_only
        said = Text.assemble((self.headline, "bold cyan"), "  ", self.words)
        parts = [
            [self._title(width)],
            [*self._states(plain), self._received(width, plain)],
            list(said.wrap(console, min(width, 100))),
            [Text("  " + HEAD, "bold"), *(self._line(row, plain) for row in self.rows)],
            [Text(f"  {self.total}", "bold")],
        ]
        spare = height - sum(map(len, parts))
        for part in parts[1:]:  # blank lines, as far as there is room
            if spare > 0:
                part.insert(0, Text())
                spare -= 1
        yield Text("\n", no_wrap=True).join(line for part in parts for line in part)

    def _title(self, width: int) -> Text:
        left, right = "Everything breaks, every message is counted", f"{time.monotonic() - self.began:.0f} s"
        hint = f"Ctrl+C ends it  {right}"
        return Text.assemble((left, "bold"), (hint.rjust(max(1, width - len(left))) if width > 60 else right.rjust(6)))

    def _states(self, plain: bool) -> Iterable[Text]:
        dot, gap = ("*", ".") if plain else ("●", "○")
        for name, role, connections in self.collectors:
            links = Text(dot * connections, "green") + Text(gap * max(0, 4 - connections), "red")
            yield Text.assemble(
                f"collector {name}".ljust(LABEL), (role.ljust(LABEL), ROLE_STYLES[role]), "Bybit ", links
            )
        yield Text.assemble("Redis".ljust(LABEL), (self.redis, REDIS_STYLES[self.redis]))

    def _received(self, width: int, plain: bool) -> Text:
        latest = f"{self.rates[-1] if self.rates else 0:,.0f}/s"
        return Text.assemble("received".ljust(LABEL), latest.ljust(9), self._sparkline(width - LABEL - 10, plain))

    def _sparkline(self, width: int, plain: bool) -> Text:
        """The latest rates; full height is one and a half times what the exchange makes."""
        levels, line = CHARACTERS if plain else BLOCKS, Text()
        for rate in list(self.rates)[-max(1, width) :]:
            level = min(len(levels) - 1, math.ceil(rate / self.rate / 1.5 * (len(levels) - 1)))
            line.append(levels[level], "green" if level else "red")
        return line

    def _line(self, row: Row, plain: bool) -> Text:
        mark, ascii_mark, style = MARKS[row.state]
        text = (row.cells, "dim" if row.state == "waits" else "")
        return Text.assemble((ascii_mark if plain else mark, style), " ", text)


def summary(board: Board, proof: Proof | None) -> str:
    """The end of it, to be pasted. None: it was ended before everything could be compared."""
    lines = [
        f"{time.monotonic() - board.began:.0f} s, two collectors, one Redis, {board.rate:,.0f} messages a second",
        "",
        HEAD,
        *(row.cells if row.outcome else f"{row.name:<{NAME}}{'not played':>18}" for row in board.rows),
        "",
    ]
    if proof is None:
        return "\n".join([*lines, f"Ended early: {board.total or 'nothing is proved'}"])
    if proof.faults:
        return "\n".join([*lines, f"FAILED: {', '.join(proof.faults)}; {proof.total.made:,} messages were made"])
    verdict = f"0 of {proof.total.made:,} messages lost, each topic in order"
    return "\n".join([*lines, verdict, "", HOW])
