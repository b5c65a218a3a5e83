"""Redis's end: what becomes of messages under everything that Redis can do. Real servers, real faults."""

import asyncio
import json
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

from relay import publisher as module
from relay.publisher import Publisher
from sandbox.redis import LocalRedis

CHANNEL, STATUS = "test:a", "stream:bybit_status"


class Running(Publisher):
    """A publisher that is started and stopped with `with`; `left` is what it had to leave behind."""

    wait = False

    def __init__(self, server, **options):
        super().__init__("127.0.0.1", server.port, password=server.password or None, **options)

    def __enter__(self):
        self.start()
        if self.wait:
            eventually(lambda: self._open)
        return self

    def __exit__(self, *_):
        self.left = self.stop(time.monotonic() + 5)
        assert not self._thread.is_alive()

    def say(self, *numbers, channel=CHANNEL):
        """Publishes numbers and flushes, as a socket's thread does."""
        for number in numbers:
            self.publish(channel, b"%d" % number)
        self.flush()

    def connected(self):
        """`with` waits for the connection."""
        self.wait = True
        return self


def numbers(subscriber, channel=CHANNEL):
    return [int(payload) for payload in subscriber.of(channel)]


def in_order_at_least_once(got, sent):
    """Every number of 0..sent-1, in order but for repetitions of what had come before."""
    firsts = list(dict.fromkeys(got))
    return firsts == list(range(sent))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Redis's answers are missed sooner, and it is looked at more often."""
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 1.0)
    monkeypatch.setattr(module, "PROBE_INTERVAL", 0.1)


# The ordinary way.


def test_messages_arrive_as_they_are_in_order_and_once(redis_server):
    with Subscriber(redis_server, CHANNEL) as subscriber, Running(redis_server) as publisher:
        publisher.say(*range(5000))
        eventually(lambda: len(subscriber.messages) == 5000)
    assert numbers(subscriber) == list(range(5000))
    assert publisher.left == 0
    assert publisher.published == 5000


def test_what_nobody_flushes_goes_out_by_itself(redis_server):
    with Subscriber(redis_server, CHANNEL) as subscriber, Running(redis_server) as publisher:
        publisher.publish(CHANNEL, "text")
        eventually(lambda: subscriber.of(CHANNEL) == [b"text"])


def test_stop_sends_what_waits(redis_server):
    with Subscriber(redis_server, CHANNEL) as subscriber:
        with Running(redis_server) as publisher:
            for number in range(20_000):
                publisher.publish(CHANNEL, b"%d" % number)
        assert publisher.left == 0
        eventually(lambda: len(subscriber.messages) == 20_000)
    assert numbers(subscriber) == list(range(20_000))


def test_many_threads_keep_their_own_order(redis_server):
    def speak(channel):
        for number in range(3000):
            publisher.say(number, channel=channel)

    channels = [f"test:{number}" for number in range(4)]
    with Subscriber(redis_server, "test:*") as subscriber:
        with Running(redis_server) as publisher:
            threads = [threading.Thread(target=speak, args=(channel,)) for channel in channels]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        eventually(lambda: len(subscriber.messages) == 12_000)
    for channel in channels:
        assert numbers(subscriber, channel) == list(range(3000))


