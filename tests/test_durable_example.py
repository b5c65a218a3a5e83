"""examples/durable.py: what the collector adds to a stream is in the file, whatever is killed in between."""

import io
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import eventually
from hypothesis import given
from hypothesis import strategies as st
from programs import ROOT

from examples import durable
from sandbox.bybit import Bybit

CHANNEL = "stream:bybit_trades"


@pytest.fixture
def consumer(tmp_path):
    """Starts the example as its user does; what runs is killed after the test."""
    started = []

    def start(server, *arguments):
        command = [sys.executable, "examples/durable.py", str(tmp_path / "trades"), *arguments]
        environment = os.environ | {"REDIS_PORT": str(server.port)}
        with (tmp_path / "output").open("ab") as output:
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def written(tmp_path):
    """Ids and messages of the file's whole lines."""
    path = tmp_path / "trades"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [line.partition(b"\t")[::2] for line in lines]


def messages(tmp_path):
    return [message for _, message in written(tmp_path)]


def test_no_trade_is_lost_or_written_twice_however_often_the_consumer_is_killed(program, consumer, own_redis, tmp_path):
    with Bybit(rate=1000, record=True) as bybit:
        settings = {"REDIS_STREAM_MAXLEN": 100_000, "SYMBOLS": "BTCUSDT,ETHUSDT"}
        collector = program(own_redis, bybit, **settings)
        chance = random.Random(1)
        for _ in range(6):
            process, before = consumer(own_redis), len(written(tmp_path))
            eventually(lambda before=before: len(written(tmp_path)) > before + 20)
            time.sleep(chance.uniform(0, 0.2))  # at any moment
            process.send_signal(signal.SIGKILL)
            process.wait()
        code, _ = collector.stop()
        assert code == 0, collector.log
        process = consumer(own_redis)
        with own_redis.client() as client:
            client.xadd(CHANNEL, {"message": "the last"})  # who has written it runs, and has its signal handlers
            added = client.xrange(CHANNEL)
        assert len(added) > 150
        eventually(lambda: written(tmp_path) == [(number, fields[b"message"]) for number, fields in added])
        bybit.wait(lambda: all(connection.closed for connection in bybit.connections))
        sent = [text.encode() for connection in bybit.connections for text in connection.sent]
    trades = [text for text in sent if b'"publicTrade.' in text[:40]]
    # What was in flight from Bybit when the collector ended is missing.
    assert messages(tmp_path) == [*trades[: len(added) - 1], b"the last"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_what_comes_during_an_absence_of_redis_and_consumer_is_read_later(consumer, own_redis, tmp_path):
    def add(*numbers):
        with own_redis.client() as client:
            for number in numbers:
                client.xadd(CHANNEL, {"message": number})

    add(1, 2)
    consumer(own_redis)
    eventually(lambda: messages(tmp_path) == [b"1", b"2"])
    own_redis.kill()  # it keeps nothing
    eventually(lambda: b"Redis: " in (tmp_path / "output").read_bytes())
    own_redis.start()
    add(3, 4)
    eventually(lambda: messages(tmp_path) == [b"1", b"2", b"3", b"4"])
    assert b"is not in stream:bybit_trades any more" in (tmp_path / "output").read_bytes()


def test_an_older_state_of_the_stream_is_read_again(consumer, own_redis, tmp_path):
    """As after a failover: the replica has not got the last entries, its clock is late, they are sent again."""
    with own_redis.client() as client:
        client.xadd(CHANNEL, {"message": "1"}, id="1000000-0")
        client.xadd(CHANNEL, {"message": "2"}, id="1000500-0")
        process = consumer(own_redis)
        eventually(lambda: len(written(tmp_path)) == 2)
        process.kill()
        process.wait()
        client.delete(CHANNEL)
        for number, at in ((1, 1_000_000), (2, 1_000_300), (3, 1_000_400)):
            client.xadd(CHANNEL, {"message": number}, id=f"{at}-0")
    consumer(own_redis, CHANNEL)
    eventually(lambda: messages(tmp_path) == [b"1", b"2", b"1", b"2", b"3"])


def test_a_stream_that_was_trimmed_no_further_than_the_last_line_misses_nothing(consumer, own_redis, tmp_path):
    with own_redis.client() as client:
        for number in range(3):
            client.xadd(CHANNEL, {"message": number})
        process = consumer(own_redis)
        eventually(lambda: len(written(tmp_path)) == 3)
        process.kill()
        process.wait()
        client.xadd(CHANNEL, {"message": 3}, maxlen=2, approximate=False)
    consumer(own_redis)
    eventually(lambda: messages(tmp_path) == [b"0", b"1", b"2", b"3"])
    assert (tmp_path / "output").read_bytes() == b""


def test_what_redis_removes_while_the_consumer_stands_still_is_said(consumer, own_redis, tmp_path):
    """Its connection lives on: it has no reason to look where it was."""
    with own_redis.client() as client:
        client.xadd(CHANNEL, {"message": 0})
        process = consumer(own_redis)
        eventually(lambda: messages(tmp_path) == [b"0"])
        process.send_signal(signal.SIGSTOP)
        for number in range(1, 50):
            client.xadd(CHANNEL, {"message": number}, maxlen=5, approximate=False)
        process.send_signal(signal.SIGCONT)
    # 1 may be the answer to what it asked before.
    eventually(
        lambda: [each for each in messages(tmp_path) if each != b"1"] == [b"0", *(b"%d" % n for n in range(45, 50))]
    )
    first = next(number for number, message in written(tmp_path) if message == b"45")
    output = (tmp_path / "output").read_bytes()
    assert b" has left stream:bybit_trades: messages may be missing before %b\n" % first in output
    assert b"is not in" not in output


@given(st.lists(st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"")), max_size=5), st.data())
def test_a_file_ends_with_its_last_whole_line_wherever_it_was_torn(lines, data):
    whole = b"".join(b"%d-0\t%b\n" % (number, line) for number, line in enumerate(lines))
    torn = whole[: data.draw(st.integers(0, len(whole)))]
    file = io.BytesIO(torn)
    position = durable.last_id(file)
    complete = torn.count(b"\n")
    assert position == (f"{complete - 1}-0" if complete else durable.BEGINNING)
    assert file.getvalue() == torn[: torn.rfind(b"\n") + 1]
    assert file.tell() == len(file.getvalue())


def test_a_line_longer_than_a_block_is_found():
    file = io.BytesIO(b"1-0\ta\n2-0\t" + b"x" * 3 * durable.BLOCK + b"\n3-0\t" + b"y" * 2 * durable.BLOCK)
    assert durable.last_id(file) == "2-0"
