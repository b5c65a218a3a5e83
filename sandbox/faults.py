"""The script of `make demo CHAOS=1`: what breaks, in which order, and what is said of it before."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from rich.live import Live

from sandbox.board import Board, Row, summary
from sandbox.chaos import Chaos, Fault, Interrupted
from sandbox.screen import CONSOLE, NEXT, is_live

SEEN = 1.0  # seconds after which a leader knows that the other one is ready; both write and look twice a second


def bybit_cuts_both_in_turn(chaos: Chaos) -> None:
    for _ in range(2):
        chaos.tick(SEEN)
        leader = chaos.leader
        for connection in chaos.connections(leader):
            connection.drop()
        chaos.wait_for_takeover(leader)
        chaos.wait_for_pair()


def redis_is_away(chaos: Chaos, state: str, seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> None:
    begin()
    chaos.board.redis = state
    chaos.passes(seconds)
    end()
    chaos.board.redis = "runs"


def redis_is_killed(chaos: Chaos) -> None:
    redis_is_away(chaos, "killed", 4, chaos.redis.kill, chaos.redis.start)


def redis_hangs(chaos: Chaos) -> None:
    redis_is_away(chaos, "hangs", 3, chaos.redis.pause, chaos.redis.resume)


def the_leader_is_killed(chaos: Chaos) -> None:
    chaos.wait_for_pair()
    leader = chaos.leader
    chaos.programs[leader].send_signal(signal.SIGKILL)
    chaos.wait_for_takeover(leader)
    chaos.passes(1)
    chaos.run(leader)


def rolling_restart(chaos: Chaos) -> None:
    leader = chaos.leader
    for name in (leader, *(each for each in chaos.programs if each != leader)):
        chaos.restart(name)


FAULTS = (
    Fault(
        "Bybit cuts off both in turn",
        9,
        "Bybit repeats nothing. Who stands by has it all, and takes over.",
        bybit_cuts_both_in_turn,
    ),
    Fault(
        "kill -9 Redis, back in 4 s",
        10,
        "Messages are kept, then sent in order once subscribers are back.",
        redis_is_killed,
    ),
    Fault(
        "kill -9 the leader",
        9,
        "The standby takes over in 2 s, with all that is missing by then.",
        the_leader_is_killed,
    ),
    Fault(
        "Redis hangs for 3 s",
        8,
        "SIGSTOP: nothing answers. Messages are kept; some may come twice.",
        redis_hangs,
    ),
    Fault(
        "rolling restart",
        8,
        "Both are stopped and started in turn; a leader hands over first.",
        rolling_restart,
    ),
)


def run(options: argparse.Namespace, signals: Sequence[int]) -> int:
    """Two collectors, and everything breaks; returns the exit code: 0 only if it is proved that nothing was lost."""
    rows = [Row(fault.name) for fault in FAULTS]
    board = Board(options.rate, rows)

    def tell(text: str) -> None:
        if not is_live():
            CONSOLE.print(f"{time.monotonic() - board.began:5.1f} s  {text}", soft_wrap=True)
            sys.stdout.flush()

    stage = Chaos(options.symbols, board, options.pace, signals, tell)
    view = Live(get_renderable=lambda: board, console=CONSOLE, refresh_per_second=4, screen=True)
    try:
        with stage, view if is_live() else nullcontext():
            stage.begin()
            for row, fault in zip(rows, FAULTS, strict=True):
                if time.monotonic() - board.began + fault.seconds * options.pace > options.seconds:
                    break
                stage.play(row, fault)
            stage.end()
    except Interrupted:
        CONSOLE.print(summary(board, None))
        return 130
    proof = stage.proof
    assert proof is not None
    CONSOLE.print(summary(board, proof), NEXT, sep="\n\n")
    return int(bool(proof.faults))
