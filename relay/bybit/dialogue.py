"""What a connection asks of Bybit, and what it makes of the answers. It sends through a function that it is given."""

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from relay.bybit.exchange import Exchange
from relay.bybit.health import Health
from relay.bybit.subscription import RequestRefused, State, Subscription
from relay.errors import ConnectionLost
from relay.log import FEW, Names, shorten
from relay.stats import StreamStats

log = logging.getLogger(__name__)

# Changes by want(), release() and renew() what a connection is subscribed to. Gets the monotonic time.
Plan = Callable[[Subscription, float], object]


class Dialogue:
    """A part of one connection, on its thread.

    stream: for events. plan: called before each look at what is to be asked. send: sends a text.
    """

    def __init__(
        self,
        exchange: Exchange,
        stream: str,
        subscription: Subscription,
        stats: StreamStats,
        health: Health,
        send: Callable[[str], None],
    ) -> None:
        self.settled_at: float | None = None  # monotonic time at which Bybit had answered for all topics
        self.plan: Plan | None = None
        self._exchange, self._stream, self._send = exchange, stream, send
        self._subscription, self._stats, self._health = subscription, stats, health

    def advance(self, now: float) -> None:
        """Asks for all that is to be asked for now."""
        if self.plan:
            self.plan(self._subscription, now)
        self._ask(self._subscription.requests(now))
        self._conclude()

    def report_missing(self) -> None:
        """Logs the topics that Bybit has accepted and sends nothing of, once each."""
        awaiting = self._subscription.awaiting_snapshot
        if not awaiting or not self._health.first_message_overdue:
            return
        for topic in sorted(awaiting):
            if self._exchange.log_once.first("no snapshot", topic):
                seconds = self._exchange.timeouts.first_message
                log.warning(
                    "%(topic)s: accepted, but no data within %(seconds)g s; is the symbol right?",
                    {"topic": topic.decode(), "seconds": seconds},
                )
        awaiting.clear()

    def on_control(self, message: dict[str, Any]) -> None:
        """A JSON object without a topic."""
        op = message.get("op")
        if message.get("ret_msg") == "pong" or op == "pong":
            return
        if op in ("subscribe", "unsubscribe") or message.get("type") == "COMMAND_RESP":
            self._on_response(message)
        elif self._exchange.log_once.first("control", (str(op), str(message.get("ret_msg")))):
            log.warning("Ignoring (logged once): unknown control message: %(text)s", {"text": shorten(message)})

    def _on_response(self, response: dict[str, Any]) -> None:
        """Bybit's answer to a request."""
        try:
            verdict = self._subscription.receive(response)
        except RequestRefused as refused:
            raise ConnectionLost(f"the subscription was rejected: {shorten(refused)}") from refused
        if verdict is None:
            if self._exchange.log_once.first("unexpected response"):
                log.warning("Ignoring (logged once): unexpected response: %(text)s", {"text": shorten(response)})
            return
        for topics in verdict.retry:
            self._ask(self._subscription.request(topics))
        rejected, now = self._exchange.rejected, monotonic()
        for topic in verdict.rejected:
            if rejected.add(topic, now):
                reason, minutes = shorten(verdict.reason), rejected.first_retry / 60
                log.error(
                    "Bybit rejects %(topic)s: %(reason)s; retrying in %(minutes)g min",
                    {"topic": topic, "reason": reason, "minutes": minutes},
                )
                self._exchange.sink.announce("rejected", self._stream, [topic], reason=reason)
        for topic in verdict.accepted:
            if rejected.forget(topic):
                log.info("Bybit now accepts %(topic)s", {"topic": topic})
        if new := [topic for topic in verdict.accepted if topic not in verdict.renewed]:
            self._exchange.sink.announce("subscribed", self._stream, new)
        if not self._subscription.pending:
            self._settle(now)
            self.advance(now)  # at once: a topic that was unsubscribed is requested again
        self._conclude()

    def _settle(self, now: float) -> None:
        """Bybit has answered all requests."""
        if subscribed := sorted(self._subscription.among(State.SUBSCRIBED)):
            level = logging.DEBUG if self.settled_at else logging.INFO
            log.log(level, "Subscribed to %(topics)s", {"topics": Names(subscribed, FEW)})
            self.settled_at = self.settled_at or now

    def _conclude(self) -> None:
        """Tells of the topics that have left, and counts those that are here."""
        subscription, stats = self._subscription, self._stats
        if left := subscription.take_left():
            self._exchange.sink.announce("unsubscribed", self._stream, left)
        stats.topics = subscription.wanted
        stats.subscribed = len(subscription.carried)
        stats.rejected = len(subscription.among(State.REJECTED))
        stats.answered = stats.answered or not subscription.pending

    def _ask(self, texts: list[str]) -> None:
        for text in texts:
            self._send(text)
            self._health.since_request = 0.0
