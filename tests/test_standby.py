"""Publishers that lead and stand by, on a real Redis: nothing is lost, out of order, or sent by one that may not."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import Subscriber, eventually
from test_publisher import CHANNEL, QUICK, STATE, STATUS, Running, in_threads, numbers, without_repetitions

from relay.redis.link import Timeouts
from relay.redis.pending import Pending
from sandbox.redis import LocalRedis


class Standby(Running):
    """A publisher that stands by; `with` waits until it could lead."""

    def __init__(self, server, *, limit=64 << 20, **options):
        super().__init__(server, pending=Pending(limit), **options)

    def __enter__(self):
        super().__enter__()
        eventually(lambda: self.client)
        return self

    def __exit__(self, *arguments):
        self.stand_by()  # what it keeps is nobody's loss
        super().__exit__(*arguments)

    def leads(self):
        """Leads on the present connection, and waits until messages flow."""
        self.lead(eventually(lambda: self.client))
        eventually(lambda: self.connected)

    def is_cut(self, server):
        """Ends the connection as a new leader does; returns when this publisher has a new one."""
        client = self.client
        assert server.client().client_kill_filter(_id=client[0], addr=client[1]) == 1
        eventually(lambda: self.client not in (client, None))


def flood(publisher, stop, channel):
    """Publishes numbers from 0 on until `stop` is set; returns how many."""
    number = 0
    while not stop.is_set():
        publisher.send(*range(number, number + 5), channel=channel)
        number += 5
        time.sleep(0.0005)
    return number


class Flood:
    """Eight threads that publish numbers, each to a channel of its own, while `with` lasts. `sent`: by channel."""

    def __init__(self, publisher):
        self.sent = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(publisher, f"test:{number}")) for number in range(8)]

    def _run(self, publisher, channel):
        self.sent[channel] = flood(publisher, self._stop, channel)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def in_order(subscriber, channel):
    received = without_repetitions(numbers(subscriber, channel))
    assert received == sorted(received)
    return received


# Standing by.


def test_a_standby_publishes_nothing_and_then_all_of_it_in_order(redis_server, caplog):
    caplog.set_level("INFO")
    with Subscriber(redis_server, CHANNEL, STATUS) as subscriber, Standby(redis_server) as publisher:
        publisher.send(*range(1000))
        publisher.announce("lost", "Trades", ["publicTrade.BTCUSDT"])
        publisher.announce("redis_reconnected")
        assert not publisher.leading
        assert (publisher.pending, publisher.backlog, publisher.published) == (1001, 0, 0)
        eventually(lambda: "Standing by, connected to Redis" in caplog.text)
        assert not subscriber.messages
        publisher.leads()
        publisher.send(*range(1000, 2000))
        eventually(lambda: len(numbers(subscriber)) == 2000)
    assert numbers(subscriber) == list(range(2000))
    assert [json.loads(text)["event"] for text in subscriber.of(STATUS)] == ["lost"]
    assert publisher.pending == 0


def test_what_the_leader_publishes_is_struck_out(redis_server):
    with Subscriber(redis_server, CHANNEL) as subscriber, Standby(redis_server) as publisher:
        publisher.send(*range(100))
        for number in range(95):
            publisher.strike(CHANNEL, b"%d" % number)
        publisher.strike(CHANNEL, b"100")  # it had this one first
        publisher.send(100, 101)
        assert publisher.pending == 1
        publisher.leads()
        eventually(lambda: numbers(subscriber) == [101])


def test_what_arrived_long_ago_is_pruned(redis_server):
    with Standby(redis_server) as publisher:
        publisher.send(*range(10))
        publisher.prune(round(time.monotonic() * 1000) - 60_000)
        assert publisher.pending == 10
        publisher.prune(round(time.monotonic() * 1000) + 60_000)
        assert publisher.pending == 0


def test_a_standby_writes_its_own_state_hash(own_redis):
    with Standby(own_redis, state_key=f"{STATE}:a") as publisher:
        publisher.set_state({"Trades": "1"})
        eventually(lambda: own_redis.client().hgetall(f"{STATE}:a") == {b"Trades": b"1"})
        assert not own_redis.client().exists(STATE)
        assert (publisher.status, publisher.state_key) == (STATUS, f"{STATE}:a")


def test_what_did_not_fit_while_standing_by_is_announced_as_dropped_by_the_new_leader(redis_server, caplog):
    text = b"x" * 1000
    with Subscriber(redis_server, "*") as subscriber, Standby(redis_server, limit=100_000) as publisher:
        for _ in range(1000):
            publisher.publish(CHANNEL, text)
        assert not publisher.dropped
        kept = publisher.pending
        assert 50 < kept < 100
        eventually(lambda: "The buffer of this standby is full (0 MiB)" in caplog.text)
        publisher.leads()
        eventually(lambda: len(subscriber.of(CHANNEL)) == kept)
    channel, payload = subscriber.messages[0]
    event = json.loads(payload)
    assert (channel, event["event"], event["channel"], event["messages"]) == (STATUS, "dropped", CHANNEL, 1000 - kept)
    assert publisher.dropped == {CHANNEL: 1000 - kept}
    assert caplog.text.count("The buffer of this standby is full") == 1


def test_a_standby_that_is_cut_logs_no_loss(own_redis, caplog):
    caplog.set_level("INFO")
    with Standby(own_redis) as publisher:
        publisher.send(1)
        publisher.is_cut(own_redis)
        eventually(lambda: caplog.text.count("Standing by, connected to Redis") == 2)
        assert publisher.pending == 1
    assert "while standing by" in caplog.text
    assert not [record for record in caplog.records if record.levelname not in ("INFO", "DEBUG")]


def test_a_standby_stops_at_once(own_redis):
    publisher = Standby(own_redis)
    with publisher:
        publisher.send(*range(100))
        own_redis.pause()
        began = time.monotonic()
        assert publisher.stop(began + 5) == 0
        own_redis.resume()
    assert time.monotonic() - began < 2


FILL = """
from pathlib import Path
from relay.redis.pending import Pending
from relay.redis.publisher import Publisher

