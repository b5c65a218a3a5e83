"""Bybit's public market data into Redis Pub/Sub, byte for byte. Run: python main.py

    Bybit --WebSocket--> Connection --bytes--> handle_* --> Publisher --PUBLISH--> Redis

A thread per entry of STREAMS runs subscribe_* (below). It opens a connection, subscribes, and lends the connection to
the thread "Reader", which reads all those that only bring data for handle_*. That (callbacks/) appends what has come to
the backlog of the Publisher; the Reader sends what Redis takes at once, the thread "Redis" the rest. When a connection
is lost, run_stream (below) waits and opens the next one, for ever.

For more symbols set SYMBOLS in .env, or change STREAMS, at any time: append an entry, remove one, change its symbols.
An entry is {"name": unique, "func": one of subscribe_*, "args": (symbol or list of symbols, callback)}. A symbol may be
a pattern, "*USDC" or "ALL": all that Bybit lists, as it changes. An entry may carry "stall_timeout": seconds without
data after which its connection is replaced (0 = never); "depth": levels of its order books; "shard": the part of its
symbols, (1, 3) = the first third. A callback of your own gets each message as a dict, on the thread of the entry, which
reads the connection itself then. An entry with more topics than one connection carries has several: the threads
"Trades", "Trades#2" and so on.
"""

import signal
import sys

from ops.arguments import dispatch, parse_arguments

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from the middle of an import
    dispatch(sys.argv[1:])  # --status ends here, before imports that cost ten times as much as it does

import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from callbacks import publisher
from callbacks.liquidations import handle_liquidations
from callbacks.orderbook import handle_orderbook
from callbacks.ticker import handle_ticker
from callbacks.trades import handle_trades
from conf import settings
from conf.names import BY_SYMBOL, CHANNELS, REPLY_PREFIX, REQUEST_CHANNEL
from conf.plan import Plan
from conf.settings import CHANNEL_TYPE, ORDERBOOK_DEPTH, SHARD, STALL_TIMEOUT, SYMBOLS
from conf.streams import StreamSpec, in_shard
from ops.cli import Signals, configure_logging, read_settings_again, run_command
from ops.monitor import Monitor
from ops.output import finished
from ops.reconciler import Reconciler
from ops.services import Services
from ops.state import State
from ops.systemd import sd_notify
from relay.backoff import Backoff
from relay.bybit.client import Client
from relay.bybit.exchange import Exchange
from relay.bybit.instruments import api_base
from relay.bybit.listing import Instruments
from relay.bybit.snapshots import Snapshots
from relay.dispatch import Callback
from relay.errors import ConnectionLost, InvalidStream
from relay.kinds import LIQUIDATIONS, ORDERBOOK, TICKER, TRADES, carries
from relay.redis.leadership import Leadership
from relay.redis.listener import Listener, Replies

log = logging.getLogger(__name__)

POLL_INTERVAL, STOP_TIMEOUT, HANDOVER = 1.0, 5.0, 1.0  # seconds

Symbols = str | list[str]

# Who publishes, where several collectors share a lease.
leadership: Leadership | None = None
if settings.LEADER_KEY:
    leadership = Leadership(
        publisher, settings.LEADER_KEY, settings.INSTANCE, settings.CHANNEL_PREFIX, CHANNELS, BY_SYMBOL
    )
# What all streams share. subscribe_* need it and take (symbol, callback) only: hence it stands here.
sink = leadership or publisher
exchange = Exchange(CHANNEL_TYPE, testnet=settings.USE_TESTNET, url=settings.BYBIT_WS_URL, sink=sink)


@carries(ORDERBOOK)
def subscribe_orderbook(
    symbol: Symbols, callback: Callback, stall_timeout: float = STALL_TIMEOUT, depth: int = ORDERBOOK_DEPTH
) -> None:
    """Runs one connection that carries order books. Like its sisters it blocks, and raises ConnectionLost."""
    bybit = Client(exchange, stall_timeout)
    bybit.orderbook_stream(depth=depth, symbol=symbol, callback=callback)
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
    {"name": "OrderBook", "func": subscribe_orderbook, "args": (SYMBOLS, handle_orderbook), "shard": SHARD},
    {"name": "Trades", "func": subscribe_trades, "args": (SYMBOLS, handle_trades), "shard": SHARD},
    {"name": "Ticker", "func": subscribe_ticker, "args": (SYMBOLS, handle_ticker), "shard": SHARD},
]
if CHANNEL_TYPE in LIQUIDATIONS.categories:
    STREAMS.append(
        {"name": "Liquidations", "func": subscribe_liquidations, "args": (SYMBOLS, handle_liquidations), "shard": SHARD}
    )
