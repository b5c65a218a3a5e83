"""Messages that a server confirmed which may turn out to have been the wrong one. Pure."""

from collections import deque
from collections.abc import Iterator

from relay.redis.backlog import OVERHEAD


class Retained:
    """Confirmed messages, oldest first. bytes: what they take in memory. added: how many were ever kept. The holder of
    the link's lock owns it; its length may be read without it.
    """

    def __init__(self) -> None:
        self.bytes = self.added = 0
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
        """Forgets the oldest until the rest takes `room` bytes at most. Nobody is told: they were confirmed once."""
        while self.bytes > room and self._commands:
            self.bytes -= len(self._commands.popleft()) + OVERHEAD

    def forget(self, until: int) -> None:
        """Forgets those of the first `until` that were ever kept."""
        while self._commands and self.added - len(self._commands) < until:
            self.bytes -= len(self._commands.popleft()) + OVERHEAD

    def clear(self) -> None:
        """Forgets all."""
        self._commands.clear()
        self.bytes = 0
