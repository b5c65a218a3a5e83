"""Keeps order books in sync and prints their best prices every second: python examples/orderbook.py [TOPIC …]

Start it at any time: it asks the collector for snapshots. What is not in sync is never shown as a price, but with the
reason. Without a TOPIC it shows orderbook.50.BTCUSDT.

Needs redis-py, and synced.py and terminal.py, which are beside this file. The environment variables REDIS_HOST,
REDIS_PORT, REDIS_PASSWORD, CHANNEL_PREFIX and CHANNEL_BY_SYMBOL have the collector's defaults. REDIS_HOST takes one
host name here, and no .env is read; for Sentinel change one line of terminal.py, see docs/consuming.md; for TLS add
ssl=True there.
"""

from terminal import show


def line(book):
    return " | ".join(" x ".join(level) for level in book.bids[:1] + book.asks[:1])


if __name__ == "__main__":
    show(__doc__, "orderbook.", "orderbook.50.BTCUSDT", line)
