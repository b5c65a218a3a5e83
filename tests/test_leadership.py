"""relay/redis/leadership.py and the modules under it, against a real Redis: several instances in this process."""

import json
import logging
import threading
import time
from types import SimpleNamespace

import pytest
import redis
from conftest import Subscriber, eventually

from relay.redis import registry
from relay.redis.leadership import CLOSES, Leadership
from relay.redis.lease import TTL, Lease
from relay.redis.link import Timeouts
from relay.redis.member import Troubles
from relay.redis.pending import Pending
from relay.redis.publisher import Publisher
from relay.redis.watch import Watch
from relay.stats import StreamStats

KEY, STATUS, CHANNEL, TOPIC = "stream:bybit_leader", "stream:bybit_status", "stream:bybit_trades", "publicTrade.BTCUSDT"
QUICK = Timeouts(reply=1.0, probe=0.1)
ENDS = 6.0  # seconds for a stop


class Instance:
    """A collector without streams: they do what the test says. `with` starts and stops it.

    relieved: what stop() returned, None before.
    """

    def __init__(self, server, name, topics=(TOPIC,), ready=True, by_symbol=(), **login):
        self.name = name
        self.stats = StreamStats(topics=len(topics), subscribed=len(topics) * ready)
        self.exchange = SimpleNamespace(
            category="linear", streams={"Trades": self.stats}, topics={"Trades": frozenset(topics)}
        )
        self.publisher = Publisher(
            "127.0.0.1", server.port, timeouts=QUICK, pending=Pending(1 << 24), channels=[CHANNEL, STATUS], **login
        )
        self.leadership = Leadership(self.publisher, KEY, name, "stream:bybit", [CHANNEL], by_symbol)
        self.lease, self.registry = self.leadership._member.lease, self.leadership._member.registry
        self.relieved = None
        self._server = server

    def __enter__(self):
        self.publisher.start()
        self.leadership.start(self.exchange)
        return self

    def __exit__(self, *_):
        self.stops()

    def stops(self):
        if self.relieved is None:
            self.relieved = self.leadership.stop(time.monotonic() + 4)
            self.publisher.stop(time.monotonic() + ENDS)
            self.leadership.close()
            assert not self.leadership._thread.is_alive()

    def receives(self, *numbers, by=""):
        """Its streams receive messages of these numbers; `by` makes them different from those of others."""
        for number in numbers:
            text = f'{{"topic":"{TOPIC}","ts":{1_790_000_000_000 + number},"data":[{{"i":"{by}{number}"}}]}}'
            self.publisher.publish(CHANNEL, text)
        self.leadership.flush()

    def loses_its_stream(self):
        self.stats.subscribed = 0
        self.leadership.announce("lost", "Trades", [TOPIC], reason="test", since=None)

    @property
    def leads(self):
        return self.leadership.is_leader

    def is_ready(self):
        with self._server.client() as client:
            text = client.hget(f"{KEY}_instances", self.name)
        return text is not None and json.loads(text)["ready"]


@pytest.fixture
def pair(own_redis):
    """a leads, b is ready to take over."""
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        with Instance(own_redis, "b") as b:
            stands_by(a, b)
            yield a, b


def stands_by(leader, standby):
    """Waits until the leader knows that it could hand over."""
    eventually(lambda: standby.is_ready() and leader.leadership._successor == standby.name)


@pytest.fixture
def consumer(own_redis):
    with Subscriber(own_redis, CHANNEL, STATUS, reconnect=True) as subscriber:
        yield subscriber


def entries(server):
    with server.client(decode_responses=True) as client:
        return {name: json.loads(text) for name, text in client.hgetall(f"{KEY}_instances").items()}


def events(consumer, name="leader"):
    found = [json.loads(payload) for payload in consumer.of(STATUS)]
    return [event for event in found if event["event"] == name]


def received(consumer):
    """The numbers of the data, and "leader a" where a leader announced itself, in order of arrival."""
    found = []
    for channel, payload in list(consumer.messages):
        message = json.loads(payload)
        if channel == CHANNEL:
            found += [trade["i"] for trade in message["data"]]
        elif message["event"] == "leader":
            found.append(f"leader {message['instance']}")
    return found


# One leads, the others stand by.


