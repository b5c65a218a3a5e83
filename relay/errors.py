"""How a connection to Bybit ends."""


class ConnectionLost(Exception):
    """A connection ended or did not come up. `uptime`: seconds since Bybit had answered for all topics, 0 = never."""

    def __init__(self, reason: str, uptime: float = 0.0) -> None:
        super().__init__(reason)
        self.uptime = uptime


class Stalled(ConnectionLost):
    """No data arrives, though pings are answered."""


class InvalidStream(Exception):
    """What a stream asks for is not possible, now or later: retrying will not help."""
