"""The state of one connection: how far it is, what is held back, what was delivered. Pure."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

FIRST_TEXT = '{"topic":"tickers.BTCUSDT","type":"delta","data":{"symbol":"BTCUSDT"},"cs":1,"ts":1}'


class Made(NamedTuple):
    """A frame as it was made, whoever gets it."""

    at: float
    """time.monotonic(), which all processes of a machine share."""
    text: str


class Phase(Enum):
    """Where a connection stands. Each phase follows the one above it; some may be skipped."""

    HANDSHAKE = auto()
    OPEN = auto()
    CLOSING = auto()
    """Nothing more is sent, but what the client sends is still read: it has to answer a close frame."""
    ENDED = auto()
    """Nothing more is sent, and nothing read."""

    @property
    def sends(self) -> bool:
        return self in (Phase.HANDSHAKE, Phase.OPEN)


@dataclass
class Pause:
    """What freeze and silence hold back, until `resume`."""

    silent: bool = False
    frozen: bool = False
    unread: bytes = b""
    """What the client sent while frozen."""
    unsent: tuple[str, bytes] | None = None
    """The text of the frame that was sent in part, and its second half."""


@dataclass
class Delivery:
    """Counts the data frames of one connection, and keeps what waits for a count."""

    record: bool
    count: int = 0
    texts: list[str] = field(default_factory=list)
    last: str = FIRST_TEXT
    waiting: list[tuple[int, str]] = field(default_factory=list)
    """Replies that are due at a count."""

    def add(self, text: str) -> list[str]:
        """Counts a frame and returns the replies that are due now."""
        self.count += 1
        self.last = text
        if self.record:
            self.texts.append(text)
        if not self.waiting:
            return []
        due = [reply for count, reply in self.waiting if count <= self.count]
        self.waiting = [(count, reply) for count, reply in self.waiting if count > self.count]
        return due
