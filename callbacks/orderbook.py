"""Order books: topic orderbook.{depth}.{symbol},
https://bybit-exchange.github.io/docs/v5/websocket/public/orderbook
"""

from callbacks import channel_of, publish
from relay.dispatch import Message, raw
from relay.kinds import ORDERBOOK

CHANNEL = channel_of(ORDERBOOK)


@raw
def handle_orderbook(message: Message) -> None:
    """Publishes a message to CHANNEL, or to the symbol's own: text or bytes unchanged, a dict as compact JSON.

    Any thread; never blocks.
    """
    publish(CHANNEL, message)
