"""python main.py --status: the running collectors, for people, for programs, for health checks."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple

from conf import settings
from conf.names import STATE_KEY, STATES
from ops.instances import Instance, read_instance, read_instances
from ops.reader import EXPECTED, Place, Reader, reason_of
from ops.table import format_table
from ops.words import INSTANCE_HEADS, instance_row, stream_lines, stream_problem
from relay.log import shorten

if TYPE_CHECKING:
    import ssl

# Seconds that Redis may take, and then those in which the thread that asks it is to notice.
DEADLINE, NOTICE = 3.0, 0.5
# Seconds since the pulse file was touched after which nothing turns any more: six touches are missing by then. A single
# thread counts as stuck when it is 60 s late, so a call that does not return is noticed within 95 s.
PULSE_AGE = 30.0


class Report(NamedTuple):
    """What is printed: the lines, or the others as one JSON object."""

    code: int
    lines: Sequence[str]
    problems: Sequence[str] = ()
    instances: Sequence[Instance] = ()

    def as_json(self) -> str:
        """Without the exit code."""
        instances = [instance.described() for instance in self.instances]
        return json.dumps({"well": not self.code, "instances": instances, "problems": self.problems})


def run_status(about: str, as_json: bool) -> int:
    """Prints the status. Returns the exit code: 0, all is well; 1, something is not; 2, there is no pulse file.

    about: "all", "live" or "ready".
    """
    if about == "live":
        report = live(settings.PULSE_FILE, time())
    elif about == "ready":
        report = asked(place_of_settings(), lambda reader: ready(reader, STATE_KEY, settings.INSTANCE))
    elif settings.LEADER_KEY:
        report = asked(place_of_settings(), lambda reader: shared(reader, f"{settings.LEADER_KEY}_instances", STATES))
    else:
        report = asked(place_of_settings(), lambda reader: single(reader, STATES))
    print(report.as_json() if as_json else "\n".join(report.lines))
    return report.code


def place_of_settings() -> Place:
    """Where Redis is."""
    return Place(
        hosts=settings.REDIS_HOST,
        sentinels=settings.REDIS_SENTINELS,
        master=settings.REDIS_SENTINEL_MASTER,
        db=settings.REDIS_DB,
        login=settings.login(),
        sentinel_login=settings.sentinel_login(),
        tls=_tls if settings.REDIS_SSL else None,
    )


def _tls() -> "ssl.SSLContext":
    import ssl  # takes as long to import as all the rest here

    context = ssl.create_default_context(cafile=settings.REDIS_SSL_CA or None)
    if settings.REDIS_SSL_CERT:
        context.load_cert_chain(settings.REDIS_SSL_CERT, settings.REDIS_SSL_KEY or None, password="")
    return context


def failed(problem: str, code: int = 1) -> Report:
    """Nothing is known but this."""
    return Report(code, [problem], [problem])


def live(path: str, now: float) -> Report:
    """Whether every thread turns, by the pulse file. Redis is not asked: who buffers is alive. now: of the clock."""
    if not path:
        return failed("--status live needs PULSE_FILE, the file that the collector touches while its threads turn", 2)
    try:
        age = now - os.stat(path).st_mtime
    except OSError as error:
        return failed(f"Not alive: {path}: {reason_of(error)}")
    if abs(age) > PULSE_AGE:  # a clock that was set back makes the file younger than nothing
        return failed(f"Not alive: {path} was touched {age:.0f} s ago; a thread is stuck, or all of the collector")
    return Report(0, [f"Alive: all threads turned {age:.0f} s ago"])


def asked(place: Place, look: Callable[[Reader], Report]) -> Report:
    """What is found in Redis, within DEADLINE."""
    found: list[Report] = []

    def run() -> None:
        try:
            reader = Reader(place, monotonic() + DEADLINE)
            try:
                found.append(look(reader))
            finally:
                reader.close()
        except EXPECTED as error:
            found.append(failed(f"Cannot read the state from Redis at {place.name}: {reason_of(error)}"))
        except (ValueError, TypeError) as error:
            found.append(failed(f"This in Redis at {place.name} is not the state of a collector: {shorten(error)}"))

    # A thread, because nothing interrupts a name server that hangs.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE + NOTICE)
    return found[0] if found else failed(f"Cannot read the state from Redis at {place.name}: no answer in time")


def single(reader: Reader, key: str) -> Report:
    """The collector whose state hash is `key`."""
    instance = read_instance(reader, key)
    if instance.age is None:
        return failed(
            f"No collector is running: there is no {key} in Redis at {reader.place.name} (where it has a LEADER_KEY, a "
            "SHARD or a CHANNEL_PREFIX, set the same here)"
        )
    problems = list(problems_of(instance))
    lines = [*stream_lines(instance.streams, instance.age)]
    if not instance.streams:
        lines = ["The collector has no streams: STREAMS is empty"]
    return Report(int(bool(problems)), [*lines, *general(instance)], problems, [instance])


def ready(reader: Reader, key: str, name: str) -> Report:
    """Whether this instance has subscribed to all its topics and, if it shares a lease, could publish."""
    instance = read_instance(reader, key)
    if instance.age is None:
        where = f"there is no {key} in Redis at {reader.place.name}"
        doubt = f"; is INSTANCE={name} the collector's?" if key.endswith(f":{name}") else ""
        return failed(f"Not ready: {where}{doubt}")
    problems = list(problems_of(instance))
    if instance.collector.get("ready") is False and not instance.leads:
        problems.append(f"{shorten(instance.name)} could not publish at once")
    lines = [f"Not ready: {problem}" for problem in problems] or ["Ready"]
    return Report(int(bool(problems)), lines, problems, [instance])


def shared(reader: Reader, registry: str, states: str) -> Report:
    """All instances that share a lease. All is well if one leads, and nothing is wrong with that one."""
    instances = read_instances(reader, registry, states)
    if not instances:
        return failed(f"No collector is running: there is no {registry} in Redis at {reader.place.name}")
    leaders = [each for each in instances if each.leads]
    lines = [*format_table([INSTANCE_HEADS, *map(instance_row, instances)], numbers_from=2)]
    for each in sorted(filter(lambda one: one.alive, instances), key=lambda one: (not one.leads, one.name)):
        lines += ["", f"{shorten(each.name)}, {shorten(each.collector.get('role'))}:"]
        lines += stream_lines(each.streams, each.age or 0.0) if each.streams else ["no state yet"]
        lines += general(each)
    problems = [problem for each in leaders for problem in problems_of(each)]
    if not leaders:
        problems = ["Nobody leads: nothing is published"]
        lines += ["", *problems]
    return Report(int(bool(problems)), lines, problems, instances)


def general(instance: Instance) -> Iterator[str]:
    """Sentences about what is wrong with a collector as a whole."""
    if not instance.alive:
        yield f"This was the state {instance.age:.0f} s ago: the collector is dead, hangs, or is cut off from Redis"
    elif instance.collector.get("alive") is False:
        yield "A thread of the collector is stuck: its log says which"


def problems_of(instance: Instance) -> Iterator[str]:
    """Sentences about all that is wrong with a collector."""
    yield from general(instance)
    yield from filter(None, (stream_problem(name, fields) for name, fields in sorted(instance.streams.items())))
