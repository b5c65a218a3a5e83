"""Settings: from the environment, else from the settings file, else the default. This leaves them as constants.

A value that cannot be used ends the program, when it imports this, with one sentence on stderr and exit code 2.
"""

import os
import re
import socket
import sys
from pathlib import Path

from conf.converters import SettingsError
from conf.live import Live

try:
    _live = Live(Path(__file__).resolve().parent.parent / ".env", os.environ)
except SettingsError as problem:
    print(f"Cannot start: {problem}", file=sys.stderr)
    raise SystemExit(2) from None

# What may change while the program runs; the constants below stay as they were at the start.
login, sentinel_login, reload = _live.login, _live.sentinel_login, _live.reload

_settings = _live.settings
USE_TESTNET = _settings.use_testnet
CHANNEL_TYPE = _settings.channel_type
SYMBOLS = list(_settings.symbols)
OPTION_COINS = _settings.option_coins
INSTRUMENTS_INTERVAL = _settings.instruments_interval
SHARD = _settings.shard
SHARD_NAME = "{}of{}".format(*SHARD) if SHARD else ""  # in the names of keys
ORDERBOOK_DEPTH = _settings.orderbook_depth
BYBIT_WS_URL = _settings.bybit_ws_url
BYBIT_API_URL = _settings.bybit_api_url
CHANNEL_PREFIX = _settings.channel_prefix
CHANNEL_BY_SYMBOL = _settings.channel_by_symbol
RECONNECT_DELAY = _settings.reconnect_delay
RECONNECT_DELAY_MAX = _settings.reconnect_delay_max
STALL_TIMEOUT = _settings.stall_timeout
REDIS_URL = _settings.redis_url
REDIS_PORT = _settings.redis_port
REDIS_HOST = _settings.redis_host
REDIS_UNIX_SOCKET = _settings.redis_unix_socket
REDIS_SENTINELS = _settings.redis_sentinels
REDIS_SENTINEL_MASTER = _settings.redis_sentinel_master
REDIS_SENTINEL_USERNAME = _settings.redis_sentinel_username
REDIS_SENTINEL_PASSWORD = _settings.redis_sentinel_password
REDIS_SENTINEL_PASSWORD_FILE = _settings.redis_sentinel_password_file
REDIS_DB = _settings.redis_db
REDIS_USERNAME = _settings.redis_username
REDIS_PASSWORD = _settings.redis_password
REDIS_PASSWORD_FILE = _settings.redis_password_file
REDIS_SSL = _settings.redis_ssl
REDIS_SSL_CA = _settings.redis_ssl_ca
REDIS_SSL_CERT = _settings.redis_ssl_cert
REDIS_SSL_KEY = _settings.redis_ssl_key
REDIS_BUFFER_MB = _settings.redis_buffer_mb
REDIS_STREAM_MAXLEN = _settings.redis_stream_maxlen
# Each part of the symbols has a lease of its own: its collectors cannot take over from those of another part.
LEADER_KEY = _settings.leader_key and _settings.leader_key + (f":{SHARD_NAME}" if SHARD else "")
INSTANCE = _settings.instance or re.sub(r"[^\w.-]", "-", f"{socket.gethostname()}-{os.getpid()}", flags=re.ASCII)
LOG_LEVEL = _settings.log_level
LOG_FORMAT = _settings.log_format
PULSE_FILE = _settings.pulse_file
WARNINGS = _settings.warnings
