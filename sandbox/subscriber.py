"""What the demo's subscriber receives: counts, delays and prices for each channel."""

import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, takewhile
from typing import Any

from rich import box
from rich.table import Table

from sandbox.redis import LocalRedis

PREFIX = "stream:bybit_"
CHANNELS = ("orderbook", "trades", "ticker", "liquidations")  # after PREFIX
STATUS = PREFIX + "status"
SAMPLES = 100_000  # delays kept for each channel
RECEIVE_TIMEOUT = 0.25  # seconds within which the receiving thread notices its end

Handler = Callable[[dict[str, Any]], None]


class Tally:
    """What came over one channel. The subscriber's thread adds, the main thread reads; `_lock` guards all.

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


class Subscriber:
    """All that the demo receives, by channel; filled by a thread of redis-py."""

    def __init__(self, symbol: str) -> None:
        self.tallies = {name: Tally(symbol) for name in CHANNELS}
        # Of the status channel, by name; the receiving thread adds, so readers take a copy first.
        self.events: Counter[str] = Counter()

    @contextmanager
    def subscribed(self, server: LocalRedis) -> Iterator[None]:
        channels: dict[str, Handler] = {STATUS: self._note_event}
        channels |= {PREFIX + name: tally.add for name, tally in self.tallies.items()}
        with server.client() as client, client.pubsub() as pubsub:
            pubsub.subscribe(**channels)
            thread = pubsub.run_in_thread(RECEIVE_TIMEOUT)
            try:
                yield
            finally:
                thread.stop()
                thread.join()

    def _note_event(self, message: dict[str, Any]) -> None:
        self.events[json.loads(message["data"])["event"]] += 1

    def table(self, elapsed: float = 0) -> Table:
        """All channels over the last second or, if `elapsed` has its seconds, the whole run."""
        view = Table(box=box.ROUNDED, header_style="bold cyan")
        view.add_column("channel", style="bold")
        symbol = next(iter(self.tallies.values())).symbol
        for name in ("messages", "per s", "p50 ms", "p99 ms", f"price of {symbol}"):
            view.add_column(name, justify="right", style="green" if name == "per s" else "")
        for name, tally in self.tallies.items():
            delays = tally.delays() if elapsed else tally.delays(1)
            rate = tally.total / elapsed if elapsed else len(delays)
            view.add_row(name, f"{tally.total:,}", f"{rate:,.0f}", at(delays, 0.5), at(delays, 0.99), tally.price())
        return view

    def line(self) -> str:
        """The last second, in one line."""
        delays = {name: tally.delays(1) for name, tally in self.tallies.items()}
        parts = [f"{name} {len(those)}/s" for name, those in delays.items()]
        return f"{'  '.join(parts)}  p50 {at(sorted(chain(*delays.values())), 0.5)} ms"

    def summary(self, elapsed: float) -> str:
        total = sum(tally.total for tally in self.tallies.values())
        events = ", ".join(f"{count} {name}" for name, count in self.events.copy().items()) or "none"
        return (
            f"{total:,} messages in {elapsed:.1f} s. Events on {STATUS}: {events}. Delays run from Bybit's ts to the "
            "subscriber; ts is in whole milliseconds, so they read up to 1 ms too long. `make run` starts the "
            "collector with Bybit's testnet."
        )

    def elapsed(self) -> float:
        """Seconds since the first message."""
        return time.monotonic() - min(tally.first for tally in self.tallies.values())

    def silent(self) -> list[str]:
        """The channels on which nothing came."""
        return [PREFIX + name for name, tally in self.tallies.items() if not tally.total]


def at(delays: Sequence[float], share: float) -> str:
    """A percentile of sorted delays."""
    return f"{delays[min(len(delays) - 1, int(len(delays) * share))]:.1f}" if delays else "-"
