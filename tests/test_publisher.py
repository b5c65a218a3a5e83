"""What becomes of messages under everything that Redis can do. Real servers, real sockets, real faults."""

import asyncio
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from conftest import Subscriber, eventually

from relay.redis.link import Timeouts
from relay.redis.loop import ReconnectLoop
from relay.redis.pipeline import WINDOW, Refused
from relay.redis.publisher import Publisher
from sandbox.redis import LocalRedis

CHANNEL, STATUS, STATE = "test:a", "stream:bybit_status", "stream:bybit_state"
# A missing reply is noticed sooner than in production, and Redis is probed more often.
QUICK = Timeouts(reply=1.0, probe=0.1)


class Running(Publisher):
    """A publisher that is started and stopped by `with`; `undelivered` is what stop() returned.

    connected: whether `with` waits for the connection.
    """

    def __init__(self, server, *, connected=False, timeouts=QUICK, port=None, **options):
        options = {"password": server.password or None, "timeouts": timeouts} | options
        super().__init__("127.0.0.1", port or server.port, **options)
        self._wait_until_connected = connected

    def __enter__(self):
        self.start()
        if self._wait_until_connected:
            eventually(lambda: self.connected)
        return self

    def __exit__(self, *_):
        self.undelivered = self.stop(time.monotonic() + 5)
        assert not self._loop.thread.is_alive()

    def send(self, *numbers, channel=CHANNEL):
        """Publishes numbers and flushes, as the thread of a stream does."""
        for number in numbers:
            self.publish(channel, b"%d" % number)
        self.flush()

    def expects_subscribers(self, channel=CHANNEL):
        """Whether a backlog would wait for subscribers of the channel."""
        return self._loop.probe.expected.get(channel.encode())


def numbers(subscriber, channel=CHANNEL):
    return [int(payload) for payload in subscriber.of(channel)]


def without_repetitions(received):
    return list(dict.fromkeys(received))


