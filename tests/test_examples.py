"""The examples: their books are compared with the exchange's, their files with what was published."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections import defaultdict
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
import redis
from conftest import eventually
from programs import ROOT, by_topic, channel_of

from examples import recorder, synced
from examples.synced import follow
from sandbox.bybit import Bybit

PREFIX = "stream:bybit"
BOOKS, STATUS, REQUESTS = f"{PREFIX}_orderbook", f"{PREFIX}_status", f"{PREFIX}_request"
TOPIC, TICKER = "orderbook.50.BTCUSDT", "tickers.BTCUSDT"
TOPICS = (TOPIC, "orderbook.50.ETHUSDT", TICKER)


@pytest.fixture
def example():
    """Starts an example as its user does, and kills it after the test."""
    started = []

    def start(name, *args, server, **settings):
        command = [sys.executable, f"examples/{name}", *map(str, args)]
        environment = os.environ | {"REDIS_PORT": str(server.port)} | settings
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
        os.set_blocking(started[-1].stdout.fileno(), False)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def end(process, number=signal.SIGTERM):
    """Sends a signal; returns the exit code."""
    process.send_signal(number)
    return process.wait(10)


def listeners(client, channel=STATUS):
    return dict(client.pubsub_numsub(channel))[channel.encode()]


# Order books and tickers.


class Consumer:
    """The helper on the test's own thread: it reads messages only inside until()."""

    def __init__(self, server, topics=TOPICS, by_symbol=False, **options):
        self.states, self.log = {}, []  # topics that went out of sync, and why
        self._client = server.client(client_name="consumer", **{"retry": None} | options)
        self._following = follow(self._client, PREFIX, topics, by_symbol)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._following.close()
        self._client.close()

    def until(self, check, timeout=30.0):
        deadline = time.monotonic() + timeout
        while not check():
            assert time.monotonic() < deadline, {topic: vars(state) for topic, state in self.states.items()}
            before = [topic for topic, state in self.states.items() if state.synced]
            changed, self.states = next(self._following)
            assert set(changed) <= self.states.keys()
            self.log += [(topic, self.states[topic].reason) for topic in before if not self.states[topic].synced]

    def synced(self, *topics):
        return all(topic in self.states and self.states[topic].synced for topic in topics or TOPICS)

    def none_synced(self):
        return not any(state.synced for state in self.states.values())

    def moves(self, messages=20):
        """Waits until each topic has got so many messages more or less, and is in sync."""
        goal = {topic: self.states[topic].ts + 1 for topic in TOPICS}
        self.until(lambda: self.synced() and all(self.states[topic].ts > ts for topic, ts in goal.items()))

    def check(self, bybit, topics=TOPICS):
        """Halts the market: everything must equal what a new subscriber of Bybit's gets."""
        rate, bybit.rate = bybit.rate, 0
        bybit.run(lambda: None)  # no burst is under way
        for topic in topics:
            expected = json.loads(bybit.snapshot(topic))
            data, position = expected["data"], expected.get("cs") or expected["data"]["u"]
            self.until(lambda: self.synced(topic) and position in self.states[topic].last)  # noqa: B023
            state = self.states[topic]
            if topic == TICKER:
                assert state.data == data
            else:
                assert [[list(level) for level in side] for side in (state.bids, state.asks)] == [data["b"], data["a"]]
                assert len(data["b"]) == len(data["a"]) == 50
        bybit.rate = rate


@pytest.fixture
def market():
    """An exchange on which the topics of the tests move, whether somebody is subscribed or not."""
    with Bybit(rate=1000, truth=True) as bybit:
        yield bybit


def start(program, server, bybit, **settings):
    """A collector; returns when it takes requests and all its topics are subscribed."""
    more = {"SYMBOLS": "BTCUSDT,ETHUSDT", "RECONNECT_DELAY": 0.01, "STALL_TIMEOUT": 2.5} | settings
    collector = program(server, bybit, **more)
    with server.client(retry=None) as client:
        eventually(lambda: listeners(client, REQUESTS), 30)
    for topic in TOPICS:
        bybit.wait(lambda topic=topic: connection_of(bybit, topic), 30)
    return collector


