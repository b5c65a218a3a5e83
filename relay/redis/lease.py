"""The lease and the registry in Redis, over connections of their own.

redis-py's Lock holds the lease, with a token of our own, so that an acquisition whose answer was lost is recognised.
Every call waits for Redis at most 2 * TIMEOUT (a connection and an answer); the thread "Leader" makes them all.
"""

import re
from collections.abc import Callable, Iterable
from time import monotonic

import redis
from redis.exceptions import LockError, LockNotOwnedError
from redis.lock import Lock

from relay.log import shorten
from relay.redis.registry import Entry
from relay.redis.role import Client

# Seconds that the lease lasts in Redis, and less of it that the holder counts on.
TTL, MARGIN = 2.0, 0.25
# Seconds that Redis may take to accept a connection, or to answer. An attempt to renew takes at most ATTEMPT.
TIMEOUT = 0.35
ATTEMPT = 2 * TIMEOUT

# What the lease holds: the instance, and the id of its connection when it took the lease.
TOKEN = r"[A-Za-z0-9._-]+/\d+"
# Writes an entry of the registry, and publishes an event if there is one, only while the lease is held with this token.
# So whoever reads the registry after acquiring the lease knows every connection that may have published under it.
WRITE_AS_HOLDER = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[2], ARGV[2], ARGV[3])
if ARGV[4] then redis.call('publish', ARGV[4], ARGV[5]) end
return 1
"""


class Lease:
    """The lease `key` for the instance `me`, and the registry beside it.

    connect: makes a connection to Redis, with redis-py's options as keywords. valid_until: monotonic time up to which
    the lease is surely held; it counts from before the call that was answered.

    All methods but is_valid raise OSError or redis.RedisError; after one of them close() begins anew.
    """

    def __init__(self, connect: Callable[..., redis.Connection], key: str, me: str) -> None:
        self.key, self.registry = key, f"{key}_instances"
        self.valid_until = 0.0
        self._me = me
        pool = redis.ConnectionPool(
            connection_class=connect,  # a function that makes one will do
            protocol=2,  # as it makes them: replies are decoded by this
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
        )
        self._client = redis.Redis(connection_pool=pool)
        self._lock = Lock(self._client, key, timeout=TTL, blocking=False, thread_local=False)
        self._write_as_holder = self._client.register_script(WRITE_AS_HOLDER)
        self._token = ""
        self._is_in_doubt = False  # an acquisition was not answered

    @property
    def is_valid(self) -> bool:
        """Whether the lease is surely held. Any thread."""
        return monotonic() < self.valid_until

    def acquire(self, client: Client) -> bool:
        """Takes the lease if it is free. client: the connection that will publish."""
        now = monotonic()
        if self._is_in_doubt:
            self._lock.local.token = self._token.encode()
            if self._lock.owned():
                return self.renew()
        self._token = f"{self._me}/{client[0]}"
        self._is_in_doubt = True
        taken = bool(self._lock.acquire(token=self._token))
        self._is_in_doubt = False
        if taken:
            self.valid_until = now + TTL - MARGIN
        return taken

    def renew(self) -> bool:
        """Makes the lease last anew. Returns False if it is not held any more."""
        now = monotonic()
        try:
            self._lock.reacquire()
        except LockNotOwnedError:
            self.valid_until = 0.0
            return False
        self.valid_until = now + TTL - MARGIN
        return True

    def release(self) -> None:
        """Gives the lease away. Without an answer of Redis it expires by itself."""
        self.valid_until = 0.0
        self._is_in_doubt = False
        try:
            self._lock.release()
        except LockError:
            pass  # it has expired, or was never held

    def holder(self) -> str | None:
        """The instance that holds the lease, None = none does."""
        value, _ = self._value()
        return value.rpartition("/")[0] if re.fullmatch(TOKEN, value) else None

    def flaw(self) -> str | None:
        """What is wrong with the key of the lease: it holds something that is none, or that will not go by itself."""
        value, left = self._value()
        if not value:
            return None
        if not re.fullmatch(TOKEN, value):
            return shorten(value, 80)
        return f"{value}, without an expiry" if left == -1 else None

    def _value(self) -> tuple[str, int]:
        """The text that the key holds, "" for nothing; and the milliseconds that are left of it, -1 = endless."""
        try:
            value, left = self._client.get(self.key), self._client.pttl(self.key)
        except redis.ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                return "something that is no string", -1
            raise
        if value is None:
            return "", 0
        return (value.decode(errors="backslashreplace") if isinstance(value, bytes) else value) or "an empty text", left

    # The registry.

    def read(self) -> dict[bytes, bytes]:
        """All entries: name of the instance -> JSON."""
        found: dict[bytes, bytes] = self._client.hgetall(self.registry)  # type: ignore[assignment]
        return found

    def write(self, entry: Entry, name: str = "") -> bytes:
        """Writes the entry of this instance, or of `name`. Returns its text."""
        text = entry.encoded()
        self._client.hset(self.registry, name or self._me, text)
        return text.encode()

    def write_as_holder(self, entry: Entry, channel: str = "", event: bytes = b"") -> bytes | None:
        """The same, and publishes an event, unless the lease is held by somebody else: then returns None."""
        text = entry.encoded()
        arguments: list[str | bytes] = [self._token, self._me, text, *((channel, event) if channel else ())]
        held = self._write_as_holder(keys=[self.key, self.registry], args=arguments)
        return text.encode() if held else None

    def remove(self, names: Iterable[str]) -> None:
        """Removes the entries of these instances."""
        self._client.hdel(self.registry, *names)

    def cut(self, clients: Iterable[Client]) -> None:
        """Ends these connections: what they have sent and Redis has not read yet is void."""
        for number, addr in clients:
            self._client.client_kill_filter(_id=str(number), addr=addr)

    def close(self) -> None:
        """Ends the connection; the next call opens another."""
        self._client.close()
        self._client.connection_pool.disconnect()
