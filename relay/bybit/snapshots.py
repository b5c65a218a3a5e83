"""Snapshots on request: a consumer that comes late, or has lost track, asks over Redis; Bybit's own snapshot answers.

A side connection subscribes to the topic, takes the snapshot and unsubscribes. `u` and `cs` belong to the topic, not to
the connection, so the frame fits what the data channels carry. It goes to the reply channel as it is; the data channels
and all other consumers see nothing of it. Whom a snapshot may serve stands in requests.py.

Threads: Requests calls receive() and tick(); the side connection has a thread of its own, Snapshots. Nothing here runs
on the thread of a connection of STREAMS or takes a lock that one wants, so requests never delay data.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic, time
from typing import Protocol

from relay.backoff import Backoff
from relay.bybit.client import Client
from relay.bybit.connection import Connection
from relay.bybit.exchange import Exchange
from relay.bybit.rejected import RejectedTopics
from relay.bybit.repeats import Repeats
from relay.bybit.requests import EXPIRY, TOO_MANY, InvalidRequest, Rounds, Waiting, by_reply, parse, parts, unservable
from relay.bybit.subscription import MAX_TOPIC_CHARACTERS, State, Subscription
from relay.dispatch import Callback, raw
from relay.errors import ConnectionLost
from relay.events import encoded_event
from relay.log import shorten

log = logging.getLogger(__name__)

# Seconds without a request after which the side connection is closed.
IDLE = 60.0
# Seconds between two attempts to connect: shorter than a stream's, as who waits is rejected after EXPIRY.
RETRY, RETRY_MAX = 0.25, 4.0
# Seconds between the beginnings of two connections where each round needs one: half of what the pacer gives, so that
# no flood of requests takes the place of a stream.
FRESH_EVERY = 2.0
# Seconds for which a topic that Bybit rejects on the side is not asked for again.
REJECTED_RETRY = 60.0
# Topics that a side connection serves before it is replaced at the next pause, and whose rejections are explained.
MAX_SERVED, MAX_REASONS = 10_000, 1000

# Seconds after each part of the replies in which the threads of the streams have the interpreter for themselves.
YIELD = 0.001

# The states in which a frame of a topic comes after the subscription of this round was sent.
SENT = (State.REQUESTED, State.SUBSCRIBED)


class Replies(Protocol):
    """Publishes on Redis. Any thread but a stream's: it may wait."""

    def send(self, replies: Sequence[tuple[str, bytes]]) -> None: ...

    def close(self) -> None: ...


