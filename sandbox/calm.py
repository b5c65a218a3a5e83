"""`make demo`: one collector at work, and nothing breaks."""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rich.live import Live

from sandbox.collectors import child, settings_for
from sandbox.redis import LocalRedis
from sandbox.screen import CHAOS, CONSOLE, NEXT, is_live
from sandbox.subscriber import Picture, Subscriber

LOG_LINES = 6  # of the collector's log, when something fails
TICK = 0.25  # seconds between two pictures
READY_TIMEOUT = 10.0  # seconds until the stand-in must listen
ARRIVE_TIMEOUT = 2.0  # seconds until the last message must have arrived
SENT = re.compile(r"Sent (\d+) messages")  # the stand-in's last line


def wait_for_line(bybit: subprocess.Popen[str], lines: list[str], start: str) -> str:
    """The rest of the stand-in's line that begins so, as soon as it prints it. Raises RuntimeError if it does not."""
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline and bybit.poll() is None:
        for text in lines:
            if text.startswith(start):
                return text.removeprefix(start)
        time.sleep(0.05)
    raise RuntimeError("\n".join(["The stand-in for Bybit did not start", *lines[-LOG_LINES:]]))


def watch(picture: Picture, running: Callable[[], bool]) -> None:
    """Shows the last second and the collector's log while `running()`."""
    if is_live():
        # The alternate screen: nothing is left of it at the end, whatever was resized or echoed meanwhile.
        with Live(picture, console=CONSOLE, auto_refresh=False, screen=True) as live:
            while running():
                live.refresh()
                time.sleep(TICK)
        return
    CONSOLE.print(picture.about)
    logged, second = 0, 0
    while running():
        time.sleep(TICK)
        for text in picture.log[logged:]:
            CONSOLE.print(text, markup=False)
            logged += 1
        if time.monotonic() - picture.began > second + 1:
            second += 1
            CONSOLE.print(f"{second:4} s  {picture.subscriber.line()}")
            sys.stdout.flush()


def last_of(bybit: subprocess.Popen[str], lines: list[str], subscriber: Subscriber) -> int | None:
    """Ends the stand-in; returns how many messages it has sent when they have arrived. None: it does not say."""
    bybit.terminate()
    try:
        bybit.wait(READY_TIMEOUT)
    except subprocess.TimeoutExpired:
        return None
    deadline = time.monotonic() + ARRIVE_TIMEOUT
    while time.monotonic() < deadline:
        sent = next((int(found[1]) for line in lines if (found := SENT.match(line))), None)
        if sent is not None and subscriber.total >= sent:
            return sent
        time.sleep(0.02)
    return next((int(found[1]) for line in lines if (found := SENT.match(line))), None)


def run(options: argparse.Namespace, signals: Sequence[int]) -> int:
    """One collector, and nothing breaks; returns the exit code: 1 when something was lost or did not work."""
    subscriber = Subscriber(options.symbols.split(",")[0].strip())
    bybit_lines: list[str] = []
    lines: list[str] = []  # of the collector
    with ExitStack() as stack:
        server = stack.enter_context(LocalRedis())
        flags = ("--port", "0", "--symbols", options.symbols, "--rate", str(options.rate))
        bybit = stack.enter_context(child(bybit_lines, "-m", "sandbox.bybit", *flags))
        url = wait_for_line(bybit, bybit_lines, "BYBIT_WS_URL=")
        stack.enter_context(subscriber.subscribed(server))
        collector = stack.enter_context(child(lines, "main.py", **settings_for(server, url, options.symbols)))
        picture = Picture(subscriber, lines, server.port)
        end = time.monotonic() + options.seconds
        watch(picture, lambda: not signals and collector.poll() is None and time.monotonic() < end)
        elapsed, code = max(TICK, subscriber.elapsed()), collector.poll()
        events = subscriber.events.copy()  # the end of the stand-in is another one
        sent = last_of(bybit, bybit_lines, subscriber)
        CONSOLE.print(subscriber.summary(elapsed, events, sent), f"{CHAOS}\n{NEXT}", sep="\n\n")
    if code is not None:
        print("\n".join([*lines[-LOG_LINES:], f"The collector ended by itself, with code {code}"]))
        return 1
    if (silent := subscriber.silent()) and not signals:
        print(f"Nothing came over {', '.join(silent)}")
        return 1
    return int(sent is None or subscriber.total < sent)
