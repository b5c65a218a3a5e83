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
import websocket
from conftest import eventually
from programs import ROOT, by_topic, channel_of

from examples import recorder
from examples.orderbook import follow
from sandbox.bybit import Bybit

PREFIX = "stream:bybit"
BOOKS, STATUS = f"{PREFIX}_orderbook", f"{PREFIX}_status"
TOPIC = "orderbook.50.BTCUSDT"
TOPICS = (TOPIC, "orderbook.50.ETHUSDT")


@pytest.fixture
def example():
    """Starts an example as its user does, and kills it after the test."""
    started = []

    def start(name, *args, server):
        command = [sys.executable, f"examples/{name}", *map(str, args)]
        environment = os.environ | {"REDIS_PORT": str(server.port)}
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


# The order book.


class Consumer:
    """The order-book example on the test's own thread: it reads messages only inside until()."""

    def __init__(self, server):
        self.books = {}
        self.publisher = server.client(retry=None)
        self._client = server.client(retry=None)
        self._following = follow(self._client, PREFIX, self.books)
        next(self._following)  # is subscribed now

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._following.close()
        self._client.close()
        self.publisher.close()

    def until(self, check, timeout=15.0):
        deadline = time.monotonic() + timeout
        while not check():
            assert time.monotonic() < deadline, {topic: vars(book) for topic, book in self.books.items()}
            next(self._following)

    def give(self, message):
        """Publishes a message or an event, and waits until the example has processed it."""
        for one in (message, frame(len(self.books), "snapshot", topic="orderbook.1.MARK")):
            self.publisher.publish(BOOKS if "topic" in one else STATUS, json.dumps(one))
        self.books.pop("orderbook.1.MARK", None)
        self.until(lambda: "orderbook.1.MARK" in self.books)

    def synced(self, topics=TOPICS):
        return all(topic in self.books and self.books[topic].synced for topic in topics)

    def check(self, bybit):
        """Halts the market; each book must equal the snapshot that a new subscriber gets."""
        rate, bybit.rate = bybit.rate, 0
        bybit.run(lambda: None)  # no burst is under way
        for topic in TOPICS:
            expected = snapshot_of(bybit, topic)
            self.until(lambda topic=topic, u=expected["u"]: self.books[topic].u == u)
            book = self.books[topic]
            assert book.synced
            assert [list(level) for level in book.bids] == expected["b"]
            assert [list(level) for level in book.asks] == expected["a"]
            assert len(book.bids) == len(book.asks) == 50
        bybit.rate = rate


def snapshot_of(bybit, topic):
    """The data of the snapshot that a new subscriber gets."""
    bybit = websocket.create_connection(f"{bybit.url}/v5/public/linear", timeout=5)
    try:
        bybit.send(json.dumps({"op": "subscribe", "args": [topic]}))
        while True:
            message = json.loads(bybit.recv())
            if "topic" in message:
                assert message["type"] == "snapshot"
                return message["data"]
    finally:
        bybit.close()


def connection_of(bybit, topic):
    """The connection that carries the topic now, or None."""
    return next((one for one in bybit.connections if topic in one.topics and one.closed is None), None)


def frame(u, kind="delta", topic=TOPIC, bids=None, asks=()):
    """An order-book message whose best bid has the size `u`, unless `bids` says otherwise."""
    bids = [["100.10", str(u)]] if bids is None else bids
    data = {"s": topic.split(".")[2], "b": bids, "a": asks, "u": u, "seq": 1000 + u}
    return {"topic": topic, "type": kind, "ts": 1790134712130, "data": data, "cts": 1790134712126}


def event(name, topics=(), **more):
    return {"event": name, "stream": "OrderBook" if topics else "", "topics": list(topics), "ts": 1790134712130} | more


