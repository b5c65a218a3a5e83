"""The command line, the log and the signals of the process."""

import argparse
import logging
import signal
from collections.abc import Iterable, Sequence
from typing import Any

from callbacks import ALL_CHANNELS, REPLY_PREFIX, REQUEST_CHANNEL, STATES
from conf import settings
from conf.plan import Plan
from ops import VERSION
from ops.check import run_check
from ops.instances import run_instances
from ops.listing import listing_rows
from ops.log import Lines, Printable
from ops.status import run_status
from relay.bybit.exchange import Exchange
from relay.bybit.listing import Instruments
from relay.redis.endpoint import settle
from relay.redis.publisher import Publisher

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal is gone

EXIT_CODES = """\
Without an option the collector runs until SIGINT, SIGTERM or SIGHUP. Settings come from the environment and from .env.

exit codes:
  0  stopped by a signal, nothing was left in the buffer (earlier drops are in the log and the events);
     --check, --status: all is well
  1  messages could not be delivered to Redis; --check, --status: something is wrong
  2  cannot start: a wrong option or setting, or Redis rejects the credentials
"""


def parse_arguments(arguments: Sequence[str]) -> str | None:
    """Returns the command: "check", "status", or None for the collector. Exits for --help, --version and mistakes."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Relays Bybit's public market data to Redis Pub/Sub.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_mutually_exclusive_group()
    for name, description in (
        ("check", "test Redis, Bybit and every stream with these settings, without publishing anything"),
        ("status", "show the streams of the running collector"),
    ):
        commands.add_argument(f"--{name}", dest="command", action="store_const", const=name, help=description)
    command: str | None = parser.parse_args(arguments).command
    return command


def run_command(
    command: str,
    plan: Plan,
    streams: Sequence[Any],
    instruments: Instruments,
    exchange: Exchange,
    publisher: Publisher,
) -> int:
    """Runs "check" or "status" and returns its exit code. The publisher, the streams and `instruments` must not have
    been started.

    plan: of streams, which is STREAMS, without a list of instruments.
    """
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL)  # there is nothing to finish: a signal ends it at once, without a traceback
    settle(publisher.new_connection)
    key = settings.LEADER_KEY
    if command == "status":
        return run_instances(publisher, key, STATES) if key else run_status(publisher)
    requests = (REQUEST_CHANNEL, REPLY_PREFIX)
    lease = (key, settings.INSTANCE) if key else None
    listing = listing_rows(plan, streams, instruments.address, instruments.read_once)
    specs = [planned.spec for planned in plan.connections.values() if planned.topics is None or planned.topics]
    return run_check(specs, exchange, publisher, ALL_CHANNELS, requests, settings.WARNINGS, lease, listing)


def configure_logging(level: str, warnings: Iterable[str] = ()) -> None:
    """Logs to stderr, from `level` on. warnings: of the settings, which were read before there was a log."""
    lines = Lines()
    lines.setFormatter(Printable("%(asctime)s %(levelname)s [%(threadName)s] %(message)s"))
    logging.basicConfig(level=level, handlers=[lines])
    for library in ("websocket", "pybit"):  # they repeat our own lines, with whole frames and pages in them
        logging.getLogger(library).propagate = False
    for warning in warnings:
        log.warning("%s", warning)


def install_signal_handlers() -> list[signal.Signals]:
    """Returns a list that gets the first SIGINT, SIGTERM or SIGHUP. A second signal kills the process, but for SIGHUP,
    which comes twice when a terminal is closed. Main thread only.
    """
    received: list[signal.Signals] = []

    def handle(number: int, _frame: object) -> None:
        # Assignments only: the handler runs between any two instructions of the main thread, even inside a lock.
        received.append(signal.Signals(number))
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN if each is signal.SIGHUP else signal.SIG_DFL)

    for each in STOP_SIGNALS:
        if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(each, handle)
    return received
