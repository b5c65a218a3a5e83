"""The thread that reads Redis: messages over one connection, states over another. All open pages share it."""

import json
import logging
import re
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import redis
from redis.exceptions import MovedError, NoPermissionError

from dashboard.model import Model
from relay.channels import pattern_of_symbols
from relay.kinds import KINDS
from relay.log import shorten
from relay.redis.dial import settle
from relay.redis.link import REDIS_ERRORS
from relay.redis.resp import Query, ReplyError, ignore, parse_reply
from relay.redis.state import ask

log = logging.getLogger(__name__)

DENIALS = (redis.AuthenticationError, redis.ResponseError)

NewConnection = Callable[..., redis.Connection]

TIMEOUT, RETRY = 1.0, 0.5  # seconds: for a reply of Redis; between two attempts to connect
POLL, ROUND = 0.5, 0.1  # seconds between two readings of the states; between two rounds of requests for snapshots
SCAN_EVERY, SCAN_COUNT = 2.0, 1000  # seconds between two searches for states; keys looked at in one step of a search
BREATH = 0.02  # seconds between two reads: what has come meanwhile is taken at once, which costs far less
PING_EVERY, SILENCE = 1.0, 3.0  # seconds without a message until a PING; until the connection counts as dead
CHUNK, STOPS = 1 << 20, 3.0  # bytes of a read; seconds that stop() waits


class Reader:
    """Fills `model` from Redis. lock: held by whoever uses the model.

    new_connection: makes connections to Redis. state_key: where a state is expected; others are searched for.
    """

    def __init__(self, model: Model, new_connection: NewConnection, state_key: str) -> None:
        self.model, self.lock = model, threading.Lock()
        self._new_connection = new_connection
        self._first = state_key
        self._keys = {state_key}
        self._cursor, self._scan_at = b"0", 0.0
        self._replies: set[str] = set()  # channels for snapshots that are subscribed to
        self._heard = monotonic()  # when Redis last replied
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="Reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended, or hangs."""
        self._stop.set()
        self._thread.join(STOPS)

    # The thread.

    def _run(self) -> None:
        while not self._stop.is_set():
            reason, is_denied = "the connection was lost", False
            try:
                self._live()
            except REDIS_ERRORS as error:
                reason = shorten(error)
                is_denied = isinstance(error, DENIALS) or isinstance(error.__cause__, DENIALS)
            except Exception as error:
                log.exception("Internal error; connecting anew")
                reason = repr(error)
            with self.lock:
                self.model.away(reason, self._heard, is_denied)
            self._stop.wait(RETRY)

    def _live(self) -> None:
        """One life of the two connections. Raises what ended it."""
        settle(self._new_connection)
        with self._connected() as commands, self._connected() as connection:
            feed = Feed(connection)
            self._cursor, self._scan_at, self._replies = b"0", 0.0, set()
            channels = [f"{self.model.prefix}_{kind.name}" for kind in KINDS]
            feed.send("SUBSCRIBE", f"{self.model.prefix}_status", *channels)
            feed.send("PSUBSCRIBE", *map(pattern_of_symbols, channels))  # where each symbol has its own
            expected = 1 + 2 * len(channels)
            poll_at = round_at = 0.0
            while not self._stop.wait(BREATH):
                for message in feed.take(ROUND):
                    expected -= self._receive(commands, message, is_last=expected == 1)
                now = monotonic()
                if now >= poll_at:
                    poll_at = now + POLL
                    self._read_states(commands)
                if now >= round_at and expected <= 0:
                    round_at = now + ROUND
                    self._ask(feed, now)

    @contextmanager
    def _connected(self) -> Iterator[redis.Connection]:
        connection = self._new_connection()
        connection.socket_timeout = connection.socket_connect_timeout = TIMEOUT
        try:
            connection.connect()
            yield connection
        finally:
            connection.disconnect()

    # Messages.

    def _receive(self, commands: redis.Connection, message: Any, is_last: bool) -> int:
        """Takes what came over the feed. is_last: whether the next confirmation is the last that is waited for. Returns
        1 if it is one.
        """
        match message:
            case [b"message", channel, payload] | [b"pmessage", _, channel, payload]:
                with self.lock:
                    self.model.receive(channel, payload, monotonic())
            case [b"subscribe" | b"psubscribe", channel, _]:
                if (name := channel.decode()) in self._replies:
                    self._request(commands, name)
                    return 0
                if is_last:
                    with self.lock:
                        self.model.subscribed(monotonic())
                return 1
            case ReplyError():
                raise redis.ResponseError(f"{message}")
        return 0

    def _ask(self, feed: "Feed", now: float) -> None:
        """Subscribes to the channels on which snapshots are to come, and no longer to those that are of no use."""
        with self.lock:
            self.model.forget(now)
            keepers = [market.keeper for market in self.model.markets.values()]
            asked = {reply for keeper in keepers for reply in keeper.ask(now)}
            used = {state.reply for keeper in keepers for state in keeper.states.values()}
        if asked:
            self._replies |= asked
            feed.send("SUBSCRIBE", *asked)
        if unused := self._replies - used:
            self._replies -= unused
            feed.send("UNSUBSCRIBE", *unused)

    def _request(self, commands: redis.Connection, reply: str) -> None:
        """Asks for the snapshots that are to come over this channel."""
        with self.lock:
            keepers = [market.keeper for market in self.model.markets.values()]
            wanted = [(keeper, request) for keeper in keepers for request in keeper.requests(reply)]
        for keeper, request in wanted:
            receivers = self._command(commands, ("PUBLISH", f"{self.model.prefix}_request", json.dumps(request)))[0]
            if receivers == 0:
                with self.lock:
                    keeper.unheard(request["topics"], monotonic())

    # States.

    def _read_states(self, commands: redis.Connection) -> None:
        self._search(commands)
        keys = sorted(self._keys)
        found = [self._read_state(commands, key) for key in keys]
        now = monotonic()
        with self.lock:
            for key, (fields, ttl) in zip(keys, found, strict=True):
                self.model.health.see(key, dict(zip(fields[::2], fields[1::2], strict=True)), ttl / 1000, now)
            self._keys &= {self._first, *self.model.health.states}
            self.model.read(now)

    def _read_state(self, commands: redis.Connection, key: str) -> tuple[list[bytes], int]:
        """Names and values of a state in turn, and the ms that it has to live. Raises redis.NoPermissionError."""
        fields, ttl = self._command(commands, ("HGETALL", key), ("PTTL", key))
        if isinstance(fields, MovedError):  # another node of the Cluster has it
            fields, ttl = ask(self._new_connection, [Query(ignore, name, key) for name in ("HGETALL", "PTTL")], {})
        if isinstance(fields, NoPermissionError):
            raise fields
        return (fields, ttl) if isinstance(fields, list) else ([], -2)

    def _search(self, commands: redis.Connection) -> None:
        """One step of the search for states: a large database is not to be searched at once."""
        if self._cursor == b"0" and monotonic() < self._scan_at:
            return
        base = self.model.health.base
        found = self._command(commands, ("SCAN", self._cursor, "MATCH", f"{escaped(base)}*", "COUNT", SCAN_COUNT))[0]
        if isinstance(found, list):
            self._cursor = found[0]
            keys = (key.decode(errors="replace") for key in found[1])
            self._keys |= {key for key in keys if key == base or key.startswith(f"{base}:")}
        if self._cursor == b"0":
            self._scan_at = monotonic() + SCAN_EVERY

    def _command(self, connection: redis.Connection, *commands: Sequence[Any]) -> list[Any]:
        """The replies to commands; one that Redis rejects is an error as a value."""
        connection.send_packed_command(connection.pack_commands(commands))
        replies = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except redis.ResponseError as error:
                replies.append(error)
        self._heard = monotonic()
        return replies


