"""Public trades: topic publicTrade.{symbol},
https://bybit-exchange.github.io/docs/v5/websocket/public/trade
"""

from callbacks import channel_of, publish
from relay.dispatch import Message, raw
from relay.kinds import TRADES

CHANNEL = channel_of(TRADES)


@raw
def handle_trades(message: Message) -> None:
    """Publishes a message to CHANNEL, or to the symbol's own: text or bytes unchanged, a dict as compact JSON.

    Any thread; never blocks.
    """
    publish(CHANNEL, message)
