"""The Reader: what is lent to it is read by it alone, until it is recalled or given back. Nothing is lost."""

import contextlib
import gc
import random
import socket
import threading
import time
import weakref

import pytest
from conftest import eventually

from relay.bybit.reactor import CHECK_EVERY, Loan, Reactor

WAIT = 10.0  # seconds after which a test gives up


class Sink:
    """What is flushed: how often, on which threads, and what comes of it."""

    def __init__(self):
        self.threads = set()
        self.fault = None

    def flush(self):
        self.threads.add(threading.current_thread().name)
        if self.fault:
            raise self.fault


class Line:
    """One end of a socket, to be lent; the test holds the other one, `peer`."""

    def __init__(self, read=None):
        self.socket, self.peer = socket.socketpair()
        self.socket.setblocking(False)
        self.got, self.readers = bytearray(), set()
        self.given_back = threading.Event()
        self.loan = Loan(self.socket, read or self.take, self.given_back.set)

    def take(self, size=65536):
        """Reads once. Returns 1: one message, so to say."""
        self.readers.add(threading.current_thread().name)
        with contextlib.suppress(BlockingIOError):
            self.got += self.socket.recv(size)
        return 1

    def sends(self, data):
        self.peer.sendall(data)

    def close(self):
        self.socket.close()
        self.peer.close()


@pytest.fixture
def sink():
    return Sink()


@pytest.fixture
def reactor(sink):
    """It runs; it has ended once the test has."""
    reactor = Reactor(sink)
    reactor.start()
    yield reactor
    reactor.stop()
    reactor.join(time.monotonic() + WAIT)
    assert not reactor.is_running


@pytest.fixture
def line():
    with contextlib.ExitStack() as lines:

        def make(read=None):
            made = Line(read)
            lines.callback(made.close)
            return made

        yield make


def raises(error):
    def read():
        raise error

    return read


# Lending and recalling.


def test_what_is_lent_is_read_by_the_reader_and_flushed(reactor, sink, line):
    one, other = line(), line()
    reactor.lend(one.loan)
    reactor.lend(other.loan)
    one.sends(b"one")
    other.sends(b"other")
    eventually(lambda: (one.got, other.got) == (b"one", b"other"))
    reactor.recall(one.loan)
    reactor.recall(other.loan)
    assert one.readers == other.readers == sink.threads == {"Reader"}


def test_what_was_recalled_is_not_read_though_there_is_something(reactor, line):
    recalled, lent = line(), line()
    reactor.lend(recalled.loan)
    reactor.lend(lent.loan)
    reactor.recall(recalled.loan)
    recalled.sends(b"mine")
    for number in range(1, 51):  # so many rounds of the Reader's
        lent.sends(b".")
        eventually(lambda number=number: len(lent.got) == number)
    assert not recalled.got
    recalled.take()
    assert recalled.got == b"mine"
    assert not recalled.given_back.is_set()
    reactor.recall(lent.loan)


@pytest.mark.parametrize("seed", range(3))
def test_every_byte_is_read_once_and_in_order_by_whoever_owns_the_connection(reactor, line, seed):
    """Four threads lend and recall under busy writers, and the Reader gives back of its own accord now and then."""
    broken, lines = [], [line() for _ in range(4)]

    def own(one, chance):
        lent, given_back = False, random.Random(seed)

        def read():
            if not lent:
                broken.append("read while it was not lent")
            one.take(given_back.randrange(1, 4000))
            return None if given_back.random() < 0.05 else 1

        one.loan.read = read
        while len(one.got) < len(data):
            lent = True
            reactor.lend(one.loan)
            if chance.random() < 0.5:
                one.given_back.wait(chance.random() / 500)
            reactor.recall(one.loan)
            lent = False
            one.given_back.clear()
            for _ in range(chance.randrange(3)):
                one.take(chance.randrange(1, 4000))

    data = random.Random(seed).randbytes(1 << 20)
    owners = [threading.Thread(target=own, args=(one, random.Random(f"{seed}{at}"))) for at, one in enumerate(lines)]
    writers = [threading.Thread(target=one.sends, args=(data,)) for one in lines]
    for thread in owners + writers:
        thread.start()
    for thread in owners + writers:
        thread.join(2 * WAIT)
    assert not broken
    assert all(one.got == data for one in lines)
    assert all("Reader" in one.readers and len(one.readers) == 2 for one in lines), "both sides have read"


# What comes back.


def test_what_the_reading_raises_is_raised_by_the_recall_once(reactor, line):
    lost, other = line(raises(SystemExit("bye"))), line()
    reactor.lend(lost.loan)
    reactor.lend(other.loan)
    lost.sends(b"x")
    assert lost.given_back.wait(WAIT)
    with pytest.raises(SystemExit, match="bye"):
        reactor.recall(lost.loan)
    reactor.recall(lost.loan)
    other.sends(b"it goes on")
    eventually(lambda: other.got == b"it goes on")
    reactor.recall(other.loan)


