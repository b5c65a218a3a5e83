"""The benchmark: the same frames over TLS to each runner in turn, through a real Redis, to a subscriber.

`python -m bench` plays each rate to each runner several times, interleaved, so that other load on the machine affects
all alike. Each play starts the runner again; its start and the first second are not measured. The benchmark ends by
itself and leaves no process behind, also after Ctrl+C.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import frames, sender
from bench.board import SLOTS
from bench.chart import chart
from bench.headroom import headroom
from bench.play import Bench, Failed
from bench.report import BURST, SATURATION, Result, Summary, markdown
from bench.runners import HERE, RUNNERS, Skipped
from sandbox.redis import LocalRedis

CHANNELS = len(frames.CHANNELS)
FAILURES = 3  # plays without a result after which a runner is left out


def versions(bench: Bench, played: list[str]) -> dict[str, str]:
    """Of all that takes part, by name."""
    with bench.redis.client() as client:
        server = client.info("server")
    found = {
        "Linux": platform.release().split("-")[0],
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        server.get("server_name", "redis"): server.get("valkey_version", server["redis_version"]),
        **{name: importlib.metadata.version(name) for name in ("pybit", "websocket-client", "redis")},
    }
    for name in played:
        found |= RUNNERS[name].versions()
    return found


def about(
    options: argparse.Namespace,
    bench: Bench,
    names: list[str],
    skipped: dict[str, str],
    results: list[Result],
    limits: str,
) -> Any:
    """What a reader must know besides the numbers, as it is written to the result files."""
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    lags = [result.lag for result in results if result.rate > 0]
    lag = statistics.median(lags) if lags else 0.0
    played = [name for name in names if name not in skipped]
    command = [
        "python -m bench",
        f"--rounds {options.rounds}",
        f"--seconds {options.seconds:g}",
        f"--rates {options.rates}",
        f"--burst {options.burst}",
    ]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {processor}",
        "versions": versions(bench, played),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "connections": options.connections,
        "frames_per_write_at_saturation": sender.FRAMES_PER_WRITE,
        "frames": frames.sizes(bench.cycle),
        "runners": {name: RUNNERS[name].about for name in played},
        "skipped": skipped,
        "sender": limits,
        "lag": f"The sender's own longest delay of a frame: {lag:.1f} ms (median of the plays).",
        "command": " ".join((*command, f"--runners {','.join(names)}", f"--connections {options.connections}")),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="measured in each play")
    parser.add_argument("--rates", default="100,800,5000,20000,40000", help="messages a second, beside saturation")
    parser.add_argument("--burst", type=int, default=50_000, help="messages at once, one more play a round; 0 = none")
    parser.add_argument("--runners", default="ours,naive,go,limit", help=f"of {','.join(RUNNERS)}; or all")
    parser.add_argument("--connections", type=int, default=CHANNELS, help=f"a multiple of {CHANNELS}")
    parser.add_argument("--out", help="path of the result files without their endings; - for none")
    options = parser.parse_args()
    unknown = set(options.runners.split(",")) - {"all", *RUNNERS}
    if unknown:
        parser.error(f"--runners: there is no {', '.join(sorted(unknown))}")
    if not 0 <= options.burst < SLOTS:
        parser.error(f"--burst: {options.burst} is not from 0 to {SLOTS - 1:,}")
    if options.connections < CHANNELS or options.connections % CHANNELS:
        parser.error(f"--connections: {options.connections} is not a multiple of {CHANNELS}")
    if not options.out:
        more = "" if options.connections == CHANNELS else f"-{options.connections}"
        options.out = str(HERE / f"results{more}")
    return options


def main() -> int:
    options = arguments()
    names = list(RUNNERS) if options.runners == "all" else options.runners.split(",")
    rates = [SATURATION, *([BURST] if options.burst else []), *(int(rate) for rate in options.rates.split(",") if rate)]
    results: list[Result] = []
    skipped: dict[str, str] = {}
    failures: Counter[str] = Counter()
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None  # no disk under the board
    with tempfile.TemporaryDirectory(prefix="bench-", dir=shared) as directory, LocalRedis() as redis:
        bench = Bench(Path(directory), redis, options.connections // CHANNELS)
        for name in names:
            try:
                RUNNERS[name].command(bench.groups)  # installs it
            except Skipped as reason:
                skipped[name] = str(reason)
                print(f"{name} is left out: {reason}", flush=True)
        limits = headroom(bench)
        print(limits, flush=True)
        for turn in range(1, options.rounds + 1):
            for rate in rates:
                first = turn % len(names)
                for name in names[first:] + names[:first]:
                    if name in skipped:
                        continue
                    try:
                        if rate == BURST:
                            result = bench.burst(RUNNERS[name], turn, options.burst)
                        else:
                            result = bench.play(RUNNERS[name], turn, rate, options.seconds)
                    except Failed as error:
                        print(f"{turn}  {name} failed: {error}", flush=True)
                        failures[name] += 1
                        if failures[name] == FAILURES:
                            skipped[name] = str(error)
                    else:
                        results.append(result)
                        print(result.line(), flush=True)
        if not results:
            return 1
        summary = Summary(sorted(results, key=lambda result: names.index(result.runner)))
        for table in summary.tables():
            print("\n" + table.text())
        if options.out != "-":
            write(Path(options.out), summary, about(options, bench, names, skipped, results, limits), results)
    return 0


def write(out: Path, summary: Summary, facts: dict[str, Any], results: list[Result]) -> None:
    plays = [asdict(result) for result in results]
    out.with_suffix(".json").write_text(json.dumps({"about": facts, "plays": plays}, indent=1) + "\n")
    out.with_suffix(".svg").write_text(chart(summary))
    out.with_suffix(".md").write_text(markdown(summary, facts, out.with_suffix(".svg").name))
    print(f"\nWritten: {out.name}.json, {out.name}.md, {out.name}.svg")


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)  # KeyboardInterrupt: everything started ends on the way out
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
