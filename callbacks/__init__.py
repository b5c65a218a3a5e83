"""The callbacks: each publishes the messages of one kind, unchanged, to one Redis channel, or one for each symbol. All
share one publisher.
"""

from conf import settings
from relay.channels import ANY_SYMBOL, by_symbol, channel_of_symbol
from relay.kinds import KINDS, Kind
from relay.redis.endpoint import located
from relay.redis.link import DEFAULT_TIMEOUTS
from relay.redis.pending import Pending
from relay.redis.publisher import Publisher


def channel_of(kind: Kind) -> str:
    """The name of the channel for messages of this kind."""
    return f"{settings.CHANNEL_PREFIX}_{kind.name}"


STATUS_CHANNEL = f"{settings.CHANNEL_PREFIX}_status"
# The hash that keeps the state. Collectors that share channels have one each: STATES is where their names begin.
STATES = f"{settings.CHANNEL_PREFIX}_state"
if settings.SHARD:
    STATES += ":{}of{}".format(*settings.SHARD)
STATE_KEY = f"{STATES}:{settings.INSTANCE}" if settings.LEADER_KEY else STATES
# Where consumers ask for snapshots, and how the channels begin on which they can have the replies.
REQUEST_CHANNEL, REPLY_PREFIX = f"{settings.CHANNEL_PREFIX}_request", f"{settings.CHANNEL_PREFIX}_reply_"
CHANNELS = (*map(channel_of, KINDS), STATUS_CHANNEL)
# Those of CHANNELS beside which each symbol has its own: stream:bybit_trades:BTCUSDT beside stream:bybit_trades.
BY_SYMBOL = tuple(map(channel_of, KINDS)) if settings.CHANNEL_BY_SYMBOL else ()
# All of them, for --check.
ALL_CHANNELS = (*CHANNELS, *(channel_of_symbol(channel, ANY_SYMBOL) for channel in BY_SYMBOL))

# Collectors that share a LEADER_KEY keep what they do not publish, and each its own status.
BUFFER = int(settings.REDIS_BUFFER_MB * 1024 * 1024)

publisher = Publisher(
    endpoint=located(
        settings.REDIS_HOST,
        settings.REDIS_SENTINELS,
        settings.REDIS_SENTINEL_MASTER,
        tls=settings.REDIS_SSL,
        timeouts=DEFAULT_TIMEOUTS,
        username=settings.REDIS_SENTINEL_USERNAME,
        password=settings.REDIS_SENTINEL_PASSWORD,
    ),
    db=settings.REDIS_DB,
    username=settings.REDIS_USERNAME,
    password=settings.REDIS_PASSWORD,
    tls=settings.REDIS_SSL,
    buffer=BUFFER,
    status=STATUS_CHANNEL,
    state_key=STATE_KEY,
    channels=CHANNELS if settings.LEADER_KEY else (),
    pending=Pending(BUFFER) if settings.LEADER_KEY else None,
    stream_maxlen=settings.REDIS_STREAM_MAXLEN,
)

# What every callback calls, with its channel and the message.
publish = by_symbol(publisher.publish) if settings.CHANNEL_BY_SYMBOL else publisher.publish
