"""The command line, the log and the signals of the process."""

import argparse
import logging
import signal
from collections.abc import Iterable, Mapping, Sequence

from callbacks import CHANNELS, REPLY_PREFIX, REQUEST_CHANNEL
from conf import settings
from conf.streams import StreamSpec
from ops.check import run_check
from ops.instances import run_instances
from ops.status import run_status
from relay.bybit.exchange import Exchange
from relay.redis.publisher import Publisher

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

EXIT_CODES = """\
Without an option the collector runs until SIGINT or SIGTERM. Settings come from the environment and from .env.

exit codes:
  0  stopped by a signal, nothing was left in the buffer (earlier drops are in the log and the events);
     --check, --status: all is well
  1  messages could not be delivered to Redis; --check, --status: something is wrong
  2  cannot start: a wrong option or setting, or Redis rejects the credentials
"""


def parse_arguments(arguments: Sequence[str]) -> str | None:
    """Returns the command: "check", "status", or None for the collector. Exits for --help and for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Relays Bybit's public market data to Redis Pub/Sub.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_mutually_exclusive_group()
    for name, description in (
        ("check", "test Redis, Bybit and every stream with these settings, without publishing anything"),
        ("status", "show the streams of the running collector"),
    ):
        commands.add_argument(f"--{name}", dest="command", action="store_const", const=name, help=description)
    command: str | None = parser.parse_args(arguments).command
    return command


def run_command(command: str, specs: Mapping[str, StreamSpec], exchange: Exchange, publisher: Publisher) -> int:
    """Runs "check" or "status" and returns its exit code. The publisher and the streams must not have been started."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL)  # there is nothing to finish: a signal ends it at once, without a traceback
    key = settings.LEADER_KEY
    if command == "status":
        return run_instances(publisher, key, f"{settings.CHANNEL_PREFIX}_state") if key else run_status(publisher)
    requests = (REQUEST_CHANNEL, REPLY_PREFIX)
    lease = (key, settings.INSTANCE) if key else None
    return run_check(list(specs.values()), exchange, publisher, CHANNELS, requests, settings.WARNINGS, lease)


def configure_logging(level: str, warnings: Iterable[str] = ()) -> None:
    """Logs to stderr, from `level` on. warnings: of the settings, which were read before there was a log."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s [%(threadName)s] %(message)s")
    for library in ("websocket", "pybit"):  # they repeat our own lines, with whole frames and pages in them
        logging.getLogger(library).propagate = False
    for warning in warnings:
        log.warning("%s", warning)


def install_signal_handlers() -> list[signal.Signals]:
    """Returns a list that gets the first SIGINT or SIGTERM. A second signal kills the process. Main thread only."""
    received: list[signal.Signals] = []

    def handle(number: int, _frame: object) -> None:
        # Assignments only: the handler runs between any two instructions of the main thread, even inside a lock.
        received.append(signal.Signals(number))
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    for each in STOP_SIGNALS:
        signal.signal(each, handle)
    return received
