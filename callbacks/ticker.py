"""Tickers: topic tickers.{symbol},
https://bybit-exchange.github.io/docs/v5/websocket/public/ticker
"""

from callbacks import channel_of, publish
from relay.batch import Batch
from relay.dispatch import Message, batched
from relay.kinds import TICKER

CHANNEL = channel_of(TICKER)


@batched
def handle_ticker(message: Message | Batch) -> None:
    """Publishes a message, or several, to CHANNEL, or to the symbol's own: text or bytes unchanged, a dict as compact
    JSON. Any thread; never blocks.
    """
    publish(CHANNEL, message)
