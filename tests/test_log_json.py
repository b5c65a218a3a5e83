"""LOG_FORMAT=json: a JSON object for each line of the log, whatever is in it, and the same events as the text."""

import json
import logging
import re
import sys
import warnings
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.cli import configure_logging
from ops.log import CHARACTERS, Json, Printable
from relay.log import FEW, Grouped, Names

KEYS = ["ts", "level", "thread", "stream", "logger", "event", "message", "fields"]
TEXT = Printable("%(message)s")

texts = st.text(st.characters())  # with halves of surrogate pairs
long_texts = st.tuples(texts, st.integers(0, 4000)).map(lambda both: both[0] * both[1])
numbers = st.integers() | st.floats() | st.booleans() | st.none()
values = st.recursive(
    numbers | texts | long_texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=10
)


class Broken:
    """What no log can show."""

    def __str__(self):
        raise RuntimeError("broken")

    __repr__ = __str__


def record(template, *arguments, **attributes):
    made = logging.LogRecord("relay.test", logging.WARNING, "", 0, template, arguments, None)
    made.__dict__.update({"created": 1795912700.1239, "threadName": "Trades#2"} | attributes)
    return made


def parsed(line):
    """The object of a line; fails if it is not JSON of one line for any parser and terminal."""
    assert len(line.encode()) <= CHARACTERS
    assert line.isprintable()
    found = json.loads(line, parse_constant=pytest.fail)
    assert list(found)[: len(KEYS)] == KEYS
    assert set(found) <= {*KEYS, "error"}
    return found


def shown(template, *arguments, streams=(), **attributes):
    return parsed(Json(streams).format(record(template, *arguments, **attributes)))


def test_a_line_has_the_sentence_and_what_it_names():
    named = {"address": "localhost:6379", "outage_seconds": 3.61234, "buffered": 714}
    found = shown(
        "Redis at %(address)s is back after %(outage_seconds).1f s; sending %(buffered)d buffered messages",
        named,
        streams=["Trades#2"],
    )
    assert found == {
        "ts": "2026-11-29T00:38:20.123Z",
        "level": "WARNING",
        "thread": "Trades#2",
        "stream": "Trades",
        "logger": "relay.test",
        "event": "Redis at {address} is back after {outage_seconds} s; sending {buffered} buffered messages",
        "message": "Redis at localhost:6379 is back after 3.6 s; sending 714 buffered messages",
        "fields": {"address": "localhost:6379", "outage_seconds": 3.612, "buffered": 714},
    }


@pytest.mark.parametrize(
    ("template", "named", "event"),
    [
        ("All streams have their threads again", (), "All streams have their threads again"),
        ("100 %", (), "100 %"),
        ("%(seconds)g s, %(age)5.1f %(name)-9s", {"seconds": 1, "age": 2, "name": ""}, "{seconds} s, {age} {name}"),
        ("of another library: %s %d", ("a", 1), "of another library: %s %d"),
        (ValueError("no\ntext"), (), "no text"),
    ],
)  # fmt: skip
def test_the_event_is_the_template_with_the_names(template, named, event):
    assert shown(template, *([named] if isinstance(named, dict) else named))["event"] == event


@pytest.mark.parametrize(
    ("value", "shows"),
    [
        (1, 1),
        (1.23456, 1.235),
        (True, True),
        (None, None),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (1 << 80, str(1 << 80)),
        (10**5000, "<int>"),
        (Grouped(12345), 12345),
        (Names("abcdef", FEW), ["a", "b", "c", "d", "e", "f"]),
        ((1, 3), [1, 3]),
        ({"a": 1}, {"a": 1}),
        ([["deep"]], ["['deep']"]),
        ({1}, "{1}"),
        (OSError(111, "Connection refused"), "[Errno 111] Connection refused"),
        ("two\r\n\x1b[2J lines \ud800", "two �[2J lines �"),
        (Broken(), "<Broken>"),
    ],
    ids=lambda value: "",
)
def test_numbers_and_lists_stay_what_they_are(value, shows):
    assert shown("%(name)s", {"name": "", "value": value})["fields"]["value"] == shows


@pytest.mark.parametrize(
    ("thread", "named", "stream"),
    [
        ("Trades", {"reason": ""}, "Trades"),
        ("Trades#2", {"reason": ""}, "Trades"),
        ("Redis", {"reason": ""}, ""),
        ("MainThread", {"stream": "Ticker"}, "Ticker"),
        ("MainThread", {"stream": ""}, ""),
    ],
)
def test_the_stream_is_that_of_the_thread_or_of_the_line(thread, named, stream):
    streams = {"Trades": 1, "Trades#2": 2, "Ticker": 3}
    assert shown("a template", named, streams=streams, threadName=thread)["stream"] == stream


