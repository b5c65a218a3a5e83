"""What a connection is subscribed to, whatever Bybit answers. Bybit is simulated in its three dialects."""

import json
from collections import deque

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.bybit.rejected import RejectedTopics
from relay.bybit.subscription import (
    MAX_TOPIC_CHARACTERS,
    RequestRefused,
    State,
    Subscription,
    Verdict,
    judge,
)

SNAPSHOT_FIRST = ("orderbook.", "tickers.")
# Some symbols stand within others.
SYMBOLS = ("BTCUSD", "BTCUSDT", "BTCUSDT-26DEC25", "ETHUSDT", "1000PEPEUSDT", "PEPEUSDT", "币安人生USDT")
KINDS = ("orderbook.1", "orderbook.50", "publicTrade", "tickers")
TOPICS = [f"{kind}.{symbol}" for kind in KINDS for symbol in SYMBOLS]


class Bybit:
    """Answers requests of one connection as a category does; answers come in the order of the requests.

    unnamed: its rejections name no topic. keeps: it refuses to unsubscribe these topics, and sends them on.
    """

    def __init__(self, category, known, unnamed=False, keeps=()):
        self.category, self.known, self.unnamed, self.keeps = category, set(known), unnamed, set(keeps)
        self.subscribed, self.responses = set(), 0

    def answer(self, text):
        request = json.loads(text)
        assert set(request) == {"req_id", "op", "args"}
        topics = request["args"]
        assert topics
        self.responses += 1
        assert self.responses < 1000, "requests without end"
        if request["op"] == "unsubscribe":
            assert self.subscribed.issuperset(topics), "unsubscribed what was not subscribed"
            self.subscribed.difference_update(set(topics) - self.keeps)
            return self._response(request, self.keeps.intersection(topics), "no")
        assert request["op"] == "subscribe"
        if not self.keeps:
            assert not self.subscribed.intersection(topics), "asked again for what is subscribed"
        bad = [topic for topic in topics if topic not in self.known]
        spot = self.category == "spot"
        name = "" if self.unnamed or not bad else f" :[{bad[0]}]" if spot else f",topic:{bad[0]}"
        if again := [topic for topic in topics if topic in self.subscribed]:
            return self._response(request, again, f"error:already subscribed,topic:{again[0]}")
        self.subscribed.update(topic for topic in topics if self.category == "option" or not bad)
        self.subscribed.intersection_update(self.known)
        return self._response(request, bad, ("Invalid symbol" if spot else "error:handler not found") + name)

    def _response(self, request, failed, reason):
        failed = [topic for topic in request["args"] if topic in failed]
        if self.category == "option":
            good = [topic for topic in request["args"] if topic not in failed]
            data = {"failTopics": failed, "successTopics": good}
            return {"success": not failed, "conn_id": "c", "data": data, "type": "COMMAND_RESP"}
        return {
            "success": not failed,
            "ret_msg": reason if failed else "",
            "conn_id": "c",
            "req_id": request["req_id"],
            "op": request["op"],
        }


def make(topics=TOPICS, per_request=10, rejected=None, snapshot_first=()):
    return Subscription(topics, per_request, rejected or RejectedTopics(), snapshot_first)


def settle(subscription, bybit, rejected, now=0.0):
    """Sends and receives until nothing is due. Returns the requests."""
    outbox = deque(subscription.request(subscription.due(now)))
    requests = [json.loads(text)["args"] for text in outbox]
    while outbox:
        assert subscription.pending
        assert subscription.due(now) == []
        verdict = subscription.receive(bybit.answer(outbox.popleft()))
        assert verdict
        for topic in verdict.rejected:
            rejected.add(topic, now)
        for topic in verdict.accepted:
            rejected.forget(topic)
        texts = [text for topics in verdict.retry for text in subscription.request(topics)]
        if not outbox and not texts:
            texts = subscription.request(subscription.due(now))
        requests += [json.loads(text)["args"] for text in texts]
        outbox += texts
    assert not subscription.pending
    return requests