def test_a_collector_that_is_alone_leads_and_says_so_before_its_data(own_redis, consumer):
    with Instance(own_redis, "a") as a:
        a.receives(1)
        eventually(lambda: "1" in received(consumer))
        a.receives(2)
        eventually(lambda: "2" in received(consumer))
    assert received(consumer) == ["leader a", "1", "2"]
    [event] = events(consumer)
    assert (event["instance"], event["term"], event["stream"], event["topics"]) == ("a", 1, "", [])


def test_a_second_one_stands_by_and_publishes_nothing(pair, consumer):
    a, b = pair
    for number in range(1, 6):
        a.receives(number)
        b.receives(number)
    eventually(lambda: received(consumer) == ["1", "2", "3", "4", "5"])
    eventually(lambda: b.publisher.pending == 0)
    assert (a.leads, b.leads) == (True, False)


def test_the_registry_says_what_was_agreed(pair, own_redis):
    found = eventually(lambda: (there := entries(own_redis))["a"]["ready"] and there["b"]["ready"] and there)
    assert [(one["role"], one["term"]) for one in (found["a"], found["b"])] == [("leader", 1), ("standby", 0)]
    assert found["a"]["topics"] == found["b"]["topics"] != ""
    for instance in pair:
        assert (found[instance.name]["client"], found[instance.name]["addr"]) == instance.publisher.client
    beat = found["b"]["beat"]
    eventually(lambda: entries(own_redis)["b"]["beat"] > beat)


# Handing over.


def test_a_leader_that_stops_hands_over_what_it_did_not_publish(pair, consumer):
    a, b = pair
    a.receives(1, 2)
    b.receives(1, 2, 3)
    eventually(lambda: "2" in received(consumer))
    a.stops()
    assert a.relieved is True
    eventually(lambda: b.leads)
    eventually(lambda: received(consumer) == ["1", "2", "leader b", "3"])
    assert [event["term"] for event in events(consumer)] == [2]


def test_without_a_ready_standby_a_leader_publishes_until_its_end(own_redis, consumer):
    with Instance(own_redis, "a") as a, Instance(own_redis, "b", ready=False):
        eventually(lambda: a.leads and "b" in entries(own_redis))
        assert a.leadership.stop(time.monotonic() + 4) is False
        a.receives(1)
        eventually(lambda: "1" in received(consumer))
        a.publisher.stop(time.monotonic() + ENDS)
        a.leadership.close()
        a.relieved = False
        eventually(lambda: events(consumer) and events(consumer)[-1]["instance"] == "b")
        assert "a" not in entries(own_redis)


def test_the_end_does_not_wait_for_a_thread_that_hangs(own_redis, monkeypatch):
    released = threading.Event()
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        monkeypatch.setattr(a.leadership, "_turn", lambda: released.wait(10))
        time.sleep(0.2)  # it is there
        began = time.monotonic()
        assert a.leadership.stop(began + 0.3) is False
        a.leadership.close()
        assert time.monotonic() - began < 0.3 + CLOSES + 2
        released.set()


def test_a_standby_that_stops_is_relieved_and_forgotten(pair, own_redis):
    a, b = pair
    b.stops()
    assert b.relieved is True
    assert list(entries(own_redis)) == ["a"]
    assert a.leads


def test_a_leader_goes_on_as_soon_as_it_has_a_new_connection(own_redis, monkeypatch):
    """By itself it would look after 60 s."""
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads and a.publisher.connected)
        monkeypatch.setattr("relay.redis.leadership.TRY", 60.0)
        a.leadership._wake.set()
        number, _ = a.publisher.client
        assert own_redis.client().client_kill_filter(_id=number) == 1
        eventually(lambda: a.publisher.client and a.publisher.client[0] != number and a.publisher.connected)


def test_two_that_stop_at_once_lose_nothing(pair, consumer):
    """One of them at least finds nobody to relieve it, and publishes what both have kept."""
    a, b = pair
    a.receives(1)
    b.receives(1, 2)
    threads = [threading.Thread(target=one.stops) for one in pair]
    for thread in threads:
        thread.start()
    a.receives(2)
    for thread in threads:
        thread.join()
    assert {"1", "2"} <= set(received(consumer))
    assert not (a.relieved and b.relieved)


