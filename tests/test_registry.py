"""relay/redis/registry.py: who lives, who may take over, whom to cut, by the reader's own clock only."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.redis.registry import (
    FRESH,
    LEADER,
    OUTDATED,
    PATIENCE,
    SILENCE,
    STANDBY,
    UP_TO_DATE,
    Entry,
    Registry,
    all_subscribed,
    fingerprint,
    one_is_down,
    other_topics,
    same_name,
    something_else,
)
from relay.stats import StreamStats

BEAT = 0.5
TOPICS = "linear, stream:bybit, 4 topics (0123abcd)"
ENTRY = Entry(7, "127.0.0.1:5000", STANDBY, 3, True, 0, TOPICS, 1)


class World:
    """A registry as instance "me" sees it, on a clock that starts anywhere."""

    def __init__(self, now=1000.0):
        self.now = now
        self.registry = Registry("me")
        self.there = {}

    def passes(self, seconds, **living):
        """Time passes; the entries of `living` are written anew each beat."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(end, self.now + BEAT)
            for name, entry in living.items():
                self.there[name] = replace(entry, beat=round(self.now * 1000))
            self.look()

    def look(self):
        texts = {name.encode(): entry.encoded().encode() for name, entry in self.there.items()}
        self.registry.update(texts, self.now)

    def writes(self, entry=ENTRY):
        self.there["me"] = entry
        self.registry.written = entry.encoded().encode()


@pytest.fixture
def world():
    return World()


def test_an_entry_is_json_with_the_agreed_names():
    assert json.loads(ENTRY.encoded()) == {
        "client": 7,
        "addr": "127.0.0.1:5000",
        "role": "standby",
        "term": 3,
        "ready": True,
        "pending": 0,
        "topics": TOPICS,
        "beat": 1,
    }


@given(st.integers(0), st.text(), st.sampled_from([LEADER, STANDBY]), st.booleans())
def test_an_entry_survives_the_way_through_redis(number, text, role, ready):
    entry = Entry(number, text, role, number, ready, number, text, number)
    assert Entry.decoded(entry.encoded().encode()) == entry


def test_members_of_later_versions_are_ignored():
    assert Entry.decoded(json.dumps(json.loads(ENTRY.encoded()) | {"new": 1}).encode()) == ENTRY


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_entry_is_not_there(world, text):
    world.registry.update({b"other": text, b"\xff": ENTRY.encoded().encode()}, 0)
    assert list(world.registry.entries) == ["\ufffd"]


@pytest.mark.parametrize("name", json.loads(ENTRY.encoded()))
def test_an_entry_with_a_member_of_another_type_is_none(name):
    with pytest.raises(ValueError, match=name):
        Entry.decoded(json.dumps(json.loads(ENTRY.encoded()) | {name: None}).encode())


# Who lives.


def test_an_entry_that_changes_is_alive_and_one_that_never_did_is_not(world):
    world.there["dead"] = ENTRY
    world.passes(1, alive=ENTRY)
    assert list(world.registry.others(world.now)) == ["alive"]
    world.passes(FRESH - BEAT)
    assert list(world.registry.others(world.now)) == ["alive"]
    world.passes(2 * BEAT)
    assert list(world.registry.others(world.now)) == []


def test_what_has_not_changed_for_a_minute_is_outdated(world):
    world.there["dead"] = ENTRY
    world.writes()
    world.passes(OUTDATED - BEAT, alive=ENTRY)
    assert world.registry.outdated(world.now) == []
    world.passes(2 * BEAT, alive=ENTRY)
    assert world.registry.outdated(world.now) == ["dead"]
    del world.there["dead"]
    world.look()
    assert world.registry.outdated(world.now) == []


def test_the_term_is_the_highest_that_was_ever_seen(world):
    world.there |= {"a": replace(ENTRY, term=7), "b": replace(ENTRY, term=2)}
    world.look()
    world.there.clear()
    world.look()
    assert world.registry.term == 7


