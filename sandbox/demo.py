"""The collector at work on your own machine, without network or Redis: `python -m sandbox.demo`.

The program itself (main.py) runs between a stand-in for Bybit (sandbox/bybit.py) and a Redis of its own
(sandbox/redis.py), each in a process of its own so that the delays are honest; here is only a subscriber that shows
what arrives. On a terminal it is a live view, elsewhere one line a second.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sandbox.redis import HOST, LocalRedis, end_with_parent

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "stream:bybit_"
CHANNELS = ("orderbook", "trades", "ticker", "liquidations")  # after PREFIX
KEPT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR")  # of the environment; a developer's settings are not for the demo
SAMPLES = 100_000  # delays kept for each channel
LOG_LINES = 6  # of the collector's log in the live view
TICK = 0.25  # seconds between two pictures
READY_TIMEOUT = 10.0  # seconds until the stand-in must listen
STOP_TIMEOUT = 8.0  # seconds between SIGTERM and SIGKILL; the collector gives itself 5

CONSOLE = Console()


class Tally:
    """What came over one channel. The subscriber's thread adds, the main thread looks.

    A delay is the time here minus the message's `ts`, in milliseconds; as `ts` is in whole milliseconds, it reads up
    to 1 ms too long.
    """

    def __init__(self, symbol: str) -> None:
        self.total = 0
        self.first = math.inf  # monotonic seconds at which the first message came
        self.symbol = symbol
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # monotonic seconds, delay
        self._price = "-"
        self._book: dict[str, dict[str, str]] = {"b": {}, "a": {}}  # price -> size
        self._lock = threading.Lock()

    def add(self, message: dict[str, Any]) -> None:
        now, wall = time.monotonic(), time.time() * 1000
        frame = json.loads(message["data"])
        with self._lock:
            self.first = min(self.first, now)
            self.total += 1
            self._samples.append((now, wall - frame["ts"]))
            if frame["topic"].endswith(f".{self.symbol}"):
                self._note_price(frame["type"], frame["data"])

    def _note_price(self, kind: str, data: Any) -> None:
        if isinstance(data, list):  # trades, liquidations
            self._price = data[-1]["p"]
        elif "b" in data:
            for side, book in self._book.items():
                if kind == "snapshot":
                    book.clear()
                book.update(data[side])
                for price, size in data[side]:
                    if float(size) == 0:
                        book.pop(price, None)
        else:
            self._price = data.get("lastPrice", self._price)  # a delta carries only what changed

    def price(self) -> str:
        """The last price of the first symbol; for the order book its best bid and ask."""
        with self._lock:
            bids, asks = self._book["b"], self._book["a"]
            return f"{max(bids, key=float)}/{min(asks, key=float)}" if bids and asks else self._price

    def delays(self, seconds: float = math.inf) -> list[float]:
        """The delays of that many last seconds, sorted."""
        since = time.monotonic() - seconds
        with self._lock:
            return sorted(delay for _, delay in takewhile(lambda sample: sample[0] > since, reversed(self._samples)))


def at(delays: Sequence[float], share: float) -> str:
    """A percentile of sorted delays, for the eye."""
    return f"{delays[min(len(delays) - 1, int(len(delays) * share))]:.1f}" if delays else "-"


def table(title: str, tallies: dict[str, Tally], elapsed: float = 0) -> Table:
    """All channels, over the last second or, if `elapsed` says how many seconds that is, the whole run."""
    view = Table(title=title, title_justify="left", title_style="bold")
    view.add_column("channel")
    names = ("p50 ms", "p99 ms") if elapsed else ("median ms", "max ms")
    for name in ("messages", "per second", *names, "last price"):
        view.add_column(name, justify="right")
    for name, tally in tallies.items():
        delays = tally.delays() if elapsed else tally.delays(1)
        rate = tally.total / elapsed if elapsed else len(delays)
        tail = at(delays, 0.99 if elapsed else 1)
        view.add_row(name, f"{tally.total:,}", f"{rate:,.0f}", at(delays, 0.5), tail, tally.price())
    return view


def follow(output: IO[str], lines: list[str]) -> None:
    """Runs on a thread of its own until the process that writes to `output` ends."""
    with output:
        for text in output:
            lines.append(text.rstrip())


@contextmanager
def child(lines: list[str], *command: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """`python COMMAND` with these settings and no others; what it says is appended to `lines`."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={name: os.environ[name] for name in KEPT if name in os.environ} | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl+C is for the demo, which ends the others in order
        preexec_fn=end_with_parent,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=follow, args=(process.stdout, lines), name="reader")
    reader.start()
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()


