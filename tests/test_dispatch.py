"""From a message to its callback: every message arrives, and a failing callback costs nothing but its message."""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.batch import Batch
from relay.dispatch import Router, batched, raw
from relay.errors import ConnectionLost
from relay.log import LIMIT, LogOnce
from relay.stats import StreamStats

BTC, ETH = "publicTrade.BTCUSDT", "publicTrade.ETHUSDT"


class Desk:
    """A router, and what came out of it. callbacks: by topic; by default one raw callback for BTC and ETH."""

    def __init__(self, callbacks=None, log_once=None):
        self.received, self.controls = [], []
        self.stats = StreamStats()
        callback = raw(lambda message: self.received.append(message))
        callbacks = callbacks or {BTC: callback, ETH: callback}
        self.router = Router(callbacks, self.stats, log_once or LogOnce(), self.controls.append)

    def deliver(self, *messages):
        return self.router.deliver(messages)


def data(topic=BTC, number=1):
    return f'{{"topic":"{topic}","type":"snapshot","ts":{number},"data":[]}}'.encode()


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def broken(message):
    raise RuntimeError(f"no use for {message}")


# What a callback gets.


def test_a_raw_callback_gets_each_message_byte_for_byte_and_in_order():
    desk = Desk()
    messages = [data(BTC, 1), data(ETH, 2), data(BTC, 3)]
    assert desk.deliver(*messages) == 3
    assert desk.received == messages


@pytest.mark.parametrize(
    "message",
    [
        b'{"topic":"publicTrade.BTCUSDT","data":[]}',
        b'{"ts":1,"topic":"publicTrade.BTCUSDT","data":[]}',  # members in another order
        b'{ "topic" : "publicTrade.BTCUSDT" }',
        b' {"topic":"publicTrade.BTCUSDT"}\n',
        '{"topic":"publicTrade.BTCUSDT","x":"币安人生"}'.encode(),
        b'{"topic":"public\\u0054rade.BTCUSDT"}',
        b'{"data":{"topic":"nested"},"topic":"publicTrade.BTCUSDT"}',
    ],
)
def test_a_message_arrives_in_whatever_way_its_json_is_written(message):
    desk = Desk()
    assert desk.deliver(message) == 1
    assert desk.received == [message]
    received = []
    assert Desk({BTC: received.append}).deliver(message) == 1
    assert received == [json.loads(message)]


def test_a_raw_callback_gets_a_message_that_begins_as_expected_without_a_parse(monkeypatch):
    monkeypatch.setattr("relay.dispatch.json.loads", broken)
    desk = Desk()
    assert desk.deliver(data(BTC), data(ETH)) == 2
    assert desk.received == [data(BTC), data(ETH)]


def test_a_topic_that_is_not_ascii_arrives():
    topic = "tickers.币安人生USDT"
    received = []
    desk = Desk({topic: raw(lambda message: received.append(message))})
    escaped = json.dumps({"topic": topic}).encode()
    assert desk.deliver(data(topic), escaped) == 2
    assert received == [data(topic), escaped]


def test_each_topic_has_its_own_callback_raw_or_not():
    parsed, texts = [], []
    desk = Desk({BTC: parsed.append, ETH: raw(lambda message: texts.append(message))})
    assert desk.deliver(data(ETH, 1), data(BTC, 2), data(ETH, 3)) == 3
    assert parsed == [json.loads(data(BTC, 2))]
    assert texts == [data(ETH, 1), data(ETH, 3)]


def test_the_callbacks_may_be_replaced_raw_by_parsed_and_back():
    desk = Desk()
    parsed, texts, first = [], [], desk.received
    desk.router.route({ETH: parsed.append})
    assert desk.deliver(data(ETH, 1), data(BTC, 2)) == 1
    desk.router.route({BTC: raw(lambda message: texts.append(message)), "tickers.X": parsed.append})
    desk.deliver(data(BTC, 3))
    desk.router.route({})
    assert desk.deliver(data(BTC, 4)) == 0
    assert (first, parsed, texts) == ([], [json.loads(data(ETH, 1))], [data(BTC, 3)])


def test_while_the_callbacks_change_a_message_is_parsed_only_if_it_must_be(monkeypatch):
    desk = Desk()
    callback = raw(lambda message: desk.received.append(message))
    desk.router.route({BTC: callback})
    monkeypatch.setattr("relay.dispatch.json.loads", broken)
    desk.router.route({BTC: callback, ETH: callback, "publicTrade.X": callback})
    assert desk.deliver(data(ETH), data("publicTrade.X")) == 2


