"""A consumer of all the collector's channels, in a process of its own, that keeps every message with its arrival."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Self

import redis

from sandbox.redis import LocalRedis, end_with_parent

PREFIX = "stream:bybit"
CHANNELS = ("orderbook", "trades", "ticker", "liquidations")  # after PREFIX and _
STATUS = f"{PREFIX}_status"
NAMES = [*(f"{PREFIX}_{name}" for name in CHANNELS), STATUS]
RETRY = 0.05  # seconds after which the consumer reconnects: the collector waits 2 s for it

Arrival = tuple[float, str, bytes]
"""time.monotonic(), which all processes of a machine share; channel; payload."""


def is_over(pipe: Connection, messages: Sequence[Arrival]) -> bool:
    """Answers the questions that have come: "count" with the number of messages, a number n with those from the n-th
    on, "end" with all. Returns whether it was "end".
    """
    while pipe.poll():
        question = pipe.recv()
        if question == "count":
            pipe.send(len(messages))
        elif question == "end":
            pipe.send(messages)
            return True
        else:
            pipe.send(messages[question:])
    return False


def consume(port: int, pipe: Connection) -> None:
    """A consumer of all channels, in a process of its own; reconnects by itself. Answers questions until "end"."""
    end_with_parent()
    messages: list[Arrival] = []
    client = LocalRedis(port).client(retry=None, socket_timeout=1)

    while not is_over(pipe, messages):
        try:
            with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                pubsub.subscribe(*NAMES)
                pubsub.psubscribe(*(f"{name}:*" for name in NAMES[:-1]))  # where each symbol has its own
                look = 0.0
                while True:
                    if message := pubsub.get_message(timeout=0.1):
                        messages.append((time.monotonic(), message["channel"].decode(), message["data"]))
                    if time.monotonic() >= look:  # not for each message: it costs a system call
                        look = time.monotonic() + 0.1
                        if is_over(pipe, messages):
                            return
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(RETRY)


class Consumer:
    """`task` in a process of its own, ended with `with`. It gets the arguments and a pipe, and answers as `consume`."""

    def __init__(self, *arguments: Any, task: Callable[..., None] = consume) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=task, args=(*arguments, theirs), daemon=True)

    def __enter__(self) -> Self:
        # Ctrl+C goes to all processes of a terminal; the new one inherits that it is blocked, and is killed at the end.
        resource_tracker.ensure_running()  # first, as it unblocks SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def count(self) -> int:
        """How many messages there are."""
        self._pipe.send("count")
        count: int = self._pipe.recv()
        return count

    def since(self, number: int) -> list[Arrival]:
        """The messages from that number on, from 0."""
        self._pipe.send(number)
        messages: list[Arrival] = self._pipe.recv()
        return messages

    def end(self) -> list[Arrival]:
        """All messages. The consumer ends."""
        self._pipe.send("end")
        messages: list[Arrival] = self._pipe.recv()
        return messages
