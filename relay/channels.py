"""Which channel a message goes to, where each symbol has a channel of its own: stream:bybit_trades:BTCUSDT. Pure."""

import json
import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

from relay.batch import Batch
from relay.events import encoded
from relay.kinds import is_symbol

Publish = Callable[[str, Any], None]  # gets the channel and the message; Publisher.publish is one

# What stands for all symbols in the name of a channel; there is no such symbol.
ANY_SYMBOL = "*"
# Nearly every message of Bybit's begins like this; of the others, which are parsed, the order of members is not known.
_BEGIN = b'{"topic":"'
# Bytes at the beginning of a message in which its topic ends.
_MAX_TOPIC = 200
# Topics whose channels are remembered, of each kind. Contracts of options come and go for ever.
MAX_REMEMBERED = 10_000


def channel_of_symbol(channel: str, subject: str) -> str:
    """The channel of what a topic names, beside the one for all: "stream:bybit_trades:BTCUSDT"."""
    return f"{channel}:{subject}"


def names_any_symbol(channel: str) -> bool:
    """Whether a name stands for the channels of all symbols: "stream:bybit_trades:*"."""
    return channel.endswith(f":{ANY_SYMBOL}")


def pattern_of_symbols(channel: str) -> str:
    """The pattern for PSUBSCRIBE that matches the channels of all symbols beside this one, and nothing else.

    channel: "stream:bybit_trades", or "stream:bybit_trades:*".
    """
    channel = channel.removesuffix(f":{ANY_SYMBOL}")
    return channel_of_symbol(re.sub(r"[*?[\]\\]", r"\\\g<0>", channel), ANY_SYMBOL)


class SymbolChannels:
    """The channels of one kind. Any thread: each access to the dict is atomic.

    channel: the one for all symbols, which has what names none.
    remembered: channels by the beginning of messages, up to the end of the topic: b'{"topic":"publicTrade.BTCUSDT'.
    """

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.remembered: dict[bytes, str] = {}

    def of(self, message: bytes) -> str:
        """The channel of a message."""
        # No other check is needed: the key ends with the topic, so equal keys have the same channel.
        return self.remembered.get(message[: message.find(b'"', 10)]) or self.find(message)

    def find(self, message: bytes) -> str:
        """The channel of a message whose beginning is not remembered."""
        end = message.find(b'"', len(_BEGIN), _MAX_TOPIC) if message.startswith(_BEGIN) else -1
        subject = subject_of(_topic_in(message) if end < 0 else message[len(_BEGIN) : end])
        channel = channel_of_symbol(self.channel, subject) if subject else self.channel
        if end > 0:
            if len(self.remembered) >= MAX_REMEMBERED:
                self.remembered.clear()
            self.remembered[message[:end]] = channel
        return channel


def subject_of(topic: bytes) -> str:
    """What a topic names, its last part: "BTCUSDT" of b"publicTrade.BTCUSDT"; "" if that is neither symbol nor coin.

    topic: the inside of a JSON string, so there may be escapes in it.
    """
    try:
        text = json.loads(b'"%b"' % topic)
    except ValueError:
        return ""
    kind, _, subject = text.rpartition(".")
    return subject if kind and is_symbol(subject) else ""


def _topic_in(message: bytes) -> bytes:
    """The topic of a message that does not begin with it, as in JSON; b"" if it has none."""
    try:
        parsed = json.loads(message)
    except (ValueError, RecursionError):
        return b""
    topic = parsed.get("topic") if isinstance(parsed, dict) else None
    if not isinstance(topic, str) or len(topic) > _MAX_TOPIC:
        return b""
    return json.dumps(topic, ensure_ascii=False)[1:-1].encode(errors="replace")


def by_symbol(publish: Publish) -> Publish:
    """What publishes to the channel of the symbol that the topic of the message names, instead of the one for all. A
    message without such a topic goes to the one for all. Any thread, like `publish`.
    """
    kinds: dict[str, SymbolChannels] = {}  # by the channel for all

    def publish_by_symbol(channel: str, message: Any) -> None:
        channels = kinds.get(channel) or kinds.setdefault(channel, SymbolChannels(channel))
        if isinstance(message, Batch):
            for found, messages in groupby(message, channels.of):
                publish(found, Batch(messages))
            return
        if not isinstance(message, bytes):
            message = encoded(message)
        publish(channels.of(message), message)

    return publish_by_symbol