# STREAMS.append({"name": "Trades_ETHUSDT", "func": subscribe_trades, "args": ("ETHUSDT", handle_trades)})


def run_stream(stream: StreamSpec, exchange: Exchange, backoff: Backoff) -> None:
    """Keeps a stream alive: connect, read until the connection is lost, wait, again. The thread of the stream."""
    stats = exchange.streams[stream.name]
    while not exchange.ended(stream.name):
        stats.heartbeat_due = float("inf")  # a Connection sets its own; a func of the user's own is not watched
        try:
            stream.func(*stream.args, **stream.options)
            reason, uptime = "the stream function returned", 0.0
        except ConnectionLost as lost:
            reason, uptime = str(lost), lost.uptime
        except InvalidStream as mistake:
            log.error("Giving up on stream %(connection)s: %(reason)s", {"connection": stream.name, "reason": mistake})
            exchange.pause(stream.name, float("inf"))
            return
        except BaseException as error:  # also SystemExit: a stream ends with the program only
            if exchange.log_once.first("stream", (stream.name, type(error))):
                log.exception("Stream %(connection)s failed", {"connection": stream.name})
            reason, uptime = repr(error), 0.0
        pause = backoff.after(uptime)
        if not exchange.ended(stream.name):
            log.warning("Lost Bybit: %(reason)s; reconnecting in %(seconds).1f s", {"reason": reason, "seconds": pause})
        stats.heartbeat_due = monotonic() + pause
        exchange.pause(stream.name, pause)


class Collector:
    """The streams, and the threads that answer consumers' requests for snapshots. Main thread."""

    def __init__(self) -> None:
        try:
            base, no_list = api_base(settings.BYBIT_WS_URL, settings.BYBIT_API_URL, settings.USE_TESTNET), ""
        except ValueError as mistake:  # of interest only where symbols are patterns
            base, no_list = "", str(mistake)
        self.plan = Plan(CHANNEL_TYPE, ORDERBOOK_DEPTH, no_list)
        self.instruments = Instruments(
            CHANNEL_TYPE,
            settings.USE_TESTNET,
            api_url=base,
            option_coins=settings.OPTION_COINS,
            interval=settings.INSTRUMENTS_INTERVAL,
            stop=exchange.stop,
        )
        self.streams = Reconciler(self.plan, exchange, self.instruments, self.run)
        replies = Replies(publisher.new_connection)
        self.snapshots = snapshots = Snapshots(exchange, replies, REPLY_PREFIX, self.publishes, self.is_foreign)
        self.listener = Listener(
            publisher.new_connection, REQUEST_CHANNEL, snapshots.receive, snapshots.tick, exchange.stop
        )

    def run(self, stream: StreamSpec) -> None:
        """What the thread of a stream runs."""
        run_stream(stream, exchange, Backoff(settings.RECONNECT_DELAY, settings.RECONNECT_DELAY_MAX))

    def services(self) -> Services:
        """The threads beside those of the streams."""
        starts: dict[str, Callable[[], None]] = {"Redis": publisher.start}
        if leadership:
            starts["Leader"] = partial(leadership.start, exchange)
        starts |= {"Reader": exchange.reactor.start, "Snapshots": self.snapshots.start, "Requests": self.listener.start}
        return Services(starts)

    def monitor(self) -> Monitor:
        return Monitor(
            exchange.streams,
            self.streams.threads,
            publisher,
            State(publisher, self.state, BY_SYMBOL),
            leadership=leadership,
            wanted=lambda: self.plan.wanted,
            retired=self.streams.retired,
            beat=self.beat,
            pulse=settings.PULSE_FILE,
        )

    def beat(self, up: int, streams: int) -> None:
        """Tells consumers that this collector publishes. A standby does not."""
        instance = settings.INSTANCE if leadership else ""
        publisher.beat(instance=instance, shard=settings.SHARD_NAME, up=up, streams=streams)

    def is_foreign(self, topic: str) -> bool:
        """Whether a topic belongs to another shard, whose collector answers requests for it. "" belongs to the first.
        Any thread.
        """
        return not in_shard(topic.rpartition(".")[2], SHARD) and not exchange.carries(topic)

    def publishes(self) -> bool:
        """Whether this collector is the one that publishes. Any thread."""
        return leadership is None or leadership.is_leader

    def state(self) -> dict[str, object]:
        """What the state hash says of the collector as a whole."""
        single: dict[str, object] = {"instance": "", "role": "single", "term": 0, "pending": publisher.backlog}
        common = {"waited": round(publisher.waited, 3), **self.snapshots.counts()}
        return {**(leadership.state() if leadership else single), **common}

    def stop(self) -> int:
        """The handover first, then sockets, then the backlog, under one deadline. Returns the exit code."""
        deadline = monotonic() + STOP_TIMEOUT + (HANDOVER if leadership else 0)
        relieved = leadership is not None and leadership.stop(deadline - STOP_TIMEOUT / 2)  # another one publishes
        exchange.stop.set()
        exchange.close_all()
        exchange.reactor.stop()
        # At most half of what is left: a hung callback must not cost the backlog.
        self.streams.join((monotonic() + deadline) / 2)
        if publisher.connected and not relieved:  # otherwise it would be the one message to wait for
            # Other collectors may have the rest of the symbols: that does not stop.
            topics = sorted(frozenset().union(*exchange.topics.values())) if settings.SHARD else []
            publisher.announce("stopped", topics=topics)
        if left := publisher.stop(deadline) + (0 if relieved else publisher.pending):
            log.error("%(messages)d messages could not be delivered to Redis and are lost", {"messages": left})
        if leadership:
            leadership.close()
        # These have ended, unless something hangs.
        for each in (exchange.reactor, self.instruments, self.listener, self.snapshots):
            each.join(deadline)
        return 1 if left else 0


