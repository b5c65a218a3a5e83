"""Correct order books out of the collector's channels; prints the best prices every second. Needs redis-py only.

REDIS_HOST, REDIS_PORT, REDIS_PASSWORD and CHANNEL_PREFIX, from the environment, are as for the collector. A book is in
sync from a snapshot on; out of sync when messages may be missing, until the next snapshot or the very next delta. START
THIS FIRST: snapshots come when the collector connects, maybe not for hours. If it is killed only a book's age tells.
"""

import json
import os
import time
from decimal import Decimal

import redis


class Book:
    """Two lists of (price, size) as Bybit wrote them, the best first. They are right while `synced`."""

    bids = property(lambda self: [self._bids[price] for price in sorted(self._bids, reverse=True)])
    asks = property(lambda self: [self._asks[price] for price in sorted(self._asks)])

    def __init__(self):
        self._bids, self._asks, self.synced = {}, {}, False
        self.u = self.seq = self.ts = 0  # of the last message

    def apply(self, message):
        data = message["data"]
        if message["type"] == "snapshot" or data["u"] == 1:  # 1: Bybit's service has restarted
            self._bids, self._asks = {}, {}
        elif data["u"] != self.u + 1:
            # A leap, unless it is old: the last ones may come twice when the collector's connection to Redis breaks.
            self.synced &= data["u"] <= self.u and data["seq"] <= self.seq
            return
        for side, levels in ((self._bids, data["b"]), (self._asks, data["a"])):
            for price, size in levels:
                side[Decimal(price)] = price, size
                if not Decimal(size):
                    del side[Decimal(price)]
        self.u, self.seq, self.ts, self.synced = data["u"], data["seq"], message["ts"], True


def take(books, message):
    """Takes a message of Bybit's, or an event of the collector's, into `books`, a dict by topic."""
    if "event" not in message:
        books.setdefault(message["topic"], Book()).apply(message)
    elif message["event"] in ("lost", "stalled", "dropped", "stopped"):
        for topic in books.keys() & (message["topics"] or books):  # no topics: all
            books[topic].synced = False


def follow(client, prefix, books):
    """Keeps `books` right for ever; yields after each message, and when none came for a second."""
    while True:
        try:
            with client.pubsub() as pubsub:
                pubsub.subscribe(f"{prefix}_orderbook", f"{prefix}_status")
                while True:
                    if message := pubsub.get_message(ignore_subscribe_messages=True, timeout=1):
                        take(books, json.loads(message["data"]))
                    yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            print(f"Redis: {error}", flush=True)
            take(books, {"event": "lost", "topics": []})
            time.sleep(0.5)  # less than the 2 s that the collector waits for the subscribers of a restarted Redis
            yield


if __name__ == "__main__":
    env = os.environ.get
    # retry=None: redis-py would connect again without a word, and what came meanwhile is missing.
    client = redis.Redis(env("REDIS_HOST", "localhost"), env("REDIS_PORT", 6379), 0, env("REDIS_PASSWORD"), retry=None)
    books, due = {}, 0.0
    for _ in follow(client, env("CHANNEL_PREFIX", "stream:bybit"), books):
        if time.monotonic() >= due:
            due = time.monotonic() + 1
            for topic, book in sorted(books.items()):
                best = " | ".join(" x ".join(level) for level in book.bids[:1] + book.asks[:1])
                state = f"{best}, {time.time() - book.ts / 1000:.1f} s old" if book.synced else "not in sync"
                print(topic, state, flush=True)
