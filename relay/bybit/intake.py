"""What comes in on one connection, from its socket to its callbacks."""

from collections.abc import Callable
from time import monotonic, time

from relay.bybit.frames import Closed, FrameReader
from relay.bybit.health import Health
from relay.bybit.repair import Repair
from relay.bybit.sequence import Gap
from relay.bybit.subscription import Subscription
from relay.dispatch import Router
from relay.errors import ConnectionLost
from relay.log import shorten
from relay.stats import Sampler

# Messages delivered between two looks at the ping clock.
PING_CHECK_EVERY = 16


class Intake:
    """A part of one connection. The connection's thread owns it. While the connection is lent, the Reader owns it, and
    calls hand_on() only.

    receive: returns what has come, b"" at the end; raises BlockingIOError if nothing has, OSError.
    holds: whether hand_on() has read something that it did not deliver.
    """

    def __init__(
        self,
        receive: Callable[[], bytes],
        router: Router,
        subscription: Subscription,
        repair: Repair | None,
        health: Health,
        sampler: Sampler,
    ) -> None:
        self._receive, self._router, self._subscription, self._repair = receive, router, subscription, repair
        self._health, self._sampler = health, sampler
        self._frames = FrameReader()
        # What was read and is not delivered yet, and the gaps in it.
        self._messages: list[bytes] = []
        self._gaps: list[tuple[bytes, Gap]] = []
        self.holds = False

    @property
    def is_plain(self) -> bool:
        """Whether nothing but data is expected, which only has to be handed on."""
        return self._router.takes_batches and not (self._subscription.awaiting_snapshot or self._subscription.pending)

    def hand_on(self) -> int | None:
        """Reads once and delivers it, if it is plain data without a gap. Returns how many messages that was, 0 if none
        is complete; None: the connection's thread must call deliver(). Raises what read() does.
        """
        if not self.read():
            return 0
        frames, messages = self._frames, self._messages
        if self._gaps or frames.pings or frames.error or not self._router.deliver_plain(messages):
            self.holds = True
            return None
        if messages:
            self._health.since_message = 0.0
        return len(messages)

    def read(self) -> bool:
        """Reads once. Returns whether there was something. Raises OSError, and ConnectionLost at the end."""
        try:
            data = self._receive()
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionLost("Bybit closed the TCP connection without a close frame")
        self._messages = messages = self._frames.feed(data)
        if self._frames.alive:
            self._health.since_frame = 0.0
        if messages:
            if (arrived := time()) >= self._sampler.due:
                self._sampler.sample(messages[0], arrived)  # the one that has waited longest
            repair = self._repair
            if repair and repair.watches:
                self._gaps = repair.look(messages)
        return True

    def deliver(self, between: Callable[[float], None], answer: Callable[[bytes], None]) -> tuple[int, bool]:
        """Delivers what was read. Returns how many messages that was, and whether there was a gap. Raises
        ConnectionLost after them.

        between: called now and then, with the monotonic time, as a callback may take long. answer: gets the payload of
        each ping.
        """
        self.holds = False
        messages, gaps, self._gaps = self._messages, self._gaps, []
        if self._subscription.awaiting_snapshot or self._subscription.pending:
            self._subscription.seen(messages)
        if messages and self._deliver_around(gaps, messages, between):
            self._health.since_message = 0.0
        for payload in self._frames.pings:
            answer(payload)
        if error := self._frames.error:
            closed = "Bybit closed the connection: " if isinstance(error, Closed) else ""
            raise ConnectionLost(closed + shorten(error))
        return len(messages), bool(gaps)

    def _deliver_around(
        self, gaps: list[tuple[bytes, Gap]], messages: list[bytes], between: Callable[[float], None]
    ) -> int:
        """Delivers messages, each gap reported before the message that follows it. Returns how many were data."""
        data = first = 0
        for message, gap in gaps:
            assert self._repair
            stop = next(index for index in range(first, len(messages)) if messages[index] is message)
            data += self._deliver(messages[first:stop], between)
            self._repair.report(gap)
            first = stop
        return data + self._deliver(messages[first:], between)

    def _deliver(self, messages: list[bytes], between: Callable[[float], None]) -> int:
        if len(messages) <= PING_CHECK_EVERY:
            return self._router.deliver(messages)
        data = 0
        for first in range(0, len(messages), PING_CHECK_EVERY):
            data += self._router.deliver(messages[first : first + PING_CHECK_EVERY])
            between(monotonic())
        return data
