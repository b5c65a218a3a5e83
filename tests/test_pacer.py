"""When the process may start another connection: never more than Bybit allows, and soon after an outage."""

import threading
from collections import deque

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from relay.bybit.exchange import NEW_CONNECTIONS_BURST, NEW_CONNECTIONS_RATE
from relay.bybit.pacer import PROBE_EVERY, REFUSED_EVERY, Pacer

EPSILON = 1e-6  # of rounding

steps = st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["opened", "failed", "failed", "unknown"])), max_size=100)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 5), st.floats(0.05, 3), steps)
def test_no_period_has_more_new_connections_than_the_bucket_allows(burst, rate, steps):
    pacer = Pacer(burst, rate)
    now, starts = 100.0, []
    for step, outcome in steps:
        now += step
        if pacer.reserve(now) == 0:
            starts.append(now)
            if outcome != "unknown":
                (pacer.opened if outcome == "opened" else pacer.failed)(now)
    for first, start in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= burst + rate * (starts[last] - start) + EPSILON


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 5), st.floats(0.05, 3), steps)
def test_after_its_pause_a_connection_has_a_place_if_no_other_took_it(burst, rate, steps):
    pacer = Pacer(burst, rate)
    now = 100.0
    for step, outcome in steps:
        now += step
        if pause := pacer.reserve(now):
            event("paused")
            now += pause + EPSILON
            assert pacer.reserve(now) == 0
        if outcome != "unknown":
            (pacer.opened if outcome == "opened" else pacer.failed)(now)


@settings(deadline=None, max_examples=200)
@given(steps)
def test_while_no_connection_comes_up_attempts_are_rare_and_when_one_does_nobody_waits(steps):
    pacer = Pacer(1000, 1)
    now, last = 100.0, 0.0
    for step, outcome in steps:
        now += step
        failing = pacer.failing
        pause = pacer.reserve(now)
        assert (pause == 0) == (not failing or now - last >= PROBE_EVERY)
        if pause == 0:
            last = now
            if outcome != "unknown":
                (pacer.opened if outcome == "opened" else pacer.failed)(now)
            assert pacer.failing == (failing if outcome == "unknown" else outcome == "failed")


def test_bybits_limit_is_kept():
    assert NEW_CONNECTIONS_BURST + 300 * NEW_CONNECTIONS_RATE <= 450
    assert 2 * 300 / PROBE_EVERY < 500, "two collectors at one address, in an outage"


@pytest.mark.parametrize("streams", [4, 40])
def test_an_outage_of_an_hour_costs_no_place_that_its_end_needs(streams):
    pacer = Pacer(NEW_CONNECTIONS_BURST, NEW_CONNECTIONS_RATE)
    attempts = [pacer.reserve(0.0) for _ in range(streams)]
    assert attempts == [0.0] * streams, "all of them were lost, and know nothing yet"
    pacer.failed(0.0)
    now = 0.0
    while now < 3600:
        now += max(0.01, pacer.reserve(now))
        pacer.failed(now)
    pacer.opened(now)
    assert [pacer.reserve(now) for _ in range(streams)] == [0.0] * streams


def test_a_late_failure_says_nothing_of_the_present():
    """It had hung since before the exchange came back."""
    pacer = Pacer(10, 1)
    pacer.failed(1.0)
    pacer.opened(5.0)
    pacer.failed(2.0)
    assert not pacer.failing
    pacer.failed(5.0)
    assert pacer.failing


def test_an_exchange_that_refuses_this_address_is_asked_rarely():
    pacer = Pacer(10, 1)
    pacer.failed(1.0, refused=True)
    assert pacer.reserve(1.0) == 0, "the first attempt of this process"
    pacer.failed(1.0, refused=True)
    assert pacer.reserve(1.0) == REFUSED_EVERY
    pacer.failed(1.0)
    assert pacer.reserve(1.0) == PROBE_EVERY


def test_up_to_the_burst_nobody_waits():
    pacer = Pacer(150, 1.0)
    assert [pacer.reserve(7.0) for _ in range(150)] == [0.0] * 150
    assert pacer.reserve(7.0) == 1
    assert pacer.reserve(7.5) == 0.5
    assert pacer.reserve(8.0) == 0
    assert pacer.reserve(8.0) == 1


def test_two_threads_never_take_the_same_place():
    pacer, pauses = Pacer(100, 0.01), deque()
    threads = [
        threading.Thread(target=lambda: pauses.extend([pacer.reserve(1.0) for _ in range(50)])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pauses.count(0.0) == 100