def test_all_others_with_a_connection_are_cut_alive_or_not(world):
    world.there = {"a": ENTRY, "b": replace(ENTRY, client=0, addr=""), "c": replace(ENTRY, client=9, role=LEADER)}
    world.writes(replace(ENTRY, client=1))
    world.look()
    assert world.registry.clients() == [(7, "127.0.0.1:5000"), (9, "127.0.0.1:5000")]


# Who may lead.


@pytest.mark.parametrize(
    ("entry", "fit"),
    [
        (ENTRY, True),
        (replace(ENTRY, ready=False), False),
        (replace(ENTRY, topics="linear, stream:bybit, 3 topics (x)"), False),
        (replace(ENTRY, topics=""), False),
    ],
)
def test_a_successor_is_ready_and_carries_the_same(world, entry, fit):
    world.passes(1, other=entry)
    assert (world.registry.successor(TOPICS, world.now) == "other") is fit
    assert world.registry.successor("", world.now) is None


def test_a_successor_is_alive(world):
    world.there["other"] = ENTRY
    world.look()
    assert world.registry.successor(TOPICS, world.now) is None, "it was not seen to change"
    world.passes(1, other=ENTRY)
    world.passes(SILENCE)
    assert world.registry.successor(TOPICS, world.now) is None, "it has missed two beats"


def test_who_is_ready_takes_the_lease_at_once(world):
    world.passes(1, other=ENTRY)
    assert world.registry.patience(True, world.now) == 0


def test_who_is_not_ready_waits_for_one_that_is_while_it_may_live(world):
    assert world.registry.patience(False, world.now) == 0, "there is nobody else"
    world.there["other"] = ENTRY
    world.look()
    assert world.registry.patience(False, world.now) == PATIENCE, "it may live"
    world.passes(SILENCE)
    assert world.registry.patience(False, world.now) == 0, "it does not"
    world.passes(BEAT, other=ENTRY)
    assert world.registry.patience(False, world.now) == PATIENCE
    world.passes(BEAT, other=replace(ENTRY, ready=False))
    assert world.registry.patience(False, world.now) == 0


LEADING = replace(ENTRY, role=LEADER)


@pytest.mark.parametrize(
    ("entry", "is_known"),
    [
        (LEADING, True),
        (replace(LEADING, ready=False), False),
        (replace(LEADING, pending=UP_TO_DATE + 1), False),
        (ENTRY, False),
    ],
)
def test_a_leader_that_is_ready_and_has_nothing_waiting_has_published_what_it_got(world, entry, is_known):
    world.passes(2, other=entry)
    assert world.registry.published_until(world.now) == (world.now - BEAT if is_known else None)
    world.passes(FRESH)
    assert world.registry.published_until(world.now) is None


@pytest.mark.parametrize("before", [replace(LEADING, ready=False), replace(LEADING, term=2), ENTRY])
def test_it_must_say_so_twice_in_one_term(world, before):
    world.passes(2, other=before)
    world.passes(BEAT, other=LEADING)
    assert world.registry.published_until(world.now) is None
    world.passes(BEAT, other=LEADING)
    assert world.registry.published_until(world.now) == world.now - BEAT


def test_an_entry_that_redis_takes_late_tells_nothing_of_the_time_between(world):
    """Redis was frozen, the leader is dead, and its last entry was still on the way."""
    world.passes(2, other=LEADING)
    frozen_at = world.now
    world.now += 30
    world.there["other"] = replace(LEADING, beat=9)
    world.look()
    assert world.registry.published_until(world.now) == frozen_at


# Names.


def test_the_entry_of_an_earlier_life_holds_the_name_until_it_proves_dead(world):
    world.there["me"] = ENTRY
    world.look()
    assert world.registry.name_is_taken(world.now)
    world.passes(SILENCE)
    assert not world.registry.name_is_taken(world.now)
    assert not world.registry.name_is_shared(world.now)


def test_another_instance_of_the_same_name_is_noticed(world):
    world.passes(1, me=ENTRY)
    assert world.registry.name_is_taken(world.now)
    assert world.registry.name_is_shared(world.now)
    world.passes(FRESH)
    assert not world.registry.name_is_taken(world.now)


