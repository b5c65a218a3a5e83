"""The status of a collector in words: cells of tables, and sentences."""

from collections.abc import Iterator

from ops.instances import Fields, Instance, State
from ops.table import format_table
from relay.log import shorten

INSTANCE_HEADS = ("instance", "role", "term", "ready", "streams up", "pending", "behind s")
HEADS = (
    "stream",
    "",
    "topics",
    "rejected",
    "messages",
    "per s",
    "age s",
    "p50 ms",
    "p99 ms",
    "conns",
    "gaps",
    "failed",
)


def stream_lines(streams: State, since: float) -> Iterator[str]:
    """The lines of a table of the streams. since: seconds since the state was written."""
    rows = [HEADS, *(status_row(name, fields, since) for name, fields in sorted(streams.items()))]
    yield from format_table(rows, numbers_from=2)


def stream_problem(name: str, fields: Fields) -> str:
    """What is wrong with a stream, "" = nothing. One whose state is unknown is not down: a function of the user's own,
    or one with nothing to carry.
    """
    topics, wanted, rejected = (fields.get(field) for field in ("topics", "wanted", "rejected"))
    stream = f"Stream {shorten(name)}"
    if fields.get("waits"):
        return f"{stream} waits for Bybit's list of instruments"
    if _word(fields) == "DOWN":
        return f"{stream} is down"
    if wanted is not None and (topics or 0) + (rejected or 0) < wanted:
        return f"{stream} has {_topics(fields)} topics, and {rejected or 0:,} are rejected"
    return ""


def _word(fields: Fields) -> str:
    up = fields["up"]
    return "-" if up is None else "up" if up else "DOWN"


def _topics(fields: Fields) -> str:
    """How many are subscribed, "695 of 700" if more are wanted, "1 of ?" if it is not known yet how many."""
    topics, wanted = fields.get("topics"), fields.get("wanted")
    if topics is None:
        return "-"
    if fields.get("waits"):
        return f"{topics:,} of ?"
    return f"{topics:,}" if wanted in (None, topics) else f"{topics:,} of {wanted:,}"


def status_row(name: str, fields: Fields, since: float) -> tuple[str, ...]:
    """The cells of a stream. since: seconds since its state was written. A field that is missing or null is a "-"."""

    def cell(field: str, template: str, unit: float = 1, offset: float = 0) -> str:
        value = fields.get(field)
        return "-" if value is None else template.format(value * unit + offset)

    return (
        name,
        _word(fields),
        _topics(fields),
        cell("rejected", "{:,}"),
        cell("messages", "{:,}"),
        cell("rate", "{:,.0f}" if (fields.get("rate") or 0) >= 100 else "{:.1f}"),
        cell("age", "{:,.1f}", offset=since),
        cell("delay_p50", "{:,.1f}", unit=1000),
        cell("delay_p99", "{:,.1f}", unit=1000),
        cell("connections", "{:,}"),
        cell("gaps", "{:,}"),
        cell("callback_failures", "{:,}"),
    )


def instance_row(instance: Instance) -> tuple[str, ...]:
    """The cells of an instance. What one that does not live last said of itself is not shown."""
    about = instance.collector
    if not instance.alive:
        return instance.name, "gone", "-", "-", "-", "-", "-"
    ups = [fields["up"] for fields in instance.streams.values()]

    def cell(field: str, template: str) -> str:
        value = about.get(field)
        return template.format(value) if isinstance(value, int | float) else "-"

    return (
        instance.name,
        shorten(about.get("role", "-")),
        cell("term", "{:,}"),
        "yes" if about.get("ready") else "no",
        f"{ups.count(True)} of {len(ups) - ups.count(None)}",
        cell("pending", "{:,}"),
        cell("behind", "{:,.1f}"),
    )
