"""The collector at work on your own machine, without network or Redis: `python -m sandbox.demo`.

The program itself (main.py) runs between a stand-in for Bybit (sandbox/bybit) and a Redis of its own
(sandbox/redis.py), each in a process of its own so that the delays are honest. This process is only a subscriber that
shows what arrives: on a terminal as a live view, elsewhere as one line a second.
"""

import argparse
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sandbox.redis import HOST, LocalRedis, end_with_parent
from sandbox.subscriber import PREFIX, Subscriber

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR")  # of the environment; a developer's settings are not for the demo
DROP_EVERY = "20"  # seconds after which the stand-in drops all connections
LOG_LINES = 6  # of the collector's log in the live view
MARGIN = 4  # columns at the right that stay free, for the ^C that a terminal echoes
LOG = re.compile(r"\S+ (\d\d:\d\d:\d\d)\S* \w+ \[(.*?)\] (.*)")  # date, time, level, thread, text
TICK = 0.25  # seconds between two pictures
READY_TIMEOUT = 10.0  # seconds until the stand-in must listen
STOP_TIMEOUT = 8.0  # seconds between SIGTERM and SIGKILL; the collector gives itself 5

CONSOLE = Console(highlight=False)


def short(line: str) -> str:
    """A line of the collector's log without date and level."""
    match = LOG.fullmatch(line)
    return "{} {}: {}".format(*match.groups()) if match else line


def follow(output: IO[str], lines: list[str]) -> None:
    """Runs on a thread of its own until the process that writes to `output` ends."""
    with output:
        for text in output:
            lines.append(short(text.rstrip()))


@contextmanager
def child(lines: list[str], *command: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """`python COMMAND` with these settings and no others; its output is appended to `lines`."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={name: os.environ[name] for name in KEPT if name in os.environ} | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl+C is for the demo, which ends the others in order
        preexec_fn=end_with_parent,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=follow, args=(process.stdout, lines), name="reader")
    reader.start()
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()


def url_of(bybit: subprocess.Popen[str], lines: list[str]) -> str:
    """The stand-in's URL, as soon as it prints it. Raises RuntimeError when it does not."""
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline and bybit.poll() is None:
        for text in lines:
            if text.startswith("BYBIT_WS_URL="):
                return text.removeprefix("BYBIT_WS_URL=")
        time.sleep(0.05)
    raise RuntimeError("\n".join(["The stand-in for Bybit did not start", *lines[-LOG_LINES:]]))


def watch(port: int, subscriber: Subscriber, lines: list[str], running: Callable[[], bool]) -> None:
    """Shows the last second and the collector's log while `running()`."""
    began = time.monotonic()
    about = Text.assemble(
        ("stand-in for Bybit > collector (main.py) > Redis > this subscriber\n", "bold"),
        f"The market is made up; every {DROP_EVERY} s the stand-in drops all connections.\n",
        f"The messages themselves: redis-cli -p {port} psubscribe '{PREFIX}*'",
    )
    if CONSOLE.is_terminal and not CONSOLE.is_dumb_terminal:
        with Live(console=CONSOLE, auto_refresh=False, transient=True) as live:
            while running():
                log = Text("\n".join(lines[-LOG_LINES:]), "dim", no_wrap=True)
                for line in (shown := log.split()):
                    line.truncate(CONSOLE.width - MARGIN, overflow="ellipsis")
                elapsed = Text(f"{time.monotonic() - began:4.0f} s; Ctrl+C ends the demo", "cyan")
                live.update(Group(about, subscriber.table(), elapsed, *shown), refresh=True)
                time.sleep(TICK)
        return
    CONSOLE.print(about)
    logged, second = 0, 0
    while running():
        time.sleep(TICK)
        for text in lines[logged:]:
            CONSOLE.print(text, markup=False)
            logged += 1
        if time.monotonic() - began > second + 1:
            second += 1
            CONSOLE.print(f"{second:4} s  {subscriber.line()}")
            sys.stdout.flush()


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
    parser.add_argument("--seconds", type=positive, default=math.inf, help="duration (default: until Ctrl+C)")
    parser.add_argument("--symbols", default="BTCUSDT,ETHUSDT", help="default: %(default)s")
    parser.add_argument("--rate", type=positive, default=200.0, help="messages a second (default: %(default)g)")
    return parser.parse_args()


def main() -> int:
    """Runs on the main thread; returns the exit code: 1 when a channel stayed empty or a part did not work."""
    options = arguments()
    signals: list[int] = []  # the handlers only append
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    subscriber = Subscriber(options.symbols.split(",")[0].strip())
    bybit_lines: list[str] = []
    lines: list[str] = []  # of the collector
    try:
        with ExitStack() as stack:
            server = stack.enter_context(LocalRedis())
            flags = ("--port", "0", "--symbols", options.symbols, "--rate", str(options.rate))
            bybit = stack.enter_context(child(bybit_lines, "-m", "sandbox.bybit", *flags, "--drop-every", DROP_EVERY))
            settings = {"BYBIT_WS_URL": url_of(bybit, bybit_lines), "SYMBOLS": options.symbols}
            settings |= {"REDIS_HOST": HOST, "REDIS_PORT": str(server.port), "PYTHON_DOTENV_DISABLED": "1"}
            stack.enter_context(subscriber.subscribed(server))
            collector = stack.enter_context(child(lines, "main.py", **settings))
            end = time.monotonic() + options.seconds
            watch(
                server.port,
                subscriber,
                lines,
                lambda: not signals and collector.poll() is None and time.monotonic() < end,
            )
            elapsed = max(TICK, subscriber.elapsed())
            table, summary, code = subscriber.table(elapsed), subscriber.summary(elapsed), collector.poll()
    except (OSError, RuntimeError) as error:
        print(error)
        return 1
    CONSOLE.print(table, summary)
    if code is not None:
        print("\n".join([*lines[-LOG_LINES:], f"The collector ended by itself, with code {code}"]))
        return 1
    if (silent := subscriber.silent()) and not signals:
        print(f"Nothing came over {', '.join(silent)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
