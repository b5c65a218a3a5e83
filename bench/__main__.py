"""The benchmark: the same frames over TLS to each runner in turn, through a real Redis, to a subscriber.

`python -m bench` plays each rate to each runner several times, interleaved, so that what the machine does besides
hits all alike. Each play starts the runner anew; its start and the first second are not measured. Ends by itself and
leaves no process behind, also after Ctrl+C.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
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

import trustme

from bench import frames, sender, subscriber
from bench.board import LAST, Board
from bench.report import LATE, SATURATION, Result, Summary, chart, markdown
from bench.runners import HERE, OUT, RUNNERS, Process, Runner, Skipped
from sandbox.redis import LocalRedis

CHANNELS = len(frames.CHANNELS)
READY_TIMEOUT = 30.0  # seconds for a runner to have subscribed everything
SETTLE = 0.5  # seconds between a runner's subscriptions and the play
WARM_UP = 1.0  # seconds at the beginning of a play that are not measured
QUIET = 0.5  # seconds without an arrival after which nothing more is expected
DRAIN = 3.0  # seconds after a play within which a message must arrive
FAILURES = 3  # plays without a result after which a runner is left out
ANSWER_TIMEOUT = 60.0  # seconds for a helper process to answer
SECOND = 1_000_000_000  # nanoseconds


class Failed(Exception):
    """A play brought no result; the text says why."""


class Helper:
    """A process of the benchmark's own, and the pipe to it."""

    def __init__(self, run: Any, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, its = context.Pipe()
        self.process = context.Process(target=run, args=(its, *arguments), daemon=True)
        self.process.start()
        its.close()

    def ask(self, order: Any, timeout: float = ANSWER_TIMEOUT) -> Any:
        self.pipe.send(order)
        return self.answer(timeout)

    def answer(self, timeout: float = ANSWER_TIMEOUT) -> Any:
        if not self.pipe.poll(timeout):
            raise Failed(f"{self.process.name} did not answer within {timeout:.0f} s")
        return self.pipe.recv()


class Bench:
    """Everything around the runners, for one number of connections."""

    def __init__(self, directory: Path, redis: LocalRedis, groups: int) -> None:
        self.groups = groups
        self.redis = redis
        authority = trustme.CA()
        self.authority = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        server = directory / "server.pem"
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server))
        board = directory / "board"
        self.board = Board(board)
        _, self.cycle = frames.make(groups)
        self.sender = Helper(sender.run, server, board, groups)
        self.subscriber = Helper(subscriber.run, redis.port, board)
        self.url = f"wss://localhost:{self.sender.answer()}"

    def play(self, runner: Runner, turn: int, rate: int, seconds: float) -> Result:
        """Start the runner, play to it, end it. Raises Skipped and Failed."""
        while self.sender.pipe.poll():
            self.sender.pipe.recv()  # a runner that was ready too late
        self.sender.pipe.send(("await", runner.unsupported))
        self.subscriber.ask("start")
        process = Process(runner, self.groups, self.url, self.authority, self.redis.port)
        try:
            self.wait_until_ready(process)
            time.sleep(SETTLE)
            self.sender.pipe.send(("play", rate, WARM_UP + seconds))
            time.sleep(WARM_UP)
            begun, cpu = time.monotonic_ns(), process.cpu()
            time.sleep(seconds)
            ended, cpu = time.monotonic_ns(), process.cpu() - cpu
            played = self.sender.answer(seconds + ANSWER_TIMEOUT)
            quiet = self.drain() if rate != SATURATION else False
            memory = process.memory()
            if process.ended is not None:
                raise Failed(f"ended by itself with exit code {process.ended}")
        finally:
            process.stop()
            seen = self.subscriber.ask("finish")
        return self.judge(runner, turn, rate, begun, ended, cpu, memory, played, seen, quiet)

    def wait_until_ready(self, process: Process) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while not self.sender.pipe.poll(0.05):
            if process.ended is not None:
                raise Failed(
                    f"ended by itself with exit code {process.ended}; see {OUT.name}/{process.runner.name}.log"
                )
            if time.monotonic() > deadline:
                raise Failed(f"did not subscribe everything within {READY_TIMEOUT:.0f} s")
        self.sender.pipe.recv()

    def drain(self) -> bool:
        """Wait until nothing more arrives; False when something still did after DRAIN."""
        deadline = time.monotonic() + DRAIN
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if time.monotonic_ns() - self.board.received[LAST] > QUIET * SECOND:
                return True
        return False

    def judge(
        self,
        runner: Runner,
        turn: int,
        rate: int,
        begun: int,
        ended: int,
        cpu: float,
        memory: float,
        played: dict[str, Any],
        seen: dict[str, int],
        quiet: bool,
    ) -> Result:
        unsupported = tuple(frames.TOPICS[channel] for channel in runner.unsupported)
        topics = [frame.topic for frame in self.cycle if not (unsupported and frame.topic.startswith(unsupported))]
        groups = {symbol: n for n, group in enumerate(frames.symbols(self.groups)) for symbol in group}
        connections = [(topic.split(".")[0], groups[topic.rpartition(".")[2]]) for topic in topics]
        total = played["sent"]
        sent, received = self.board.sent.tolist()[: total + 1], self.board.received.tolist()[: total + 1]
        newest: dict[tuple[str, int], int] = {}  # connection -> its last message that arrived
        arrived = 0
        for index in range(total, 0, -1):
            if received[index]:
                newest.setdefault(connections[(index - 1) % len(connections)], index)
                arrived += begun <= received[index] < ended
        delays = []
        late = missing = count = 0
        for index in range(1, total + 1):
            if not begun <= sent[index] < ended:
                continue
            count += 1
            if not received[index]:
                overtaken = index < newest.get(connections[(index - 1) % len(connections)], 0)
                if quiet or overtaken:
                    missing += 1
                elif rate != SATURATION:
                    late += 1
                continue
            delay = received[index] - sent[index]
            delays.append(delay)
            late += rate != SATURATION and delay > LATE * SECOND
        self.board.clear(total)
        delays.sort()
        paced = rate != SATURATION and len(delays) > 1
        return Result(
            runner=runner.name,
            turn=turn,
            rate=rate,
            arrived=arrived / (ended - begun) * SECOND,
            cpu=cpu / arrived * 1e6 if arrived else None,
            p50=delays[len(delays) // 2] / 1e6 if paced else None,
            p99=delays[len(delays) * 99 // 100] / 1e6 if paced else None,
            worst=delays[-1] / 1e6 if paced else None,
            late=late,
            missing=missing,
            count=count,
            again=seen["again"],
            publishes=seen["messages"],
            unmarked=seen["unmarked"],
            memory=memory,
            lag=played["lag"] * 1e3,
            lost_connections=played["lost"],
        )


def about(
    options: argparse.Namespace, bench: Bench, names: list[str], skipped: dict[str, str], results: list[Result]
) -> Any:
    """What a reader must know beside the numbers; goes into the result files as it is."""
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    lag = statistics.median(result.lag for result in results if result.rate) if any(r.rate for r in results) else 0.0
    with bench.redis.client() as client:
        server = client.info("server")
    versions = {
        "Linux": platform.release().split("-")[0],
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        server.get("server_name", "redis"): server.get("valkey_version", server["redis_version"]),
        **{name: importlib.metadata.version(name) for name in ("pybit", "websocket-client", "redis")},
    }
    for name in names:
        if name not in skipped:
            versions |= RUNNERS[name].versions()
    command = [
        "python -m bench",
        f"--rounds {options.rounds}",
        f"--seconds {options.seconds:g}",
        f"--rates {options.rates}",
    ]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {processor}",
        "versions": versions,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "connections": options.connections,
        "frames_per_write_at_saturation": sender.FRAMES_PER_WRITE,
        "frames": frames.sizes(bench.cycle),
        "runners": {name: RUNNERS[name].says for name in names if name not in skipped},
        "skipped": skipped,
        "lag": f"The sender itself kept its latest frame {lag:.1f} ms too long, as the median of the plays.",
        "command": " ".join((*command, f"--runners {','.join(names)}", f"--connections {options.connections}")),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="measured in each play")
    parser.add_argument("--rates", default="100,800,5000,20000", help="messages a second; saturation is always played")
    parser.add_argument("--runners", default="ours,naive,limit", help=f"of {','.join(RUNNERS)}; or all")
    parser.add_argument("--connections", type=int, default=CHANNELS, help=f"a multiple of {CHANNELS}")
    parser.add_argument("--out", help="path of the result files without their endings; - for none")
    options = parser.parse_args()
    unknown = set(options.runners.split(",")) - {"all", *RUNNERS}
    if unknown:
        parser.error(f"--runners: there is no {', '.join(sorted(unknown))}")
    if options.connections < CHANNELS or options.connections % CHANNELS:
        parser.error(f"--connections: {options.connections} is not a multiple of {CHANNELS}")
    if not options.out:
        more = "" if options.connections == CHANNELS else f"-{options.connections}"
        options.out = str(HERE / f"results{more}")
    return options


def main() -> int:
    options = arguments()
    names = list(RUNNERS) if options.runners == "all" else options.runners.split(",")
    rates = [SATURATION, *(int(rate) for rate in options.rates.split(",") if rate)]
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
        for turn in range(1, options.rounds + 1):
            for rate in rates:
                first = turn % len(names)
                for name in names[first:] + names[:first]:
                    if name in skipped:
                        continue
                    try:
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
            write(Path(options.out), summary, about(options, bench, names, skipped, results), results)
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
