"""Log once, and text from the network on one line."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.log import FEW, LIMIT, Grouped, LogOnce, Names, shorten


def test_a_kind_is_first_once():
    log_once = LogOnce()
    assert log_once.first("gap", "orderbook.50.BTCUSDT")
    assert not log_once.first("gap", "orderbook.50.BTCUSDT")
    assert log_once.first("gap", "orderbook.50.ETHUSDT")
    assert log_once.first("callback", "orderbook.50.BTCUSDT")
    assert log_once.first("paced")
    assert not log_once.first("paced")


def test_a_full_category_logs_nothing_new_and_takes_nothing_from_the_others():
    log_once = LogOnce()
    assert sum(log_once.first("gap", number) for number in range(3 * LIMIT)) == LIMIT
    assert not log_once.first("gap", "new")
    assert sum(log_once.first("callback", number) for number in range(3 * LIMIT)) == LIMIT


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("plain", "plain"),
        ("  two\r\n\tlines\u2028here\x85 ", "two lines here"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200 + "…"),
        ("\x1b[31mred\x07", "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
        (b"bytes\n", "b'bytes\\n'"),
        (OSError(111, "Connection refused"), "[Errno 111] Connection refused"),
    ],
)
def test_text_is_shortened_to_one_line(text, line):
    assert shorten(text) == line


@settings(deadline=None)
@given(st.text())
def test_any_text_becomes_one_line_of_bounded_length(text):
    line = shorten(text, 20)
    assert len(line) <= 21
    assert len(line.splitlines()) <= 1


def test_a_category_may_have_a_limit_of_its_own():
    log_once = LogOnce()
    assert [log_once.first("gap", number, 2) for number in range(4)] == [True, True, False, False]
    assert log_once.first("other", 3)


def test_kinds_of_any_length_take_little_memory():
    """A kind may be a text of the peer: the topic of a message, the answer to a request."""
    log_once = LogOnce()
    tracemalloc.start()
    try:
        for number in range(50):
            assert log_once.first("unknown topic", f"{number}" + "x" * (1 << 20))
            assert log_once.first("control", ("op", f"{number}" + "x" * (1 << 20)))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1 << 20
    assert not log_once.first("unknown topic", "7" + "x" * (1 << 20))


def test_of_many_names_a_sentence_has_a_few():
    assert str(Names("a", FEW)) == "a"
    assert str(Names("abcd", FEW)) == "a, b, c, d"
    assert str(Names("abcdef", FEW)) == "a, b, c, d and 2 more"
    assert str(Names("abcdef")) == "a, b, c, d, e, f"
    assert list(Names("abcdef", FEW)) == list("abcdef")


def test_a_number_is_grouped_in_a_sentence_only():
    assert str(Grouped(12345)) == "12,345"
    assert json.dumps(Grouped(12345)) == "12345"
