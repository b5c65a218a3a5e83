"""Bybit's public market data into Redis Pub/Sub, byte for byte. Run: python main.py

    Bybit --WebSocket--> Connection --bytes--> handle_* --> Publisher --PUBLISH--> Redis

A thread per entry of STREAMS runs subscribe_* (below). It opens a connection and hands each message to the callback
(callbacks/), which appends it to the backlog of the Publisher. The same thread then sends what Redis takes at once, and
the thread "Redis" the rest. When the connection is lost, run_stream (below) waits and opens the next one, for ever.

For more symbols set SYMBOLS in .env, or append to STREAMS: an entry is {"name": unique, "func": one of subscribe_*,
"args": (symbol or list of symbols, callback)}, and may carry "stall_timeout": seconds without data after which its
connection is replaced (0 = never). A callback of your own gets each message as a dict.
"""

import logging
import sys
import threading
from collections.abc import Sequence
from time import monotonic
from typing import Any

from callbacks import CHANNELS, REPLY_PREFIX, REQUEST_CHANNEL, publisher
from callbacks.liquidations import handle_liquidations
from callbacks.orderbook import handle_orderbook
from callbacks.ticker import handle_ticker
from callbacks.trades import handle_trades
from conf import settings
from conf.settings import CHANNEL_TYPE, ORDERBOOK_DEPTH, STALL_TIMEOUT, SYMBOLS
from conf.streams import StreamSpec, plan_streams
from ops.cli import configure_logging, install_signal_handlers, parse_arguments, run_command
from ops.monitor import Monitor
from ops.systemd import sd_notify
from relay.backoff import Backoff
from relay.bybit.client import Client
from relay.bybit.exchange import Exchange
from relay.bybit.snapshots import Snapshots
from relay.bybit.subscription import MAX_TOPIC_CHARACTERS
from relay.dispatch import Callback
from relay.errors import ConnectionLost, InvalidStream
from relay.kinds import LIQUIDATIONS, ORDERBOOK, TICKER, TRADES, carries
from relay.redis.leadership import Leadership
from relay.redis.listener import Listener, Replies

log = logging.getLogger(__name__)

POLL_INTERVAL, STOP_TIMEOUT = 0.25, 5.0  # seconds

Symbols = str | list[str]

# Who publishes, where several collectors share a lease.
leadership: Leadership | None = None
if settings.LEADER_KEY:
    leadership = Leadership(publisher, settings.LEADER_KEY, settings.INSTANCE, settings.CHANNEL_PREFIX, CHANNELS)
# What all streams share. subscribe_* need it and take (symbol, callback) only: hence it stands here.
sink = leadership or publisher
exchange = Exchange(CHANNEL_TYPE, testnet=settings.USE_TESTNET, url=settings.BYBIT_WS_URL, sink=sink)


@carries(ORDERBOOK)
def subscribe_orderbook(symbol: Symbols, callback: Callback, stall_timeout: float = STALL_TIMEOUT) -> None:
    """Runs one connection that carries order books. Like its sisters it blocks, and raises ConnectionLost."""
    bybit = Client(exchange, stall_timeout)
    bybit.orderbook_stream(depth=ORDERBOOK_DEPTH, symbol=symbol, callback=callback)
    bybit.run()


@carries(TRADES)
def subscribe_trades(symbol: Symbols, callback: Callback, stall_timeout: float = 0) -> None:
    """Public trades. On option Bybit has them by base coin: one contract's topic carries those of all its siblings."""
    symbols = [TRADES.subject(each, exchange.category) for each in ([symbol] if isinstance(symbol, str) else symbol)]
    bybit = Client(exchange, stall_timeout)
    bybit.trade_stream(symbol=symbols, callback=callback)
    bybit.run()


@carries(TICKER)
def subscribe_ticker(symbol: Symbols, callback: Callback, stall_timeout: float = STALL_TIMEOUT) -> None:
    """Tickers."""
    bybit = Client(exchange, stall_timeout)
    bybit.ticker_stream(symbol=symbol, callback=callback)
    bybit.run()


@carries(LIQUIDATIONS)
def subscribe_liquidations(symbol: Symbols, callback: Callback, stall_timeout: float = 0) -> None:
    """All liquidations. Spot and option have none."""
    bybit = Client(exchange, stall_timeout)
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


def run_stream(stream: StreamSpec, exchange: Exchange, backoff: Backoff) -> None:
    """Keeps a stream alive: connect, read until the connection is lost, wait, again. The thread of the stream."""
    stats = exchange.streams[stream.name]
    while not exchange.stop.is_set():
        stats.heartbeat_due = float("inf")  # a Connection sets its own; a func of the user's own is not watched
        try:
            stream.func(*stream.args, **stream.options)
            reason, uptime = "the stream function returned", 0.0
        except ConnectionLost as lost:
            reason, uptime = str(lost), lost.uptime
        except InvalidStream as mistake:
            log.error("Giving up on stream %s: %s", stream.name, mistake)
            exchange.stop.wait()
            return
        except BaseException as error:  # also SystemExit: a stream ends with the program only
            log.exception("Stream %s failed", stream.name)
            reason, uptime = repr(error), 0.0
        pause = backoff.after(uptime)
        if not exchange.stop.is_set():
            log.warning("Lost Bybit: %s; reconnecting in %.1f s", reason, pause)
        stats.heartbeat_due = monotonic() + pause
        exchange.stop.wait(pause)