def exchange_of(subscription, bybit, now=0.0):
    """Has everything asked and answered; returns the requests as (op, topics)."""
    requests = []
    while texts := subscription.requests(now):
        outbox = deque(texts)
        while outbox:
            text = outbox.popleft()
            request = json.loads(text)
            requests.append((request["op"], request["args"]))
            verdict = subscription.receive(bybit.answer(text))
            outbox += [text for topics in verdict.retry for text in subscription.request(topics)]
    return requests


def answer(subscription, topics, **response):
    """Requests these topics in one request and receives this response."""
    (text,) = subscription.request(topics)
    return subscription.receive({"req_id": json.loads(text)["req_id"], "success": False, **response})


some_topics = st.lists(st.sampled_from(TOPICS), min_size=1, unique=True)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(("linear", "inverse", "spot", "option")),
    some_topics,
    st.sets(st.sampled_from(TOPICS)),
    st.booleans(),
    st.integers(1, 12),
)
def test_known_topics_end_subscribed_and_the_others_rejected(category, topics, known, unnamed, per_request):
    rejected = RejectedTopics()
    bybit, subscription = Bybit(category, known, unnamed), make(topics, per_request, rejected, SNAPSHOT_FIRST)
    good = [topic for topic in topics if topic in known]
    bad = [topic for topic in topics if topic not in known]
    requests_of_all = -(-len(topics) // per_request)
    try:
        requests = settle(subscription, bybit, rejected)
    except RequestRefused:
        event("refused")
        assert unnamed
        assert not good, "refused, though a topic of the request is known"
        return
    assert subscription.among(State.SUBSCRIBED) == good
    assert subscription.among(State.REJECTED) == bad
    assert bybit.responses <= requests_of_all + 4 * len(bad) * (len(topics).bit_length() if unnamed else 1)
    assert max(map(len, requests)) <= per_request
    assert subscription.awaiting_snapshot == {topic.encode() for topic in good if topic.startswith(SNAPSHOT_FIRST)}
    assert subscription.due(0) == []


@settings(deadline=None)
@given(some_topics, st.integers(1, 12))
def test_a_response_that_rejects_everything_and_names_nothing_refuses_the_connection(topics, per_request):
    """It is hardly the fault of each topic: nothing is remembered as rejected."""
    rejected = RejectedTopics()
    subscription = make(topics, per_request, rejected)
    with pytest.raises(RequestRefused, match=r"^error:handler not found$"):
        settle(subscription, Bybit("linear", (), unnamed=True), rejected)
    assert not any(rejected.blocks(topic, 0) for topic in topics)
    assert subscription.among(State.REJECTED) == []


@settings(deadline=None)
@given(some_topics, st.sets(st.sampled_from(TOPICS)), st.sets(st.sampled_from(TOPICS)), st.booleans())
def test_topics_that_bybit_lists_later_are_subscribed_when_they_may_be_requested_again(topics, known, later, option):
    rejected = RejectedTopics(retry_after=3600)
    bybit, subscription = Bybit("option" if option else "linear", known), make(topics, 10, rejected)
    settle(subscription, bybit, rejected, now=100)
    bybit.known |= later
    assert settle(subscription, bybit, rejected, now=159) == []
    settle(subscription, bybit, rejected, now=160)
    assert subscription.among(State.SUBSCRIBED) == [topic for topic in topics if topic in bybit.known]
    assert subscription.among(State.REJECTED) == [topic for topic in topics if topic not in bybit.known]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(TOPICS),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(("failTopics", "successTopics", "x")), inner),
    max_leaves=8,
)
members = {"success": json_values, "ret_msg": json_values, "data": json_values, "req_id": json_values | st.just("1")}


@settings(deadline=None, max_examples=300)
@given(st.fixed_dictionaries({}, optional=members), some_topics)
def test_any_json_object_leaves_each_topic_in_one_state(response, topics):
    subscription = make(topics, len(topics))
    subscription.request(topics)
    try:
        verdict = subscription.receive(response)
    except RequestRefused:
        assert len(topics) == 1
        return
    if verdict is None:
        assert subscription.among(State.REQUESTED) == topics
        assert subscription.pending
        return
    retry = [topic for part in verdict.retry for topic in part]
    assert sorted(verdict.accepted + verdict.rejected + verdict.deferred + retry) == sorted(topics)
    assert all(verdict.retry), "an empty list to be requested again"
    assert set(subscription.among(State.SUBSCRIBED)) == set(verdict.accepted)
    assert set(subscription.among(State.REJECTED)) == set(verdict.rejected)
    assert set(subscription.among(State.WANTED)) == {*verdict.deferred, *retry}