def test_a_leader_that_loses_a_stream_hands_over(pair, consumer):
    a, b = pair
    a.receives(1)
    b.receives(1, 2)
    eventually(lambda: "1" in received(consumer))
    a.loses_its_stream()
    eventually(lambda: received(consumer) == ["1", "leader b", "2"])
    assert not events(consumer, "lost"), "consumers miss nothing"
    eventually(lambda: not a.leads and not a.is_ready())


def test_the_lead_does_not_come_back_before_all_streams_are_up(pair):
    a, b = pair
    a.loses_its_stream()
    eventually(lambda: b.leads)
    eventually(lambda: not a.is_ready() and b.leadership._successor is None)
    b.loses_its_stream()
    term = b.leadership.state()["term"]
    eventually(lambda: not b.leadership.state()["ready"])
    assert (a.leads, b.leads, b.leadership.state()["term"]) == (False, True, term)
    a.stats.subscribed = 1
    eventually(lambda: a.leads)


def test_a_leader_without_a_ready_standby_announces_the_loss(own_redis, consumer):
    with Instance(own_redis, "a") as a, Instance(own_redis, "b", ready=False):
        eventually(lambda: a.leads and "b" in entries(own_redis))
        a.loses_its_stream()
        eventually(lambda: events(consumer, "lost"))
        a.receives(1)
        eventually(lambda: "1" in received(consumer))
        assert a.leads


def test_a_leader_that_has_long_lost_a_stream_hands_over_as_soon_as_somebody_is_ready(own_redis):
    with Instance(own_redis, "a", ready=False) as a, Instance(own_redis, "b", ready=False) as b:
        eventually(lambda: a.leads or b.leads)
        leader, other = (a, b) if a.leads else (b, a)
        other.stats.subscribed = 1
        eventually(lambda: other.leads and not leader.leads)


def test_a_diversion_without_a_successor_ends_in_order(pair, consumer, monkeypatch):
    """The standby is gone between the loss and the handover: the leader goes on with what it had diverted."""
    a = pair[0]
    a.receives(1)
    eventually(lambda: "1" in received(consumer))
    monkeypatch.setattr(a.leadership._member, "successor", lambda: None)
    a.loses_its_stream()
    a.receives(2)
    eventually(lambda: received(consumer) == ["1", "2"])
    assert a.leads
    assert events(consumer, "lost")


def test_a_handover_that_fails_leaves_no_diversion_behind(pair, consumer, monkeypatch):
    """Redis does not answer just then; the next turn decides again."""
    a = pair[0]
    look, failed = a.leadership._member.look, []

    def fails_once():
        if not failed and a.leadership._diverted.is_set():
            failed.append(True)
            raise redis.TimeoutError
        look()

    monkeypatch.setattr(a.leadership._member, "look", fails_once)
    monkeypatch.setattr(a.leadership._member, "successor", lambda: None if failed else "b")
    a.loses_its_stream()
    a.receives(1)
    eventually(lambda: failed and "1" in received(consumer))


def test_who_is_ready_goes_before_who_is_not(own_redis):
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        with Instance(own_redis, "b", ready=False) as b, Instance(own_redis, "c") as c:
            stands_by(a, c)
            eventually(lambda: "b" in entries(own_redis))
            a.stops()
            eventually(lambda: c.leads)
            assert not b.leads


# Takeovers: nothing of the old leader after the announcement of the new one, whatever it was doing.


class Sleeper:
    """Stops the thread of an instance at a step: before or after `owner.name` is called."""

    def __init__(self, monkeypatch, owner, name, when):
        self.asleep, self.wakes = threading.Event(), threading.Event()
        step = getattr(owner, name)

        def stops(*args, **options):
            if when == "before":
                self._sleep()
            result = step(*args, **options)
            if when == "after":
                self._sleep()
            return result

        monkeypatch.setattr(owner, name, stops)

    def _sleep(self):
        if not self.wakes.is_set():
            self.asleep.set()
            self.wakes.wait(20)


