"""Connections to Redis: every one is made here, by redis-py, to where its endpoint says."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from relay.redis.address import Address, named
from relay.redis.endpoint import Endpoint, Hosts, Sentinels
from relay.redis.link import Timeouts

NO_HANDSHAKE = "no answer to the TLS handshake within {:.2g} s (if this port has no TLS: REDIS_SSL=False)"
CLOSED = "the connection was closed (if this port wants TLS: REDIS_SSL=True)"
# How redis-py tells that.
CLOSED_BY_SERVER = ("Connection closed by server", "Error while reading from ")


class _Dialled:
    """A connection of redis-py's that asks its endpoint for the address whenever it connects.

    _connect() is an internal of redis-py's, which tests/test_contracts.py checks: what makes it connect ends there.
    """

    endpoint: Endpoint | None = None

    def connect_check_health(self, *arguments: Any, **options: Any) -> None:
        """As redis-py's, which ends here whatever makes it connect. What Redis answers to SELECT must not be taken for
        an answer to the command that follows.
        """
        try:
            super().connect_check_health(*arguments, **options)  # type: ignore[misc]
        except redis.ResponseError as error:
            raise redis.ConnectionError(*error.args) from error

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
    def _connect(self) -> Any:
        try:
            return super()._connect()
        except TimeoutError as error:
            # A Redis without TLS takes the handshake for the beginning of a command, and waits for the rest of it.
            if "handshake" in str(error):
                raise redis.TimeoutError(NO_HANDSHAKE.format(self.socket_timeout)) from None
            raise


class _Unix(_Dialled, redis.UnixDomainSocketConnection):
    """host: the path of the socket, as in Hosts."""

    port = 0

    @property
    def host(self) -> str:
        return str(self.path)

    @host.setter
    def host(self, path: str) -> None:
        self.path = path

    def _host_error(self) -> str:
        return named((self.path, 0))


def has_moved(connection: redis.Connection) -> bool:
    """Whether the publisher is somewhere else than this connection: a server that was demoted does not say so to
    whoever subscribes or publishes. Any thread.
    """
    endpoint = getattr(connection, "endpoint", None)
    return endpoint is not None and endpoint.place not in (None, (connection.host, connection.port))


def told_of_tls(connection: redis.Connection, error: Exception) -> Exception:
    """What is told of an error where Redis has never answered: a port for TLS closes a connection without it."""
    is_closed = isinstance(error, ConnectionResetError | BrokenPipeError) or str(error).startswith(CLOSED_BY_SERVER)
    return ConnectionResetError(CLOSED) if is_closed and isinstance(connection, _Plain) else error


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
    is_socket = isinstance(endpoint, Hosts) and endpoint.is_socket
    connection_class: type[_Plain | _Tls | _Unix] = _Unix if is_socket else _Tls if tls else _Plain

    def new(**more: Any) -> redis.Connection:
        connection: Any = connection_class(**options | more)
        connection.endpoint = None if "host" in more else endpoint
        return connection  # type: ignore[no-any-return]  # a Unix socket's has all that is used of redis.Connection

    return new


def located(
    hosts: Sequence[Address],
    sentinels: Sequence[Address] = (),
    master: str = "mymaster",
    *,
    tls: bool = False,
    timeouts: Timeouts,
    **options: Any,
) -> Endpoint:
    """The endpoint of these hosts, or of these Sentinels if there are any. options: redis-py's, for connections to
    Sentinel.
    """
    if not sentinels:
        return Hosts(hosts)
    return Sentinels(sentinels, master, connections(None, timeouts, tls, **options))