# Requests.


def test_a_request_holds_no_more_topics_than_bybit_takes_and_none_is_left_out():
    subscription = make(per_request=10)
    texts = subscription.request(subscription.due(0))
    assert [len(json.loads(text)["args"]) for text in texts] == [10, 10, 8]
    assert [topic for text in texts for topic in json.loads(text)["args"]] == TOPICS
    assert len({json.loads(text)["req_id"] for text in texts}) == 3


def test_a_request_names_a_topic_as_it_is_also_in_chinese():
    (text,) = make(["tickers.币安人生USDT"]).request(["tickers.币安人生USDT"])
    assert '"tickers.币安人生USDT"' in text


def test_without_topics_nothing_is_requested():
    assert make([]).due(0) == []
    assert make().request([]) == []
    assert not make().pending


def test_nothing_is_due_while_an_answer_is():
    subscription = make(["a", "b"], 1)
    subscription.request(["a"])
    assert subscription.due(0) == []
    subscription.receive({"req_id": "1", "success": True})
    assert subscription.due(0) == ["b"]


# Responses.

HANDLER = "error:handler not found"


@pytest.mark.parametrize(
    ("response", "topics", "verdict", "named"),
    [
        ({"success": True, "ret_msg": ""}, ["t.a", "t.b"], Verdict(["t.a", "t.b"]), True),
        (
            {"success": False, "ret_msg": f"{HANDLER},topic:t.b"},
            ["t.a", "t.b", "t.c"],
            Verdict(rejected=["t.b"], retry=[["t.a", "t.c"]], reason=f"{HANDLER},topic:t.b"),
            True,
        ),
        (
            {"success": False, "ret_msg": f"{HANDLER},topic:t.a"},
            ["t.a"],
            Verdict(rejected=["t.a"], reason=f"{HANDLER},topic:t.a"),
            True,
        ),
        (
            {"success": False, "ret_msg": "Invalid symbol :[t.BTCUSDT]"},
            ["t.BTCUSD", "t.BTCUSDT"],  # the one is the beginning of the other
            Verdict(rejected=["t.BTCUSDT"], retry=[["t.BTCUSD"]], reason="Invalid symbol :[t.BTCUSDT]"),
            True,
        ),
        (
            {"success": False, "ret_msg": HANDLER},
            ["t.a", "t.b", "t.c"],
            Verdict(retry=[["t.a"], ["t.b", "t.c"]], reason=HANDLER),
            False,
        ),
        ({"success": False, "ret_msg": HANDLER}, ["t.a"], Verdict(rejected=["t.a"], reason=HANDLER), False),
        ({"success": False}, ["t.a"], Verdict(rejected=["t.a"]), False),
        ({"success": "false"}, ["t.a"], Verdict(rejected=["t.a"]), False),
        (
            {"success": False, "ret_msg": "error:already subscribed,topic:t.a"},
            ["t.a", "t.b"],
            Verdict(["t.a"], retry=[["t.b"]]),
            True,
        ),
        ({"success": False, "ret_msg": "error:already subscribed,topic:t.a"}, ["t.a"], Verdict(["t.a"]), True),
        ({"success": False, "ret_msg": "error:already subscribed"}, ["t.a"], Verdict(["t.a"]), True),
        (
            {"success": False, "data": {"failTopics": ["t.b"], "successTopics": ["t.a"]}},
            ["t.a", "t.b"],
            Verdict(["t.a"], rejected=["t.b"], reason="failTopics"),
            True,
        ),
        (
            {"success": True, "data": {"failTopics": ["t.b"], "successTopics": ["t.a"]}},
            ["t.a", "t.b"],
            Verdict(["t.a"], rejected=["t.b"], reason="failTopics"),
            True,
        ),
        ({"success": True, "data": {"failTopics": [], "successTopics": ["t.a"]}}, ["t.a"], Verdict(["t.a"]), True),
        ({"success": True, "data": {"failTopics": ["t.z"]}}, ["t.a"], Verdict(["t.a"]), True),
    ],
)
def test_a_response_accepts_or_rejects_topics(response, topics, verdict, named):
    assert judge(response, topics) == (verdict, named)


