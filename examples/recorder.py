"""Records the collector's channels, byte for byte: python examples/recorder.py DIR [--flush SECONDS]

Each run writes its own files, such as DIR/2026-11-22/stream-bybit_trades.235959.750000.tsv.gz, named after the channel
and after the UTC date and time of the first line. A line is the time of arrival in Unix seconds, a tab, the message.
The status files contain the collector's events; {"event":"recording"} marks each (re)connection of the recorder itself:
what was published shortly before it may be missing.

A gzip member is written every --flush seconds, so a kill loses these seconds at most and may truncate the last member.
gzip then prints everything before it, possibly a partial line, and an error: unpack such files one by one.

With CHANNEL_BY_SYMBOL=True each symbol has files of its own, those that Bybit lists later too. For hundreds of them
--flush 30 makes the files much smaller: gzip finds little to compress in a few lines.

Needs redis-py only. The environment variables REDIS_HOST, REDIS_PORT, REDIS_PASSWORD, CHANNEL_PREFIX and
CHANNEL_BY_SYMBOL have the collector's defaults. REDIS_HOST takes one host name here, and no .env is read; for Sentinel
change one line, see docs/consuming.md; for TLS add ssl=True there.
"""

import argparse
import os
import re
import signal
import time
import zlib
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import redis

KINDS = ("orderbook", "trades", "ticker", "liquidations", "status")
RECORDING = b'{"event":"recording","stream":"","topics":[],"ts":%d}'


def messages(client, channels, patterns, signals):
    """Yields (channel, message), or (None, None) after 0.5 s without one. Ends when `signals` is not empty."""
    while not signals:
        try:
            with client.pubsub() as pubsub:
                pubsub.subscribe(*channels)
                if patterns:
                    pubsub.psubscribe(*patterns)
                while not signals:
                    message = pubsub.get_message(timeout=0.5)
                    if message and message["type"] in ("message", "pmessage"):
                        yield message["channel"].decode(), message["data"]
                    elif message and message["data"] == len(channels) + len(patterns):  # the last one is confirmed
                        yield channels[-1], RECORDING % (time.time() * 1000)
                    else:
                        yield None, None
        except (redis.ConnectionError, redis.TimeoutError) as error:
            print(f"Redis: {error}", flush=True)
            time.sleep(0.5)  # less than the 2 s that the collector waits for subscribers after a restart of Redis
            yield None, None


def record(received, directory, interval):
    """Writes what messages() yields into `directory`, every `interval` seconds and at the end."""
    paths, buffers, next_write = {}, defaultdict(list), 0.0

    def write():
        for path, lines in buffers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(zlib.compress(b"".join(lines), wbits=31))  # 31: gzip format
        buffers.clear()

    for channel, message in received:
        if channel:
            now = datetime.now(UTC)
            if (key := (channel, now.date())) not in paths:
                name = channel.replace(":", "-").replace("/", "-")
                paths[key] = directory / str(now.date()) / f"{name}.{now:%H%M%S.%f}.tsv.gz"
            buffers[paths[key]].append(b"%.6f\t%b\n" % (now.timestamp(), message))
        if time.monotonic() >= next_write:
            next_write = time.monotonic() + interval
            write()
    write()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the files go; created if missing")
    parser.add_argument("--flush", default=2.0, type=float, metavar="SECONDS", help="between writes (default: 2)")
    options = parser.parse_args()
    env, signals = os.environ.get, []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    # retry=None: otherwise redis-py reconnects silently, and the files do not show the gap.
    client = redis.Redis(env("REDIS_HOST", "localhost"), env("REDIS_PORT", 6379), 0, env("REDIS_PASSWORD"), retry=None)
    channels = [f"{env('CHANNEL_PREFIX', 'stream:bybit')}_{kind}" for kind in KINDS]
    # The channels of all symbols, where each has its own.
    by_symbol = env("CHANNEL_BY_SYMBOL", "").strip().lower() in ("true", "1", "yes", "on")
    patterns = [re.sub(r"[*?[\]\\]", r"\\\g<0>", channel) + ":*" for channel in channels[:-1] * by_symbol]
    record(messages(client, channels, patterns, signals), options.directory, options.flush)


if __name__ == "__main__":
    main()