class Snapshots:
    """Takes requests, and rejects what cannot be served.

    exchange: of the streams. reply_prefix: with which all reply channels begin. answers: whether this collector is the
    one that publishes; requests are ignored while it is not. foreign: whether another collector carries a topic: such
    topics are left to it, silently, and what is invalid as a whole to the one that carries the topic "". idle: seconds
    without a request after which the side connection is closed. expiry: seconds after which one who waits is rejected.
    """

    def __init__(
        self,
        exchange: Exchange,
        replies: Replies,
        reply_prefix: str,
        answers: Callable[[], bool] = lambda: True,
        foreign: Callable[[str], bool] = lambda _topic: False,
        idle: float = IDLE,
        expiry: float = EXPIRY,
    ) -> None:
        self._exchange, self._replies, self._expiry = exchange, replies, expiry
        self._reply_prefix, self._answers, self._foreign = reply_prefix, answers, foreign
        self._requests = self._rejected = 0
        self._lock = threading.Lock()  # guards _rejected: both threads reject
        rounds = Rounds(MAX_TOPIC_CHARACTERS, expiry=expiry)
        self._side = SideConnection(exchange, replies, rounds, self._reject_waiting, idle)

    def start(self) -> None:
        """Starts the thread."""
        self._side.start()

    def join(self, deadline: float) -> None:
        """Waits for the thread, after `stop` was set and all connections were closed; until `deadline` (monotonic)."""
        self._side.join(deadline)

    def counts(self) -> Mapping[str, int]:
        """For the state hash: messages that asked for something, and rejections, several of one. Any thread."""
        return {"requests": self._requests, "requests_rejected": self._rejected}

    # The thread Requests.

    def receive(self, payload: bytes) -> None:
        """Takes a message of the request channel."""
        if not self._answers():
            return
        self._requests += 1
        try:
            request = parse(payload, self._reply_prefix)
        except InvalidRequest as invalid:
            if not self._foreign(""):
                self._reject(invalid.reply, invalid.topics, str(invalid), payload)
            return
        exchange, ours = self._exchange, [topic for topic in request.topics if not self._foreign(topic)]
        rejected = unservable(ours, exchange.carries, exchange.flows, exchange.snapshot_first)
        bad = {topic for topics in rejected.values() for topic in topics}
        good = [topic for topic in ours if topic not in bad]
        if good and (left_out := self._side.ask(good, request.reply)):
            rejected[TOO_MANY] = left_out
        for reason, topics in rejected.items():
            self._reject(request.reply, topics, reason, topics[0])

    def tick(self) -> None:
        """To be called about once a second: rejects those who have waited too long."""
        expired, failure = self._side.expire()
        if expired:
            reason = f"no snapshot within {self._expiry:g} s"
            self._reject_waiting(expired, f"{reason}: {failure}" if failure else reason)

    # Both threads.

    def _reject_waiting(self, waiting: Iterable[Waiting], reason: str) -> None:
        for reply, topics in by_reply(waiting):
            self._reject(reply, topics, reason, topics[0])

    def _reject(self, reply: str, topics: Sequence[str], reason: str, what: object) -> None:
        """Counts a rejection and replies with it, if there is a channel for it. what: for the log."""
        with self._lock:
            self._rejected += 1
        if self._exchange.log_once.first("request", reason):
            fields = {"reason": reason, "text": shorten(what)}
            log.warning("Rejecting a consumer's request: %(reason)s (logged once): %(text)s", fields)
        if reply:
            self._replies.send([(reply, encoded_event("rejected", round(time() * 1000), topics=topics, reason=reason))])


