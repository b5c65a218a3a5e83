"""Where Redis is: one of several hosts, or the master that Sentinel names. Every connection to Redis is made here.

Nothing is cached where Sentinel is asked: it is asked before each attempt, also when redis-py connects anew by itself.
Where there are several hosts the publisher's thread goes from one to the next until one is good; all other connections
go where it is, so the lease and the requests are where the messages are.
"""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from relay.log import shorten
from relay.redis.link import REDIS_ERRORS, Timeouts
from relay.redis.sentinel import EXPECTED, Address, MasterWatch, master_address


def named(address: Address) -> str:
    """host:port, with an IPv6 address in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Endpoint(Protocol):
    """Where the next connection goes. Any thread, if nothing else is said.

    name: what people call it. several: whether there is more than one Redis, so that one may take over from another.
    place: where the publisher is, None = nowhere; written by its thread.
    asked_at: monotonic time up to which elsewhere() knows what there is to be known.
    """

    name: str
    several: bool
    place: Address | None

    @property
    def asked_at(self) -> float: ...

    def addresses(self, seconds: float) -> Iterable[Address]:
        """The addresses to try, in this order; may take so many seconds. Raises redis.ConnectionError."""
        ...

    def lead(self, changed: Callable[[], None]) -> None:
        """From now on the publisher's thread decides, with move_on(). changed: called on any thread when Redis may be
        somewhere else. The publisher's thread.
        """
        ...

    def move_on(self) -> None:
        """The present one is not good. The publisher's thread."""
        ...

    def elsewhere(self, address: Address, since: float) -> Address | None:
        """Where the master is, if it has gone from `address` after `since` (monotonic)."""
        ...

    def end(self, deadline: float) -> None:
        """Ends what lead() has started, until `deadline` (monotonic)."""
        ...


class Hosts:
    """An Endpoint of fixed addresses."""

    asked_at = math.inf

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.name = ", ".join(map(named, addresses))
        self.several = len(addresses) > 1
        self.place: Address | None = None
        self._addresses = tuple(addresses)
        self._at = 0  # written by the publisher's thread
        self._is_led = False

    def addresses(self, _seconds: float) -> Iterable[Address]:
        at = self._at
        # Without the publisher's thread, as in --status, each connection looks for itself.
        return self._addresses[at : at + 1] if self._is_led else self._addresses[at:] + self._addresses[:at]

    def lead(self, _changed: Callable[[], None]) -> None:
        self._is_led = True

    def settle(self, connect: Callable[..., redis.Connection]) -> None:
        """Stays with the first that is good, as the publisher's thread does, where there is no such thread. Each that
        is not may take as long as a connection.
        """
        for at, (host, port) in enumerate(self._addresses):
            if _is_master(connect(host=host, port=port)):
                self._at, self._is_led = at, True
                return

    def move_on(self) -> None:
        self._at = (self._at + 1) % len(self._addresses)

    def elsewhere(self, _address: Address, _since: float) -> Address | None:
        return None

    def end(self, _deadline: float) -> None:
        pass


def _is_master(connection: redis.Connection) -> bool:
    """Whether there is one, or what does not say."""
    connection.socket_timeout = connection.socket_connect_timeout
    try:
        connection.send_command("ROLE")
        return bool(connection.read_response()[0] == b"master")
    except REDIS_ERRORS as error:
        return isinstance(error, redis.exceptions.NoPermissionError)
    finally:
        connection.disconnect()


