"""When the process may start another connection to Bybit. Reads no clock.

A token bucket keeps Bybit's limit. A circuit breaker lets one stream try for all while no connection comes up: so an
outage may last for any time, and when it ends nobody waits long.
"""

import math
from threading import Lock

# Seconds between two attempts of the whole process while none succeeds: 200 in 300 s, so that two collectors at one
# address stay under the 500 that Bybit allows it.
PROBE_EVERY = 1.5
# The same while Bybit refuses this address: it asks those it has banned to wait.
REFUSED_EVERY = 6.0


class Pacer:
    """Threads share it. `burst` connections at once, then `rate` a second: at most burst + rate * T in any T seconds.

    failing: whether the latest attempt brought no WebSocket. A plain value; any thread may read it.
    """

    def __init__(self, burst: int, rate: float, probe_every: float = PROBE_EVERY) -> None:
        self.burst, self.rate, self.failing = burst, rate, False
        self._probe_every = self._pause = probe_every  # the second: until the next attempt, while `failing`
        self._lock = Lock()  # guards all below, and `failing`: two threads never take the same place
        self._tokens, self._filled_at = float(burst), -math.inf
        self._started_at = self._opened_at = -math.inf

    def reserve(self, now: float) -> float:
        """Takes a place for a connection that starts now and returns 0, or returns the seconds until one may be free.
        It may be free sooner: when another connection comes up.
        """
        with self._lock:
            self._tokens = min(self.burst, self._tokens + self.rate * max(0.0, now - self._filled_at))
            self._filled_at = max(now, self._filled_at)
            missing = 1 - self._tokens
            pause = missing / self.rate if missing > 0 else 0.0
            if self.failing:
                pause = max(pause, self._started_at + self._pause - now)
            if pause <= 0:
                self._tokens -= 1
                self._started_at = now
            return max(0.0, pause)

    def opened(self, now: float) -> None:
        """A WebSocket has been opened."""
        with self._lock:
            self.failing, self._opened_at = False, now

    def failed(self, started: float, refused: bool = False) -> None:
        """An attempt of that time has failed. If another one has succeeded since, it says nothing of the present.

        refused: Bybit has answered that it does not want this address.
        """
        with self._lock:
            self.failing = self.failing or started >= self._opened_at
            self._pause = REFUSED_EVERY if refused else self._probe_every
