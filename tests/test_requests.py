"""Requests for snapshots: what is refused and why, and rounds that serve everybody once and nobody too early."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.bybit.requests import (
    EXPIRY,
    MAX_BYTES,
    MAX_REPLY,
    MAX_TOPICS,
    PART,
    PART_BYTES,
    InvalidRequest,
    Rounds,
    Waiting,
    by_reply,
    parse,
    parts,
    unservable,
)

PREFIX = "stream:bybit_reply_"
REPLY = f"{PREFIX}x"
BOOK, TICKER = "orderbook.50.BTCUSDT", "tickers.BTCUSDT"


def request(**members):
    return json.dumps({"op": "snapshot", "topics": [BOOK], "reply": REPLY} | members).encode()


def reason_of(payload):
    with pytest.raises(InvalidRequest) as refused:
        parse(payload, PREFIX)
    return refused.value


def test_a_request_names_each_topic_once():
    assert parse(request(topics=[BOOK, TICKER, BOOK], more=1), PREFIX) == ([BOOK, TICKER], REPLY)


@pytest.mark.parametrize("reply", [PREFIX, f"{PREFIX}é {{x}}", PREFIX.ljust(MAX_REPLY, "x")])
def test_a_reply_channel_needs_only_its_prefix(reply):
    assert parse(request(reply=reply), PREFIX).reply == reply


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "a request is a JSON object"),
        (b"\xff{}", "a request is a JSON object"),
        (b"[1]", "a request is a JSON object"),
        (b"[" * 60_000, "a request is a JSON object"),
        (b"9" * 60_000, "a request is a JSON object"),
        (request(more="x" * MAX_BYTES), f"a request has at most {MAX_BYTES} bytes"),
        (b'{"op":"snapshot"}', f'"reply" is the name of a channel that begins with {PREFIX}'),
        (request(reply=7), f'"reply" is the name of a channel that begins with {PREFIX}'),
        (request(reply="stream:bybit_orderbook"), f'"reply" is the name of a channel that begins with {PREFIX}'),
        (request(reply=f"{PREFIX}\x1b[2J"), f'"reply" is the name of a channel that begins with {PREFIX}'),
        (request(reply=f"{PREFIX}\ud800"), f'"reply" is the name of a channel that begins with {PREFIX}'),
        (request(reply=PREFIX.ljust(MAX_REPLY + 1, "x")), f'"reply" has at most {MAX_REPLY} characters'),
    ],
    ids=range(12),
)
def test_what_is_refused_without_a_reply(payload, reason):
    refused = reason_of(payload)
    assert (str(refused), refused.reply, list(refused.topics)) == (reason, "", [])


@pytest.mark.parametrize(
    ("members", "reason", "topics"),
    [
        ({"topics": BOOK}, '"topics" is a list of topics, at least one', []),
        ({"topics": []}, '"topics" is a list of topics, at least one', []),
        ({"topics": [BOOK, 7]}, '"topics" is a list of topics, at least one', []),
        ({"topics": [str(n) for n in range(MAX_TOPICS + 1)]}, f"a request has at most {MAX_TOPICS} topics", []),
        ({"op": "replay"}, '"op" is "snapshot"', [BOOK]),
        ({"op": None}, '"op" is "snapshot"', [BOOK]),
    ],
)
def test_what_is_refused_with_a_reply(members, reason, topics):
    refused = reason_of(request(**members))
    assert (str(refused), refused.reply, list(refused.topics)) == (reason, REPLY, topics)


def test_what_cannot_be_served():
    topics = [BOOK, "orderbook.50.NOPE", "publicTrade.BTCUSDT", "\ud800", TICKER]
    carried, flowing = {BOOK, TICKER, "publicTrade.BTCUSDT"}, {BOOK, "orderbook.50.NOPE"}
    assert unservable(topics, carried.__contains__, flowing.__contains__, ("orderbook.", "tickers.")) == {
        "the stream of the topic is down: its snapshot will come to all": [TICKER],
        "this collector does not carry the topic": ["orderbook.50.NOPE"],
        "Bybit has no snapshots of such topics": ["publicTrade.BTCUSDT", "\ud800"],
    }


# Rounds.


@pytest.fixture
def rounds():
    return Rounds(1000)


def test_requests_for_a_topic_share_a_round(rounds):
    rounds.add([BOOK], "a", 0)
    rounds.add([BOOK, TICKER], "b", 0)
    rounds.add([BOOK], "a", 0)
    assert rounds.begin() == [BOOK, TICKER]
    assert rounds.answer(BOOK) == ["a", "b"]
    assert rounds.answer(BOOK) == []
    assert rounds.answer(TICKER) == ["b"]
    assert not rounds.waiting


def test_who_comes_during_a_round_waits_for_the_next(rounds):
    """And the same reply channel, too: its consumer may have subscribed anew."""
    rounds.add([BOOK], "a", 0)
    rounds.begin()
    rounds.add([BOOK], "a", 0)
    rounds.add([BOOK], "b", 0)
    assert rounds.begin() == []
    assert rounds.answer(BOOK) == ["a"]
    rounds.add([BOOK], "c", 0)
    assert rounds.begin() == []
    assert rounds.release() == [BOOK]
    assert rounds.release() == []
    rounds.end(subscribed=lambda topic: True)
    assert rounds.begin() == []
    rounds.end(subscribed=lambda topic: False)
    assert rounds.begin() == [BOOK]
    assert rounds.answer(BOOK) == ["a", "b", "c"]


def test_a_topic_that_is_still_wanted_does_not_end(rounds):
    rounds.add([BOOK], "a", 0)
    rounds.begin()
    rounds.end(subscribed=lambda topic: False)
    assert rounds.under_way == [BOOK]


def test_what_does_not_fit_a_connection_waits_its_turn():
    """And nothing overtakes it."""
    rounds = Rounds(len('["aaaa","bbbb"]'))
    rounds.add(["aaaa", "bbbb", "cccc", "d"], "x", 0)
    assert rounds.begin() == ["aaaa", "bbbb"]
    rounds.answer("aaaa")
    rounds.release()
    rounds.end(subscribed=lambda topic: False)
    assert rounds.begin() == ["cccc"]


def test_what_finds_no_room_is_returned():
    rounds = Rounds(1000, max_waiting=2)
    assert rounds.add(["a", "b", "c"], "x", 0) == ["c"]
    assert rounds.add(["a", "d"], "x", 0) == ["d"]
    rounds.begin()
    rounds.answer("a")
    assert rounds.add(["c", "d"], "x", 0) == ["d"]


def test_a_lost_connection_costs_time_only(rounds):
    rounds.add([BOOK, TICKER], "a", 1)
    rounds.begin()
    rounds.add(["late"], "a", 2)
    rounds.add([BOOK], "a", 2)
    rounds.add([BOOK], "b", 2)
    rounds.answer(TICKER)
    rounds.interrupt()
    assert rounds.under_way == []
    assert rounds.expire(1 + EXPIRY) == [(BOOK, "a")], "the older of two requests counts"
    assert rounds.begin() == [BOOK, "late"]
    assert rounds.answer(BOOK) == ["b"]


def test_who_has_waited_too_long_waits_no_more(rounds):
    rounds.add([BOOK, TICKER], "a", 0)
    rounds.begin()
    rounds.add([BOOK], "b", 1)
    assert rounds.expire(EXPIRY - 0.01) == []
    assert rounds.expire(EXPIRY) == [(BOOK, "a"), (TICKER, "a")]
    assert rounds.release() == [BOOK, TICKER], "nobody waits for this round any more"
    assert rounds.expire(EXPIRY + 1) == [(BOOK, "b")]
    assert not rounds.waiting


def test_who_waits_for_a_rejected_topic(rounds):
    rounds.add([BOOK, TICKER], "a", 0)
    rounds.begin()
    rounds.add([BOOK], "b", 0)
    assert rounds.reject([BOOK, "unknown"]) == [(BOOK, "a")]
    assert rounds.release() == [BOOK]


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, PART_BYTES // 3, PART_BYTES, PART_BYTES + 1]) | st.just(1), max_size=3 * PART))
def test_replies_go_out_in_small_parts_in_order_and_as_few_as_can_be(sizes):
    payloads = {size: bytes(size) for size in set(sizes)}
    replies = [(str(number), payloads[size]) for number, size in enumerate(sizes)]
    pieces = list(parts(replies))
    assert [reply for piece in pieces for reply in piece] == replies
    for number, piece in enumerate(pieces):
        size = sum(len(message) for _, message in piece)
        assert len(piece) == 1 or (1 < len(piece) <= PART and size <= PART_BYTES)
        for following in pieces[number + 1 : number + 2]:
            assert len(piece) == PART or size + len(following[0][1]) > PART_BYTES


def test_rejections_are_grouped_by_reply_channel():
    assert list(by_reply([Waiting("a", "x"), Waiting("b", "y"), Waiting("c", "x")])) == [
        ("x", ["a", "c"]),
        ("y", ["b"]),
    ]


TOPICS, REPLIES = st.sampled_from("ABCD"), st.sampled_from("xyz")
ROOM, PLACES = len('["A","B"]'), 5


class Consumers(RuleBasedStateMachine):
    """Requests, rounds and lost connections in any order. `moment` counts what happens, `now` is the clock."""

    def __init__(self):
        super().__init__()
        self.rounds = Rounds(ROOM, PLACES, expiry=10)
        self.moment, self.now = 0, 0.0
        self.asked = {}  # moment of each request that is not settled, by (topic, reply)
        self.taken, self.settled = Counter(), Counter()
        self.sent = {}  # moment at which the subscription of a topic was sent
        self.leaving = set()

    def settle(self, topic, reply, before):
        """One reply settles all requests of the pair that were here `before`."""
        moments = self.asked[topic, reply]
        assert min(moments) < before, "a reply that nobody asked for, or a snapshot that is older than the request"
        self.settled[topic, reply] += 1
        self.asked[topic, reply] = [moment for moment in moments if moment > before]

    @rule(topics=st.lists(TOPICS, unique=True, min_size=1), reply=REPLIES)
    def ask(self, topics, reply):
        self.moment += 1
        left_out = self.rounds.add(topics, reply, self.now)
        for topic in topics:
            if topic not in left_out:
                self.asked.setdefault((topic, reply), []).append(self.moment)
                self.taken[topic, reply] += 1

    @rule()
    def begin(self):
        self.moment += 1
        begun = self.rounds.begin()
        assert self.sent.keys().isdisjoint(begun), "two rounds of a topic at once"
        self.sent.update(dict.fromkeys(begun, self.moment))
        assert len(self.sent) <= 2, "more than the connection carries"

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), rejected=st.booleans())
    def respond(self, data, rejected):
        topic = data.draw(st.sampled_from(sorted(self.sent)))
        found = self.rounds.reject([topic]) if rejected else [(topic, each) for each in self.rounds.answer(topic)]
        for one, reply in found:
            self.settle(one, reply, self.sent[topic])

    @rule()
    def release(self):
        released = self.rounds.release()
        assert self.leaving.isdisjoint(released)
        self.leaving.update(released)

    @rule(acknowledged=st.sets(TOPICS))
    def end(self, acknowledged):
        acknowledged &= self.leaving
        self.rounds.end(lambda topic: topic not in acknowledged)
        self.leaving -= acknowledged
        for topic in acknowledged:
            del self.sent[topic]

    @rule()
    def interrupt(self):
        self.moment += 1
        self.rounds.interrupt()
        self.sent, self.leaving = {}, set()

    @rule(seconds=st.sampled_from([0, 3, 10]))
    def passes(self, seconds):
        self.moment += 1
        self.now += seconds
        for topic, reply in self.rounds.expire(self.now):
            # A pair waits twice at most: in the round under way, and for the next one.
            under_way = self.sent.get(topic, 0)
            moments = self.asked[topic, reply]
            self.settle(topic, reply, under_way if min(moments) < under_way else self.moment)

    @invariant()
    def who_is_not_settled_waits(self):
        assert self.rounds.waiting == any(self.asked.values())

    def teardown(self):
        self.passes(10)
        self.passes(0)
        assert not any(self.asked.values()), "a request without a reply"
        assert not self.rounds.waiting
        assert self.settled.keys() == self.taken.keys()
        assert all(self.settled[pair] <= taken for pair, taken in self.taken.items())


Consumers.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestConsumers = Consumers.TestCase
