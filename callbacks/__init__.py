"""The callbacks: each publishes the messages of one kind to one Redis channel, unchanged. All share one publisher."""

from conf import settings
from relay.kinds import KINDS, Kind
from relay.redis.pending import Pending
from relay.redis.publisher import Publisher


def channel_of(kind: Kind) -> str:
    """The name of the channel for messages of this kind."""
    return f"{settings.CHANNEL_PREFIX}_{kind.name}"


STATUS_CHANNEL = f"{settings.CHANNEL_PREFIX}_status"
# The hash that keeps the state. Collectors that share channels have one each.
STATE_KEY = f"{settings.CHANNEL_PREFIX}_state"
if settings.LEADER_KEY:
    STATE_KEY += f":{settings.INSTANCE}"
elif settings.SHARD:
    STATE_KEY += ":{}of{}".format(*settings.SHARD)
# Where consumers ask for snapshots, and how the channels begin on which they can have the replies.
REQUEST_CHANNEL, REPLY_PREFIX = f"{settings.CHANNEL_PREFIX}_request", f"{settings.CHANNEL_PREFIX}_reply_"
CHANNELS = (*map(channel_of, KINDS), STATUS_CHANNEL)

# Collectors that share a LEADER_KEY keep what they do not publish, and each its own status.
BUFFER = int(settings.REDIS_BUFFER_MB * 1024 * 1024)

publisher = Publisher(
    *settings.REDIS_HOST[0],
    db=settings.REDIS_DB,
    username=settings.REDIS_USERNAME,
    password=settings.REDIS_PASSWORD,
    tls=settings.REDIS_SSL,
    buffer=BUFFER,
    status=STATUS_CHANNEL,
    state_key=STATE_KEY,
    channels=CHANNELS if settings.LEADER_KEY else (),
    pending=Pending(BUFFER) if settings.LEADER_KEY else None,
)
