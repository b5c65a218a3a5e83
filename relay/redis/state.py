"""The state hash where a Cluster keeps it: on the node that has its slot, which is seldom the one that publishes.

Any node of a Cluster takes PUBLISH, but answers MOVED to a command whose key is elsewhere. The publisher's thread never
waits for that other node: a thread of its own, named State, writes there. Without a Cluster there is no such thread.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from redis.exceptions import MovedError

from relay.log import shorten
from relay.redis.link import REDIS_ERRORS
from relay.redis.queries import StateHash
from relay.redis.resp import Query

log = logging.getLogger(__name__)

NewConnection = Callable[..., redis.Connection]  # host and port may be given

# Nodes that are asked in turn, each named by the one before: two while a slot moves, more where something is wrong.
HOPS = 5
# Seconds that stop() waits for the thread, at most. Nothing is lost if it is abandoned: the hash expires.
STOPS = 1.0


def place(moved: str, host: str = "") -> dict[str, Any]:
    """Host and port at the end of the answer "MOVED 3999 10.0.0.1:7001", as a connection takes them. A node that
    does not know how clients call the other one leaves its host out: it is `host`, that of the node itself.
    """
    named, _, port = moved.split()[-1].rpartition(":")
    host = named or host
    return {"host": host, "port": int(port)} if host else {}


def ask(new_connection: NewConnection, commands: Sequence[Query], where: Mapping[str, Any]) -> list[Any]:
    """The replies to commands for one key, from the node that has the key. Connections are opened only for this.

    where: host and port of the first node that is asked; empty = where the settings lead. Waits for each node as long
    as the connections do. Raises OSError, UnicodeError, redis.RedisError.
    """
    for _ in range(HOPS):
        connection = new_connection(**where)
        try:
            connection.connect()
            connection.send_packed_command([b"".join(commands)])  # at once: nobody sees the hash between DEL and HSET
            return [connection.read_response() for _ in commands]
        except MovedError as moved:
            where = place(str(moved), getattr(connection, "host", ""))
        finally:
            connection.disconnect()
    raise redis.ConnectionError(f"MOVED from node to node, {HOPS} times")


class StateWriter:
    """Hands the queries of a StateHash to the publisher's connection, or, on a Cluster, to the thread State."""

    def __init__(self, state_hash: StateHash, new_connection: NewConnection) -> None:
        self.hash, self._new_connection = state_hash, new_connection
        self._thread: threading.Thread | None = None
        # The node that has the slot; None = the one that publishes, as far as is known. Set by the publisher's thread,
        # reset by the thread State: if both do so at once, the publisher's connection answers MOVED again.
        self._where: dict[str, Any] | None = None
        # What the thread State is to write. Replaced as a whole before the event is set, read after it is cleared.
        self._queries: list[Query] = []
        self._due, self._stop = threading.Event(), threading.Event()
        self._is_failing = False  # whether that is in the log; the thread State, before it there is one the publisher's

    # The publisher's thread.

    def queries(self) -> list[Query]:
        """What the publisher's connection is to send now."""
        if moved := self.hash.take_moved():
            self._where = place(moved)
            self.hash.write_again()
        where = self._where
        queries = self.hash.queries(anew=where is not None)  # the one before may not have been written
        if not queries or where is None:
            return queries
        self._queries = queries
        self._due.set()
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="State", daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError as error:  # there is no thread to be had: tried again with the next state
                self._failed(error)
        return []

    def log_changes(self) -> None:
        """Logs why the publisher's connection rejects the hash, and that it takes it again."""
        while (reason := self.hash.take_change()) is not None:
            if reason:
                fields = {"key": self.hash.key, "reason": shorten(reason)}
                log.warning("Redis rejects the state hash %(key)s: %(reason)s", fields)
            else:
                log.info("Redis takes the state hash %(key)s again", {"key": self.hash.key})

    def stop(self) -> None:
        """Ends the thread State, if there is one. After the publisher's thread."""
        self._stop.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(STOPS)

    # The thread State.

    def _run(self) -> None:
        done: list[Query] | None = None
        while not (self._stop.is_set() and done is self._queries):  # the last deletes the hash
            self._due.wait()
            self._due.clear()
            if done is self._queries:
                continue
            done = self._queries
            try:
                ask(self._new_connection, done, self._where or {})
            except REDIS_ERRORS as error:
                self._where = None
                self._failed(error)
            except Exception as error:
                self._where = None
                if not self._is_failing:
                    log.exception("Internal error; the state hash is not written")
                self._failed(error)
            else:
                if self._is_failing:
                    self._is_failing = False
                    log.info("The Cluster takes the state hash %(key)s again", {"key": self.hash.key})

    def _failed(self, error: Exception) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.warning(
                "The Cluster does not take the state hash %(key)s: %(reason)s",
                {"key": self.hash.key, "reason": shorten(error)},
            )
