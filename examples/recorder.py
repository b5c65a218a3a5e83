"""Records the collector's channels, byte for byte: python examples/recorder.py DIR [--flush SECONDS]

REDIS_HOST, REDIS_PORT, REDIS_PASSWORD and CHANNEL_PREFIX, from the environment, are as for the collector. Each run has
files of its own, DIR/2026-11-22/stream-bybit_trades.235959.750000.tsv.gz, after day and time (UTC) of the first line. A
line is the time of arrival in Unix seconds, a tab, the message. The status files show the collector's gaps, and ours:
one ends at each {"event":"recording"}. Every --flush seconds a gzip member is written; a kill costs these seconds and
may tear the last one: gzip gives all before, maybe a part of a line, and an error. So unpack such files one by one.
"""

import argparse
import os
import signal
import time
import zlib
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import redis

KINDS = ("orderbook", "trades", "ticker", "liquidations", "status")
RECORDING = b'{"event":"recording","stream":"","topics":[],"ts":%d}'


def messages(client, channels, stopping):
    """Yields (channel, message), or two None when nothing came for a while; until something is in `stopping`."""
    while not stopping:
        try:
            with client.pubsub() as pubsub:
                pubsub.subscribe(*channels)
                while not stopping:
                    message = pubsub.get_message(timeout=0.5)
                    if message and message["type"] == "message":
                        yield message["channel"].decode(), message["data"]
                    elif message and message["data"] == len(channels):  # it confirms the last subscription
                        yield channels[-1], RECORDING % (time.time() * 1000)
                    else:
                        yield None, None
        except (redis.ConnectionError, redis.TimeoutError) as error:
            print(f"Redis: {error}", flush=True)
            time.sleep(0.5)  # less than the 2 s that the collector waits for the subscribers of a restarted Redis
            yield None, None


def record(found, directory, interval):
    """Writes what messages() finds, every `interval` seconds and at the end."""
    paths, waiting, due = {}, defaultdict(list), 0.0

    def write():
        for path, lines in waiting.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(zlib.compress(b"".join(lines), wbits=31))  # 31: as gzip
        waiting.clear()

    for channel, message in found:
        if channel:
            now = datetime.now(UTC)
            if (key := (channel, now.date())) not in paths:
                name = channel.replace(":", "-").replace("/", "-")
                paths[key] = directory / str(now.date()) / f"{name}.{now:%H%M%S.%f}.tsv.gz"
            waiting[paths[key]].append(b"%.6f\t%b\n" % (now.timestamp(), message))
        if time.monotonic() >= due:
            due = time.monotonic() + interval
            write()
    write()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--flush", default=2.0, type=float, help="seconds")
    options = parser.parse_args()
    env, stopping = os.environ.get, []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopping.append(number))
    client = redis.Redis(env("REDIS_HOST", "localhost"), env("REDIS_PORT", 6379), 0, env("REDIS_PASSWORD"), retry=None)
    channels = [f"{env('CHANNEL_PREFIX', 'stream:bybit')}_{kind}" for kind in KINDS]
    record(messages(client, channels, stopping), options.directory, options.flush)