def connection_of(bybit, topic):
    """The connection that carries the topic now, or None."""
    return next((one for one in bybit.connections if topic in one.topics and one.closed is None), None)


def renewed(bybit, topic):
    """How often the connection of the topic has subscribed to it anew; None while it is not subscribed."""
    connection = connection_of(bybit, topic)
    return connection and sum(one["op"] == "unsubscribe" and topic in one["args"] for one in connection.requests)


def test_whoever_comes_when_gets_what_the_exchange_has(program, redis_server, market):
    """Before the collector, after it, and while nothing moves. The others do not notice."""
    with Consumer(redis_server) as before, Consumer(redis_server) as after, Consumer(redis_server) as quiet:
        before.until(lambda: before.states)  # it is subscribed
        start(program, redis_server, market)
        before.until(before.synced)
        after.until(after.synced)
        market.rate = 0
        quiet.until(quiet.synced)
        quiet.check(market)
        market.rate = 1000
        for consumer in (before, after, quiet):
            consumer.until(consumer.synced)
            consumer.moves()
            consumer.check(market)
            assert consumer.log == []


@pytest.mark.parametrize("fault", ["drop", "reset", "silence"])
def test_what_a_lost_stream_missed_is_healed(program, redis_server, market, fault):
    start(program, redis_server, market)
    with Consumer(redis_server) as consumer:
        consumer.until(consumer.synced)
        for topic in (TOPICS[0], TICKER):
            getattr(connection_of(market, topic), fault)()
        consumer.until(lambda: {topic for topic, reason in consumer.log} == set(TOPICS))
        assert all(reason.startswith(("lost: ", "stalled: ")) for topic, reason in consumer.log)
        consumer.until(consumer.synced)
        consumer.moves()
        consumer.check(market)


def test_the_channels_of_a_few_symbols_are_enough(program, redis_server, market):
    """Where each symbol has its own: whoever reads these gets no message of others, and is in sync all the same."""
    with Consumer(redis_server, [TOPIC, TICKER], by_symbol=True) as consumer, redis_server.client() as client:
        start(program, redis_server, market, CHANNEL_BY_SYMBOL="True")
        consumer.until(lambda: consumer.synced(TOPIC, TICKER))
        subscribed = {channel.decode() for channel in client.pubsub_channels(f"{PREFIX}_*")}
        assert {f"{BOOKS}:BTCUSDT", f"{PREFIX}_ticker:BTCUSDT", STATUS} <= subscribed
        assert not subscribed & {BOOKS, f"{PREFIX}_ticker", f"{BOOKS}:ETHUSDT"}
        connection_of(market, TOPIC).drop()
        consumer.until(lambda: not consumer.synced(TOPIC))
        consumer.until(lambda: consumer.synced(TOPIC, TICKER))
        consumer.check(market, [TOPIC, TICKER])


def test_a_gap_is_healed(program, redis_server, market):
    """Bybit leaves out a message: the collector announces it, and the snapshot comes by itself."""
    start(program, redis_server, market)
    with Consumer(redis_server) as consumer:
        consumer.until(consumer.synced)
        for number in range(1, 3):
            market.omit(TOPIC)
            consumer.until(lambda number=number: len(consumer.log) == number)
            consumer.until(consumer.synced)
            consumer.check(market)
            # What is left out while the topic is subscribed anew is no gap: the next one has to wait for the snapshot.
            # The collector renews a topic at most every ten seconds, so the second gap is healed by the consumer.
            consumer.until(lambda number=number: number > 1 or renewed(market, TOPIC) == number)
        assert consumer.log == [(TOPIC, "gap: messages are missing")] * 2


