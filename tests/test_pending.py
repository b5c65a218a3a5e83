"""What a standby keeps: after a takeover consumers have every message, in order, and only few of them twice."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.redis import pending as module
from relay.redis.lines import EARLY, SHIFT, identify
from relay.redis.pending import OVERHEAD, Pending

CHANNEL = "stream:bybit_trades"
START = 1_700_000_000_000


def frame(topic, ts, data):
    """As Bybit sends it; `data` is any JSON."""
    return f'{{"topic":"{topic}","type":"snapshot","ts":{ts},"data":{json.dumps(data)}}}'.encode()


def command(message):
    return b"PUBLISH " + message


class Kept(Pending):
    """A Pending whose commands can be told from its messages."""

    def __init__(self, limit=1 << 30):
        super().__init__(limit)

    def arrives(self, *messages, channel=CHANNEL, now=0):
        for message in messages:
            self.add(command(message), channel, message, now)

    def published(self, *messages, channel=CHANNEL, now=0):
        for message in messages:
            self.strike(channel, message, now)

    def event(self, text, *topics, now=0):
        self.add_event(text, topics, now)

    def taken(self):
        return [taken.removeprefix(b"PUBLISH ") for taken in self.take()[0]]


# The laws of a takeover.


class Topic:
    """One topic's sequence of items, as it arrives on two connections."""

    def __init__(self, name, gaps, own, leaders):
        self.name = name
        times = [START]
        for gap in gaps:
            times.append(times[-1] + gap)
        self.own = list(self._frames(times, *own))
        self.leaders = list(self._frames(times, *leaders))
        self.times = times
        self.arrived = self.published = 0  # frames

    def _frames(self, times, shift, cuts):
        """Each frame holds one or more items and has the time of the last, by the clock of its connection."""
        begin = 0
        for number in range(len(times)):
            if number in cuts or number == len(times) - 1:
                yield frame(self.name, times[number] + shift, list(range(begin, number + 1)))
                begin = number + 1


def items(messages, topic):
    found = [json.loads(message) for message in messages]
    return [item for message in found if message["topic"] == topic for item in message["data"]]


ALL = frozenset(range(100))
SAME = st.just(((0, ALL), (0, ALL)))
SHIFTS = st.integers(0, SHIFT)
SHIFTED = st.builds(lambda shift: ((0, ALL), (shift, ALL)), SHIFTS) | st.builds(
    lambda shift: ((shift, ALL), (0, ALL)), SHIFTS
)
CUTS = st.frozensets(st.integers(0, 30))
CUT_ANEW = st.builds(lambda a, b, shift: ((0, a), (shift, b)), CUTS, CUTS, SHIFTS) | st.builds(
    lambda a, b, shift: ((shift, a), (0, b)), CUTS, CUTS, SHIFTS
)


@st.composite
def topics(draw, connections):
    number = draw(st.integers(1, 3))
    gaps = st.lists(st.integers(0, 900), max_size=30)
    return [Topic(f"publicTrade.{name}", draw(gaps), *draw(connections)) for name in "ABC"[:number]]


STEPS = st.lists(st.tuples(st.sampled_from("olo"), st.integers(0, 2)), max_size=150)


def run(found, steps, joined=0):
    """Lets messages arrive and be published as `steps` say, then takes over.

    Returns what the leader published and what this instance had kept. joined: the step at which it begins to see what
    the leader publishes.
    """
    kept = Kept()
    published = []
    for number, (who, index) in enumerate(steps):
        topic = found[index % len(found)]
        if who == "o" and topic.arrived < len(topic.own):
            kept.arrives(topic.own[topic.arrived])
            topic.arrived += 1
        elif who == "l" and topic.published < len(topic.leaders):
            message = topic.leaders[topic.published]
            published.append(message)
            if number >= joined:
                kept.published(message)
            topic.published += 1
        assert len(kept) == len(kept._order) - sum(not entry.command for entry in kept._order)
    return published, kept.taken()


def items_in_time(found, published, kept):
    """What consumers get of each topic: from the leader, at the takeover, and what arrives after it."""
    for topic in found:
        yield items(published, topic.name), items(kept, topic.name), items(topic.own[topic.arrived :], topic.name)


def are_in_order(received):
    firsts = list(dict.fromkeys(received))
    return firsts == sorted(firsts)


