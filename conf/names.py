"""The names of channels and keys in Redis, by the settings."""

from conf import settings
from relay.channels import ANY_SYMBOL, channel_of_symbol
from relay.kinds import KINDS, Kind


def channel_of(kind: Kind) -> str:
    """The name of the channel for messages of this kind."""
    return f"{settings.CHANNEL_PREFIX}_{kind.name}"


STATUS_CHANNEL = f"{settings.CHANNEL_PREFIX}_status"
# The hash that keeps the state. Collectors that share channels have one each: STATES is where their names begin.
STATES = f"{settings.CHANNEL_PREFIX}_state" + (f":{settings.SHARD_NAME}" if settings.SHARD else "")
STATE_KEY = f"{STATES}:{settings.INSTANCE}" if settings.LEADER_KEY else STATES
# Where consumers ask for snapshots, and how the channels begin on which they can have the replies.
REQUEST_CHANNEL, REPLY_PREFIX = f"{settings.CHANNEL_PREFIX}_request", f"{settings.CHANNEL_PREFIX}_reply_"
CHANNELS = (*map(channel_of, KINDS), STATUS_CHANNEL)
# Those of CHANNELS beside which each symbol has its own: stream:bybit_trades:BTCUSDT beside stream:bybit_trades.
BY_SYMBOL = tuple(map(channel_of, KINDS)) if settings.CHANNEL_BY_SYMBOL else ()
# All of them, for --check.
ALL_CHANNELS = (*CHANNELS, *(channel_of_symbol(channel, ANY_SYMBOL) for channel in BY_SYMBOL))
