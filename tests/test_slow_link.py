"""A slow link to Redis is no hang, and a hang is no slow link. Real sockets, with kernels that buffer."""

import socket
import threading
import time
from contextlib import ExitStack

from conftest import Subscriber, eventually
from hypothesis import given
from hypothesis import strategies as st
from stage import shut

from relay.redis.link import Timeouts
from relay.redis.pipeline import WINDOW
from relay.redis.progress import SLOWEST, Progress
from relay.redis.publisher import Publisher

CHANNEL = "test:a"
REPLY = 1.5
TICK = 0.02  # seconds between two parts that the link carries


class SlowLink:
    """A TCP proxy in front of a Redis that carries so many bytes a second to it, and whatever comes back. Of its own it
    keeps a few KB: what it has not carried waits at the sender.
    """

    def __init__(self, port, speed):
        self._target, self._speed = port, speed
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._sockets, self._threads, self._end = ExitStack(), [], threading.Event()

    def __enter__(self):
        self._spawn(self._accept)
        return self

    def __exit__(self, *_):
        self._end.set()
        shut(self._listener)
        self._sockets.close()
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, target, *args):
        self._threads.append(threading.Thread(target=target, args=args))
        self._threads[-1].start()

    def _accept(self):
        while not self._end.is_set():
            try:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self.connections += 1
            for each in (client, server):
                self._sockets.callback(shut, each)
            self._spawn(self._carry, client, server, max(1, round(self._speed * TICK)), TICK)
            self._spawn(self._carry, server, client, 65536, 0)

    def _carry(self, source, target, size, pause):
        try:
            while data := source.recv(size):
                target.sendall(data)
                if self._end.wait(len(data) / size * pause):
                    break
        except OSError:
            pass
        for each in (source, target):
            shut(each)


class Running(Publisher):
    def __init__(self, port):
        super().__init__("127.0.0.1", port, timeouts=Timeouts(reply=REPLY, probe=60.0))

    def __enter__(self):
        self.start()
        eventually(lambda: self.connected)
        return self

    def __exit__(self, *_):
        self.stop(time.monotonic() + 0.1)


def test_a_message_that_a_slow_link_carries_for_longer_than_a_reply_may_take_arrives_once(redis_server):
    size = 240_000
    with (
        Subscriber(redis_server, CHANNEL) as subscriber,
        SlowLink(redis_server.port, 8 * SLOWEST) as link,
        Running(link.port) as publisher,
    ):
        began = time.monotonic()
        for text in (b"x" * size, b"next"):
            publisher.publish(CHANNEL, text)
            publisher.flush()
        eventually(lambda: publisher.published == 2, 20)
        assert time.monotonic() - began > 2 * REPLY, "the link was not slow"
        assert link.connections == 1
        eventually(lambda: [len(text) for text in subscriber.of(CHANNEL)] == [size, 4])


def test_a_link_that_carries_next_to_nothing_counts_as_hanging(redis_server, caplog):
    with SlowLink(redis_server.port, SLOWEST / 4) as link, Running(link.port) as publisher:
        began = time.monotonic()
        publisher.publish(CHANNEL, b"x" * 100_000)
        publisher.flush()
        eventually(lambda: f"no reply within {REPLY} s" in caplog.text, 20)
        assert REPLY < time.monotonic() - began < 10 * REPLY, "50 s would be all of it"


def test_a_redis_that_hangs_is_noticed_although_its_kernel_takes_more(own_redis):
    """So much that a link of this speed would not be slow, and so little that it goes on for a quarter of a minute."""
    with Running(own_redis.port) as publisher:
        own_redis.pause()
        began = time.monotonic()
        while publisher.connected:
            publisher.publish(CHANNEL, b"x" * 300)
            publisher.flush()
            time.sleep(0.02)
            assert time.monotonic() - began < 5 * REPLY
        assert publisher.backlog * 300 < WINDOW, "nothing more was taken: this proves nothing"
        own_redis.resume()


# The law, without sockets.


@given(
    parts=st.lists(st.tuples(st.floats(0.01, 0.5), st.integers(0, 20_000)), max_size=60),
    later=st.integers(0, 1 << 20),
)
def test_patience_ends_when_too_little_arrives_of_what_was_sent_before_the_last_reply(parts, later):
    timeout, goal = 5.0, 100_000
    progress = Progress(timeout, 0.0)
    progress.begin(0.0, goal)
    progress.sent = goal + later
    now, arrived, counted = 0.0, 0, 0
    for seconds, size in parts:
        now, arrived = now + seconds, min(arrived + size, progress.sent)
        counted = min(arrived, goal)
        if progress.is_overdue(now, progress.sent - arrived):
            assert now > timeout - 0.01
            break
        assert now < timeout + counted / SLOWEST + 0.01, "it would wait for ever"
    queued = progress.sent - arrived
    progress.begin(now, 0)
    assert not progress.is_overdue(now, queued)
    assert not progress.is_overdue(now + timeout - 0.01, queued)
    assert progress.is_overdue(now + timeout + 0.01, queued)


@given(speed=st.integers(SLOWEST + 10, 1 << 20), pause=st.floats(0.01, 1.0))
def test_patience_never_ends_while_enough_arrives(speed, pause):
    progress = Progress(5.0, 0.0)
    progress.begin(0.0, 10 << 20)
    progress.sent = 10 << 20
    for turn in range(1, 200):
        arrived = min(progress.sent, round(turn * pause * speed))
        if arrived == progress.sent:
            break
        assert not progress.is_overdue(turn * pause, progress.sent - arrived)