def test_raw_marks_a_callback_and_returns_it():
    def callback(message):
        pass

    assert raw(callback) is callback
    assert callback.raw is True


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from((BTC, ETH, "tickers.币USDT")), st.booleans(), st.booleans())))
def test_whatever_the_form_each_message_arrives_once_at_the_callback_of_its_topic(forms):
    received = []
    callbacks = {
        BTC: raw(lambda message: received.append((BTC, json.loads(message)))),
        ETH: lambda message: received.append((ETH, message)),
        "tickers.币USDT": raw(lambda message: received.append(("tickers.币USDT", json.loads(message)))),
    }
    sent = []
    for number, (topic, last, ascii_only) in enumerate(forms):
        members = {"n": number, "topic": topic} if last else {"topic": topic, "n": number}
        sent.append((topic, members, json.dumps(members, ensure_ascii=ascii_only, separators=(",", ":")).encode()))
    desk = Desk(callbacks)
    assert desk.deliver(*(message for _, _, message in sent)) == len(sent) == desk.stats.messages
    assert received == [(topic, members) for topic, members, _ in sent]


# What is handed on at once.


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            (
                *(data(BTC, 1), data(ETH, 2), data("tickers.X"), data() + "币".encode()),
                *(b"[]", b'{"op":"pong"}', b'{"ts":1,"topic":"publicTrade.BTCUSDT"}'),
            )
        ),
        max_size=40,
    ),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.booleans(),
)
def test_what_is_handed_on_at_once_is_what_one_by_one_would_be_and_is_counted_as_often(messages, sizes, fails):
    def desk():
        made, got = Desk(), []

        def callback(each):
            each = each if isinstance(each, Batch) else [each]
            got.extend(each)
            if fails:
                raise ValueError

        made.router.route(dict.fromkeys((BTC, ETH), batched(callback)))
        return made, got

    (at_once, together), (one_by_one, singly) = desk(), desk()
    left = list(messages)
    for size in sizes * (len(messages) + 1):
        chunk, left = left[:size], left[size:]
        if not at_once.router.deliver_plain(chunk):
            at_once.deliver(*chunk)
    one_by_one.deliver(*messages)
    assert together == singly
    assert at_once.controls == one_by_one.controls

    def counters(one):
        return (one.stats.messages, one.stats.callback_failures, one.stats.ignored, one.stats.last_message is None)

    assert counters(at_once) == counters(one_by_one)


@pytest.mark.parametrize("other", [b'{"op":"pong"}', b"", data("tickers.X"), data() + b"\xff"])
def test_what_is_not_plainly_data_is_left_to_be_delivered_one_by_one(other):
    got = []
    desk = Desk({BTC: batched(lambda each: got.append(each))})
    assert not desk.router.deliver_plain([data(), other, data()])
    assert (got, desk.stats.messages) == ([], 0)
    assert desk.router.deliver_plain([])
    assert desk.router.deliver_plain([data()])
    assert desk.router.deliver_plain([data(), data()])
    assert got == [data(), Batch([data(), data()])]
    assert [type(each) for each in got] == [bytes, Batch]


def test_what_fails_at_once_is_logged_by_the_streams_thread_once_for_each_kind(caplog):
    faults = iter([ValueError("one"), KeyError("two"), ValueError("three"), ValueError("four")])

    def fragile(_):
        raise next(faults)

    desk = Desk({BTC: batched(fragile)})
    for _ in range(3):
        assert desk.router.deliver_plain([data(), data()])
    assert (desk.stats.messages, desk.stats.callback_failures) == (6, 6)
    assert not errors(caplog), "the thread may be the Reader"
    desk.router.log_failures()
    assert [record.exc_info[0] for record in caplog.records] == [ValueError, KeyError]
    desk.router.deliver_plain([data()])
    desk.router.log_failures()
    assert len(errors(caplog)) == 2


# What is counted.


def test_messages_are_counted_with_the_time_of_the_latest(monkeypatch):
    monkeypatch.setattr("relay.dispatch.monotonic", lambda: 1234.5)
    desk = Desk()
    assert desk.deliver() == 0
    assert desk.deliver(b'{"op":"pong"}') == 0
    assert (desk.stats.messages, desk.stats.last_message) == (0, None)
    desk.deliver(data(), data())
    desk.deliver(data(), b'{"op":"pong"}')
    assert (desk.stats.messages, desk.stats.last_message) == (3, 1234.5)


# Failing callbacks.


@pytest.mark.parametrize("mark", [raw, lambda callback: callback], ids=["raw", "parsed"])
def test_a_failing_callback_is_counted_for_each_message_and_logged_once_for_each_kind(caplog, mark):
    faults = iter([ValueError("one"), ValueError("two"), KeyError("three"), None, ValueError("four")])
    received = []

    @mark
    def fragile(message):
        if fault := next(faults):
            raise fault
        received.append(message)

    desk = Desk({BTC: fragile})
    assert desk.deliver(*[data()] * 5) == 5
    assert len(received) == 1
    assert (desk.stats.messages, desk.stats.callback_failures) == (5, 4)
    assert [record.exc_info[0] for record in caplog.records] == [ValueError, KeyError]
    assert all("fragile failed (later failures of this kind are only counted)" in line for line in errors(caplog))


def test_a_failing_callback_is_logged_even_after_thousands_of_lines_of_another_category(caplog):
    log_once = LogOnce()
    for number in range(3 * LIMIT):
        log_once.first("gap", f"orderbook.50.SYMBOL{number}USDT")
    Desk({BTC: broken}, log_once).deliver(data())
    assert len(errors(caplog)) == 1


