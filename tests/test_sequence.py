"""Whether a message of an order book is missing."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.bybit.sequence import Gap, Sequence

BOOK = "orderbook.50.BTCUSDT"
TS = 1_700_000_000_000


def book(update, kind="delta", topic=BOOK):
    """A message of an order book, as Bybit writes it."""
    data = {"s": "BTCUSDT", "b": [["65000.1", "1.5"]], "a": [], "u": update, "seq": 7961638724}
    whole = {"topic": topic, "type": kind, "ts": TS, "data": data, "cts": TS - 2}
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()


def snapshot(update, topic=BOOK):
    return book(update, "snapshot", topic)


@pytest.fixture
def sequence():
    return Sequence()


def gaps(sequence, *messages):
    return [gap for _, gap in sequence.look(messages)]


@settings(deadline=None)
@given(st.integers(2, 10**12), st.integers(1, 50))
def test_updates_that_rise_by_one_are_no_gap(first, count):
    assert gaps(Sequence(), snapshot(first), *(book(first + n) for n in range(1, count))) == []


@settings(deadline=None)
@given(st.integers(2, 10**9), st.integers(2, 10**9))
def test_any_other_step_between_deltas_is_a_gap(before, after):
    gap = after != before + 1
    assert gaps(Sequence(), book(before), book(after)) == ([Gap(BOOK, before, after)] if gap else [])


@settings(deadline=None)
@given(st.lists(st.sampled_from(["next", "next", "next", "lost", "snapshot", "restart"]), max_size=60), st.data())
def test_every_lost_message_is_found_however_the_bytes_were_cut(steps, data):
    """Two topics, alternating; what each step does to `u`, and what is found, whatever chunks they arrive in."""
    updates, messages, expected = {BOOK: 100, "orderbook.50.ETHUSDT": 5000}, [], []
    for topic in updates:
        messages.append(snapshot(updates[topic], topic))
    for number, step in enumerate(steps):
        topic = sorted(updates)[number % 2]
        before = updates[topic]
        updates[topic] = {"next": before + 1, "lost": before + 2, "snapshot": before + 40, "restart": 1}[step]
        messages.append(book(updates[topic], "snapshot" if step in ("snapshot", "restart") else "delta", topic))
        if step == "lost":
            expected.append((messages[-1], Gap(topic, before, before + 2)))
    sequence, found = Sequence(), []
    while messages:
        size = data.draw(st.integers(1, len(messages)))
        found += sequence.look(messages[:size])
        messages = messages[size:]
    assert found == expected


LONG = "orderbook.50." + "L" * 40
TOPICS = ["orderbook.1.XUSDT", BOOK, "orderbook.1000.1000000BABYDOGEUSDT", LONG + "-C", LONG + "-P"]
near_a_longer_number = st.sampled_from([9, 99, 998, 10**7 - 2, 10**12 - 1])


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(TOPICS),
            st.sampled_from([1, 1, 1, 1, 0, 2, -3, 1000]),
            st.sampled_from(["delta", "delta", "snapshot"]),
            near_a_longer_number,  # seq
            near_a_longer_number,  # ts
        ),
        max_size=60,
    ),
    st.dictionaries(st.sampled_from(TOPICS), near_a_longer_number),
)
def test_numbers_of_any_length_are_compared_as_whoever_parses_a_message_would(steps, updates):
    messages, expected, due = [], [], {}
    for topic, step, kind, seq, ts in steps:
        before = updates.get(topic, 8)
        update = updates[topic] = max(1, before + step)
        data = {"s": "X", "b": [["1", "2"]], "a": [], "u": update, "seq": seq}
        whole = {"topic": topic, "type": kind, "ts": ts, "data": data, "cts": ts}
        messages.append(json.dumps(whole, separators=(",", ":")).encode())
        if topic in due and update not in (due[topic], 1) and kind == "delta":
            expected.append(Gap(topic, due[topic] - 1, update))
        due[topic] = update + 1
    sequence = Sequence()
    assert gaps(sequence, *messages) == expected
    assert sequence.updates() == {topic.encode(): update for topic, update in due.items()}


def test_it_keeps_no_more_than_it_needs(sequence):
    for number in range(1000):  # a member before the type, whose value is never the same
        text = f'{{"topic":"{BOOK}","id":"{number}","type":"delta","ts":1,"data":{{"u":{number + 2},"seq":1}},"cts":1}}'
        assert gaps(sequence, text.encode()) == []
    assert len(sequence._books) == 1
    assert len(sequence._by_beginning) <= 4


def test_a_gap_comes_with_the_message_that_follows_it(sequence):
    messages = [book(10), book(12), book(15)]
    assert sequence.look(messages) == [(messages[1], Gap(BOOK, 10, 12)), (messages[2], Gap(BOOK, 12, 15))]


def test_the_first_message_of_a_topic_is_no_gap_whatever_its_update(sequence):
    assert gaps(sequence, book(77)) == []


def test_a_snapshot_may_jump_and_the_deltas_follow_it(sequence):
    assert gaps(sequence, book(5), snapshot(100), book(101)) == []
    assert gaps(sequence, snapshot(50), book(52)) == [Gap(BOOK, 50, 52)]


@pytest.mark.parametrize("kind", ["snapshot", "delta"])
def test_an_update_of_1_is_a_restart_of_bybits_service_and_no_gap(sequence, kind):
    assert gaps(sequence, book(500), book(1, kind), book(2)) == []


def test_books_of_depth_1_repeat_their_update(sequence):
    topic = "orderbook.1.BTCUSDT"
    assert gaps(sequence, *(snapshot(update, topic) for update in (5, 5, 6, 9, 9))) == []


def test_only_order_books_have_a_sequence(sequence):
    assert gaps(sequence, *(book(update, topic="tickers.BTCUSDT") for update in (5, 9))) == []
    assert sequence.updates() == {}


def test_a_topic_that_is_not_ascii_is_named_in_its_gap(sequence):
    topic = "orderbook.50.币安人生USDT"
    assert gaps(sequence, book(5, topic=topic), book(7, topic=topic)) == [Gap(topic, 5, 7)]


@pytest.mark.parametrize(
    "form",
    [
        '{"topic":"%s","type":"%s","ts":%d,"data":{"s":"X","b":[],"a":[],"u":%d,"seq":1},"cts":1}',
        '{"topic":"%s","type":"%s","ts":%d,"data":{"u":%d,"seq":1,"b":[],"a":[],"s":"' + "X" * 200 + '"}}',
        '{"topic":"%s","type":"%s","ts":%d,"id":"orderbook.25.X-1-2","data":{"a":[],"u":%d,"seq":1},"cts":1790372489986}',
    ],
    ids=["linear", "members in another order", "option"],
)
def test_the_forms_of_a_message(sequence, form):
    assert gaps(sequence, *((form % (BOOK, "delta", TS, update)).encode() for update in (5, 6, 8))) == [Gap(BOOK, 6, 8)]


# What its owner may do.


def test_a_topic_that_was_forgotten_begins_anew(sequence):
    gaps(sequence, book(5))
    sequence.forget([BOOK.encode(), b"orderbook.50.X"])
    assert gaps(sequence, book(90), book(92)) == [Gap(BOOK, 90, 92)]


def test_a_topic_that_was_forgotten_is_known_again_also_if_its_next_update_comes(sequence):
    gaps(sequence, book(5), book(6))
    sequence.forget([BOOK.encode()])
    assert gaps(sequence, book(7)) == []
    assert sequence.updates() == {BOOK.encode(): 8}


def test_a_topic_that_is_exempt_is_not_looked_at():
    exempt = {BOOK.encode()}
    sequence = Sequence(exempt)
    assert gaps(sequence, book(5), book(9)) == []
    exempt.clear()
    assert gaps(sequence, snapshot(20), book(21), book(23)) == [Gap(BOOK, 21, 23)]


def test_it_knows_the_topics_whose_update_was_not_the_next_one(sequence):
    gaps(sequence, snapshot(5, "orderbook.1.A"), snapshot(5, "orderbook.1.B"))
    sequence.repeated.clear()
    gaps(sequence, snapshot(5, "orderbook.1.A"), snapshot(6, "orderbook.1.B"))
    assert sequence.repeated == {b"orderbook.1.A"}


# Messages of another form.

GARBAGE = [
    b"",
    b"{}",
    b'{"success":true,"ret_msg":"pong","op":"ping"}',
    b"no JSON at all \xff\xfe",
    b'{"topic":"publicTrade.BTCUSDT","ts":null}',
    b'{"topic":"publicTrade.BTCUSDT","ts":',
    b'{"topic":"orderbook.50.BTCUSDT","type":"delta","ts":1700000000000,"data":{}}',
    b'{"topic":"orderbook.50.BTCUSDT","type":"delta","ts":1700000000000,"data":{"u":"x","seq":1}}',
    b'{"topic":"orderbook.50.BTCUSDT","type":"delta","ts":1700000000000,"data":{"u":7}}',
    b'{"topic":"orderbook.50.BTCUSDT","type":"delta","ts":1700000000000,"data":{"u":' + b"9" * 5000 + b',"seq":1}}',
    b'{"topic":"orderbook.50.BTCUSDT","type":"delta","ts":1700000000000,"data":{"u":' + b"9" * 4300 + b',"seq":1}}',
    b'{"topic":"orderbook.50.BTCUSDT","type":"delta","ts":1700000000000,"data":{"u":-7,"seq":1}}',
    b'{"topic":"orderbook.50.BTCUSDT',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_message_of_another_form_is_passed_over_and_those_around_it_are_not(sequence, garbage):
    assert gaps(sequence, book(5), garbage, book(6), book(8)) == [Gap(BOOK, 6, 8)]


def test_a_gap_of_a_topic_that_is_not_utf8_is_found_all_the_same(sequence):
    messages = [book(update).replace(b"BTC", b"\xff", 1) for update in (5, 7)]
    assert gaps(sequence, *messages) == [Gap("orderbook.50.\N{REPLACEMENT CHARACTER}USDT", 5, 7)]


pieces = st.sampled_from(
    [b'{"topic":"orderbook.', b'"', b'"ts":', b'"u":', b",", b"1", b"-", b" ", b"_", b'"type":"delta"', b"\xff", b"}"]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(pieces, max_size=20).map(b"".join) | st.binary()))
def test_no_message_makes_it_fail(messages):
    sequence = Sequence()
    found = sequence.look([*messages, *messages])
    assert all(any(message is each for each in messages) for message, _ in found)
