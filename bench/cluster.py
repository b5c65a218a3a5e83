"""What a Redis Cluster costs: `python -m bench.cluster` plays the benchmark's frames to this collector in front of one
Redis and of a Cluster of three masters. The plays are interleaved, so that other load on the machine affects all alike.

`one`: a single Redis. `near`: a Cluster; subscribers are on the node that gets the messages. `far`: they are on another
one. `list`: as `far`, and REDIS_HOST names all three, so that what Redis has confirmed is kept for a moment.
"""

import sys
import tempfile
from pathlib import Path

from bench.compare import cells, cpu_of, in_order, parser, plays
from bench.play import Bench, Failed
from bench.proc import ROOT
from bench.report import Result
from bench.runners import Runner
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
        return sum(map(cpu_of, self.nodes))

    def play(self, turn: int, rate: int, seconds: float) -> tuple[Result, float]:
        """The Result of a play, and the CPU time of Redis in microseconds for each message."""
        before = self._cpu()
        result = self.bench.play(self.runner, turn, rate, seconds)
        return result, (self._cpu() - before) / result.publishes * 1e6


def main() -> int:
    options = parser("python -m bench.cluster", __doc__).parse_args()
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    found: dict[tuple[int, str], list[tuple[Result, float]]] = {}
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
        for turn, rate, setting in plays(options, settings):
            try:
                played = setting.play(turn, rate, options.seconds)
            except Failed as error:
                print(f"{setting.runner.name}: {error}", flush=True)
                continue
            found.setdefault((rate, setting.runner.name), []).append(played)
            print(f"{played[0].line()}; Redis {played[1]:.1f} µs", flush=True)
    print("\n| rate | Redis | arrived/s | CPU of the collector, µs a message | of all of Redis | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|")
    for (rate, name), some in sorted(found.items(), key=lambda each: in_order(each[0][0])):
        results, server = zip(*some, strict=True)
        print(f"| {' | '.join(cells(rate, name, results, server))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