@pytest.mark.parametrize("connections", [SAME, SHIFTED, CUT_ANEW], ids=["same", "shifted", "cut anew"])
def test_after_a_takeover_every_message_is_there_in_order(connections):
    @given(topics(connections), STEPS, st.integers(0, 150))
    def holds(found, steps, joined):
        published, kept = run(found, steps, joined)
        for topic, (first, taken, late) in zip(found, items_in_time(found, published, kept), strict=True):
            assert set(first + taken + late) == set(range(len(topic.times)))
            assert are_in_order(first + taken + late)
            assert taken + late == sorted(taken + late)

    holds()


@pytest.mark.parametrize("connections", [SAME, SHIFTED], ids=["same", "shifted"])
def test_nothing_is_published_twice_where_frames_are_equal_but_for_their_ts(connections):
    @given(topics(connections), STEPS)
    def holds(found, steps):
        published, kept = run(found, steps)
        for first, taken, _ in items_in_time(found, published, kept):
            assert not set(first) & set(taken)

    holds()


@given(topics(CUT_ANEW), STEPS)
def test_where_frames_are_cut_differently_little_more_than_a_second_is_published_twice(found, steps):
    kept, last = Kept(), {}
    for who, index in steps:
        topic = found[index % len(found)]
        if who == "o" and topic.arrived < len(topic.own):
            kept.arrives(topic.own[topic.arrived])
            topic.arrived += 1
        elif who == "l" and topic.published < len(topic.leaders):
            kept.published(topic.leaders[topic.published])
            last[topic.name] = json.loads(topic.leaders[topic.published])["ts"]
            topic.published += 1
    for message in map(json.loads, kept.taken()):
        # A second of SHIFT: of messages that may not be the same, and of clocks that differ.
        assert message["ts"] >= last.get(message["topic"], 0) - SHIFT


@given(topics(SAME), STEPS, st.sets(st.integers(0, 30)))
def test_a_hole_of_our_own_costs_nothing_that_arrived(found, steps, missing):
    for topic in found:
        topic.own = [message for number, message in enumerate(topic.own) if number not in missing]
    published, kept = run(found, steps)
    for topic, (first, taken, late) in zip(found, items_in_time(found, published, kept), strict=True):
        assert set(first + taken + late) >= set(range(len(topic.times))) - missing
        assert are_in_order(first + taken + late)


@given(topics(SAME), STEPS, st.sets(st.integers(0, 30)))
def test_what_the_leader_missed_is_there_unless_it_published_something_newer(found, steps, missing):
    for topic in found:
        topic.leaders = [message for number, message in enumerate(topic.leaders) if number not in missing]
    published, kept = run(found, steps)
    for topic, (first, taken, late) in zip(found, items_in_time(found, published, kept), strict=True):
        assert set(taken + late) >= set(range(max(first, default=-1) + 1, len(topic.times)))
        assert taken + late == sorted(taken + late)


@given(st.lists(st.sampled_from("olo")), st.lists(st.integers(0, 2), min_size=40, max_size=40))
def test_texts_that_repeat_are_counted(steps, texts):
    """As orderbook.1 does every three seconds, or messages of a callback of one's own, which have no ts."""
    kept, arrived, published = Kept(), 0, 0
    for who in steps:
        if who == "o" and arrived < len(texts):
            kept.arrives(b"%d" % texts[arrived])
            arrived += 1
        elif who == "l" and published < len(texts):
            kept.published(b"%d" % texts[published])
            published += 1
    assert kept.taken() == [b"%d" % text for text in texts[published:arrived]]


@given(
    st.lists(st.tuples(st.sampled_from("osbept"), st.integers(0, 3), st.integers(0, 9)), max_size=80),
    st.integers(OVERHEAD, 8 * OVERHEAD),
)
def test_every_entry_is_kept_struck_out_dropped_or_taken(steps, limit):
    kept = Kept(limit)
    entries = taken = lost = 0
    for now, (what, index, number) in enumerate(steps):
        message = frame(f"orderbook.{index}", START + 300 * number, number)
        if what == "o":
            kept.arrives(message, now=now)
        elif what == "b":
            kept.put_before(command(message), CHANNEL, identify(message), now)
        elif what == "e":
            kept.event(b"event", f"orderbook.{index}", f"orderbook.{number}", now=now)
        elif what == "s":
            kept.published(message, now=now)
        elif what == "p":
            kept.prune(now - number)
        else:
            commands, missing = kept.take()
            taken += len(commands)
            lost += missing.total()
            assert not kept._events
        entries += what in "obe"
        assert entries == len(kept) + kept.struck + kept.overflowed + taken
        assert kept.bytes <= limit
        assert lost <= kept.overflowed
        alive = [entry for entry in kept._order if entry.command]
        assert len(kept) == len(alive)
        assert kept.bytes == sum(len(entry.command) + OVERHEAD for entry in alive)
        assert [entry.serial for entry in alive] == sorted(entry.serial for entry in alive)
        of_lines = [entry for line in kept._lines.values() for entry in line.entries]
        assert sorted(map(id, of_lines)) == sorted(id(entry) for entry in alive if entry.line)
        for line in kept._lines.values():
            assert Counter(line.keys) == Counter(entry.key for entry in line.entries)


