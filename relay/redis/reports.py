"""The log lines about Redis: outages, overflows of the buffer, rejected messages.

Used by the publisher's thread, and by stop() after it.
"""

import logging
from collections import Counter
from time import monotonic

from relay.log import LogOnce, shorten
from relay.redis.login import REMEDY, is_denied
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


def place_of(error: Exception) -> tuple[type[Exception], str, int]:
    """What makes two errors the same mistake, whatever their text: the kind, and the line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error), trace.tb_frame.f_code.co_filename if trace else "", trace.tb_lineno if trace else 0


class Rise:
    """A number that rises now and then: it is worth a line when it has risen, and now has not for some seconds."""

    def __init__(self) -> None:
        self._seen = self._logged = 0
        self._seen_at = self._logged_at = monotonic()

    def take(self, number: int) -> int:
        """How much it has risen since the last line, if it is time for one, else 0."""
        now = monotonic()
        if number != self._seen:
            self._seen, self._seen_at = number, now
        risen = self._seen - self._logged
        if not risen:
            self._logged_at = now
        elif now - self._seen_at >= QUIET or now - self._logged_at >= EVERY:
            self._logged, self._logged_at = self._seen, now
            return risen
        return 0


class RejectedLog:
    """Logs how many messages Redis has rejected, and how many confirmed ones the buffer had no room to keep."""

    def __init__(self) -> None:
        self._rejected, self._squeezed_out = Rise(), Rise()

    def update(self, rejected: Counter[str], squeezed_out: int) -> None:
        """Takes both numbers since the start, the first by channel."""
        if number := self._squeezed_out.take(squeezed_out):
            log.warning(
                "The buffer had no room to keep %(messages)d messages that Redis has confirmed, in case it fails over",
                {"messages": number},
            )
        if self._rejected.take(rejected.total()):
            log.warning(
                "Redis has rejected messages since the start, which are lost: %(counts)s",
                {"counts": counts_of(rejected), "messages": rejected.total()},
            )


class Outages:
    """number, seconds: of the outages that are over. Any thread reads them. since: monotonic time of the beginning of
    the present one, None = there is none.
    """

    def __init__(self) -> None:
        self.number, self.seconds = 0, 0.0
        self.since: float | None = None

    def end(self, now: float) -> float:
        """The present one is over. Returns its seconds."""
        seconds, self.since = now - (now if self.since is None else self.since), None
        self.number, self.seconds = self.number + 1, self.seconds + seconds
        return seconds


class RedisLog:
    """Logs each outage, overflow and kind of rejection once, and its end.

    connected: whether the present connection has proved to work. address: where it goes, for people. outages: those of
    a leader; when a standby loses its connection, nothing is delayed.
    """

    def __init__(self, address: str, pipeline: Pipeline, role: Role) -> None:
        self.connected = False
        self.address, self._pipeline, self._role = address, pipeline, role
        self.outages = Outages()
        self._reasons: set[str] = set()  # that were logged for it
        self._rejections: Counter[str] = Counter()  # that were logged, by the beginning of the reason
        self._rejected = RejectedLog()
        self._log_once = LogOnce()
        self._overflow_since: float | None = None  # monotonic time at which the overflow was noticed
        self._overflowed_before: Counter[str] = Counter()  # by channel, before it
        self._pending_overflowed = 0  # that were noticed
        self._pending_is_full = False  # whether that line was logged since the last time of leading
        self._doubt = ""  # why what Redis confirms is kept
        self._doubted = {"address": "", "reason": ""}  # what the log was told of it last

    def lost(self, error: Exception) -> bool:
        """The connection broke or did not come up. One line for an outage, and one for each further reason. Returns
        whether the reason is worth a traceback: the first time only, as outages may follow each other for ever.
        """
        was_connected, self.connected = self.connected, False
        reason = reason_of(error, self.address) + (f" ({REMEDY})" if is_denied(error) else "")
        fields = {"address": self.address, "reason": reason}
        if self.outages.since is None:
            self.outages.since = monotonic()
            self._reasons = {reason}
            if not was_connected:
                log.error("Cannot reach Redis at %(address)s: %(reason)s; buffering", fields)
            elif self._role.leading:
                log.error("Lost Redis at %(address)s: %(reason)s; buffering", fields)
            else:  # a new leader cuts the connections of all others
                log.info("Lost Redis at %(address)s while standing by: %(reason)s", fields)
        elif reason not in self._reasons and len(self._reasons) < MAX_REASONS:
            self._reasons.add(reason)
            log.warning("Redis at %(address)s is still unavailable: %(reason)s", fields)
        return self._log_once.first("reason", place_of(error))

    def back(self, buffered: int) -> float | None:
        """The connection works. Returns the seconds of the outage, None if there was none."""
        self.connected = True
        if self.outages.since is None:
            log.info("Publishing to Redis at %(address)s", {"address": self.address})
            return None
        seconds = self.outages.end(monotonic())
        log.warning(
            "Redis at %(address)s is back after %(outage_seconds).1f s; sending %(buffered)d buffered messages",
            {"address": self.address, "outage_seconds": seconds, "buffered": buffered},
        )
        return seconds

    def sends_again(self, number: int) -> None:
        """Another Redis than before gets what that one had confirmed, if it was anything."""
        if number:
            log.warning(
                "Redis at %(address)s is another one than before: sending %(messages)d confirmed messages again",
                {"address": self.address, "messages": number},
            )

    def doubts(self, reason: str) -> None:
        """Why what this Redis confirms is kept, "" = it is not."""
        if reason == self._doubt:
            return
        self._doubt = reason
        if reason:
            self._doubted = {"address": self.address, "reason": reason}
            log.warning(
                "Redis at %(address)s may be the wrong one: %(reason)s; keeping what it confirms", self._doubted
            )
        else:
            log.info("Over: Redis at %(address)s may be the wrong one: %(reason)s", self._doubted)

    def stands_by(self) -> None:
        """The connection of a standby works."""
        self.connected, self.outages.since = True, None
        log.info("Standing by, connected to Redis at %(address)s", {"address": self.address})

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
                "Redis rejects a message of %(bytes)d bytes for %(channel)s: %(reason)s. Dropped (later ones are only "
                "counted). It begins: %(text)s",
                {
                    "bytes": rejected.size,
                    "channel": shorten(rejected.channel),
                    "reason": shorten(rejected.reason),
                    "text": shorten(rejected.text),
                },
            )
            if self._rejections[kind] == MAX_NAMED:
                log.error(
                    "Rejections like these on other channels are only counted: %(reason)s",
                    {"reason": shorten(rejected.reason)},
                )
        self._rejected.update(self._pipeline.rejected.copy(), self._pipeline.squeezed_out)
        backlog = self._pipeline.backlog
        if self._overflow_since is None and backlog.overflowed.total() > self._overflowed_before.total():
            self._overflow_since = monotonic()
            log.error(
                "The Redis buffer is full (%(limit_mib)d MiB); dropping the oldest messages",
                {"limit_mib": backlog.limit >> 20},
            )
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
                "The buffer of this standby is full (%(limit_mib)d MiB); dropping the oldest messages",
                {"limit_mib": pending.limit >> 20},
            )
        self._pending_overflowed = pending.overflowed

    def end_overflow(self) -> None:
        """Logs what the overflow cost, if there is one: the buffer is empty again, or nothing more can be done."""
        if self._overflow_since is None:
            return
        seconds, self._overflow_since = monotonic() - self._overflow_since, None
        overflowed = self._pipeline.backlog.overflowed_by_channel()
        dropped, self._overflowed_before = overflowed - self._overflowed_before, overflowed
        log.warning(
            "The Redis buffer overflowed for %(seconds).1f s; dropped: %(counts)s",
            {"seconds": seconds, "counts": counts_of(dropped), "messages": dropped.total()},
        )
