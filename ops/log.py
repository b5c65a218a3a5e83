"""The log on stderr: lines without control characters, written by a thread that may wait for whoever reads them."""

import logging
import os
import sys
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from time import sleep
from types import TracebackType

from relay.log import printable, shorten

LINES, CHARACTERS = 10_000, 10_000  # lines that wait for stderr; characters of a line
END_TIMEOUT = 1.0  # seconds that the end of the program waits for stderr
STDERR = 2  # the file descriptor

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Printable(logging.Formatter):
    """A line for each record, and its traceback behind it, whatever texts of others are in them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return shorten(super().formatMessage(record), CHARACTERS)

    def formatException(self, ei: _ExcInfo) -> str:
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


class Lines(logging.Handler):
    """Writes to stderr on a thread of its own: a pipe that nobody reads stops nothing else. What does not fit into the
    queue is dropped and counted; the next line that fits comes behind their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self._queue: SimpleQueue[str | None] = SimpleQueue()  # None: the end
        # These two belong to the holder of the handler's lock, as all that call emit() and close().
        self._dropped = 0  # lines that the log does not tell of yet
        self._thread: Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if self._queue.qsize() >= LINES:
            self._dropped += 1
        else:
            self._tell_dropped()
            self._queue.put(line)
        if self._thread is None:
            thread = Thread(target=self._run, name="Log", daemon=True)
            with suppress(RuntimeError):  # there is no thread to be had: tried again with the next line
                thread.start()
                self._thread = thread

    def _tell_dropped(self) -> None:
        if self._dropped:
            words = "%d lines of the log are missing here: stderr did not take them", (self._dropped,)
            self._queue.put(self.format(logging.LogRecord(__name__, logging.WARNING, "", 0, *words, None)))
            self._dropped = 0

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            if sys.__stderr__ is not None:  # else there was none at the start, and the descriptor may be anything
                write(f"{line}\n".encode(errors="backslashreplace"))

    def close(self) -> None:
        """Writes what waits and ends the thread. If stderr does not take it within END_TIMEOUT, both are given up."""
        if self._thread is not None:
            self._tell_dropped()
            self._queue.put(None)
            self._thread.join(END_TIMEOUT)
        super().close()


def write(data: bytes) -> None:
    """To stderr, however long that takes. Not through sys.stderr: who waits in it holds a lock that the end of the
    program needs.
    """
    while data:
        try:
            data = data[os.write(STDERR, data) :]
        except BlockingIOError:  # whoever has it, too, has made it non-blocking
            sleep(0.05)
        except OSError:
            return  # it is gone