def test_the_rejected_topic_is_found_at_the_end_of_a_reason_of_10000_characters():
    subscription = make(["t.a", "t.b"])
    reason = "x" * 10_000 + ",topic:t.b"
    verdict = answer(subscription, ["t.a", "t.b"], ret_msg=reason)
    assert verdict == Verdict(rejected=["t.b"], retry=[["t.a"]], reason=reason)


def test_a_response_without_an_id_answers_the_oldest_request():
    subscription = make(["a", "b"], 1)
    subscription.request(["a", "b"])
    assert subscription.receive({"success": True}).accepted == ["a"]
    assert subscription.receive({"success": True}).accepted == ["b"]
    assert subscription.receive({"success": True}) is None


@pytest.mark.parametrize("req_id", ["99", "x", 1, 1.0, ["1"], {"1": 1}, True])
def test_a_response_to_a_request_of_nobody_changes_nothing(req_id):
    subscription = make(["a"])
    subscription.request(["a"])
    assert subscription.receive({"req_id": req_id, "success": True}) is None
    assert subscription.among(State.REQUESTED) == ["a"]
    assert subscription.pending


def test_a_response_that_comes_twice_counts_once():
    subscription = make(["a", "b"], 1)
    subscription.request(["a", "b"])
    assert subscription.receive({"req_id": "1", "success": True})
    assert subscription.receive({"req_id": "1", "success": False, "ret_msg": "a"}) is None
    assert subscription.among(State.SUBSCRIBED) == ["a"]


# Nothing is accepted yet.


def test_a_topic_rejected_without_its_name_is_deferred_until_another_is_accepted():
    subscription = make(["bad", "good"], 1)
    subscription.request(["bad", "good"])
    assert subscription.receive({"req_id": "1", "success": False, "ret_msg": "no"}) == Verdict(deferred=["bad"])
    assert subscription.receive({"req_id": "2", "success": True}).accepted == ["good"]
    assert subscription.due(0) == ["bad"]
    assert answer(subscription, ["bad"], ret_msg="no") == Verdict(rejected=["bad"], reason="no")


def test_a_topic_rejected_by_its_name_is_rejected_at_once():
    subscription = make(["bad"])
    assert answer(subscription, ["bad"], ret_msg="unknown: bad").rejected == ["bad"]


def test_a_connection_that_has_topics_is_not_refused_because_of_another():
    subscription = make(["good", "bad"])
    answer(subscription, ["good"], success=True)
    assert answer(subscription, ["bad"], ret_msg="no").rejected == ["bad"]


# What the process remembers.


def test_a_rejected_topic_is_blocked_for_the_time_of_its_retry():
    rejected = RejectedTopics(retry_after=60)
    assert not rejected.blocks("a", 0)
    assert rejected.add("a", 100)
    assert rejected.blocks("a", 100)
    assert rejected.blocks("a", 159.9)
    assert not rejected.blocks("a", 160)
    assert not rejected.blocks("b", 100)


def test_a_topic_that_is_rejected_again_and_again_is_asked_for_less_and_less_often():
    """Soon at first: Bybit's list has a new symbol before each of its WebSocket servers knows it."""
    rejected = RejectedTopics(retry_after=300)
    now, pauses = 0.0, []
    for _ in range(4):
        rejected.add("a", now)
        rejected.add("a", now + 1)  # by another stream, which had asked at the same time
        pauses.append(next(pause for pause in range(1000) if not rejected.blocks("a", now + pause)))
        now += pauses[-1]
    assert pauses == [60, 120, 240, 300]
    rejected.forget("a")
    rejected.add("a", now)
    assert not rejected.blocks("a", now + 60)


def test_a_rejection_is_new_once_until_the_topic_is_accepted():
    rejected = RejectedTopics(retry_after=60)
    assert rejected.add("a", 0)
    assert not rejected.add("a", 100)
    assert rejected.blocks("a", 159)
    assert rejected.forget("a")
    assert not rejected.forget("a")
    assert not rejected.blocks("a", 100)
    assert rejected.add("a", 200)