def test_a_failing_callback_keeps_no_message_from_the_others():
    received = []
    desk = Desk({BTC: broken, ETH: received.append})
    assert desk.deliver(data(BTC), data(ETH), data(BTC), data(ETH)) == 4
    assert len(received) == 2


def test_a_callback_without_a_name_is_logged_as_it_is(caplog):
    class Callback:
        def __call__(self, message):
            raise ValueError

        def __repr__(self):
            return "<my callback>"

    Desk({BTC: Callback()}).deliver(data())
    assert "<my callback> failed" in errors(caplog)[0]


def test_a_callback_whose_repr_fails_costs_only_its_messages(caplog):
    class Callback:
        def __call__(self, message):
            raise ValueError

        def __repr__(self):
            raise RuntimeError

    desk = Desk({BTC: Callback()})
    assert desk.deliver(data(), data()) == 2
    assert desk.stats.callback_failures == 2
    assert "Callback instance at" in errors(caplog)[0]


def test_a_callback_need_not_be_hashable():
    @dataclass
    class Callback:
        received: list

        def __call__(self, message):
            self.received.append(message)

    callback = Callback([])
    assert Desk({BTC: callback, ETH: callback}).deliver(data(BTC), data(ETH)) == 2
    assert callback.received == [json.loads(data(BTC)), json.loads(data(ETH))]


# What is no data.


@pytest.mark.parametrize(
    "message",
    [
        {"op": "pong"},
        {"success": True, "ret_msg": "", "req_id": "1", "op": "subscribe"},
        {"success": True, "data": {"failTopics": []}, "type": "COMMAND_RESP"},
        {"topic": None},
        {"topic": ["publicTrade.BTCUSDT"]},
        {"topic": 5},
        {},
    ],
)
def test_an_object_without_a_topic_is_a_control_message(message):
    desk = Desk()
    assert desk.deliver(data(), json.dumps(message).encode(), data()) == 2
    assert desk.controls == [message]
    assert len(desk.received) == 2


def test_messages_before_a_control_message_that_ends_the_connection_are_delivered_and_counted():
    desk = Desk()

    def refuse(message):
        raise ConnectionLost("refused")

    router = Router({BTC: raw(lambda message: desk.received.append(message))}, desk.stats, LogOnce(), refuse)
    with pytest.raises(ConnectionLost, match="refused"):
        router.deliver([data(), data(), b'{"op":"subscribe"}', data()])
    assert len(desk.received) == desk.stats.messages == 2


def test_a_topic_that_was_not_requested_is_logged_once(caplog):
    desk = Desk({BTC: lambda message: None, ETH: lambda message: None})
    assert desk.deliver(data("tickers.X"), data("tickers.X"), data("tickers.Y"), data(BTC)) == 1
    assert errors(caplog) == [
        "Ignoring (logged once): messages of tickers.X, which was not requested",
        "Ignoring (logged once): messages of tickers.Y, which was not requested",
    ]


NOT_OBJECTS = [b"", b"hello", b"[]", b"1", b"null", b'"text"', b'{"topic":', b"\xef\xbb\xbf{}", b"NaN", b"9" * 5000]
NESTED = [b"[" * 100_000, b'{"a":' * 100_000, b'{"topic":' * 100_000]


@pytest.mark.parametrize("message", NOT_OBJECTS + NESTED, ids=range(len(NOT_OBJECTS + NESTED)))
def test_a_frame_that_is_no_json_object_is_ignored_and_logged_once(caplog, message):
    desk = Desk()
    assert desk.deliver(data(), message, message, b"[1]", data()) == 2
    assert len(desk.received) == 2
    assert desk.controls == []
    assert desk.stats.ignored == 3
    (line,) = errors(caplog)
    assert line.startswith("Ignoring (logged once): a frame that is not a JSON object:")
    assert len(line) < 300


@pytest.mark.parametrize(
    "message", [b"\xff\xfe", b'{"topic":"publicTrade.BTCUSDT","x":"\xff"}', "币".encode()[:2], b"\xed\xa0\x80"]
)
def test_a_frame_that_is_not_utf8_ends_the_connection_after_the_messages_before_it(message):
    """RFC 6455, 8.1."""
    desk = Desk()
    with pytest.raises(ConnectionLost, match=r"^a frame that is not UTF-8: b'"):
        desk.deliver(data(BTC, 1), data(ETH, 2), message, data(BTC, 3))
    assert desk.received == [data(BTC, 1), data(ETH, 2)]
    assert desk.stats.messages == 2


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary() | st.text().map(str.encode) | st.sampled_from([data(), b'{"topic":"x"}', b"[]"])))
def test_no_bytes_end_in_anything_but_delivery_or_a_lost_connection(messages):
    desk = Desk()
    with suppress(ConnectionLost):
        desk.deliver(*messages)
    assert desk.stats.messages == len(desk.received)