def test_the_books_are_the_exchanges(program, redis_server):
    """At several moments, and after their connection was lost: out of sync, then correct again."""
    with Bybit(rate=1000) as bybit, Consumer(redis_server) as consumer:
        program(redis_server, bybit, SYMBOLS="BTCUSDT,ETHUSDT", RECONNECT_DELAY=0.01, STALL_TIMEOUT=2.5)
        consumer.until(consumer.synced)
        for _ in range(4):
            goal = {topic: consumer.books[topic].u + 100 for topic in TOPICS}
            consumer.until(lambda goal=goal: all(consumer.books[topic].u > u for topic, u in goal.items()))
            consumer.check(bybit)
        for fault in ("drop", "reset", "silence"):
            getattr(connection_of(bybit, TOPIC), fault)()
            consumer.until(lambda: not any(book.synced for book in consumer.books.values()))
            consumer.until(consumer.synced)
            consumer.check(bybit)


def test_the_books_survive_a_restart_of_redis(program, own_redis):
    """The collector waits for its subscribers: nothing is missing, and the next delta proves it without a snapshot."""
    with Bybit(rate=1000) as bybit, Consumer(own_redis) as consumer:
        program(own_redis, bybit, SYMBOLS="BTCUSDT,ETHUSDT")
        consumer.until(consumer.synced)
        consumer.check(bybit)
        bybit.rate = 0  # a killed Redis loses what it has not delivered yet, which is not the subject here
        consumer.check(bybit)
        link = connection_of(bybit, TOPIC)
        own_redis.kill()
        bybit.rate = 1000
        consumer.until(lambda: not any(book.synced for book in consumer.books.values()))
        own_redis.start()
        consumer.until(consumer.synced)
        consumer.check(bybit)
        assert connection_of(bybit, TOPIC) is link