STEPS = [
    (owner, name, when)
    for owner, name in (("lease", "renew"), ("lease", "read"), ("lease", "write_as_holder"))
    for when in ("before", "after")
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(step[1:]))
def test_a_leader_that_sleeps_at_any_step_publishes_nothing_more(pair, consumer, monkeypatch, step):
    """Its streams go on as if nothing had happened, and so does its thread when it wakes."""
    a, b = pair
    owner, name, when = step
    sleeper = Sleeper(monkeypatch, getattr(a, owner), name, when)
    assert sleeper.asleep.wait(10)
    a.receives(1, by="a")
    eventually(lambda: "a1" in received(consumer), 5)
    eventually(lambda: b.leads)
    a.receives(2, 3, by="a")
    sleeper.wakes.set()
    a.receives(4, 5, by="a")
    eventually(lambda: not a.leads)
    a.receives(6, by="a")
    b.receives(7, by="b")
    eventually(lambda: "b7" in received(consumer))
    found = received(consumer)
    assert [one for one in found[found.index("leader b") :] if one.startswith("a")] == []


@pytest.mark.parametrize(
    ("step", "connection"),
    [(step, "the same") for step in STEPS if step[1] != "renew"]
    + [(("lease", "write_as_holder", "after"), "another"), (("lease", "renew", "before"), "another")],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[1:]),
)
def test_who_sleeps_while_it_takes_over_does_not_lead_when_it_wakes(own_redis, consumer, monkeypatch, step, connection):
    """Whoever took the lease meanwhile leads, also if the sleeper has got another connection since."""
    with Instance(own_redis, "b", ready=False) as b:
        eventually(lambda: b.leads)
        with Instance(own_redis, "a") as a:
            owner, name, when = step
            if name == "read":  # also part of each beat
                acquire = a.lease.acquire

                def then_sleeps(client):
                    taken = acquire(client)
                    if taken:
                        sleepers.append(Sleeper(monkeypatch, a.lease, "read", when))
                    return taken

                sleepers = []
                monkeypatch.setattr(a.lease, "acquire", then_sleeps)
            else:
                sleepers = [Sleeper(monkeypatch, getattr(a, owner), name, when)]
            eventually(lambda: sleepers and sleepers[0].asleep.is_set())
            terms = len(events(consumer))
            if connection == "another":
                with own_redis.client() as client:
                    client.client_kill_filter(_id=str(a.publisher.client[0]))
            eventually(lambda: b.leads and len(events(consumer)) > terms and events(consumer)[-1]["instance"] == "b")
            a.receives(1, by="a")
            sleepers[0].wakes.set()
            b.receives(2, by="b")
            eventually(lambda: "b2" in received(consumer))
            found = received(consumer)
            last = len(found) - found[::-1].index("leader b")
            if "leader a" not in found[last:]:
                assert "a1" not in found[last:]


def test_who_takes_over_before_it_was_ready_says_that_messages_are_missing(own_redis, consumer):
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        with Instance(own_redis, "b", ready=False) as b:
            eventually(lambda: "b" in entries(own_redis))
            a.stops()
            eventually(lambda: b.leads)
            eventually(lambda: events(consumer, "lost"))
    (lost,) = events(consumer, "lost")
    assert (lost["stream"], lost["topics"]) == ("Trades", [TOPIC])
    order = [json.loads(payload)["event"] for payload in consumer.of(STATUS)]
    assert order.index("lost") > order.index("leader", 1)


def test_the_first_leader_of_all_and_a_ready_one_say_nothing_of_the_kind(pair, consumer):
    a, b = pair
    a.stops()
    eventually(lambda: b.leads)
    b.receives(1)
    eventually(lambda: "1" in received(consumer))
    assert not events(consumer, "lost")


def test_who_has_lost_the_lease_unknowingly_cuts_nobody(pair, own_redis):
    a, b = pair
    b.lease._lock.local.token = b"b/1"
    b.lease.valid_until = time.monotonic() + 60  # as after a suspension, in which its clock stood still
    before = a.publisher.client
    eventually(lambda: b.lease.valid_until == 0.0)
    beat = entries(own_redis)["a"]["beat"]
    eventually(lambda: entries(own_redis)["a"]["beat"] > beat)
    assert a.publisher.client == before
    assert a.leads
    assert not b.leads


