"""What the messages tell of delay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.stats import SAMPLES_PER_SECOND, Sampler, StreamStats, stream_of

NOW = 1_700_000_000.0  # seconds since the epoch


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
    sampler.sample([trade(NOW - 0.25), trade(NOW - 1.5), trade(NOW + 0.125)], NOW)
    assert list(stats.delays) == pytest.approx([0.25, 1.5, -0.125])


def test_the_latest_1000_delays_are_kept(stats, sampler):
    sampler.sample([trade(NOW - number) for number in range(1500)], NOW)
    assert list(stats.delays) == pytest.approx(range(500, 1500))


# The budget.


def test_the_budget_is_what_may_be_sampled_in_a_second(sampler):
    sampler.sample([trade()] * SAMPLES_PER_SECOND, NOW)
    assert sampler.budget <= 0
    sampler.refill()
    assert sampler.budget == SAMPLES_PER_SECOND


# Messages of another form.


@settings(deadline=None)
@given(st.lists(st.binary() | st.sampled_from([b"", b"{}", b'{"ts":null}', b'{"ts":', b'{"ts":12}', b'{"ts":"\xff"}'])))
def test_a_message_of_another_form_is_passed_over_and_those_around_it_are_measured(messages):
    sampler = Sampler(stats := StreamStats())
    sampler.sample([trade(NOW - 1), *messages, trade(NOW - 2)], NOW)
    assert (stats.delays[0], stats.delays[-1]) == pytest.approx((1, 2))
    assert sampler.budget == SAMPLES_PER_SECOND - 2 - len(messages)


@pytest.mark.parametrize(
    ("connection", "stream"), [("Trades", "Trades"), ("Trades#2", "Trades"), ("Trades.2#13", "Trades.2"), ("", "")]
)
def test_a_connection_bears_the_name_of_its_stream(connection, stream):
    assert stream_of(connection) == stream
