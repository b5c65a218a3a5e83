"""Tickers: topic tickers.{symbol},
https://bybit-exchange.github.io/docs/v5/websocket/public/ticker
"""

from callbacks import channel_of, publish
from relay.dispatch import Message, raw
from relay.kinds import TICKER

CHANNEL = channel_of(TICKER)


@raw
def handle_ticker(message: Message) -> None:
    """Publishes a message to CHANNEL, or to the symbol's own: text or bytes unchanged, a dict as compact JSON.

    Any thread; never blocks.
    """
    publish(CHANNEL, message)
