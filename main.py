"""Bybit's public market data into Redis Pub/Sub, every message exactly as Bybit sent it. Run: python main.py

The way of a message: a thread per entry of STREAMS runs subscribe_* (below), which opens a Connection
(relay/connection.py) and stays in it; that gives the text of each frame to the entry's callback (callbacks/), which
puts it into the buffer of the Publisher (relay/publisher.py), which sends it to Redis. When a connection is lost,
run_stream (below) makes another, for ever.

For more symbols set SYMBOLS in .env, or append to STREAMS: an entry is {"name": unique, "func": one of subscribe_*,
"args": (symbol or list of symbols, callback)}, and may carry "stall_timeout", seconds without data after which its
connection is replaced (0 = never). A callback of your own gets each message as a dict.
"""

import logging
import math
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from callbacks import publisher
from callbacks.liquidations import handle_liquidations
from callbacks.orderbook import handle_orderbook
from callbacks.ticker import handle_ticker
from callbacks.trades import handle_trades
from check import report
from conf import settings
from conf.settings import CHANNEL_TYPE, ORDERBOOK_DEPTH, STALL_TIMEOUT, SYMBOLS
from conf.streams import StreamSpec, plan_streams
from operations import Watch, asked_for, catch, configure_log, notify
from relay.connection import MAX_TOPIC_CHARACTERS, PATIENCE, Connection, ConnectionLost, close_all, stats
from relay.dispatch import Callback
from relay.kinds import LIQUIDATIONS, ORDERBOOK, TICKER, TRADES, carries

log = logging.getLogger(__name__)

TICK, STOP_TIMEOUT, STEADY = 0.25, 5.0, 10.0  # seconds; up for STEADY: back after just RECONNECT_DELAY

Symbols = str | list[str]

stop = threading.Event()
signals: list[signal.Signals] = []
URL, TESTNET = settings.BYBIT_WS_URL, settings.USE_TESTNET
RECONNECT_DELAY, RECONNECT_DELAY_MAX = settings.RECONNECT_DELAY, settings.RECONNECT_DELAY_MAX
connect = partial(Connection, CHANNEL_TYPE, url=URL, testnet=TESTNET, stop=stop)
connect = partial(connect, flush=publisher.flush, announce=publisher.announce)


@carries(ORDERBOOK)
def subscribe_orderbook(symbol: Symbols, callback: Callback, stall_timeout: float = STALL_TIMEOUT) -> None:
    """One life of a connection that carries order books. Like the others it blocks, and raises ConnectionLost."""
    with connect(stall_timeout=stall_timeout) as bybit:
        bybit.orderbook_stream(depth=ORDERBOOK_DEPTH, symbol=symbol, callback=callback)
        bybit.run()


@carries(TRADES)
def subscribe_trades(symbol: Symbols, callback: Callback, stall_timeout: float = 0) -> None:
    """Public trades. Option has them by coin: those of one contract are those of all contracts on its coin."""
    symbol = [TRADES.subject(one, CHANNEL_TYPE) for one in ([symbol] if isinstance(symbol, str) else symbol)]
    with connect(stall_timeout=stall_timeout) as bybit:
        bybit.trade_stream(symbol=symbol, callback=callback)
        bybit.run()


@carries(TICKER)
def subscribe_ticker(symbol: Symbols, callback: Callback, stall_timeout: float = STALL_TIMEOUT) -> None:
    """Tickers."""
    with connect(stall_timeout=stall_timeout) as bybit:
        bybit.ticker_stream(symbol=symbol, callback=callback)
        bybit.run()


@carries(LIQUIDATIONS)
def subscribe_liquidations(symbol: Symbols, callback: Callback, stall_timeout: float = 0) -> None:
    """All liquidations. Spot and option have none."""
    with connect(stall_timeout=stall_timeout) as bybit:
        bybit.all_liquidation_stream(symbol=symbol, callback=callback)
        bybit.run()


STREAMS: list[dict[str, Any]] = [
    {"name": "OrderBook", "func": subscribe_orderbook, "args": (SYMBOLS, handle_orderbook)},
    {"name": "Trades", "func": subscribe_trades, "args": (SYMBOLS, handle_trades)},
    {"name": "Ticker", "func": subscribe_ticker, "args": (SYMBOLS, handle_ticker)},
]
if CHANNEL_TYPE in LIQUIDATIONS.categories:
    STREAMS.append({"name": "Liquidations", "func": subscribe_liquidations, "args": (SYMBOLS, handle_liquidations)})
