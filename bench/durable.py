"""What Redis Streams beside Pub/Sub cost: `python -m bench.durable` plays the benchmark's frames to three collectors.

`pubsub`: this collector as it is. `streams`: with REDIS_STREAM_MAXLEN. `xadd`: without the setting, and each callback
calls redis-py's `xadd` after `publish`, as one would write it. The plays are interleaved, so that other load on the
machine affects all alike; each begins with an empty Redis.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.compare import cells, cpu_of, in_order, parser, plays
from bench.play import Bench
from bench.report import Result
from bench.runners import Runner
from sandbox.redis import LocalRedis

MAXLEN = 100_000
RUNNERS = (
    Runner("pubsub", "", lambda _groups: [sys.executable, "main.py"]),
    Runner("streams", "", lambda _groups: ["env", f"REDIS_STREAM_MAXLEN={MAXLEN}", sys.executable, "main.py"]),
    Runner("xadd", "", lambda _groups: [sys.executable, "-m", "bench.durable", "--collect"]),
)


def collect() -> int:
    """The runner `xadd`: main.py with callbacks that also add each message to a stream."""
    import redis

    import main
    from callbacks import channel_of, publisher
    from relay.dispatch import raw
    from relay.kinds import KINDS

    client = redis.Redis(os.environ["REDIS_HOST"], int(os.environ["REDIS_PORT"]))

    def callback(channel: str) -> Callable[[Any], None]:
        @raw
        def handle(message: Any) -> None:
            publisher.publish(channel, message)
            client.xadd(channel, {"message": message}, maxlen=MAXLEN, approximate=True)

        return handle

    callbacks = {f"handle_{kind.name}": callback(channel_of(kind)) for kind in KINDS}
    main.STREAMS[:] = [
        entry | {"args": (entry["args"][0], callbacks[entry["args"][1].__name__])} for entry in main.STREAMS
    ]
    return main.main([])


def play(bench: Bench, runner: Runner, turn: int, rate: int, seconds: float) -> tuple[Result, float, float]:
    """The Result of a play, Redis's CPU time in microseconds for each message, and its memory in MB at the end."""
    with bench.redis.client() as client:
        client.flushall()
        before = cpu_of(bench.redis)
        result = bench.play(runner, turn, rate, seconds)
        used = cpu_of(bench.redis) - before
        return result, used / result.publishes * 1e6, client.info("memory")["used_memory"] / 1e6


def main() -> int:
    arguments = parser("python -m bench.durable", __doc__)
    arguments.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.collect:
        return collect()
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    found: dict[tuple[int, str], list[tuple[Result, float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=shared) as directory, LocalRedis() as redis:
        bench = Bench(Path(directory), redis, 1)
        for turn, rate, runner in plays(options, RUNNERS):
            played = play(bench, runner, turn, rate, options.seconds)
            found.setdefault((rate, runner.name), []).append(played)
            print(f"{played[0].line()}; Redis {played[1]:.1f} µs, {played[2]:.0f} MB", flush=True)
    print("\n| rate | collector | arrived/s | its CPU, µs a message | Redis's | p50 ms | p99 ms | Redis, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for (rate, name), some in sorted(found.items(), key=lambda one: in_order(one[0][0])):
        results, server, memory = zip(*some, strict=True)
        print(f"| {' | '.join([*cells(rate, name, results, server), f'{statistics.median(memory):.0f}'])} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
