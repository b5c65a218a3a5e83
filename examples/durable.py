"""Writes a channel into a file without a hole, however often it is killed: python examples/durable.py FILE [CHANNEL]

It reads the Redis Stream that the collector keeps beside the channel: set REDIS_STREAM_MAXLEN to the number of messages
that are to outlive an absence of this program. CHANNEL is by default that of the trades; with CHANNEL_BY_SYMBOL it is
such as stream:bybit_trades:BTCUSDT.

A line of FILE is the id of an entry, a tab, the message. The last whole line says where to read on, so what is read and
how far go to the disk together: nothing is lost or written twice when the program or its machine dies at any moment. Do
the same with a database: store the id in the transaction that stores what you made of the message.

Twice may come what the collector sends twice, with another id: what was in flight when its connection to Redis broke,
or at a takeover. Bybit's trades have an id of their own, "i". If the last line is not in the stream any more (this
program was away for too long, or Redis has lost it: restarted without persistence, or replaced by a replica) the
program says so and reads from a minute before it: something may be missing then, and a minute may come twice. It also
says so if Redis has removed entries that it had not read yet, because it was too slow or stood still.

Needs redis-py only. The environment variables REDIS_HOST, REDIS_PORT, REDIS_PASSWORD, REDIS_DB and CHANNEL_PREFIX have
the collector's defaults. REDIS_HOST takes one host name here, and no .env is read; for Sentinel change one line, see
docs/consuming.md; for TLS add ssl=True there.
"""

import argparse
import os
import signal
import time
from pathlib import Path

import redis

BEGINNING = "0-0"  # before all entries
BACK = 60_000  # ms
BLOCK = 65_536  # bytes


def last_id(file):
    """The id in the last whole line, or BEGINNING. Cuts off what is behind it: a kill may have torn a line."""
    end, tail = file.seek(0, os.SEEK_END), b""
    begin = end
    while begin and tail.count(b"\n") < 2:
        begin = max(0, begin - BLOCK)
        file.seek(begin)
        tail = file.read(end - begin)
    whole = tail[: tail.rfind(b"\n") + 1]
    file.truncate(begin + len(whole))
    file.seek(begin + len(whole))
    last = whole.rstrip(b"\n").rpartition(b"\n")[2]
    return last.partition(b"\t")[0].decode() or BEGINNING


def resume(client, channel, position):
    """Where to read on after the entry with this id."""
    if position == BEGINNING or client.xrange(channel, position, position):
        return position  # of the older ones none is missing: Redis removes the oldest first
    print(f"{position} is not in {channel} any more: messages may be missing, some may come twice", flush=True)
    return f"{max(0, int(position.partition('-')[0]) - BACK)}-0"


def entries(client, channel, last, signals):
    """Yields lists of (id, message), all behind `last`, what was read last. Ends when `signals` is not empty."""
    while not signals:
        try:
            position = resume(client, channel, last)
            while not signals:
                for _, found in client.xread({channel: position}, count=1000, block=500):
                    # XREAD tells nothing of what was removed meanwhile: it goes on with the oldest that is left.
                    if position == last != BEGINNING and not client.xrange(channel, last, last):
                        first = found[0][0].decode()
                        print(f"{last} has left {channel}: messages may be missing before {first}", flush=True)
                    position = last = found[-1][0].decode()
                    yield [(number, fields[b"message"]) for number, fields in found]
        except (redis.ConnectionError, redis.TimeoutError) as error:
            print(f"Redis: {error}", flush=True)
            time.sleep(0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", type=Path)
    env, signals = os.environ.get, []
    channel = f"{env('CHANNEL_PREFIX', 'stream:bybit')}_trades"
    parser.add_argument("channel", metavar="CHANNEL", nargs="?", default=channel, help=f"default: {channel}")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    address = env("REDIS_HOST", "localhost"), env("REDIS_PORT", 6379), env("REDIS_DB", 0), env("REDIS_PASSWORD")
    # retry=None: what reconnects here must look again where it was. protocol=2: the shape of the replies.
    client = redis.Redis(*address, retry=None, protocol=2)
    options.file.touch()
    with options.file.open("r+b") as file:
        for found in entries(client, options.channel, last_id(file), signals):
            file.writelines(b"%b\t%b\n" % entry for entry in found)
            file.flush()
            os.fsync(file.fileno())


if __name__ == "__main__":
    main()
