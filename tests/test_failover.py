"""A master that fails over, with real Redis servers and Sentinels, message by message. `make failover` has more."""

import time
from contextlib import contextmanager

import pytest
from conftest import Subscriber, eventually
from failover import Switch
from test_publisher import Running, numbers
from topology import HASTE, USUAL, Replicated

from relay.redis.dial import located
from relay.redis.endpoint import Hosts
from relay.redis.link import Timeouts
from relay.redis.pending import Pending
from relay.redis.publisher import Publisher
from sandbox.redis import HOST

CHANNEL = "test:a"
QUICK = Timeouts(connect=0.5, reply=1.0, probe=0.1, grace=0.3, retry_max=0.1)


class Flow:
    """A publisher that sends numbers, one after the other, while something is waited for."""

    def __init__(self, endpoint):
        self.publisher = Publisher(endpoint=endpoint, timeouts=QUICK)
        self.sent = 0

    def __enter__(self):
        self.publisher.start()
        eventually(lambda: self.publisher.connected)
        return self

    def __exit__(self, *_):
        self.publisher.stop(time.monotonic() + 2)

    def until(self, check):
        def sends():
            self.publisher.publish(CHANNEL, b"%d" % self.sent)
            self.publisher.flush()
            self.sent += 1
            return check()

        eventually(sends)

    def passes(self, seconds):
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def all_arrived(self, *subscribers):
        """Whether all that was sent has arrived, in these together, the first times in order."""
        found = [number for subscriber in subscribers for number in numbers(subscriber)]
        assert [*dict.fromkeys(found)] == sorted(set(found))
        return set(found) == set(range(self.sent))


@pytest.fixture(scope="module")
def replicated():
    with Replicated() as nodes:
        yield nodes


@pytest.fixture
def nodes(replicated):
    """A master, its replica and three Sentinels, all well."""
    replicated.wait_until_healthy()
    return replicated


def expects(flow):
    return flow.publisher._loop.probe.expected.get(CHANNEL.encode()) == 1


def port(publisher):
    return int(publisher._loop._log.address.rpartition(":")[2])


def test_a_planned_failover_loses_nothing_wherever_a_subscriber_is(nodes):
    """One stays at the old master until that ends the connection. Another one is at the new master at once."""
    with Flow(located([], nodes.sentinel_addresses, timeouts=QUICK)) as flow:
        old = nodes.master
        with Subscriber(old, CHANNEL) as before:
            flow.until(lambda: expects(flow))
            # A replica passes on what its master publishes, until it is promoted, which ends its connections.
            replica = next(node for node in nodes.nodes if node is not old)
            with Subscriber(replica, CHANNEL, reconnect=True) as early:
                flow.until(lambda: numbers(early))
                nodes.failover()
                flow.until(lambda: flow.publisher._loop.trust.doubt)
                moved = flow.sent
                flow.passes(0.5)
                assert port(flow.publisher) == old.port, "somebody is still there"
                nodes.pace(*HASTE)  # the old master learns of it now, not after 10 s
                flow.until(lambda: port(flow.publisher) == nodes.master.port)
                nodes.pace(*USUAL)
                eventually(lambda: max(numbers(early)) == flow.sent - 1)
                assert max(numbers(before)) > moved, "whoever stays misses nothing meanwhile"
                assert set(numbers(early)) >= set(range(numbers(early)[0], flow.sent))


def test_a_publisher_that_ends_leaves_nothing_to_a_master_that_sentinel_has_left(nodes):
    with Flow(located([], nodes.sentinel_addresses, timeouts=QUICK)) as flow:
        old = nodes.master
        with Subscriber(old, CHANNEL) as before:
            flow.until(lambda: expects(flow))
            nodes.failover()
            flow.until(lambda: flow.publisher._loop.trust.doubt)
            with Subscriber(nodes.master, CHANNEL) as after:
                moved = flow.sent
                flow.passes(0.5)
                assert port(flow.publisher) == old.port
                assert flow.publisher.stop(time.monotonic() + 5) == 0
                eventually(lambda: set(numbers(after)) >= set(range(moved, flow.sent)))
            assert numbers(before)[-1] == flow.sent - 1, "whoever stays misses nothing either"


def test_where_nobody_is_left_the_publisher_follows_sentinel_at_once(nodes):
    with Flow(located([], nodes.sentinel_addresses, timeouts=QUICK)) as flow:
        with Subscriber(nodes.master, CHANNEL) as before:
            flow.until(lambda: expects(flow))
        old = nodes.master
        nodes.failover()
        with Subscriber(nodes.master, CHANNEL) as after:
            flow.until(lambda: port(flow.publisher) == nodes.master.port)
            assert old.role == "master", "it has not learnt of it"
            eventually(lambda: max(numbers(after), default=0) == flow.sent - 1)
            assert set(range(max(numbers(before)) + 1, flow.sent)) <= set(numbers(after))


