"""How long a stream waits before its next connection."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.backoff import STABLE_AFTER, Backoff

unstable = st.floats(0, STABLE_AFTER, exclude_max=True)


@settings(deadline=None)
@given(st.floats(0.01, 60), st.lists(unstable, max_size=30), st.floats(STABLE_AFTER, 1e6))
def test_after_a_stable_connection_the_wait_is_exactly_the_delay(delay, failures, uptime):
    backoff = Backoff(delay, maximum=60)
    for short in failures:
        backoff.after(short)
    assert backoff.after(uptime) == delay


@settings(deadline=None)
@given(st.floats(0.01, 10), st.floats(10, 600), st.lists(unstable, min_size=1, max_size=40))
def test_after_others_it_doubles_up_to_the_maximum_less_a_quarter_of_jitter(delay, maximum, failures):
    backoff = Backoff(delay, maximum)
    for number, uptime in enumerate(failures, start=1):
        whole = min(delay * 2**number, maximum)
        assert 0.75 * whole <= backoff.after(uptime) <= whole


def test_after_a_stable_connection_the_doubling_begins_anew(monkeypatch):
    monkeypatch.setattr("relay.backoff.random.uniform", lambda low, high: high)
    backoff = Backoff(2.0, 60.0)
    assert [backoff.after(0) for _ in range(7)] == [4, 8, 16, 32, 60, 60, 60]
    assert backoff.after(STABLE_AFTER) == 2
    assert [backoff.after(9.99) for _ in range(3)] == [4, 8, 16]


def test_streams_that_fell_together_do_not_return_together():
    assert len({Backoff(2.0, 60.0).after(0) for _ in range(50)}) > 40


@pytest.mark.parametrize("failures", [1, 10, 10_000])
def test_it_goes_on_for_ever_and_never_beyond_the_maximum(failures):
    backoff = Backoff(2.0, 60.0)
    for _ in range(failures):
        assert 0 < backoff.after(0) <= 60
