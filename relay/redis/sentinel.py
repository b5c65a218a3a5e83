"""What Sentinel says of the master: asked before a connection is made, and all the time beside it.

A planned failover leaves the old master a master for some ten seconds, by its own word: Sentinel tells it last. Until
then its subscribers stay, while others have moved already. Only Sentinel knows.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from time import monotonic

import redis

from relay.redis.address import Address
from relay.redis.link import REDIS_ERRORS

log = logging.getLogger(__name__)

# Seconds between two rounds of questions; that an answer may take; until a Sentinel that failed is asked again.
EVERY, TIMEOUT, RETRY = 0.5, 0.5, 2.0
# Seconds after a failover in which the others may not have heard of it: they greet each other every 2 s.
LAG = 5.0
# Seconds without an answer of most after which this is logged: all that Redis confirms is retained meanwhile.
SILENT = 10.0
# What a Sentinel and the network do. The last two: it is no Sentinel.
EXPECTED = (*REDIS_ERRORS, ValueError, TypeError)


def master_address(sentinel: redis.Connection, master: str) -> Address:
    """Asks over this connection, which is opened if need be. Raises what is in EXPECTED."""
    sentinel.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", master)
    reply = sentinel.read_response()
    if reply is None:
        raise redis.ConnectionError(f"it knows no master {master}")
    host, port = reply
    if not isinstance(host, bytes) or not isinstance(port, bytes):
        raise ValueError(f"it answers {reply!r}")
    return host.decode(), int(port)


class MasterWatch:
    """Asks all Sentinels where the master is, twice a second, on a thread of its own, named Sentinel.

    connect: makes a connection to a Sentinel, with redis-py's options as keywords. changed: called on that thread when
    one names another master than before.

    asked_at: monotonic time at which the last round began in which most of them answered: fewer may be cut off, with an
    old master, from those that have chosen another one. Any thread. Whoever reads it before elsewhere() knows of all
    that was said in that round.
    """

    def __init__(
        self,
        sentinels: Sequence[Address],
        master: str,
        connect: Callable[..., redis.Connection],
        changed: Callable[[], None],
    ) -> None:
        self.asked_at = -math.inf
        self._master, self._connect, self._changed = master, connect, changed
        self._connections: dict[Address, redis.Connection | None] = dict.fromkeys(sentinels)
        self._retry_at = dict.fromkeys(sentinels, 0.0)  # monotonic
        # By Sentinel: the master that it names, and the monotonic time of the change; 0.0 = it has never named another.
        # Each value is replaced as a whole.
        self._answers: dict[Address, tuple[Address, float]] = {}
        self._heard_at, self._is_silent = monotonic(), False  # the thread Sentinel; whether that is in the log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="Sentinel", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def end(self, deadline: float) -> None:
        """Ends the thread, and waits for it until `deadline` (monotonic)."""
        self._stop.set()
        self._thread.join(max(0.0, deadline - monotonic()))

    def elsewhere(self, address: Address, since: float) -> Address | None:
        """Another master than the one at `address`, if a Sentinel has come to name it after `since` (monotonic). Any
        thread. One that has named another all the time may lag behind, or write the address in another way.
        """
        for named, changed_at in list(self._answers.values()):
            if named != address and changed_at > since:
                return named
        return None

    def newer(self, sentinel: Address, answer: Address) -> Address:
        """What another Sentinel has come to name in the last seconds, if this one, which has just given `answer`, has
        not changed its mind since; else the answer. Any thread.
        """
        named, changed_at = self._answers.get(sentinel, (answer, 0.0))
        answers, connections = self._answers.copy(), self._connections
        others = [other for each, other in answers.items() if connections[each] is not None]
        latest, at = max(others, key=lambda other: other[1], default=(answer, 0.0))
        return latest if named == answer and at > max(changed_at, monotonic() - LAG) else answer

    def _run(self) -> None:
        while True:
            self._ask_all()
            if self._stop.wait(EVERY):
                break
        for sentinel in self._connections:
            self._close(sentinel)

    def _ask_all(self) -> None:
        began, answered = monotonic(), 0
        for sentinel in self._connections:
            if self._stop.is_set() or monotonic() < self._retry_at[sentinel]:
                continue
            try:
                answer = self._ask(sentinel)
            except EXPECTED:  # who is needed for a connection says what is wrong with the Sentinels
                self._close(sentinel)
                self._retry_at[sentinel] = monotonic() + RETRY
                continue
            answered += 1
            before, _ = self._answers.setdefault(sentinel, (answer, 0.0))
            if before != answer:
                self._answers[sentinel] = answer, monotonic()
                self._changed()
        if answered * 2 > len(self._connections):
            self.asked_at = began
        self._log_silence(answered)

    def _log_silence(self, answered: int) -> None:
        seconds = monotonic() - self._heard_at
        if answered * 2 > len(self._connections):
            if self._is_silent:
                log.info("Sentinel answers again, after %(seconds).0f s", {"seconds": seconds})
            self._heard_at, self._is_silent = monotonic(), False
        elif seconds >= SILENT and not self._is_silent:
            self._is_silent = True
            fields = {"seconds": seconds, "master": self._master}
            if answered:
                log.warning(
                    "Most Sentinels have not said for %(seconds).0f s where %(master)s is; keeping what Redis confirms",
                    fields,
                )
            else:
                log.warning(
                    "No Sentinel has said for %(seconds).0f s where %(master)s is; keeping what Redis confirms", fields
                )

    def _ask(self, sentinel: Address) -> Address:
        connection = self._connections[sentinel]
        if connection is None:
            host, port = sentinel
            connection = self._connect(host=host, port=port, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
            self._connections[sentinel] = connection
        return master_address(connection, self._master)

    def _close(self, sentinel: Address) -> None:
        connection, self._connections[sentinel] = self._connections[sentinel], None
        if connection is not None:
            connection.disconnect()
