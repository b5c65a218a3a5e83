"""ops/reconciler.py: which threads are started and ended, and what is announced, tick by tick."""

import logging
import random
import threading
import time

import pytest
from vocabulary import eventually

from conf.plan import Plan
from ops import reconciler as module
from ops.reconciler import Reconciler
from relay.bybit.client import Client
from relay.bybit.exchange import Exchange
from relay.errors import InvalidStream
from relay.kinds import TRADES, carries


@carries(TRADES)
def trades(symbol, callback):
    """Stands for main.subscribe_trades."""


def handle(message):
    """Stands for a callback."""


def entry(name="Trades", symbols="BTCUSDT", callback=handle, **more):
    return {"name": name, "func": trades, "args": (symbols, callback), **more}


class World(Exchange):
    """The exchange of streams that do nothing but wait for their end, Bybit's list, and all that happens in order."""

    def __init__(self):
        super().__init__("linear", testnet=True, sink=self)
        self.streams_of_user, self.symbols = [], None
        self.happened = []
        self.started = 0  # how often the list was to be read
        self.hangs = set()  # names whose threads do not end
        self.released = threading.Event()
        self.plan = Plan("linear", 50, limit=1000)
        self.reconciler = Reconciler(self.plan, self, self, self.runs)

    # As the sink, and as the instruments.

    def announce(self, event, stream, topics, **fields):
        self.happened.append((event, stream, topics))

    def flush(self):
        pass

    def start(self):
        self.started += 1

    # What a thread of a stream does.

    def runs(self, spec):
        assert threading.current_thread().name == spec.name
        self.happened.append(("runs", spec.name))
        self.pause(spec.name, float("inf"))
        if spec.name in self.hangs:
            self.released.wait(10)
        self.happened.append(("ends", spec.name))

    def assign(self, name, topics):
        self.happened.append(("assign", name, sorted(topics)))
        super().assign(name, topics)

    def forget(self, name):
        if name in self.streams:
            self.happened.append(("forget", name))
        super().forget(name)

    # What a test does.

    def tick(self, *streams):
        if streams:
            self.streams_of_user = list(streams)
        self.reconciler.tick(self.streams_of_user)

    def settle(self):
        """Ticks until all threads that should have ended; returns what happened since the last time."""

        def settled():
            self.tick()
            return not self.reconciler._ending and self.running() == set(self.reconciler.threads)

        eventually(settled)
        happened, self.happened = self.happened, []
        return happened

    def running(self):
        return {one.name for one in threading.enumerate() if one.name.partition("#")[0] in ("Trades", "Books", "Own")}


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr("relay.bybit.exchange.NOTICE_DROP", 0.02)
    made = World()
    yield made
    made.stop.set()
    made.released.set()
    made.reconciler.join(time.monotonic() + 10)


def test_a_stream_is_assigned_its_topics_before_its_thread_runs(world):
    world.tick(entry(symbols=["BTCUSDT", "ETHUSDT"]))
    assert world.settle() == [("assign", "Trades", ["publicTrade.BTCUSDT", "publicTrade.ETHUSDT"]), ("runs", "Trades")]
    world.tick()
    assert world.settle() == []
    assert world.streams["Trades"].watched
    assert not world.started, "no entry needs the list"


def test_an_entry_that_is_removed_ends_and_is_forgotten(world):
    world.tick(entry(), entry("Books"))
    world.settle()
    world.tick(entry("Books"))
    assert list(world.reconciler.threads) == ["Books"]
    assert world.settle() == [("ends", "Trades"), ("forget", "Trades")]
    assert list(world.streams) == ["Books"]
    assert world.reconciler.retired == {}


def test_a_change_of_symbols_costs_no_thread(world):
    world.tick(entry())
    world.settle()
    world.tick(entry(symbols=["ETHUSDT"]))
    assert world.settle() == [("assign", "Trades", ["publicTrade.ETHUSDT"])]


def test_another_callback_ends_the_thread_and_starts_another_when_it_has_ended(world):
    world.tick(entry())
    world.settle()
    world.streams["Trades"].messages = 5
    world.tick(entry(callback=print))
    assert world.settle() == [
        ("ends", "Trades"),
        ("forget", "Trades"),
        ("assign", "Trades", ["publicTrade.BTCUSDT"]),
        ("runs", "Trades"),
    ]
    assert world.assigned["Trades"] == {"publicTrade.BTCUSDT": print}
    assert world.reconciler.retired["Trades"].messages == 5, "what it did before still counts"


def test_a_func_of_the_users_own_is_assigned_nothing(world):
    world.tick({"name": "Own", "func": print, "args": ()})
    assert world.settle() == [("runs", "Own")]
    assert not world.streams["Own"].watched


