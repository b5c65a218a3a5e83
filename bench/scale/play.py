"""One play: the collectors are started, get their frames, and are measured."""

import time
from array import array
from functools import cache
from pathlib import Path
from typing import Any

import trustme

from bench.play import Failed, Helper
from bench.proc import cpu, forget_peak, memory
from bench.scale import reader, sender
from bench.scale.collectors import Collector, Ends, Rest
from bench.scale.frames import cycle, symbols
from bench.scale.measure import BY_SYMBOL, SECOND, Case, Result, result
from conf.streams import in_shard
from sandbox.redis import LocalRedis

READY_TIMEOUT = 60.0  # seconds for the collectors to have subscribed everything
SETTLE = 1.0  # seconds between the subscriptions and the play
WARM_UP = 1.5  # seconds at the beginning of a play that are not measured
WARM_RATE = 1000  # messages a second before a burst
DRAIN, QUIET = 20.0, 0.5  # seconds after a play within which, and without an arrival after which, all is there
ANSWER_TIMEOUT = 120.0  # seconds for a helper to answer

topics_of = cache(lambda count, recorded: [frame.topic for frame in cycle(count, recorded).moves])


class Bench:
    """Everything around the collectors. directory: for certificates. recorded: see frames.cycle."""

    def __init__(self, directory: Path, redis: LocalRedis, rest: Rest, recorded: Path | None) -> None:
        self.redis, self.rest, self.recorded = redis, rest, recorded
        authority = trustme.CA()
        bundle, server = directory / "ca.pem", directory / "server.pem"
        authority.cert_pem.write_to_path(str(bundle))
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server))
        self.sender = Helper(sender.run, server)
        self.reader = Helper(reader.run, redis.port)
        self.ends = Ends(f"wss://localhost:{self.sender.answer()}", rest.url, redis.port, bundle)

    def play(self, case: Case, seconds: float) -> Result:
        """Starts the collectors, plays to them, ends them. Raises Failed."""
        while self.sender.pipe.poll():
            self.sender.pipe.recv()  # collectors that were ready too late
        self.rest.names = symbols(case.symbols)
        self.sender.pipe.send(("await", case.symbols, self.recorded, 2 if case.standby else 1))
        begun, reading = time.monotonic_ns(), False
        collectors: list[Collector] = []
        try:
            self.start(case, collectors)
            ready, connections = self.wait_until_ready(collectors)
            facts: dict[str, Any] = {"case": case, "start": (ready - begun) / SECOND, "connections": connections}
            facts["start_cpu"] = sum(cpu(one.process.pid) for one in collectors)
            time.sleep(SETTLE)
            if case.burst:
                self.sender.ask(("play", WARM_RATE, WARM_UP, case.together), ANSWER_TIMEOUT)
                time.sleep(SETTLE)
            self.reader.ask(("start", case.readers, BY_SYMBOL in case.setting))
            reading = True
            facts |= self.measured(case, collectors, seconds)
        finally:
            for one in collectors:
                one.stop()
            indexes, times = self.reader.ask(("finish",), ANSWER_TIMEOUT) if reading else (array("i"), array("q"))
        return result(facts, indexes, times, topics_of(case.symbols, self.recorded))

    def start(self, case: Case, started: list[Collector]) -> None:
        """Starts the collectors, which are added to `started`."""
        names, of = symbols(case.symbols), case.processes
        # Only one entry of STREAMS a channel can have its symbols from the list.
        given = [[] if case.parts == 1 else [name for name in names if in_shard(name, (n + 1, of))] for n in range(of)]
        key = f"bench:{time.monotonic_ns()}" if case.standby else ""
        name, _, value = case.setting.partition("=")
        more = {"LEADER_KEY": key} | ({name: value} if name else {})
        started += [Collector(self.ends, given[n], (n + 1, of), case.parts, more) for n in range(of)]
        if case.standby:
            self.wait_for_a_leader(key)
            started.append(Collector(self.ends, given[0], (1, 1), case.parts, more))

    def wait_for_a_leader(self, key: str) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        with self.redis.client() as client:
            while not client.exists(key):
                if time.monotonic() > deadline:
                    raise Failed("no collector has become the leader")
                time.sleep(0.05)

    def wait_until_ready(self, collectors: list[Collector]) -> tuple[int, int]:
        deadline = time.monotonic() + READY_TIMEOUT
        while not self.sender.pipe.poll(0.02):
            if codes := [one.ended for one in collectors if one.ended is not None]:
                raise Failed(f"a collector ended by itself with exit code {codes[0]}; see bench/out/scale.log")
            if time.monotonic() > deadline:
                raise Failed(f"not everything was subscribed within {READY_TIMEOUT:.0f} s; see bench/out/scale.log")
        return self.sender.pipe.recv()  # type: ignore[no-any-return]

    def measured(self, case: Case, collectors: list[Collector], seconds: float) -> dict[str, Any]:
        """Plays; returns what is known but the arrivals, and the play itself as `played` and `window`."""
        pids = [one.process.pid for one in collectors]
        for pid in pids:
            forget_peak(pid)
        standby = pids[1:] if case.standby else []
        pids = pids[: len(pids) - len(standby)]
        warm = 0.0 if case.burst else WARM_UP
        calm = sum(map(memory, pids))
        self.sender.pipe.send(("play", case.rate, 1.0 if case.burst else warm + seconds, case.together))
        time.sleep(warm)
        before, begun = self.costs(pids, standby), time.monotonic_ns()
        played = None
        if case.burst:
            played = self.sender.answer(ANSWER_TIMEOUT)
            self.drain()
        else:
            time.sleep(seconds)
        after, ended = self.costs(pids, standby), time.monotonic_ns()
        if played is None:
            played = self.sender.answer(seconds + ANSWER_TIMEOUT)
            self.drain()
        took = (ended - begun) / SECOND
        shares = {name: (after[name] - before[name]) / took for name in before}
        facts = {
            "memory": calm if case.burst else sum(map(memory, pids)),
            "peak": sum(memory(pid, "VmHWM") for pid in pids),
        }
        facts["standby_memory"] = sum(map(memory, standby))
        if codes := [one.ended for one in collectors if one.ended is not None]:
            raise Failed(f"a collector ended by itself with exit code {codes[0]}; see bench/out/scale.log")
        return {**shares, **facts, "played": played, "window": (begun, ended)}

    def costs(self, pids: list[int], standby: list[int]) -> dict[str, float]:
        """Seconds of CPU time so far, by who used it."""
        own = {"redis": self.redis.pid, "sender": self.sender.process.pid, "reader": self.reader.process.pid}
        collectors = {"cpu": sum(map(cpu, pids)), "standby": sum(map(cpu, standby))}
        return {**collectors, **{name: cpu(pid or 0) for name, pid in own.items()}}

    def drain(self) -> None:
        """Waits until nothing more arrives."""
        deadline = time.monotonic() + DRAIN
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if time.monotonic_ns() - self.reader.ask(("latest",)) > QUIET * SECOND:
                return