# STREAMS.append({"name": "Trades_ETHUSDT", "func": subscribe_trades, "args": ("ETHUSDT", handle_trades)})


def run_stream(name: str, func: Callable[..., object], args: tuple[Any, ...], options: dict[str, float]) -> None:
    """Keeps a stream alive, one connection after another, until `stop`. Runs on the stream's own thread."""
    delay = RECONNECT_DELAY
    while not stop.is_set():
        stats[name].due = math.inf  # a Connection sets its own
        try:
            func(*args, **options)
            why, uptime = "it returned", 0.0
        except ConnectionLost as lost:
            why, uptime = str(lost), lost.uptime
        except BaseException as error:  # also SystemExit: streams end with the program only
            log.exception("Unexpected")
            why, uptime = repr(error), 0.0
        delay = RECONNECT_DELAY if uptime >= STEADY else min(delay * 2, RECONNECT_DELAY_MAX)
        pause = delay if uptime >= STEADY else delay * random.uniform(0.75, 1)  # lest all come at the same moment
        if not stop.is_set():
            log.warning("No connection to Bybit: %s. Trying again in %.1f s", why, pause)
        stats[name].due = monotonic() + pause + PATIENCE
        stop.wait(pause)


class Collector:
    """The main thread's business: the threads of the streams, their reports, and the end."""

    def __init__(self) -> None:
        self.jobs: dict[str, StreamSpec] = {}  # by the name of the stream, as are its threads
        self.threads: dict[str, threading.Thread] = {}
        self.taken = 0  # entries of STREAMS

    def take_entries(self) -> None:
        """Takes what was appended to STREAMS. Raises ValueError if an entry is wrong."""
        while self.taken < len(STREAMS):
            self.taken += 1
            for job in list(plan_streams(STREAMS[self.taken - 1], CHANNEL_TYPE, ORDERBOOK_DEPTH, MAX_TOPIC_CHARACTERS)):
                if job.name in self.jobs:
                    raise ValueError(f"STREAMS: the name {job.name} is used twice")
                self.jobs[job.name] = job

    def start_threads(self) -> None:
        """Starts what does not run: the new ones, and any that died of what nobody expected."""
        for name, job in self.jobs.items():
            if name in self.threads and self.threads[name].is_alive():
                continue
            if name in self.threads:
                log.error("The thread %s had died; it is started again", name)
            self.threads[name] = threading.Thread(target=run_stream, args=job, name=name, daemon=True)
            self.threads[name].start()

    def run(self) -> int:
        """Until a signal. Returns the exit code."""
        watch = Watch(self.threads, publisher)
        publisher.start()
        while not signals and not publisher.fatal:
            try:
                self.take_entries()
            except ValueError as problem:
                log.error("%s; this entry is left out", problem)
            self.start_threads()
            watch.look()
            stop.wait(TICK)
        if publisher.fatal:
            log.error("Cannot start: %s", publisher.fatal)
            return 2
        log.info("Stopping because of %s", signals[0].name)
        notify("STOPPING=1")
        deadline = monotonic() + STOP_TIMEOUT
        stop.set()
        close_all()
        for thread in self.threads.values():  # sockets first; a callback that hangs must not cost the buffer its time
            thread.join(max(0.0, deadline - STOP_TIMEOUT / 2 - monotonic()))
        if publisher.connected:
            publisher.announce("stopped")
        if left := publisher.stop(deadline):
            log.error("%d messages could not be handed to Redis and are lost", left)
        return 1 if left else 0


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the collector. Returns the exit code: 0; 1, messages were left behind; 2, something was refused at start."""
    asked = asked_for(arguments)
    configure_log("ERROR" if asked else settings.LOG_LEVEL)
    catch(signals)
    collector = Collector()
    try:
        collector.take_entries()
    except ValueError as problem:
        print(f"Cannot start: {problem}", file=sys.stderr)
        return 2
    if asked:
        return report(asked, collector.jobs, stop)
    bybit = URL or f"Bybit's {'testnet' if TESTNET else 'mainnet'}"
    what = ", ".join(SYMBOLS) if len(SYMBOLS) <= 8 else f"{len(SYMBOLS)} symbols"
    log.info("%s, %s, %s: to Redis at %s", bybit, CHANNEL_TYPE, what, publisher.address)
    return collector.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
