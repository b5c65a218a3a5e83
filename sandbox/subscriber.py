"""What the demo's subscriber receives: counts, delays and prices for each channel."""

import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, takewhile
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from sandbox.consumer import CHANNELS, PREFIX, STATUS
from sandbox.redis import LocalRedis

SAMPLES = 100_000  # delays kept for each channel
FULL_WIDTH = 73  # columns of the table with prices
RECEIVE_TIMEOUT = 0.25  # seconds within which the receiving thread notices its end

Handler = Callable[[dict[str, Any]], None]


class Tally:
    """What came over one channel. The subscriber's thread adds, the main thread reads; `_lock` guards all.

    A delay is the time here minus the message's `ts`, in milliseconds; as `ts` is in whole milliseconds, it reads up
    to 1 ms too long.
    """

    def __init__(self, symbol: str) -> None:
        self.total = 0
        self.gaps = 0  # of order books: updates whose number does not follow the one before
        self.first = math.inf  # monotonic seconds at which the first message came
        self.symbol = symbol
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # monotonic seconds, delay
        self._price = "-"
        self._book: dict[str, dict[str, str]] = {"b": {}, "a": {}}  # price -> size
        self._last: dict[str, int] = {}  # by topic, the number of the latest update of an order book
        self._lock = threading.Lock()

    def add(self, message: dict[str, Any]) -> None:
        now, wall = time.monotonic(), time.time() * 1000
        frame = json.loads(message["data"])
        with self._lock:
            self.first = min(self.first, now)
            self.total += 1
            self._samples.append((now, wall - frame["ts"]))
            self._count_gaps(frame)
            if frame["topic"].endswith(f".{self.symbol}"):
                self._note_price(frame["type"], frame["data"])

    def _count_gaps(self, frame: dict[str, Any]) -> None:
        topic, number = frame["topic"], "u" in frame["data"] and frame["data"]["u"]
        if number:
            self.gaps += frame["type"] == "delta" and number != self._last.get(topic, -1) + 1
            self._last[topic] = number

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


class Subscriber:
    """All that the demo receives, by channel; filled by a thread of redis-py."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.tallies = {name: Tally(symbol) for name in CHANNELS}
        # Of the status channel, by name; the receiving thread adds, so readers take a copy first.
        self.events: Counter[str] = Counter()

    @contextmanager
    def subscribed(self, server: LocalRedis) -> Iterator[None]:
        channels: dict[str, Handler] = {STATUS: self._note_event}
        channels |= {f"{PREFIX}_{name}": tally.add for name, tally in self.tallies.items()}
        with server.client() as client, client.pubsub() as pubsub:
            pubsub.subscribe(**channels)
            thread = pubsub.run_in_thread(RECEIVE_TIMEOUT)
            try:
                yield
            finally:
                thread.stop()
                thread.join()

    def _note_event(self, message: dict[str, Any]) -> None:
        event = json.loads(message["data"])["event"]
        if event != "alive":  # it comes every 5 s, whatever happens
            self.events[event] += 1

    def table(self, with_price: bool) -> Table:
        """All channels over the last second; 73 columns, or 53 without the price."""
        view = Table(box=box.ROUNDED, header_style="bold cyan")
        view.add_column("channel", style="bold")
        for name in ("messages", "per s", "p50 ms", "p99 ms", *([f"price of {self.symbol}"] if with_price else ())):
            view.add_column(name, justify="right", style="green" if name == "per s" else "", no_wrap=True)
        for name, tally in self.tallies.items():
            delays = tally.delays(1)
            cells = [f"{tally.total:,}", f"{len(delays):,}", at(delays, 0.5), at(delays, 0.99)]
            view.add_row(name, *cells, *([tally.price()] if with_price else ()))
        return view

    def line(self) -> str:
        """The last second, in one line."""
        delays = {name: tally.delays(1) for name, tally in self.tallies.items()}
        parts = [f"{name} {len(those)}/s" for name, those in delays.items()]
        return f"{'  '.join(parts)}  p50 {at(sorted(chain(*delays.values())), 0.5)} ms"

    def summary(self, elapsed: float, events: Mapping[str, int], sent: int | None) -> str:
        """The whole run, to be pasted. sent: messages that the exchange has sent, None if it did not say."""
        rows = [(name, tally.total, tally.delays()) for name, tally in self.tallies.items()]
        rows.append(("all", self.total, sorted(chain(*(delays for _, _, delays in rows)))))
        said = ", ".join(f"{count} {name}" for name, count in events.items() if count) or "none"
        gaps = sum(tally.gaps for tally in self.tallies.values())
        lost = "not known: the exchange did not say how many messages it sent"
        if sent is not None:
            lost = f"{max(0, sent - self.total):,} (the exchange sent {sent:,}, {self.total:,} arrived)"
        return "\n".join(
            [
                f"{elapsed:.1f} s of a made-up market, from exchange to subscriber",
                "",
                f"{'channel':<14}{'messages':>9}{'per s':>7}{'p50 ms':>8}{'p99 ms':>8}{'max ms':>8}",
                *(
                    f"{name:<14}{total:>9,}{total / elapsed:>7,.0f}"
                    f"{at(delays, 0.5):>8}{at(delays, 0.99):>8}{at(delays, 1):>8}"
                    for name, total, delays in rows
                ),
                "",
                f"lost         {lost}",
                f"book gaps    {gaps} (jumps in u, the number of an update)",
                f"events       {said}",
                "delays       from Bybit's ts (whole ms): up to 1 ms too long",
            ]
        )

    @property
    def total(self) -> int:
        return sum(tally.total for tally in self.tallies.values())

    def elapsed(self) -> float:
        """Seconds since the first message."""
        return time.monotonic() - min(tally.first for tally in self.tallies.values())

    def silent(self) -> list[str]:
        """The channels on which nothing came."""
        return [f"{PREFIX}_{name}" for name, tally in self.tallies.items() if not tally.total]


class Picture:
    """The live view, in whatever space there is: lines of the log are wrapped, and the oldest give way."""

    def __init__(self, subscriber: Subscriber, log: list[str], port: int) -> None:
        self.subscriber, self.log, self.began = subscriber, log, time.monotonic()
        self.about = Text.assemble(
            ("The real collector, a real Redis, a made-up market\n", "bold"),
            ("Look: ", "dim"),
            f"redis-cli -p {port} psubscribe '{PREFIX}_*'",
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        elapsed = Text(f"{time.monotonic() - self.began:.0f} s; Ctrl+C ends the demo", "cyan")
        head = Group(self.about, self.subscriber.table(with_price=width >= FULL_WIDTH), elapsed)
        spare = (options.height or options.size.height) - len(console.render_lines(head, options.update(height=None)))
        log: list[Text] = []
        for text in reversed(self.log[:]):
            wrapped = Text(text, "dim").wrap(console, width)
            if len(log) + len(wrapped) > spare:
                break
            log[:0] = wrapped
        yield head
        yield from [Text(), *log] if len(log) < spare else log


def at(delays: Sequence[float], share: float) -> str:
    """A percentile of sorted delays."""
    return f"{delays[min(len(delays) - 1, int(len(delays) * share))]:.1f}" if delays else "-"
