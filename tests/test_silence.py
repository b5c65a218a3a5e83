"""Which topics have fallen silent, and which are only quiet."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.bybit.silence import MIN_OBSERVED, MIN_TICKS, Silence

BUSY, TOPIC = b"orderbook.50.BTCUSDT", b"orderbook.50.X"
HOUR, DAY = 3600, 86_400  # ticks


def watch(silence, ticks, seen):
    """Lets ticks pass in which a busy topic is always seen, and TOPIC where seen(tick) says so. Returns the ticks in
    which TOPIC was found silent, each with the ticks that it was silent for.
    """
    found = {}
    for tick in range(ticks):
        silent = silence.tick({BUSY, TOPIC} if seen(tick) else {BUSY})
        assert BUSY not in silent
        if silent:
            found[tick] = silent[TOPIC]
    return found


def every(period):
    return lambda tick: tick % period == 0


def never(_tick):
    return False


@pytest.mark.parametrize(("period", "bound"), [(1, 30), (2, 40), (5, 100), (10, 200), (60, 1200)])
def test_a_topic_is_silent_after_a_time_that_its_own_pace_tells(period, bound):
    silence = Silence()
    assert watch(silence, 100 * period, every(period)) == {}
    ((tick, ticks),) = watch(silence, 2 * bound, never).items()
    assert tick + period == ticks
    assert 0.95 * bound <= ticks <= 1.05 * bound


def test_nothing_is_concluded_from_what_was_seen_for_less_than_a_minute():
    silence = Silence()
    watch(silence, MIN_OBSERVED - 1, every(1))
    assert watch(silence, HOUR, never) == {}
    watch(silence, 1, every(1))
    assert watch(silence, 3 * HOUR, never), "but then it is"


def test_a_topic_that_never_sent_anything_is_none_of_its_topics():
    assert watch(Silence(), DAY, never) == {}


def test_when_nothing_flows_nothing_is_silent():
    """A calm of the whole market, or a machine that slept."""
    silence = Silence()
    watch(silence, 200, every(1))
    assert not any(silence.tick(set()) for _ in range(DAY))
    assert watch(silence, MIN_TICKS - 1, never) == {}


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2, 0.05, 0.01, 0.002])
def test_a_topic_that_comes_by_chance_is_not_silent_for_days(share):
    chance = random.Random(share)
    assert watch(Silence(), 3 * DAY, lambda _: chance.random() < share) == {}


def test_a_topic_that_comes_in_bursts_is_found_silent_a_few_times_at_most():
    """Ten seconds of activity, then quiet for minutes: what is normal for it is learnt."""
    chance = random.Random(1)
    active = [False] * (3 * DAY)
    at = 0
    while at < len(active):
        active[at : at + 10] = [True] * 10
        at += 10 + int(chance.expovariate(1 / 300))
    found = watch(Silence(), 3 * DAY, active.__getitem__)
    assert len(found) <= 3


def test_day_and_night_are_learnt():
    """Seen in nine seconds of ten by day and every four minutes by night, with hours between."""
    chance = random.Random(2)

    def share(tick):
        hour = tick % DAY / HOUR
        return 0.9 if 8 < hour < 20 else 0.005 if hour < 4 else 0.05

    found = watch(Silence(), 4 * DAY, lambda tick: chance.random() < share(tick))
    assert len(found) <= 10, "a few at each dusk"


def test_what_sends_only_its_snapshot_when_it_is_subscribed_anew_is_reported_ever_more_rarely():
    silence = Silence()
    watch(silence, 200, every(1))
    reported = []
    for tick in range(DAY):
        silent = silence.tick({BUSY, TOPIC} if reported and reported[-1][0] == tick - 1 else {BUSY})
        if silent:
            reported.append((tick, silent[TOPIC]))
    assert len(reported) <= 12
    assert all(later[1] >= 1.9 * earlier[1] for earlier, later in pairwise(reported))


def test_what_sends_nothing_even_then_is_reported_once_until_it_is_back():
    """Such as an option that has expired."""
    silence = Silence()
    watch(silence, 200, every(1))
    assert len(watch(silence, DAY, never)) == 1
    watch(silence, 200, every(1))
    assert len(watch(silence, DAY, never)) == 1


def test_a_topic_that_flows_again_is_watched_as_closely_as_before_after_some_time():
    silence = Silence()
    watch(silence, 200, every(1))
    assert watch(silence, MIN_TICKS, never)
    watch(silence, 1500, every(1))
    ((_, ticks),) = watch(silence, 60, never).items()
    assert ticks <= MIN_TICKS + 3


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sets(st.sampled_from([b"a", b"b", b"c"])), max_size=400))
def test_it_names_only_what_was_seen_and_is_not_now(ticks):
    silence, known = Silence(), set()
    for seen in ticks:
        silent = silence.tick(seen)
        assert silent.keys() <= known - seen
        assert all(count >= MIN_TICKS for count in silent.values())
        known |= seen


def test_a_topic_that_has_left_is_never_silent_and_is_new_when_it_comes_again():
    silence = Silence()
    watch(silence, 200, every(1))
    silence.forget([TOPIC, b"unknown"])
    assert watch(silence, DAY, never) == {}
    watch(silence, MIN_OBSERVED - 1, every(1))
    assert watch(silence, DAY, never) == {}, "nothing is concluded from so few ticks"
