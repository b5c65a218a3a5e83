"""One life of a connection to Bybit, from the handshake to its loss: the I/O around the pure modules beside it.

Everything here runs on the connection's thread, except for Intake.hand_on(), which the Reader calls while the
connection is lent to it. Other threads may only close() and wake().

websocket-client makes the handshake (dial.py) and sends; intake.py and tls.py read. Of it are used here the public
WebSocket.sock, send(), pong() and shutdown(), and the fact that it reads nothing after the handshake.
"""

import json
import logging
import select
import threading
from collections.abc import Mapping
from time import monotonic, time
from typing import Any

import websocket

from relay.bybit.assignment import Assignment
from relay.bybit.dial import Dial, describe, is_refusal
from relay.bybit.dialogue import Dialogue, Plan
from relay.bybit.exchange import Exchange
from relay.bybit.health import Health
from relay.bybit.intake import Intake
from relay.bybit.reactor import Loan
from relay.bybit.repair import Repair
from relay.bybit.subscription import Subscription
from relay.bybit.tls import receiver
from relay.dispatch import Callback, Router
from relay.errors import ConnectionLost, Stalled
from relay.stats import Sampler, StreamStats, stream_of
from relay.waker import Waker

log = logging.getLogger(__name__)

# While the socket has more to read, messages are flushed at least so often.
FLUSH_AFTER = 0.001  # seconds
FLUSH_EVERY = 256  # messages