@contextmanager
def pair_behind_a_name():
    """A master, its replica, and an address that leads to the master."""
    with Replicated(sentinels=0) as nodes, Switch(nodes.nodes[0].port) as switch:
        yield nodes.nodes[0], nodes.nodes[1], switch


def test_an_old_master_that_comes_back_for_a_while_costs_nothing():
    """The subscribers are at the new master all the time, and the publisher cannot know where that is."""
    with pair_behind_a_name() as (old, new, switch), Flow(Hosts([(HOST, switch.port)])) as flow:
        with Subscriber(old, CHANNEL) as before:
            flow.until(lambda: expects(flow))
            old.kill()
        new.client().replicaof("NO", "ONE")
        with Subscriber(new, CHANNEL) as after:
            flow.passes(0.2)
            old.start()
            flow.until(lambda: flow.publisher._loop.trust.doubt)
            confirmed = flow.publisher.published
            flow.until(lambda: flow.publisher.published > confirmed + 50)  # in vain
            switch.leads_to(new.port)
            flow.until(lambda: flow.publisher.connected and port(flow.publisher) == switch.port)
            eventually(lambda: flow.all_arrived(before, after))
            eventually(lambda: flow.publisher._pipeline.retained == 0)


def test_a_restart_of_a_single_redis_sends_nothing_again(own_redis, caplog):
    with Flow(Hosts([(HOST, own_redis.port)])) as flow:
        with Subscriber(own_redis, CHANNEL):
            flow.until(lambda: expects(flow))
        own_redis.kill()
        own_redis.start()
        eventually(lambda: "is back" in caplog.text)
        assert "confirmed messages again" not in caplog.text
        assert flow.publisher._loop.trust.doubt == ""


def test_without_the_right_to_info_the_same_server_gets_the_messages_again():
    with Replicated(sentinels=0) as nodes, Subscriber(nodes.master, CHANNEL) as subscriber:
        admin = nodes.master.client()
        admin.execute_command("ACL", "SETUSER", "default", "-info")
        with Running(nodes.master, connected=True, timeouts=Timeouts(probe=30)) as publisher:
            publisher.send(*range(5))
            eventually(lambda: publisher._pipeline.retained == 5)
            admin.client_kill_filter(_type="normal", skipme=True)
            eventually(lambda: numbers(subscriber) == [*range(5), *range(5)])


def test_a_standby_strikes_nothing_out_while_redis_may_be_the_wrong_one(own_redis):
    """What the leader publishes there may have reached nobody."""
    with Replicated(sentinels=0) as nodes:
        old = nodes.master
        publisher = Publisher(HOST, old.port, pending=Pending(1 << 20), channels=[CHANNEL], timeouts=QUICK)
        publisher.start()
        try:
            with Subscriber(old, CHANNEL):
                eventually(lambda: publisher._loop.probe.expected.get(CHANNEL.encode()) == 1)
                publisher.publish(CHANNEL, b"1")
                publisher.strike(CHANNEL, b"1")
                assert publisher.pending == 0
                old.kill()
            old.start()
            eventually(lambda: publisher._loop.trust.doubt)
            publisher.publish(CHANNEL, b"2")
            publisher.strike(CHANNEL, b"2")
            assert publisher.pending == 1
            with Subscriber(old, CHANNEL):
                eventually(lambda: not publisher._loop.trust.doubt)
                publisher.strike(CHANNEL, b"2")
                assert publisher.pending == 0
        finally:
            publisher.stop(time.monotonic() + 1)


@pytest.mark.parametrize("mine", [True, False])
def test_a_standby_is_no_subscriber(own_redis, mine):
    """A subscription of its own does not make up for a consumer that is missing."""
    publisher = Publisher(HOST, own_redis.port, pending=Pending(1 << 20), channels=[CHANNEL], timeouts=QUICK)
    publisher.start()
    try:
        channels = (CHANNEL, publisher.standby_channel) if mine else (CHANNEL,)
        with Subscriber(own_redis, *channels), own_redis.client() as client:
            eventually(lambda: client.pubsub_numsub(CHANNEL)[0][1] == 1)
            rounds = publisher._loop.probe.rounds
            eventually(lambda: publisher._loop.probe.rounds > rounds + 2)
            assert publisher._loop.probe.expected.get(CHANNEL.encode(), 0) == (0 if mine else 1)
    finally:
        publisher.stop(time.monotonic() + 1)


def test_thousands_of_channels_do_not_delay_a_connection_to_the_same_redis(own_redis):
    names = [f"test:{number}" for number in range(2000)]
    with Subscriber(own_redis, *names), Running(own_redis, connected=True, timeouts=QUICK) as publisher:
        for name in names:
            publisher.send(1, channel=name)
        eventually(lambda: len(publisher._loop.probe.expected) == len(names))
        own_redis.client().client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: not publisher.connected)
        began = time.monotonic()
        eventually(lambda: publisher.connected)
        assert time.monotonic() - began < 0.3
