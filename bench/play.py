"""One play: a runner is started, gets the frames, and is measured."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trustme

from bench import frames, sender, subscriber
from bench.board import LAST, Board
from bench.measure import SECOND, Window, result
from bench.proc import OUT
from bench.report import BURST, SATURATION, Result
from bench.runners import Process, Runner
from sandbox.redis import LocalRedis

READY_TIMEOUT = 30.0  # seconds for a runner to have subscribed everything
SETTLE = 0.5  # seconds between a runner's subscriptions and the play
WARM_UP = 1.0  # seconds at the beginning of a play that are not measured
QUIET = 0.5  # seconds without an arrival after which nothing more is expected
DRAIN = 3.0  # seconds after a play within which a message must arrive
CALM = 0.1  # seconds without an arrival in a burst after which the CPU time is taken
BURST_QUIET = 3.0  # and after which it is over; a runner may read all of it before it publishes
BURST_LIMIT = 30.0  # seconds a burst may take
ANSWER_TIMEOUT = 60.0  # seconds for a helper process to answer


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
        self.subscriber.ask("start")
        try:
            with self.running(runner) as process:
                self.sender.pipe.send(("play", rate, WARM_UP + seconds))
                time.sleep(WARM_UP)
                begun, cpu = time.monotonic_ns(), process.cpu()
                time.sleep(seconds)
                window = Window(begun, time.monotonic_ns(), process.cpu() - cpu)
                played = self.sender.answer(seconds + ANSWER_TIMEOUT)
                if rate != SATURATION:
                    window = replace(window, quiet=self.drain())
                memory = process.memory()
        finally:
            seen = self.subscriber.ask("finish")
        facts = {"runner": runner.name, "turn": turn, "rate": rate, "memory": memory}
        return self.measure(window, runner, facts, played, seen)

    def burst(self, runner: Runner, turn: int, count: int) -> Result:
        """Start the runner, send it `count` messages at once, end it. Raises Skipped and Failed."""
        self.subscriber.ask("start")
        try:
            with self.running(runner) as process:
                cpu = process.cpu()
                begun = self.sender.ask(("burst", count, BURST_LIMIT))
                quiet, used = self.follow(process, begun)
                window = Window(begun, time.monotonic_ns(), used - cpu, quiet)
                played = self.sender.answer()
                memory = process.memory()
        finally:
            seen = self.subscriber.ask("finish")
        facts = {"runner": runner.name, "turn": turn, "rate": BURST, "memory": memory}
        return self.measure(window, runner, facts, played, seen)

    @contextmanager
    def running(self, runner: Runner) -> Iterator[Process]:
        """The runner, once it has subscribed everything. Raises Failed, also when it ends before it is ended here."""
        while self.sender.pipe.poll():
            self.sender.pipe.recv()  # a runner that was ready too late
        self.sender.pipe.send(("await", runner.unsupported))
        process = Process(runner, self.groups, self.url, self.authority, self.redis.port)
        try:
            self.wait_until_ready(process)
            time.sleep(SETTLE)
            yield process
            if process.ended is not None:
                raise Failed(f"ended by itself with exit code {process.ended}")
        finally:
            process.stop()

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

    def follow(self, process: Process, begun: int) -> tuple[bool, float]:
        """Wait until a burst is over: whether it is by BURST_LIMIT, and the runner's CPU time just after the last
        arrival.
        """
        used, taken_at = process.cpu(), 0
        while (now := time.monotonic_ns()) < begun + BURST_LIMIT * SECOND:
            last = max(self.board.received[LAST], begun)
            if now - last > CALM * SECOND and taken_at != last:
                used, taken_at = process.cpu(), last
            if now - last > BURST_QUIET * SECOND:
                return True, used
            time.sleep(0.02)
        return False, process.cpu()

    def measure(
        self, window: Window, runner: Runner, facts: dict[str, Any], played: dict[str, Any], seen: dict[str, int]
    ) -> Result:
        """Reads the board, clears it, and returns what the play came to."""
        unsupported = tuple(frames.TOPICS[channel] for channel in runner.unsupported)
        topics = [frame.topic for frame in self.cycle if not (unsupported and frame.topic.startswith(unsupported))]
        groups = {symbol: n for n, group in enumerate(frames.symbols(self.groups)) for symbol in group}
        route = [(topic.split(".")[0], groups[topic.rpartition(".")[2]]) for topic in topics]
        total = played["sent"]
        sent, received = self.board.sent.tolist()[: total + 1], self.board.received.tolist()[: total + 1]
        self.board.clear(total)
        facts |= {"again": seen["again"], "publishes": seen["messages"], "unmarked": seen["unmarked"]}
        facts |= {"lag": played["lag"] * 1e3, "lost_connections": played["lost"]}
        return result(window, sent, received, route, facts)
