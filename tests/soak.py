"""An hour of the whole program under load: `make soak`, or `python tests/soak.py --seconds 600 --rate 2000`.

The stand-in for Bybit drops a connection every minute and Redis is restarted every ten. Prints the program's memory,
open files and threads, and ends with exit code 1 if they grew, if a stream was not up at the end, or if an order-book
update was missing or out of order within a connection. Linux only: it reads /proc.
"""

import argparse
import json
import os
import random
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import Subscriber, eventually  # noqa: E402
from programs import Program  # noqa: E402

from sandbox.bybit import Bybit  # noqa: E402
from sandbox.redis import LocalRedis  # noqa: E402

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT")
WARM_UP = 120.0  # seconds after which memory must not grow any more
GROWTH = 1.10  # of the memory after the warm-up
SPARE = 8  # files and threads beside those after the warm-up: connections that are being replaced
UPDATE = re.compile(rb'"topic":"(orderbook[^"]+)","type":"(\w+)".*"u":(\d+)')


def usage(pid):
    """Resident memory in MiB, open files, threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    memory = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    return memory, len(os.listdir(f"/proc/{pid}/fd")), int(re.search(r"Threads:\s+(\d+)", status)[1])


class Checker:
    """Checks messages and keeps none: order-book updates rise by one but for new connections and repetitions."""

    def __init__(self):
        self.count = self.disorder = 0
        self.last = {}

    def take(self, messages):
        for channel, payload in messages:
            self.count += channel != "stream:bybit_status"
            if channel == "stream:bybit_orderbook" and (found := UPDATE.search(payload)):
                topic, kind, update = found[1], found[2], int(found[3])
                if kind == b"delta" and update > self.last.get(topic, update) + 1:
                    self.disorder += 1
                self.last[topic] = update


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--rate", type=float, default=2000, help="messages a second")
    options = parser.parse_args()
    with LocalRedis() as redis, Bybit(rate=options.rate) as bybit:
        settings = {"BYBIT_WS_URL": bybit.url, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}
        settings |= {"SYMBOLS": ",".join(SYMBOLS), "RECONNECT_DELAY": 0.5, "LOG_LEVEL": "WARNING"}
        with Program(settings) as program, Subscriber(redis, "stream:bybit_*", reconnect=True) as subscriber:
            return soak(options.seconds, redis, bybit, program, subscriber)


def soak(seconds, redis, bybit, program, subscriber):
    checker, chance = Checker(), random.Random(1)
    began = time.monotonic()
    shown = dropped = began
    restarted, base, most = began, None, 0.0
    base_files = base_threads = 0
    while (now := time.monotonic()) - began < seconds and program.process.poll() is None:
        time.sleep(0.2)
        messages, subscriber.messages = subscriber.messages, []
        checker.take(messages)
        for one in bybit.connections:
            one.requests.clear()
        if now - dropped >= 60:
            dropped = now
            chance.choice([one for one in bybit.connections if one.closed is None]).drop()
        if now - restarted >= 600:
            restarted = now
            redis.kill()
            redis.start()
        if now - shown >= min(60, seconds / 20):
            shown = now
            memory, files, threads = usage(program.process.pid)
            if base is None and now - began >= min(WARM_UP, seconds / 4):
                base, base_files, base_threads = memory, files, threads
            most = max(most, memory if base else 0)
            rate = checker.count / (now - began)
            print(
                f"{now - began:6.0f} s  {checker.count:11,} messages  {rate:7,.0f}/s  {memory:6.1f} MiB  "
                f"{files} files  {threads} threads  {len(bybit.connections)} connections",
                flush=True,
            )
    memory, files, threads = usage(program.process.pid)
    all_up = all_streams_are_up(redis)
    code, _ = program.stop()
    print(f"Memory {base:.1f} MiB after the warm-up, {most:.1f} at most, {memory:.1f} at the end; {files} files,")
    print(
        f"{threads} threads; exit code {code}; {checker.count:,} messages, {checker.disorder} gaps inside a connection"
    )
    grew = most > base * GROWTH or files > base_files + SPARE or threads > base_threads + SPARE
    return int(grew or not all_up or code != 0 or checker.disorder > 0)


def all_streams_are_up(redis):
    """According to the state hash. A connection that was just dropped has some seconds to come back."""

    def states():
        with redis.client() as client:
            found = [json.loads(s) for name, s in client.hgetall("stream:bybit_state").items() if name != b"*"]
        return len(found) == 4 and all(state["up"] for state in found)

    try:
        return eventually(states)
    except AssertionError:
        return False


if __name__ == "__main__":
    sys.exit(main())
