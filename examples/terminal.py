"""What the programs beside this file share: where Redis is; a line for each topic every second."""

import argparse
import os
import time
from contextlib import suppress

import redis
from synced import follow


def connection():
    """A client of the collector's Redis, what its channels begin with, and whether each symbol has its own."""
    env = os.environ.get
    address = env("REDIS_HOST", "localhost"), env("REDIS_PORT", 6379), 0, env("REDIS_PASSWORD")
    client = redis.Redis(*address, retry=None, socket_keepalive=True)  # as in the README
    by_symbol = env("CHANNEL_BY_SYMBOL", "").strip().lower() in ("true", "1", "yes", "on")
    return client, env("CHANNEL_PREFIX", "stream:bybit"), by_symbol


def show(description, kind, topic, line):
    """Runs until Ctrl+C. kind: what all topics begin with. topic: the default. line: makes a text of a state."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", metavar="TOPIC", nargs="*", default=[topic])
    topics = parser.parse_args().topics
    if wrong := [name for name in topics if not name.startswith(kind)]:
        parser.error(f"{wrong[0]}: a topic of this program begins with {kind}")
    client, prefix, by_symbol = connection()
    next_report = time.monotonic() + 1
    with suppress(KeyboardInterrupt, BrokenPipeError):  # or whoever reads this, such as head, has enough
        for _, states in follow(client, prefix, topics, by_symbol):
            if time.monotonic() >= next_report:
                next_report = time.monotonic() + 1
                for name, state in sorted(states.items()):
                    if state.synced:
                        print(f"{name} {line(state)}, {time.time() - state.ts / 1000:.1f} s old", flush=True)
                    else:
                        print(f"{name} out of sync: {state.reason}", flush=True)
