"""What the messages tell of delay and of sequence gaps."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.stats import SAMPLES_PER_SECOND, Gap, Sampler, StreamStats

BOOK = "orderbook.50.BTCUSDT"
NOW = 1_700_000_000.0  # seconds since the epoch


def book(update, kind="delta", topic=BOOK, ts=NOW):
    """A message of an order book, as Bybit writes it."""
    data = {"s": "BTCUSDT", "b": [["65000.1", "1.5"]], "a": [], "u": update, "seq": 7961638724}
    whole = {"topic": topic, "type": kind, "ts": round(ts * 1000), "data": data, "cts": round(ts * 1000) - 2}
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()


def trade(ts=NOW):
    return b'{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":%d,"data":[{"u":1}]}' % round(ts * 1000)


@pytest.fixture
def stats():
    return StreamStats()


@pytest.fixture
def sampler(stats):
    return Sampler(stats)


def test_new_statistics_tell_of_nothing_and_are_not_watched():
    assert (StreamStats().messages, StreamStats().last_message, StreamStats().answered) == (0, None, False)
    assert StreamStats().heartbeat_due == float("inf")
    assert StreamStats().delays is not StreamStats().delays


# Delays.


def test_the_delay_of_each_message_is_the_time_from_its_ts_to_its_arrival(stats, sampler):
    sampler.sample([trade(NOW - 0.25), book(7, ts=NOW - 1.5), trade(NOW + 0.125)], NOW)
    assert list(stats.delays) == pytest.approx([0.25, 1.5, -0.125])


def test_the_latest_1000_delays_are_kept(stats, sampler):
    sampler.sample([trade(NOW - number) for number in range(1500)], NOW)
    assert list(stats.delays) == pytest.approx(range(500, 1500))


# Sequence gaps.


@settings(deadline=None)
@given(st.integers(2, 10**12), st.integers(1, 50))
def test_updates_that_rise_by_one_are_no_gap(first, count):
    sampler = Sampler(stats := StreamStats())
    assert sampler.sample([book(first, "snapshot"), *(book(first + n) for n in range(1, count))], NOW) == []
    assert stats.gaps == 0


@settings(deadline=None)
@given(st.integers(2, 10**9), st.integers(2, 10**9))
def test_any_other_step_between_deltas_is_a_gap(before, after):
    sampler = Sampler(stats := StreamStats())
    gap = after != before + 1
    assert sampler.sample([book(before), book(after)], NOW) == ([Gap(BOOK, before, after)] if gap else [])
    assert stats.gaps == gap


def test_a_gap_is_found_across_chunks_and_counted_each_time(stats, sampler):
    sampler.sample([book(5)], NOW)
    assert sampler.sample([book(9)], NOW) == [Gap(BOOK, 5, 9)]
    assert sampler.sample([book(10), book(12), book(15)], NOW) == [Gap(BOOK, 10, 12), Gap(BOOK, 12, 15)]
    assert stats.gaps == 3


def test_the_first_message_of_a_topic_is_no_gap_whatever_its_update(sampler):
    assert sampler.sample([book(77)], NOW) == []


def test_a_snapshot_may_jump_and_the_deltas_follow_it(sampler):
    assert sampler.sample([book(5), book(100, "snapshot"), book(101)], NOW) == []
    assert sampler.sample([book(50, "snapshot"), book(52)], NOW) == [Gap(BOOK, 50, 52)]


@pytest.mark.parametrize("kind", ["snapshot", "delta"])
def test_an_update_of_1_is_a_restart_of_bybits_service_and_no_gap(sampler, kind):
    assert sampler.sample([book(500), book(1, kind), book(2)], NOW) == []


def test_each_topic_has_its_own_sequence(sampler):
    other = "orderbook.50.ETHUSDT"
    assert sampler.sample([book(5), book(90, topic=other), book(6), book(91, topic=other)], NOW) == []
    assert sampler.sample([book(7), book(93, topic=other)], NOW) == [Gap(other, 91, 93)]


def test_only_order_books_have_a_sequence(sampler):
    messages = [message.replace(b"orderbook.50", b"tickers") for message in (book(5), book(9))]
    assert sampler.sample(messages, NOW) == []


def test_a_topic_that_is_not_ascii_is_named_in_its_gap(sampler):
    topic = "orderbook.50.币安人生USDT"
    assert sampler.sample([book(5, topic=topic), book(7, topic=topic)], NOW) == [Gap(topic, 5, 7)]


# The budget.


def test_when_the_budget_was_exhausted_the_books_are_forgotten_since_messages_went_by(sampler):
    sampler.sample([book(5)], NOW)
    sampler.sample([trade()] * SAMPLES_PER_SECOND, NOW)
    assert sampler.budget <= 0
    sampler.refill()
    assert sampler.budget == SAMPLES_PER_SECOND
    assert sampler.sample([book(500), book(501), book(503)], NOW) == [Gap(BOOK, 501, 503)]


def test_while_the_budget_lasts_the_books_are_followed_from_second_to_second(sampler):
    sampler.sample([book(5)] + [trade()] * (SAMPLES_PER_SECOND - 2), NOW)
    assert sampler.budget == 1
    sampler.refill()
    assert sampler.sample([book(7)], NOW) == [Gap(BOOK, 5, 7)]


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
    b'{"topic":"orderbook.50.BTCUSDT',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_message_of_another_form_is_passed_over_and_those_around_it_are_sampled(stats, sampler, garbage):
    assert sampler.sample([book(5), garbage, book(6), book(8)], NOW) == [Gap(BOOK, 6, 8)]
    assert stats.gaps == 1


def test_a_gap_of_a_topic_that_is_not_utf8_is_reported_all_the_same(sampler):
    gaps = sampler.sample([book(update).replace(b"BTC", b"\xff", 1) for update in (5, 7)], NOW)
    assert gaps == [Gap("orderbook.50.\N{REPLACEMENT CHARACTER}USDT", 5, 7)]


pieces = st.sampled_from(
    [b'{"topic":"orderbook.', b'"', b'"ts":', b'"u":', b",", b"1", b"-", b" ", b"_", b'"type":"delta"', b"\xff", b"}"]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(pieces, max_size=20).map(b"".join) | st.binary()))
def test_no_message_makes_sampling_fail(messages):
    sampler = Sampler(stats := StreamStats())
    gaps = sampler.sample([*messages, *messages], NOW)
    assert stats.gaps == len(gaps)
    assert sampler.budget == SAMPLES_PER_SECOND - 2 * len(messages)
