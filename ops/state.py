"""The fields of the state hash, and when they are written. docs/consuming.md has what they mean."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from time import time
from typing import Protocol

from ops import VERSION
from ops.rows import Row
from relay.events import RESERVED_NAME

# Seconds between two states; also those over which a rate is measured at least: states that follow each other faster
# repeat the last rate.
STATE_INTERVAL = RATE_INTERVAL = 1.0
# Channels by which losses are told; what more there are count as one, of this name. There are more only where users
# publish on thousands of their own.
MAX_TOLD, MORE = 100, "more channels"


class Outages(Protocol):
    """Those of Redis. number, seconds: of those that are over."""

    number: int
    seconds: float


class DescribedPublisher(Protocol):
    """What is told of a publisher. lost: the sum of dropped."""

    @property
    def published(self) -> int: ...

    @property
    def lost(self) -> int: ...

    @property
    def dropped(self) -> Counter[str]: ...

    @property
    def outages(self) -> Outages: ...

    @property
    def buffer(self) -> int: ...

    @property
    def buffered_bytes(self) -> int: ...

    def set_state(self, fields: Mapping[str, str]) -> None: ...


class Rates:
    """Messages per second of each stream, measured from one call of update() to the next."""

    def __init__(self, now: float) -> None:
        self._since = now  # monotonic
        self._messages: dict[str, int] = {}  # of each stream at that time
        self._rates: dict[str, float] = {}

    def update(self, entries: Sequence[Row], now: float) -> None:
        """Measures, unless less than RATE_INTERVAL has passed since the last time."""
        elapsed = now - self._since
        if elapsed < RATE_INTERVAL:
            return
        messages = {row.name: row.total.messages for row in entries}
        # A stream that was removed, and came back, begins at 0.
        self._rates = {name: max(0, count - self._messages.get(name, 0)) / elapsed for name, count in messages.items()}
        self._since, self._messages = now, messages

    def of(self, name: str) -> float:
        """Messages per second; 0 for a stream that was not measured yet."""
        return self._rates.get(name, 0.0)


class Losses:
    """Messages lost by channel, those of all symbols together. There may be thousands of channels, so they are added up
    only when there are more losses.

    by_symbol: the channels beside which each symbol has its own.
    """

    def __init__(self, publisher: DescribedPublisher, by_symbol: Collection[str] = ()) -> None:
        self._publisher, self._by_symbol = publisher, frozenset(by_symbol)
        self._lost = 0
        self._found: dict[str, int] = {}

    def by_channel(self) -> dict[str, int]:
        """A new dict whenever there are more."""
        if (lost := self._publisher.lost) != self._lost:
            found: Counter[str] = Counter()
            for channel, messages in self._publisher.dropped.items():
                base = channel.rpartition(":")[0]
                told = base if base in self._by_symbol else channel
                found[told if told in found or len(found) < MAX_TOLD else MORE] += messages
            self._lost, self._found = lost, dict(found)
        return self._found


class State:
    """Writes the state hash of `publisher`. The main thread.

    collector: what is told of the collector as a whole, beside what this class finds itself. now: monotonic.
    """

    def __init__(
        self,
        publisher: DescribedPublisher,
        collector: Callable[[], Mapping[str, object]],
        by_symbol: Collection[str] = (),
    ) -> None:
        self.collector = collector
        self._publisher, self._losses = publisher, Losses(publisher, by_symbol)
        self._started = round(time() * 1000)
        self._rates: Rates | None = None
        self._written_at = 0.0  # monotonic
        self._written: dict[str, tuple[object, ...]] = {}  # what the last state was about

    def push(self, entries: Sequence[Row], is_alive: bool, now: float) -> None:
        """Gives the publisher the fields: regularly, and at once when more than counters changed."""
        notable = {row.name: row.notable() for row in entries}
        collector = self.collector()
        notable[RESERVED_NAME] = (is_alive, *(collector.get(name) for name in ("role", "term", "ready")))
        if notable == self._written and now - self._written_at < STATE_INTERVAL:
            return
        self._written, self._written_at = notable, now
        rates = self._rates = self._rates or Rates(now)
        rates.update(entries, now)
        timestamp = round(time() * 1000)
        fields = {row.name: row.fields(rates.of(row.name), now, timestamp) for row in entries}
        fields[RESERVED_NAME] = {**collector, **self._figures(), "alive": is_alive, "ts": timestamp}
        self._publisher.set_state({name: json.dumps(values) for name, values in fields.items()})

    def _figures(self) -> dict[str, object]:
        publisher = self._publisher
        outages, size = publisher.outages, publisher.buffered_bytes
        return {
            "version": VERSION,
            "started": self._started,
            "interval": STATE_INTERVAL,
            "published": publisher.published,
            "dropped": self._losses.by_channel(),
            "outages": outages.number,
            "outage_seconds": round(outages.seconds, 3),
            "backlog_bytes": size,
            "buffer_bytes": publisher.buffer,
            "buffer_share": round(min(1.0, size / publisher.buffer), 4),
        }
