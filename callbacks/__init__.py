"""The callbacks: each publishes the messages of one kind, unchanged, to one Redis channel, or one for each symbol. All
share one publisher.
"""

from typing import Any

from conf import settings
from conf.names import BY_SYMBOL, CHANNELS, STATE_KEY, STATUS_CHANNEL, channel_of
from relay.channels import by_symbol
from relay.redis.dial import located
from relay.redis.link import DEFAULT_TIMEOUTS
from relay.redis.login import Login
from relay.redis.pending import Pending
from relay.redis.publisher import Publisher

__all__ = ("BY_SYMBOL", "CHANNELS", "channel_of", "publish", "publisher")

# Bytes. It also bounds what a standby keeps.
BUFFER = int(settings.REDIS_BUFFER_MB * 1024 * 1024)

# redis-py's options. Each connection reads these files again, and asks for the login anew: both may change.
TLS: dict[str, Any] = {}
if settings.REDIS_SSL:
    TLS = {
        "ssl_ca_certs": settings.REDIS_SSL_CA or None,
        "ssl_certfile": settings.REDIS_SSL_CERT or None,
        "ssl_keyfile": settings.REDIS_SSL_KEY or None,
        "ssl_password": "",  # else OpenSSL asks for one on the terminal
    }

publisher = Publisher(
    endpoint=located(
        settings.REDIS_HOST,
        settings.REDIS_SENTINELS,
        settings.REDIS_SENTINEL_MASTER,
        tls=settings.REDIS_SSL,
        timeouts=DEFAULT_TIMEOUTS,
        credential_provider=Login(settings.sentinel_login),
        **TLS,
    ),
    db=settings.REDIS_DB,
    credential_provider=Login(settings.login),
    tls=settings.REDIS_SSL,
    **TLS,
    buffer=BUFFER,
    status=STATUS_CHANNEL,
    state_key=STATE_KEY,
    channels=CHANNELS,
    pending=Pending(BUFFER) if settings.LEADER_KEY else None,
    stream_maxlen=settings.REDIS_STREAM_MAXLEN,
)

# What every callback calls, with its channel and the message.
publish = by_symbol(publisher.publish) if settings.CHANNEL_BY_SYMBOL else publisher.publish
