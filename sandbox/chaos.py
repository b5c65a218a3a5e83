"""Two collectors under faults: what `make demo CHAOS=1` plays, and how it counts what that cost."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import redis

from sandbox.board import Board, Row
from sandbox.bybit import Bybit
from sandbox.bybit.connection import Connection
from sandbox.collectors import LEADER_KEY, child, instances, pair_of, settings_for
from sandbox.consumer import CHANNELS, NAMES, STATUS, Arrival, Consumer
from sandbox.proof import Data, Proof
from sandbox.redis import LocalRedis

TICK = 0.1  # seconds between two looks at everything
SAMPLE = 0.5  # seconds of a rate
ANNOUNCED, SHOWN = 2.5, 1.0  # seconds between the announcement and the fault, and after its outcome
UNDER_WAY = 0.3  # seconds until a message has arrived, usually
PATIENCE = 5.0  # seconds after which a message that has not arrived is lost
TIMEOUT = 30.0  # seconds for anything that has to happen
LOG_LINES = 6  # of each collector, shown if something did not happen


class Interrupted(Exception):
    """A signal came."""


@dataclass(frozen=True)
class Fault:
    """What happens. seconds: about how long it takes, with its announcement, at pace 1."""

    name: str
    seconds: float
    words: str
    act: Callable[["Chaos"], None]


class Chaos:
    """Two collectors, an exchange, a Redis and a subscriber, each in a process of its own but the exchange; started
    with `with`, on the main thread.

    Args:
        pace: of all pauses and outages; 1 = about a minute.
        signals: those that came; the first ends it with Interrupted.
        tell: prints a line, where there is no live view.
    """

    def __init__(
        self, symbols: str, board: Board, pace: float, signals: Sequence[int], tell: Callable[[str], None]
    ) -> None:
        self.board, self.pace, self.tell = board, pace, tell
        self.leader = ""  # from the event; the subscriber may miss it while Redis is away
        self.proof: Proof | None = None  # from when all must arrive
        self.redis = LocalRedis()
        self.bybit = Bybit({"linear": symbols.split(",")}, board.rate, doors=2, truth=True)
        self.logs: dict[str, list[str]] = {}
        self.programs: dict[str, subprocess.Popen[str]] = {}
        self._signals, self._symbols = signals, symbols
        self._consumer = Consumer(self.redis.port)
        self._messages: list[Arrival] = []
        self._sampled = time.monotonic(), 0  # when, and how many messages there were then
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for part in (self.redis, self.bybit, self._consumer):
                stack.enter_context(part)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs.values():
            program.kill()
        self._stack.close()

    def begin(self) -> None:
        """Returns when one collector leads, the other one is ready, and messages flow."""
        self.wait(self._is_subscribed, "The subscriber is not there")
        self.run("a")
        self.wait(lambda: self.leader == "a", "Nobody leads")
        self.run("b")
        self.wait_for_pair()
        self.proof = Proof(time.monotonic())
        self.board.headline = "One leads, the other one stands by."
        self.board.words = "From here on every message must arrive."
        self.tell(f"{self.board.headline} {self.board.words}")
        self.passes(ANNOUNCED)

    def play(self, row: Row, fault: Fault) -> None:
        """Announces a fault, lets it happen, and measures what it cost."""
        assert self.proof is not None
        row.state = "runs"
        name = f"{self.board.rows.index(row) + 1}/{len(self.board.rows)}: {fault.name}."
        self.board.headline, self.board.words = f"Next {name}", fault.words
        self.tell(f"{self.board.headline} {fault.words}")
        self.passes(ANNOUNCED)
        self.board.headline = f"Now {name}"
        began = time.monotonic()
        try:
            fault.act(self)
            self.wait_for_pair()
        except BaseException:
            row.state = "fails"
            raise
        until = time.monotonic()
        self.tick(UNDER_WAY)
        while (found := self.proof.compare(self.truth(), self.data, until)).lost > self.proof.total.lost:
            if time.monotonic() > until + PATIENCE:
                break
            self.tick(UNDER_WAY)
        one = row.outcome = self.proof.add(found, self.truth(), self.data, began)
        row.state = "fails" if one.lost else "done"
        total = self.proof.total
        self.board.total = f"so far {total.lost:,} of {total.made:,} messages lost"
        self.tell(f"Silent for {one.silence:.2f} s; {one.waited:,} waited, {one.twice:,} came twice, {one.lost:,} lost")
        self.passes(SHOWN)

    def end(self) -> None:
        """Compares everything, when all has arrived."""
        assert self.proof is not None
        self.bybit.rate = 0
        until, arrived = time.monotonic(), -1
        while arrived != len(self._messages) and time.monotonic() < until + PATIENCE:
            arrived = len(self._messages)
            self.tick(2 * UNDER_WAY)
        self.proof.total = self.proof.compare(self.truth(), self.data, until)

    # What faults are made of.

    def run(self, name: str) -> None:
        """Starts a collector; each reaches the exchange through a door of its own."""
        settings = settings_for(self.redis, self.bybit.urls[self._door(name)], self._symbols)
        settings |= {"LEADER_KEY": LEADER_KEY, "INSTANCE": name}
        settings |= {"RECONNECT_DELAY": "0.5", "RECONNECT_DELAY_MAX": "1"}  # by default 2 s, or 4 s after short ones
        self.logs[name] = []
        self.programs[name] = self._stack.enter_context(child(self.logs[name], "main.py", **settings))

    def restart(self, name: str) -> None:
        """Ends a collector as an upgrade would, and starts it again."""
        self.programs[name].terminate()
        self.wait(lambda: self.programs[name].poll() is not None, f"Collector {name} does not end")
        self.run(name)
        self.wait_for_pair()

    def connections(self, name: str) -> list[Connection]:
        """The collector's open connections to the exchange."""
        port = int(self.bybit.urls[self._door(name)].rpartition(":")[2])
        return [one for one in self.bybit.connections if one.port == port and one.closed is None]

    def wait_for_pair(self) -> None:
        """Waits until one leads and one is ready; then `leader` is right, whatever the subscriber has missed."""

        def is_there() -> bool:
            try:
                pair = pair_of(instances(self.redis))
            except redis.RedisError:
                return False  # Redis has only just come back
            self.leader = pair[0] if pair else self.leader
            return pair is not None

        self.wait(is_there, "No collector is ready to take over")

    def wait_for_takeover(self, former: str) -> None:
        self.wait(lambda: self.leader != former, "Nobody takes over")

    def wait(self, condition: Callable[[], object], complaint: str) -> None:
        """Raises RuntimeError with the complaint and the ends of the logs, if the condition does not come."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                logs = [f"{name}: {line}" for name, lines in self.logs.items() for line in lines[-LOG_LINES:]]
                raise RuntimeError("\n".join([f"{complaint}, after {TIMEOUT:.0f} s", *logs]))
            self.tick()

    def passes(self, seconds: float) -> None:
        """Lets the data flow for that long, at pace 1."""
        end = time.monotonic() + seconds * self.pace
        while time.monotonic() < end:
            self.tick()

    def tick(self, seconds: float = TICK) -> None:
        """Waits, and takes what has come. Raises Interrupted after a signal."""
        if self._signals:
            raise Interrupted
        time.sleep(seconds)
        new = self._consumer.since(len(self._messages))
        self._messages += new
        for _, channel, payload in new:
            if channel == STATUS and (event := json.loads(payload))["event"] == "leader":
                self.leader = event["instance"]
                self.tell(f"{self.leader} leads")
        (then, count), now = self._sampled, time.monotonic()
        if now - then >= SAMPLE:
            self.board.rates.append((len(self._messages) - count) / (now - then))
            self._sampled = now, len(self._messages)
        self.board.collectors = [(name, self._role(name), len(self.connections(name))) for name in self.programs]

    # The measurement.

    @property
    def data(self) -> Data:
        """What the subscriber has received, but for events."""
        return [(at, payload) for at, channel, payload in self._messages if channel != STATUS]

    def truth(self) -> dict[str, Any]:
        """What the exchange has made."""
        return self.bybit.truth()

    def _role(self, name: str) -> str:
        if self.programs[name].poll() is not None:
            return "killed"
        if self.board.redis != "runs":
            return "buffers"
        if name == self.leader:
            return "leads"
        return "stands by" if len(self.connections(name)) == len(CHANNELS) else "connects"

    def _door(self, name: str) -> int:
        return int(name == "b")

    def _is_subscribed(self) -> bool:
        with self.redis.client(socket_timeout=1) as client:
            return all(count for _, count in client.pubsub_numsub(*NAMES))