def in_threads(*functions):
    """Runs the functions at the same time and returns when all have ended."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# A healthy Redis.


def test_messages_arrive_unchanged_in_order_and_once(redis_server):
    with Subscriber(redis_server, CHANNEL) as subscriber, Running(redis_server) as publisher:
        publisher.send(*range(5000))
        eventually(lambda: len(subscriber.messages) == 5000)
    assert numbers(subscriber) == list(range(5000))
    assert publisher.undelivered == 0
    assert publisher.published == 5000


def test_a_message_that_nobody_flushes_is_sent_anyway(redis_server):
    with Subscriber(redis_server, CHANNEL) as subscriber, Running(redis_server) as publisher:
        publisher.publish(CHANNEL, "text")
        eventually(lambda: subscriber.of(CHANNEL) == [b"text"])


def test_stop_sends_the_backlog(redis_server):
    with Subscriber(redis_server, CHANNEL) as subscriber:
        with Running(redis_server) as publisher:
            for number in range(20_000):
                publisher.publish(CHANNEL, b"%d" % number)
        assert publisher.undelivered == 0
        eventually(lambda: len(subscriber.messages) == 20_000)
    assert numbers(subscriber) == list(range(20_000))


def test_threads_keep_their_own_order(redis_server):
    def publish(channel):
        for number in range(3000):
            publisher.send(number, channel=channel)

    channels = [f"test:{number}" for number in range(4)]
    with Subscriber(redis_server, "test:*") as subscriber:
        with Running(redis_server) as publisher:
            in_threads(*(lambda channel=channel: publish(channel) for channel in channels))
        eventually(lambda: len(subscriber.messages) == 12_000)
    for channel in channels:
        assert numbers(subscriber, channel) == list(range(3000))


def test_back_pressure_keeps_busy_threads_from_overflowing_the_buffer(redis_server):
    """Together they could fill the buffer many times over before anything was sent."""

    def publish():
        for _ in range(20_000):
            publisher.publish(CHANNEL, text)
            publisher.flush()

    text = b"x" * 1000
    with Running(redis_server, buffer=16 << 20, connected=True, timeouts=Timeouts()) as publisher:
        in_threads(*[publish] * 8)
        eventually(lambda: publisher.published == 160_000, 30)
    assert not publisher.dropped
    assert publisher.waited > 0


class Pressed:
    """Four threads that publish as fast as they can for a while. `longest`: seconds of the slowest flush, by thread."""

    def __init__(self, publisher, seconds):
        self.longest = []
        end = time.monotonic() + seconds
        in_threads(*[lambda: self._publish(publisher, end)] * 4)

    def _publish(self, publisher, end):
        longest = 0.0
        while (now := time.monotonic()) < end:
            publisher.publish(CHANNEL, b"x" * 1000)
            publisher.flush()
            longest = max(longest, time.monotonic() - now)
        self.longest.append(longest)


def test_readers_wait_for_room_while_redis_pauses_for_less_than_a_second(own_redis):
    with Running(own_redis, buffer=2 << 20, connected=True, timeouts=Timeouts()) as publisher:
        own_redis.pause()
        resume = threading.Timer(0.5, own_redis.resume)
        resume.start()
        Pressed(publisher, 1.5)
        resume.join()
        assert publisher.waited > 1
        assert not publisher.dropped


def test_nobody_waits_for_a_redis_that_hangs(own_redis):
    """Each reader finds that out once, within some more than a second; the thread of the lease never does."""
    with Running(own_redis, buffer=2 << 20, connected=True, timeouts=Timeouts(reply=30.0)) as publisher:
        own_redis.pause()
        first = Pressed(publisher, 2.5)
        assert publisher.dropped
        assert max(first.longest) < 2
        waited = publisher.waited
        Pressed(publisher, 0.5)
        assert publisher.waited == waited
        own_redis.resume()


def test_an_announcement_never_waits(own_redis):
    with Running(own_redis, buffer=1 << 20, connected=True) as publisher:
        own_redis.pause()
        for _ in range(900):
            publisher.publish(CHANNEL, b"x" * 1000)
        began = time.monotonic()
        publisher.announce("lost", "Trades", ["publicTrade.BTCUSDT"])
        assert time.monotonic() - began < 0.5
        assert publisher.waited == 0
        own_redis.resume()


def test_large_messages_arrive(redis_server):
    sizes = [0, 1, 1000, WINDOW - 1, WINDOW, 3_000_000, 5]
    with Subscriber(redis_server, CHANNEL) as subscriber, Running(redis_server) as publisher:
        for size in sizes:
            publisher.publish(CHANNEL, b"x" * size)
            publisher.flush()
        eventually(lambda: [len(payload) for payload in subscriber.of(CHANNEL)] == sizes)


# Outages.


def test_an_outage_at_start_loses_nothing(own_redis, caplog):
    own_redis.stop()
    with Running(own_redis) as publisher:
        publisher.send(*range(1000))
        eventually(lambda: "Cannot reach Redis at" in caplog.text)
        own_redis.start()
        with Subscriber(own_redis, CHANNEL):
            eventually(lambda: publisher.published > 1000)
    assert caplog.text.count("Cannot reach Redis at") == 1
    assert "s; sending 1000 buffered messages" in caplog.text


@pytest.mark.parametrize("fault", ["kill", "pause", "cut"])
def test_a_fault_under_load_loses_nothing_and_keeps_order(own_redis, fault):
    sent = 0
    confirmed = []  # how many messages Redis had confirmed when it was killed
    with (
        Subscriber(own_redis, CHANNEL, reconnect=True) as subscriber,
        Running(own_redis, connected=True) as publisher,
    ):

        def load(until):
            nonlocal sent
            while not until():
                publisher.send(*range(sent, sent + 10))
                sent += 10
                time.sleep(0.001)

        publisher.send(0)
        sent = 1
        eventually(publisher.expects_subscribers)
        for _ in range(3):
            target = len(subscriber.messages) + 200
            load(lambda target=target: len(subscriber.messages) >= target)
            if fault == "kill":
                subscriber.subscribed.clear()
                own_redis.kill()
                eventually(lambda: not publisher.connected)
                confirmed.append(publisher.published)
                end = time.monotonic() + 0.5
                load(lambda end=end: time.monotonic() > end)
                own_redis.start()
            elif fault == "pause":
                own_redis.pause()
                end = time.monotonic() + 1.5
                load(lambda end=end: time.monotonic() > end)
                own_redis.resume()
            else:
                eventually(lambda: publisher.connected)
                publisher._loop.link._sock.shutdown(socket.SHUT_RDWR)
        target = sent + 500
        load(lambda: sent >= target)
        eventually(lambda: numbers(subscriber) and max(numbers(subscriber)) == sent - 1, 20)
    received = numbers(subscriber)
    lost = set(range(sent)) - set(received)
    # Redis confirms a message before it has written it to its subscribers: what was in between dies with it.
    assert all(any(end - 2000 < number < end for end in confirmed) for number in lost)
    firsts = without_repetitions(received)
    assert firsts == sorted(firsts)
    assert max(Counter(received).values()) <= 4


def test_after_a_restart_the_backlog_waits_for_the_previous_subscribers(own_redis):
    with Running(own_redis, connected=True) as publisher:
        with Subscriber(own_redis, CHANNEL):
            publisher.send(0)
            eventually(lambda: publisher.expects_subscribers() == 1)
        own_redis.kill()
        eventually(lambda: not publisher.connected)
        publisher.send(*range(1, 100))
        own_redis.start()
        time.sleep(0.5)  # 0.5 s: the subscriber is later than the publisher
        with Subscriber(own_redis, CHANNEL) as subscriber:
            eventually(lambda: numbers(subscriber) == list(range(1, 100)))


def test_the_grace_period_for_subscribers_ends(own_redis):
    with Running(own_redis, connected=True, timeouts=Timeouts(reply=1.0, probe=0.1, grace=0.5)) as publisher:
        with Subscriber(own_redis, CHANNEL):
            publisher.send(0)
            eventually(lambda: publisher.expects_subscribers() == 1)
        own_redis.kill()
        own_redis.start()
        publisher.send(1)
        eventually(lambda: publisher.published >= 2, 5)


def test_a_replica_is_an_outage_until_it_is_a_master_again(own_redis, caplog):
    with LocalRedis() as master, Running(own_redis, connected=True) as publisher:
        own_redis.client().replicaof("127.0.0.1", master.port)
        eventually(lambda: "it is a replica" in caplog.text)
        publisher.send(*range(10))
        with Subscriber(own_redis, CHANNEL) as subscriber:
            own_redis.client().replicaof("NO", "ONE")
            eventually(lambda: numbers(subscriber) == list(range(10)))


def test_too_many_clients_are_an_outage(own_redis, caplog):
    with Subscriber(own_redis, CHANNEL) as subscriber, own_redis.client() as admin:
        admin.config_set("maxclients", 2)
        with Running(own_redis) as publisher:
            publisher.send(*range(10))
            eventually(lambda: "max number of clients" in caplog.text)
            admin.config_set("maxclients", 100)
            eventually(lambda: numbers(subscriber) == list(range(10)))


def test_messages_that_a_busy_redis_rejects_are_sent_again_in_order(own_redis):
    """A script that runs too long makes Redis reject what it would accept a moment later."""
    own_redis.client().config_set("busy-reply-threshold", 1)
    with Subscriber(own_redis, CHANNEL) as subscriber, Running(own_redis, connected=True) as publisher:
        script = threading.Thread(target=run_a_script_for_two_seconds, args=(own_redis,))
        script.start()
        eventually(lambda: is_busy(own_redis))
        for number in range(200):
            publisher.send(number)
        script.join()
        eventually(lambda: set(numbers(subscriber)) == set(range(200)))
        assert without_repetitions(numbers(subscriber)) == list(range(200))
    assert not publisher.dropped


def run_a_script_for_two_seconds(server):
    script = "local t = redis.call('TIME')[1]; while redis.call('TIME')[1] - t < 2 do end"
    server.client(retry=None, socket_timeout=10).eval(script, 0)


def is_busy(server):
    try:
        server.client(retry=None, socket_timeout=1).ping()
    except redis.RedisError as error:
        return "BUSY" in str(error) or "script" in str(error)
    return False


# Whoever publishes never waits for Redis.


@contextmanager
def proxy(server):
    """A TCP proxy in front of a Redis: its port, and an Event; while that is cleared no reply passes."""
    passes = threading.Event()
    passes.set()
    threads, sockets = [], [socket.create_server(("127.0.0.1", 0))]

    def pump(source, target, gate=None):
        try:
            while data := source.recv(65536):
                if gate:
                    gate.wait()
                target.sendall(data)
        except OSError:
            pass

    def accept():
        while True:
            try:
                client = sockets[0].accept()[0]
            except OSError:
                return
            behind = socket.create_connection(("127.0.0.1", server.port))
            sockets.extend((client, behind))
            for arguments in ((client, behind), (behind, client, passes)):
                threads.append(threading.Thread(target=pump, args=arguments))
                threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield sockets[0].getsockname()[1], passes
    finally:
        passes.set()
        for sock in sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side has closed it
            sock.close()
        for thread in threads:
            thread.join(5)


def test_messages_flow_while_a_probe_is_not_answered(redis_server):
    timeouts = Timeouts(reply=10.0, probe=0.05)
    with (
        proxy(redis_server) as (port, replies),
        Subscriber(redis_server, CHANNEL) as subscriber,
        Running(redis_server, port=port, timeouts=timeouts, connected=True) as publisher,
    ):
        replies.clear()
        eventually(lambda: publisher._loop.probe.subscribers is None)  # a probe is under way
        time.sleep(0.2)  # 0.2 s: replies would have come
        for number in range(50):
            publisher.send(number)
            time.sleep(0.002)
        eventually(lambda: numbers(subscriber) == list(range(50)), 1)
        assert publisher._loop.probe.subscribers is None
        replies.set()
        eventually(lambda: publisher.published == 50)


def test_flush_does_not_wait_for_the_replies_to_queries(own_redis):
    """Nor does set_state(), whatever Redis is asked in the meantime."""
    with Running(own_redis, connected=True, timeouts=Timeouts(reply=10.0, probe=0.05)) as publisher:
        own_redis.pause()
        worst, end = 0.0, time.monotonic() + 1
        while time.monotonic() < end:
            began = time.perf_counter()
            publisher.set_state({"Trades": "{}"})
            publisher.send(1)
            worst = max(worst, time.perf_counter() - began)
            time.sleep(0.001)
        assert publisher._loop.probe.subscribers is None
        own_redis.resume()
    assert worst < 0.1
    assert publisher.undelivered == 0


def test_that_redis_hangs_up_is_noticed_at_once(own_redis):
    """By the thread that would sleep for 60 s, as there is nothing to send."""
    with Running(own_redis, connected=True, timeouts=Timeouts(idle=60.0, probe=60.0)) as publisher:
        link = publisher._loop.link
        eventually(lambda: not publisher._pipeline.in_flight)
        assert own_redis.client().client_kill_filter(_type="normal", skipme=True) == 1
        eventually(lambda: publisher._loop.link not in (None, link))


def test_a_new_state_has_all_replies_read_at_once(own_redis):
    """It would wake after 60 s by itself."""
    with Running(own_redis, connected=True, timeouts=Timeouts(idle=60.0, probe=60.0)) as publisher:
        publisher.set_state({"Trades": "{}"})
        eventually(lambda: own_redis.client().exists(STATE) and not publisher._pipeline.queries)
        publisher.send(1)
        publisher.set_state({"Trades": "[]"})
        eventually(lambda: publisher.published == 1)


def test_publishing_never_waits_for_redis(own_redis):
    """Neither a frozen Redis nor a dead one costs the caller more than a moment."""
    with Running(own_redis, connected=True) as publisher:
        own_redis.pause()
        worst = 0.0
        text = b"x" * 1000
        for _ in range(20_000):
            began = time.perf_counter()
            publisher.publish(CHANNEL, text)
            publisher.flush()
            worst = max(worst, time.perf_counter() - began)
        own_redis.resume()
        eventually(lambda: publisher.published >= 20_000, 30)
    assert worst < 0.5


class BlockingHandler(logging.Handler):
    """A log that hangs, as a full pipe behind stderr does, from the first line that contains `words`."""

    def __init__(self, words):
        super().__init__()
        self.words, self.entered, self.unblock = words, threading.Event(), threading.Event()

    def emit(self, record):
        if self.words in record.getMessage():
            self.entered.set()
            self.unblock.wait(30)


@contextmanager
def blocked_log(words):
    handler = BlockingHandler(words)
    logging.getLogger().addHandler(handler)
    try:
        yield handler
    finally:
        handler.unblock.set()
        logging.getLogger().removeHandler(handler)


def test_a_log_that_hangs_does_not_block_publish_when_the_buffer_overflows(own_redis):
    own_redis.stop()

    def publish():
        for _ in range(3000):
            publisher.publish(CHANNEL, text)
            publisher.flush()

    text = b"x" * 1000
    with Running(own_redis, buffer=1 << 20) as publisher, blocked_log("buffer is full") as log:
        thread = threading.Thread(target=publish)
        thread.start()
        assert log.entered.wait(10), "the overflow is logged"
        thread.join(5)
        publishes = not thread.is_alive()
        log.unblock.set()
        thread.join()
    assert publishes


def test_a_log_that_hangs_does_not_block_publish_when_redis_rejects_a_message(own_redis):
    own_redis.client().execute_command("ACL", "SETUSER", "pub", "on", ">p", "&test:*", "-@all", "+publish")
    publisher = Publisher("127.0.0.1", own_redis.port, username="pub", password="p", timeouts=QUICK)
    publisher.start()
    eventually(lambda: publisher.connected)
    with blocked_log("rejects a message") as log, Subscriber(own_redis, CHANNEL) as subscriber:
        publisher.publish("other:b", b"x")
        assert log.entered.wait(10), "the rejection is logged"
        for number in range(100):
            publisher.publish(CHANNEL, b"%d" % number)
            publisher.flush()
        eventually(lambda: numbers(subscriber) == list(range(100)), 5)
    assert publisher.stop(time.monotonic() + 5) == 0


class PublishingHandler(logging.Handler):
    """Publishes each line, as some ship their logs through Redis."""

    def __init__(self, publisher):
        super().__init__()
        self.publisher = publisher

    def emit(self, record):
        self.publisher.publish("test:log", record.getMessage())
        self.publisher.flush()


def test_a_log_that_is_published_blocks_nothing_when_the_buffer_overflows(own_redis):
    with Running(own_redis, buffer=1 << 20, connected=True) as publisher:
        logging.getLogger().addHandler(handler := PublishingHandler(publisher))
        try:
            own_redis.kill()
            for _ in range(3000):
                publisher.publish(CHANNEL, b"x" * 1000)
                publisher.flush()
            own_redis.start()
            with Subscriber(own_redis, CHANNEL) as subscriber:
                eventually(lambda: publisher.connected and not publisher.backlog)
                publisher.send(1)
                eventually(lambda: subscriber.of(CHANNEL)[-1:] == [b"1"])
        finally:
            logging.getLogger().removeHandler(handler)
    assert publisher.undelivered == 0


def test_a_redis_that_is_slow_but_answers_does_not_make_the_thread_overdue(redis_server):
    overdue = 0.0
    with (
        proxy(redis_server) as (port, replies),
        Running(redis_server, port=port, timeouts=Timeouts(probe=0.1), connected=True) as publisher,
    ):
        for _ in range(4):
            replies.clear()
            for _ in range(20):
                publisher.publish(CHANNEL, b"x" * 50_000)
                publisher.flush()
                time.sleep(0.02)  # together 0.4 s, in which nothing is answered
                overdue = max(overdue, time.monotonic() - publisher.heartbeat_due)
            replies.set()
            eventually(lambda: not publisher.backlog)
    assert overdue < 5


# Rejected messages.


def test_a_channel_without_permission_costs_the_others_nothing(own_redis, caplog):
    own_redis.client().execute_command(
        "ACL", "SETUSER", "pub", "on", ">secret", "&test:*", "&stream:*", "-@all", "+publish"
    )
    publisher = Publisher("127.0.0.1", own_redis.port, username="pub", password="secret")
    with Subscriber(own_redis, "*") as subscriber:
        publisher.start()
        for number in range(100):
            publisher.publish(CHANNEL, b"%d" % number)
            publisher.publish("other:b", b"%d" % number)
        eventually(lambda: numbers(subscriber) == list(range(100)))
        events = eventually(lambda: [json.loads(text) for text in subscriber.of(STATUS)])
        assert publisher.stop(time.monotonic() + 5) == 0
    assert publisher.dropped == {"other:b": 100}
    assert [(event["event"], event["channel"], event["messages"]) for event in events] == [("dropped", "other:b", 100)]
    assert caplog.text.count("Redis rejects a message") == 1
    assert "other:b: NOPERM" in caplog.text


def test_messages_rejected_just_before_stop_are_announced(own_redis):
    own_redis.client().execute_command(
        "ACL", "SETUSER", "pub", "on", ">secret", "&test:*", "&stream:*", "-@all", "+publish"
    )
    publisher = Publisher("127.0.0.1", own_redis.port, username="pub", password="secret")
    with Subscriber(own_redis, STATUS) as subscriber:
        publisher.start()
        publisher.publish("other:b", "x")
        assert publisher.stop(time.monotonic() + 5) == 0
        eventually(lambda: [json.loads(text)["messages"] for text in subscriber.of(STATUS)] == [1])


@pytest.mark.parametrize(
    ("setting", "value"), [("proto-max-bulk-len", 1 << 20), ("client-query-buffer-limit", 1 << 20)]
)
def test_only_the_message_that_is_too_large_for_redis_is_dropped(own_redis, caplog, setting, value):
    own_redis.client().config_set(setting, value)
    with Subscriber(own_redis, CHANNEL, reconnect=True) as subscriber, Running(own_redis, connected=True) as publisher:
        publisher.send(*range(50))
        publisher.publish(CHANNEL, b"x" * (3 << 20))
        publisher.send(*range(50, 100))
        eventually(lambda: set(numbers(subscriber)) == set(range(100)), 20)
        assert without_repetitions(numbers(subscriber)) == list(range(100))
    assert publisher.dropped == {CHANNEL: 1}
    assert caplog.text.count("Redis rejects a message of 3145728 bytes") == 1


# The buffer.


def test_a_full_buffer_drops_the_oldest_and_announces_it_where_they_are_missing(own_redis, caplog):
    own_redis.stop()
    text = b"%06d" + b"x" * 1000
    with Running(own_redis, buffer=1 << 20) as publisher:
        eventually(lambda: "Cannot reach Redis" in caplog.text)
        for number in range(3000):
            publisher.publish(CHANNEL if number % 3 else "test:b", text % number)
        kept = publisher.backlog
        assert 900 < kept < 1000
        publisher._loop.probe.expected = {b"": 1}  # wait for the subscriber below
        own_redis.start()
        with Subscriber(own_redis, "*") as subscriber:
            eventually(lambda: "The Redis buffer overflowed" in caplog.text)
            eventually(lambda: len(subscriber.messages) == kept + 3)
    received = [int(payload[:6]) for name, payload in subscriber.messages if name != STATUS]
    assert received == list(range(3000 - kept, 3000))
    events = [json.loads(payload) for payload in subscriber.of(STATUS)]
    assert [name for name, _ in subscriber.messages[:2]] == [STATUS, STATUS]
    dropped = {event["channel"]: event["messages"] for event in events if event["event"] == "dropped"}
    assert dropped == publisher.dropped
    assert sum(dropped.values()) == 3000 - kept
    last = events[-1]
    assert (last["event"], last["buffered"]) == ("redis_reconnected", kept)
    assert last["outage_seconds"] > 0
    assert abs(last["ts"] / 1000 - time.time()) < 60
    assert caplog.text.count("The Redis buffer is full (1 MiB); dropping the oldest messages") == 1
    assert f"dropped: test:a {dropped[CHANNEL]:,}, test:b {dropped['test:b']:,}" in caplog.text


def test_what_was_dropped_is_logged_also_if_redis_never_comes_back(own_redis, caplog):
    own_redis.stop()
    with Running(own_redis, buffer=1 << 20) as publisher:
        for _ in range(10_000):
            publisher.publish(CHANNEL, b"x" * 1000)
    assert publisher.dropped[CHANNEL] == 10_000 - publisher.undelivered
    assert f"dropped: test:a {publisher.dropped[CHANNEL]:,}" in caplog.text


FILL = """
from pathlib import Path
from relay.redis.publisher import Publisher