class Connection:
    """Made and run on its own thread, whose name it bears.

    callbacks: by topic. Ignored if main has assigned topics to this connection: then Exchange.assigned decides, also
    when it changes.
    stall_timeout: seconds without data after which it is given up, 0 = never.
    plan: called on this thread once it is connected, every second and after wake(), before anything is asked
    of Bybit. It may change the subscription, and `callbacks` with it. Nothing is assigned to a connection with a plan.
    """

    def __init__(
        self,
        exchange: Exchange,
        url: str,
        callbacks: Mapping[str, Callback],
        stall_timeout: float,
        plan: Plan | None = None,
    ) -> None:
        self._exchange, self._url = exchange, url
        self.name = threading.current_thread().name
        self.stats = exchange.streams.get(self.name) or StreamStats()  # main made it, or nobody reads it
        if self.name in exchange.assigned:
            callbacks = exchange.assigned[self.name]
        else:
            exchange.topics[self.name] = frozenset(callbacks)
        self._subscription = Subscription(
            callbacks, exchange.topics_per_request, exchange.rejected, exchange.snapshot_first
        )
        self._health = Health(exchange.timeouts, stall_timeout)
        self._sampler = Sampler(self.stats)
        self._pinged = 0.0  # monotonic time
        stream, subscription = stream_of(self.name), self._subscription
        self._dialogue = Dialogue(exchange, stream, subscription, self.stats, self._health, self._send_text)
        self._router = Router(callbacks, self.stats, exchange.log_once, self._dialogue.on_control)
        # With a plan, what a topic is subscribed for is the plan's business.
        self._repair = None if plan else Repair(exchange, stream, subscription, self.stats)
        if self._repair:
            plan = Assignment(exchange, self.name, callbacks, self._router, self._repair).follow
        self._dialogue.plan = plan
        self._waker: Waker | None = None
        self._closing = False
        self._dial: Dial | None = None
        self._ws: websocket.WebSocket | None = None

    def close(self) -> None:
        """Ends the connection soon. Any thread, any time, never blocks.

        _closing is set before _dial is read, and run() sets _dial before it reads _closing: whoever comes second sees
        the other.
        """
        self._closing = True
        if self._dial:
            self._dial.cancel()  # wakes the connection's thread, whether it still connects or reads already

    def wake(self) -> None:
        """Has the plan called, and Bybit asked, soon. Any thread, any time, never blocks. Before there is a waker the
        first call of the plan is still to come.
        """
        if self._waker:
            self._waker.wake()

    def run(self) -> None:
        """Connects, subscribes and delivers messages until the connection is lost. Raises ConnectionLost; returns after
        close().
        """
        try:
            try:
                self._waker = Waker()
                self._open()
                self._read()
            finally:
                self._router.log_failures()
                self._exchange.sink.flush()
                if self._ws:
                    self._ws.shutdown()
        except ConnectionLost as lost:
            self._end(str(lost), lost)
        except (OSError, websocket.WebSocketException) as error:
            self._end(describe(error, self._url), error)
        except BaseException as error:  # a defect of the program: consumers miss messages all the same
            self._announce_end(repr(error), "lost")
            raise
        finally:
            self._announce_left()
            self.stats.subscribed = 0
            if self._waker:
                self._waker.close()

    def _end(self, reason: str, cause: Exception) -> None:
        if self._closing or self._exchange.stop.is_set():
            return
        self._announce_end(reason, "stalled" if isinstance(cause, Stalled) else "lost")
        settled_at = self._dialogue.settled_at
        uptime = monotonic() - settled_at if settled_at else 0.0
        raise ConnectionLost(reason, uptime) from cause

    def _announce_end(self, reason: str, event: str) -> None:
        topics = self._subscription.flowing
        if topics:
            last = self.stats.last_message
            since = last and round((time() - monotonic() + last) * 1000)
            stream = stream_of(self.name)
            self._exchange.sink.announce(event, stream, sorted(topics), reason=reason, since=since)

    def _announce_left(self) -> None:
        """Tells of the topics that end with this connection. The end of the program is told of by main."""
        if self._exchange.stop.is_set():
            return
        left = self._subscription.parting
        left += self._subscription.carried if self._exchange.ended(self.name) else []
        if left:
            self._exchange.sink.announce("unsubscribed", stream_of(self.name), sorted(left))

    def _open(self) -> None:
        timeouts, pacer = self._exchange.timeouts, self._exchange.pacer
        started = monotonic()
        self.stats.heartbeat_due = started + timeouts.connect
        self._dial = Dial(self._url, timeouts.connect_step)
        if self._closing:
            self._dial.cancel()
        try:
            self._ws = self._dial.wait(timeouts.connect)
        except Exception as error:
            if not self._closing:
                pacer.failed(started, is_refusal(error))
            raise
        pacer.opened(monotonic())
        if self.stats.connections:
            self.stats.reconnects += 1
        self.stats.connections += 1

    def _read(self) -> None:
        """Reads until the socket is empty, flushes, waits; has the Reader do so while messages only have to be handed
        on.
        """
        assert self._ws
        assert self._waker
        sock, waker = self._ws.sock, self._waker
        sock.settimeout(0)
        intake = Intake(receiver(sock), self._router, self._subscription, self._repair, self._health, self._sampler)
        loan = Loan(sock, intake.hand_on, waker.wake)
        readable, woken = select.poll(), select.poll()
        readable.register(sock, select.POLLIN)
        readable.register(waker, select.POLLIN)
        woken.register(waker, select.POLLIN)
        reactor, flush, interval = self._exchange.reactor, self._exchange.sink.flush, self._exchange.timeouts.timer
        now = timer = flushed = self._pinged = monotonic()
        self._sampler.turn(now)
        self._dialogue.advance(now)
        unflushed = 0
        may_lend = False  # TLS may hold something that came with the handshake: no poll() sees that
        while not self._closing:
            if is_lent := may_lend and intake.is_plain and reactor.is_running:
                reactor.lend(loan)
                try:
                    woken.poll(max(0.0, timer + interval - monotonic()) * 1000)
                finally:
                    reactor.recall(loan)
            has_data = intake.holds if is_lent else intake.read()
            may_lend = True
            if has_data:
                unflushed += self._deliver(intake)
            now = monotonic()
            # At once after a pause. Otherwise more is probably there already, and goes out in one piece with this.
            if not has_data or now - flushed >= FLUSH_AFTER or unflushed >= FLUSH_EVERY:
                flush()
                unflushed, flushed = 0, now
                if not is_lent:
                    readable.poll(max(0.0, timer + interval - now) * 1000)
                now = monotonic()
            if now - timer >= interval:
                self._on_timer(now, now - timer)
                timer = now
            elif waker.woken and waker.take():
                self._dialogue.advance(now)

    def _deliver(self, intake: Intake) -> int:
        """Delivers what was read. Returns how many messages that was."""
        messages, is_gap = intake.deliver(self._ping_if_due, self._answer)
        if is_gap:
            self._dialogue.advance(monotonic())  # at once: the books are wrong until their snapshots come
        return messages

    def _answer(self, ping: bytes) -> None:
        assert self._ws
        self._send(self._ws.pong, ping)

    def _on_timer(self, now: float, elapsed: float) -> None:
        """What is due by the clock. elapsed: seconds since the last call."""
        self.stats.heartbeat_due = now + self._exchange.timeouts.timer
        self._router.log_failures()
        self._sampler.turn(now)
        watched = self._health.advance(
            elapsed, awaiting_acknowledgement=self._subscription.pending, subscribed=self.stats.subscribed > 0
        )
        self._dialogue.report_missing()
        if self._repair:
            self._repair.tick(watched)
        self._ping_if_due(now)
        self._dialogue.advance(now)

    def _ping_if_due(self, now: float) -> None:
        if now - self._pinged >= self._exchange.timeouts.ping_interval:
            self._pinged = now
            self._send_text(json.dumps({"op": "ping"}))

    def _send_text(self, text: str) -> None:
        assert self._ws
        self._send(self._ws.send, text)

    def _send(self, send: Any, data: str | bytes) -> None:
        """Sends a small frame of ours; waits for room in the socket for a bounded time."""
        assert self._ws
        self._ws.sock.settimeout(self._exchange.timeouts.connect_step)
        send(data)
        self._ws.sock.settimeout(0)
