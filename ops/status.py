"""python main.py --status: the streams of the running collector, as its state hash in Redis has them."""

import json
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

import redis

from conf.streams import RESERVED_NAME
from ops.table import format_table
from relay.redis.publisher import Publisher

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
    "failures",
)


def run_status(publisher: Publisher) -> int:
    """Prints a table of the streams. Returns the exit code: 0 if none is down, 1 if one is or there is no state.

    publisher: need not be started; a connection is opened only to read.
    """
    try:
        found = _read_hash(publisher)
    except (OSError, UnicodeError, redis.RedisError) as error:  # UnicodeError: the host is no name of a host
        print(f"Cannot read the state from Redis at {publisher.address}: {error}")
        return 1
    try:
        state = parse_state(found)
    except ValueError as error:
        print(f"{publisher.state_key} in Redis at {publisher.address} is not the state of a collector: {error}")
        return 1
    state.pop(RESERVED_NAME, None)
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
    """The lines of a table of the streams, and whether none of them is down. since: seconds since the state was taken.

    A stream whose state is unknown, a function of the user's own, is not down.
    """
    rows = [HEADS, *(status_row(name, fields, since) for name, fields in sorted(state.items()))]
    return list(format_table(rows, numbers_from=2)), all(_word(fields) != "DOWN" for fields in state.values())


def _read_hash(publisher: Publisher) -> list[bytes]:
    """Names and values of the state hash in turn. Raises OSError, UnicodeError, redis.RedisError."""
    connection = publisher.new_connection()
    try:
        connection.send_command("HGETALL", publisher.state_key)
        found: list[bytes] = connection.read_response()
        return found
    finally:
        connection.disconnect()


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


def status_row(name: str, fields: Mapping[str, Any], since: float) -> tuple[str, ...]:
    """The cells of a stream. since: seconds since its state was taken. A field that is missing or null is a "-"."""

    def cell(field: str, template: str, unit: float = 1, offset: float = 0) -> str:
        value = fields.get(field)
        return "-" if value is None else template.format(value * unit + offset)

    return (
        name,
        _word(fields),
        cell("topics", "{:,}"),
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
