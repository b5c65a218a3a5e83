"""How long a stream waits before its next connection."""

import random

STABLE_AFTER = 10.0  # seconds; a connection that was up for so long is followed by one after exactly the delay


class Backoff:
    """Exactly `delay` seconds after a stable connection; after others twice as long each time, up to `maximum`."""

    def __init__(self, delay: float, maximum: float, stable_after: float = STABLE_AFTER) -> None:
        self._delay = self._next = delay
        self._maximum, self._stable_after = maximum, stable_after

    def after(self, uptime: float) -> float:
        """Seconds to wait after a connection that was up for `uptime` seconds."""
        if uptime >= self._stable_after:
            self._next = self._delay
            return self._delay
        self._next = min(self._next * 2, self._maximum)
        return self._next * random.uniform(0.75, 1)  # jitter: streams that failed together do not return together