def test_who_waits_for_a_topic_is_told_when_its_rejection_is_forgotten():
    told = []
    rejected = RejectedTopics(forgotten=lambda topic: told.append((topic, rejected.blocks(topic, 0))))
    rejected.add("a", 0)
    rejected.forget("b")
    assert told == []
    rejected.forget("a")
    rejected.forget("a")
    assert told == [("a", False)], "after it is forgotten"


def test_the_next_connection_does_not_ask_for_a_rejected_topic():
    rejected = RejectedTopics(retry_after=60)
    rejected.add("b", 0)
    subscription = make(["a", "b", "c"], rejected=rejected)
    assert subscription.due(59) == ["a", "c"]
    assert subscription.among(State.REJECTED) == ["b"]
    assert subscription.due(60) == ["a", "b", "c"]


def test_a_topic_that_another_connection_got_is_requested_at_once():
    rejected = RejectedTopics(retry_after=60)
    rejected.add("a", 0)
    subscription = make(["a"], rejected=rejected)
    assert subscription.due(1) == []
    rejected.forget("a")
    assert subscription.due(1) == ["a"]


# The first message.


def message(topic):
    return f'{{"topic":"{topic}","type":"snapshot"}}'.encode()


def test_a_snapshot_is_awaited_from_the_request_on_for_topics_that_begin_with_one():
    subscription = make(["orderbook.50.A", "tickers.A", "publicTrade.A"], snapshot_first=SNAPSHOT_FIRST)
    assert subscription.awaiting_snapshot == set()
    subscription.request(subscription.due(0))
    assert subscription.awaiting_snapshot == {b"orderbook.50.A", b"tickers.A"}


def test_data_before_the_answer_counts_as_the_first_message():
    subscription = make(["orderbook.50.A", "tickers.币"], snapshot_first=SNAPSHOT_FIRST)
    subscription.request(subscription.due(0))
    subscription.seen([message("tickers.币"), message("tickers.other"), b"", b"{}", b"no JSON"])
    assert subscription.awaiting_snapshot == {b"orderbook.50.A"}
    subscription.receive({"req_id": "1", "success": True})
    assert subscription.awaiting_snapshot == {b"orderbook.50.A"}
    subscription.seen([message("orderbook.50.A")])
    assert subscription.awaiting_snapshot == set()


def test_no_snapshot_is_awaited_of_a_rejected_topic():
    subscription = make(["tickers.A", "tickers.B"], snapshot_first=SNAPSHOT_FIRST)
    answer(subscription, ["tickers.A", "tickers.B"], ret_msg="unknown tickers.B")
    assert subscription.awaiting_snapshot == {b"tickers.A"}


def test_without_such_topics_no_snapshot_is_awaited():
    subscription = make(["publicTrade.A"], snapshot_first=())
    subscription.request(["publicTrade.A"])
    assert subscription.awaiting_snapshot == set()


# What is wanted changes.


def test_what_is_wanted_later_is_requested_and_what_is_wanted_twice_is_not():
    subscription, bybit = make(["t.a"]), Bybit("linear", ["t.a", "t.b"])
    assert exchange_of(subscription, bybit) == [("subscribe", ["t.a"])]
    subscription.want(["t.a", "t.b", "t.b"])
    assert exchange_of(subscription, bybit) == [("subscribe", ["t.b"])]
    assert subscription.among(State.SUBSCRIBED) == ["t.a", "t.b"]


def test_what_is_released_is_unsubscribed_and_forgotten_once_bybit_has_acknowledged():
    subscription, bybit = make(["t.a", "t.b"]), Bybit("linear", ["t.a", "t.b"])
    exchange_of(subscription, bybit)
    subscription.release(["t.a", "t.unknown"])
    (text,) = subscription.requests(0)
    assert json.loads(text) == {"req_id": "2", "op": "unsubscribe", "args": ["t.a"]}
    assert subscription.among(State.UNSUBSCRIBING) == ["t.a"]
    assert subscription.carried == ["t.b"]
    assert subscription.requests(0) == []
    assert subscription.receive(bybit.answer(text)) == Verdict()
    assert subscription.states == {"t.b": State.SUBSCRIBED}


