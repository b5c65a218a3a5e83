"""The log lines about Redis: outages, overflows of the buffer, rejected messages.

Used by the publisher's thread, and by stop() after it.
"""

import logging
from collections import Counter
from time import monotonic

from relay.log import LogOnce, shorten
from relay.redis.pipeline import Pipeline
from relay.redis.role import Role

log = logging.getLogger(__name__)

# Channels that are named in the log for one reason: where each symbol has its own there are thousands.
MAX_NAMED = 8
MAX_REASONS = 20  # that are logged for one outage
# Seconds without a rejected message, or after the last line, until the number of those rejected is logged.
QUIET, EVERY = 2.0, 60.0


def counts_of(messages: Counter[str]) -> str:
    """Messages by channel, for a line of the log."""
    named, more = sorted(messages.most_common(MAX_NAMED)), len(messages) - MAX_NAMED
    rest = f", and on {more:,} more channels; {messages.total():,} in all" if more > 0 else ""
    return ", ".join(f"{shorten(channel)} {number:,}" for channel, number in named) + rest


def reason_of(error: Exception, address: str) -> str:
    """Why, for a sentence that names the address: redis-py's own names it, too, and ends in a full stop."""
    text = shorten(error).removesuffix(".") or type(error).__name__
    return text.replace(f" connecting to {address}. ", ": ")


class RejectedLog:
    """Logs how many messages Redis has rejected, when there were more, and now none for some seconds."""

    def __init__(self) -> None:
        self._seen = self._logged = 0  # messages
        self._seen_at = self._logged_at = monotonic()

    def update(self, rejected: Counter[str]) -> None:
        """Takes the messages that were rejected since the start, by channel."""
        now = monotonic()
        if rejected.total() != self._seen:
            self._seen, self._seen_at = rejected.total(), now
        if self._seen == self._logged:
            self._logged_at = now
        elif now - self._seen_at >= QUIET or now - self._logged_at >= EVERY:
            self._logged, self._logged_at = self._seen, now
            log.warning("Redis has rejected messages since the start, which are lost: %s", counts_of(rejected))


class RedisLog:
    """Logs each outage, overflow and kind of rejection once, and its end.

    connected: whether the present connection has proved to work. address: where it goes, for people.
    """

    def __init__(self, address: str, pipeline: Pipeline, role: Role) -> None:
        self.connected = False
        self.address, self._pipeline, self._role = address, pipeline, role
        self._lost_at: float | None = None  # monotonic time of the beginning of the outage
        self._reasons: set[str] = set()  # that were logged for it
        self._rejections: Counter[str] = Counter()  # that were logged, by the beginning of the reason
        self._rejected = RejectedLog()
        self._log_once = LogOnce()
        self._overflow_since: float | None = None  # monotonic time at which the overflow was noticed
        self._overflowed_before: Counter[str] = Counter()  # by channel, before it
        self._pending_overflowed = 0  # that were noticed
        self._pending_is_full = False  # whether that line was logged since the last time of leading
        self._doubt = self._doubted = ""  # why what Redis confirms is kept, and the sentence of the log

    def lost(self, error: Exception) -> bool:
        """The connection broke or did not come up. One line for an outage, and one for each further reason. Returns
        whether the reason is worth a traceback: the first time only, as outages may follow each other for ever.
        """
        was_connected, self.connected = self.connected, False
        reason = reason_of(error, self.address)
        if self._lost_at is None:
            self._lost_at = monotonic()
            self._reasons = {reason}
            if self._role.leading:
                log.error("Lost Redis at %s: %s; buffering", self.address, reason)
            elif not was_connected:
                log.error("Cannot reach Redis at %s: %s; buffering", self.address, reason)
            else:  # a new leader cuts the connections of all others
                log.info("Lost Redis at %s while standing by: %s", self.address, reason)
        elif reason not in self._reasons and len(self._reasons) < MAX_REASONS:
            self._reasons.add(reason)
            log.warning("Redis at %s is still unavailable: %s", self.address, reason)
        return self._log_once.first("reason", reason)

    def back(self, buffered: int) -> float | None:
        """The connection works. Returns the seconds of the outage, None if there was none."""
        self.connected = True
        if self._lost_at is None:
            log.info("Publishing to Redis at %s", self.address)
            return None
        seconds, self._lost_at = monotonic() - self._lost_at, None
        log.warning("Redis at %s is back after %.1f s; sending %d buffered messages", self.address, seconds, buffered)
        return seconds

    def sends_again(self, number: int) -> None:
        """Another Redis than before gets what that one had confirmed, if it was anything."""
        if number:
            log.warning(
                "Redis at %s is another one than before: sending %d confirmed messages again", self.address, number
            )

    def doubts(self, reason: str) -> None:
        """Why what this Redis confirms is kept, "" = it is not."""
        if reason == self._doubt:
            return
        self._doubt = reason
        if reason:
            self._doubted = f"Redis at {self.address} may be the wrong one: {reason}"
            log.warning("%s; keeping what it confirms", self._doubted)
        else:
            log.info("Over: %s", self._doubted)

    def stands_by(self) -> None:
        """The connection of a standby works."""
        self.connected, self._lost_at = True, None
        log.info("Standing by, connected to Redis at %s", self.address)

    def update(self) -> None:
        """Logs what was rejected, and whether the buffer overflows, since the last call."""
        rejections = self._pipeline.rejections
        while rejections:  # only this thread takes them out, others append
            rejected = rejections.popleft()
            kind = rejected.reason[:12]
            self._rejections[kind] += 1
            if self._rejections[kind] > MAX_NAMED:
                continue
            log.error(
                "Redis rejects a message of %d bytes for %s: %s. Dropped (later ones are only counted). It begins: %s",
                rejected.size,
                shorten(rejected.channel),
                shorten(rejected.reason),
                shorten(rejected.text),
            )
            if self._rejections[kind] == MAX_NAMED:
                log.error("Rejections like these on other channels are only counted: %s", shorten(rejected.reason))
        self._rejected.update(self._pipeline.rejected.copy())
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
        log.warning("The Redis buffer overflowed for %.1f s; dropped: %s", seconds, counts_of(dropped))
