"""A table shared by the benchmark's processes: when each message was sent and when it arrived.

One file in memory, mapped by the sender (writes `sent`), the subscriber (writes `received`) and the benchmark (reads).
"""

import mmap
from pathlib import Path

SLOTS = 4_000_000  # messages a play may have
LAST = 0  # where `received` holds the time of the latest arrival; index 0 is no message


class Board:
    """Times in nanoseconds of time.monotonic_ns(), one slot a message index; 0 = not yet."""

    def __init__(self, path: Path) -> None:
        size = SLOTS * 8
        with path.open("a+b") as file:
            file.truncate(2 * size)
            self.table = memoryview(mmap.mmap(file.fileno(), 2 * size)).cast("q")
        self.sent = self.table[:SLOTS]
        self.received = self.table[SLOTS:]

    def clear(self, count: int) -> None:
        """Forget the first `count` messages."""
        zeros = memoryview(bytes(8 * (count + 1))).cast("q")
        self.sent[: count + 1] = zeros
        self.received[: count + 1] = zeros
