"""Messages that a server confirmed which may turn out to have been the wrong one. Pure."""

from collections import deque
from collections.abc import Iterator

from relay.redis.backlog import OVERHEAD


class Retained:
    """Confirmed messages, oldest first. bytes: what they take in memory. added: how many were ever kept. squeezed_out:
    how many of them were forgotten for want of room. The holder of the link's lock owns it; its length and the counters
    may be read without it.
    """

    def __init__(self) -> None:
        self.bytes = self.added = self.squeezed_out = 0
        self._commands: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._commands)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._commands)

    def add(self, commands: list[bytes], size: int) -> None:
        """Keeps these commands too, of `size` bytes in sum."""
        self._commands.extend(commands)
        self.added += len(commands)
        self.bytes += size + OVERHEAD * len(commands)

    def fit(self, room: int) -> None:
        """Forgets the oldest until the rest takes `room` bytes at most. Consumers are not told: they were confirmed."""
        while self.bytes > room and self._commands:
            self.squeezed_out += 1
            self.bytes -= len(self._commands.popleft()) + OVERHEAD

    def forget(self, until: int) -> None:
        """Forgets those of the first `until` that were ever kept."""
        while self._commands and self.added - len(self._commands) < until:
            self.bytes -= len(self._commands.popleft()) + OVERHEAD

    def clear(self) -> None:
        """Forgets all."""
        self._commands.clear()
        self.bytes = 0