# What follows the message with u = 10, and whether the book is in sync after each.
HISTORIES = {
    "all in order": [(frame(11), True), (frame(12), True), (frame(13, "snapshot"), True), (frame(14), True)],
    "a gap": [(frame(12), False), (frame(13), False), (frame(20, "snapshot"), True), (frame(21), True)],
    "a gap of another book": [(frame(99, topic=TOPICS[1]), True), (frame(11), True)],
    "the last ones come again": [(frame(9), True), (frame(10), True), (frame(11), True), (frame(11), True)],
    "the last ones come again after a gap": [(frame(12), False), (frame(10), False), (frame(11), True)],
    "u lower, and yet new": [(frame(5) | {"data": frame(5)["data"] | {"seq": 2000}}, False), (frame(6), False)],
    "Bybit's service restarts": [(frame(1), True), (frame(2), True), (frame(11), False)],
    "lost": [(event("lost", TOPICS, reason="…", since=None), False), (frame(99), False), (frame(7, "snapshot"), True)],
    "stalled": [
        (event("stalled", [TOPIC], reason="…", since=1), False),
        (frame(7, "snapshot"), True),
        (frame(8), True),
    ],
    "another stream is lost": [(event("lost", ["publicTrade.BTCUSDT"], reason="…", since=1), True), (frame(11), True)],
    "another book is lost": [(event("lost", TOPICS[1:], reason="…", since=1), True), (frame(11), True)],
    "stopped": [(event("stopped"), False), (frame(7, "snapshot"), True), (frame(8), True)],
    "dropped": [(event("dropped", channel=BOOKS, messages=5), False), (frame(13), False), (frame(14), False)],
    "dropped, but not of this book": [(event("dropped", channel=BOOKS, messages=5), False), (frame(11), True)],
    "other events": [
        (event("subscribed", TOPICS), True),
        (event("rejected", ["orderbook.50.NONE"], reason="…"), True),
        (event("redis_reconnected", outage_seconds=1.5, buffered=10), True),
        (event("of a later version", TOPICS), True),
        (frame(11), True),
    ],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_a_book_knows_whether_it_is_right(redis_server, history):
    with Consumer(redis_server) as consumer:
        consumer.give(frame(9))
        assert not consumer.synced([TOPIC]), "there was no snapshot yet"
        consumer.give(frame(10, "snapshot", asks=[["100.20", "3"]]))
        assert consumer.synced([TOPIC])
        book = consumer.books[TOPIC]
        for message, synced in history:
            consumer.give(message)
            assert book.synced is synced, message
            if synced:
                assert book.bids == [("100.10", str(book.u))]


def test_a_book_is_sorted_and_keeps_the_numbers_as_bybit_wrote_them(redis_server):
    with Consumer(redis_server) as consumer:
        bids, asks = [["9.5", "1"], ["10.10", "2.0"], ["2", "3"]], [["100.0", "1"], ["11", "0.001"], ["20", "5"]]
        consumer.give(frame(10, "snapshot", bids=bids, asks=asks))
        book = consumer.books[TOPIC]
        assert book.bids == [("10.10", "2.0"), ("9.5", "1"), ("2", "3")]
        assert book.asks == [("11", "0.001"), ("20", "5"), ("100.0", "1")]
        consumer.give(frame(11, bids=[["10.1", "0"], ["7", "0"]], asks=[["100", "0.000"], ["20.0", "6"]]))
        assert book.bids == [("9.5", "1"), ("2", "3")]
        assert book.asks == [("11", "0.001"), ("20.0", "6")]
        consumer.give(frame(12, "snapshot", bids=[], asks=[["5", "1"]]))
        assert (book.bids, book.asks) == ([], [("5", "1")])


def test_a_book_is_in_doubt_when_our_connection_breaks(redis_server):
    """The next delta shows whether messages were missed."""
    with Consumer(redis_server) as consumer:
        consumer.give(frame(10, "snapshot"))
        book = consumer.books[TOPIC]
        for missed, after in (
            (False, [(frame(11), True)]),
            (True, [(frame(13), False), (frame(14, "snapshot"), True)]),
        ):
            consumer.publisher.client_kill_filter(_type="pubsub")
            if missed:
                consumer.publisher.publish(BOOKS, json.dumps(frame(12)))
            consumer.until(lambda: not book.synced)
            consumer.until(lambda: listeners(consumer.publisher))
            for message, synced in after:
                consumer.give(message)
                assert book.synced is synced


def test_the_program_prints_the_best_prices(example, own_redis):
    """It starts without Redis, and reconnects after a disconnect."""
    output = b""

    def prints(words):
        nonlocal output
        output += process.stdout.read() or b""
        return words in output

    own_redis.kill()
    process = example("orderbook.py", server=own_redis)
    eventually(lambda: prints(b"Redis: "))
    own_redis.start()
    with own_redis.client() as client:
        eventually(lambda: listeners(client))
        eventually(lambda: prints(b"waiting for messages on stream:bybit_orderbook: is the collector running?"))
        client.publish(BOOKS, json.dumps(frame(10, "snapshot", asks=[["100.20", "3"]])))
        eventually(lambda: prints(b"orderbook.50.BTCUSDT 100.10 x 10 | 100.20 x 3, "))
        client.client_kill_filter(_type="pubsub")
        eventually(lambda: prints(b"orderbook.50.BTCUSDT waiting for a snapshot: restart the collector"))
        eventually(lambda: listeners(client))
        client.publish(BOOKS, json.dumps(frame(11)))
        eventually(lambda: prints(b"orderbook.50.BTCUSDT 100.10 x 11 | 100.20 x 3, "))
    assert end(process, signal.SIGINT) == 0
    assert not prints(b"Traceback")


@pytest.mark.parametrize("name", ["orderbook.py", "recorder.py"])
def test_help_says_what_the_example_does(name):
    command = [sys.executable, f"examples/{name}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0
    assert "REDIS_HOST" in result.stdout


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
                assert json.loads(message).keys() == event("any").keys()
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


def test_all_that_bybit_sent_is_recorded(program, example, redis_server, tmp_path):
    """With the collector between, whose gaps are in the status file."""
    process = example("recorder.py", tmp_path, "--flush", 0.1, server=redis_server)
    subscribed(redis_server)
    with Bybit(rate=2000, record=True) as bybit:
        collector = program(redis_server, bybit, RECONNECT_DELAY=0.01)
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
        assert set(lines) <= set(found[channel_of(topic)])
    assert got.keys() == sent.keys()
    announced = [(one["event"], one["topics"]) for one in events if TOPIC in one["topics"] or one["event"] == "stopped"]
    assert announced == [("subscribed", [TOPIC]), ("lost", [TOPIC]), ("subscribed", [TOPIC]), ("stopped", [])]