def test_busy_threads_do_not_keep_the_interpreter_from_the_one_that_sends(redis_server):
    """Together they could fill the buffer many times over before anything went out."""

    def speak():
        for _ in range(20_000):
            publisher.publish(CHANNEL, text)
            publisher.flush()

    text = b"x" * 1000
    with Running(redis_server, buffer=16 << 20).connected() as publisher:
        threads = [threading.Thread(target=speak) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(lambda: publisher.published == 160_000, 30)
    assert not publisher.dropped


def test_large_messages_arrive(redis_server):
    sizes = [0, 1, 1000, module.WINDOW - 1, module.WINDOW, 3_000_000, 5]
    with Subscriber(redis_server, CHANNEL) as subscriber, Running(redis_server) as publisher:
        for size in sizes:
            publisher.publish(CHANNEL, b"x" * size)
            publisher.flush()
        eventually(lambda: [len(payload) for payload in subscriber.of(CHANNEL)] == sizes)


# Redis away.


def test_redis_away_at_start_loses_nothing(own_redis, caplog):
    own_redis.stop()
    with Running(own_redis) as publisher:
        publisher.say(*range(1000))
        eventually(lambda: "is away" in caplog.text)
        own_redis.start()
        with Subscriber(own_redis, CHANNEL):
            eventually(lambda: publisher.published == 1000)
    assert caplog.text.count("is away") == 1
    assert "is back after" in caplog.text


def test_publishing_never_waits_for_redis(own_redis):
    """Neither a frozen Redis nor a dead one costs the caller more than a moment."""
    with Running(own_redis).connected() as publisher:
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


@pytest.mark.parametrize("fault", ["kill", "pause", "cut"])
def test_a_fault_under_load_loses_nothing_and_keeps_order(own_redis, fault):
    sent = 0
    confirmed = []  # how many messages Redis had confirmed when it was killed
    with (
        Subscriber(own_redis, CHANNEL, reconnect=True) as subscriber,
        Running(own_redis).connected() as publisher,
    ):

        def load(until):
            nonlocal sent
            while not until():
                publisher.say(*range(sent, sent + 10))
                sent += 10
                time.sleep(0.001)

        publisher.say(0)
        sent = 1
        eventually(lambda: publisher._audience.get(CHANNEL.encode()))
        for _ in range(3):
            target = len(subscriber.messages) + 200
            load(lambda target=target: len(subscriber.messages) >= target)
            if fault == "kill":
                subscriber.subscribed.clear()
                own_redis.kill()
                eventually(lambda: not publisher._open)
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
                publisher._socket.shutdown(socket.SHUT_RDWR)
        target = sent + 500
        load(lambda: sent >= target)
        eventually(lambda: numbers(subscriber) and max(numbers(subscriber)) == sent - 1, 20)
    got = numbers(subscriber)
    lost = set(range(sent)) - set(got)
    # Redis confirms a message before it has written it to its subscribers: what was in between dies with it.
    assert all(any(end - 2000 < number < end for end in confirmed) for number in lost)
    firsts = list(dict.fromkeys(got))
    assert firsts == sorted(firsts)
    assert max(Counter(got).values()) <= 4


def test_after_a_restart_the_backlog_waits_for_the_subscribers_that_were_there(own_redis):
    with Running(own_redis).connected() as publisher:
        with Subscriber(own_redis, CHANNEL):
            publisher.say(0)
            eventually(lambda: publisher._audience.get(CHANNEL.encode()) == 1)
        own_redis.kill()
        eventually(lambda: not publisher._open)
        publisher.say(*range(1, 100))
        own_redis.start()
        time.sleep(0.5)  # the subscriber is late: that is the case
        with Subscriber(own_redis, CHANNEL) as subscriber:
            eventually(lambda: numbers(subscriber) == list(range(1, 100)))


def test_the_wait_for_subscribers_ends_after_a_while(own_redis, monkeypatch):
    monkeypatch.setattr(module, "HOLD", 0.5)
    with Running(own_redis).connected() as publisher:
        with Subscriber(own_redis, CHANNEL):
            publisher.say(0)
            eventually(lambda: publisher._audience.get(CHANNEL.encode()) == 1)
        own_redis.kill()
        own_redis.start()
        publisher.say(1)
        eventually(lambda: publisher.published == 2, 5)


def test_a_replica_is_an_outage_until_it_is_a_master_again(own_redis, caplog):
    with LocalRedis() as master, Running(own_redis).connected() as publisher:
        own_redis.client().replicaof("127.0.0.1", master.port)
        eventually(lambda: "it is a replica" in caplog.text)
        publisher.say(*range(10))
        with Subscriber(own_redis, CHANNEL) as subscriber:
            own_redis.client().replicaof("NO", "ONE")
            eventually(lambda: numbers(subscriber) == list(range(10)))


def test_redis_out_of_clients_is_an_outage(own_redis, caplog):
    with Subscriber(own_redis, CHANNEL) as subscriber, own_redis.client() as admin:
        admin.config_set("maxclients", 2)
        with Running(own_redis) as publisher:
            publisher.say(*range(10))
            eventually(lambda: "max number of clients" in caplog.text)
            admin.config_set("maxclients", 100)
            eventually(lambda: numbers(subscriber) == list(range(10)))


def test_passing_refusals_are_tried_again_in_order(own_redis):
    """A script that runs too long makes Redis refuse what it would take a moment later."""
    own_redis.client().config_set("busy-reply-threshold", 1)
    with Subscriber(own_redis, CHANNEL) as subscriber, Running(own_redis).connected() as publisher:
        hog = threading.Thread(target=hog_for_a_while, args=(own_redis,))
        hog.start()
        eventually(lambda: is_busy(own_redis))
        for number in range(200):
            publisher.say(number)
        hog.join()
        eventually(lambda: set(numbers(subscriber)) == set(range(200)))
        assert in_order_at_least_once(numbers(subscriber), 200)
    assert not publisher.dropped


def hog_for_a_while(server):
    script = "local t = redis.call('TIME')[1]; while redis.call('TIME')[1] - t < 2 do end"
    server.client(retry=None, socket_timeout=10).eval(script, 0)


def is_busy(server):
    try:
        server.client(retry=None, socket_timeout=1).ping()
    except redis.RedisError as error:
        return "BUSY" in str(error) or "script" in str(error)
    return False


# Refusals of messages.


def test_a_channel_without_the_right_to_it_costs_the_others_nothing(own_redis, caplog):
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
        events = eventually(lambda: [json.loads(one) for one in subscriber.of(STATUS)])
        assert publisher.stop(time.monotonic() + 5) == 0
    assert publisher.dropped == {"other:b": 100}
    assert [(one["event"], one["channel"], one["messages"]) for one in events] == [("dropped", "other:b", 100)]
    assert caplog.text.count("Redis refuses a message") == 1
    assert "other:b: NOPERM" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value"), [("proto-max-bulk-len", 1 << 20), ("client-query-buffer-limit", 1 << 20)]
)
def test_a_message_too_large_for_redis_is_dropped_alone(own_redis, caplog, setting, value):
    own_redis.client().config_set(setting, value)
    with Subscriber(own_redis, CHANNEL, reconnect=True) as subscriber, Running(own_redis).connected() as publisher:
        publisher.say(*range(50))
        publisher.publish(CHANNEL, b"x" * (3 << 20))
        publisher.say(*range(50, 100))
        eventually(lambda: set(numbers(subscriber)) == set(range(100)), 20)
        assert in_order_at_least_once(numbers(subscriber), 100)
    assert publisher.dropped == {CHANNEL: 1}
    assert caplog.text.count("Redis refuses a message of 3145728 bytes") == 1


