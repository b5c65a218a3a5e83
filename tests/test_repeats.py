"""When a connection may not be asked for a topic again: what is learnt, and from what."""

from relay.bybit.repeats import SNAPSHOT_WITHIN, Repeats


def waits(repeats, topics, seconds, start=100.0, step=0.5):
    """Looks every `step` seconds; returns what was overdue at the end."""
    repeats.overdue([], start)
    for number in range(round(seconds / step) + 1):
        found = repeats.overdue(topics, start + number * step)
    return found


def test_a_second_round_without_a_snapshot_is_overdue():
    repeats = Repeats()
    repeats.connected()
    assert waits(repeats, ["a"], 60) == [], "its first round: it may have nothing to send"
    repeats.served("a")
    assert waits(repeats, ["a"], SNAPSHOT_WITHIN - 0.5) == []
    assert waits(repeats, [], 1) == []
    assert waits(repeats, ["a", "b"], SNAPSHOT_WITHIN) == ["a"]


def test_it_is_learnt_when_a_new_connection_brings_the_snapshot():
    repeats = Repeats()
    repeats.connected()
    for topic in "abc":
        repeats.served(topic)
    waits(repeats, ["a", "b"], SNAPSHOT_WITHIN)
    repeats.connected()
    assert not repeats.served("c")
    assert not repeats.exhausted({"c"})
    assert repeats.served("a")
    assert not repeats.served("b"), "it is said once"
    assert repeats.exhausted({"a", "z"})
    assert not repeats.exhausted({"z"})
    repeats.connected()
    assert not repeats.exhausted({"a"})


def test_time_in_which_nobody_looked_does_not_count():
    repeats = Repeats()
    repeats.connected()
    repeats.served("a")
    repeats.overdue(["a"], 100.0)
    assert repeats.overdue(["a"], 1000.0) == []
    assert not repeats.has_waited


def test_rounds_that_had_time_enough_hold_up_nobody():
    repeats = Repeats()
    repeats.connected()
    waits(repeats, [], SNAPSHOT_WITHIN)
    assert repeats.has_waited
    repeats.connected()
    assert not repeats.has_waited
