"""Which topics are to be subscribed anew, and which still owe their snapshot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.bybit.renewal import RENEW_EVERY, SNAPSHOT_WITHIN, Renewals

A, B = b"orderbook.50.A", b"tickers.B"


@pytest.fixture
def renewals():
    return Renewals()


def message(topic, kind="snapshot"):
    return b'{"topic":"%s","ts":1,"type":"%s","data":{}}' % (topic, kind.encode())


def test_what_is_wrong_is_renewed_once(renewals):
    assert renewals.begin() == []
    renewals.want(A)
    renewals.want(A)
    renewals.want(B)
    assert renewals.begin() == [A, B]
    assert renewals.begin() == []
    assert set(renewals.awaited) == {A, B}


def test_a_topic_is_renewed_at_most_every_ten_seconds_and_then_is(renewals):
    renewals.want(A)
    renewals.begin()
    renewals.seen([message(A)])
    renewals.want(A)
    renewals.want(B)
    assert renewals.begin() == [B], "others are not held up"
    renewals.advance(RENEW_EVERY - 0.1)
    assert renewals.begin() == []
    renewals.advance(0.2)
    assert renewals.begin() == [A]


def test_only_the_snapshot_of_the_topic_itself_is_one(renewals):
    renewals.want(A)
    renewals.begin()
    renewals.seen([message(A, "delta"), message(B), b"", b"{}", b'"type":"snapshot"', b'{"topic":"' + A])
    assert set(renewals.awaited) == {A}
    renewals.seen([message(A), message(A)])
    assert not renewals.awaited


def test_a_snapshot_that_does_not_come_is_overdue(renewals):
    renewals.want(A)
    renewals.begin()
    assert renewals.advance(SNAPSHOT_WITHIN - 0.1) == []
    renewals.want(B)
    renewals.begin()
    assert renewals.advance(0.2) == [A]
    renewals.forget(A)
    renewals.forget(A)
    assert renewals.advance(1) == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["want", "seen", "begin", "wait"]), st.sampled_from([A, B]), st.floats(0, 8)))
)
def test_no_topic_is_renewed_more_often_than_it_may_be_nor_forgotten(steps):
    renewals, now, renewed, wrong = Renewals(), 0.0, {}, set()
    for step, topic, seconds in steps:
        if step == "want":
            renewals.want(topic)
            wrong.add(topic)
        elif step == "seen":
            renewals.seen([message(topic)])
        elif step == "begin":
            for each in renewals.begin():
                assert now - renewed.get(each, -100) >= RENEW_EVERY - 1e-6
                renewed[each] = now
                wrong.remove(each)
        else:
            renewals.advance(seconds)
            now += seconds
    renewals.advance(RENEW_EVERY + 1e-6)  # sums of floats are not exact
    assert set(renewals.begin()) == wrong


def test_a_topic_that_has_left_owes_nothing_and_is_not_renewed(renewals):
    renewals.want(A)
    renewals.begin()
    renewals.want(B)
    renewals.drop([A, B, b"unknown"])
    assert renewals.advance(SNAPSHOT_WITHIN) == renewals.begin() == []
    renewals.want(A)
    assert renewals.begin() == [A], "as if it were new"
