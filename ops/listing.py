"""--check: reads Bybit's list of instruments once, where symbols are patterns."""

from collections.abc import Callable, Sequence
from typing import Any

from conf.plan import Plan
from ops.rows import count
from ops.table import FAILED, OK, UNKNOWN, Row
from relay.bybit.instruments import matches
from relay.bybit.rest import Unavailable
from relay.kinds import is_pattern

# Seconds for the whole list.
TIMEOUT = 20.0


def listing_rows(
    plan: Plan, streams: Sequence[Any], address: str, read: Callable[[float], frozenset[str] | None]
) -> list[Row]:
    """Updates the plan by the list, if it needs it. Returns what the patterns stand for, and what cannot be tested.

    streams: STREAMS. address: of Bybit's REST, for people. read: gets the list within so many seconds, or raises
    Unavailable. It takes that long at most.
    """
    rows: list[Row] = []
    if plan.needs_list:
        try:
            symbols = read(TIMEOUT)
        except Unavailable as unavailable:
            rows.append(("Instruments", FAILED, f"{address}: {unavailable}"))
        else:
            plan.update(streams, symbols)
            rows.append(("Instruments", OK, f"{address}: {len(symbols or ()):,} symbols"))
            rows += _pattern_rows(plan, symbols or frozenset())
    without = [name for name, planned in plan.connections.items() if planned.topics is not None and not planned.topics]
    for name in without:
        waits = name in plan.waiting
        why = "its symbols are not known without the list" if waits else "none of the symbols is for this collector"
        rows.append((f"  {name}", UNKNOWN, f"not tested: {why}"))
    return rows


def _pattern_rows(plan: Plan, symbols: frozenset[str]) -> list[Row]:
    wanted = dict.fromkeys(each for entry in plan.entries for each in entry.wanted if is_pattern(each))
    counts = {pattern: len(matches(pattern, symbols)) for pattern in wanted}
    return [
        (f"  {pattern}", OK, count(number, "symbol"))
        if number
        else (f"  {pattern}", FAILED, "matches no symbol that Bybit lists")
        for pattern, number in counts.items()
    ]