@pytest.mark.parametrize("retry", [None, "as redis-py likes it"])
def test_what_the_consumers_own_connection_missed_is_healed(program, redis_server, market, retry):
    """Also if redis-py reconnects silently, in a market that then stands still."""
    start(program, redis_server, market)
    options = {} if retry is None else {"retry": redis.retry.Retry(redis.backoff.NoBackoff(), 3)}
    with Consumer(redis_server, **options) as consumer, redis_server.client() as client:
        consumer.until(consumer.synced)
        for _ in range(3):
            for one in client.client_list("pubsub"):
                if one["name"] == "consumer":
                    client.client_kill_filter(one["id"])
            before = market.snapshot(TICKER)
            eventually(lambda before=before: market.snapshot(TICKER) != before)
            market.rate = 0
            consumer.until(consumer.none_synced)
            consumer.until(consumer.synced)
            consumer.check(market)
            market.rate = 1000


def test_while_a_stream_is_down_who_comes_late_is_told_so(program, redis_server, market):
    """Bybit would give a snapshot, but nothing would follow it."""
    start(program, redis_server, market, RECONNECT_DELAY=4, RECONNECT_DELAY_MAX=4)
    with Consumer(redis_server) as witness, Consumer(redis_server) as late:
        witness.until(witness.synced)
        connection_of(market, TOPIC).drop()
        witness.until(lambda: witness.log)
        late.until(lambda: late.states and (late.synced(TOPIC) or "rejected" in late.states[TOPIC].reason))
        assert late.states[TOPIC].reason.endswith("the stream of the topic is down: its snapshot will come to all")
        for consumer in (late, witness):
            consumer.until(consumer.synced)
            consumer.check(market)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, None])
def test_a_takeover_leaves_everything_in_sync(program, own_redis, market, number):
    """Nobody has to ask again: not after an upgrade, not after a crash, not when the leader has lost a stream."""
    settings = {"LEADER_KEY": "test:leader", "RECONNECT_DELAY": 5, "RECONNECT_DELAY_MAX": 5}
    with Consumer(own_redis) as consumer, own_redis.client() as client:

        def instance(name):
            return json.loads(client.hget("test:leader_instances", name) or '{"ready":false,"role":""}')

        leader = start(program, own_redis, market, INSTANCE="a", **settings)
        consumer.until(consumer.synced)
        lost = connection_of(market, TICKER)
        program(own_redis, market, INSTANCE="b", SYMBOLS="BTCUSDT,ETHUSDT", **settings)
        consumer.until(lambda: instance("b")["ready"])
        beat = instance("a")["beat"]
        consumer.until(lambda: instance("a")["beat"] >= beat + 3)  # the leader knows of it
        assert instance("a")["role"] == "leader"
        if number:
            leader.process.send_signal(number)
        else:
            lost.drop()
        consumer.until(lambda: instance("b")["role"] == "leader")
        consumer.moves()
        consumer.check(market)
        assert consumer.log == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_collector_is_healed(program, redis_server, market, number):
    collector = start(program, redis_server, market)
    with Consumer(redis_server) as consumer:
        consumer.until(consumer.synced)
        consumer.check(market)
        collector.stop(number)
        if number == signal.SIGTERM:
            consumer.until(consumer.none_synced)
            assert set(consumer.log) == {(topic, "stopped: messages are missing") for topic in TOPICS}
        start(program, redis_server, market)
        consumer.until(consumer.synced)
        consumer.moves()
        consumer.check(market)


def test_a_restart_of_redis_is_healed(program, own_redis, market):
    start(program, own_redis, market)
    with Consumer(own_redis) as consumer:
        consumer.until(consumer.synced)
        own_redis.kill()
        consumer.until(consumer.none_synced)
        own_redis.start()
        consumer.until(consumer.synced)
        consumer.moves()
        consumer.check(market)


class Moving(redis.Connection):
    """Asks at each connection where to go, as one behind Sentinel does."""

    master = None

    def connect(self):
        self.port = self.master.port
        super().connect()