def test_a_diversion_of_an_earlier_term_is_forgotten(pair, own_redis):
    a, b = pair
    b.stops()
    a.leadership._diverted.set()
    with own_redis.client() as client:
        client.delete(KEY)  # it steps down, and leads again
    eventually(lambda: a.leads and a.leadership._member.term == 2)
    assert not a.leadership._diverted.is_set()


def test_a_lease_that_expires_unnoticed_is_not_believed(own_redis, monkeypatch):
    """A leader that cannot reach Redis stops by its own clock, before the lease has ended in Redis."""
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        began = time.monotonic()
        own_redis.pause()
        try:
            eventually(lambda: not a.leads)
            assert time.monotonic() - began < TTL
            assert not a.publisher.leading
        finally:
            own_redis.resume()
        eventually(lambda: a.leads)


@pytest.mark.parametrize("steal", [lambda client: client.delete(KEY), lambda client: client.set(KEY, "z/1", px=1000)])
def test_a_lease_that_was_taken_away_is_given_up_and_taken_again(own_redis, consumer, steal):
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        with own_redis.client() as client:
            steal(client)
        eventually(lambda: [event["term"] for event in events(consumer)][-1:] == [2] and a.leads)
        a.receives(1)
        eventually(lambda: "1" in received(consumer))


def test_a_leader_whose_connection_was_cut_tells_of_the_next_one_before_it_uses_it(own_redis, consumer, monkeypatch):
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        a.receives(1)
        eventually(lambda: "1" in received(consumer))
        told, lead = [], a.publisher.lead

        def leads(client):
            told.append(entries(own_redis)["a"]["client"] == client[0])
            lead(client)

        monkeypatch.setattr(a.publisher, "lead", leads)
        with own_redis.client() as client:
            client.client_kill_filter(_id=str(a.publisher.client[0]))
        a.receives(2)
        eventually(lambda: "2" in received(consumer))
        assert told == [True]
        assert [event["term"] for event in events(consumer)] == [1]


def test_a_leader_whose_next_connection_could_not_be_told_at_once_publishes_all_the_same(
    own_redis, consumer, monkeypatch
):
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        tell, failed, first = a.lease.write_as_holder, [], a.publisher.client

        def fails_once(entry, *event):
            if not failed and (entry.client, entry.addr) != first:
                failed.append(entry)
                raise redis.TimeoutError("no answer")
            return tell(entry, *event)

        monkeypatch.setattr(a.lease, "write_as_holder", fails_once)
        with own_redis.client() as client:
            client.client_kill_filter(_id=first[0])
        eventually(lambda: failed)
        a.receives(1)
        eventually(lambda: "1" in received(consumer))
        assert a.leads


def test_terms_go_on_when_redis_has_forgotten_everything(own_redis, consumer):
    with Instance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        own_redis.stop()
        eventually(lambda: not a.leads)
        own_redis.start()
        eventually(lambda: a.leads)
        assert entries(own_redis)["a"]["term"] == 2


def test_terms_go_on_when_all_have_been_stopped(own_redis, consumer):
    for name in ("a", "a", "b"):
        with Instance(own_redis, name) as instance:
            eventually(lambda each=instance: each.leads)
    eventually(lambda: len(events(consumer)) == 3)
    assert [event["term"] for event in events(consumer)] == [1, 2, 3]


def test_the_entries_of_those_who_are_gone_are_removed(own_redis, monkeypatch):
    monkeypatch.setattr(registry, "OUTDATED", 1.0)
    with own_redis.client() as client:
        client.hset(f"{KEY}_instances", "gone", registry.Entry(7, "x:1", "standby", 4, True, 0, "", 1).encoded())
    with Instance(own_redis, "a") as a:
        eventually(lambda: list(entries(own_redis)) == ["a"])
        assert a.leadership.state()["term"] == 5


# Trouble, in sentences, once.


def logged(caplog, level=logging.ERROR):
    return [record.message for record in caplog.records if record.levelno >= level and record.threadName == "Leader"]


