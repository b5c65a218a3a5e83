"""--check, where collectors share a lease: tries all that the lease needs of Redis, without disturbing who holds it."""

from collections.abc import Callable, Iterator, Sequence

import redis
from redis.exceptions import LockError

from relay.channels import names_any_symbol, pattern_of_symbols
from relay.redis.cluster import NO_LEASE
from relay.redis.lease import TIMEOUT, Lease
from relay.redis.publisher import Publisher
from relay.redis.registry import STANDBY, Entry
from relay.redis.watch import Watch

# The id of a connection that Redis does not have: it gives them from 1 on.
NO_CLIENT = (1 << 62, "0.0.0.0:0")


def lease_problems(publisher: Publisher, key: str, name: str, channels: Sequence[str]) -> Iterator[str]:
    """What Redis denies of all that a collector does with its lease, a sentence each. Everything is done with a key
    beside `key`, which is removed again. Raises OSError, redis.RedisError if Redis cannot be reached.

    name: of the instance. channels: those of the data; one may stand for all symbols.
    """
    try:
        ask(publisher, "CLUSTER", "INFO")
    except redis.ResponseError:
        pass  # it is none, or the right to ask is missing
    else:
        yield NO_LEASE
        return
    lease = Lease(publisher.new_connection, f"{key}_check", name)
    watch = Watch(publisher.new_connection, TIMEOUT)
    named = [channel for channel in channels if not names_any_symbol(channel)]
    patterns = [pattern_of_symbols(channel) for channel in channels if names_any_symbol(channel)]
    entry = Entry(*NO_CLIENT, STANDBY, 0, False, 0, "", 0)
    tries: dict[str, Callable[[], object]] = {
        "SET NX PX": lambda: lease.acquire(NO_CLIENT),
        "GET, PTTL": lease.flaw,
        "EVALSHA, SCRIPT LOAD, PEXPIRE": lease.renew,
        "EVALSHA, HSET": lambda: lease.write_as_holder(entry),
        "HSET": lambda: lease.write(entry),
        "HGETALL": lease.read,
        "CLIENT INFO": lambda: ask(publisher, "CLIENT", "INFO"),
        "CLIENT KILL": lambda: lease.cut([NO_CLIENT]),
        "SUBSCRIBE": lambda: watch.open(named),
        **({"PSUBSCRIBE": lambda: watch.open(named, patterns)} if patterns else {}),
        "EVALSHA, DEL": lease.release,
        "HDEL": lambda: lease.remove([name]),
    }
    try:
        for words, call in tries.items():
            try:
                call()
            except LockError:
                pass  # it could not be taken before, of which there is a sentence
            except redis.ResponseError as error:
                yield f"{words}: {error}"
    finally:
        watch.close()
        lease.close()


def ask(publisher: Publisher, *command: str) -> object:
    """The reply to a command. Raises OSError, redis.RedisError."""
    connection = publisher.new_connection()
    try:
        connection.send_command(*command)
        return connection.read_response()
    finally:
        connection.disconnect()
