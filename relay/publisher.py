"""Redis's end: a bounded buffer and what drains it, in order, into PUBLISH commands on one connection.

The rule here: whoever publishes never waits for Redis. publish() only appends; flush() sends what the socket takes at
once, from the thread that calls it, which spares a wake-up of another; all that can take time (connecting, a full
socket, a Redis that hangs, the rest of a backlog) is the publisher thread's. The one thing that flush() ever waits for,
some milliseconds, is its turn, when more comes in than a healthy Redis is being handed.

redis-py makes the connection (names, TLS, AUTH, SELECT) and asks the occasional question; then its socket is driven
from here, because its own way of publishing costs several times more and its retries send whole pipelines again. The
one internal leaned on, tested in tests/test_contracts.py: Connection._get_socket(), and that nothing is read ahead.
"""

import json
import logging
import math
import select
import ssl
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

log = logging.getLogger(__name__)

# Seconds for Redis to accept a connection, and to answer whatever it was sent.
CONNECT_TIMEOUT = 2.0
ANSWER_TIMEOUT = 5.0
# Seconds between attempts to connect: the first, doubling to the last.
BACKOFF, BACKOFF_MAX = 0.05, 1.0
# Seconds between two looks at what flush() left behind, and between two looks at Redis's role and subscribers.
TICK = 0.1
PROBE_INTERVAL = 1.0
# Seconds between two writes of the state, and seconds after which it is gone if there are no more.
STATE_INTERVAL, STATE_EXPIRES = 5.0, 15
# Seconds that a backlog waits for the subscribers that a restarted Redis had before.
HOLD = 2.0
# Seconds after which the thread must be stuck if it has not turned.
PATIENCE = 60.0
# Bytes sent and not yet answered, up to the message that goes beyond: what may arrive twice when a connection breaks.
WINDOW = 256 * 1024
# Bytes waiting above which flush() waits for its turn, and how many seconds.
CROWD, TURN = 1 << 20, 0.005
# Bytes of answers read at once.
CHUNK = 16384
# Answers are read by flush() only when this many are due: else by the publisher thread's tick.
LAZY_ANSWERS = 64
# A message without which the connection would live is dropped when it broke this many connections.
FATAL_BREAKS = 3
# Bytes that a message takes in memory beside its text.
OVERHEAD = 64
# Refusals that say something of Redis's state, not of the message: it is sent again.
PASSING_ERRORS = (b"-BUSY", b"-LOADING", b"-MASTERDOWN", b"-TRYAGAIN", b"-CLUSTERDOWN", b"-NOAUTH", b"-READONLY")

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Unfit(redis.ConnectionError):
    """Redis answers, but cannot be used in the state that it is in."""


def encoded(message: Any) -> bytes:
    """Text as it is, all else as compact JSON; non-ASCII kept, but half of a surrogate pair escaped as JSON does."""
    text = message if isinstance(message, str) else json.dumps(message, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="backslashreplace")


def _channel(command: bytes) -> str:
    return command.split(b"\r\n", 5)[4].decode()


def _text(command: bytes) -> bytes:
    return command.split(b"\r\n", 6)[6][:-2]


