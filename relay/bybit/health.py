"""The clocks of one connection. Reads no clock and knows no socket: its connection's thread passes time in."""

from dataclasses import dataclass

from relay.errors import ConnectionLost, Stalled


@dataclass(frozen=True)
class Timeouts:
    """Seconds."""

    # Name resolution, TCP, TLS and handshake together. A first name server that is down costs 5 s of them each time.
    connect: float = 12.0
    # Each of these by itself, except name resolution, which cannot be bounded. Enough for two lost packets of TCP's
    # handshake, sent again after 1 and 3 s; and short, for an exchange that accepts and says nothing until it is back.
    connect_step: float = 4.0
    ping_interval: float = 20.0  # as https://bybit-exchange.github.io/docs/v5/ws/connect recommends
    silence: float = 30.0  # without a single whole frame, pongs included
    acknowledgement: float = 12.0  # for Bybit's answer to a subscription
    first_message: float = 30.0  # for the first snapshot after a subscription; later the topic is reported
    timer: float = 1.0  # between two checks of these clocks


class Health:
    """Decides whether a connection is to be given up.

    Counts only time in which the thread watched the socket: neither a slow callback nor a suspended machine is an
    outage of the network.
    stall_timeout: seconds without data after which a subscribed connection is given up, 0 = never.
    """

    def __init__(self, timeouts: Timeouts, stall_timeout: float) -> None:
        self._timeouts, self._stall_timeout = timeouts, stall_timeout
        # Watched seconds since each of these; the owner sets one to 0 when it happens.
        self.since_frame = self.since_message = self.since_request = 0.0

    def advance(self, elapsed: float, *, awaiting_acknowledgement: bool, subscribed: bool) -> float:
        """Adds the seconds since the last call. Returns those of them in which the socket was watched. Raises
        ConnectionLost, or its kind Stalled, if the connection is to be given up.
        """
        timeouts = self._timeouts
        watched = min(elapsed, 2 * timeouts.timer)  # a call is due every `timer`: what is far beyond was not watched
        self.since_frame += watched
        self.since_request += watched
        # While nothing is subscribed, no data is due.
        self.since_message = self.since_message + watched if subscribed else 0.0
        if self.since_frame >= timeouts.silence:
            raise ConnectionLost(f"nothing received for {timeouts.silence:g} s, not even a pong")
        if awaiting_acknowledgement and self.since_request >= timeouts.acknowledgement:
            raise ConnectionLost(f"a subscription was not acknowledged within {timeouts.acknowledgement:g} s")
        if self._stall_timeout and subscribed and self.since_message >= self._stall_timeout:
            raise Stalled(f"no data for {self._stall_timeout:g} s, though pings are answered")
        return watched

    @property
    def first_message_overdue(self) -> bool:
        """Whether a topic of the latest request should have sent its snapshot by now."""
        return self.since_request >= self._timeouts.first_message
