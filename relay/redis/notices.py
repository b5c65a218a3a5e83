"""Commands that announce something to consumers, and how lost messages are counted. Pure."""

from collections import Counter
from collections.abc import Sequence

# Channels by which losses are counted; what more there are count as one, of this name.
MAX_COUNTED, MORE = 10_000, "more channels"


def count_lost(lost: Counter[str], channel: str, messages: int = 1) -> None:
    """Adds lost messages to a count that is kept for ever."""
    lost[channel if channel in lost or len(lost) < MAX_COUNTED else MORE] += messages


class DropNotice(bytes):
    """A PUBLISH that announces lost messages. It knows what it announces, in case it is dropped itself."""

    channel: str
    messages: int


class Event(bytes):
    """A PUBLISH that announces something about topics."""

    topics: Sequence[str]