@contextmanager
def subscriber(server: LocalRedis, tallies: dict[str, Tally]) -> Iterator[None]:
    """Subscribed from its first to its last moment, on a thread of its own."""
    with server.client() as client, client.pubsub() as pubsub:
        pubsub.subscribe(**{PREFIX + name: tally.add for name, tally in tallies.items()})
        thread = pubsub.run_in_thread(TICK)
        try:
            yield
        finally:
            thread.stop()
            thread.join()


def url_of(bybit: subprocess.Popen[str], lines: list[str]) -> str:
    """Where the stand-in listens, as soon as it says so. Raises RuntimeError when it does not."""
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline and bybit.poll() is None:
        for text in lines:
            if text.startswith("BYBIT_WS_URL="):
                return text.removeprefix("BYBIT_WS_URL=")
        time.sleep(0.05)
    raise RuntimeError("\n".join(["The stand-in for Bybit did not start", *lines[-LOG_LINES:]]))


def watch(title: str, tallies: dict[str, Tally], lines: list[str], goes_on: Callable[[], bool]) -> None:
    """Shows the last second and the collector's log until `goes_on()` is false."""
    if CONSOLE.is_terminal and not CONSOLE.is_dumb_terminal:
        with Live(console=CONSOLE, auto_refresh=False, transient=True) as live:
            while goes_on():
                log = Text("\n".join(lines[-LOG_LINES:]), "dim", no_wrap=True, overflow="ellipsis")
                live.update(Group(table(title, tallies), log), refresh=True)
                time.sleep(TICK)
        return
    logged, second, began = 0, 0, time.monotonic()
    while goes_on():
        time.sleep(TICK)
        for text in lines[logged:]:
            print(text, flush=True)
            logged += 1
        if time.monotonic() - began > second + 1:
            second += 1
            counts = [(name, tally.delays(1), tally.price()) for name, tally in tallies.items()]
            parts = [f"{name} {len(delays)}/s {at(delays, 0.5)} ms {price}" for name, delays, price in counts]
            print(f"{second:4} s  {'  '.join(parts)}", flush=True)


def main() -> int:
    """Runs on the main thread; returns the exit code: 1 when a channel stood still or a part did not work."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.demo", description="The collector at work, all on here.")
    parser.add_argument("--seconds", type=float, default=math.inf, help="then end with a summary (default: never)")
    parser.add_argument("--symbols", default="BTCUSDT,ETHUSDT", help="default: %(default)s")
    parser.add_argument("--rate", default="200", help="messages a second (default: %(default)s)")
    options = parser.parse_args()
    signals: list[int] = []  # the handlers do nothing else
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    tallies = {name: Tally(options.symbols.split(",")[0].strip()) for name in CHANNELS}
    told: list[str] = []  # by the stand-in
    lines: list[str] = []  # by the collector
    try:
        with ExitStack() as stack:
            server = stack.enter_context(LocalRedis())
            flags = ("--port", "0", "--symbols", options.symbols, "--rate", options.rate)
            bybit = stack.enter_context(child(told, "-m", "sandbox.bybit", *flags))
            settings = {"BYBIT_WS_URL": url_of(bybit, told), "SYMBOLS": options.symbols}
            settings |= {"REDIS_HOST": HOST, "REDIS_PORT": str(server.port), "PYTHON_DOTENV_DISABLED": "1"}
            stack.enter_context(subscriber(server, tallies))
            collector = stack.enter_context(child(lines, "main.py", **settings))
            title = f"{PREFIX}* at {HOST}:{server.port}, prices of {next(iter(tallies.values())).symbol}"
            end = time.monotonic() + options.seconds
            watch(title, tallies, lines, lambda: not signals and collector.poll() is None and time.monotonic() < end)
            first = min(tally.first for tally in tallies.values())
            summary = table(title, tallies, max(TICK, time.monotonic() - first))
            code = collector.poll()
    except (OSError, RuntimeError) as error:
        print(error)
        return 1
    CONSOLE.print(summary)
    print("Delays are the time at the subscriber minus the message's ts, in whole milliseconds: up to 1 ms too long.")
    if code is not None:
        print("\n".join([*lines[-LOG_LINES:], f"The collector ended by itself, with code {code}"]))
        return 1
    still = [PREFIX + name for name, tally in tallies.items() if not tally.total]
    if still and not signals:
        print(f"Nothing came over {', '.join(still)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