def test_what_had_been_accepted_and_is_gone_is_told_of_once():
    rejected, bybit = RejectedTopics(), Bybit("linear", ["t.a", "t.b", "t.d"])
    subscription = make(["t.a", "t.b", "t.c", "t.d"], rejected=rejected)
    settle(subscription, bybit, rejected)
    subscription.release(["t.a", "t.c"])
    subscription.renew(["t.b"])
    assert (subscription.take_left(), subscription.parting, subscription.carried) == ([], ["t.a"], ["t.b", "t.d"])
    assert subscription.wanted == 2
    (text,) = subscription.requests(0)
    assert subscription.parting == ["t.a"]
    subscription.receive(bybit.answer(text))
    assert (subscription.take_left(), subscription.take_left(), subscription.parting) == (["t.a"], [], [])
    subscription.release(["t.b"])  # while it is renewed: unsubscribed, and to be requested again
    assert subscription.take_left() == ["t.b"]
    subscription.want(["t.e"])
    subscription.release(["t.e"])
    assert subscription.take_left() == [], "it never was"


def test_what_is_released_before_it_was_requested_leaves_at_once():
    rejected = RejectedTopics()
    rejected.add("t.b", 0)
    subscription = make(["t.a", "t.b"], rejected=rejected)
    subscription.due(0)
    assert subscription.among(State.REJECTED) == ["t.b"]
    subscription.release(["t.a", "t.b"])
    assert subscription.states == {}


@pytest.mark.parametrize("option", [False, True])
def test_what_is_renewed_is_requested_again_only_after_its_unsubscription_was_acknowledged(option):
    subscription, bybit = make(["t.a", "t.b"]), Bybit("option" if option else "linear", ["t.a", "t.b"])
    exchange_of(subscription, bybit)
    subscription.renew(["t.a"])
    subscription.renew(["t.a"])
    (text,) = subscription.requests(0)
    assert json.loads(text)["op"] == "unsubscribe"
    assert subscription.requests(0) == []
    subscription.receive(bybit.answer(text))
    assert bybit.subscribed == {"t.b"}
    assert subscription.carried == ["t.a", "t.b"], "all along"
    (text,) = subscription.requests(0)
    assert json.loads(text)["op"] == "subscribe"
    assert subscription.receive(bybit.answer(text)) == Verdict(["t.a"], renewed=["t.a"])
    assert exchange_of(subscription, bybit) == []


def test_a_snapshot_is_awaited_of_what_is_renewed():
    subscription, bybit = make(["tickers.A"], snapshot_first=SNAPSHOT_FIRST), Bybit("linear", ["tickers.A"])
    exchange_of(subscription, bybit)
    subscription.seen([message("tickers.A")])
    subscription.renew(["tickers.A"])
    exchange_of(subscription, bybit)
    assert subscription.awaiting_snapshot == {b"tickers.A"}


@pytest.mark.parametrize("seen", [False, True])
def test_a_renewal_before_the_answer_waits_for_it_unless_the_snapshot_is_still_to_come(seen):
    subscription, bybit = make(["tickers.A"], snapshot_first=SNAPSHOT_FIRST), Bybit("linear", ["tickers.A"])
    (text,) = subscription.requests(0)
    subscription.seen([message("tickers.A")] * seen)
    subscription.renew(["tickers.A"])
    subscription.receive(bybit.answer(text))
    assert [op for op, _ in exchange_of(subscription, bybit)] == ["unsubscribe", "subscribe"] * seen


@pytest.mark.parametrize("asked", [False, True])
def test_what_is_wanted_again_while_it_leaves_gets_a_new_snapshot(asked):
    subscription, bybit = make(["t.a"]), Bybit("linear", ["t.a"])
    exchange_of(subscription, bybit)
    subscription.release(["t.a"])
    texts = subscription.requests(0) if asked else []
    subscription.want(["t.a"])
    for text in texts:
        subscription.receive(bybit.answer(text))
    assert exchange_of(subscription, bybit)[-1] == ("subscribe", ["t.a"])
    assert subscription.among(State.SUBSCRIBED) == ["t.a"]


