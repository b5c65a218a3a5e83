"""One life of a connection to Bybit, from the handshake to its loss: the I/O around the pure modules beside it.

Everything runs on the stream's thread. Other threads may only close().

websocket-client makes the handshake and sends; reading is done here. Of it are used the public create_connection(),
WebSocket.sock, send(), pong() and shutdown(), and the fact that nothing is read ahead of the handshake.
"""

import json
import logging
import select
import ssl
import threading
from collections.abc import Mapping
from time import monotonic, time
from typing import Any

import websocket

from relay.bybit.dial import Dial, describe
from relay.bybit.exchange import Exchange
from relay.bybit.frames import Closed, FrameReader
from relay.bybit.health import Health
from relay.bybit.subscription import RequestRefused, State, Subscription
from relay.dispatch import Callback, Router
from relay.errors import ConnectionLost, Stalled
from relay.log import shorten
from relay.stats import Sampler, StreamStats

log = logging.getLogger(__name__)

# Bytes asked of the socket at once. Not below the 16 KiB of a TLS record: poll() does not see what TLS keeps decrypted.
READ_SIZE = 65536
# While the socket has more to read: seconds and messages after which is flushed all the same.
IDLE_GAP, FLUSH_EVERY = 0.001, 256
# Messages delivered between two looks at the ping clock.
PING_CHECK_EVERY = 16

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection:
    """Made and run on its stream's thread, which bears the stream's name.

    callbacks: by topic. stall_timeout: seconds without data after which it is given up, 0 = never.
    """

    def __init__(self, exchange: Exchange, url: str, callbacks: Mapping[str, Callback], stall_timeout: float) -> None:
        self._exchange, self._url = exchange, url
        self._name = threading.current_thread().name
        self.stats = exchange.streams.get(self._name) or StreamStats()  # main made it, or nobody reads it
        self._subscription = Subscription(
            callbacks, exchange.topics_per_request, exchange.rejected, exchange.snapshot_first
        )
        self._router = Router(callbacks, self.stats, exchange.log_once, self._on_control)
        self._health = Health(exchange.timeouts, stall_timeout)
        self._sampler = Sampler(self.stats)
        self._pinged = 0.0  # monotonic time
        self._settled_at: float | None = None  # monotonic time at which Bybit had answered for all topics
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
            self._dial.cancel()  # wakes the stream's thread, whether it still connects or reads already

    def run(self) -> None:
        """Connects, subscribes and delivers messages until the connection is lost. Raises ConnectionLost; returns after
        close().
        """
        try:
            try:
                self._open()
                self._read()
            finally:
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
            self.stats.subscribed = 0

    def _end(self, reason: str, cause: Exception) -> None:
        if self._closing or self._exchange.stop.is_set():
            return
        self._announce_end(reason, "stalled" if isinstance(cause, Stalled) else "lost")
        uptime = monotonic() - self._settled_at if self._settled_at else 0.0
        raise ConnectionLost(reason, uptime) from cause

    def _announce_end(self, reason: str, event: str) -> None:
        topics = self._subscription.among(State.SUBSCRIBED)
        if topics:
            last = self.stats.last_message
            since = last and round((time() - monotonic() + last) * 1000)
            self._exchange.sink.announce(event, self._name, sorted(topics), reason=reason, since=since)

    def _open(self) -> None:
        timeouts = self._exchange.timeouts
        self.stats.heartbeat_due = monotonic() + timeouts.connect
        self._dial = Dial(self._url, timeouts.connect_step)
        if self._closing:
            self._dial.cancel()
        self._ws = self._dial.wait(timeouts.connect)
        self.stats.connections += 1

    def _read(self) -> None:
        """Reads until the socket is empty, flushes, waits."""
        assert self._ws
        sock, frames = self._ws.sock, FrameReader()
        # One buffer for the life of the connection: recv() would allocate as much each time, and fragment memory.
        buffer = memoryview(bytearray(READ_SIZE))
        readable = select.poll()
        readable.register(sock, select.POLLIN)
        sock.settimeout(0)
        flush, interval = self._exchange.sink.flush, self._exchange.timeouts.timer
        now = timer = flushed = self._pinged = monotonic()
        self._request(self._subscription.due(now))
        self._count()
        unflushed = 0
        while not self._closing:
            try:
                size = sock.recv_into(buffer)
            except WOULD_BLOCK:
                size = -1
            if size > 0:
                unflushed += self._take(frames, bytes(buffer[:size]))
            elif size == 0:
                raise ConnectionLost("Bybit closed the TCP connection without a close frame")
            now = monotonic()
            # At once after a pause. Otherwise more is probably there already, and goes out in one piece with this.
            if size < 0 or now - flushed >= IDLE_GAP or unflushed >= FLUSH_EVERY:
                flush()
                unflushed, flushed = 0, now
                readable.poll(interval * 1000)
                now = monotonic()
            if now - timer >= interval:
                self._on_timer(now, now - timer)
                timer = now

    def _take(self, frames: FrameReader, chunk: bytes) -> int:
        """Delivers the messages that a chunk completes; returns how many. Raises ConnectionLost after them."""
        messages = frames.feed(chunk)
        if frames.alive:
            self._health.since_frame = 0.0
        if messages:
            if self._sampler.budget > 0:
                for gap in self._sampler.sample(messages, time()):
                    self._log_gap(*gap)
            if self._subscription.awaiting_snapshot:
                self._subscription.seen(messages)
            # A chunk of many messages is delivered in parts: slow callbacks must not keep the pings back.
            deliver = self._router.deliver if len(messages) <= PING_CHECK_EVERY else self._deliver_in_parts
            if deliver(messages):
                self._health.since_message = 0.0
        if frames.pings and self._ws:
            for payload in frames.pings:
                self._send(self._ws.pong, payload)
        if frames.error:
            closed = "Bybit closed the connection: " if isinstance(frames.error, Closed) else ""
            raise ConnectionLost(closed + shorten(frames.error))
        return len(messages)

    def _deliver_in_parts(self, messages: list[bytes]) -> int:
        """Returns how many of the messages were data."""
        data = 0
        for first in range(0, len(messages), PING_CHECK_EVERY):
            data += self._router.deliver(messages[first : first + PING_CHECK_EVERY])
            self._ping_if_due(monotonic())
        return data

    def _log_gap(self, topic: str, before: int, after: int) -> None:
        if self._exchange.log_once.first("gap", topic):
            log.warning(
                "%s: sequence gap: u jumped from %d to %d; order books built from this topic are wrong until the next "
                "snapshot (later gaps are only counted)",
                topic,
                before,
                after,
            )

    def _on_timer(self, now: float, elapsed: float) -> None:
        """What is due by the clock. elapsed: seconds since the last call."""
        subscription = self._subscription
        self.stats.heartbeat_due = now + self._exchange.timeouts.timer
        self._sampler.refill()
        self._health.advance(
            elapsed, awaiting_acknowledgement=subscription.pending, subscribed=self.stats.subscribed > 0
        )
        if subscription.awaiting_snapshot and self._health.first_message_overdue:
            for topic in sorted(subscription.awaiting_snapshot):
                if self._exchange.log_once.first("no snapshot", topic):
                    seconds = self._exchange.timeouts.first_message
                    log.warning("%s: accepted, but no data within %g s; is the symbol right?", topic.decode(), seconds)
            subscription.awaiting_snapshot.clear()
        self._ping_if_due(now)
        self._request(subscription.due(now))

    def _on_control(self, message: dict[str, Any]) -> None:
        """A JSON object without a topic."""
        if message.get("ret_msg") == "pong" or message.get("op") == "pong":
            return
        if message.get("op") == "subscribe" or message.get("type") == "COMMAND_RESP":
            self._on_response(message)
        elif self._exchange.log_once.first("control", (str(message.get("op")), str(message.get("ret_msg")))):
            log.warning("Ignoring (logged once): unknown control message: %s", shorten(message))

    def _on_response(self, response: dict[str, Any]) -> None:
        """Bybit's answer to a request."""
        try:
            verdict = self._subscription.receive(response)
        except RequestRefused as refused:
            raise ConnectionLost(f"the subscription was rejected: {shorten(refused)}") from refused
        if verdict is None:
            if self._exchange.log_once.first("unexpected response"):
                log.warning("Ignoring (logged once): unexpected response: %s", shorten(response))
            return
        for topics in verdict.retry:
            self._request(topics)
        rejected, now = self._exchange.rejected, monotonic()
        for topic in verdict.rejected:
            if rejected.add(topic, now):
                reason, minutes = shorten(verdict.reason), rejected.retry_after / 60
                log.error("Bybit rejects %s: %s; retrying in %g min", topic, reason, minutes)
                self._exchange.sink.announce("rejected", self._name, [topic], reason=reason)
        for topic in verdict.accepted:
            if rejected.forget(topic):
                log.info("Bybit now accepts %s", topic)
        self._count()
        if verdict.accepted:
            self._exchange.sink.announce("subscribed", self._name, verdict.accepted)
        if not self._subscription.pending and (subscribed := sorted(self._subscription.among(State.SUBSCRIBED))):
            self._settled_at = self._settled_at or monotonic()
            more = f" and {len(subscribed) - 4} more" if len(subscribed) > 4 else ""
            log.info("Subscribed to %s%s", ", ".join(subscribed[:4]), more)

    def _count(self) -> None:
        self.stats.subscribed = len(self._subscription.among(State.SUBSCRIBED))
        self.stats.rejected = len(self._subscription.among(State.REJECTED))
        self.stats.answered = self.stats.answered or not self._subscription.pending

    def _request(self, topics: list[str]) -> None:
        """Sends requests for these topics, if any."""
        for text in self._subscription.request(topics):
            assert self._ws
            self._send(self._ws.send, text)
            self._health.since_request = 0.0

    def _ping_if_due(self, now: float) -> None:
        if now - self._pinged >= self._exchange.timeouts.ping_interval:
            self._pinged = now
            assert self._ws
            self._send(self._ws.send, json.dumps({"op": "ping"}))

    def _send(self, send: Any, data: str | bytes) -> None:
        """Sends a small frame of ours; waits for room in the socket for a bounded time."""
        assert self._ws
        self._ws.sock.settimeout(self._exchange.timeouts.connect_step)
        send(data)
        self._ws.sock.settimeout(0)
