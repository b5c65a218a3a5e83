"""What a stream has done, and what its messages tell of delay and sequence gaps. Reads no clock, never logs."""

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

SAMPLES_PER_SECOND = 2000  # messages of a connection; all of them at ordinary rates, a part when it is busy


@dataclass
class StreamStats:
    """What a stream has done since the program started.

    Written by the stream's thread, read by any: each field is one value that Python replaces at once. Made where the
    stream is made, never by a reader.
    """

    messages: int = 0
    connections: int = 0
    last_message: float | None = None  # monotonic time
    subscribed: int = 0  # topics, now
    rejected: int = 0  # topics, now
    answered: bool = False  # Bybit has answered for all topics at least once
    gaps: int = 0  # sampled order-book deltas whose `u` did not rise by one
    callback_failures: int = 0  # messages that a callback did not take
    ignored: int = 0  # messages that no callback could take: not a JSON object, or an unknown topic
    watched: bool = True  # False: a function of the user's own, whose state is unknown unless it uses a Connection
    delays: deque[float] = field(default_factory=lambda: deque(maxlen=1000))  # seconds from `ts` to arrival, the latest
    heartbeat_due: float = math.inf  # monotonic time by which its thread runs again; inf = not watched


class Gap(NamedTuple):
    """A jump of `u`: messages of the topic are missing, an order book built from it is wrong."""

    topic: str
    before: int
    after: int


class Sampler:
    """Reads the few bytes of a message that tell its delay and, of an order-book delta, whether one is missing.

    One for each connection: after a reconnect a book begins anew. Its connection's thread owns it.
    """

    def __init__(self, stats: StreamStats) -> None:
        self._delays, self._stats = stats.delays, stats
        self.budget = SAMPLES_PER_SECOND  # messages that may still be sampled in this second
        self._updates: dict[bytes, int] = {}  # the last `u` of each order book, as long as all messages are sampled

    def refill(self) -> None:
        """To be called once a second."""
        if self.budget <= 0:
            self._updates.clear()  # messages went by without a look
        self.budget = SAMPLES_PER_SECOND

    def sample(self, messages: Sequence[bytes], arrived: float) -> list[Gap]:
        """Samples what has arrived at `arrived` (seconds since the epoch). Returns the gaps.

        To be called while `budget` is above 0.
        """
        gaps: list[Gap] = []
        self.budget -= len(messages)
        updates = self._updates
        for message in messages:
            try:
                at = message.index(b'"ts":') + 5
                self._delays.append(arrived - int(message[at : at + 13]) / 1000)
                if not message.startswith(b'{"topic":"orderbook.'):
                    continue
                topic = message[10 : message.index(b'"', 10)]
                at = message.rindex(b'"u":') + 4
                update = int(message[at : message.index(b",", at)])
            except ValueError:
                continue  # a message of another form
            before = updates.get(topic, update - 1)
            updates[topic] = update
            # u = 1 is a snapshot after a restart of Bybit's service; other snapshots may jump too.
            if update not in (before + 1, 1) and b'"type":"delta"' in message[:100]:
                gaps.append(Gap(topic.decode(errors="replace"), before, update))
        self._stats.gaps += len(gaps)
        return gaps


def percentile(values: Collection[float], share: float) -> float | None:
    """The smallest of `values` that at least `share` (0 to 1) of them do not exceed. None: there are no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]
