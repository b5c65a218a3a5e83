"""The commands, the log and the signals of the process."""

import logging
import os
import select
import signal
import socket
from collections.abc import Container, Iterable, Sequence
from typing import Any

from conf import settings
from conf.converters import SettingsError
from conf.names import ALL_CHANNELS, REPLY_PREFIX, REQUEST_CHANNEL
from conf.plan import Plan
from ops.arguments import Arguments
from ops.check import run_check
from ops.listing import listing_rows
from ops.log import Json, Lines, Printable
from ops.status import run_status
from relay.bybit.exchange import Exchange
from relay.bybit.listing import Instruments
from relay.redis.dial import settle
from relay.redis.publisher import Publisher

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal is gone, if there was one


def run_command(
    arguments: Arguments,
    plan: Plan,
    streams: Sequence[Any],
    instruments: Instruments,
    exchange: Exchange,
    publisher: Publisher,
) -> int:
    """Runs --check or --status and returns its exit code. The publisher, the streams and `instruments` must not have
    been started.

    plan: of streams, which is STREAMS, without a list of instruments.
    """
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL)  # there is nothing to finish: a signal ends it at once, without a traceback
    if arguments.command == "status":
        return run_status(arguments.about, arguments.json)
    settle(publisher.new_connection)
    key = settings.LEADER_KEY
    requests = (REQUEST_CHANNEL, REPLY_PREFIX)
    lease = (key, settings.INSTANCE) if key else None
    listing = listing_rows(plan, streams, instruments.address, instruments.read_once)
    specs = [planned.spec for planned in plan.connections.values() if planned.topics is None or planned.topics]
    return run_check(specs, exchange, publisher, ALL_CHANNELS, requests, settings.WARNINGS, lease, listing)


def configure_logging(
    level: str, warnings: Iterable[str] = (), form: str = "text", streams: Container[str] = ()
) -> None:
    """Logs to stderr, from `level` on. warnings: of the settings, which were read before there was a log. form: text or
    json. streams: the names of connections, which the threads have that run them.
    """
    lines = Lines()
    if form == "json":
        lines.setFormatter(Json(streams))
        logging.captureWarnings(True)  # Python's own, which would be text among the lines
    else:
        lines.setFormatter(Printable("%(asctime)s %(levelname)s [%(threadName)s] %(message)s"))
    logging.basicConfig(level=level, handlers=[lines])
    for library in ("websocket", "pybit"):  # they repeat our own lines, with whole frames and pages in them
        logging.getLogger(library).propagate = False
    for warning in warnings:
        log.warning("%(warning)s", {"warning": warning})


class Signals:
    """What the process is sent. Main thread only.

    stops: gets the first SIGINT or SIGTERM, or SIGHUP where there is a terminal. A second signal kills the process, but
    for SIGHUP, which comes twice when a terminal is closed. hangups: gets each SIGHUP where there is no terminal.
    """

    def __init__(self) -> None:
        self.stops: list[signal.Signals] = []
        self.hangups: list[signal.Signals] = []
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, self._stop if any(map(os.isatty, range(3))) else self._hang_up)

    def wait(self, seconds: float) -> None:
        """Returns after `seconds`, or as soon as there is a signal."""
        if self._poll.poll(seconds * 1000):
            self._reader.recv(4096)

    # Assignments only: a handler runs between any two instructions of the main thread, even inside a lock.

    def _stop(self, number: int, _frame: object) -> None:
        self.stops.append(signal.Signals(number))
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN if each is signal.SIGHUP else signal.SIG_DFL)

    def _hang_up(self, number: int, _frame: object) -> None:
        self.hangups.append(signal.Signals(number))


def read_settings_again() -> None:
    """After SIGHUP: the login counts from the next connection to Redis on, LOG_LEVEL at once. The main thread."""
    try:
        changes = settings.reload()
    except SettingsError as mistake:
        log.error("Settings not read again, all stays as it was: %(reason)s", {"reason": mistake})
        return
    logging.getLogger().setLevel(changes.log_level)
    log.info("Settings read again; changed: %(names)s", {"names": ", ".join(changes.live) or "nothing"})
    if changes.waiting:
        log.warning("Settings that need a restart have changed: %(names)s", {"names": ", ".join(changes.waiting)})
    for warning in changes.warnings:
        log.warning("%(warning)s", {"warning": warning})
