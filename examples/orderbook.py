"""Keeps correct order books from the collector's channels and prints the best prices every second.

Start this program before the collector: Bybit sends a snapshot only when the collector connects. A book is in sync from
a snapshot until a message may be missing. If the collector is killed no event says so: watch the age of the book.

Needs redis-py only. The environment variables REDIS_HOST, REDIS_PORT, REDIS_PASSWORD and CHANNEL_PREFIX are the
collector's, with the same defaults.
"""

import argparse
import json
import os
import time
from contextlib import suppress
from decimal import Decimal

import redis


class Book:
    """The bids and asks of one topic, as (price, size) in Bybit's own digits, best first. Correct while `synced`."""

    bids = property(lambda self: [self._bids[price] for price in sorted(self._bids, reverse=True)])
    asks = property(lambda self: [self._asks[price] for price in sorted(self._asks)])

    def __init__(self):
        self._bids, self._asks, self.synced = {}, {}, False
        self.u = self.seq = self.ts = 0  # of the last message applied

    def apply(self, message):
        data = message["data"]
        if message["type"] == "snapshot" or data["u"] == 1:  # u = 1: Bybit's service has restarted
            self._bids, self._asks = {}, {}
        elif data["u"] != self.u + 1:
            # A sequence gap, or a duplicate: messages in flight are sent again when the collector reconnects to Redis.
            self.synced &= data["u"] <= self.u and data["seq"] <= self.seq
            return
        for side, levels in ((self._bids, data["b"]), (self._asks, data["a"])):
            for price, size in levels:
                side[Decimal(price)] = price, size
                if not Decimal(size):
                    del side[Decimal(price)]
        self.u, self.seq, self.ts, self.synced = data["u"], data["seq"], message["ts"], True


def update(books, message):
    """Applies a message from Bybit, or an event of the collector, to `books`, a dict by topic."""
    if "event" not in message:
        books.setdefault(message["topic"], Book()).apply(message)
    elif message["event"] in ("lost", "stalled", "dropped", "stopped"):
        for topic in books.keys() & (message["topics"] or books):  # no topics: all of them
            books[topic].synced = False


def follow(client, prefix, books):
    """Keeps `books` up to date for ever. Yields after each message, and after each second without one."""
    while True:
        try:
            with client.pubsub() as pubsub:
                pubsub.subscribe(f"{prefix}_orderbook", f"{prefix}_status")
                while True:
                    if message := pubsub.get_message(ignore_subscribe_messages=True, timeout=1):
                        update(books, json.loads(message["data"]))
                    yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            print(f"Redis: {error}", flush=True)
            update(books, {"event": "lost", "topics": []})  # the next delta shows whether messages were missed
            time.sleep(0.5)  # less than the 2 s that the collector waits for subscribers after a restart of Redis
            yield


def report(prefix, books):
    """Prints a line for each book."""
    if not books:
        print(f"waiting for messages on {prefix}_orderbook: is the collector running?", flush=True)
    for topic, book in sorted(books.items()):
        if book.synced:
            best = " | ".join(" x ".join(level) for level in book.bids[:1] + book.asks[:1])
            print(f"{topic} {best}, {time.time() - book.ts / 1000:.1f} s old", flush=True)
        else:
            print(f"{topic} waiting for a snapshot: restart the collector to get one now", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    env = os.environ.get
    # retry=None: otherwise redis-py reconnects silently, and the messages missed meanwhile go unnoticed.
    client = redis.Redis(env("REDIS_HOST", "localhost"), env("REDIS_PORT", 6379), 0, env("REDIS_PASSWORD"), retry=None)
    prefix = env("CHANNEL_PREFIX", "stream:bybit")
    books, next_report = {}, time.monotonic() + 1
    for _ in follow(client, prefix, books):
        if time.monotonic() >= next_report:
            next_report = time.monotonic() + 1
            report(prefix, books)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
