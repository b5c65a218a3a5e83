"""What a stream has done, and what its messages tell of delay. Reads no clock, never logs."""

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain

SAMPLE_EVERY = 0.01  # seconds: of what arrives within them, one message of a connection is sampled
# Seconds: delays of the last WINDOW are told, in slots of SLOT. So a pause is forgotten after WINDOW at any rate.
WINDOW, SLOT = 10.0, 1.0
SLOTS = 20  # that are kept: more than WINDOW has, as each new connection begins one

# The monotonic time at which a slot began, and the delays of the messages that came in it, in seconds.
Slot = tuple[float, list[float]]


def stream_of(name: str) -> str:
    """The entry of STREAMS that a connection belongs to, by the name of the connection: "Trades" is the first of the
    entry "Trades", "Trades#2" is another.
    """
    return name.partition("#")[0]


@dataclass
class StreamStats:
    """What a connection of a stream has done since the program started, in all its lives.

    Written by the thread that owns the connection, read by any: each field is one value that Python replaces at once.
    Made where the stream is made, never by a reader.
    """

    messages: int = 0
    connections: int = 0
    reconnects: int = 0  # of these, those after the first of each connection of an entry
    last_message: float | None = None  # monotonic time
    topics: int = 0  # wanted, now; those being unsubscribed are not among them
    subscribed: int = 0  # of these, now
    rejected: int = 0  # of these, now
    answered: bool = False  # Bybit has answered for all topics at least once, or there were none
    # Some of its topics are not known yet: Bybit's list of instruments has not been read. Written by the main thread.
    waits: bool = False
    gaps: int = 0  # order-book deltas whose `u` did not rise by one
    callback_failures: int = 0  # messages that a callback did not take
    ignored: int = 0  # messages that no callback could take: not a JSON object, or an unknown topic
    dropped: bool = False  # it is not to run again. Written by the main thread
    watched: bool = True  # False: a function of the user's own, whose state is unknown unless it uses a Connection
    delays: deque[Slot] = field(default_factory=lambda: deque(maxlen=SLOTS))  # from `ts` to arrival
    heartbeat_due: float = math.inf  # monotonic time by which its thread runs again; inf = not watched


class Sampler:
    """Measures the delays of messages, one in SAMPLE_EVERY: evenly over time, however many there are. Whoever reads the
    connection owns it.

    due: the wall-clock time from which on the next message is to be sampled; none before the first turn().
    """

    def __init__(self, stats: StreamStats) -> None:
        self._slots = stats.delays
        self._began = -math.inf  # the present slot, monotonic
        self._delays: list[float] = []
        self.due = math.inf

    def turn(self, now: float) -> None:
        """Begins the next slot if it is time. To be called once a second. now: monotonic."""
        self.due = 0.0  # also where somebody has set the clock back
        if now - self._began >= SLOT:
            self._began, self._delays = now, []
            self._slots.append((now, self._delays))

    def sample(self, message: bytes, arrived: float) -> None:
        """Samples what has arrived at `arrived` (seconds since the epoch). To be called when that is `due`."""
        try:
            at = message.index(b'"ts":') + 5
            self._delays.append(arrived - int(message[at : at + 13]) / 1000)
        except ValueError:
            return  # a message of another form, such as an answer
        self.due = arrived + SAMPLE_EVERY


def recent(slots: Collection[Slot], now: float) -> list[float]:
    """The delays of the last WINDOW seconds, sorted. now: monotonic."""
    return sorted(chain.from_iterable(delays for began, delays in slots if now - began <= WINDOW))


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest of sorted `values` that at least `share` (0 to 1) of them do not exceed. None: there are no
    values.
    """
    return values[max(0, math.ceil(len(values) * share) - 1)] if values else None
