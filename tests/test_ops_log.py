"""The log on stderr: what its lines look like, and that a stderr which takes nothing stops nobody."""

import logging
import os
import sys
import threading
import time
from contextlib import suppress

import pytest
from conftest import eventually

from ops import log as module
from ops.log import Lines, Printable


@pytest.fixture
def pipe(monkeypatch):
    """Stands for stderr: the end to read from."""
    reading, writing = os.pipe()
    monkeypatch.setattr(module, "STDERR", writing)
    monkeypatch.setattr(module, "END_TIMEOUT", 0.3)
    yield reading
    for each in (reading, writing):
        os.close(each)


@pytest.fixture
def logger():
    handler, found = Lines(), logging.getLogger("test")
    handler.setFormatter(Printable("%(levelname)s %(message)s"))
    found.addHandler(handler)
    found.propagate = False
    found.setLevel(logging.INFO)
    yield found
    found.removeHandler(handler)
    handler.close()


def read(pipe):
    return os.read(pipe, 1 << 20).decode()


def drain(pipe):
    """Reads until the thread has ended, which may be between two looks."""
    os.set_blocking(pipe, False)

    def ended():
        with suppress(BlockingIOError):
            read(pipe)
        return not threads()

    eventually(ended)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "Log"]


def test_foreign_text_becomes_one_printable_line(pipe, logger):
    text = "a\x1b[2J\x07b\r\n2026-01-01 ERROR forged \ud800"
    # Not through the logger: pytest would keep the text, and pytest-xdist cannot pass on half of a surrogate pair.
    record = logging.makeLogRecord({"levelname": "WARNING", "msg": "Lost: %s", "args": (text,)})
    logger.handlers[0].handle(record)
    logger.handlers[0].close()
    assert read(pipe) == "WARNING Lost: a�[2J�b 2026-01-01 ERROR forged �\n"


def test_a_traceback_keeps_its_lines(pipe, logger):
    try:
        raise ValueError("no\x1b[2J\nsecond")
    except ValueError:
        logger.exception("failed")
    logger.handlers[0].close()
    first, head, place, code, *last = read(pipe).splitlines()
    assert (first, head) == ("ERROR failed", "Traceback (most recent call last):")
    assert place.startswith('  File "')
    assert code.startswith("    raise ValueError(")
    assert last[-2:] == ["ValueError: no�[2J", "second"]


def test_a_full_pipe_stops_nobody_and_the_lines_that_are_missing_are_counted(pipe, logger, monkeypatch):
    monkeypatch.setattr(module, "LINES", 10)
    began = time.monotonic()
    for number in range(100):
        logger.info("%d %s", number, "x" * 9000)
    assert time.monotonic() - began < 1
    text = read(pipe)
    while not logger.handlers[0]._queue.empty():
        text += read(pipe)
    logger.info("the end")
    logger.handlers[0].close()
    *lines, last = (text + read(pipe)).splitlines()
    assert last == "INFO the end"
    number = 0  # of the next line
    for words in map(str.split, lines):
        if words[0] == "WARNING":
            assert " ".join(words[2:]) == "lines of the log are missing here: stderr did not take them"
            number += int(words[1])
        else:
            assert words[1] == str(number)
            number += 1
    assert number == 100
    assert any(line.startswith("WARNING") for line in lines)


def test_the_end_does_not_wait_for_a_full_pipe(pipe, logger):
    for _ in range(100):
        logger.info("x" * 9000)
    began = time.monotonic()
    logger.handlers[0].close()
    assert time.monotonic() - began < 1
    drain(pipe)


def test_the_thread_ends_with_the_handler_and_is_made_with_the_first_line(pipe, logger):
    assert not threads()
    logger.info("first")
    assert len(threads()) == 1
    logger.handlers[0].close()
    assert not threads()


def test_what_cannot_be_written_is_given_up(pipe, logger, monkeypatch):
    monkeypatch.setattr(module, "STDERR", -1)
    logger.info("first")
    monkeypatch.setattr(sys, "__stderr__", None)
    logger.info("second")
    logger.handlers[0].close()
    assert not threads()
