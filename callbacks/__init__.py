"""The callbacks: each publishes the messages of one kind to one Redis channel, unchanged. All share one publisher."""

from conf import settings
from relay.kinds import KINDS, Kind
from relay.redis.publisher import Publisher


def channel_of(kind: Kind) -> str:
    """The name of the channel for messages of this kind."""
    return f"{settings.CHANNEL_PREFIX}_{kind.name}"


STATUS_CHANNEL = f"{settings.CHANNEL_PREFIX}_status"
CHANNELS = (*map(channel_of, KINDS), STATUS_CHANNEL)

publisher = Publisher(
    settings.REDIS_HOST,
    settings.REDIS_PORT,
    db=settings.REDIS_DB,
    username=settings.REDIS_USERNAME,
    password=settings.REDIS_PASSWORD,
    tls=settings.REDIS_SSL,
    buffer=int(settings.REDIS_BUFFER_MB * 1024 * 1024),
    status=STATUS_CHANNEL,
)
