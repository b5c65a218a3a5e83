"""Finds the message that breaks connections to Redis. Pure. The holder of the link's lock owns it."""

# Failed connections after which the one message in flight is held for the cause, and dropped. They take 7 s: a link
# that is cut again and again for some seconds breaks several in a row just when the same message is sent.
MAX_DELIVERY_ATTEMPTS = 10


class PoisonDetector:
    """Finds the message that breaks connections.

    When two connections in a row break with the same message as the first in flight, all that was in flight is sent one
    by one. A message that is alone in flight when MAX_DELIVERY_ATTEMPTS connections in a row broke is poison.
    """

    def __init__(self) -> None:
        self.one_by_one = 0  # messages still to be sent one by one
        self._suspect: bytes | None = None
        self._failures = 0  # connections that broke in a row with _suspect as the first message in flight

    def connection_broke(self, in_flight: list[bytes]) -> bool:
        """Returns whether the only message of `in_flight` is poison. `in_flight` is not empty."""
        first = in_flight[0]
        self._failures = self._failures + 1 if first is self._suspect else 1
        self._suspect = first
        if self._failures >= MAX_DELIVERY_ATTEMPTS and len(in_flight) == 1:
            self._suspect = None
            return True
        if self._failures > 1:
            self.one_by_one = len(in_flight)
        return False
