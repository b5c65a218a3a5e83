"""python main.py --status, where collectors share a lease: all instances, and the streams of each."""

from collections.abc import Mapping, Sequence
from time import monotonic, sleep

import redis
from redis.exceptions import MovedError

from conf.streams import RESERVED_NAME
from ops.status import OLD_AFTER, State, age_of, parse_state, stream_lines
from ops.table import format_table
from relay.log import shorten
from relay.redis.cluster import NO_LEASE
from relay.redis.link import REDIS_ERRORS
from relay.redis.publisher import Publisher
from relay.redis.registry import LEADER, Entry, Registry

# Seconds in which an instance that lives writes its entry anew, generously; between two looks at them.
ALIVE_WITHIN, POLL_INTERVAL = 1.5, 0.1

HEADS = ("instance", "role", "term", "ready", "streams up", "pending", "behind s")


def run_instances(publisher: Publisher, key: str, state_key: str) -> int:
    """Prints a line for each instance, and a table of its streams. Returns the exit code: 0 if there is a leader and
    none of its streams is down, else 1.

    publisher: need not be started; a connection is opened only to read. key: of the lease. state_key: with which the
    keys of the states begin. Takes up to ALIVE_WITHIN seconds, in which who lives writes its entry anew.
    """
    try:
        connection = publisher.new_connection()
        try:
            connection.connect()
            registry, alive = _read_registry(connection, f"{key}_instances")
            states = {name: _read_state(connection, f"{state_key}:{name}") for name in registry.entries}
        finally:
            connection.disconnect()
    except MovedError:
        print(f"Redis at {publisher.address}: {NO_LEASE}")
        return 1
    except REDIS_ERRORS as error:
        print(f"Cannot read the state from Redis at {publisher.address}: {shorten(error)}")
        return 1
    if not registry.entries:
        print(f"No collector is running: there is no {key}_instances in Redis at {publisher.address}")
        return 1
    return _print_all(registry.entries, alive, states)


def _read_registry(connection: redis.Connection, key: str) -> tuple[Registry, set[str]]:
    """The registry, and who lives: whose entry changes while this looks."""
    registry = Registry("")
    until = monotonic() + ALIVE_WITHIN
    while True:
        connection.send_command("HGETALL", key)
        found = connection.read_response()
        registry.update(dict(zip(found[::2], found[1::2], strict=True)), monotonic())
        alive = set(registry.others(monotonic()))
        if alive >= registry.entries.keys() or monotonic() >= until:
            return registry, alive
        sleep(POLL_INTERVAL)


def _read_state(connection: redis.Connection, key: str) -> State:
    """A state hash; what is none is empty."""
    connection.send_command("HGETALL", key)
    try:
        return parse_state(connection.read_response())
    except (ValueError, redis.ResponseError):
        return {}


def _print_all(entries: Mapping[str, Entry], alive: set[str], states: Mapping[str, State]) -> int:
    rows = [instance_row(name, entry, name in alive, states[name]) for name, entry in sorted(entries.items())]
    print(*format_table([HEADS, *rows], numbers_from=2), sep="\n")
    leaders = [name for name in alive if entries[name].role == LEADER]
    well = bool(leaders)
    for name in sorted(alive, key=lambda name: (name not in leaders, name)):
        streams = _streams_of(states[name])
        # By the beats of the instance its state is fresh: what makes it look old are two clocks that differ.
        since = age_of(streams) if streams else 0.0
        lines, none_is_down = stream_lines(streams, since if since <= OLD_AFTER else 0.0)
        print(f"\n{shorten(name)}, {shorten(entries[name].role)}:", *(lines if streams else ["no state yet"]), sep="\n")
        well = well and (name not in leaders or (bool(streams) and none_is_down))
    if not leaders:
        print("\nNobody leads: nothing is published")
    return int(not well)


def _streams_of(state: State) -> State:
    return {name: fields for name, fields in state.items() if name != RESERVED_NAME}


def instance_row(name: str, entry: Entry, is_alive: bool, state: State) -> Sequence[str]:
    """The cells of an instance. What one that does not live last said of itself is not shown."""
    if not is_alive:
        return name, "gone", f"{entry.term}", "-", "-", "-", "-"
    streams = [fields["up"] for fields in _streams_of(state).values()]
    up, known = streams.count(True), len(streams) - streams.count(None)
    behind = state.get(RESERVED_NAME, {}).get("behind")
    return (
        name,
        entry.role,
        f"{entry.term}",
        "yes" if entry.ready else "no",
        f"{up} of {known}" if state else "-",
        f"{entry.pending:,}",
        f"{behind:,.1f}" if isinstance(behind, int | float) else "-",
    )