class Feed:
    """A connection that subscribes. It is read here and not by redis-py, which takes five times as long a message."""

    def __init__(self, connection: redis.Connection) -> None:
        self._connection = connection
        sock: Any = connection._get_socket()
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._rest = b""  # the beginning of a message whose end has not come
        self._heard = self._pinged = monotonic()

    def send(self, *words: str) -> None:
        self._connection.send_command(*words)

    def take(self, seconds: float) -> Iterator[Any]:
        """Yields what has come, or comes within so many seconds. Raises OSError when the connection has ended."""
        if self._poll.poll(seconds * 1000):
            piece = self._sock.recv(CHUNK)
            if not piece:
                raise ConnectionError("Redis has closed the connection")
            self._heard = monotonic()
            data, at = self._rest + piece, 0
            while at < len(data):
                value, end = parse_reply(data, at)
                if end < 0:
                    break
                yield value
                at = end
            self._rest = data[at:]
        now = monotonic()
        if now - self._heard > SILENCE:
            raise TimeoutError(f"nothing received for {SILENCE:.0f} s, not even the reply to a PING")
        if now - max(self._heard, self._pinged) > PING_EVERY:
            self._pinged = now
            self.send("PING")


def escaped(text: str) -> str:
    """Text in a pattern of Redis that stands for itself."""
    return re.sub(r"[*?[\]\\]", r"\\\g<0>", text)
