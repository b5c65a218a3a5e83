"""The command line. --status is dispatched here, before the imports of the collector, which cost many times more."""

import gc
import os
from collections.abc import Sequence
from typing import NamedTuple

from ops import VERSION
from ops.output import finished

EXIT_CODES = """\
Without an option the collector runs until SIGINT or SIGTERM. SIGHUP ends it where it was started from a terminal;
elsewhere it reads the login at Redis and LOG_LEVEL again. Settings come from the environment and from .env, or from the
file that the environment variable ENV_FILE names.

exit codes:
  0  stopped by a signal, nothing was left in the buffer (earlier drops are in the log and the events);
     --check, --status: all is well
  1  messages could not be delivered to Redis; --check, --status: something is wrong
  2  cannot start: a wrong option or setting, or Redis rejects the credentials;
     --status live: there is no PULSE_FILE
"""
STATUS = """\
show the streams of the running collector. live: only whether its threads turn, by PULSE_FILE, without Redis.
ready: only whether this instance has subscribed to all its topics
"""


class Arguments(NamedTuple):
    """command: "check", "status", or None for the collector. about: "all", "live" or "ready", of the status. json: the
    status as JSON.
    """

    command: str | None
    about: str = "all"
    json: bool = False


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Exits for --help, --version and mistakes."""
    import argparse  # not above: the status as it is usually asked for needs none of it

    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Relays Bybit's public market data to Redis Pub/Sub.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_mutually_exclusive_group()
    check = "test Redis, Bybit and every stream with these settings, without publishing anything"
    commands.add_argument("--check", action="store_true", help=check)
    commands.add_argument("--status", nargs="?", const=True, choices=("live", "ready"), help=STATUS)
    parser.add_argument("--json", action="store_true", help="with --status: one JSON object")
    found = parser.parse_args(arguments)
    if found.json and not found.status:
        parser.error("--json belongs to --status")
    command = "check" if found.check else "status" if found.status else None
    return Arguments(command, "all" if found.status in (None, True) else found.status, found.json)


def dispatch(arguments: Sequence[str]) -> None:
    """Ends the program for --status, --help, --version and mistakes."""
    about = [word for word in arguments[1:] if word != "--json"] or ["all"]
    is_usual = arguments[:1] == ["--status"] and about in (["all"], ["live"], ["ready"])
    found = Arguments("status", about[0], "--json" in arguments) if is_usual else parse_arguments(arguments)
    if found.command == "status":
        gc.disable()  # all that is made is needed until the end
        from ops.status import run_status  # conf.settings ends the program if a setting cannot be used

        code = finished(lambda: run_status(found.about, found.json))
        os._exit(code)  # there is nothing to tidy up, which would take a fifth of the time