def test_a_thread_that_does_not_end_is_logged_once_and_its_name_stays_taken(world, monkeypatch, caplog):
    world.hangs.add("Trades")
    world.tick(entry(), entry("Books"))
    world.settle()
    monkeypatch.setattr(module, "END_TIMEOUT", 0.0)
    world.tick(entry("Books"))
    world.tick(entry("Books"), entry(symbols="ETHUSDT"))
    world.tick()
    assert caplog.messages == ["Stream Trades is to end, but its function does not return"]
    assert world.happened == []
    world.released.set()
    happened = world.settle()
    assert happened[-2:] == [("assign", "Trades", ["publicTrade.ETHUSDT"]), ("runs", "Trades")]


def test_a_thread_that_died_is_started_again(world, caplog):
    world.tick(entry())
    world.settle()
    world.streams["Trades"].dropped = True  # nobody asked for that
    eventually(lambda: not world.running())
    world.streams["Trades"].dropped = False
    world.tick()
    assert world.settle()[-1] == ("runs", "Trades")
    assert caplog.messages == ["Stream thread Trades died; restarting it"]


def test_a_system_without_a_thread_to_give_is_logged_in_a_line_and_asked_again(world, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    world.tick(entry())
    world.settle()
    start = threading.Thread.start

    def refuses(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    for _ in range(3):
        world.tick(entry(), entry("Books"), entry("Own"))
    assert world.reconciler.threads.keys() == world.running() == {"Trades"}
    assert caplog.messages == ["No thread to be had for a stream: can't start new thread; trying again"]
    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(2):
        world.tick()
    eventually(lambda: world.running() == {"Trades", "Books", "Own"})
    assert world.reconciler.threads.keys() == {"Trades", "Books", "Own"}
    assert caplog.messages[1:] == ["All streams have their threads again"]


def test_an_entry_of_patterns_waits_for_the_list_without_a_thread(world, caplog):
    caplog.set_level(logging.INFO)
    world.tick(entry(symbols="ALL"), entry("Books"))
    world.tick()
    assert world.started == 2, "as often as it is looked at: start() may be called again"
    assert world.running() == {"Books"}
    assert not world.streams["Trades"].answered, "a standby is not ready without it"
    assert caplog.messages == ["Trades: waiting for Bybit's list of instruments"]
    world.settle()
    world.symbols = frozenset(["BTCUSDT", "ETHUSDT"])
    assert world.settle() == [
        ("assign", "Trades", ["publicTrade.BTCUSDT", "publicTrade.ETHUSDT"]),
        ("runs", "Trades"),
    ]
    assert len(caplog.messages) == 1


def test_an_entry_that_is_removed_while_it_waits_leaves_nothing(world):
    world.tick(entry(symbols="ALL"), entry("Books"))
    world.tick(entry("Books"))
    assert list(world.streams) == ["Books"]


def test_what_stands_beside_a_pattern_does_not_wait(world):
    """And who has only that is not ready: of the pattern's topics it has none."""
    world.tick(entry(symbols=["BTCUSDT", "ETH*"]))
    assert world.settle() == [("assign", "Trades", ["publicTrade.BTCUSDT"]), ("runs", "Trades")]
    assert world.streams["Trades"].waits
    world.symbols = frozenset(["ETHUSDT"])
    assert world.settle() == [("assign", "Trades", ["publicTrade.BTCUSDT", "publicTrade.ETHUSDT"])]
    assert not world.streams["Trades"].waits


def test_a_pattern_that_matches_nothing_is_no_stream(world):
    world.tick(entry(symbols="NOPE*"))
    world.symbols = frozenset(["BTCUSDT"])
    world.tick()
    assert (world.streams, world.running()) == ({}, set())
    world.symbols = frozenset(["BTCUSDT", "NOPEUSDT"])
    world.tick()
    assert world.settle() == [
        ("forget", "Trades"),
        ("listed", "Trades", ["publicTrade.NOPEUSDT"]),
        ("assign", "Trades", ["publicTrade.NOPEUSDT"]),
        ("runs", "Trades"),
    ]


def test_listed_and_delisted_are_announced_before_the_topics_change(world, caplog):
    caplog.set_level(logging.INFO)
    world.symbols = frozenset(["BTCUSDT", "ETHUSDT"])
    world.tick(entry(symbols="ALL"), entry("Books", ["NEWUSDT", "ETH*"]))
    world.settle()
    world.rejected.add("publicTrade.NEWUSDT", 0.0)
    caplog.clear()
    world.symbols = frozenset(["BTCUSDT", "NEWUSDT"])
    assert world.settle() == [
        ("delisted", "Trades", ["publicTrade.ETHUSDT"]),
        ("delisted", "Books", ["publicTrade.ETHUSDT"]),
        ("listed", "Trades", ["publicTrade.NEWUSDT"]),
        ("assign", "Trades", ["publicTrade.BTCUSDT", "publicTrade.NEWUSDT"]),
        ("assign", "Books", ["publicTrade.NEWUSDT"]),
    ]
    assert not world.rejected.blocks("publicTrade.NEWUSDT", 1.0), "it was rejected before it was listed"
    assert caplog.messages == [
        "Bybit no longer lists ETHUSDT: 2 topics less",
        "Bybit now lists NEWUSDT: 1 topic more",
    ]


def test_of_many_listings_the_log_names_a_few(world, caplog):
    caplog.set_level(logging.INFO)
    world.symbols = frozenset(["BTCUSDT"])
    world.tick(entry(symbols="ALL"))
    caplog.clear()
    world.symbols |= {f"COIN{number:03}USDT" for number in range(500)}
    world.tick()
    [line] = caplog.messages
    assert line.endswith("COIN003USDT and 496 more: 500 topics more")


def test_an_entry_grows_by_connections_and_keeps_its_first_one(world):
    many = frozenset(f"COIN{number:03}USDT" for number in range(80))
    world.symbols = frozenset(["BTCUSDT"])
    world.tick(entry(symbols="ALL"))
    world.settle()
    world.symbols |= many
    world.settle()
    assert set(world.reconciler.threads) == {"Trades", "Trades#2", "Trades#3"}
    assert [name for name, planned in world.plan.connections.items() if "publicTrade.BTCUSDT" in planned.topics] == [
        "Trades"
    ]
    world.streams["Trades#2"].messages = 7
    world.symbols = frozenset(["BTCUSDT"])
    happened = world.settle()
    assert set(world.reconciler.threads) == {"Trades"}
    assert ("assign", "Trades", ["publicTrade.BTCUSDT"]) in happened
    assert world.reconciler.retired["Trades"].messages == 7


def test_the_first_connection_stays_without_topics(world):
    world.symbols = frozenset(["BTCUSDT", "ETHUSDT"])
    world.tick(entry(symbols="BTC*"))
    world.settle()
    world.symbols = frozenset(["ETHUSDT"])
    assert world.settle() == [("delisted", "Trades", ["publicTrade.BTCUSDT"]), ("assign", "Trades", [])]
    assert world.running() == {"Trades"}


POOL = [f"COIN{number:02}USDT" for number in range(60)]


def any_entry(dice, lists):
    """An entry of STREAMS, right or wrong; some share a list of symbols, which changes in place."""
    name = dice.choice(["Trades", "Books", "Own"])
    wrong = [None, 7, {"name": name}, entry(name, "BAD SYMBOL"), entry("Trades#2")]
    symbols = dice.choice([*lists, "ALL", "COIN1*", dice.choice(POOL)])
    more = {"shard": dice.choice([(1, 2), (2, 2)])} if dice.random() < 0.2 else {}
    right = [entry(name, symbols, dice.choice([handle, print]), **more)] * 8
    return dice.choice([*wrong, {"name": name, "func": print, "args": ()}, *right])


def change(dice, world, streams, lists):
    """Something that a user does, or Bybit."""
    what = dice.randrange(5)
    if what == 0 or not streams:
        streams.append(any_entry(dice, lists))
    elif what == 1:
        del streams[dice.randrange(len(streams))]
    elif what == 2:
        streams[dice.randrange(len(streams))] = any_entry(dice, lists)
    elif what == 3:
        dice.choice(lists).append(dice.choice(POOL))
    else:
        world.symbols = frozenset(dice.sample(POOL, dice.randint(1, 60)))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_what_runs_becomes_what_is_planned(world, seed):
    dice, lists = random.Random(seed), [[], [POOL[0]]]
    streams = world.streams_of_user
    for _ in range(300):
        change(dice, world, streams, lists)
        world.tick()
        if dice.random() < 0.1:
            world.settle()
            planned = world.plan.connections
            carrying = {name: one.topics for name, one in planned.items() if one.topics}
            own = {name for name, one in planned.items() if one.topics is None}
            assert world.running() >= carrying.keys() | own
            assert {name: topics for name, topics in world.assigned.items() if topics} == carrying
            assert world.streams.keys() <= planned.keys()
    streams.clear()
    world.settle()
    assert not world.running()
    assert [world.streams, world.assigned, world.topics] == [{}, {}, {}], "nothing is left of it"


def test_a_func_that_subscribes_to_something_else_than_its_kind_is_refused():
    """Its topics would silently become others."""
    exchange = Exchange("linear", testnet=True, sink=None)
    exchange.assign(threading.current_thread().name, {"orderbook.50.BTCUSDT": handle})
    client = Client(exchange)
    client.orderbook_stream(depth=200, symbol="BTCUSDT", callback=handle)
    with pytest.raises(
        InvalidStream, match=r"^its func subscribes to orderbook\.200\.BTCUSDT, and the kind of its @car"
    ):
        client.run()