class Sentinels:
    """An Endpoint that asks Sentinel. master: the name that Sentinel has for it. connect: makes a connection to one."""

    several = True

    def __init__(self, addresses: Sequence[Address], master: str, connect: Callable[..., redis.Connection]) -> None:
        self.name = f"{master} of Sentinel {', '.join(map(named, addresses))}"
        self.place: Address | None = None
        self.master = master
        self._connect = connect
        self._lock = threading.Lock()  # guards the order
        self._order = list(addresses)  # the one that answered last comes first
        self._watch: MasterWatch | None = None

    @property
    def asked_at(self) -> float:
        return -math.inf if self._watch is None else self._watch.asked_at

    def addresses(self, seconds: float) -> Iterable[Address]:
        """Asks one Sentinel after the other. One that is dead or hangs costs a third of the seconds, once: it is the
        last to be asked then.
        """
        step, until = seconds / 3, monotonic() + seconds * 2 / 3
        reasons = []
        is_denied = True
        with self._lock:
            order = list(self._order)
        for sentinel in order:
            try:
                answer = self.ask(sentinel, step)
                return [answer if self._watch is None else self._watch.newer(sentinel, answer)]
            except EXPECTED as error:
                reasons.append(f"{named(sentinel)}: {shorten(error)}")
                is_denied &= _is_denied(error)
            with self._lock:
                self._order.remove(sentinel)
                self._order.append(sentinel)
            if monotonic() >= until:
                break
        sentence = f"no Sentinel tells where {self.master} is: {'; '.join(sorted(reasons))}"
        raise (redis.AuthenticationError if is_denied else redis.ConnectionError)(sentence)

    def ask(self, sentinel: Address, seconds: float) -> Address:
        """What one Sentinel says. Waits `seconds` at most for each answer. Raises what is in EXPECTED."""
        host, port = sentinel
        connection = self._connect(host=host, port=port, socket_timeout=seconds, socket_connect_timeout=seconds)
        try:
            return master_address(connection, self.master)
        finally:
            connection.disconnect()

    def lead(self, changed: Callable[[], None]) -> None:
        self._watch = MasterWatch(self._order, self.master, self._connect, changed)
        self._watch.start()

    def move_on(self) -> None:
        pass  # Sentinel is asked anyway

    def elsewhere(self, address: Address, since: float) -> Address | None:
        return None if self._watch is None else self._watch.elsewhere(address, since)

    def end(self, deadline: float) -> None:
        if self._watch is not None:
            self._watch.end(deadline)


def _is_denied(error: Exception) -> bool:
    return isinstance(error, redis.AuthenticationError) or str(error).startswith(("NOAUTH", "Authentication required"))


# Connections.


class _Dialled:
    """A connection of redis-py's that asks its endpoint for the address whenever it connects.

    _connect() is an internal of redis-py's, which tests/test_contracts.py checks: what makes it connect ends there.
    """

    endpoint: Endpoint | None = None

    def _connect(self) -> Any:
        connection: Any = self
        connect = super()._connect  # type: ignore[misc]
        if self.endpoint is None:
            return connect()
        seconds, began = connection.socket_connect_timeout, monotonic()
        last: Exception = OSError("there is no address")
        try:
            for connection.host, connection.port in self.endpoint.addresses(seconds):
                connection.socket_connect_timeout = max(seconds / 3, seconds - (monotonic() - began))
                try:
                    return connect()
                except OSError as error:
                    last = error
        finally:
            connection.socket_connect_timeout = seconds
        raise last


class _Plain(_Dialled, redis.Connection):
    pass


class _Tls(_Dialled, redis.SSLConnection):
    pass


def has_moved(connection: redis.Connection) -> bool:
    """Whether the publisher is somewhere else than this connection: a server that was demoted does not say so to
    whoever subscribes or publishes. Any thread.
    """
    endpoint = getattr(connection, "endpoint", None)
    return endpoint is not None and endpoint.place not in (None, (connection.host, connection.port))


def settle(connect: Callable[..., redis.Connection]) -> None:
    """For a program without a publisher's thread, before all else: finds out which of several hosts is good."""
    endpoint = getattr(connect(), "endpoint", None)
    if isinstance(endpoint, Hosts) and endpoint.several:
        endpoint.settle(connect)


def connections(
    endpoint: Endpoint | None, timeouts: Timeouts, tls: bool, **options: Any
) -> Callable[..., redis.Connection]:
    """What makes new connections, with these options of redis-py's; what it gets itself goes before them.

    endpoint: where they go; None: to the `host` and `port` of the options.
    """
    # Not redis-py's retries (they resend whole pipelines, and sleep where no stop reaches them), not its greeting
    # (four round trips, and rights in the ACL that nothing else here needs).
    options |= {"retry": Retry(NoBackoff(), 0), "protocol": 2, "driver_info": None}
    options |= {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}
    options |= {"socket_timeout": timeouts.reply, "socket_connect_timeout": timeouts.connect}
    connection_class = _Tls if tls else _Plain

    def new(**more: Any) -> redis.Connection:
        connection = connection_class(**options | more)
        connection.endpoint = None if "host" in more else endpoint
        return connection

    return new


def located(
    hosts: Sequence[Address],
    sentinels: Sequence[Address] = (),
    master: str = "mymaster",
    *,
    tls: bool = False,
    timeouts: Timeouts,
    **login: str | None,
) -> Endpoint:
    """The endpoint of these hosts, or of these Sentinels if there are any. login: username and password of those."""
    if not sentinels:
        return Hosts(hosts)
    return Sentinels(sentinels, master, connections(None, timeouts, tls, **login))
