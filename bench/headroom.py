"""What the sender can do by itself: it plays to a reader that drops everything (`python -m bench.headroom`)."""

import json
import os
import select
import time
from collections.abc import Iterator
from typing import Any

from bench.limit import KINDS, PIECE, connect
from bench.play import Bench
from bench.report import SATURATION
from bench.runners import Runner, python

FIRST, STEP = 10_000, 1.25  # messages a second tried first, and how many times as many next
SECONDS = 0.5  # each rate, and saturation, is played
TRIES = 2  # at a rate, as one hiccup of the machine is no limit of the sender
LIMIT = 10.0  # seconds for all rates
KEPT = 0.99  # share of the rate that must be reached
LAG = 0.05  # seconds that a frame may be late


def rates() -> Iterator[int]:
    rate = float(FIRST)
    while True:
        yield int(round(rate, -3))
        rate *= STEP


def keeps(rate: int, played: dict[str, Any]) -> bool:
    """Whether the sender kept the rate in this play; a frame that waits for the reader is not sent."""
    return played["sent"] - played["waiting"] >= KEPT * rate * played["took"] and played["lag"] <= LAG


def sentence(kept: int, saturation: float) -> str:
    """kept: the highest rate kept, 0 = none. saturation: messages a second."""
    most = f"up to {kept:,}" if kept else f"less than {FIRST:,}"
    return (
        f"To a reader that drops everything, the sender keeps rates of {most} messages/s, and sends "
        f"{round(saturation, -3):,.0f}/s at saturation."
    )


def headroom(bench: Bench) -> str:
    """Play rising rates until the sender keeps one no more, then saturation. Raises Failed."""
    kept, deadline = 0, time.monotonic() + LIMIT

    def play(rate: int) -> dict[str, Any]:
        played: dict[str, Any] = bench.sender.ask(("play", rate, SECONDS))
        bench.board.clear(played["sent"])
        return played

    with bench.running(Runner("headroom", "reads and drops everything", python("bench.headroom"))):
        for rate in rates():
            if time.monotonic() > deadline or not any(keeps(rate, play(rate)) for _ in range(TRIES)):
                break
            kept = rate
        flooded = play(SATURATION)
    return sentence(kept, flooded["sent"] / flooded["took"])


def main() -> None:
    poller, socks = select.poll(), {}
    for group in json.loads(os.environ["BENCH_GROUPS"]):
        for _, topic in KINDS:
            sock, _ = connect(os.environ["BENCH_URL"] + "/v5/public/linear", [topic + symbol for symbol in group])
            socks[sock.fileno()] = sock
            poller.register(sock.fileno(), select.POLLIN)
    room = bytearray(PIECE)
    while all(socks[number].recv_into(room) for number, _ in poller.poll()):
        pass  # a record a turn, as the runner `limit`


if __name__ == "__main__":
    main()
