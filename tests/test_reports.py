"""The log lines about Redis: one line each, whatever Redis and the network say."""

import pytest
import redis

from relay.redis.backlog import Backlog
from relay.redis.pipeline import Pipeline
from relay.redis.reports import EVERY, MAX_REASONS, QUIET, RedisLog
from relay.redis.role import Role


@pytest.fixture
def pipeline():
    return Pipeline(Backlog(1000), "status", lambda channel, messages: b"{}")


@pytest.fixture
def redis_log(pipeline):
    return RedisLog("localhost:6379", pipeline, Role(shared=False))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            redis.ConnectionError("Error 111 connecting to localhost:6379. Connection refused."),
            "Error 111: Connection refused",
        ),
        (
            redis.ConnectionError("Error -2 connecting to other:6379. Name or service not known."),
            "Error -2 connecting to other:6379. Name or service not known",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer"),
        (TimeoutError(), "TimeoutError"),
        (redis.ResponseError("\x1b[31mNO\n2026 INFO forged"), "\N{REPLACEMENT CHARACTER}[31mNO 2026 INFO forged"),
    ],
)
def test_an_outage_is_told_in_one_sentence_that_names_the_address_once(redis_log, caplog, error, reason):
    redis_log.lost(error)
    assert [record.getMessage() for record in caplog.records] == [
        f"Cannot reach Redis at localhost:6379: {reason}; buffering"
    ]


def test_a_reason_is_worth_a_traceback_once_however_many_outages_it_makes(redis_log):
    def outage(error):
        worth = redis_log.lost(error)
        redis_log.back(0)
        return worth

    assert [outage(IndexError("no reply")) for _ in range(3)] == [True, False, False]
    assert outage(ValueError("another"))


def test_garbage_that_always_differs_is_worth_one_traceback(redis_log):
    def outage(text):
        try:
            int(text)
        except ValueError as error:
            worth = redis_log.lost(error)
        redis_log.back(0)
        return worth

    assert [outage(f"x{number}") for number in range(100)].count(True) == 1


def test_reasons_that_always_differ_do_not_fill_the_log(redis_log, caplog):
    for number in range(100):
        redis_log.lost(redis.ConnectionError(f"reason {number}"))
    assert len(caplog.records) == MAX_REASONS


def test_a_rejected_message_and_its_reason_forge_no_line_of_the_log(redis_log, pipeline, caplog):
    pipeline.backlog.append("chan\nnel", "text\n2026 INFO [MainThread] forged \x1b[31m\x07")
    pipeline.take()
    pipeline.receive(b"-NOPERM \x1b[31m no\r\n")
    redis_log.update()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.isprintable()
    assert "chan nel: NOPERM" in line


def test_the_number_of_rejected_messages_is_logged_when_they_end_and_now_and_then(
    redis_log, pipeline, caplog, monkeypatch
):
    def rejects(number):
        for _ in range(number):
            pipeline.backlog.append("a", b"x")
        pipeline.take()
        pipeline.receive(b"-NOPERM no\r\n" * number)

    def at(now):
        monkeypatch.setattr("relay.redis.reports.monotonic", lambda: now)
        caplog.clear()
        redis_log.update()
        return [record.getMessage() for record in caplog.records if "since the start" in record.getMessage()]

    line = "Redis has rejected messages since the start, which are lost: a {}"
    assert at(100.0) == []
    rejects(3)
    assert at(101.0) == []
    assert at(101.0 + QUIET) == [line.format(3)]
    assert at(300.0) == []
    for second in range(59):  # more and more, without an end
        rejects(5)
        assert at(301.0 + second) == []
    assert at(300.0 + EVERY) == [line.format(298)]


def test_what_the_buffer_had_no_room_to_keep_is_logged_once_with_its_number(redis_log, pipeline, caplog, monkeypatch):
    def at(now):
        monkeypatch.setattr("relay.redis.reports.monotonic", lambda: now)
        caplog.clear()
        redis_log.update()
        return [record.getMessage() for record in caplog.records]

    def confirms(number):
        for _ in range(number):
            pipeline.backlog.append("a", b"x" * 100)
            pipeline.take()
            pipeline.receive(b":1\r\n")

    pipeline.retains = True
    assert at(100.0) == []
    confirms(20)
    assert pipeline.squeezed_out == 20 - pipeline.retained > 0
    first = pipeline.squeezed_out
    assert at(101.0) == []
    line = "The buffer had no room to keep {} messages that Redis has confirmed, in case it fails over"
    assert at(101.0 + QUIET) == [line.format(first)]
    pipeline.verified()
    confirms(3)
    assert at(200.0) == at(200.0 + QUIET) == [], "there was room"
    confirms(20)
    assert at(203.0) == []
    assert at(203.0 + QUIET) == [line.format(pipeline.squeezed_out - first)]