def test_a_release_takes_the_place_of_a_renewal_and_not_the_other_way_round():
    subscription, bybit = make(["t.a"]), Bybit("linear", ["t.a"])
    exchange_of(subscription, bybit)
    subscription.renew(["t.a"])
    subscription.release(["t.a"])
    subscription.renew(["t.a"])
    assert exchange_of(subscription, bybit) == [("unsubscribe", ["t.a"])]
    assert subscription.states == {}


@pytest.mark.parametrize("known", [False, True])
def test_what_is_released_before_its_answer_leaves_whatever_the_answer(known):
    subscription, bybit = make(["t.a", "t.b"]), Bybit("linear", ["t.b", "t.a"] if known else ["t.b"])
    (text,) = subscription.requests(0)
    subscription.release(["t.a"])
    verdict = subscription.receive(bybit.answer(text))
    assert verdict.retry == ([] if known else [["t.b"]])
    for topics in verdict.retry:
        (text,) = subscription.request(topics)
        subscription.receive(bybit.answer(text))
    assert exchange_of(subscription, bybit) == ([("unsubscribe", ["t.a"])] if known else [])
    assert subscription.states == {"t.b": State.SUBSCRIBED}


def test_what_bybit_refuses_to_unsubscribe_is_taken_for_unsubscribed():
    """It may have lost the subscription, which is why the topic fell silent. If not, it says so at the next request."""
    subscription, bybit = make(["t.a", "t.b"]), Bybit("linear", ["t.a", "t.b"], keeps=["t.a"])
    exchange_of(subscription, bybit)
    subscription.renew(["t.a"])
    subscription.release(["t.b"])
    exchange_of(subscription, bybit)
    assert subscription.states == {"t.a": State.SUBSCRIBED}


def test_a_renewed_topic_that_bybit_no_longer_knows_is_rejected():
    subscription, bybit = make(["t.a", "t.b"]), Bybit("linear", ["t.a", "t.b"])
    exchange_of(subscription, bybit)
    bybit.known.remove("t.a")
    subscription.renew(["t.a"])
    for _ in range(2):
        (text,) = subscription.requests(0)
        verdict = subscription.receive(bybit.answer(text))
    assert (verdict.rejected, subscription.carried) == (["t.a"], ["t.b"])


def test_a_renewed_topic_that_another_connection_learns_to_be_unknown_is_carried_no_more():
    rejected = RejectedTopics()
    subscription, bybit = make(["t.a", "t.b"], rejected=rejected), Bybit("linear", ["t.a", "t.b"])
    exchange_of(subscription, bybit)
    subscription.renew(["t.a"])
    (text,) = subscription.requests(0)
    subscription.receive(bybit.answer(text))
    rejected.add("t.a", 0)
    assert subscription.requests(1) == []
    assert (subscription.carried, subscription.among(State.REJECTED)) == (["t.b"], ["t.a"])


def test_what_sends_before_its_acknowledgement_flows():
    subscription = make(["t.a", "t.b", "orderbook.1.c"], snapshot_first=SNAPSHOT_FIRST)
    subscription.requests(0)
    assert subscription.flowing == []
    subscription.seen([message("orderbook.1.c"), message("t.a"), message("t.z"), b"\xff" * 20])
    assert (subscription.flowing, subscription.carried) == (["orderbook.1.c", "t.a"], [])
    subscription.renew(["orderbook.1.c"])
    assert subscription.flowing == ["t.a"], "the other one is wrong already"
    subscription.receive({"req_id": "1", "op": "subscribe", "success": True})
    assert subscription.flowing == subscription.carried == ["t.a", "t.b", "orderbook.1.c"], "each once"


def test_what_is_rejected_flows_no_more():
    subscription = make(["t.a"])
    subscription.requests(0)
    subscription.seen([message("t.a")])
    response = {"req_id": "1", "op": "subscribe", "success": False, "ret_msg": "no topic t.a"}
    assert subscription.receive(response).rejected == ["t.a"]
    assert subscription.flowing == []


def test_an_answer_to_another_kind_of_request_is_none_of_ours():
    subscription = make(["a"])
    subscription.requests(0)
    assert subscription.receive({"req_id": "1", "op": "unsubscribe", "success": True}) is None
    assert subscription.pending


