"""What the whole market costs: CPU, memory, delay and start-up of the collector against what it carries.

`python -m bench.scale` plays every case of every series, over TLS, through a real Redis, to subscribers, on one
machine, and writes bench/scale.json; `--report` writes the tables of docs/scaling.md and its picture from that file.
`--series rates --rounds 1 --seconds 3 --out -` is a short look. It ends by itself and leaves no process behind.
"""

import argparse
import json
import os
import platform
import signal
import ssl
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.play import Failed
from bench.proc import ROOT
from bench.scale.collectors import Rest
from bench.scale.measure import Case, Result
from bench.scale.play import Bench
from bench.scale.report import write_report
from sandbox.redis import LocalRedis

RESULTS = ROOT / "bench" / "scale.json"
BURST = 50_000
SERIES = {
    "symbols": [Case("symbols", symbols=number) for number in (1, 10, 100, 400, 800, 3000)],
    "rates": [
        Case("rates", rate=rate, together=together)
        for rate in (1000, 5000, 12_000, 20_000, 30_000)
        for together in (False, True)
    ],
    "processes": [Case("processes", rate=rate, processes=n) for rate in (12_000, 20_000, 30_000) for n in (1, 2)],
    "parts": [Case("parts", rate=12_000, parts=number) for number in (1, 2, 4, 8, 16)],
    "readers": [Case("readers", rate=12_000, together=True, readers=number) for number in (1, 2, 4, 8)],
    "settings": [
        Case("settings", rate=12_000, setting=setting)
        for setting in ("", "CHANNEL_BY_SYMBOL=True", "REDIS_STREAM_MAXLEN=100000")
    ],
    "standby": [Case("standby", rate=rate, standby=True) for rate in (1000, 5000, 12_000)],
    "burst": [Case("burst", rate=BURST, together=together, burst=True) for together in (False, True)]
    + [Case("burst", rate=BURST, together=True, burst=True, processes=2)],
}


def about(options: argparse.Namespace, redis: LocalRedis) -> dict[str, Any]:
    """What a reader must know besides the numbers."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.machine())
    with redis.client() as client:
        server = client.info("server")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {processor}",
        "versions": {
            "Linux": platform.release().split("-")[0],
            "Python": platform.python_version(),
            "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
            server.get("server_name", "redis"): server.get("valkey_version", server["redis_version"]),
        },
        "seconds": options.seconds,
        "rounds": options.rounds,
        "load": os.getloadavg()[0],
        "recorded": options.frames is not None,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--series", default=",".join(SERIES), help=f"of {','.join(SERIES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="measured in each play")
    parser.add_argument("--frames", type=Path, help="a recording: a line for each frame, its time, a tab, its text")
    parser.add_argument("--out", default=str(RESULTS), help="path of the results, which are added to; - for none")
    parser.add_argument("--report", action="store_true", help="only write docs/scaling.md and its picture")
    options = parser.parse_args()
    if unknown := set(options.series.split(",")) - set(SERIES):
        parser.error(f"--series: there is no {', '.join(sorted(unknown))}")
    if options.frames and not options.frames.exists():
        parser.error(f"--frames: {options.frames} is not there; without it the stand-in's frames are played")
    return options


def save(path: Path, facts: dict[str, Any], results: list[Result]) -> None:
    """Replaces the results of the series that were played now; those of the others stay."""
    kept = json.loads(path.read_text()) if path.exists() else {"about": {}, "plays": []}
    played = {result.case.series for result in results}
    plays = [play for play in kept["plays"] if play["case"]["series"] not in played]
    kept["about"] |= dict.fromkeys(sorted(played), facts)
    path.write_text(json.dumps({"about": kept["about"], "plays": plays + [asdict(one) for one in results]}, indent=1))


def main() -> int:
    options = arguments()
    if options.report:
        write_report(RESULTS)
        return 0
    cases = [case for name in options.series.split(",") for case in SERIES[name]]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, LocalRedis() as redis, Rest() as rest:
        bench = Bench(Path(directory), redis, rest, options.frames)
        facts = about(options, redis)
        for turn in range(1, options.rounds + 1):
            for case in cases:
                try:
                    results.append(bench.play(case, options.seconds))
                    print(turn, results[-1].line(), flush=True)
                except Failed as error:
                    print(f"{turn} {case}: FAILED: {error}", flush=True)
    if not results:
        return 1
    if options.out != "-":
        save(Path(options.out), facts, results)
    return 0


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)  # KeyboardInterrupt: everything started ends on the way out
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