def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

publisher = Publisher(port=1, buffer=64 << 20)
before, most = memory(), 0
for number in range(600_000):
    publisher.publish("stream:bybit_orderbook", b"%0200d" % number)
    if number % 1000 == 0:
        most = max(most, memory())
assert publisher.backlog < 400_000
print((most - before) / (64 << 20))
"""


def test_what_a_probe_says_is_looked_at_before_the_thread_sleeps(own_redis, monkeypatch):
    """Else what is confirmed is retained for a second longer, and comes twice after a failover."""
    unread, sleep = [], ReconnectLoop._sleep

    def sleeps(loop, seconds):
        unread.append(loop.probe.has_ended)
        sleep(loop, seconds)

    monkeypatch.setattr(ReconnectLoop, "_sleep", sleeps)
    with Running(own_redis, timeouts=Timeouts(probe=0.05)) as publisher:
        eventually(lambda: publisher._loop.probe.rounds > 20)
    assert len(unread) >= 10
    assert not any(unread)


def test_in_an_outage_what_is_confirmed_gives_way_to_what_waits(own_redis):
    """Else both together would take twice the buffer for as long as it lasts."""
    with Running(own_redis, buffer=1 << 20, connected=True, timeouts=Timeouts(probe=30)) as publisher:
        pipeline = publisher._pipeline
        pipeline.retains = True
        for number in range(500):
            publisher.publish(CHANNEL, b"%d" % number * 300)
            publisher.flush()
        eventually(lambda: pipeline.retained == 500)
        own_redis.kill()
        for number in range(3000):
            publisher.publish(CHANNEL, b"%d" % number * 300)
        eventually(lambda: pipeline.retained <= 1)
        own_redis.start()


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_a_full_buffer_takes_little_more_memory_than_its_limit():
    root = Path(__file__).resolve().parent.parent
    ran = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, check=True, cwd=root)
    assert 0.8 < float(ran.stdout) < 1.5


def test_a_server_that_is_no_redis_costs_one_traceback_not_one_for_each_attempt(caplog):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        attempts = 0

        def serve():
            nonlocal attempts
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(1000)
                    client.sendall(b"*-7\r\n" * 3)
                    attempts += 1

        server = threading.Thread(target=serve)
        server.start()
        publisher = Publisher("127.0.0.1", listener.getsockname()[1], timeouts=Timeouts(retry=0.01, retry_max=0.01))
        publisher.start()
        eventually(lambda: attempts > 10)
        publisher.stop(time.monotonic())
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
    assert len([record for record in caplog.records if record.exc_info]) <= 1
    assert len(caplog.records) < 5


# The state hash.


def test_the_state_hash_holds_the_last_state_and_expires(own_redis):
    client = own_redis.client(decode_responses=True)
    client.hset(STATE, "a stream of another run", "{}")
    with Running(own_redis, timeouts=Timeouts(state_expiry=1)) as publisher:
        publisher.set_state({"Trades": "1"})
        eventually(lambda: client.hgetall(STATE) == {"Trades": "1"})
        publisher.set_state({"Trades": "2"})
        eventually(lambda: client.hgetall(STATE) == {"Trades": "2"}, 1)
        eventually(lambda: not client.exists(STATE))


@pytest.mark.parametrize("messages", [0, 100])
def test_the_state_hash_goes_with_the_publisher(own_redis, messages):
    """Nobody takes the last state for the present one."""
    client = own_redis.client()
    for _ in range(10):
        with Running(own_redis, connected=True) as publisher:
            publisher.set_state({"Trades": "1"})
            eventually(lambda: client.exists(STATE))
            publisher.send(*range(messages))
        eventually(lambda: not client.exists(STATE), 1)


def test_a_state_that_was_never_written_is_not_deleted(own_redis):
    client = own_redis.client()
    client.hset(STATE, "another", "{}")
    with Running(own_redis, connected=True):
        pass
    assert client.exists(STATE)


def test_the_state_is_written_at_once_to_a_redis_that_came_back_empty(own_redis):
    with Running(own_redis, connected=True) as publisher:
        publisher.set_state({"Trades": "1"})
        eventually(lambda: own_redis.client().exists(STATE))
        own_redis.kill()
        own_redis.start()
        eventually(lambda: own_redis.client().hgetall(STATE) == {b"Trades": b"1"}, 3)


def test_a_new_connection_takes_fields_of_another_run_away(own_redis):
    """Also if the connection that was to do it broke before Redis had got its DEL."""
    client = own_redis.client()
    with Running(own_redis, connected=True) as publisher:
        publisher.set_state({"Trades": "1"})
        eventually(lambda: client.exists(STATE))
        client.hset(STATE, "a stream of another run", "{}")
        client.client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: client.hgetall(STATE) == {b"Trades": b"1"}, 3)


def test_a_second_fault_of_the_state_hash_is_logged_and_the_end_of_both(own_redis, caplog):
    caplog.set_level("INFO")
    admin = own_redis.client()
    admin.execute_command("ACL", "SETUSER", "collector", "on", ">p", "+@all", "allchannels", "-hset", f"~{STATE}")
    publisher = Publisher("127.0.0.1", own_redis.port, username="collector", password="p", timeouts=QUICK)
    publisher.start()

    def logged(words):
        publisher.set_state({"Trades": "{}"})
        return f"the state hash {STATE}{words}" in caplog.text

    eventually(lambda: logged(": NOPERM "))
    admin.config_set("maxmemory", 1)
    admin.execute_command("ACL", "SETUSER", "collector", "+hset")
    eventually(lambda: logged(": OOM "))
    admin.config_set("maxmemory", 0)
    eventually(lambda: logged(" again"))
    publisher.stop(time.monotonic() + 5)
    assert caplog.text.count("the state hash") == 3


RIGHTS = "resetchannels &stream:bybit_* ~stream:bybit_state -@all +publish"
RIGHTS += " +hset +expire +del +role +info +pubsub|numsub +pubsub|numpat"


@pytest.mark.parametrize("missing", ["", "+hset"])
def test_the_documented_permissions_are_enough(own_redis, caplog, missing):
    """Without the right to write the state hash there is none, which is logged; messages flow all the same."""
    admin = own_redis.client(decode_responses=True)
    rights = [right for right in RIGHTS.split() if right != missing]
    admin.execute_command("ACL", "SETUSER", "collector", "on", ">p w", *rights)
    publisher = Publisher("127.0.0.1", own_redis.port, username="collector", password="p w", timeouts=QUICK)
    with Subscriber(own_redis, "stream:bybit_trades") as subscriber:
        publisher.start()
        publisher.publish("stream:bybit_trades", "x")
        eventually(lambda: subscriber.messages)
        for _ in range(2):
            publisher.set_state({"Trades": "{}"})
            eventually(lambda: "Redis rejects the state hash" in caplog.text if missing else admin.exists(STATE))
        eventually(lambda: publisher._loop.probe.expected.get(b"stream:bybit_trades") == 1)
        assert publisher.stop(time.monotonic() + 5) == 0
    assert caplog.text.count("Redis rejects the state hash") == bool(missing)
    assert {entry["object"] for entry in admin.execute_command("ACL", "LOG")} <= {missing.lstrip("+")}


# Credentials and TLS.


@pytest.mark.parametrize("password", [None, "wrong"])
def test_wrong_credentials_on_the_first_attempt_are_fatal(password):
    with LocalRedis(password="right") as server:
        publisher = Publisher("127.0.0.1", server.port, password=password)
        publisher.start()
        eventually(lambda: publisher.fatal)
        assert publisher.fatal.startswith(f"authentication failed at Redis 127.0.0.1:{server.port}: ")
        assert "wrong" not in publisher.fatal
        publisher.stop(time.monotonic() + 1)


def test_credentials_that_become_wrong_are_an_outage(own_redis, caplog):
    with Running(own_redis, connected=True) as publisher:
        admin = own_redis.client()
        admin.config_set("requirepass", "new")
        for client in admin.client_list():
            if client["name"] == "" and client["id"] != str(admin.client_id()):
                admin.client_kill_filter(_id=client["id"])
        eventually(lambda: "unavailable: NOAUTH" in caplog.text)
        publisher.send(1)
        admin.config_set("requirepass", "")
        eventually(lambda: publisher.published >= 1)
        assert publisher.fatal is None


def test_a_redis_that_is_replaced_by_one_that_cannot_do_is_an_outage(own_redis, caplog, monkeypatch):
    """At the start a Cluster is a mistake of the settings; weeks later the data must not end with exit code 2."""
    with Running(own_redis, connected=True) as publisher:
        with monkeypatch.context() as patch, own_redis.client() as admin:
            patch.setattr("relay.redis.cluster.Nodes._on_hello", refuse)
            admin.client_kill_filter(_type="normal", skipme=True)
            eventually(lambda: "it is a Cluster now" in caplog.text)
            publisher.send(1)
            assert publisher.fatal is None
        eventually(lambda: publisher.published >= 1)
    assert "Internal error" not in caplog.text


def refuse(nodes, reply):
    raise Refused("it is a Cluster now")


def test_redis_over_tls(own_redis, authority, monkeypatch):
    """No Redis from a package registry speaks TLS, so a TLS proxy stands in front of the real server."""
    ca, ca_file = authority
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    with tls_proxy(own_redis.port, context) as port, Subscriber(own_redis, CHANNEL) as subscriber:
        publisher = Publisher("localhost", port, tls=True, timeouts=Timeouts(probe=0.001))
        publisher.start()
        for number in range(3000):
            publisher.publish(CHANNEL, b"%d" % number)
            publisher.flush()
        publisher.publish(CHANNEL, b"7" * 3_000_000)
        assert publisher.stop(time.monotonic() + 5) == 0
        eventually(lambda: len(subscriber.messages) == 3001)
        assert [int(payload) for payload in subscriber.of(CHANNEL)[:3000]] == list(range(3000))


@contextmanager
def tls_proxy(port, context):
    """A TLS port for a plain one, until the end of `with`."""
    loop = asyncio.new_event_loop()

    async def pump(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connected(reader, writer):
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer), return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(connected, "localhost", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
