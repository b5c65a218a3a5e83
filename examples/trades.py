"""Prints trades as they happen, and says where some may be missing: python examples/trades.py [SYMBOL …]

    12:00:01.123 BTCUSDT Buy 0.250 @ 65111.40
    12:00:01.200 BTCUSDT Sell 12.500 @ 65110.00 <<< 813,875
    12:00:03.412 BTCUSDT --- trades may be missing here: lost: Bybit closed the TCP connection without a close frame

The time is the trade's own, in UTC; the side is the taker's. A trade is marked if its price times its size is at least
--big. (On inverse sizes are in USD: there it means little.) What comes twice is printed once. Without a SYMBOL it shows
BTCUSDT; on option name the coin, such as BTC.

Needs redis-py, and synced.py and terminal.py, which are beside this file. The environment variables REDIS_HOST,
REDIS_PORT, REDIS_PASSWORD, CHANNEL_PREFIX and CHANNEL_BY_SYMBOL have the collector's defaults. REDIS_HOST takes one
host name here, and no .env is read; for Sentinel change one line of terminal.py, see docs/consuming.md; for TLS add
ssl=True there.
"""

import argparse
import json
import time
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal

import redis
from terminal import connection

# Events after which trades are missing. `gap` and `silent` are about order books and tickers only.
LOSSES = ("lost", "stalled", "dropped", "stopped", "unsubscribed", "rejected")
SILENCE = 15.0  # seconds: the collector publishes something every 5 s
REMEMBERED = 100_000  # trades: more than come in the 15 s that may come twice


class Tape:
    """Trades, each once, and the places where some may be missing. It does no I/O: follow() does.

    Its methods return entries: (topic, a trade as Bybit sent it, None), or (topic, None, why some may be missing here).
    """

    def __init__(self, prefix, symbols, by_symbol=False):
        self.status = f"{prefix}_status"
        self.channels = {f"publicTrade.{one}": f"{prefix}_trades" + f":{one}" * by_symbol for one in symbols}
        self.broken = {}  # by topic why trades may be missing, until the next trade
        self.seen = OrderedDict()  # what identifies the latest trades
        self.led = 0  # ts of the latest event `leader`

    def receive(self, payload):
        """Takes a message of any channel."""
        message = json.loads(payload)
        if "event" in message:
            return self.receive_event(message)
        topic = message["topic"]
        new = [trade for trade in message["data"] if self.is_new(trade)] if topic in self.channels else []
        if new:
            self.broken.pop(topic, None)
        return [(topic, trade, None) for trade in new]

    def is_new(self, trade):
        identity = trade["s"], trade["i"]
        if identity in self.seen:
            return False
        self.seen[identity] = True
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        return True

    def receive_event(self, event):
        name, named = event["event"], set(event["topics"])
        source = event.get("channel", self.status)  # without topics an event is about all of a channel, or all
        topics = [t for t in self.channels if t in named or (not named and source in (self.status, self.channels[t]))]
        if name in LOSSES:
            return self.lose(topics, f"{name}: {event['reason']}" if "reason" in event else name)
        if name == "leader":
            self.led = event["ts"]
        # Subscribed without a loss before it: the collector was killed, and is back. But a standby that has taken over
        # may tell late of how it began: it has missed nothing.
        if name == "subscribed" and event["ts"] >= self.led:
            return self.lose([topic for topic in topics if topic not in self.broken], "the collector has begun anew")
        return []

    def lose(self, topics, reason):
        new = [topic for topic in topics if self.broken.get(topic) != reason]
        self.broken |= dict.fromkeys(new, reason)
        return [(topic, None, reason) for topic in new]


def follow(client, prefix, symbols, by_symbol=False):
    """Follows the trades of symbols for ever. Yields lists of a Tape's entries, ten times a second or more."""
    tape = Tape(prefix, symbols, by_symbol)
    channels = {tape.status, *tape.channels.values()}
    while True:
        try:
            with client.pubsub() as pubsub:
                pubsub.subscribe(*channels)
                heard = time.monotonic()
                while time.monotonic() < heard + SILENCE:
                    message, entries = pubsub.get_message(timeout=0.1), []
                    if message:
                        heard = time.monotonic()
                    if message and message["type"] == "message":
                        entries = tape.receive(message["data"])
                    elif message and message["data"] == len(channels):  # the last one is confirmed
                        entries = tape.lose(tape.channels, "connected to Redis just now")
                    yield entries
            yield tape.lose(tape.channels, f"nothing received for {SILENCE:.0f} s")
        except (redis.ConnectionError, redis.TimeoutError) as error:
            yield tape.lose(tape.channels, f"Redis: {error}")
            time.sleep(0.5)  # less than the 2 s that the collector waits for subscribers after a restart of Redis


def clock(ms):
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%H:%M:%S.%f}"[:-3]


def loss(topic, reason):
    now, symbol = clock(time.time() * 1000), topic.rpartition(".")[2]
    return f"{now} {symbol} --- trades may be missing here: {reason}"


def line(trade, big):
    value = Decimal(trade["p"]) * Decimal(trade["v"])
    mark = f" <<< {value:,.0f}" if value >= big else ""
    return f"{clock(trade['T'])} {trade['s']} {trade['S']} {trade['v']} @ {trade['p']}{mark}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("symbols", metavar="SYMBOL", nargs="*", default=["BTCUSDT"])
    parser.add_argument("--big", default=100_000.0, type=float, metavar="VALUE", help="marked from here on (100,000)")
    options = parser.parse_args()
    client, prefix, by_symbol = connection()
    with suppress(KeyboardInterrupt, BrokenPipeError):  # or whoever reads this, such as head, has enough
        for entries in follow(client, prefix, options.symbols, by_symbol):
            for topic, trade, reason in entries:
                print(loss(topic, reason) if reason else line(trade, options.big), flush=True)


if __name__ == "__main__":
    main()