# One rule at a time.


@pytest.mark.parametrize(
    ("message", "topic", "rest", "position"),
    [
        (b'{"topic":"a.b","type":"delta","ts":1700000000123,"data":1}', b"a.b", b"17", 1700000000123),
        (b'{"topic":"tickers.A","data":{},"cs":1,"ts":1700000000123}', b"tickers.A", b"17", 1700000000123),
        (b'{"id":"x","topic":"publicTrade.BTC","ts":1700000000123}', b"publicTrade.BTC", b"17", 1700000000123),
        (b'{"topic":"a","ts":17000,"data":1}', b"a", b"", 0),
        (b'{"topic":"a","ts":"1700000000123"}', b"a", b"", 0),
        (b'{"topic":"a","ts":170000000012', b"a", b"", 0),
        (b'{"topic":"a"}', b"a", b"", 0),
        (b"text", b"", b"", 0),
        (b"", b"", b"", 0),
    ],
)
def test_how_a_message_is_identified(message, topic, rest, position):
    found, key, at = identify(message)
    assert (found, at) == (topic, position)
    other = message.replace(b"1700000000123", b"1699999999999") if position else message
    assert identify(other)[1] == key
    assert identify(message + b" ")[1] != key


@pytest.mark.parametrize("message", [b"text", b'{"topic":"a"}', frame("a", START, 1)])
def test_a_message_is_struck_out_in_its_own_channel_only(message):
    kept = Kept()
    kept.arrives(message, channel="one")
    kept.published(message, channel="two")
    assert len(kept) == 1
    kept.published(message, channel="one")
    assert (len(kept), kept.bytes) == (0, 0)


def test_all_topics_are_taken_in_order_of_arrival():
    kept = Kept()
    messages = [frame(f"t{number % 3}", START + number, number) for number in range(30)]
    kept.arrives(*messages)
    kept.published(messages[4])
    assert kept.taken() == [message for number, message in enumerate(messages) if number not in (1, 4)]
    assert kept.taken() == []


def test_what_is_put_before_is_older_than_all_else():
    kept = Kept()
    messages = [frame(f"t{number % 2}", START + number, number) for number in range(8)]
    kept.arrives(*messages[5:])
    for message in reversed(messages[:5]):
        kept.put_before(command(message), CHANNEL, identify(message), 0)
    kept.published(messages[2])
    assert kept.taken() == [message for number, message in enumerate(messages) if number not in (0, 2)]


def test_a_message_that_the_leader_had_first_is_not_kept_nor_is_anything_older():
    kept = Kept()
    first, second, third = (frame("a", START + number, number) for number in range(3))
    kept.arrives(first)
    kept.published(second)
    kept.arrives(second, third)
    assert kept.taken() == [third]


@pytest.mark.parametrize("leader_is_first", [True, False])
def test_a_message_that_may_be_another_goes_when_the_leader_is_a_second_past_it(leader_is_first):
    """Trades that are cut into other frames on our connection."""
    kept = Kept()
    ours = [frame("a", START + SHIFT - after, [after]) for after in (2, 1, 0)]
    if leader_is_first:
        kept.published(frame("a", START + 2 * SHIFT - 1, [2, 1, 0]))
        kept.arrives(*ours)
    else:
        kept.arrives(*ours)
        kept.published(frame("a", START + 2 * SHIFT - 1, [2, 1, 0]))
    assert kept.taken() == ours[1:]


def test_what_is_older_than_a_copy_of_ours_is_no_longer_expected():
    """We missed a message that the leader had; one that reads the same comes later."""
    kept = Kept()
    kept.published(b"same")
    kept.arrives(b"other")
    kept.published(b"other")
    kept.arrives(b"same")
    assert kept.taken() == [b"same"]


def test_a_message_of_the_leader_is_remembered_for_some_seconds():
    kept = Kept()
    kept.published(b"1", now=0)
    kept.published(b"2", now=EARLY)
    kept.arrives(b"1")
    kept.published(b"3", now=EARLY + 1)
    kept.arrives(b"2")
    assert len(kept) == 0
    kept.published(b"4", now=10_000)
    kept.published(b"5", now=10_001 + EARLY)
    kept.arrives(b"4")
    assert kept.taken() == [b"4"]