def test_the_own_entry_is_nobody_elses(world):
    for beat in range(10):
        world.writes(replace(ENTRY, beat=beat))
        world.passes(BEAT)
        assert not world.registry.name_is_taken(world.now)
    assert world.registry.others(world.now) == {}


def test_of_two_that_start_at_once_under_one_name_one_gives_way():
    """Each looks, then writes unless the name is taken: whoever wrote last finds its own."""
    a, b = World(), World(5.0)
    there = {}
    for beat in range(20):
        for world in (a, b):
            world.now += BEAT
            world.there = dict(there)
            world.look()
        for world, number in ((a, 1), (b, 2)):
            if not world.registry.name_is_taken(world.now):
                world.writes(replace(ENTRY, client=number, beat=beat))
                there["me"] = world.there["me"]
    assert (a.registry.name_is_shared(a.now), b.registry.name_is_shared(b.now)) == (True, False)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.floats(0, 5)), max_size=30))
def test_no_history_of_the_registry_confuses_it(steps):
    """Entries come, change and go: only what is there is reported, and nothing raises."""
    world = World()
    for name, there, seconds in steps:
        world.now += seconds
        if there:
            world.there[name] = replace(ENTRY, beat=round(world.now * 1000))
        else:
            world.there.pop(name, None)
        world.look()
        registry = world.registry
        assert registry.others(world.now).keys() <= world.there.keys()
        assert set(registry.outdated(world.now)) <= world.there.keys()
        assert registry.successor(TOPICS, world.now) in {None, *world.there}
        assert registry.patience(False, world.now) in (0, PATIENCE)


# Topics and streams.


def test_a_fingerprint_tells_what_is_carried_in_any_order():
    one = fingerprint("linear", "stream:bybit", ["tickers.B", "tickers.A"])
    assert one == fingerprint("linear", "stream:bybit", frozenset(("tickers.A", "tickers.B")))
    assert one.startswith("linear, stream:bybit, 2 topics (")
    assert one != fingerprint("linear", "stream:bybit", ["tickers.A", "tickers.C"])
    assert fingerprint("linear", "stream:bybit", []) == ""


def test_collectors_of_different_topics_are_told_apart(world):
    world.passes(1, same=ENTRY, unknown=replace(ENTRY, topics=""))
    assert world.registry.differing(TOPICS, world.now) is None
    world.passes(1, same=ENTRY, other=replace(ENTRY, topics="spot"))
    assert world.registry.differing(TOPICS, world.now) == ("other", "spot")
    assert world.registry.differing("", world.now) is None


def stream(topics, subscribed, rejected=0, watched=True, answered=False):
    return StreamStats(topics=topics, subscribed=subscribed, rejected=rejected, watched=watched, answered=answered)


@pytest.mark.parametrize(
    ("streams", "ready", "down"),
    [
        ([stream(2, 2), stream(3, 3)], True, False),
        ([stream(2, 2), stream(3, 2)], False, False),
        ([stream(2, 2), stream(3, 2, 1)], True, False),
        ([stream(2, 2), stream(3, 0)], False, True),
        ([stream(2, 2), stream(0, 0)], False, True),
        ([stream(2, 2), stream(0, 0, answered=True)], True, False),
        ([stream(2, 2), stream(1, 0, 1)], True, False),
        ([stream(2, 2), stream(0, 0, watched=False)], True, False),
        ([stream(2, 2), StreamStats(topics=1, subscribed=1, answered=True, waits=True)], False, False),
        ([], False, False),
    ],
)
def test_when_the_streams_are_ready_and_when_one_is_down(streams, ready, down):
    assert (all_subscribed(streams), one_is_down(streams)) == (ready, down)


def test_the_sentences():
    assert something_else("stream:bybit_leader", "not a string") == (
        "LEADER_KEY stream:bybit_leader holds something else (not a string): nobody leads until it is deleted"
    )
    assert same_name("a") == (
        "Another collector is running as INSTANCE a: this one stays idle until it has a name of its own"
    )
    assert other_topics("k", "a", "linear, 4 topics", "b", "linear, 8 topics") == (
        "LEADER_KEY k is shared by collectors of different topics: a has linear, 4 topics; b has linear, 8 topics"
    )