@pytest.mark.parametrize(
    ("put", "what"),
    [
        (lambda client: client.rpush(KEY, "x"), "something that is no string"),
        (lambda client: client.set(KEY, "somebody"), "somebody"),
        (lambda client: client.set(KEY, "z/1"), "z/1, without an expiry"),
    ],
)
def test_a_key_that_holds_something_else_is_named(own_redis, caplog, put, what):
    with own_redis.client() as client:
        put(client)
        with Instance(own_redis, "a") as a:
            eventually(lambda: logged(caplog))
            beat = eventually(lambda: entries(own_redis).get("a"))["beat"]
            eventually(lambda: entries(own_redis)["a"]["beat"] > beat + 1)
            assert logged(caplog) == [
                f"LEADER_KEY {KEY} holds something else ({what}): nobody leads until it is deleted"
            ]
            assert not a.leads
            client.delete(KEY)
            eventually(lambda: a.leads)


def test_a_second_collector_of_the_same_name_stays_idle(own_redis, caplog):
    with Instance(own_redis, "a") as first:
        eventually(lambda: first.leads)
        with Instance(own_redis, "a") as second:
            eventually(lambda: logged(caplog))
            assert logged(caplog) == [
                "Another collector is running as INSTANCE a: this one stays idle until it has a name of its own"
            ]
            assert (first.leads, second.leads) == (True, False)
        eventually(lambda: "a" in entries(own_redis))


def test_an_earlier_life_of_the_same_name_is_cut_off(own_redis, monkeypatch):
    """It sleeps, and is not dead: its successor of the same name ends its connection."""
    with Instance(own_redis, "a") as first:
        eventually(lambda: first.leads)
        sleeper = Sleeper(monkeypatch, first.lease, "renew", "before")
        assert sleeper.asleep.wait(10)
        client = first.publisher.client
        with Instance(own_redis, "a") as second:
            eventually(lambda: second.leads)
            eventually(lambda: first.publisher.client != client)
            sleeper.wakes.set()
            eventually(lambda: not first.leads)


def test_collectors_of_different_topics_are_warned_about(own_redis, caplog):
    with Instance(own_redis, "a") as a, Instance(own_redis, "b", topics=(TOPIC, "publicTrade.ETHUSDT")):

        def warnings():
            return {text for text in logged(caplog, logging.WARNING) if "different topics" in text}

        texts = eventually(lambda: len(found := warnings()) == 2 and found)  # each of them says so, once
        for text in texts:
            assert text.startswith(f"LEADER_KEY {KEY} is shared by collectors of different topics: ")
            assert "a has linear, stream:bybit, 1 topic (" in text
            assert "b has linear, stream:bybit, 2 topics (" in text
        assert a.leadership._successor is None


def test_collectors_whose_topics_change_one_after_the_other_are_not(pair, own_redis, caplog, monkeypatch):
    """Each reads Bybit's list of instruments when it is its time. If it lasts, it is a mistake."""
    a, _ = pair
    a.exchange.topics["Trades"] = frozenset({TOPIC, "publicTrade.NEWUSDT"})
    a.stats.topics = a.stats.subscribed = 2
    eventually(lambda: len({entry["topics"] for entry in entries(own_redis).values()}) == 2)
    beat = entries(own_redis)["a"]["beat"]
    eventually(lambda: entries(own_redis)["a"]["beat"] > beat + 1)

    def is_warned():
        return any("different topics" in text for text in logged(caplog, logging.WARNING))

    assert not is_warned()
    monkeypatch.setattr("relay.redis.member.LISTS_DIFFER", 0.5)
    eventually(is_warned)


RIGHTS = "+@all ~* &*"


@pytest.mark.parametrize("command", ["set", "evalsha", "hgetall", "subscribe"])
def test_a_missing_right_is_named(own_redis, caplog, command):
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "some", "on", ">p", *RIGHTS.split(), f"-{command}")
        with Instance(own_redis, "a", username="some", password="p") as a:
            [text] = eventually(lambda: logged(caplog))
            assert text.startswith(f"LEADER_KEY {KEY}: Redis replies: ")
            assert f"'{command}'" in text
            assert not a.leads
            client.execute_command("ACL", "SETUSER", "some", f"+{command}")
            eventually(lambda: a.leads)


def test_without_the_right_to_end_connections_somebody_leads_all_the_same(own_redis, caplog):
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "some", "on", ">p", *RIGHTS.split(), "-client|kill")
        client.hset(f"{KEY}_instances", "gone", registry.Entry(7, "x:1", "leader", 4, True, 0, "", 1).encoded())
        with Instance(own_redis, "a", username="some", password="p") as a:
            eventually(lambda: a.leads)
        [text] = logged(caplog)
        assert text.startswith("Redis does not end the connections of an earlier leader: ")


