"""Tickers: topic tickers.{symbol},
https://bybit-exchange.github.io/docs/v5/websocket/public/ticker
"""

from callbacks import publisher
from conf.settings import CHANNEL_PREFIX
from relay.connection import Message, raw

CHANNEL = f"{CHANNEL_PREFIX}_ticker"


@raw
def handle_ticker(message: Message) -> None:
    """Publishes a message to CHANNEL: the text of its frame unchanged, a dict as compact JSON.

    Runs on the socket's thread of the stream, any other thread may call it too; never waits for Redis.
    """
    publisher.publish(CHANNEL, message)