def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

publisher = Publisher(port=1, pending=Pending(64 << 20))
before, most = memory(), 0
for number in range(300_000):
    text = b'{"topic":"orderbook.50.A","ts":%d,"data":%0200d}' % (10**12 + number, number)
    publisher.publish("stream:bybit_orderbook", text)
    if number % 1000 == 0:
        most = max(most, memory())
assert publisher.pending < 200_000
print((most - before) / (64 << 20))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_a_standby_that_is_full_takes_little_more_memory_than_its_limit():
    root = Path(__file__).resolve().parent.parent
    ran = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, check=True, cwd=root)
    assert 0.8 < float(ran.stdout) < 1.5


# Only the connection that lead() names may carry messages.


def test_messages_wait_for_lead_on_the_connection_that_lives(own_redis):
    with Subscriber(own_redis, CHANNEL) as subscriber, Standby(own_redis) as publisher:
        former = publisher.client
        publisher.is_cut(own_redis)
        publisher.lead(former)
        publisher.send(*range(100))
        assert publisher.leading
        assert (publisher.backlog, publisher.pending) == (100, 0)
        time.sleep(0.3)  # 0.3 s: three turns of the publisher's thread
        assert not subscriber.messages
        publisher.leads()
        eventually(lambda: numbers(subscriber) == list(range(100)))