def test_a_slow_connection_of_our_own_fills_nothing():
    """Our copies come so late that they are no longer remembered, and all of them are cut differently."""
    kept = Kept()
    for number in range(100):
        kept.published(frame("a", START + 100 * number + 20_000, [number]), now=100 * number)
        kept.arrives(frame("a", START + 100 * number, number), now=100 * number)
    assert len(kept) == 0
    assert kept.struck == 100


def test_a_connection_whose_clock_is_far_off_costs_nothing_where_texts_are_equal():
    kept = Kept()
    kept.arrives(*(frame("a", START + 500 * number, number) for number in range(10)))
    kept.published(*(frame("a", START + 500 * number + 60_000, number) for number in range(3)))
    assert kept.taken() == [frame("a", START + 500 * number, number) for number in range(3, 10)]


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_EARLY", 5)
    monkeypatch.setattr(module, "MAX_TOPICS", 3)
    kept = Kept()
    for number in range(20):
        kept.published(frame("a", START + number, number), frame(f"t{number}", START, number))
    assert len(kept._lines) == 3
    assert len(kept._lines[CHANNEL, b"a"].early) == 5


def test_a_topic_that_is_never_struck_out_does_not_make_the_others_grow():
    kept = Kept()
    kept.arrives(b"never")
    for number in range(10_000):
        message = frame("a", START + number, number)
        kept.arrives(message)
        kept.published(message)
    assert len(kept) == 1
    assert len(kept._order) < 1100


# Events.


def test_an_event_goes_with_the_last_of_its_topics():
    kept = Kept()
    kept.arrives(frame("a", START, 1))
    kept.event(b"gone", "a", "b")
    kept.arrives(frame("a", START + 1, 2), frame("b", START, 1))
    kept.event(b"stays", "a", "b")
    kept.published(frame("a", START, 1))
    assert len(kept) == 4
    kept.published(frame("a", START + 1, 2))
    assert len(kept) == 3
    kept.published(frame("b", START, 1))
    assert kept.take()[0] == [b"stays"]


def test_an_event_is_overtaken_by_our_copy_of_what_the_leader_had_first():
    kept = Kept()
    kept.published(frame("a", START, 1))
    kept.event(b"gone", "a")
    kept.arrives(frame("a", START, 1))
    assert len(kept) == 0


def test_an_event_without_topics_is_left_out():
    kept = Kept()
    kept.event(b"redis_reconnected")
    kept.put_event_before(b"started", [], 0)
    assert kept.take()[0] == []


def test_an_event_that_is_put_before_is_the_first():
    kept = Kept()
    kept.event(b"second", "a")
    kept.put_event_before(b"first", ["a"], 0)
    kept.arrives(b"third")
    assert kept.take()[0] == [b"first", b"second", command(b"third")]


# The limit, and what is old.


def test_the_oldest_go_when_the_limit_is_reached_and_count_as_lost_by_channel():
    kept = Kept(limit=3 * (OVERHEAD + 9))
    kept.arrives(b"1", b"2", channel="one")
    kept.event(b"event....", "a")
    kept.arrives(b"3", b"4", channel="two")
    commands, lost = kept.take()
    assert commands == [b"event....", command(b"3"), command(b"4")]
    assert (lost, kept.overflowed) == ({"one": 2}, 2)


def test_what_the_leader_is_past_is_not_lost():
    kept = Kept(limit=2 * (OVERHEAD + 9))
    kept.arrives(b"1", b"2", b"3", b"4")
    kept.published(b"3")
    assert kept.take() == ([command(b"4")], {})


def test_what_arrived_before_a_time_is_pruned():
    kept = Kept()
    for now in range(10):
        kept.arrives(b"%d" % now, now=now)
        kept.event(b"event", "a", now=now)
    kept.published(b"4")
    kept.prune(7)
    assert kept.take()[0] == [command(b"7"), b"event", command(b"8"), b"event", command(b"9"), b"event"]


def test_an_event_of_a_topic_without_messages_does_not_count_as_being_behind():
    kept = Kept()
    kept.event(b"rejected", "publicTrade.NOPE", now=1)
    assert (len(kept), kept.since) == (1, None)
    kept.arrives(frame("publicTrade.BTCUSDT", START, []), now=5)
    assert (len(kept), kept.since) == (2, 5)
