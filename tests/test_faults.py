"""The whole way under random faults on both ends at once: nothing is lost that was received, and order is kept."""

import json
import random
import socket
import threading
import time
from functools import partial

import pytest
from conftest import Subscriber, eventually

import main
from relay import connection
from relay import publisher as publisher_module
from relay.connection import Connection, Pacer, close_all, raw
from relay.publisher import Publisher
from sandbox.bybit import Bybit

CHANNEL, TOPIC = "test:faults", "publicTrade.BTCUSDT"
SECONDS = 3.0  # of faults in a run
# What Bybit's end does to a connection, and whether what it had sent must have arrived all the same.
BYBIT_FAULTS = {
    "drop": True,
    "close": True,
    "reset": False,
    "freeze": False,
    "freeze_inside_frame": False,
    "garble": False,
    "babble": True,
}


class Run:
    """A stream and a publisher in this process, between a stand-in for Bybit and a real Redis."""

    def __init__(self, seed, bybit, redis, monkeypatch):
        self.chance = random.Random(seed)
        self.bybit, self.redis = bybit, redis
        self.number = 0  # messages sent by Bybit's end
        self.received = []  # numbers, as the callback got them
        self.faults = {}  # by connection: what ended it
        self.killed_at = []  # numbers published when Redis was killed
        self.publisher = Publisher("127.0.0.1", redis.port)
        monkeypatch.setattr(main, "stop", threading.Event())
        options = {"testnet": True, "url": bybit.url, "stop": main.stop, "flush": self.publisher.flush}
        monkeypatch.setattr(main, "connect", partial(Connection, "linear", **options))
        args = (f"Faults{seed}", main.subscribe_trades, ("BTCUSDT", raw(lambda message: self.take(message))), {})
        self.thread = threading.Thread(target=main.run_stream, args=args)

    def take(self, message):
        number = json.loads(message)["ts"]
        self.received.append(number)
        self.publisher.publish(CHANNEL, b"%d" % number)

    def send(self):
        text = f'{{"topic":"{TOPIC}","type":"snapshot","ts":{self.number},"data":[]}}'
        self.bybit.publish(text)
        self.number += 1

    def send_for(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(self.chance.randrange(20)):
                self.send()
            time.sleep(0.002)

    def fault(self):
        live = [one for one in self.bybit.connections if one.closed is None and one not in self.faults and one.topics]
        if live and self.chance.random() < 0.5:
            one, fault = live[-1], self.chance.choice(list(BYBIT_FAULTS))
            if fault == "babble":
                for text in ("", "no JSON", "[]", '{"op":"?"}'):
                    one.send(text)
                return
            self.faults[one] = fault
            if fault == "garble":
                one.send_raw(b"\xff\xff\xff\xff")
            else:
                getattr(one, fault)()
            return
        fault = self.chance.choice(["pause", "cut", "kill", "restart"])
        if fault == "pause":
            self.redis.pause()
            self.send_for(self.chance.uniform(0.05, 1.0))
            self.redis.resume()
        elif fault == "cut" and (live_socket := self.publisher._socket):
            try:
                live_socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it was just being replaced
        elif fault in ("kill", "restart"):
            getattr(self.redis, "kill" if fault == "kill" else "stop")()
            self.killed_at.append(len(self.received))
            self.send_for(self.chance.uniform(0.05, 0.4))
            self.redis.start()


@pytest.mark.parametrize("seed", range(8))
def test_all_that_was_received_arrives_in_order_at_least_once(seed, own_redis, monkeypatch):
    monkeypatch.setattr(main, "RECONNECT_DELAY", 0.02)
    monkeypatch.setattr(main, "RECONNECT_DELAY_MAX", 0.1)
    monkeypatch.setattr(connection, "pacer", Pacer(10_000, 300))
    monkeypatch.setattr(connection, "TICK", 0.02)
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(connection, "SILENCE_TIMEOUT", 0.6)
    monkeypatch.setattr(publisher_module, "ANSWER_TIMEOUT", 0.6)
    monkeypatch.setattr(publisher_module, "PROBE_INTERVAL", 0.05)
    monkeypatch.setattr(publisher_module, "HOLD", 5.0)
    with (
        Bybit(rate=0, record=True) as bybit,
        Subscriber(own_redis, CHANNEL, reconnect=True) as subscriber,
    ):
        run = Run(seed, bybit, own_redis, monkeypatch)
        run.publisher.start()
        run.thread.start()
        try:
            bybit.wait(lambda: bybit.connections and bybit.connections[-1].topics)
            run.send()
            eventually(lambda: run.publisher._audience.get(CHANNEL.encode()))
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                run.send_for(run.chance.uniform(0.02, 0.2))
                run.fault()
            at = len(bybit.connections)
            bybit.wait(lambda: any(one.topics and one not in run.faults for one in bybit.connections[at - 1 :]), 20)
            run.send()
            eventually(lambda: run.received and run.received[-1] == run.number - 1, 20)
            eventually(lambda: subscriber.messages and int(subscriber.messages[-1][1]) == run.number - 1, 20)
        finally:
            main.stop.set()
            close_all()
            run.thread.join(10)
            assert run.publisher.stop(time.monotonic() + 5) == 0
        assert not run.thread.is_alive()

    # From Bybit to the callback: in order, once, and of each connection all but what its own fault took with it.
    assert run.received == sorted(set(run.received))
    got = set(run.received)
    for one in bybit.connections:
        sent = [json.loads(text)["ts"] for text in one.sent if TOPIC in text]
        there = [number in got for number in sent]
        assert there == sorted(there, reverse=True), "a hole inside a connection"
        if BYBIT_FAULTS.get(run.faults.get(one), True) and one is not bybit.connections[-1]:
            assert all(there), f"lost at {run.faults.get(one)}"

    # From the callback to the subscriber: in order, at least once. When Redis is killed or stopped, what it had
    # confirmed and not yet delivered dies with it; nothing else may be missing.
    arrived = [int(payload) for payload in subscriber.of(CHANNEL)]
    firsts = list(dict.fromkeys(arrived))
    assert firsts == sorted(firsts)
    missing = [index for index, number in enumerate(run.received) if number not in set(firsts)]
    assert all(any(at - 3000 < index <= at + 100 for at in run.killed_at) for index in missing)
    assert len(missing) <= 100 * len(run.killed_at)
