"""The whole way under random faults on both ends at once: nothing is lost that was received, and order is kept.

The seed of a failed run is in its name: `FAULT_SEED=1234 pytest tests/test_faults.py` repeats its choices.
"""

import json
import os
import random
import time

import pytest
from conftest import Subscriber, eventually
from vocabulary import TIMER, both_ways, message

from relay.backoff import Backoff
from relay.batch import Batch
from relay.bybit.health import Timeouts
from relay.dispatch import batched, raw
from relay.redis import link
from relay.redis.publisher import Publisher

CHANNEL, TOPIC = "test:faults", "publicTrade.BTCUSDT"
SECONDS = 3.0  # of faults in a run
SEEDS = [int(os.environ["FAULT_SEED"])] if "FAULT_SEED" in os.environ else [0, 1, "random", "random"]
# What Bybit's end does to a connection, and whether what it had sent must have arrived all the same.
BYBIT_FAULTS = {
    "drop": True,
    "close": True,
    "reset": False,
    "freeze": False,
    "freeze_inside_frame": False,
    "invalid frame": False,
    "garbage": True,
}


class Run:
    """A stream and a publisher in this process, between a stand-in for Bybit and a real Redis."""

    def __init__(self, seed, exchange, collector, redis):
        self.chance = random.Random(int(seed))
        self.exchange, self.redis = exchange, redis
        self.sent = 0  # messages that Bybit's end sent; each bears its number
        self.received = []  # numbers, as the callback got them
        self.faults = {}  # by connection: what ended it
        self.killed_at = []  # numbers received when Redis was killed
        timeouts = link.Timeouts(reply=0.6, probe=0.05, grace=5.0)
        collector.sink = self.publisher = Publisher("127.0.0.1", redis.port, timeouts=timeouts)
        self.publisher.start()
        mark = batched if collector.lends else raw
        collector.streams("publicTrade", "BTCUSDT", callback=mark(lambda texts: self.take(texts)))

    def take(self, texts):
        """One text, or a Batch."""
        for text in texts if isinstance(texts, Batch) else [texts]:
            number = json.loads(text)["ts"]
            self.received.append(number)
            self.publisher.publish(CHANNEL, b"%d" % number)

    def send(self):
        self.exchange.publish(message(TOPIC, self.sent))
        self.sent += 1

    def send_for(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(self.chance.randrange(20)):
                self.send()
            time.sleep(0.002)

    def live_connections(self):
        return [one for one in self.exchange.open_connections() if one not in self.faults and one.topics]

    def fault(self):
        live = self.live_connections()
        if live and self.chance.random() < 0.5:
            self.fault_of_bybit(live[-1], self.chance.choice(list(BYBIT_FAULTS)))
        else:
            self.fault_of_redis(self.chance.choice(["pause", "cut", "kill", "restart"]))

    def fault_of_bybit(self, connection, fault):
        if fault == "garbage":
            for text in ("", "no JSON", "[]", '{"op":"?"}'):
                connection.send(text)
            return
        self.faults[connection] = fault
        if fault == "invalid frame":
            connection.send_raw(b"\xff\xff\xff\xff")
        else:
            getattr(connection, fault)()

    def fault_of_redis(self, fault):
        if fault == "pause":
            self.redis.pause()
            self.send_for(self.chance.uniform(0.05, 1.0))
            self.redis.resume()
        elif fault == "cut":
            with self.redis.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
        else:
            getattr(self.redis, "kill" if fault == "kill" else "stop")()
            self.killed_at.append(len(self.received))
            self.send_for(self.chance.uniform(0.05, 0.4))
            self.redis.start()

    def wait_for_probes(self, count):
        """Until the publisher has asked Redis so many times who is subscribed."""

        def probes():
            with self.redis.client() as client:
                return client.info("commandstats").get("cmdstat_pubsub|numsub", {"calls": 0})["calls"]

        before = probes()
        eventually(lambda: probes() >= before + count)


@both_ways
@pytest.mark.parametrize("seed", SEEDS)
def test_all_that_was_received_arrives_in_order_at_least_once(seed, lends, request, exchange, collector, own_redis):
    """Read by the connection's own thread without TLS, by the Reader with it."""
    if lends:
        exchange = request.getfixturevalue("tls_exchange")
        collector.reads_from(exchange)
    if seed == "random":  # drawn here and not above: every process that runs tests must collect the same ones
        seed = random.getrandbits(32)
    print(f"seed {seed}")
    collector.timeouts = Timeouts(timer=TIMER, ping_interval=0.1, silence=0.6)
    collector.backoff = lambda: Backoff(0.02, 0.1)
    with Subscriber(own_redis, CHANNEL, reconnect=True) as subscriber:
        run = Run(seed, exchange, collector, own_redis)
        try:
            exchange.subscribed()
            run.send()
            eventually(lambda: subscriber.messages)
            run.wait_for_probes(
                3
            )  # it knows the subscriber: a restarted Redis is not sent the backlog before it is back
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                run.send_for(run.chance.uniform(0.02, 0.2))
                run.fault()
            exchange.wait(run.live_connections, 20)
            run.send()
            eventually(lambda: run.received and run.received[-1] == run.sent - 1, 20)
            eventually(lambda: subscriber.messages and int(subscriber.messages[-1][1]) == run.sent - 1, 20)
        finally:
            collector.stops()
            assert run.publisher.stop(time.monotonic() + 5) == 0
    check_way_to_callback(run)
    check_way_to_subscriber(run, [int(payload) for payload in subscriber.of(CHANNEL)])


def check_way_to_callback(run):
    """In order, once, and of each connection all but what its own fault took with it."""
    assert run.received == sorted(set(run.received))
    got = set(run.received)
    for one in run.exchange.connections:
        there = [json.loads(text)["ts"] in got for text in one.sent if TOPIC in text]
        assert there == sorted(there, reverse=True), "a hole inside a connection"
        if BYBIT_FAULTS.get(run.faults.get(one), True) and one is not run.exchange.connections[-1]:
            assert all(there), f"lost at {run.faults.get(one)}"


def check_way_to_subscriber(run, arrived):
    """In order, at least once. When Redis is killed or stopped, what it had confirmed and not yet delivered dies with
    it; nothing else may be missing.
    """
    firsts = list(dict.fromkeys(arrived))
    assert firsts == sorted(firsts)
    missing = [index for index, number in enumerate(run.received) if number not in set(firsts)]
    assert all(any(at - 3000 < index <= at + 100 for at in run.killed_at) for index in missing)
    assert len(missing) <= 100 * len(run.killed_at)