def test_a_leader_whose_connection_is_cut_waits_for_lead_and_loses_nothing(own_redis, caplog):
    with Subscriber(own_redis, CHANNEL, STATUS) as subscriber, Standby(own_redis) as publisher:
        publisher.leads()
        publisher.send(*range(100))
        eventually(lambda: publisher.published == 100)
        for round_ in range(1, 4):
            publisher.is_cut(own_redis)
            publisher.send(*range(100 * round_, 100 * round_ + 100))
            assert not publisher.connected
            assert (publisher.leading, publisher.backlog, publisher.pending) == (True, 100, 0)
            publisher.leads()
            eventually(lambda round_=round_: len(numbers(subscriber)) == 100 * round_ + 100)
            eventually(lambda round_=round_: len(subscriber.of(STATUS)) == round_ and not publisher.backlog)
    assert numbers(subscriber) == list(range(400))
    assert caplog.text.count("Lost Redis at") == 3
    assert {json.loads(text)["event"] for text in subscriber.of(STATUS)} == {"redis_reconnected"}


def test_a_leader_that_is_cut_in_a_flood_sends_the_rest_in_order(own_redis):
    with Subscriber(own_redis, "test:*") as subscriber, Standby(own_redis) as publisher:
        publisher.leads()
        with Flood(publisher) as load:
            for _ in range(5):
                seen = len(subscriber.messages)
                eventually(lambda seen=seen: len(subscriber.messages) > seen + 500)
                publisher.is_cut(own_redis)
                publisher.leads()
        eventually(lambda: publisher.backlog == 0)
        eventually(lambda: all(in_order(subscriber, name) == list(range(sent)) for name, sent in load.sent.items()))


def test_a_waiting_leader_does_not_spin(own_redis):
    with Standby(own_redis) as publisher:
        publisher.leads()
        publisher.is_cut(own_redis)
        publisher.send(1)
        began = time.process_time()
        time.sleep(0.5)  # 0.5 s: five turns of the publisher's thread
        assert time.process_time() - began < 0.2


def test_without_the_right_to_ask_it_says_so_and_never_leads(own_redis, caplog):
    own_redis.client().execute_command(
        "ACL", "SETUSER", "pub", "on", ">p", "&*", "~*", "-@all", "+publish", "+role", "+pubsub"
    )
    with Running(own_redis, username="pub", password="p", pending=Pending(1 << 20)) as publisher:
        eventually(lambda: "Redis does not tell CLIENT INFO: NOPERM" in caplog.text)
        assert publisher.client is None


# A handover.


def test_after_divert_what_waits_is_sent_and_what_comes_is_kept(redis_server):
    with Subscriber(redis_server, CHANNEL) as subscriber, Standby(redis_server) as publisher:
        publisher.leads()
        assert not publisher.drained
        for number in range(20_000):
            publisher.publish(CHANNEL, b"%d" % number)
        publisher.divert()
        publisher.send(*range(20_000, 20_010))
        publisher.announce("lost", "Trades", ["publicTrade.BTCUSDT"])
        eventually(lambda: publisher.drained)
        eventually(lambda: len(subscriber.messages) == 20_000)
        assert publisher.leading
        publisher.stand_by()
        assert (publisher.leading, publisher.pending) == (False, 11)
        publisher.leads()
        eventually(lambda: numbers(subscriber) == list(range(20_010)))


def test_divert_has_what_was_sent_confirmed_at_once(redis_server):
    """The thread that reads the replies would do so after 60 s by itself."""
    with Standby(redis_server, timeouts=Timeouts(idle=60)) as publisher:
        publisher.leads()
        publisher.send(1)
        publisher.divert()
        eventually(lambda: publisher.drained)


def test_a_handover_that_is_called_off_keeps_the_order(redis_server):
    with Subscriber(redis_server, "test:*") as subscriber, Standby(redis_server) as publisher:
        publisher.leads()
        with Flood(publisher) as load:
            for _ in range(20):
                publisher.divert()
                eventually(lambda: publisher.pending)
                publisher.lead(publisher.client)
        eventually(lambda: publisher.backlog == 0)
        eventually(lambda: all(numbers(subscriber, name) == list(range(sent)) for name, sent in load.sent.items()))