def guarded(tick: Callable[..., object], *arguments: object) -> None:
    """Does what the main thread does again and again. An error in it must not end the streams, which run without."""
    try:
        tick(*arguments)
    except Exception as error:
        if exchange.log_once.first("main thread", type(error)):
            log.exception("Internal error; going on")


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the collector until a signal. Returns the exit code: 0; 1, messages were lost; 2, it could not start."""
    options = parse_arguments(arguments)
    level = "CRITICAL" if options.command else settings.LOG_LEVEL
    configure_logging(level, settings.WARNINGS, settings.LOG_FORMAT, exchange.streams)
    collector = Collector()
    changes = collector.plan.update(STREAMS, None)
    if changes and changes.problems:
        print(f"Cannot start: {changes.problems[0]}", file=sys.stderr)
        return 2
    if options.command:
        told = (options, collector.plan, STREAMS, collector.instruments, exchange, publisher)
        return finished(partial(run_command, *told))
    signals = Signals()
    source = settings.BYBIT_WS_URL or f"Bybit's {'testnet' if settings.USE_TESTNET else 'mainnet'}"
    symbols = ", ".join(SYMBOLS) if len(SYMBOLS) <= 8 else f"{len(SYMBOLS)} symbols"
    shard = ", shard {}/{}".format(*SHARD) if SHARD else ""
    about = {"source": source, "category": CHANNEL_TYPE, "carried": f"{symbols}{shard}", "address": publisher.address}
    named = {**about, "symbols": SYMBOLS, "shard": SHARD}
    log.info("%(source)s, %(category)s, %(carried)s: to Redis at %(address)s", named)
    services, monitor = collector.services(), collector.monitor()
    while not signals.stops and not publisher.fatal:
        if signals.hangups:
            signals.hangups.clear()  # before: one that comes now counts, too
            guarded(read_settings_again)
        guarded(services.tick)
        guarded(collector.streams.tick, STREAMS)
        guarded(monitor.tick)
        signals.wait(POLL_INTERVAL)
    if publisher.fatal:
        log.error("Cannot start: %(reason)s", {"reason": publisher.fatal})
        return 2
    log.info("Stopping on %(signal)s", {"signal": signals.stops[0].name})
    sd_notify("STOPPING=1")
    return collector.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
