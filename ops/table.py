"""Tables for a terminal."""

from collections.abc import Iterator, Sequence

from relay.log import printable

# Results of --check.
OK, FAILED, UNKNOWN = "ok", "FAILED", "?"

Row = tuple[str, str, str]  # what is tested, one of the results above, details

# Columns of the terminal that a table keeps to when it can.
WIDTH = 100


def format_table(rows: Sequence[Sequence[str]], numbers_from: int | None = None) -> Iterator[str]:
    """Yields the lines of a table; all rows have the same number of cells. Text in the last column is wrapped.

    numbers_from: index of the first column that is aligned to the right, None = none is.
    """
    rows = [[printable(cell) for cell in row] for row in rows]  # a cell may be a text of Redis or of Bybit
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    start = sum(widths[:-1]) + 2 * (len(widths) - 1)  # of the last column
    for row in rows:
        cells = [
            cell.ljust(width) if numbers_from is None or index < numbers_from else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        room = max(WIDTH - start, 40)
        more: list[str] = []
        if len(row[-1]) > room:
            import textwrap  # seldom needed, and --status is to be cheap

            lines = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False)
            cells[-1], *more = lines or [""]
        yield "  ".join(cells).rstrip()
        for line in more:
            yield " " * start + line
