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

from bench.play import Bench
from bench.report import SATURATION, Result
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

        def cpu() -> float:
            info = client.info("cpu")
            return float(info["used_cpu_user"] + info["used_cpu_sys"])

        client.flushall()
        before = cpu()
        result = bench.play(runner, turn, rate, seconds)
        return result, (cpu() - before) / result.publishes * 1e6, client.info("memory")["used_memory"] / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.durable", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="measured in each play")
    parser.add_argument("--rates", default="1000,5000", help="messages a second; saturation is always played")
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.collect:
        return collect()
    rates = [*(int(rate) for rate in options.rates.split(",") if rate), SATURATION]
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    plays: dict[tuple[int, str], list[tuple[Result, float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=shared) as directory, LocalRedis() as redis:
        bench = Bench(Path(directory), redis, 1)
        for turn in range(options.rounds):
            for rate in rates:
                for number in range(len(RUNNERS)):
                    runner = RUNNERS[(turn + number) % len(RUNNERS)]
                    played = play(bench, runner, turn + 1, rate, options.seconds)
                    plays.setdefault((rate, runner.name), []).append(played)
                    print(f"{played[0].line()}; Redis {played[1]:.1f} µs, {played[2]:.0f} MB", flush=True)
    print("\n| rate | collector | arrived/s | its CPU, µs a message | Redis's | p50 ms | p99 ms | Redis, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for (rate, name), found in sorted(plays.items(), key=lambda one: one[0][0] or 1 << 30):
        results, server, memory = zip(*found, strict=True)
        columns = [f"{rate:,}/s" if rate else "saturation", name]
        columns += [f"{statistics.median(result.arrived for result in results):,.0f}"]
        columns += [f"{statistics.median(result.cpu or 0 for result in results):.1f}"]
        columns += [f"{statistics.median(server):.1f}"]
        for delay in ("p50", "p99"):
            delays = [getattr(result, delay) for result in results]
            columns.append("-" if None in delays else f"{statistics.median(delays):.2f}")
        print(f"| {' | '.join([*columns, f'{statistics.median(memory):.0f}'])} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