def test_a_redis_that_hangs_is_left_for_the_one_that_is_named_now(own_redis, redis_server, monkeypatch):
    monkeypatch.setattr(synced, "SILENCE", 1.0)
    monkeypatch.setattr(Moving, "master", own_redis)
    pool = redis.ConnectionPool(connection_class=Moving, host="127.0.0.1", retry=None)
    following = follow(redis.Redis(connection_pool=pool), PREFIX, [TOPIC])

    def comes(server):
        with server.client() as client:
            client.publish(BOOKS, book(10, "snapshot"))
        return next(following)[1][TOPIC].synced

    eventually(lambda: comes(own_redis))
    own_redis.pause()
    monkeypatch.setattr(Moving, "master", redis_server)
    eventually(lambda: next(following)[1][TOPIC].reason == "nothing received for 1 s")
    eventually(lambda: comes(redis_server))
    following.close()
    pool.disconnect()


def test_a_lost_reply_is_asked_for_again(program, redis_server, market, monkeypatch):
    lost, receive = [], synced.Synced.receive

    def lose(self, channel, payload, now):
        if "_reply_" in channel and len(lost) < 2 * len(TOPICS):
            lost.append(payload)
            return []
        return receive(self, channel, payload, now)

    start(program, redis_server, market)
    with Consumer(redis_server) as witness:
        witness.until(witness.synced)
        witness.moves()  # so Bybit's own snapshots are over
    monkeypatch.setattr(synced, "RETRY", 0.2)
    monkeypatch.setattr(synced.Synced, "receive", lose)
    with Consumer(redis_server) as consumer:
        consumer.until(consumer.synced)
        assert len(lost) == 2 * len(TOPICS)
        consumer.check(market)


def test_a_topic_that_is_not_carried_is_shown_as_rejected(program, redis_server, market):
    start(program, redis_server, market)
    with Consumer(redis_server, [TOPIC, "orderbook.50.XRPUSDT"]) as consumer:
        consumer.until(lambda: consumer.synced(TOPIC))
        consumer.until(lambda: "rejected" in consumer.states["orderbook.50.XRPUSDT"].reason)
        assert consumer.states["orderbook.50.XRPUSDT"].reason == "rejected: this collector does not carry the topic"


def book(u, kind="delta"):
    data = {"s": "BTCUSDT", "b": [["100.10", str(u)]], "a": [["100.20", "3"]], "u": u, "seq": 1000 + u}
    return json.dumps({"topic": TOPIC, "type": kind, "ts": 1790134712130, "data": data, "cts": 1790134712126})


def ticker(cs, kind="delta"):
    data = {"symbol": "BTCUSDT", "lastPrice": str(cs)} | ({"markPrice": "9"} if kind == "snapshot" else {})
    return json.dumps({"topic": TICKER, "type": kind, "data": data, "cs": cs, "ts": 1790134712130})