def test_no_more_is_requested_than_a_connection_carries_until_others_have_left():
    topics = [f"orderbook.50.{number:07}USDT" for number in range(1000)]
    subscription, bybit = make(topics, 200), Bybit("linear", topics)
    exchange_of(subscription, bybit)
    first = subscription.among(State.SUBSCRIBED)
    assert first == topics[: len(first)]
    assert MAX_TOPIC_CHARACTERS - 30 < len(json.dumps(first, separators=(",", ":"))) <= MAX_TOPIC_CHARACTERS
    subscription.release(topics[:10])
    exchange_of(subscription, bybit)
    assert subscription.among(State.SUBSCRIBED) == topics[10 : len(first) + 10]
    assert subscription.among(State.WANTED) == topics[len(first) + 10 :]


class Life(RuleBasedStateMachine):
    """A connection whose plan wants, releases and renews at any moment, and a Bybit that answers when it likes."""

    @initialize(
        category=st.sampled_from(("linear", "option")),
        known=st.sets(st.sampled_from(TOPICS), min_size=1),
        per_request=st.integers(1, 5),
    )
    def connect(self, category, known, per_request):
        self.rejected = RejectedTopics()
        self.bybit = Bybit(category, known)
        self.subscription = make([], per_request, self.rejected, SNAPSHOT_FIRST)
        self.outbox, self.wanted = deque(), set()
        self.told = set()  # topics that consumers believe to be subscribed

    topics = st.lists(st.sampled_from(TOPICS[:8]), min_size=1, max_size=4)

    @rule(topics=topics)
    def want(self, topics):
        self.subscription.want(topics)
        self.wanted.update(topics)

    @rule(topics=topics)
    def release(self, topics):
        self.subscription.release(topics)
        self.wanted.difference_update(topics)
        self.takes_left()

    @rule(topics=topics)
    def renew(self, topics):
        self.subscription.renew(topics)

    @rule(topics=topics)
    def data(self, topics):
        self.subscription.seen([message(topic) for topic in topics])

    @rule()
    def ask(self):
        texts = self.subscription.requests(0)
        assert not (texts and self.outbox), "asked while an answer was due"
        self.outbox += texts

    @precondition(lambda self: self.outbox)
    @rule()
    def answer(self):
        verdict = self.subscription.receive(self.bybit.answer(self.outbox.popleft()))
        for topic in verdict.rejected:
            self.rejected.add(topic, 0)
        new = set(verdict.accepted) - set(verdict.renewed)
        assert self.told.isdisjoint(new)
        assert self.told.issuperset(verdict.renewed)
        self.told = (self.told | new) - set(verdict.rejected)
        self.takes_left()
        self.outbox += [text for topics in verdict.retry for text in self.subscription.request(topics)]

    def takes_left(self):
        left = self.subscription.take_left()
        assert self.told.issuperset(left)
        assert len(left) == len(set(left))
        self.told.difference_update(left)

    @invariant()
    def wanted_topics_have_a_state(self):
        assert self.wanted <= self.subscription.states.keys()
        assert self.wanted.issuperset(self.subscription.carried)
        assert self.subscription.wanted == len(self.wanted)
        assert self.subscription.pending == bool(self.outbox)

    @invariant()
    def what_consumers_were_told_of_is_carried_or_leaving(self):
        assert self.told == {*self.subscription.carried, *self.subscription.parting}
        flowing = self.subscription.flowing
        assert self.wanted >= set(flowing) >= set(self.subscription.carried)
        assert len(flowing) == len(set(flowing))

    def teardown(self):
        if not hasattr(self, "outbox"):
            return
        for _ in range(100):
            while self.outbox:
                self.answer()
            self.ask()
        known = self.wanted & self.bybit.known
        assert self.told == known
        assert set(self.subscription.states) == self.wanted, "released topics are gone"
        assert set(self.subscription.among(State.SUBSCRIBED)) == self.bybit.subscribed == known
        assert set(self.subscription.among(State.REJECTED)) == self.wanted - known
        assert set(self.subscription.carried) == known


Life.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestLife = Life.TestCase
