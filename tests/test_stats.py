"""What the messages tell of delay."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.stats import SAMPLE_EVERY, SLOTS, WINDOW, Sampler, StreamStats, percentile, recent, stream_of

NOW = 1_700_000_000.0  # seconds since the epoch


def trade(ts=NOW):
    return b'{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":%d,"data":[{"u":1}]}' % round(ts * 1000)


@pytest.fixture
def stats():
    return StreamStats()


@pytest.fixture
def sampler(stats):
    sampler = Sampler(stats)
    sampler.turn(0.0)
    return sampler


def test_new_statistics_tell_of_nothing_and_are_not_watched():
    assert (StreamStats().messages, StreamStats().last_message, StreamStats().answered) == (0, None, False)
    assert StreamStats().heartbeat_due == float("inf")
    assert StreamStats().delays is not StreamStats().delays


# Delays.


def test_the_delay_of_each_message_is_the_time_from_its_ts_to_its_arrival(stats, sampler):
    for delay in (0.25, 1.5, -0.125):
        sampler.sample(trade(NOW - delay), NOW)
    assert recent(stats.delays, 0.0) == pytest.approx([-0.125, 0.25, 1.5])


def test_a_pause_is_forgotten_after_ten_seconds_however_few_messages_there_are(stats, sampler):
    """It stood in the quantiles for as long as a thousand messages took."""
    sampler.sample(trade(NOW - 4), NOW)
    worst = []
    for second in range(1, 13):
        sampler.turn(float(second))
        for _ in range(10):
            sampler.sample(trade(NOW - 0.001), NOW)
        worst.append(percentile(recent(stats.delays, float(second)), 0.999))
    assert [round(one) for one in worst] == [4] * round(WINDOW) + [0] * 2


def test_without_messages_in_the_window_there_is_nothing_to_tell(stats, sampler):
    sampler.sample(trade(), NOW)
    assert [len(recent(stats.delays, now)) for now in (WINDOW, WINDOW + 0.1)] == [1, 0]
    assert percentile([], 0.5) is None


def test_a_slot_lasts_for_a_second_and_slots_are_bounded(stats, sampler):
    for tenth in range(500):
        sampler.turn(tenth / 10)
    assert len(stats.delays) == SLOTS
    assert [began for began, _ in stats.delays] == [float(second) for second in range(50 - SLOTS, 50)]


def test_a_new_connection_begins_a_slot_of_its_own(stats, sampler):
    sampler.sample(trade(NOW - 1), NOW)
    other = Sampler(stats)
    assert other.due > NOW, "nothing is sampled before it reads"
    other.turn(0.5)
    other.sample(trade(NOW - 2), NOW)
    assert recent(stats.delays, 1.0) == pytest.approx([1, 2])


# Which are sampled.


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.02), max_size=300))
def test_samples_are_spread_evenly_over_the_time_whatever_the_rate_is(pauses):
    sampler = Sampler(StreamStats())
    sampler.turn(0.0)
    now, taken = NOW, []
    for pause in pauses:
        now += pause
        if now >= sampler.due:
            sampler.sample(trade(now), now)
            taken.append(now)
    assert all(later - earlier >= SAMPLE_EVERY - 1e-6 for earlier, later in itertools.pairwise(taken))
    assert all(later - earlier < SAMPLE_EVERY + 0.02 + 1e-6 for earlier, later in itertools.pairwise(taken))


def test_a_clock_that_was_set_back_stops_the_samples_for_a_second_at_most(sampler):
    sampler.sample(trade(), NOW)
    assert sampler.due > NOW - 3600
    sampler.turn(0.5)
    assert sampler.due <= NOW - 3600


# Messages of another form.


@settings(deadline=None)
@given(st.binary() | st.sampled_from([b"", b"{}", b'{"ts":null}', b'{"ts":', b'{"ts":12}', b'{"ts":"\xff"}']))
def test_a_message_of_another_form_is_passed_over_and_those_around_it_are_measured(message):
    sampler = Sampler(stats := StreamStats())
    sampler.turn(0.0)
    for one in (trade(NOW - 1), message, trade(NOW - 2)):
        sampler.sample(one, NOW)
    [(_, delays)] = stats.delays
    assert (delays[0], delays[-1]) == pytest.approx((1, 2))


@pytest.mark.parametrize(
    ("connection", "stream"), [("Trades", "Trades"), ("Trades#2", "Trades"), ("Trades.2#13", "Trades.2"), ("", "")]
)
def test_a_connection_bears_the_name_of_its_stream(connection, stream):
    assert stream_of(connection) == stream
