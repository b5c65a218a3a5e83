"""Reads many connections on one thread, named Reader: the reactor pattern.

Where each connection is read by a thread of its own, every message wakes one, which then waits for the interpreter that
another one holds: that costs more than the message. So a connection is lent to the Reader while its messages only have
to be handed on. All else is done by its own thread: it recalls the connection once a second, and gets it back when
something comes that takes more.

A connection always has one owner. Its thread lends it, and does not touch it until recall() has returned; the Reader
touches nothing that is not lent to it. What either tells the other goes through `_orders` and `Loan.returned`.
"""

import logging
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any, Protocol

from relay.waker import Waker

log = logging.getLogger(__name__)

# Seconds of the pause after a round that found several messages, but fewer than ENOUGH: more are on their way, and a
# round of several costs less. Sleeping takes about as much again. docs/performance.md has what it brings.
PAUSE, ENOUGH = 0.00005, 16
# Seconds between two checks of whether the Reader still runs.
CHECK_EVERY = 0.5


class Loan:
    """A socket that is lent to the Reader.

    read: called on the Reader whenever the socket has something. Returns how many messages it has handed on; None, or
    an exception, gives the connection back.
    on_return: called on the Reader when it has given the connection back of its own accord. Must not block.
    """

    def __init__(self, sock: Any, read: Callable[[], int | None], on_return: Callable[[], None]) -> None:
        self.number: int = sock.fileno()
        self.read, self.on_return = read, on_return
        self.returned = threading.Event()
        self.returned.set()
        self.error: BaseException | None = None  # what `read` raised; the Reader writes it before it sets `returned`


class Flushed(Protocol):
    """What messages are handed on to."""

    def flush(self) -> object: ...


class Reactor:
    """The connections that are lent. sink: its flush() is called after each round of reads. It must not block for long.

    Threads: the main thread calls start(), stop() and join(), those of connections lend() and recall().
    """

    def __init__(self, sink: Flushed) -> None:
        self._sink = sink
        self._orders: deque[tuple[bool, Loan]] = deque()  # whether it is lent or recalled
        self._loans: dict[int, Loan] = {}  # the Reader's own, by the number of the socket
        self._stopping = self._ended = False
        self._waker: Waker | None = None
        self._poller: Any = None
        self._thread = threading.Thread(target=self._run, name="Reader", daemon=True)

    def start(self) -> None:
        """Starts the thread. Raises RuntimeError or OSError if the system has no thread or no descriptor to give."""
        self._waker = self._waker or Waker()
        # Asking poll() costs 0.06 us more with each connection, epoll() always the same.
        self._poller = self._poller or (select.epoll() if sys.platform == "linux" else select.poll())
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread soon: every connection is given back."""
        self._stopping = True
        if self._waker:
            self._waker.wake()

    def join(self, deadline: float) -> None:
        """Waits until the thread has ended, after stop(); until `deadline` (monotonic) at most."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - monotonic()))

    @property
    def is_running(self) -> bool:
        """Whether a connection may be lent. Any thread."""
        return self._thread.is_alive() and not (self._stopping or self._ended)

    def lend(self, loan: Loan) -> None:
        """The Reader reads this from now on. If it has ended meanwhile, the connection is given back at once."""
        loan.returned.clear()
        self._order(True, loan)
        if self._ended:  # set before the last look at the orders: it has given this back, or nobody would
            loan.returned.set()
            loan.on_return()

    def recall(self, loan: Loan) -> None:
        """Returns when the Reader does not touch the connection any more. Raises what reading it raised."""
        if not loan.returned.is_set():
            self._order(False, loan)
            while not loan.returned.wait(CHECK_EVERY) and self._thread.is_alive():
                pass  # a callback does not return: this thread is overdue then, and the monitor sees it
        error, loan.error = loan.error, None
        if error:
            try:
                raise error
            finally:
                # Its traceback leads here, and to what reads: cycles that would keep the connection's buffers for long.
                del error

    def _order(self, is_lent: bool, loan: Loan) -> None:
        assert self._waker
        self._orders.append((is_lent, loan))  # before the Reader is woken: it looks after each round
        self._waker.wake()

    # The Reader.

    def _run(self) -> None:
        """Reads until stop(), or until an error in here: then each connection is read by its own thread again."""
        assert self._waker
        self._poller.register(self._waker, select.POLLIN)
        try:
            self._read_all(self._waker)
        except Exception:
            log.exception("Internal error; each connection is read by its own thread from now on")
        finally:
            self._ended = True
            while self._orders:
                self._obey(*self._orders.popleft())
            for loan in list(self._loans.values()):
                self._give_back(loan)
                loan.on_return()
            self._waker.close()

    def _read_all(self, waker: Waker) -> None:
        poll, loans, flush = self._poller.poll, self._loans, self._sink.flush
        paused = False
        while not self._stopping:
            messages, ready = 0, poll()
            while ready:
                for number, _ in ready:
                    if number in loans:
                        messages += self._read(loans[number])
                    else:
                        waker.take()
                ready = poll(0) if paused and messages < ENOUGH else []
            flush()
            while self._orders:
                self._obey(*self._orders.popleft())
            if paused := 1 < messages < ENOUGH:
                sleep(PAUSE)

    def _read(self, loan: Loan) -> int:
        """Reads one connection. Returns how many messages were handed on. A part of one counts as one, so that one
        without end does not keep a round from ending.
        """
        try:
            messages = loan.read()
        except BaseException as error:  # it is raised on the connection's own thread
            loan.error, messages = error, None
        if messages is None:
            self._give_back(loan)
            loan.on_return()
        return messages or 1

    def _obey(self, is_lent: bool, loan: Loan) -> None:
        if is_lent:
            self._loans[loan.number] = loan
            self._poller.register(loan.number, select.POLLIN)
        elif self._loans.get(loan.number) is loan:  # else it was given back in the meantime
            self._give_back(loan)

    def _give_back(self, loan: Loan) -> None:
        del self._loans[loan.number]
        self._poller.unregister(loan.number)
        loan.returned.set()
