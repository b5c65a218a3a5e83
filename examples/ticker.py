"""Keeps tickers in sync and prints some of their fields every second: python examples/ticker.py [TOPIC …]

Start it at any time: it asks the collector for snapshots. What is not in sync is never shown as a price, but with the
reason. Without a TOPIC it shows tickers.BTCUSDT.

Needs redis-py, and synced.py and terminal.py, which are beside this file. The environment variables REDIS_HOST,
REDIS_PORT, REDIS_PASSWORD, CHANNEL_PREFIX and CHANNEL_BY_SYMBOL have the collector's defaults. REDIS_HOST takes one
host name here, and no .env is read; for Sentinel change one line of terminal.py, see docs/consuming.md; for TLS add
ssl=True there.
"""

from terminal import show

FIELDS = ("lastPrice", "markPrice", "fundingRate", "openInterest")  # those that a category does not have are left out


def line(ticker):
    return ", ".join(f"{name} {ticker.data[name]}" for name in FIELDS if name in ticker.data)


if __name__ == "__main__":
    show(__doc__, "tickers.", "tickers.BTCUSDT", line)