class SideConnection:
    """The connection that fetches snapshots, while there are requests. It is the sink of its exchange.

    The thread Snapshots owns all of it but _rounds, which _lock guards, and what is said of ask() and expire().
    """

    def __init__(
        self,
        exchange: Exchange,
        replies: Replies,
        rounds: Rounds,
        reject: Callable[[Iterable[Waiting], str], None],
        idle: float,
    ) -> None:
        self._exchange = exchange.aside(self)
        self._exchange.rejected = RejectedTopics(REJECTED_RETRY)
        self._repeats = Repeats()
        self._replies, self._reject, self._idle = replies, reject, idle
        self._lock = threading.Lock()
        self._rounds = rounds
        self._states: Mapping[str, State] = {}  # of the topics of the connection
        self._outgoing: list[tuple[str, bytes]] = []  # replies until the next flush
        self._reasons: dict[str, str] = {}  # why Bybit rejects a topic
        # Written by this thread, read by the other: each is one value that Python replaces at once.
        self._connection: Connection | None = None
        self._failure = ""  # why there is no connection
        # The other way round.
        self._asked_at = 0.0  # monotonic time of the last request
        self._asked = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(Client(exchange).endpoint,), name="Snapshots", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def join(self, deadline: float) -> None:
        self._asked.set()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - monotonic()))

    def ask(self, topics: Sequence[str], reply: str) -> list[str]:
        """Has the snapshots of these topics sent to `reply`. Returns those that found no room. Any other thread.

        The request is noted before _connection is read, and this thread sets _connection before its plan reads what is
        noted: the plan sees the request, or is woken for it.
        """
        self._asked_at = now = monotonic()
        with self._lock:
            left_out = self._rounds.add(topics, reply, now)
        self._asked.set()
        if connection := self._connection:
            connection.wake()
        return left_out

    def expire(self) -> tuple[list[Waiting], str]:
        """Those who wait no more, and why there is no connection, if there is none. Any other thread."""
        with self._lock:
            return self._rounds.expire(monotonic()), self._failure

    # The thread Snapshots.

    def _run(self, url: str) -> None:
        stop, backoff = self._exchange.stop, Backoff(RETRY, RETRY_MAX)
        while not stop.is_set():
            self._asked.wait()  # join() ends it
            self._asked.clear()  # before the look at what waits: who comes after it sets it again
            while self._somebody_waits() and not stop.is_set():
                pause = self._live(url, backoff)
                self._replies.close()
                stop.wait(pause)
        self._replies.close()  # here, as it may wait for a Redis that hangs

    def _somebody_waits(self) -> bool:
        with self._lock:
            return self._rounds.waiting

    def _live(self, url: str, backoff: Backoff) -> float:
        """One life of the connection. Returns the seconds until the next may begin."""
        callbacks: dict[str, Callback] = {}
        connection = Connection(self._exchange, url, callbacks, 0.0, partial(self._plan, callbacks))
        self._repeats.connected()
        self._connection = connection
        began = monotonic()
        try:
            self._exchange.run(connection)
            return max(0.0, began + FRESH_EVERY - monotonic())  # it was replaced; or nobody waits for the next
        except ConnectionLost as lost:
            failure, uptime = str(lost), lost.uptime
            if failure != self._failure and self._somebody_waits():
                log.warning("Requests for snapshots have to wait: lost Bybit: %(reason)s", {"reason": failure})
        except Exception as error:
            failure, uptime = repr(error), 0.0
            if self._exchange.log_once.first("side connection", type(error)):
                log.exception("The side connection failed")
        finally:
            self._connection = None
            with self._lock:
                self._rounds.interrupt()
        self._failure = failure
        return backoff.after(uptime)

    def _plan(self, callbacks: dict[str, Callback], subscription: Subscription, now: float) -> None:
        """What is to be subscribed and unsubscribed now. The rounds that begin here are subscribed after it, so whom
        they serve has asked before.
        """
        self._failure, self._states = "", subscription.states
        rejected = subscription.among(State.REJECTED)
        with self._lock:
            refused = {topic: self._rounds.reject([topic]) for topic in rejected}
            released = self._rounds.release()
        subscription.release(released)
        with self._lock:
            self._rounds.end(subscription.states.__contains__)
            unanswered = self._rounds.unanswered
            exhausted = self._repeats.exhausted(self._rounds.wanted)
            begun = [] if exhausted else self._rounds.begin()
            busy = self._rounds.waiting or self._rounds.under_way
        # A callback stays when its topic goes: frames that are still on their way are no mistake.
        callbacks.update((topic, raw(partial(self._receive, topic))) for topic in begun)
        subscription.want(begun)
        for topic, waiting in refused.items():
            self._reject(waiting, self._reasons.get(topic, "Bybit rejects the topic"))
        awaited = [topic for topic in unanswered if subscription.states.get(topic) is State.SUBSCRIBED]
        overdue = self._repeats.overdue(awaited, now)
        idle = not busy and (now - self._asked_at >= self._idle or len(callbacks) > MAX_SERVED)
        ended = exhausted and (not unanswered or self._repeats.has_waited)
        if self._connection and (idle or overdue or ended):
            self._connection.close()

    def _receive(self, topic: str, message: bytes) -> None:
        """A message of a topic. The first snapshot after the subscription was sent is the answer; deltas follow it."""
        if self._states.get(topic) not in SENT or b'"type":"snapshot"' not in message:
            return
        with self._lock:
            replies = self._rounds.answer(topic)
        if self._repeats.served(topic):
            log.info("Bybit sends no snapshot to a connection that subscribes to a topic again: each gets a new one")
        self._outgoing += [(reply, message) for reply in replies]

    def flush(self) -> None:
        """Sends the replies, and has the plan release their topics."""
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, []
        if self._connection:
            self._connection.wake()
        for part in parts(outgoing):
            self._replies.send(part)
            self._exchange.stop.wait(YIELD)  # 800 snapshots come at once; they cost no stream a delay

    def announce(self, event: str, stream: str, topics: list[str], **fields: object) -> None:
        """Keeps why Bybit rejects a topic; all else that happens here is no consumer's business."""
        if event == "rejected":
            if len(self._reasons) >= MAX_REASONS:
                self._reasons.clear()
            self._reasons.update(dict.fromkeys(topics, str(fields["reason"])))
