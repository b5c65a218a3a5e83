"""Liquidations: topic allLiquidation.{symbol},
https://bybit-exchange.github.io/docs/v5/websocket/public/all-liquidation
"""

from callbacks import channel_of, publish
from relay.dispatch import Message, raw
from relay.kinds import LIQUIDATIONS

CHANNEL = channel_of(LIQUIDATIONS)


@raw
def handle_liquidations(message: Message) -> None:
    """Publishes a message to CHANNEL, or to the symbol's own: text or bytes unchanged, a dict as compact JSON.

    Any thread; never blocks.
    """
    publish(CHANNEL, message)
