"""The stand-in's command line: `python -m sandbox.bybit`."""

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from typing import get_args

from sandbox.bybit import DEFAULT_SYMBOLS, Bybit, Script
from sandbox.bybit.catalogue import many_symbols
from sandbox.bybit.script import End

HELP = """\
A stand-in for Bybit's public WebSocket and REST servers on this machine, with a
made-up market. It serves until Ctrl+C. It prints BYBIT_WS_URL=... and
BYBIT_API_URL=..., the settings with which the collector comes here."""
EXAMPLES = """\
example, in two terminals:
  python -m sandbox.bybit --drop-every 20
  BYBIT_WS_URL=ws://127.0.0.1:8765 BYBIT_API_URL=http://127.0.0.1:8765 make run"""
POLL = 0.2  # seconds between two checks for a signal


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m sandbox.bybit",
        usage="%(prog)s [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=HELP,
        epilog=EXAMPLES,
    )
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    made.add_argument("--port", type=int, default=8765, help="0 = a free one (default: %(default)s)")
    made.add_argument("--tls-cert", metavar="FILE", help="serve TLS with this certificate")
    made.add_argument("--tls-key", metavar="FILE", help="its key")
    market = made.add_argument_group("market")
    market.add_argument("--symbols", help="comma list for linear and spot, e.g. BTCUSDT,ETHUSDT")
    market.add_argument("--count", type=int, default=0, metavar="N", help="so many symbols of linear and spot")
    market.add_argument("--rate", type=float, default=200.0, help="messages a second (default: %(default)g)")
    market.add_argument("--seed", type=int, default=1, help="of the made-up market (default: %(default)s)")
    market.add_argument("--replay", metavar="FILE", help="recorded frames in place of the made-up market")
    market.add_argument("--speed", type=float, default=1.0, help="of the replay; 0 = as fast as the client reads")
    faults = made.add_argument_group("faults")
    faults.add_argument("--drop-every", type=float, metavar="SECONDS", help="drop all connections that often")
    faults.add_argument("--refuse", action="append", default=[], metavar="TOPIC", help="reject it; may be repeated")
    faults.add_argument("--handshake", type=int, metavar="STATUS", help="reject every handshake, e.g. 403 or 503")
    faults.add_argument("--end", choices=get_args(End), metavar="HOW", help="how every connection ends: %(choices)s")
    faults.add_argument(
        "--end-after", type=int, default=1000, metavar="N", help="data frames until then (default: %(default)s)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM; returns the exit code."""
    command = parser()
    options = command.parse_args(arguments)
    if bool(options.tls_cert) != bool(options.tls_key):
        command.error("--tls-cert and --tls-key go together")
    symbols = dict(DEFAULT_SYMBOLS)
    if options.symbols:
        symbols["linear"] = symbols["spot"] = [name.strip() for name in options.symbols.split(",")]
    if options.count:
        symbols["linear"] = symbols["spot"] = many_symbols(symbols["linear"], options.count)
    script = Script(
        handshake=options.handshake or "ok",
        refuse=tuple(options.refuse),
        end=options.end,
        end_after=options.end_after,
    )
    signals: list[int] = []  # the handlers only append
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    try:
        bybit = Bybit(
            symbols=symbols,
            rate=options.rate,
            replay=options.replay,
            speed=options.speed,
            then=script,
            tls=(options.tls_cert, options.tls_key) if options.tls_cert else None,
            host=options.host,
            port=options.port,
            seed=options.seed,
        )
        with bybit:
            print(f"BYBIT_WS_URL={bybit.url}", flush=True)
            print(f"BYBIT_API_URL={bybit.api_url}", flush=True)
            if sys.stdout.isatty():
                print(f"In another terminal: BYBIT_WS_URL={bybit.url} BYBIT_API_URL={bybit.api_url} make run")
            serve(bybit, signals, options.drop_every or math.inf)
            bybit.rate = 0
            time.sleep(POLL)  # what was sent is on its way
            print(f"Sent {sum(one.count for one in bybit.connections)} messages", flush=True)
    except (OSError, ValueError) as error:  # the port is taken, a file is missing or not what it should be
        print(f"{command.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def serve(bybit: Bybit, signals: list[int], drop_every: float) -> None:
    """Returns on the first signal."""
    drop_at = time.monotonic() + drop_every
    while not signals:
        time.sleep(POLL)
        if time.monotonic() >= drop_at:
            drop_at += drop_every
            for connection in bybit.connections:
                connection.drop()


if __name__ == "__main__":
    sys.exit(main())
