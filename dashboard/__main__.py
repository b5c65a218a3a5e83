"""python -m dashboard: serves the page until Ctrl+C. Redis is the one of the collector's settings."""

import argparse
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NoReturn

PROGRAM = "python -m dashboard"
INSTANCES = ("a", "b")  # of the demo
LOCAL = "127.0.0.1"
ELSEWHERE = ("REDIS_URL", "REDIS_UNIX_SOCKET", "REDIS_SENTINELS")  # settings that --redis takes the place of


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def port(text: str) -> int:
    if not text.isdecimal() or not int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=PROGRAM,
        description="A page in the browser: whether all is well, and the market. It reads Redis only: the one of the "
        "settings (environment or .env), REDIS_HOST, REDIS_PORT, CHANNEL_PREFIX and so on.",
    )
    parser.add_argument("--port", type=port, default=5006, help="of the page; 0 = a free one (default: %(default)s)")
    parser.add_argument(
        "--listen", metavar="ADDRESS", default=LOCAL, help="0.0.0.0 = all: the page has no login (%(default)s)"
    )
    parser.add_argument("--redis", metavar="HOST:PORT", help="in place of REDIS_HOST; several separated by commas")
    parser.add_argument("--demo", action="store_true", help="with a made-up market, a Redis and two collectors")
    return parser.parse_args(words)


@contextmanager
def demo() -> Iterator[str]:
    """Runs a stand-in for Bybit, a Redis and two collectors. Yields the address of that Redis. Raises OSError,
    RuntimeError.
    """
    from sandbox.calm import wait_for_line
    from sandbox.collectors import LEADER_KEY, child, settings_for
    from sandbox.redis import HOST, LocalRedis

    symbols = "BTCUSDT,ETHUSDT,SOLUSDT"
    with ExitStack() as stack:
        server, lines = stack.enter_context(LocalRedis()), list[str]()
        flags = ("--port", "0", "--symbols", symbols, "--rate", "400", "--drop-every", "20")
        bybit = stack.enter_context(child(lines, "-m", "sandbox.bybit", *flags))
        url = wait_for_line(bybit, lines, "BYBIT_WS_URL=")
        settings = settings_for(server, url, symbols) | {"LEADER_KEY": LEADER_KEY}
        for name in INSTANCES:
            stack.enter_context(child([], "main.py", INSTANCE=name, **settings))
        yield f"{HOST}:{server.port}"


def serve(listen: str, number: int) -> None:
    """Returns after SIGINT or SIGTERM. Raises OSError when it cannot listen."""
    # Imported here: these read the settings, and Bokeh takes its time.
    from conf.names import STATE_KEY
    from conf.settings import CHANNEL_PREFIX

    with socket.create_server((listen, number), family=socket.AF_INET6 if ":" in listen else socket.AF_INET) as probe:
        number = probe.getsockname()[1]  # before all else: whether the port is free, and which it is
    from bokeh.application import Application
    from bokeh.application.handlers.function import FunctionHandler
    from bokeh.server.server import Server
    from bokeh.settings import settings as of_bokeh

    from callbacks import publisher
    from dashboard.model import Model
    from dashboard.page import make_page
    from dashboard.reader import Reader
    from examples.synced import Synced

    origins = [f"localhost:{number}", f"127.0.0.1:{number}"] if listen == LOCAL else ["*"]
    of_bokeh.resources = "server"  # nothing from the internet, whatever BOKEH_RESOURCES is
    reader = Reader(Model(CHANNEL_PREFIX, Synced, publisher.address), publisher.new_connection, STATE_KEY)
    application = Application(FunctionHandler(make_page(reader)))
    server = Server({"/": application}, address=listen, port=number, allow_websocket_origin=origins)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: server.io_loop.add_callback_from_signal(server.io_loop.stop))
    reader.start()
    try:
        server.start()
        print(
            f"http://{LOCAL if listen == '0.0.0.0' else listen}:{number} shows Redis at {publisher.address}", flush=True
        )
        server.io_loop.start()
    finally:
        server.stop()
        reader.stop()


def main(words: Sequence[str] | None = None) -> int:
    """Runs on the main thread. Returns the exit code: 0; 1, the page cannot be served; 2, a setting cannot be used."""
    options = arguments(words)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("bokeh").setLevel(logging.ERROR)  # it warns of every picture for a tab that was just closed
    try:
        with ExitStack() as stack:
            address = options.redis
            if options.demo:
                os.environ["PYTHON_DOTENV_DISABLED"] = "1"
                address = stack.enter_context(demo())
            if address:
                os.environ |= dict.fromkeys(ELSEWHERE, "") | {"REDIS_HOST": address}
            serve(options.listen, options.port)
        return 0
    except ModuleNotFoundError as error:
        print(f"{PROGRAM}: {error.name} is missing: make dashboard, or pip install -r dashboard/requirements.txt")
    except KeyboardInterrupt:
        return 0
    except (OSError, RuntimeError) as error:
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        taken = f"port {options.port} is taken: choose another with --port (make dashboard PORT=5007)"
        print(f"{PROGRAM}: {taken if is_taken else error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