class Publisher:
    """Publishes messages to the Redis at `host`:`port`, for ever, through every outage.

    buffer: bytes of messages kept while Redis is away; when it is full the oldest go, counted.
    status: the channel of announce(), and the key of the hash that `state` is kept in.
    The other arguments are redis-py's. Start it with start(), end it with stop().
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 6379,
        *,
        db: int = 0,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        buffer: int = 256 << 20,
        status: str = "stream:bybit_status",
    ) -> None:
        self.address = f"{host}:{port}"
        # Not redis-py's retries (they resend whole pipelines, and sleep where no stop reaches them), not its greeting
        # (four round trips, and rights in the ACL that nothing else here needs).
        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "protocol": 2, "driver_info": None}
        options |= {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}
        options |= {"socket_timeout": ANSWER_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT}
        options |= {"host": host, "port": port, "db": db, "username": username, "password": password}
        self.new_connection: Callable[[], redis.Connection] = lambda: (
            redis.SSLConnection if tls else redis.Connection
        )(**options)
        self._limit = buffer
        self.status = status
        # Gives the fields of the status hash; called on the publisher thread.
        self.state: Callable[[], dict[str, str]] = dict
        self._heads: dict[str, bytes] = {}  # the beginning of PUBLISH, by channel

        # _lock guards _waiting and its size, and is held for a few instructions only.
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()  # commands, the oldest first
        self._size = 0  # bytes in _waiting
        # _io guards the socket and all that was handed to it. flush() gives up where it would have to wait for it.
        self._io = threading.Lock()
        self._socket: Any = None
        self._open = False  # messages may go to it
        self._error: Exception | None = None  # what broke it, if flush() saw that
        self._unanswered: deque[bytes] = deque()  # commands sent, the oldest first
        self._flight = 0  # bytes in _unanswered
        self._unsent = memoryview(b"")  # what the socket did not take yet of the last of them
        self._answer = b""  # an answer that has begun
        self._progress = 0.0  # monotonic time of the last answer, or of the first command after a pause
        self._careful = 0  # messages still to be sent one by one, since one of them breaks connections
        self._suspect: bytes | None = None
        self._breaks = 0  # connections broken in a row with _suspect as the first unanswered command

        self._state_kept = self._hash_refused = False
        self._state_at = 0.0  # monotonic time of the next write of the state
        self.due = math.inf  # monotonic time by which the thread must have turned again

        self._audience: dict[bytes, int] = {}  # subscribers by channel when last seen; b"" counts the patterns
        self._lost_at: float | None = None  # monotonic time of the beginning of an outage
        self._reasons: set[str] = set()  # that were logged for it
        self._was_connected: bool | None = None  # in the last session; None before the first has ended
        self._overflow_since: float | None = None
        self._overflow: Counter[str] = Counter()  # dropped since then
        self._unannounced: Counter[str] = Counter()  # of those, what consumers have not been told
        self._refusals: Counter[str] = Counter()  # messages that Redis refused since the last probe
        self._refusals_logged: set[tuple[str, bytes]] = set()
        self.dropped: Counter[str] = Counter()  # messages lost since the start by channel, for whatever reason
        self.published = 0  # messages answered by Redis since the start
        self.fatal: str | None = None  # why the very first attempt was refused for good

        self._wake = threading.Event()
        self._deadline: float | None = None  # monotonic time at which stop() gives up
        self._thread = threading.Thread(target=self._run, name="Redis", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, deadline: float) -> int:
        """Sends what waits, until `deadline` (monotonic), and ends. Returns how many messages were left behind,
        announcements not counted.
        """
        self._deadline = deadline
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - monotonic()) + TICK)
        self._end_overflow()
        with self._lock:
            left = [*self._unanswered, *self._waiting]
        return sum(_channel(command) != self.status for command in left)

    @property
    def connected(self) -> bool:
        """Whether messages reach Redis now. Any thread."""
        return self._open

    @property
    def backlog(self) -> int:
        """Messages that Redis has not confirmed yet. Any thread."""
        return len(self._waiting) + len(self._unanswered)

    def publish(self, channel: str, message: Any) -> None:
        """Queues a message: bytes and str as they are, all else as JSON. Any thread, never waits; goes out with the
        next flush(), or within TICK by itself.
        """
        if not isinstance(message, bytes):
            message = encoded(message)
        command = self._command(channel, message)
        with self._lock:
            self._waiting.append(command)
            self._size += len(command) + OVERHEAD
            if self._size + self._flight > self._limit:
                self._drop_oldest()

    def _command(self, channel: str, message: bytes) -> bytes:
        head = self._heads.get(channel)
        if head is None:
            name = channel.encode()
            head = self._heads[channel] = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(name), name)
        return b"%b%d\r\n%b\r\n" % (head, len(message), message)

    def announce(self, event: str, stream: str = "", topics: Sequence[str] = (), **more: Any) -> None:
        """Tells the consumers of the status channel what happened to a stream, in its place among the messages."""
        self.publish(self.status, self._event(event, stream, topics, **more))
        self._state_at = 0.0  # it has changed
        self.flush()

    @staticmethod
    def _event(event: str, stream: str = "", topics: Sequence[str] = (), **more: Any) -> bytes:
        """`ts` is in milliseconds, as Bybit's."""
        known = {"event": event, "stream": stream, "topics": list(topics), "ts": round(time() * 1000)}
        return encoded(known | more)

    def flush(self) -> None:
        """Sends what waits as far as the socket takes it at once. Any thread; waits only for its turn, and only while
        more than CROWD waits that Redis is busy taking.
        """
        for _ in range(2):
            if not self._waiting or not self._open:
                return
            # Many busy threads can keep the interpreter from the one that sends. Those that wait here leave it to it.
            crowded = self._size > CROWD and monotonic() - self._progress < TICK
            # Who does not get _io leaves its messages to the holder, who looks at _waiting once more after release.
            if not self._io.acquire(timeout=TURN if crowded else 0):
                return
            try:
                if not self._open:
                    return
                if len(self._unanswered) >= LAZY_ANSWERS:
                    self._receive()
                if not self._send():
                    break
            except Exception as error:
                self._open, self._error = False, error
                break
            finally:
                self._io.release()
        self._wake.set()

    def _drop_oldest(self) -> None:
        """Makes room. _lock is held."""
        if self._overflow_since is None:
            self._overflow_since = monotonic()
            log.error("The buffer for Redis is full (%d MiB): dropping the oldest messages", self._limit >> 20)
        while self._waiting and self._size + self._flight > self._limit:
            oldest = self._waiting.popleft()
            self._size -= len(oldest) + OVERHEAD
            self._count_dropped(oldest)

    def _count_dropped(self, command: bytes) -> None:
        channel = _channel(command)
        event = json.loads(_text(command)) if channel == self.status else {}
        if event.get("event") == "dropped":  # what it announced is to be announced again
            self._unannounced[event["channel"]] += event["messages"]
        else:
            for counter in (self._unannounced, self._overflow, self.dropped):
                counter[channel] += 1

    def _end_overflow(self) -> None:
        """Logs how much was dropped, once the buffer is empty again or nothing more can be done."""
        if self._overflow_since is None:
            return
        with self._lock:
            lasted = monotonic() - self._overflow_since
            dropped, self._overflow, self._overflow_since = self._overflow, Counter(), None
        counts = ", ".join(f"{channel} {number:,}" for channel, number in sorted(dropped.items()))
        log.warning("The buffer overflowed for %.1f s; dropped: %s", lasted, counts)

    # From here up to _give_up, and in _exchange, _io is held.

    def _send(self) -> bool:
        """Sends what waits. Returns False if some of it must wait: for room in the socket, or for answers."""
        while self._send_rest():
            if not self._waiting:
                return True
            if self._flight >= WINDOW or (self._careful and self._unanswered):
                return False
            self._take_batch()
        return False

    def _send_rest(self) -> bool:
        """Sends what is left of the batch. Returns False if the socket takes no more now."""
        while self._unsent:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except _WOULD_BLOCK:
                return False
        return True

    def _take_batch(self) -> None:
        batch: list[bytes] = []
        size = 0
        room = 1 if self._careful else WINDOW - self._flight
        with self._lock:
            waiting = self._waiting
            for channel, number in self._unannounced.items():  # consumers are told right where they are missing
                event = self._command(self.status, self._event("dropped", channel=channel, messages=number))
                waiting.appendleft(event)
                self._size += len(event) + OVERHEAD
            self._unannounced.clear()
            while waiting and size < room:
                command = waiting.popleft()
                size += len(command)
                batch.append(command)
            self._size -= size + OVERHEAD * len(batch)
            if not self._unanswered:
                self._progress = monotonic()
            self._unanswered.extend(batch)
            self._flight += size
        self._unsent = memoryview(b"".join(batch))

    def _receive(self) -> None:
        """Reads the answers that have come. Each is `:receivers` or `-ERROR text`."""
        while True:
            try:
                data = self._socket.recv(CHUNK)
            except _WOULD_BLOCK:
                return
            if not data:
                raise redis.ConnectionError("it closed the connection")
            answers = (self._answer + data).split(b"\r\n")
            self._answer = answers.pop()
            for answer in answers:
                if answer.startswith(b"-"):
                    if answer.startswith(PASSING_ERRORS):
                        raise _Unfit(answer[1:].decode(errors="replace"))
                    self._refuse(self._unanswered[0], answer)
                else:
                    self.published += 1
                self._flight -= len(self._unanswered.popleft())
            if answers:
                self._progress = monotonic()
            self._careful = max(0, self._careful - len(answers))
            if len(data) < CHUNK:
                return

    def _refuse(self, command: bytes, why: bytes) -> None:
        """Counts a message that Redis does not take, and names it once."""
        channel = _channel(command)
        self.dropped[channel] += 1
        self._refusals[channel] += channel != self.status
        if (channel, why[:12]) not in self._refusals_logged:
            self._refusals_logged.add((channel, why[:12]))
            text = _text(command)
            log.error(
                "Redis refuses a message of %d bytes for %s: %s. Dropped, and counted from now on. It begins: %s",
                len(text),
                channel,
                why[1:].decode(errors="replace"),
                text[:80].decode(errors="replace"),
            )

    def _give_up(self, error: Exception) -> None:
        """Takes back what was not answered, in its order, to be sent first on the next connection."""
        if self._socket and not isinstance(error, _Unfit):
            try:
                self._receive()  # answers that came before the break: the fewer messages twice
            except Exception:
                pass  # it is broken, after all
        self._open, self._socket, self._error = False, None, None
        self._unsent, self._answer = memoryview(b""), b""
        if self._unanswered and not isinstance(error, redis.TimeoutError | _Unfit):
            first = self._unanswered[0]
            self._breaks = self._breaks + 1 if first is self._suspect else 1
            self._suspect = first
            if self._breaks >= FATAL_BREAKS and len(self._unanswered) == 1:
                self._refuse(first, b"-it closed the connection each time")
                self._flight -= len(self._unanswered.popleft())
            elif self._breaks > 1:
                self._careful = len(self._unanswered)
        with self._lock:
            self._waiting.extendleft(reversed(self._unanswered))
            self._size += self._flight + OVERHEAD * len(self._unanswered)
            self._unanswered.clear()
            self._flight = 0

    # The publisher thread.

    def _done(self) -> bool:
        return self._deadline is not None and (not self.backlog or monotonic() >= self._deadline)

    def _run(self) -> None:
        pause = BACKOFF
        while not self._done():
            self.due = monotonic() + PATIENCE
            try:
                self._session()
            except (OSError, UnicodeError, redis.RedisError) as error:  # UnicodeError: such a host name
                if self._was_connected is None and isinstance(error, redis.AuthenticationError):
                    self.fatal = f"Redis at {self.address} does not let us in: {error}"
                    return
                self._log_away(error)
            except Exception:
                log.exception("Unexpected; the connection to Redis is made anew")
            if self._was_connected:
                pause = BACKOFF
            self._was_connected = False
            if not self._done():
                self._wake.wait(pause if self._deadline is None else BACKOFF)
                self._wake.clear()
                pause = min(pause * 2, BACKOFF_MAX)

    def _log_away(self, error: Exception) -> None:
        """Once for an outage, and once more for each new reason that it turns out to have."""
        text = str(error) or type(error).__name__
        if self._lost_at is None:
            self._lost_at = monotonic()
            self._reasons = {text}
            log.error("Redis at %s is away: %s. Messages are kept until it is back", self.address, text)
        elif text not in self._reasons:
            self._reasons.add(text)
            log.warning("Redis at %s is still away: %s", self.address, text)

    def _log_back(self, waited: int) -> None:
        if self._lost_at is None:
            log.info("Publishing to Redis at %s", self.address)
        else:
            away, self._lost_at = monotonic() - self._lost_at, None
            log.warning("Redis at %s is back after %.1f s; %d messages waited", self.address, away, waited)
            self.announce("redis_back", away=round(away, 3), held=waited)

    def _session(self) -> None:
        """One life of a connection to Redis. Ends with an exception, or when all is done after stop()."""
        connection = self.new_connection()
        try:
            connection.connect()
            self._hold(connection)
            with self._io:
                self._socket = connection._get_socket()
                self._socket.settimeout(0)
                self._open = True
            self._drain(connection)
        except Exception as error:
            with self._io:
                self._give_up(error)
            raise
        finally:
            connection.disconnect()

    def _drain(self, connection: redis.Connection) -> None:
        """Sends what flush() could not, reads the answers, and looks at Redis now and then."""
        ready = select.poll()
        ready.register(self._socket)
        probe_at = monotonic()
        published, waited = self.published, self.backlog
        while not self._done():
            self.due = monotonic() + PATIENCE
            with self._io:
                if self._error:
                    raise self._error
                if monotonic() >= probe_at:
                    while self._unanswered:
                        self._exchange(ready, taking=False)
                    self._socket.settimeout(ANSWER_TIMEOUT)
                    self._audience = self._look(connection, *self._state_commands())
                    self._socket.settimeout(0)
                    probe_at = monotonic() + PROBE_INTERVAL
                all_sent = self._exchange(ready, taking=True)
            if not self._was_connected and (self.published > published or not self.backlog):
                self._was_connected = True
                self._log_back(waited)
            if not self._waiting:
                self._end_overflow()
            # A flush() that found _io taken has left its messages to be seen here.
            if all_sent and not self._waiting:
                self._wake.wait(TICK)
                self._wake.clear()

    def _exchange(self, ready: select.poll, taking: bool) -> bool:
        """Reads answers, sends what the socket takes (of new messages only if `taking`), and waits for it if something
        is left, or if answers are all that is waited for. Returns whether all is sent. _io is held.
        """
        self._receive()
        all_sent = self._send() if taking else self._send_rest()
        if not all_sent or (self._unanswered and (not taking or self._deadline)):
            ready.modify(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            ready.poll(TICK * 1000)
            self._receive()
        if self._unanswered and monotonic() - self._progress >= ANSWER_TIMEOUT:
            raise redis.TimeoutError(f"no answer within {ANSWER_TIMEOUT:g} s")
        return all_sent

    def _hold(self, connection: redis.Connection) -> None:
        """After a restart of Redis its subscribers are gone too: waits until those that were there are back."""
        wanted = {channel: number for channel, number in self._audience.items() if number}
        until = monotonic() + HOLD
        while True:
            seen = self._look(connection)
            if monotonic() >= until or all(seen.get(channel, 0) >= number for channel, number in wanted.items()):
                return
            self._wake.wait(BACKOFF)
            self._wake.clear()

    def _look(self, connection: redis.Connection, *more: tuple[str, ...]) -> dict[bytes, int]:
        """Whether Redis is a master, and who listens: subscribers by channel, and under b"" the number of patterns that
        somebody is subscribed to. Sends `more` along. Nothing else may be in flight. Raises _Unfit.
        """
        commands = ("ROLE",), ("PUBSUB", "NUMSUB", *self._heads), ("PUBSUB", "NUMPAT"), *more
        connection.send_packed_command(connection.pack_commands(commands))
        answers = []
        for command in commands:
            try:
                answers.append(connection.read_response())
            except redis.ResponseError as error:  # the user lacks the right to ask
                answers.append(None)
                if command[0] == "HSET" and not self._hash_refused:
                    self._hash_refused = True
                    log.warning("Redis does not let us keep the state in the hash %s: %s", self.status, error)
        role, counts, patterns = answers[:3]
        if role and role[0] != b"master":
            # It takes PUBLISH without a word, and its master's subscribers get nothing.
            raise _Unfit("it is a replica, whose messages would not reach the subscribers of its master")
        counts = counts or []
        return dict(zip(counts[::2], counts[1::2], strict=True)) | {b"": patterns or 0}

    def _state_commands(self) -> list[tuple[str, ...]]:
        """For who comes late: what keeps the state in a hash, which goes when nobody keeps it any more."""
        for channel, number in self._refusals.items():
            self.announce("dropped", channel=channel, messages=number)
        self._refusals.clear()
        state = self.state() if monotonic() >= self._state_at else {}
        if not state:
            return []
        old = [] if self._state_kept else [("DEL", self.status)]  # what another run left
        self._state_kept, self._state_at = True, monotonic() + STATE_INTERVAL
        fields = [text for pair in state.items() for text in pair]
        return [*old, ("HSET", self.status, *fields), ("EXPIRE", self.status, str(STATE_EXPIRES))]
