"""An asyncio loop on a thread of its own, and the bridge to it from other threads."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

RUN_TIMEOUT = 5.0  # seconds for the loop to carry out one action
WAIT_POLL = 0.05  # seconds between two checks of a condition whose change is not notified


class LoopThread:
    """Runs from `start` to `stop`.

    Args:
        name: of the thread.
        at_stop: called on the thread once the loop stops, before its tasks are cancelled.
    """

    def __init__(self, name: str, at_stop: Callable[[], None]) -> None:
        self._at_stop = at_stop
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def stop(self) -> None:
        """Cancels all tasks and returns when the thread has ended."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def call_soon(self, action: Callable[[], None]) -> None:
        """Runs an action on the thread, from any thread. Returns at once; the order is kept."""
        self._loop.call_soon_threadsafe(action)

    def run(self, action: Callable[[], R]) -> R:
        """Runs an action on the thread and returns its result, from any thread."""
        if threading.current_thread() is self._thread:
            return action()
        future: Future[R] = Future()

        def act() -> None:
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

        self.call_soon(act)
        return future.result(RUN_TIMEOUT)

    def wait(self, condition: Callable[[], object], timeout: float) -> bool:
        """Returns whether the condition holds within `timeout` seconds, from any thread."""
        with self._changed:
            deadline = time.monotonic() + timeout
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, WAIT_POLL))  # the condition may depend on something outside the server
            return True

    def notify(self) -> None:
        """Something changed: wakes those who wait. From here on the loop's thread only."""
        with self._changed:
            self._changed.notify_all()

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Runs an action after `delay` seconds; 0 = in the next turn of the loop."""
        if delay:
            self._loop.call_later(delay, action)
        else:
            self._loop.call_soon(action)

    def watch(self, listener: socket.socket, action: Callable[[], None]) -> None:
        """Runs an action whenever the listener has a connection to accept."""
        self._loop.add_reader(listener, action)

    def unwatch(self, listener: socket.socket) -> None:
        self._loop.remove_reader(listener)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._at_stop()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # for the connections to notice
        self._loop.close()


class OnLoop(Protocol):
    """Something that lives on a loop's thread."""

    loop: LoopThread


Owner = TypeVar("Owner", bound=OnLoop)


def on_loop(method: Callable[Concatenate[Owner, P], R]) -> Callable[Concatenate[Owner, P], R]:
    """Makes a method callable from any thread: it runs on the loop's thread, and returns when it is done there."""

    @functools.wraps(method)
    def call(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.loop.run(lambda: method(self, *args, **kwargs))

    return call
