"""The log on stderr: lines without control characters, written by a thread that may wait for whoever reads them."""

import json
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Container, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from time import sleep
from types import TracebackType
from typing import Any

from relay.log import printable, shorten
from relay.stats import stream_of

LINES, CHARACTERS = 10_000, 10_000  # lines that wait for stderr; characters of a line, bytes of JSON
END_TIMEOUT = 1.0  # seconds that the end of the program waits for stderr
STDERR = 2  # the file descriptor
NAME, MAX_DEPTH = 200, 2  # in JSON: characters of a name; levels of lists in what a line names
PLACEHOLDER = re.compile(r"%\((\w+)\)[-+#0 .\d]*[a-zA-Z]")  # in the template of a line

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Printable(logging.Formatter):
    """A line for each record, and its traceback behind it, whatever texts of others are in them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return shorten(super().formatMessage(record), CHARACTERS)

    def formatException(self, ei: _ExcInfo) -> str:
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


class Json(logging.Formatter):
    """A line for each record that is a JSON object: the same sentence, and what it names as numbers, texts and lists.

    `event` is the template of the sentence: "Lost Redis at {address}: {reason}; buffering". So it is the same in all
    lines of a kind, can be found in the source and in the handbook, and no new line can be without one. A name of its
    own for each kind would be a second list to keep; one made of the template's words would change with them as well.
    `stream` is the entry of STREAMS whose connection writes the line, or that the line names.

    Texts of others are printable and bounded, as in lines of text, and so is the line as a whole: what is cut has a
    "…" where it was. Never raises.
    """

    def __init__(self, streams: Container[str] = ()) -> None:
        """streams: the names of connections, which are those of their threads. It may change meanwhile."""
        super().__init__()
        self._streams = streams

    def format(self, record: logging.LogRecord) -> str:
        named = record.args if isinstance(record.args, Mapping) else {}
        errors = [self.formatException(record.exc_info)] if record.exc_info else []
        try:
            message = record.getMessage()
        except Exception:  # arguments of another library that do not fit its template
            message = text(record.msg)
            errors.append(traceback.format_exc())
        thread = record.threadName or ""
        stream = text(named.get("stream") or (thread if thread in self._streams else ""), NAME)
        about = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:23] + "Z",
            "level": text(record.levelname, NAME),
            "thread": text(thread, NAME),
            "stream": stream_of(stream),
            "logger": text(record.name, NAME),
            "event": PLACEHOLDER.sub(r"{\1}", text(record.msg)) if named else text(record.msg),
            "message": message,
            "fields": named,
        }
        if errors:
            about["error"] = "\n".join(printable(line) for error in errors for line in error.splitlines())
        limit = CHARACTERS
        while len((line := one_line(about, limit)).encode()) > CHARACTERS:  # bytes: Docker splits at 16 KiB
            limit //= 2
        return line


def one_line(about: Mapping[str, Any], limit: int) -> str:
    """As JSON. limit: characters of a text, and parts of a list."""
    error = about.get("error", "")
    parts = {
        **about,
        "event": text(about["event"], limit),
        "message": text(about["message"], limit),
        "fields": as_json(about["fields"], limit),
    }
    if len(error) > limit:
        parts["error"] = "…" + error[-limit:]  # its end tells most
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def as_json(value: object, limit: int, depth: int = 0) -> object:
    """What a line names: numbers stay numbers, seconds have milliseconds."""
    if value is None or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return round(value, 3)
    if isinstance(value, list | tuple) and depth < MAX_DEPTH:
        more = [f"… and {len(value) - limit:,} more"] if len(value) > limit else []
        return [as_json(each, limit, depth + 1) for each in value[:limit]] + more
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        more_names = {"…": f"and {len(value) - limit:,} more"} if len(value) > limit else {}
        names = islice(value, limit)
        return {text(name, NAME): as_json(value[name], limit, depth + 1) for name in names} | more_names
    return text(value, limit)


def text(value: object, limit: int = CHARACTERS) -> str:
    """On one line, of bounded length, whatever its __str__ does."""
    try:
        return shorten(value, limit)
    except Exception:
        return f"<{type(value).__name__}>"


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
            words = "%(lines)d lines of the log are missing here: stderr did not take them"
            record = logging.LogRecord(__name__, logging.WARNING, "", 0, words, ({"lines": self._dropped},), None)
            self._queue.put(self.format(record))
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