def test_none_gives_the_connection_back_and_it_may_be_lent_again(reactor, line):
    answers = iter([None, 1])
    one = line()
    one.loan.read = lambda: one.take(1) and next(answers)
    reactor.lend(one.loan)
    one.sends(b"ab")
    assert one.given_back.wait(WAIT)
    reactor.recall(one.loan)
    assert one.got == b"a"
    reactor.lend(one.loan)
    eventually(lambda: one.got == b"ab")
    reactor.recall(one.loan)


def test_a_lost_connection_is_freed_at_once(reactor, line):
    """Not when the garbage collector comes: 64 KiB, and up to 64 MiB of a message that has begun."""

    class Held:
        def read(self):
            raise ConnectionError

    held = Held()
    one = line()
    one.loan = Loan(one.socket, held.read, one.given_back.set)
    reactor.lend(one.loan)
    one.sends(b"x")
    assert one.given_back.wait(WAIT)
    gone = weakref.ref(held)
    gc.disable()
    try:
        with contextlib.suppress(ConnectionError):
            reactor.recall(one.loan)
        del held, one.loan
        eventually(lambda: gone() is None, 1)
    finally:
        gc.enable()


# The end.


def test_a_stop_gives_everything_back(reactor, line):
    lines = [line() for _ in range(5)]
    for one in lines:
        reactor.lend(one.loan)
    reactor.stop()
    reactor.join(time.monotonic() + WAIT)
    assert not reactor.is_running
    assert all(one.given_back.is_set() for one in lines)
    for one in lines:
        reactor.recall(one.loan)
        one.sends(b"mine")
        one.take()
        assert one.readers == {threading.current_thread().name}


def test_what_is_lent_after_the_end_is_given_back_at_once(reactor, line):
    """Its owner has seen that the Reader runs, a moment before."""
    reactor.stop()
    reactor.join(time.monotonic() + WAIT)
    one = line()
    reactor.lend(one.loan)
    assert one.given_back.is_set()
    began = time.monotonic()
    reactor.recall(one.loan)
    assert time.monotonic() - began < CHECK_EVERY / 2


def test_what_is_lent_at_the_moment_of_the_stop_is_given_back(sink, line):
    one = line()
    for _ in range(300):
        reactor = Reactor(sink)
        reactor.start()
        stopping = threading.Thread(target=reactor.stop)
        stopping.start()
        while reactor.is_running:
            reactor.lend(one.loan)
            if reactor.is_running:
                reactor.recall(one.loan)
        stopping.join()
        reactor.join(time.monotonic() + WAIT)
        began = time.monotonic()
        reactor.recall(one.loan)
        assert time.monotonic() - began < CHECK_EVERY / 2


def test_a_flush_that_fails_ends_the_thread_and_every_connection_is_read_by_its_own(reactor, sink, line, caplog):
    lines = [line() for _ in range(3)]
    for one in lines:
        reactor.lend(one.loan)
    sink.fault = RuntimeError("a defect")
    lines[0].sends(b"read")
    for one in lines:
        assert one.given_back.wait(WAIT), "at once, not at its next timer"
        reactor.recall(one.loan)
    eventually(lambda: not reactor.is_running)
    assert "Internal error; each connection is read by its own thread from now on" in caplog.text
    lines[0].take()  # unless the Reader has read it before it ended
    assert lines[0].got == b"read"


def test_a_recall_waits_for_a_read_that_takes_long(reactor, line):
    reading, go_on, recalled = (threading.Event() for _ in range(3))

    def read():
        reading.set()
        go_on.wait(WAIT)
        return one.take()

    one = line(read)
    reactor.lend(one.loan)
    one.sends(b"late")
    assert reading.wait(WAIT)
    owner = threading.Thread(target=lambda: reactor.recall(one.loan) or recalled.set())
    owner.start()
    assert not recalled.wait(1.5 * CHECK_EVERY)
    assert not one.got
    go_on.set()
    assert recalled.wait(WAIT)
    owner.join()
    assert one.got == b"late"


def test_a_message_without_end_keeps_no_round_from_ending(reactor, line):
    """It is there all the time, and brings no whole message."""
    endless, other = line(), line()
    endless.loan.read = lambda: 0
    other.loan.read = lambda: other.take() and 2  # after a few messages the Reader pauses, and looks for more
    endless.sends(b"x")
    reactor.lend(other.loan)
    reactor.lend(endless.loan)
    for _ in range(20):
        other.sends(b"..")
        reactor.recall(other.loan)
        reactor.lend(other.loan)
    reactor.recall(endless.loan)
    reactor.recall(other.loan)


def test_a_reader_that_was_never_started_stops():
    reactor = Reactor(Sink())
    assert not reactor.is_running
    reactor.stop()
    reactor.join(time.monotonic() + WAIT)