PROGRAMS = {
    "orderbook.py": (
        BOOKS,
        (book(10, "snapshot"), b"orderbook.50.BTCUSDT 100.10 x 10 | 100.20 x 3, "),
        (book(12), b"orderbook.50.BTCUSDT out of sync: nobody listens on stream:bybit_request"),
        (book(20, "snapshot"), b"orderbook.50.BTCUSDT 100.10 x 20 | 100.20 x 3, "),
    ),
    "ticker.py": (
        f"{PREFIX}_ticker",
        (ticker(10, "snapshot"), b"tickers.BTCUSDT lastPrice 10, markPrice 9, "),
        (ticker(12), b"tickers.BTCUSDT lastPrice 12, markPrice 9, "),
        (ticker(20, "snapshot"), b"tickers.BTCUSDT lastPrice 20, markPrice 9, "),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_prints_what_is_in_sync(example, own_redis, name):
    """It starts without Redis, reconnects after a disconnect, and never shows an old price."""
    output = b""
    channel, (first, first_line), *messages = PROGRAMS[name]

    def prints(words):
        nonlocal output
        output += process.stdout.read() or b""
        return words in output

    own_redis.kill()
    process = example(name, server=own_redis)
    eventually(lambda: prints(b"Redis: "))
    own_redis.start()
    with own_redis.client() as client:
        eventually(lambda: listeners(client))
        eventually(lambda: prints(b"out of sync: nobody listens on stream:bybit_request: is the collector running?"))
        client.publish(channel, first)
        eventually(lambda: prints(first_line))
        client.client_kill_filter(_type="pubsub")
        eventually(lambda: prints(b"out of sync: "))
        eventually(lambda: listeners(client))
        client.publish(channel, first)
        output = b""
        eventually(lambda: prints(first_line))
        for message, line in messages:
            client.publish(channel, message)
            eventually(lambda line=line: prints(line))
    assert end(process, signal.SIGINT) == 0
    assert not prints(b"Traceback")


def test_a_program_can_be_told_its_topics(example, redis_server):
    for name, topic in (("orderbook.py", TOPIC), ("ticker.py", TICKER)):
        process = example(name, topic, server=redis_server)
        eventually(lambda process=process, topic=topic: topic.encode() in (process.stdout.read() or b""))
        assert end(process, signal.SIGINT) == 0
        process = example(name, "publicTrade.BTCUSDT", server=redis_server)
        assert process.wait(10) == 2
        assert b"publicTrade.BTCUSDT: a topic of this program begins with" in process.stdout.read()


def test_a_program_whose_reader_has_enough_ends(example, redis_server):
    """Such as head."""
    process = example("ticker.py", server=redis_server)
    eventually(lambda: process.stdout.read())
    process.stdout.close()
    assert process.wait(10) == 0


@pytest.mark.parametrize("name", ["orderbook.py", "ticker.py", "recorder.py"])
def test_help_says_what_the_example_does(name):
    command = [sys.executable, f"examples/{name}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0
    assert "REDIS_HOST" in result.stdout


@pytest.mark.parametrize(("name", "channel"), [("orderbook.py", BOOKS), ("ticker.py", f"{PREFIX}_ticker")])
def test_a_program_reads_the_channels_of_its_symbols(example, redis_server, name, channel):
    """With the collector's setting."""
    process = example(name, server=redis_server, CHANNEL_BY_SYMBOL="True")
    with redis_server.client() as client:
        eventually(lambda: listeners(client, f"{channel}:BTCUSDT"))
        assert not listeners(client, channel)
    assert end(process, signal.SIGINT) == 0


# The recorder.


def read(directory, torn=()):
    """The messages in the files, by channel; and how often the recorder has subscribed.

    Only the files in `torn` may be truncated; a partial line at their end is left out."""
    found, starts, last = defaultdict(list), 0, {}
    for path in sorted(directory.glob("*/*")):
        kind, clock = path.name.removesuffix(".tsv.gz").split(".", 1)
        channel = kind.replace("stream-bybit_", f"{PREFIX}_")
        lines, whole = read_file(path)
        assert whole or path in torn, f"{path} is truncated, or just being written"
        if not whole and not lines[-1].endswith(b"\n"):
            lines.pop()
        for line in lines:
            assert line.endswith(b"\n")
            arrival, message = line[:-1].split(b"\t", 1)
            at = datetime.fromtimestamp(float(arrival), UTC)
            assert line is not lines[0] or f"{at:%H%M%S.%f}" == clock
            assert str(at.date()) == path.parent.name
            assert at >= last.get(channel, at)
            last[channel] = at
            if message.startswith(b'{"event":"recording"'):
                assert json.loads(message).keys() == {"event", "stream", "topics", "ts"}
                starts += 1
            else:
                found[channel].append(message)
    return dict(found), starts


def read_file(path):
    """The lines that Python's gzip reads, the last possibly partial; and whether the file is complete."""
    lines = []
    try:
        with gzip.open(path) as file:
            for line in file:
                lines.append(line)
    except (EOFError, gzip.BadGzipFile):
        return lines, False
    return lines, True


class Source:
    """Publishes to all channels of the collector, and keeps what it published."""

    def __init__(self, client):
        self._client, self._number, self.published = client, 0, {}

    def publish(self, count):
        for _ in range(count):
            self._number += 1
            channel = f"{PREFIX}_{recorder.KINDS[self._number % 5]}"
            text = (
                f'{{"topic":"publicTrade.龙虾USDT","n":{self._number},"t":"\\t\\n","p":"{"x" * (self._number % 999)}"}}'
            )
            self._client.publish(channel, text)
            self.published.setdefault(channel, []).append(text.encode())

    def is_in(self, directory):
        return read(directory)[0] == self.published


@pytest.fixture
def source(own_redis):
    with own_redis.client(retry=None) as client:
        yield Source(client)


def subscribed(server):
    with server.client(retry=None) as client:
        return eventually(lambda: listeners(client))


def test_the_recorder_keeps_everything_across_restarts(example, own_redis, source, tmp_path):
    """Its own restarts and those of Redis: byte for byte, in order, one file per channel and run."""
    files = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        process = example("recorder.py", tmp_path, "--flush", 0.1, server=own_redis)
        subscribed(own_redis)
        source.publish(500)
        eventually(lambda: source.is_in(tmp_path))
        own_redis.kill()
        eventually(lambda process=process: b"Redis: " in (process.stdout.read() or b""))
        own_redis.start()
        subscribed(own_redis)
        source.publish(500)
        eventually(lambda: source.is_in(tmp_path))
        assert end(process, number) == 0
        assert source.is_in(tmp_path)
        before, files = files, {path: path.read_bytes() for path in tmp_path.glob("*/*")}
        assert before.items() <= files.items(), "a run has touched the files of another"
        assert sorted(path.name.split(".")[0] for path in files.keys() - before.keys()) == sorted(
            f"stream-bybit_{kind}" for kind in recorder.KINDS
        )
    assert read(tmp_path)[1] == 4


def test_the_recorder_writes_at_its_end(example, own_redis, source, tmp_path):
    """Before the next write is due, and while Redis is unavailable."""
    process = example("recorder.py", tmp_path, "--flush", 1000, server=own_redis)
    subscribed(own_redis)
    source.publish(50)
    own_redis.stop()  # which has sent all before
    eventually(lambda: b"Redis: " in (process.stdout.read() or b""))
    assert end(process) == 0
    assert source.is_in(tmp_path)


def test_what_was_written_survives_a_kill(example, own_redis, source, tmp_path):
    """Complete up to the last write; the next run does not touch a file whose last write was truncated."""
    process = example("recorder.py", tmp_path, "--flush", 0.1, server=own_redis)
    subscribed(own_redis)
    source.publish(100)
    eventually(lambda: source.is_in(tmp_path))
    source.publish(400)
    assert end(process, signal.SIGKILL) == -signal.SIGKILL
    files = list(tmp_path.glob("*/*"))
    before, _ = read(tmp_path, torn=files)  # the kill may have interrupted a write
    assert all(before[channel] == lines[: len(before[channel])] for channel, lines in source.published.items())
    assert all(len(lines) >= 20 for lines in before.values())

    source.published = before
    for path in files:
        if read_file(path)[1]:
            torn = zlib.compress(b"1.0\tnever finished" * 10, wbits=31)[:-9]
            path.write_bytes(path.read_bytes() + torn)
        assert not read_file(path)[1]
    bytes_before = {path: path.read_bytes() for path in files}
    process = example("recorder.py", tmp_path, "--flush", 0.1, server=own_redis)
    subscribed(own_redis)
    source.publish(100)
    eventually(lambda: read(tmp_path, torn=files)[0] == source.published)
    assert end(process) == 0
    assert {path: path.read_bytes() for path in files} == bytes_before
    assert len(list(tmp_path.glob("*/*"))) == 2 * len(files)


def test_everything_before_a_truncation_is_readable(tmp_path):
    """Each write is a gzip member: Python and gzip read all complete ones, then report an error."""
    texts, ends = [b"one", os.urandom(50).hex().encode(), b"three" * 50], []

    def found():
        for text in texts:
            yield BOOKS, text
            ends.extend(path.stat().st_size for path in tmp_path.glob("*/*"))  # the text is written now

    recorder.record(found(), tmp_path, 0)
    (path,) = tmp_path.glob("*/*")
    whole = path.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    assert [line.split(b"\t")[1] for line in lines] == [text + b"\n" for text in texts]
    assert len(set(ends)) == 3
    assert ends[-1] == len(whole)
    for size in range(1, len(whole) + 1):
        path.write_bytes(whole[:size])
        members = sum(end <= size for end in ends)
        got, content = read_file(path)
        assert got[:members] == lines[:members]
        assert b"".join(lines).startswith(b"".join(got))
        assert content is (size in ends)
        unpacked = subprocess.run(["gzip", "-dc", path], capture_output=True)
        assert unpacked.stdout.startswith(b"".join(lines[:members]))
        assert b"".join(lines).startswith(unpacked.stdout)
        assert (unpacked.returncode == 0) is (size in ends)


def test_at_midnight_utc_a_new_file_begins(tmp_path, monkeypatch):
    clock = iter((1795391999.75, 1795391999.875, 1795392000.0, 1795392000.5))
    monkeypatch.setattr(recorder, "datetime", Mock(now=lambda zone: datetime.fromtimestamp(next(clock), zone)))
    recorder.record(((BOOKS, text) for text in (b"old", b"late", b"new")), tmp_path, 1000)
    recorder.record(((BOOKS, text) for text in (b"of another run in the same second",)), tmp_path, 1000)
    files = {str(path.relative_to(tmp_path)): gzip.decompress(path.read_bytes()) for path in tmp_path.glob("*/*")}
    assert files == {
        "2026-11-22/stream-bybit_orderbook.235959.750000.tsv.gz": b"1795391999.750000\told\n1795391999.875000\tlate\n",
        "2026-11-23/stream-bybit_orderbook.000000.000000.tsv.gz": b"1795392000.000000\tnew\n",
        "2026-11-23/stream-bybit_orderbook.000000.500000.tsv.gz": (
            b"1795392000.500000\tof another run in the same second\n"
        ),
    }


@pytest.mark.parametrize("by_symbol", [False, True], ids=["a channel for all", "a channel for each symbol"])
def test_all_that_bybit_sent_is_recorded(program, example, redis_server, tmp_path, by_symbol):
    """With the collector between, whose gaps are in the status file."""
    setting = {"CHANNEL_BY_SYMBOL": str(by_symbol)}
    process = example("recorder.py", tmp_path, "--flush", 0.1, server=redis_server, **setting)
    subscribed(redis_server)
    with Bybit(rate=2000, record=True) as bybit:
        collector = program(redis_server, bybit, RECONNECT_DELAY=0.01, **setting)
        eventually(lambda: len(list(tmp_path.glob("*/*"))) == 5)
        old = connection_of(bybit, TOPIC)
        old.drop()
        bybit.wait(lambda: (new := connection_of(bybit, TOPIC)) not in (None, old) and new.count > 50)
        code, _ = collector.stop()
        assert code == 0, collector.log
        bybit.wait(lambda: all(connection.closed for connection in bybit.connections))
        sent = by_topic(text.encode() for connection in bybit.connections for text in connection.sent)
    eventually(lambda: b'"stopped"' in read(tmp_path)[0][STATUS][-1])
    assert end(process) == 0
    found, _ = read(tmp_path)
    events = [json.loads(line) for line in found.pop(STATUS)]
    got = by_topic(line for lines in found.values() for line in lines)
    for topic, lines in got.items():
        # What was in flight when the collector ended is missing.
        assert lines == sent[topic][: len(lines)]
        channel = channel_of(topic)
        assert set(lines) <= set(found[f"{channel}-BTCUSDT" if by_symbol else channel])
    assert got.keys() == sent.keys()
    announced = [(one["event"], one["topics"]) for one in events if TOPIC in one["topics"] or one["event"] == "stopped"]
    assert announced == [("subscribed", [TOPIC]), ("lost", [TOPIC]), ("subscribed", [TOPIC]), ("stopped", [])]