def test_rejected_messages_are_announced_before_it_is_drained(own_redis):
    own_redis.client().execute_command(
        "ACL", "SETUSER", "pub", "on", ">p", "&test:*", "&stream:*", "-@all", "+publish", "+client|info"
    )
    publisher = Standby(own_redis, timeouts=Timeouts(probe=60.0), username="pub", password="p")
    with Subscriber(own_redis, STATUS) as subscriber, publisher:
        publisher.leads()
        publisher.send(1, channel="other:b")
        publisher.divert()
        eventually(lambda: publisher.drained)
        eventually(lambda: [json.loads(text)["messages"] for text in subscriber.of(STATUS)] == [1])


# The lease ends.


def test_losses_that_nobody_was_told_of_are_announced_by_the_next_lead(own_redis):
    own_redis.client().execute_command(
        "ACL", "SETUSER", "pub", "on", ">p", "&test:*", "&stream:*", "-@all", "+publish", "+client|info"
    )
    publisher = Standby(own_redis, timeouts=Timeouts(probe=60.0), username="pub", password="p")
    with Subscriber(own_redis, STATUS) as subscriber, publisher:
        publisher.leads()
        publisher.send(1, channel="other:b")
        eventually(lambda: publisher.dropped == {"other:b": 1})
        publisher.stand_by()
        publisher.leads()
        publisher.divert()
        eventually(lambda: [json.loads(text)["messages"] for text in subscriber.of(STATUS)] == [1])


def test_a_standby_has_nothing_to_wait_for_when_it_stops(own_redis):
    """Not even for what it could not announce."""
    own_redis.client().execute_command("ACL", "SETUSER", "pub", "on", ">p", "-@all", "+publish", "+client|info")
    with Standby(own_redis, timeouts=Timeouts(probe=60.0), username="pub", password="p") as publisher:
        publisher.leads()
        publisher.send(1, channel="other:b")
        eventually(lambda: publisher.dropped == {"other:b": 1})
        publisher.stand_by()
        began = time.monotonic()
        assert publisher.stop(began + 5) == 0
    assert time.monotonic() - began < 2


def test_standing_by_is_no_outage(own_redis, caplog):
    caplog.set_level("INFO")
    with Standby(own_redis) as publisher:
        publisher.leads()
        publisher.send(1)
        eventually(lambda: publisher.published)
        publisher.stand_by()
        eventually(lambda: caplog.text.count("Standing by, connected to Redis") == 2)
    assert "Lost Redis" not in caplog.text
    assert not [record for record in caplog.records if record.levelname not in ("INFO", "DEBUG")]


def test_standing_by_in_a_flood_loses_nothing_and_sends_nothing_more(own_redis):
    """What was in flight may come twice, nothing else, and all of it in order."""
    with Subscriber(own_redis, "test:*") as subscriber, Standby(own_redis) as publisher:
        publisher.leads()
        with Flood(publisher) as load:
            for _ in range(5):
                seen = len(subscriber.messages)
                eventually(lambda seen=seen: len(subscriber.messages) > seen + 500)
                former = publisher.client
                publisher.stand_by()
                assert not publisher.leading
                assert publisher.backlog == 0
                # Redis has closed the connection when the next one is there: nothing of it is still on its way.
                eventually(lambda former=former: publisher.client not in (former, None))
                eventually(lambda former=former: is_gone(own_redis, former))
                # The subscriber may be behind Redis: it has all that was sent when it has this.
                turn = b"%d" % publisher.pending
                own_redis.client().publish("test:marker", turn)
                eventually(lambda turn=turn: turn in subscriber.of("test:marker"), 30)
                pending, seen = publisher.pending, len(subscriber.messages)
                eventually(lambda pending=pending: publisher.pending > pending + 500)
                assert len(subscriber.messages) == seen
                publisher.leads()
        eventually(lambda: publisher.backlog == 0)
        eventually(lambda: all(in_order(subscriber, name) == list(range(sent)) for name, sent in load.sent.items()))


