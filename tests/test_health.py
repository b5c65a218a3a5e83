"""When a connection is given up: the clocks count only time in which its thread watched the socket."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.bybit.health import Health, Timeouts
from relay.errors import ConnectionLost, Stalled

DEFAULT = Timeouts()


def advance(health, elapsed, awaiting=False, subscribed=False):
    health.advance(elapsed, awaiting_acknowledgement=awaiting, subscribed=subscribed)


def seconds_until_lost(health, step=1.0, limit=1000.0, **state):
    """Seconds until the connection is given up, and why; the frames, data and answers of `health` have ceased."""
    elapsed = 0.0
    while elapsed < limit:
        elapsed += step
        try:
            advance(health, step, **state)
        except ConnectionLost as lost:
            return elapsed, lost
    return elapsed, None


def test_the_defaults_keep_what_the_documentation_promises():
    assert (DEFAULT.silence, DEFAULT.ping_interval, DEFAULT.acknowledgement) == (30.0, 20.0, 12.0)
    assert DEFAULT.connect_step <= DEFAULT.connect
    # A warning of a missing snapshot comes after the answer to its subscription, if that comes at all.
    assert DEFAULT.acknowledgement < DEFAULT.first_message


def test_a_peer_that_answers_pings_is_never_silent():
    """Even if the ping waits for a timer, and the pong for another one."""
    health = Health(DEFAULT, stall_timeout=0)
    since_ping, seconds = 0.0, 0.0
    while seconds < 3600:
        advance(health, DEFAULT.timer, subscribed=True)
        seconds += DEFAULT.timer
        since_ping += DEFAULT.timer
        if since_ping >= DEFAULT.ping_interval + 2 * DEFAULT.timer:
            since_ping = health.since_frame = 0.0


def test_without_a_frame_the_connection_is_lost_after_the_silence():
    seconds, lost = seconds_until_lost(Health(DEFAULT, stall_timeout=0))
    assert seconds == 30
    assert str(lost) == "nothing received for 30 s, not even a pong"
    assert not isinstance(lost, Stalled)


@settings(deadline=None)
@given(st.floats(0.01, 2.0), st.floats(0, 29.9))
def test_it_is_lost_within_the_silence_and_one_timer_of_the_last_frame(step, before):
    health = Health(DEFAULT, stall_timeout=0)
    health.since_frame = before
    advance(health, 0.0)
    health.since_frame = 0.0  # a frame
    seconds, lost = seconds_until_lost(health, step)
    assert lost
    assert 30 - 1e-6 <= seconds <= 30 + step + 1e-6


@settings(deadline=None)
@given(st.lists(st.floats(0, 29.99), max_size=50))
def test_it_is_not_lost_while_a_frame_comes_within_every_30_watched_seconds(pauses):
    health = Health(DEFAULT, stall_timeout=0)
    for pause in pauses:
        whole, rest = divmod(pause, DEFAULT.timer)
        for step in [DEFAULT.timer] * int(whole) + [rest]:
            advance(health, step, subscribed=True)
        health.since_frame = 0.0


@settings(deadline=None)
@given(st.floats(2.0, 1e9), st.integers(1, 14))
def test_time_in_which_the_thread_did_not_watch_is_no_silence(gap, times):
    """A callback may take an hour, a laptop may sleep for a night: each time counts as two timers at most."""
    health = Health(DEFAULT, stall_timeout=29.0)
    for _ in range(times):
        advance(health, gap, awaiting=times < 6, subscribed=True)
    assert health.since_frame == health.since_message == health.since_request == 2 * DEFAULT.timer * times


def test_a_dead_connection_is_lost_though_the_thread_seldom_watches():
    _, lost = seconds_until_lost(Health(DEFAULT, stall_timeout=0), step=600.0, limit=15 * 600.0)
    assert lost


# Stalls.


def test_without_data_a_subscribed_connection_stalls_though_pings_are_answered():
    health = Health(DEFAULT, stall_timeout=60)
    for _ in range(59):
        health.since_frame = 0.0
        advance(health, 1.0, subscribed=True)
    health.since_frame = 0.0
    with pytest.raises(Stalled, match=r"^no data for 60 s, though pings are answered$"):
        advance(health, 1.0, subscribed=True)


def test_data_puts_a_stall_off():
    health = Health(DEFAULT, stall_timeout=5)
    for _ in range(100):
        advance(health, 1.0, subscribed=True)
        advance(health, 1.0, subscribed=True)
        advance(health, 1.0, subscribed=True)
        health.since_message = health.since_frame = 0.0


def test_a_connection_without_an_accepted_topic_never_stalls():
    health = Health(DEFAULT, stall_timeout=5)
    for _ in range(1000):
        health.since_frame = 0.0
        advance(health, 1.0, subscribed=False)


def test_the_wait_for_the_acknowledgement_is_no_part_of_a_stall():
    health = Health(DEFAULT, stall_timeout=5)
    for _ in range(11):
        advance(health, 1.0, awaiting=True, subscribed=False)
    health.since_frame = 0.0
    seconds, lost = seconds_until_lost(health, subscribed=True)
    assert seconds == 5
    assert isinstance(lost, Stalled)


def test_a_stall_timeout_of_zero_means_never():
    health = Health(DEFAULT, stall_timeout=0)
    for _ in range(10_000):
        health.since_frame = 0.0
        advance(health, 1.0, subscribed=True)


def test_a_dead_network_is_reported_as_silence_even_if_the_stall_is_due_too():
    health = Health(DEFAULT, stall_timeout=30)
    _, lost = seconds_until_lost(health, subscribed=True)
    assert not isinstance(lost, Stalled)


# Acknowledgements and first messages.


def test_a_request_without_an_answer_loses_the_connection():
    seconds, lost = seconds_until_lost(Health(DEFAULT, stall_timeout=0), awaiting=True)
    assert seconds == 12
    assert str(lost) == "a subscription was not acknowledged within 12 s"


def test_each_request_has_the_whole_time_for_its_answer():
    health = Health(DEFAULT, stall_timeout=0)
    for _ in range(20):
        for _ in range(11):
            advance(health, 1.0, awaiting=True)
        health.since_request = health.since_frame = 0.0


def test_an_hour_after_a_request_that_was_answered_nothing_is_missing():
    health = Health(DEFAULT, stall_timeout=0)
    for _ in range(3600):
        health.since_frame = 0.0
        advance(health, 1.0, awaiting=False, subscribed=True)


def test_the_first_message_is_overdue_30_watched_seconds_after_the_request():
    health = Health(DEFAULT, stall_timeout=0)
    for _ in range(29):
        health.since_frame = 0.0
        advance(health, 1.0, subscribed=True)
    assert not health.first_message_overdue
    advance(health, 1.0, subscribed=True)
    assert health.first_message_overdue


def test_a_topic_requested_again_after_an_hour_has_the_whole_time_for_its_first_message():
    health = Health(DEFAULT, stall_timeout=0)
    for _ in range(3600):
        health.since_frame = 0.0
        advance(health, 1.0, subscribed=True)
    health.since_request = 0.0
    advance(health, 1.0, awaiting=True, subscribed=True)
    assert not health.first_message_overdue


def test_while_nothing_is_subscribed_no_data_is_due_and_then_the_whole_time_is_given():
    health = Health(DEFAULT, stall_timeout=60)
    for subscribed, seconds in ((True, 50), (False, 3600), (True, 59)):
        for _ in range(seconds):
            health.since_frame = 0.0
            advance(health, 1.0, subscribed=subscribed)
    health.since_frame = 0.0
    with pytest.raises(Stalled):
        advance(health, 1.0, subscribed=True)
