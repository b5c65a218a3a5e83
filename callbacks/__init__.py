"""What is done with a message: it goes to one Redis channel per kind, as it came. All callbacks share one publisher."""

from conf import settings
from relay.publisher import Publisher

publisher = Publisher(
    settings.REDIS_HOST,
    settings.REDIS_PORT,
    db=settings.REDIS_DB,
    username=settings.REDIS_USERNAME,
    password=settings.REDIS_PASSWORD,
    tls=settings.REDIS_SSL,
    buffer=int(settings.REDIS_BUFFER_MB * 1024 * 1024),
    status=f"{settings.CHANNEL_PREFIX}_status",
)

CHANNELS = [f"{settings.CHANNEL_PREFIX}_{kind}" for kind in ("orderbook", "trades", "ticker", "liquidations", "status")]