@pytest.mark.parametrize("end", ["stand_by", "divert"])
def test_nobody_waits_for_room_on_a_standby(own_redis, end):
    """Whoever waits when it becomes one goes on at once."""
    with Standby(own_redis, buffer=1 << 20, timeouts=Timeouts(reply=10.0)) as publisher:
        publisher.leads()
        own_redis.pause()
        for _ in range(1000):
            publisher.publish(CHANNEL, b"x" * 1000)
        reader = threading.Thread(target=publisher.flush)
        reader.start()
        reader.join(0.1)
        assert reader.is_alive()
        getattr(publisher, end)()
        reader.join(0.5)
        assert not reader.is_alive()
        began = time.monotonic()
        publisher.send(1)
        assert time.monotonic() - began < 0.5
        own_redis.resume()


def is_gone(server, client):
    return client[1] not in {each["addr"] for each in server.client().client_list()}


def test_what_was_in_flight_is_the_first_that_is_pending(own_redis):
    with Standby(own_redis, timeouts=Timeouts(reply=10.0)) as publisher:
        publisher.leads()
        own_redis.pause()
        for number in range(3000):
            publisher.send(number, number)
        publisher.divert()
        publisher.send(3000)
        assert publisher.backlog == 6000
        publisher.stand_by()
        assert (publisher.backlog, publisher.pending) == (0, 6001)
        publisher.strike(CHANNEL, b"2999")
        publisher.strike(CHANNEL, b"2999")
        assert publisher.pending == 1
        own_redis.resume()


def test_leading_and_standing_by_from_many_threads_loses_nothing(own_redis):
    """No order of these calls is wrong, only useless."""
    with Subscriber(own_redis, "test:*") as subscriber, Standby(own_redis) as publisher:
        end = time.monotonic() + 1.5

        def call(function):
            while time.monotonic() < end:
                function()
                time.sleep(0.003)

        with Flood(publisher) as load:
            in_threads(
                lambda: call(publisher.stand_by),
                lambda: call(publisher.divert),
                *[lambda: call(lambda: publisher.client and publisher.lead(publisher.client))] * 2,
            )
        publisher.leads()
        eventually(lambda: publisher.backlog == 0)
        eventually(lambda: all(in_order(subscriber, name) == list(range(sent)) for name, sent in load.sent.items()))


# Redis restarts.


@pytest.mark.parametrize("leading", [True, False], ids=["leader", "standby"])
def test_after_a_restart_of_redis_messages_wait_for_the_subscribers_and_for_lead(own_redis, leading):
    """Also those of a standby, which knows the subscribers of a channel that it has had no message for."""
    with Standby(own_redis, channels=[CHANNEL]) as publisher:
        if leading:
            publisher.leads()
        with Subscriber(own_redis, CHANNEL):
            eventually(lambda: publisher.expects_subscribers() == 1)
        own_redis.kill()
        eventually(lambda: publisher.client is None)
        publisher.send(*range(100))
        own_redis.start()
        publisher.lead(eventually(lambda: publisher.client))
        time.sleep(0.3)  # 0.3 s: the subscriber is later than the publisher
        assert publisher.published == 0
        with Subscriber(own_redis, CHANNEL) as subscriber:
            eventually(lambda: numbers(subscriber) == list(range(100)))


def test_a_takeover_during_an_outage_sends_all_of_it(own_redis):
    """The standby has no connection when the leader dies, and leads as soon as there is one."""
    with Standby(own_redis, timeouts=QUICK) as publisher:
        own_redis.stop()
        eventually(lambda: publisher.client is None)
        publisher.send(*range(1000))
        own_redis.start()
        with Subscriber(own_redis, CHANNEL) as subscriber:
            publisher.leads()
            eventually(lambda: numbers(subscriber) == list(range(1000)))


def test_a_standby_of_a_replica_is_none(own_redis, caplog):
    caplog.set_level("INFO")
    with LocalRedis() as master:
        own_redis.client().replicaof("127.0.0.1", master.port)
        with Running(own_redis, pending=Pending(1 << 20)):
            eventually(lambda: "it is a replica" in caplog.text)
