"""python main.py --check: tests Redis, Bybit and every stream with these settings. Publishes nothing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import redis
from redis.exceptions import MovedError

from conf.streams import StreamSpec
from ops.durable import stream_problems
from ops.rights import lease_problems
from ops.table import FAILED, OK, UNKNOWN, Row, format_table
from ops.trials import Trials, bybit_rows
from relay.bybit.exchange import Exchange
from relay.channels import names_any_symbol
from relay.log import shorten
from relay.redis.dial import told_of_tls
from relay.redis.link import REDIS_ERRORS
from relay.redis.publisher import Publisher
from relay.redis.reports import reason_of

# Who is subscribed.
NUMBERS = (("PUBSUB", "NUMSUB"), ("PUBSUB", "NUMPAT"))


def run_check(
    specs: Sequence[StreamSpec],
    exchange: Exchange,
    publisher: Publisher,
    channels: Sequence[str],
    requests: tuple[str, str],
    warnings: Sequence[str] = (),
    lease: tuple[str, str] | None = None,
    listing: Sequence[Row] = (),
) -> int:
    """Prints a table of what was tested. Returns the exit code: 0, or 1 if something failed.

    specs: of all connections, "Trades" and "Trades#2" where a stream needs two; a stream is one row.
    exchange: loses its sink, and is stopped in the end. publisher: not started; its Redis is asked over a connection
    of its own. channels: all must be publishable. requests: the channel of consumers' requests, and how those of the
    replies begin. warnings: of the settings. lease: its key and the name of the instance, where collectors share one.
    listing: what was found of Bybit's list of instruments. The main thread calls it.
    """
    trials = Trials([spec for spec in specs if spec.kind], exchange)
    try:
        rows: list[Row] = [("Settings", UNKNOWN, warning) for warning in warnings]
        rows += _redis_rows(publisher, channels, requests)
        if lease:
            rows += _lease_rows(publisher, *lease, channels)
        rows += listing
        trials.wait()
        rows += bybit_rows(exchange.address, trials.outcomes())
    finally:
        trials.stop()
    rows += [(f"  {spec.name}", UNKNOWN, "your own function: not tested") for spec in specs if not spec.kind]
    print(*format_table(rows), sep="\n")
    return int(any(result == FAILED for _, result, _ in rows))


# Redis.


def _redis_rows(publisher: Publisher, channels: Sequence[str], requests: tuple[str, str]) -> Iterator[Row]:
    connection = publisher.new_connection()
    commands: list[tuple[str, ...]] = [("PUBLISH", channel, "") for channel in channels]
    commands += [("SUBSCRIBE", requests[0]), ("PUBLISH", f"{requests[1]}check", "")]
    state = [("HSET", publisher.state_key, "", ""), ("DEL", publisher.state_key), ("EXPIRE", publisher.state_key, "1")]
    commands += [*state, *NUMBERS]

    def ask(*command: str) -> Any:
        """The reply to a command, or the error that Redis replies with."""
        connection.send_command(*command)
        try:
            return connection.read_response()
        except redis.ResponseError as error:
            return error

    role: Any = None
    try:
        connection.connect()
        role = ask("ROLE")
        info = ask("INFO", "server")
        limit = ask("CONFIG", "GET", "client-output-buffer-limit")
        denied = _denied(ask, commands)
        problems = list(stream_problems(ask, channels)) if publisher.stream_maxlen else []
    except REDIS_ERRORS as error:
        told = error if role is not None else told_of_tls(connection, error)
        yield "Redis", FAILED, f"{publisher.address}: {reason_of(told, publisher.address)}"
        return
    finally:
        connection.disconnect()
    yield "Redis", OK, f"{publisher.address}, {_version(info)}"
    if isinstance(role, redis.ResponseError):
        yield "  role", UNKNOWN, shorten(role)
    elif role[0] == b"master":
        yield "  role", OK, "master"
    else:
        yield "  role", FAILED, f"{shorten(role[0].decode(errors='replace'))}: publish to its master"
    yield from _permission_rows(denied, channels, requests)
    if found := _denied_of(state, denied):
        yield "  state for --status", FAILED, f"denied: {found}"
    if found := _denied_of(NUMBERS, denied):
        yield "  subscribers", FAILED, f"denied: {found}: after a restart or failover no message waits for them"
    if isinstance(limit, redis.ResponseError):
        yield "  slow subscribers", UNKNOWN, shorten(limit)
    else:
        yield "  slow subscribers", OK, describe_limit(limit[1].decode())
    if publisher.stream_maxlen:
        kept = f"{publisher.stream_maxlen:,} messages of each channel"
        yield "  Redis Streams", FAILED if problems else OK, "; ".join(problems) or kept


def _denied(ask: Callable[..., Any], commands: Iterable[tuple[str, ...]]) -> set[str] | redis.ResponseError:
    """Which of these commands are denied, as text, or why that cannot be told. None is executed."""
    transaction = ask("MULTI")
    if isinstance(transaction, redis.ResponseError):
        return transaction
    # A command without permission is rejected when it is queued; the others are discarded.
    replies = {" ".join(command[:2]): ask(*command) for command in commands}
    ask("DISCARD")
    # Another node of a Cluster may have the key, which says nothing of the rights.
    return {
        command
        for command, reply in replies.items()
        if isinstance(reply, redis.ResponseError) and not isinstance(reply, MovedError)
    }


def _denied_of(commands: Iterable[tuple[str, ...]], denied: set[str] | redis.ResponseError) -> str:
    """Those of the commands that are denied, in words."""
    words = [" ".join(command[:2]) for command in commands]
    return " and ".join(each for each in words if isinstance(denied, set) and each in denied)


def _permission_rows(
    denied: set[str] | redis.ResponseError, channels: Sequence[str], requests: tuple[str, str]
) -> Iterator[Row]:
    if isinstance(denied, redis.ResponseError):
        yield "  permission to publish", UNKNOWN, f"cannot be tested: {shorten(denied)}"
        return
    if missing := [channel for channel in channels if f"PUBLISH {channel}" in denied]:
        yield "  permission to publish", FAILED, f"denied for {', '.join(missing)}"
    else:
        # One that stands for those of all symbols is tried by its own name, which the ACL must match.
        named = sum(not names_any_symbol(channel) for channel in channels)
        more = ", and those of the symbols" if named < len(channels) else ""
        yield "  permission to publish", OK, f"all {named} channels{more}"
    needed = (f"SUBSCRIBE {requests[0]}", f"PUBLISH {requests[1]}check")
    if missing := [command for command in needed if command in denied]:
        yield "  snapshots on request", FAILED, f"denied: {' and '.join(missing)}"
    else:
        yield "  snapshots on request", OK, f"on {requests[0]}"


def _lease_rows(publisher: Publisher, key: str, name: str, channels: Sequence[str]) -> Iterator[Row]:
    try:
        problems = list(lease_problems(publisher, key, name, channels))
    except REDIS_ERRORS:
        return  # the row of Redis says why it cannot be reached
    yield "  leader and standby", FAILED if problems else OK, "; ".join(problems) or f"all that {key} needs is allowed"


def _version(info: Any) -> str:
    lines = [] if isinstance(info, redis.ResponseError) else info.decode(errors="replace").splitlines()
    found = [line.replace("_version:", " ") for line in lines if line.startswith(("redis_version:", "valkey_version:"))]
    return shorten(found[-1]) if found else "version unknown"


def describe_limit(text: str) -> str:
    """client-output-buffer-limit for a reader. text: class, hard limit, soft limit, seconds, for each class."""
    words = text.split()
    at = words.index("pubsub")
    hard, soft, seconds = map(int, words[at + 1 : at + 4])
    if not hard:
        return "never disconnected"
    return f"disconnected {hard / 2**20:g} MiB behind, or {soft / 2**20:g} MiB for {seconds} s"
