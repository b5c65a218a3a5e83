"""The log lines about Redis: outages, overflows of the buffer, rejected messages.

Used by the publisher's thread, and by stop() after it.
"""

import logging
from collections import Counter
from time import monotonic

from relay.redis.pipeline import Pipeline
from relay.redis.role import Role

log = logging.getLogger(__name__)


class RedisLog:
    """Logs each outage, overflow and kind of rejection once, and its end.

    connected: whether the present connection has proved to work.
    """

    def __init__(self, address: str, pipeline: Pipeline, role: Role) -> None:
        self.connected = False
        self._address, self._pipeline, self._role = address, pipeline, role
        self._lost_at: float | None = None  # monotonic time of the beginning of the outage
        self._reasons: set[str] = set()  # that were logged for it
        self._overflow_since: float | None = None  # monotonic time at which the overflow was noticed
        self._overflowed_before: Counter[str] = Counter()  # by channel, before it
        self._pending_overflowed = 0  # that were noticed
        self._pending_is_full = False  # whether that line was logged since the last time of leading

    def lost(self, error: Exception) -> bool:
        """The connection broke or did not come up. One line for an outage, and one for each further reason; returns
        whether there was one.
        """
        was_connected, self.connected = self.connected, False
        reason = str(error) or type(error).__name__
        if self._lost_at is None:
            self._lost_at = monotonic()
            self._reasons = {reason}
            if self._role.leading:
                log.error("Lost Redis at %s: %s; buffering", self._address, reason)
            elif not was_connected:
                log.error("Cannot reach Redis at %s: %s; buffering", self._address, reason)
            else:  # a new leader cuts the connections of all others
                log.info("Lost Redis at %s while standing by: %s", self._address, reason)
        elif reason not in self._reasons:
            self._reasons.add(reason)
            log.warning("Redis at %s is still unavailable: %s", self._address, reason)
        else:
            return False
        return True

    def back(self, buffered: int) -> float | None:
        """The connection works. Returns the seconds of the outage, None if there was none."""
        self.connected = True
        if self._lost_at is None:
            log.info("Publishing to Redis at %s", self._address)
            return None
        seconds, self._lost_at = monotonic() - self._lost_at, None
        log.warning("Redis at %s is back after %.1f s; sending %d buffered messages", self._address, seconds, buffered)
        return seconds

    def stands_by(self) -> None:
        """The connection of a standby works."""
        self.connected, self._lost_at = True, None
        log.info("Standing by, connected to Redis at %s", self._address)

    def update(self) -> None:
        """Logs what was rejected, and whether the buffer overflows, since the last call."""
        rejections = self._pipeline.rejections
        while rejections:  # only this thread takes them out, others append
            rejected = rejections.popleft()
            log.error(
                "Redis rejects a message of %d bytes for %s: %s. Dropped (later ones are only counted). It begins: %s",
                rejected.size,
                rejected.channel,
                rejected.reason,
                rejected.text,
            )
        backlog = self._pipeline.backlog
        if self._overflow_since is None and backlog.overflowed.total() > self._overflowed_before.total():
            self._overflow_since = monotonic()
            log.error("The Redis buffer is full (%d MiB); dropping the oldest messages", backlog.limit >> 20)
        if not backlog.waiting_bytes:
            self.end_overflow()
        pending = backlog.pending
        if pending is None:
            return
        if self._role.leading:
            self._pending_is_full = False
        elif pending.overflowed > self._pending_overflowed and not self._pending_is_full:
            self._pending_is_full = True
            log.warning(
                "The buffer of this standby is full (%d MiB); dropping the oldest messages", pending.limit >> 20
            )
        self._pending_overflowed = pending.overflowed

    def end_overflow(self) -> None:
        """Logs what the overflow cost, if there is one: the buffer is empty again, or nothing more can be done."""
        if self._overflow_since is None:
            return
        seconds, self._overflow_since = monotonic() - self._overflow_since, None
        overflowed = self._pipeline.backlog.overflowed_by_channel()
        dropped, self._overflowed_before = overflowed - self._overflowed_before, overflowed
        counts = ", ".join(f"{channel} {number:,}" for channel, number in sorted(dropped.items()))
        log.warning("The Redis buffer overflowed for %.1f s; dropped: %s", seconds, counts)
