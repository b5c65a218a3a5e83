"""The collector at work on your own machine, without network or Redis: `python -m sandbox.demo`.

The program itself (main.py) runs between a stand-in for Bybit (sandbox/bybit) and a Redis of its own
(sandbox/redis.py), each in a process of its own so that the delays are honest. This process is only a subscriber that
shows what arrives: on a terminal as a live view, elsewhere as one line a second. With --chaos two collectors run, and
everything is broken in turn; every message is counted (sandbox/chaos.py).
"""

import argparse
import math
import signal
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m sandbox.demo", description="The collector at work, with everything on this machine."
    )
    parser.add_argument("--chaos", action="store_true", help="two collectors; all is killed, cut and frozen in turn")
    parser.add_argument("--seconds", type=positive, default=math.inf, help="duration (default: until Ctrl+C)")
    parser.add_argument("--symbols", default="BTCUSDT,ETHUSDT", help="default: %(default)s")
    parser.add_argument("--rate", type=positive, default=200.0, help="messages a second (default: %(default)g)")
    parser.add_argument("--pace", type=positive, default=1.0, help=argparse.SUPPRESS)  # of the pauses of --chaos
    return parser.parse_args()


def main() -> int:
    """Runs on the main thread; returns the exit code."""
    options = arguments()
    signals: list[int] = []  # the handlers only append
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: signals.append(number))
    # Here, as these take a second, in which Ctrl+C must not end in a traceback.
    import redis

    from sandbox import calm, faults

    try:
        return faults.run(options, signals) if options.chaos else calm.run(options, signals)
    except (OSError, EOFError, RuntimeError, redis.RedisError) as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