# The buffer.


def test_a_full_buffer_drops_the_oldest_and_says_so_twice(own_redis, caplog):
    """In the log; and to the consumers, right where the messages are missing."""
    own_redis.stop()
    text = b"%06d" + b"x" * 1000
    with Running(own_redis, buffer=1 << 20) as publisher:
        eventually(lambda: "is away" in caplog.text)
        for number in range(3000):
            publisher.publish(CHANNEL if number % 3 else "test:b", text % number)
        kept = publisher.backlog
        assert 900 < kept < 1000
        publisher._audience = {b"": 1}  # wait for the subscriber below
        own_redis.start()
        with Subscriber(own_redis, "*") as subscriber:
            eventually(lambda: "The buffer overflowed" in caplog.text)
            eventually(lambda: len(subscriber.messages) == kept + 3)
    assert [int(payload[:6]) for name, payload in subscriber.messages if name != STATUS] == list(
        range(3000 - kept, 3000)
    )
    events = [json.loads(payload) for payload in subscriber.of(STATUS)]
    assert [name for name, _ in subscriber.messages[:2]] == [STATUS, STATUS]
    dropped = {event["channel"]: event["messages"] for event in events if event["event"] == "dropped"}
    assert dropped == publisher.dropped
    assert sum(dropped.values()) == 3000 - kept
    back = events[-1]
    assert (back["event"], back["held"]) == ("redis_back", kept)
    assert back["away"] > 0
    assert abs(back["ts"] / 1000 - time.time()) < 60
    assert caplog.text.count("The buffer for Redis is full (1 MiB)") == 1
    assert f"dropped: test:a {dropped[CHANNEL]:,}, test:b {dropped['test:b']:,}" in caplog.text


def test_the_state_stands_in_a_hash_that_goes_when_nobody_keeps_it(own_redis, monkeypatch):
    monkeypatch.setattr(module, "STATE_INTERVAL", 0.1)
    monkeypatch.setattr(module, "STATE_EXPIRES", 1)
    client = own_redis.client(decode_responses=True)
    client.hset(STATUS, "a stream of another run", "{}")
    count = iter(range(1000))
    publisher = Running(own_redis)
    publisher.state = lambda: {"Trades": str(next(count))}
    with publisher:
        eventually(lambda: int(client.hgetall(STATUS).get("Trades", 0)) > 2)
        assert list(client.hgetall(STATUS)) == ["Trades"]
    eventually(lambda: not client.exists(STATUS))


RIGHTS = "resetchannels &stream:bybit_* ~stream:bybit_status -@all +publish"
RIGHTS += " +hset +expire +del +role +pubsub|numsub +pubsub|numpat"