def test_leader_and_standby_both_say_that_redis_is_too_slow_for_the_lease(pair, own_redis, caplog):
    own_redis.pause()
    try:
        told = "Lost Redis for the lease"
        eventually(lambda: len({line.thread for line in caplog.records if told in line.getMessage()}) == 2)
    finally:
        own_redis.resume()


def test_a_redis_that_is_away_at_the_start_is_logged_by_one_thread(own_redis, caplog, monkeypatch):
    own_redis.stop()
    tries = []
    monkeypatch.setattr(
        Leadership,
        "_on_failure",
        lambda self, error, method=Leadership._on_failure: (tries.append(error), method(self, error)),
    )
    with Instance(own_redis, "a") as a:
        eventually(lambda: len(tries) > 3)
        assert [(record.threadName, record.levelname) for record in caplog.records] == [("Redis", "ERROR")]
        own_redis.start()
        eventually(lambda: a.leads)


# The lease and the subscription by themselves.


@pytest.fixture
def lease(own_redis):
    with Publisherless(own_redis) as connect:
        yield Lease(connect, KEY, "a")


class Publisherless:
    """What makes connections, as a publisher has it."""

    def __init__(self, server):
        self._connect = Publisher("127.0.0.1", server.port).new_connection

    def __enter__(self):
        return self._connect

    def __exit__(self, *_):
        pass


def test_an_acquisition_whose_answer_was_lost_is_recognised(lease, monkeypatch):
    acquire = lease._lock.acquire

    def loses_the_answer(**options):
        acquire(**options)
        raise redis.TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(lease._lock, "acquire", loses_the_answer)
        with pytest.raises(redis.TimeoutError):
            lease.acquire((7, "x"))
    assert not lease.is_valid
    assert lease.acquire((8, "y"))
    assert lease.is_valid
    assert lease.holder() == "a"
    lease.close()


def test_the_validity_counts_from_before_the_call(lease, monkeypatch):
    acquire = lease._lock.acquire

    def is_slow(**options):
        time.sleep(0.3)
        return acquire(**options)

    monkeypatch.setattr(lease._lock, "acquire", is_slow)
    before = time.monotonic()
    assert lease.acquire((7, "x"))
    assert lease.valid_until < before + TTL - 0.2
    lease.close()


def test_only_the_holder_writes_as_holder(lease, own_redis):
    entry = registry.Entry(7, "x:1", "leader", 1, True, 0, "", 1)
    assert lease.write_as_holder(entry, STATUS, b"event") is None
    assert lease.read() == {}
    assert lease.acquire((7, "x"))
    with Subscriber(own_redis, STATUS) as subscriber:
        assert lease.write_as_holder(entry, STATUS, b"event") == lease.read()[b"a"]
        eventually(lambda: subscriber.of(STATUS) == [b"event"])
    lease.release()
    assert lease.holder() is None
    lease.close()


def test_a_watch_reads_whatever_the_chunks(own_redis):
    with Publisherless(own_redis) as connect, own_redis.client() as client:
        watch = Watch(connect, 1.0)
        watch.open(["x", "y"])
        sent = [("xy"[number % 2], b"%d" % number * (1 + number * 37 % 3000)) for number in range(300)]
        pipeline = client.pipeline(transaction=False)
        for channel, message in sent:
            pipeline.publish(channel, message)
        pipeline.execute()
        found = []
        eventually(lambda: found.extend(watch.read(0.1)) or len(found) == len(sent))
        assert found == sent
        assert watch.read(0) == []
        client.client_kill_filter(_type="pubsub")
        with pytest.raises(OSError, match="ended"):
            eventually(lambda: watch.read(0.1))
        watch.close()
        assert not watch.is_open


def test_a_trouble_that_comes_again_and_again_is_worth_one_traceback(caplog):
    troubles = Troubles()
    for number in range(20):
        troubles.report("redis", f"Internal error: {number}", cause=ValueError(number))
        troubles.report("redis", None)
    assert [bool(record.exc_info) for record in caplog.records].count(True) == 1
    assert len(caplog.records) == 20
