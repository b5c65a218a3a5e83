"""Reads from Redis for --status: over plain sockets, as redis-py takes longer to import than all the rest of it to run.

The Redis is found as the collector finds it: several hosts, Sentinel, a Cluster, a socket file, TLS.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.log import shorten
from relay.redis.address import Address, named
from relay.redis.resp import Query, ReplyError, ignore, parse_reply

if TYPE_CHECKING:
    import ssl

Login = tuple[str | None, str | None]  # user name and password
Command = tuple[str, ...]

# Seconds that a host may take which is not the last one to be tried.
STEP = 1.0
# Nodes of a Cluster that are asked in turn, each named by the one before.
HOPS = 5
CHUNK = 65536  # bytes read at once


class Unreadable(Exception):
    """Redis does not answer, or not as it should. The text is for the user, and holds no password."""


class Place(NamedTuple):
    """Where Redis is, and how it is reached. hosts: one with port 0 is the path of a Unix socket. sentinels take their
    place. tls: makes the context, None = without TLS.
    """

    hosts: Sequence[Address] = ()
    sentinels: Sequence[Address] = ()
    master: str = "mymaster"
    db: int = 0
    login: Login = (None, None)
    sentinel_login: Login = (None, None)
    tls: "Callable[[], ssl.SSLContext] | None" = None

    @property
    def name(self) -> str:
        """What people call it."""
        if self.sentinels:
            return f"{self.master} of Sentinel {', '.join(map(named, self.sentinels))}"
        return ", ".join(map(named, self.hosts))


# What Redis and the network do. UnicodeError: the host is no name of a host.
EXPECTED = (OSError, UnicodeError, Unreadable)


class Client:
    """One connection, opened at once. until: monotonic time up to which all that is asked waits for answers.

    Raises what is in EXPECTED; so do its methods.
    """

    def __init__(self, place: Place, address: Address, until: float, login: Login, db: int = 0) -> None:
        self.until, self.address = until, address
        self._unread = b""
        host, port = address
        self._sock = socket.create_connection(address, self._left()) if port else socket.socket(socket.AF_UNIX)
        try:
            self._sock.settimeout(self._left())
            if not port:
                self._sock.connect(host)
            elif place.tls:
                self._sock = place.tls().wrap_socket(self._sock, server_hostname=host)
            self._greet(login, db)
        except BaseException:
            self.close()
            raise

    def _greet(self, login: Login, db: int) -> None:
        user, password = login
        greeting: list[Command] = []
        if user or password:
            greeting.append(("AUTH", user, password or "") if user else ("AUTH", password or ""))
        if db:
            greeting.append(("SELECT", str(db)))
        for reply in self.ask(*greeting):
            if isinstance(reply, ReplyError):
                raise Unreadable(str(reply))

    def close(self) -> None:
        """Ends it."""
        self._sock.close()

    def ask(self, *commands: Command) -> list[Any]:
        """The reply to each command; an error is a ReplyError."""
        if commands:
            self._sock.settimeout(self._left())
            self._sock.sendall(b"".join(Query(ignore, *words) for words in commands))
        return [self._reply() for _ in commands]

    def _reply(self) -> Any:
        while True:
            try:
                reply, end = parse_reply(self._unread, 0)
            except (ValueError, RecursionError):
                raise Unreadable("it does not answer as Redis does") from None
            if end >= 0:
                self._unread = self._unread[end:]
                return reply
            self._sock.settimeout(self._left())
            data = self._sock.recv(CHUNK)
            if not data:
                raise Unreadable("it closed the connection")
            self._unread += data

    def _left(self) -> float:
        left = self.until - monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left


class Reader:
    """The Redis that is the master, or a node of a Cluster. until: monotonic time at which all ends.

    Raises what is in EXPECTED; so does ask().
    """

    def __init__(self, place: Place, until: float) -> None:
        self.place, self._until = place, until
        self._client = self._open_any()

    def ask(self, *commands: Command) -> list[Any]:
        """The replies to commands that are about one key, from the node that has it. Raises what Client does."""
        for _ in range(HOPS):
            replies = self._client.ask(*commands)
            moved = next((text for each in replies if (text := str(each)).startswith("MOVED ")), None)
            if moved is None or not isinstance(replies[0], ReplyError):
                return replies
            host, _, port = moved.split()[-1].rpartition(":")
            own, _ = self._client.address
            self.close()
            self._client = self._open((host or own, int(port)), self._until)
        raise Unreadable(f"MOVED from node to node, {HOPS} times")

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _open(self, address: Address, until: float) -> Client:
        return Client(self.place, address, until, self.place.login, self.place.db)

    def _open_any(self) -> Client:
        place = self.place
        hosts = [self._ask_sentinels()] if place.sentinels else place.hosts
        reasons = []
        for address, until in self._in_turn(hosts):
            try:
                client = self._open(address, until)
                if len(hosts) == 1 or _is_master(client):
                    client.until = self._until
                    return client
                reasons.append(f"{named(address)} is no master")
            except EXPECTED as error:
                if len(hosts) == 1:
                    raise
                reasons.append(f"{named(address)}: {reason_of(error)}")
        raise Unreadable("; ".join(reasons))

    def _ask_sentinels(self) -> Address:
        place, reasons = self.place, []
        for address, until in self._in_turn(place.sentinels):
            try:
                client = Client(place, address, until, place.sentinel_login)
                try:
                    [found] = client.ask(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.master))
                finally:
                    client.close()
                if isinstance(found, list) and found:
                    host, port = found
                    return host.decode(), int(port)
                reason = shorten(found) if found else f"it knows no master {place.master}"
            except (*EXPECTED, ValueError) as error:  # the last: it is no Sentinel
                reason = reason_of(error)
            reasons.append(f"{named(address)}: {reason}")
        raise Unreadable(f"no Sentinel tells where {place.master} is: {'; '.join(reasons)}")

    def _in_turn(self, addresses: Sequence[Address]) -> Iterator[tuple[Address, float]]:
        """Each with the time until which it may take."""
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            now = monotonic()
            yield address, self._until if left == 1 else now + min(STEP, (self._until - now) / left)


def _is_master(client: Client) -> bool:
    """Whether it is one, or may not say. What is none is closed."""
    try:
        [role] = client.ask(("ROLE",))
        if isinstance(role, ReplyError) or role[0] == b"master":
            return True
    except BaseException:
        client.close()
        raise
    client.close()
    return False


def reason_of(error: Exception) -> str:
    """For a sentence."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shorten("no answer in time" if isinstance(error, TimeoutError) else text)