def test_an_error_has_its_traceback_and_a_long_one_its_end():
    def raised(words):
        try:
            raise ValueError(words)
        except ValueError:
            return sys.exc_info()

    error = shown("failed", exc_info=raised("no\x1b[2J\nsecond"))["error"].split("\n")
    assert error[0] == "Traceback (most recent call last):"
    assert error[-2:] == ["ValueError: no�[2J", "second"]
    error = shown("failed", exc_info=raised("x" * 20_000 + "the end"))["error"]
    assert error.startswith("…")
    assert error.endswith("the end")


@pytest.mark.parametrize("arguments", [("a", "b"), ({"other": 1},), (Broken(),)], ids=["many", "misnamed", "broken"])
def test_arguments_that_do_not_fit_cost_no_line(arguments):
    found = shown("%(name)s" if isinstance(arguments[0], dict) else "%s", *arguments)
    assert found["message"] in ("%(name)s", "%s")
    assert re.match(r"(TypeError|KeyError|RuntimeError): ", found["error"].rpartition("\n")[2])


@settings(deadline=None)
@given(texts | long_texts, numbers, values)
def test_any_values_make_one_line_of_bounded_length_with_the_sentence_of_the_text(text, number, value):
    made = record("Lost %(text)s, %(number)s: %(value)s", {"text": text, "number": number, "value": value})
    found, sentence = parsed(Json().format(made)), TEXT.format(made)
    assert found["event"] == "Lost {text}, {number}: {value}"
    assert found["message"] == sentence or sentence.startswith(found["message"].removesuffix("…"))
    if len(sentence) < CHARACTERS / 10 and len(str(value)) < CHARACTERS / 10:
        assert found["message"] == sentence
        assert found["fields"]["text"] == " ".join(TEXT.format(record("%s", text)).split())


@settings(deadline=None)
@given(texts | long_texts, texts | long_texts, st.lists(values, max_size=3))
def test_any_record_of_another_library_makes_a_line(template, name, arguments):
    parsed(Json().format(record(template, *arguments, name=name, threadName=name, levelname=name)))
    parsed(Json().format(record(template, {name: arguments})))


@contextmanager
def bare_root():
    """The root logger as it is when the program starts, and afterwards as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield root
    finally:
        logging.captureWarnings(False)
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = before
        root.setLevel(level)


def test_the_number_of_missing_lines_and_warnings_of_python_are_lines_like_others(monkeypatch):
    written = []
    monkeypatch.setattr("ops.log.write", written.append)
    with bare_root() as root, warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging("INFO", ["of the settings"], "json", ["MainThread"])
        (lines,) = root.handlers
        lines._dropped = 1234
        warnings.warn("old\nand gone", DeprecationWarning, stacklevel=1)
    first, missing, warning = (parsed(line.decode().removesuffix("\n")) for line in written)
    assert (first["message"], first["event"], first["stream"]) == ("of the settings", "{warning}", "MainThread")
    assert missing["fields"] == {"lines": 1234}
    assert missing["message"] == "1234 lines of the log are missing here: stderr did not take them"
    assert warning["logger"] == "py.warnings"
    assert "DeprecationWarning: old and gone" in warning["message"]


def test_the_real_program_writes_the_same_events_in_both_formats(program, exchange, own_redis):
    exchange.rate = 50
    both = {
        form: program(own_redis, exchange, LOG_FORMAT=form, CHANNEL_PREFIX=f"test:{form}") for form in ("text", "json")
    }
    for each in both.values():
        each.wait_for_log("Subscribed to ", times=4)
        each.wait_for_log("Publishing to Redis")
    own_redis.kill()
    for each in both.values():
        each.wait_for_log("Lost Redis at ")
    exchange.away()
    for each in both.values():
        each.wait_for_log("Lost Bybit: ", times=4)
    exchange.back()
    for each in both.values():
        each.wait_for_log("Subscribed to ", times=8)
    own_redis.start()
    for each in both.values():
        each.wait_for_log("is back after ")
        assert each.stop()[0] == 0
    objects = [parsed(line) for line in both["json"].log.splitlines()]
    lines = both["text"].lines()
    may_be = re.compile(r"Redis at \S+ is still unavailable: .*")  # in one of them only: a matter of the moment
    patterns = {each["event"]: re.compile(re.sub(r"\\{\w+\\}", ".*", re.escape(each["event"]))) for each in objects}
    told = {(each["thread"], each["event"]) for each in objects if not may_be.fullmatch(each["message"])}
    texts = {
        (thread, next((event for event, pattern in patterns.items() if pattern.fullmatch(line)), line))
        for thread, line in lines
        if not may_be.fullmatch(line)
    }
    assert told == texts
    assert {each["stream"] for each in objects} == {"", "OrderBook", "Trades", "Ticker", "Liquidations"}
    (back,) = (each for each in objects if " is back after " in each["message"])
    assert back["fields"]["address"] == f"127.0.0.1:{own_redis.port}"
    assert 0 < back["fields"]["outage_seconds"] < 30