class Collector:
    """The threads of the streams, and those that answer consumers' requests for snapshots. Main thread."""

    def __init__(self) -> None:
        self.specs: dict[str, StreamSpec] = {}  # by the name of the stream, as are the threads
        self.threads: dict[str, threading.Thread] = {}
        self._taken = 0  # entries of STREAMS
        self.snapshots = Snapshots(exchange, Replies(publisher.new_connection), REPLY_PREFIX, self.publishes)
        handlers = (self.snapshots.receive, self.snapshots.tick)
        self.listener = Listener(publisher.new_connection, REQUEST_CHANNEL, *handlers, exchange.stop)

    def take_new_entries(self) -> None:
        """Takes what was appended to STREAMS. Raises ValueError, one sentence, if an entry is wrong."""
        while self._taken < len(STREAMS):
            self._taken += 1
            entry = STREAMS[self._taken - 1]
            new = {spec.name: spec for spec in plan_streams(entry, CHANNEL_TYPE, ORDERBOOK_DEPTH, MAX_TOPIC_CHARACTERS)}
            if taken := new.keys() & self.specs.keys():
                raise ValueError(f"STREAMS: {min(taken)}: the name is used twice")
            self.specs |= new

    def start_threads(self) -> None:
        """Starts the threads of new streams, and again those that died, which none should."""
        for name, spec in self.specs.items():
            if name in self.threads and self.threads[name].is_alive():
                continue
            if name in self.threads:
                log.error("Stream thread %s died; restarting it", name)
            exchange.add_stream(name).watched = spec.kind is not None
            backoff = Backoff(settings.RECONNECT_DELAY, settings.RECONNECT_DELAY_MAX)
            args = (spec, exchange, backoff)
            self.threads[name] = threading.Thread(target=run_stream, args=args, name=name, daemon=True)
            self.threads[name].start()

    def publishes(self) -> bool:
        """Whether this collector is the one that publishes. Any thread."""
        return leadership is None or leadership.is_leader

    def state(self) -> dict[str, object]:
        """What the state hash says of the collector as a whole."""
        single: dict[str, object] = {"instance": "", "role": "single", "term": 0, "pending": publisher.backlog}
        return {**(leadership.state() if leadership else single), **self.snapshots.counts()}

    def stop(self) -> int:
        """Sockets first, then the backlog, under one deadline. Returns the exit code."""
        relieved = leadership is not None and leadership.stop()  # another collector publishes
        deadline = monotonic() + STOP_TIMEOUT
        exchange.stop.set()
        exchange.close_all()
        for thread in self.threads.values():  # at most half of the time: a hung callback must not cost the backlog
            thread.join(max(0.0, deadline - STOP_TIMEOUT / 2 - monotonic()))
        if publisher.connected and not relieved:  # otherwise it would be the one message to wait for
            publisher.announce("stopped")
        if left := publisher.stop(deadline) + (0 if relieved else publisher.pending):
            log.error("%d messages could not be delivered to Redis and are lost", left)
        if leadership:
            leadership.close()
        self.listener.join(deadline)  # these two have ended meanwhile, unless Redis hangs
        self.snapshots.join(deadline)
        return 1 if left else 0


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the collector until a signal. Returns the exit code: 0; 1, messages were lost; 2, it could not start."""
    command = parse_arguments(arguments)
    configure_logging("CRITICAL" if command else settings.LOG_LEVEL, settings.WARNINGS)
    collector = Collector()
    try:
        collector.take_new_entries()
    except ValueError as mistake:
        print(f"Cannot start: {mistake}", file=sys.stderr)
        return 2
    if command:
        return run_command(command, collector.specs, exchange, publisher)
    signals = install_signal_handlers()
    source = settings.BYBIT_WS_URL or f"Bybit's {'testnet' if settings.USE_TESTNET else 'mainnet'}"
    symbols = ", ".join(SYMBOLS) if len(SYMBOLS) <= 8 else f"{len(SYMBOLS)} symbols"
    log.info("%s, %s, %s: to Redis at %s", source, CHANNEL_TYPE, symbols, publisher.address)
    publisher.start()
    if leadership:
        leadership.start(exchange)
    collector.snapshots.start()
    collector.listener.start()
    monitor = Monitor(exchange.streams, collector.threads, publisher, collector.state, leadership)
    while not signals and not publisher.fatal:
        try:
            collector.take_new_entries()
        except ValueError as mistake:
            log.error("%s; ignoring this entry", mistake)
        collector.start_threads()
        monitor.tick()
        exchange.stop.wait(POLL_INTERVAL)
    if publisher.fatal:
        log.error("Cannot start: %s", publisher.fatal)
        return 2
    log.info("Stopping on %s", signals[0].name)
    sd_notify("STOPPING=1")
    return collector.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
