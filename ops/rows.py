"""What the connections of an entry of STREAMS have done, as one row: for the log and for the state hash."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from relay.stats import StreamStats, percentile, recent, stream_of

# Seconds that a thread may be overdue before it counts as stuck.
WATCHDOG_TIMEOUT = 60.0
# What is added up over the connections of an entry.
COUNTERS = (
    "messages",
    "connections",
    "reconnects",
    "subscribed",
    "rejected",
    "gaps",
    "callback_failures",
    "ignored",
)


@dataclass(frozen=True)
class Row:
    """An entry of STREAMS, which is what people call a stream.

    connections: those that it has now. total: the counters of these, and of those that it had before.
    up: whether all that should carry data do; None: unknown (a function of the user's own that uses no Connection), or
    there is nothing to carry. wanted: topics; None: not known.
    """

    name: str
    connections: tuple[StreamStats, ...]
    total: StreamStats
    up: bool | None
    wanted: int | None

    @property
    def awaited(self) -> bool:
        """Whether Bybit has not yet answered for all of it, or it still waits for the list of instruments."""
        return any(stats.watched and (stats.waits or not stats.answered) for stats in self.connections) or (
            not self.connections and self.wanted is None
        )

    def notable(self) -> tuple[object, ...]:
        """What is worth a new state at once when it changes."""
        total = self.total
        first_message = total.last_message is not None
        counters = (total.subscribed, total.connections, total.rejected, total.callback_failures)
        return (self.up, self.wanted, self.awaited, first_message, *counters)

    def fields(self, rate: float, now: float, timestamp: int) -> dict[str, object]:
        """Its field of the state hash. rate: messages per second; now: monotonic; timestamp: in milliseconds.

        `age` and the delays are in seconds: since the last message; from a message's `ts` to its arrival, of the last
        WINDOW seconds.
        """
        # A list of each deque is one call in C: the thread of the connection cannot append in the middle of it.
        delays = recent([slot for stats in self.connections for slot in list(stats.delays)], now)
        p50, p99 = percentile(delays, 0.50), percentile(delays, 0.99)
        total = self.total
        return {
            "up": self.up,
            "topics": total.subscribed,
            "wanted": self.wanted,
            "waits": any(stats.waits for stats in self.connections),
            "rejected": total.rejected,
            "messages": total.messages,
            "rate": round(rate, 1),
            "connections": total.connections,
            "reconnects": total.reconnects,
            "age": None if total.last_message is None else round(max(0.0, now - total.last_message), 3),
            "delay_p50": None if p50 is None else round(p50, 4),
            "delay_p99": None if p99 is None else round(p99, 4),
            "gaps": total.gaps,
            "callback_failures": total.callback_failures,
            "ignored": total.ignored,
            "ts": timestamp,
        }

    def log_line(self, rate: float, now: float) -> str:
        """Its counters for the log. Counters that should stay 0 are left out while they do."""
        total = self.total
        age = "none yet" if total.last_message is None else f"the last {max(0.0, now - total.last_message):.1f} s ago"
        parts = [
            f"{total.messages:,} messages, {rate:,.1f}/s, {age}",
            f"{count(total.connections, 'connection')} so far",
        ]
        for number, noun in (
            (total.rejected, "rejected topic"),
            (total.gaps, "sequence gap"),
            (total.callback_failures, "callback failure"),
            (total.ignored, "ignored message"),
        ):
            parts += [count(number, noun)] * bool(number)
        return "; ".join(parts)


def rows(
    streams: Mapping[str, StreamStats], wanted: Mapping[str, int | None], retired: Mapping[str, StreamStats], now: float
) -> list[Row]:
    """A row for each entry. streams: what each connection has done. wanted: the topics that each should have. retired:
    what connections had done that are no more, by the name of their entry. now: monotonic.
    """
    names: dict[str, list[str]] = {}  # of connections, by entry
    for name in dict.fromkeys(chain(streams, wanted)):
        names.setdefault(stream_of(name), []).append(name)
    return [_row(entry, found, streams, wanted, retired.get(entry), now) for entry, found in names.items()]


def _row(
    entry: str,
    names: Iterable[str],
    streams: Mapping[str, StreamStats],
    wanted: Mapping[str, int | None],
    retired: StreamStats | None,
    now: float,
) -> Row:
    found = {name: streams[name] for name in names if name in streams}
    asked = [number for name in names if (number := wanted.get(name)) is not None]
    ups = [up for name, stats in found.items() if wanted.get(name) != 0 and (up := is_up(stats, now)) is not None]
    waits = not found and not asked
    return Row(
        name=entry,
        connections=tuple(found.values()),
        total=add([*found.values(), *([retired] if retired else [])]),
        up=False if waits else all(ups) if ups else None,
        wanted=sum(asked) if asked else None,
    )


def add(parts: Iterable[StreamStats]) -> StreamStats:
    """The sum of what connections have done, and the latest of their messages."""
    total = StreamStats()
    for stats in parts:
        for name in COUNTERS:
            setattr(total, name, getattr(total, name) + getattr(stats, name))
        total.last_message = max(filter(None, (total.last_message, stats.last_message)), default=None)
    return total


def retire(before: StreamStats | None, stats: StreamStats) -> StreamStats:
    """What a connection has done that is no more, added to what earlier ones had. It carries nothing."""
    total = add([before, stats] if before else [stats])
    total.subscribed = total.rejected = 0
    return total


def is_stuck(heartbeat_due: float, now: float) -> bool:
    """Whether a thread is so late that something holds it."""
    return heartbeat_due + WATCHDOG_TIMEOUT <= now


def is_up(stats: StreamStats, now: float) -> bool | None:
    """Whether messages can come. None: unknown, a function of the user's own that uses no Connection."""
    if not stats.watched and not stats.connections:
        return None
    return stats.subscribed > 0 and not is_stuck(stats.heartbeat_due, now)


def count(number: int, noun: str) -> str:
    """A number of things, for people."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