@pytest.mark.parametrize("left_out", ["", "+hset"])
def test_the_rights_that_the_documentation_names_are_enough(own_redis, monkeypatch, caplog, left_out):
    """Without the right to keep the state there is none, which is said; messages flow all the same."""
    monkeypatch.setattr(module, "STATE_INTERVAL", 0.1)
    admin = own_redis.client(decode_responses=True)
    rights = [right for right in RIGHTS.split() if right != left_out]
    admin.execute_command("ACL", "SETUSER", "collector", "on", ">p w", *rights)
    publisher = Publisher("127.0.0.1", own_redis.port, username="collector", password="p w")
    publisher.state = lambda: {"Trades": "{}"}
    with Subscriber(own_redis, "stream:bybit_trades") as subscriber:
        publisher.start()
        publisher.publish("stream:bybit_trades", "x")
        eventually(lambda: subscriber.messages)
        eventually(lambda: "does not let us keep" in caplog.text if left_out else admin.exists(STATUS))
        eventually(lambda: publisher._audience.get(b"stream:bybit_trades") == 1)
        assert publisher.stop(time.monotonic() + 5) == 0
    assert {entry["object"] for entry in admin.execute_command("ACL", "LOG")} <= {left_out.lstrip("+")}


def test_what_was_dropped_is_told_also_if_redis_never_comes_back(own_redis, caplog):
    own_redis.stop()
    with Running(own_redis, buffer=1 << 20) as publisher:
        for _ in range(10_000):
            publisher.publish(CHANNEL, b"x" * 1000)
    assert publisher.dropped[CHANNEL] == 10_000 - publisher.left
    assert f"dropped: test:a {publisher.dropped[CHANNEL]:,}" in caplog.text


def test_an_announced_loss_that_is_dropped_itself_is_announced_again(own_redis):
    own_redis.stop()
    publisher = Publisher("127.0.0.1", own_redis.port, buffer=1 << 20)
    publisher.publish(CHANNEL, b"x" * (1 << 20))
    with publisher._io:
        publisher.publish(CHANNEL, b"1")
        publisher._take_batch()  # the announcement is on its way
        publisher._give_up(OSError())  # and does not arrive
    assert json.loads(publisher._waiting[0].split(b"\r\n")[6])["messages"] == 1
    publisher.publish(CHANNEL, b"x" * (1 << 20))
    assert publisher._unannounced == publisher.dropped == {CHANNEL: 3}


FILL = """
from pathlib import Path
from relay.publisher import Publisher

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


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_a_full_buffer_takes_little_more_memory_than_it_may():
    root = Path(__file__).resolve().parent.parent
    ran = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, check=True, cwd=root)
    assert 0.8 < float(ran.stdout) < 1.5


# Who may come in.


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_first_attempt_without_the_right_password_is_final(password):
    with LocalRedis(password="right") as server:
        publisher = Publisher("127.0.0.1", server.port, password=password)
        publisher.start()
        eventually(lambda: publisher.fatal)
        assert "wrong" not in publisher.fatal
        publisher.stop(time.monotonic() + 1)


def test_a_password_that_is_not_right_any_more_is_tried_again(own_redis, caplog):
    with Running(own_redis).connected() as publisher:
        admin = own_redis.client()
        admin.config_set("requirepass", "new")
        for one in admin.client_list():
            if one["name"] == "" and one["id"] != str(admin.client_id()):
                admin.client_kill_filter(_id=one["id"])
        eventually(lambda: "away" in caplog.text and "uthentication" in caplog.text)
        publisher.say(1)
        admin.config_set("requirepass", "")
        eventually(lambda: publisher.published == 1)
        assert publisher.fatal is None


def test_redis_over_tls(own_redis, authority, monkeypatch):
    """No Redis from a package registry speaks TLS, so something that does stands in front of the real server."""
    ca, ca_file = authority
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    with tls_in_front_of(own_redis.port, context) as port, Subscriber(own_redis, CHANNEL) as subscriber:
        publisher = Publisher("localhost", port, tls=True)
        publisher.start()
        for number in range(3000):
            publisher.publish(CHANNEL, b"%d" % number)
            publisher.flush()
        publisher.publish(CHANNEL, b"7" * 3_000_000)
        assert publisher.stop(time.monotonic() + 5) == 0
        eventually(lambda: len(subscriber.messages) == 3001)
        assert [int(payload) for payload in subscriber.of(CHANNEL)[:3000]] == list(range(3000))


@contextmanager
def tls_in_front_of(port, context):
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
