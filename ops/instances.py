"""The running collectors, as their state hashes in Redis have them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ops.reader import Reader, Unreadable
from relay.events import RESERVED_NAME, STATE_EXPIRY
from relay.redis.resp import ReplyError

# States that a collector has not written by now, after which it counts as dead, or cut off from Redis. Each says how
# many seconds apart they are; those of versions before 2.1 do not.
MISSED, INTERVAL_BEFORE = 3, 5.0

Fields = Mapping[str, Any]
State = dict[str, Fields]  # the state hash: the fields of each stream, by its name


class Instance(NamedTuple):
    """name: "" where collectors share no lease. age: seconds since it wrote its state, None = there is none. collector:
    what that says of it as a whole.
    """

    name: str
    age: float | None
    collector: Fields
    streams: State

    @property
    def alive(self) -> bool:
        """Whether it writes its state."""
        interval = self.collector.get("interval")
        seconds = interval if isinstance(interval, int | float) else INTERVAL_BEFORE
        return self.age is not None and self.age <= MISSED * seconds

    @property
    def leads(self) -> bool:
        """Whether it publishes, by its own word."""
        return self.alive and self.collector.get("role") != "standby"

    def described(self) -> dict[str, object]:
        """For --status --json."""
        return {
            "instance": self.name,
            "role": self.collector.get("role"),
            "term": self.collector.get("term"),
            "alive": self.alive,
            "age": self.age,
            "collector": self.collector,
            "streams": self.streams,
        }


def read_instance(reader: Reader, key: str, name: str = "") -> Instance:
    """The instance whose state hash is `key`. Raises what Reader does; ValueError for a hash of something else."""
    found, left = reader.ask(("HGETALL", key), ("PTTL", key))
    for reply in (found, left):
        if isinstance(reply, ReplyError):
            raise Unreadable(str(reply))
    if not found:
        return Instance(name, None, {}, {})
    if not isinstance(found, list) or not isinstance(left, int):
        raise Unreadable("it does not answer as Redis does")
    if left < 0:
        raise ValueError("it does not expire")
    state = parse_state(found)
    collector = state.pop(RESERVED_NAME, {})
    age = round(max(0.0, STATE_EXPIRY - left / 1000), 3)
    return Instance(name or str(collector.get("instance", "")), age, collector, state)


def read_instances(reader: Reader, registry: str, states: str) -> list[Instance]:
    """All that share a lease, by name. registry: the key of the hash of their entries. states: with which the keys of
    their states begin. Raises what Reader does.
    """
    [names] = reader.ask(("HKEYS", registry))
    if isinstance(names, ReplyError):
        raise Unreadable(str(names))
    instances = []
    for name in sorted(name.decode(errors="replace") for name in names or ()):
        if name == RESERVED_NAME:  # what a leader leaves behind that has ended
            continue
        try:
            instances.append(read_instance(reader, f"{states}:{name}", name))
        except ValueError:
            instances.append(Instance(name, None, {}, {}))
    return instances


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
