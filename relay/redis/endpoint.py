"""Where Redis is: one of several hosts, or the master that Sentinel names.

Nothing is cached where Sentinel is asked: it is asked before each attempt, also when redis-py connects anew by itself.
Where there are several hosts the publisher's thread goes from one to the next until one is good; all other connections
go where it is, so the lease and the requests are where the messages are.
"""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Protocol

import redis

from relay.log import shorten
from relay.redis.address import Address, named
from relay.redis.link import REDIS_ERRORS
from relay.redis.login import is_denied
from relay.redis.sentinel import EXPECTED, MasterWatch, master_address


class Endpoint(Protocol):
    """Where the next connection goes. Any thread, if nothing else is said.

    name: what people call it. several: whether there is more than one Redis, so that one may take over from another.
    choices: how many addresses move_on() leads through.
    place: where the publisher is, None = nowhere; written by its thread.
    asked_at: monotonic time up to which elsewhere() knows what there is to be known.
    """

    name: str
    several: bool
    choices: int
    place: Address | None

    @property
    def asked_at(self) -> float: ...

    def addresses(self, seconds: float) -> Iterable[Address]:
        """The addresses to try, in this order; may take so many seconds. Raises redis.ConnectionError."""
        ...

    def lead(self, changed: Callable[[], None]) -> None:
        """From now on the publisher's thread decides, with move_on(). changed: called on any thread when Redis may be
        somewhere else. To be called before each attempt. Raises OSError where there is no thread to be had that this
        needs. The publisher's thread.
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
    """An Endpoint of fixed addresses, or of one Unix socket.

    is_socket: whether it is the latter.
    """

    asked_at = math.inf

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.name = ", ".join(map(named, addresses))
        self.choices = len(addresses)
        self.several = self.choices > 1
        self.is_socket = not addresses[0][1]
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

    several, choices = True, 1

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
        all_deny = True
        with self._lock:
            order = list(self._order)
        for sentinel in order:
            try:
                answer = self.ask(sentinel, step)
                return [answer if self._watch is None else self._watch.newer(sentinel, answer)]
            except EXPECTED as error:
                reasons.append(f"{named(sentinel)}: {shorten(error)}")
                all_deny &= is_denied(error)
            with self._lock:
                self._order.remove(sentinel)
                self._order.append(sentinel)
            if monotonic() >= until:
                break
        sentence = f"no Sentinel tells where {self.master} is: {'; '.join(sorted(reasons))}"
        raise (redis.AuthenticationError if all_deny else redis.ConnectionError)(sentence)

    def ask(self, sentinel: Address, seconds: float) -> Address:
        """What one Sentinel says. Waits `seconds` at most for each answer. Raises what is in EXPECTED."""
        host, port = sentinel
        connection = self._connect(host=host, port=port, socket_timeout=seconds, socket_connect_timeout=seconds)
        try:
            return master_address(connection, self.master)
        finally:
            connection.disconnect()

    def lead(self, changed: Callable[[], None]) -> None:
        if self._watch is not None:
            return
        watch = MasterWatch(self._order, self.master, self._connect, changed)
        try:
            watch.start()
        except RuntimeError as error:
            raise OSError(f"no thread to ask Sentinel with: {error}") from error
        self._watch = watch

    def move_on(self) -> None:
        pass  # Sentinel is asked anyway

    def elsewhere(self, address: Address, since: float) -> Address | None:
        return None if self._watch is None else self._watch.elsewhere(address, since)

    def end(self, deadline: float) -> None:
        if self._watch is not None:
            self._watch.end(deadline)
