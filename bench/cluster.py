"""What a Redis Cluster costs: `python -m bench.cluster` plays the benchmark's frames to this collector in front of one
Redis and of a Cluster of three masters. The plays are interleaved, so that other load on the machine affects all alike.

`one`: a single Redis. `near`: a Cluster; subscribers are on the node that gets the messages. `far`: they are on another
one. `list`: as `far`, and REDIS_HOST names all three, so that what Redis has confirmed is kept for a moment.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench.play import Bench, Failed
from bench.report import SATURATION, Result
from bench.runners import ROOT, Runner
from sandbox.redis import HOST, LocalRedis

sys.path.append(str(ROOT / "tests"))
from topology import Cluster

COLLECT = [sys.executable, "main.py"]


class Setting:
    """A collector and its Redis. nodes: whose CPU time counts. target, source: where messages go in and out."""

    def __init__(
        self, name: str, nodes: list[LocalRedis], target: int, source: int, directory: Path, hosts: str = ""
    ) -> None:
        environment = ["env", f"REDIS_HOST={hosts}"] if hosts else []
        self.runner = Runner(name, "", lambda _groups: [*environment, *COLLECT])
        self.nodes = nodes
        directory.mkdir()
        self.bench = Bench(directory, nodes[source], 1)
        self.bench.redis = nodes[target]  # the subscriber stays where it is

    def _cpu(self) -> float:
        """Seconds of all nodes."""
        seconds = 0.0
        for node in self.nodes:
            with node.client() as client:
                info = client.info("cpu")
            seconds += info["used_cpu_user"] + info["used_cpu_sys"]
        return seconds

    def play(self, turn: int, rate: int, seconds: float) -> tuple[Result, float]:
        """The Result of a play, and the CPU time of Redis in microseconds for each message."""
        before = self._cpu()
        result = self.bench.play(self.runner, turn, rate, seconds)
        return result, (self._cpu() - before) / result.publishes * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="measured in each play")
    parser.add_argument("--rates", default="1000,5000", help="messages a second; saturation is always played")
    options = parser.parse_args()
    rates = [*(int(rate) for rate in options.rates.split(",") if rate), SATURATION]
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    plays: dict[tuple[int, str], list[tuple[Result, float]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=shared) as directory,
        LocalRedis() as one,
        Cluster(nodes=3, node_timeout=15_000) as cluster,
    ):
        three: list[LocalRedis] = [*cluster.nodes]
        hosts = ",".join(f"{HOST}:{node.port}" for node in three)
        settings = [
            Setting("one", [one], 0, 0, Path(directory) / "one"),
            Setting("near", three, 0, 0, Path(directory) / "near"),
            Setting("far", three, 0, 1, Path(directory) / "far"),
            Setting("list", three, 0, 1, Path(directory) / "list", hosts),
        ]
        for turn in range(options.rounds):
            for rate in rates:
                for number in range(len(settings)):
                    setting = settings[(turn + number) % len(settings)]
                    try:
                        played = setting.play(turn + 1, rate, options.seconds)
                    except Failed as error:
                        print(f"{setting.runner.name}: {error}", flush=True)
                        continue
                    plays.setdefault((rate, setting.runner.name), []).append(played)
                    print(f"{played[0].line()}; Redis {played[1]:.1f} µs", flush=True)
    print("\n| rate | Redis | arrived/s | CPU of the collector, µs a message | of all of Redis | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|")
    for (rate, name), found in sorted(plays.items(), key=lambda each: each[0][0] or 1 << 30):
        results, server = zip(*found, strict=True)
        columns = [f"{rate:,}/s" if rate else "saturation", name]
        columns += [f"{statistics.median(result.arrived for result in results):,.0f}"]
        columns += [f"{statistics.median(result.cpu or 0 for result in results):.1f}"]
        columns += [f"{statistics.median(server):.1f}"]
        for delay in ("p50", "p99"):
            delays = [getattr(result, delay) for result in results]
            columns.append("-" if None in delays else f"{statistics.median(delays):.2f}")
        print(f"| {' | '.join(columns)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
