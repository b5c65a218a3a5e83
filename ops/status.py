"""python main.py --status: the streams of the running collector, as its state hash in Redis has them."""

import json
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from conf.streams import RESERVED_NAME
from ops.table import format_table
from relay.log import shorten
from relay.redis.link import REDIS_ERRORS
from relay.redis.publisher import Publisher
from relay.redis.state import read_hash

# Seconds after which a state is called old. The collector writes one every 5 s, with a delay of up to 1 s.
OLD_AFTER = 10.0

State = dict[str, dict[str, Any]]  # the state hash

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


def run_status(publisher: Publisher) -> int:
    """Prints a table of the streams. Returns the exit code: 0 if all is well, 1 if a stream is down or misses topics
    that Bybit has not rejected, or if there is no state.

    publisher: need not be started; a connection is opened only to read.
    """
    try:
        found = read_hash(publisher.new_connection, publisher.state_key)
    except REDIS_ERRORS as error:
        print(f"Cannot read the state from Redis at {publisher.address}: {shorten(error)}")
        return 1
    try:
        state = parse_state(found)
    except ValueError as error:
        print(
            f"{publisher.state_key} in Redis at {publisher.address} is not the state of a collector: {shorten(error)}"
        )
        return 1
    collector = state.pop(RESERVED_NAME, None)
    if collector and not state and age_of({RESERVED_NAME: collector}) <= OLD_AFTER:
        print("The collector has no streams: STREAMS is empty")
        return 0
    if not state:
        print(f"No collector is running: there is no {publisher.state_key} in Redis at {publisher.address}")
        return 1
    since = age_of(state)
    lines, is_well = stream_lines(state, since)
    print(*lines, sep="\n")
    if since > OLD_AFTER:
        print(f"This was the state {since:.0f} s ago: the collector was stopped or hangs, or the clocks differ")
    return int(since > OLD_AFTER or not is_well)


def age_of(state: State) -> float:
    """Seconds since a state was taken, which has a stream."""
    latest: int = max(fields["ts"] for fields in state.values())
    return max(0.0, time() - latest / 1000)


def stream_lines(state: State, since: float) -> tuple[list[str], bool]:
    """The lines of a table of the streams, and whether all is well. since: seconds since the state was taken.

    A stream whose state is unknown is not down: a function of the user's own, or one with nothing to carry.
    """
    rows = [HEADS, *(status_row(name, fields, since) for name, fields in sorted(state.items()))]
    return list(format_table(rows, numbers_from=2)), all(map(is_well, state.values()))


def is_well(fields: Mapping[str, Any]) -> bool:
    """Whether a stream is not down, and has all topics that it wants but for those that Bybit rejects. It does not know
    all of them while it waits for the list of instruments.
    """
    topics, wanted, rejected = (fields.get(name) for name in ("topics", "wanted", "rejected"))
    is_complete = wanted is None or (topics or 0) + (rejected or 0) >= wanted
    return _word(fields) != "DOWN" and is_complete and not fields.get("waits")


def parse_state(found: Sequence[bytes]) -> State:
    """The fields of each stream by its name, and those of the collector as a whole. Raises ValueError for a hash of
    something else.
    """
    state = {name.decode(): json.loads(text) for name, text in zip(found[::2], found[1::2], strict=True)}
    for name, fields in state.items():
        is_stream = name != RESERVED_NAME
        if not isinstance(fields, dict) or ("up" not in fields and is_stream) or type(fields.get("ts")) is not int:
            raise ValueError(f"unknown field {name}")
    return state


def _word(fields: Mapping[str, Any]) -> str:
    up = fields["up"]
    return "-" if up is None else "up" if up else "DOWN"


def _topics(fields: Mapping[str, Any]) -> str:
    """How many are subscribed, "695 of 700" if more are wanted, "1 of ?" if it is not known yet how many."""
    topics, wanted = fields.get("topics"), fields.get("wanted")
    if topics is None:
        return "-"
    if fields.get("waits"):
        return f"{topics:,} of ?"
    return f"{topics:,}" if wanted in (None, topics) else f"{topics:,} of {wanted:,}"


def status_row(name: str, fields: Mapping[str, Any], since: float) -> tuple[str, ...]:
    """The cells of a stream. since: seconds since its state was taken. A field that is missing or null is a "-"."""

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
