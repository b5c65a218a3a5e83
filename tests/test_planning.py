"""conf/plan.py: what should run, whatever a user does to STREAMS and Bybit to its list."""

import pytest

from conf.plan import Plan
from conf.streams import Entry
from relay.kinds import ORDERBOOK, TRADES, carries


@carries(ORDERBOOK)
def book(symbol, callback):
    """Stands for main.subscribe_orderbook."""


@carries(TRADES)
def trades(symbol, callback):
    """Stands for main.subscribe_trades."""


def handle(message):
    """Stands for a callback."""


def entry(name="Trades", symbols="BTCUSDT", func=trades, callback=handle, **more):
    return {"name": name, "func": func, "args": (symbols, callback), **more}


class World:
    """STREAMS and Bybit's list, which a test changes, and their plan."""

    def __init__(self, *streams, listed=None, category="linear", **more):
        self.streams, self.listed = list(streams), listed and frozenset(listed)
        self.plan = Plan(category, 50, **more)

    def update(self):
        return self.plan.update(self.streams, self.listed)

    def list(self, *symbols):
        """Bybit's list is another one; returns what that changes."""
        self.listed = frozenset(symbols)
        return self.update()

    @property
    def topics(self):
        """Those of each connection, without the beginning that all share here."""
        found = self.plan.connections.items()
        return {name: [topic.rpartition(".")[2] for topic in one.topics] for name, one in found}


def test_nothing_is_planned_anew_while_nothing_changes():
    symbols = ["BTCUSDT"]
    world = World(entry(symbols=symbols), entry("Own", func=print), listed=["BTCUSDT"])
    assert world.update() == ([], [], {}, {})
    before = world.plan.connections
    world.listed = frozenset(["BTCUSDT"])
    world.streams[0] = entry(symbols=["BTCUSDT"])
    assert world.update() is None
    assert world.plan.connections is before


def test_an_entry_is_a_connection_whose_callback_gets_each_topic():
    world = World(entry(symbols=["BTCUSDT", "ETHUSDT"], stall_timeout=7))
    world.update()
    [planned] = world.plan.connections.values()
    assert planned.spec == ("Trades", trades, (["BTCUSDT", "ETHUSDT"], handle), {"stall_timeout": 7})
    assert planned.topics == {"publicTrade.BTCUSDT": handle, "publicTrade.ETHUSDT": handle}
    assert world.plan.wanted == {"Trades": 2}


def test_a_func_of_the_users_own_gets_what_it_was_given():
    args = (["BTCUSDT"], {"a": 1})
    world = World({"name": "Own", "func": print, "args": args})
    world.update()
    [planned] = world.plan.connections.values()
    assert planned.topics is None
    assert all(one is other for one, other in zip(planned.spec.args, args, strict=True))
    assert world.plan.wanted == {"Own": None}
    args[0].append("ETHUSDT")
    world.update()
    [again] = world.plan.connections.values()
    assert again.entry.runs_as(planned.entry), "what it does with its own objects is its own business"


@pytest.mark.parametrize("in_place", [True, False])
def test_symbols_may_change(in_place):
    symbols = ["BTCUSDT"]
    world = World(entry(symbols=symbols))
    world.update()
    if in_place:
        symbols.append("ETHUSDT")
    else:
        world.streams[0]["args"] = (["BTCUSDT", "ETHUSDT"], handle)
    assert world.update() == ([], [], {}, {})
    assert world.topics == {"Trades": ["BTCUSDT", "ETHUSDT"]}
    symbols[:] = []
    world.streams[0]["args"] = (symbols, handle)
    assert world.update().problems == ["STREAMS: Trades: the list of symbols is empty"]
    assert world.topics == {"Trades": ["BTCUSDT", "ETHUSDT"]}, "while the user fills it anew, the old ones go on"


def test_an_entry_may_come_and_go():
    world = World(entry())
    world.update()
    world.streams.append(entry("More", "ETHUSDT"))
    world.update()
    assert world.topics == {"Trades": ["BTCUSDT"], "More": ["ETHUSDT"]}
    del world.streams[0]
    world.update()
    assert world.topics == {"More": ["ETHUSDT"]}
    assert world.plan.wanted == {"More": 1}


def test_a_wrong_entry_is_told_once_and_its_old_version_goes_on():
    world = World(entry(), entry("Other"))
    world.update()
    world.streams[0] = entry(symbols="ETH USDT")
    world.streams[1] = entry("Other", "ETHUSDT")
    assert world.update().problems == ["STREAMS: Trades: 'ETH USDT' is not a symbol"]
    assert world.topics == {"Trades": ["BTCUSDT"], "Other": ["ETHUSDT"]}
    world.streams.append(entry("New"))
    assert world.update().problems == []
    world.streams[0] = entry(symbols="SOLUSDT")
    world.update()
    assert world.topics["Trades"] == ["SOLUSDT"]
    world.streams[0] = entry(symbols="ETH USDT")
    assert len(world.update().problems) == 1, "it was right meanwhile"


@pytest.mark.parametrize("wrong", [None, 7, "Trades", {}, {"name": ["Trades"]}, {"name": "Trades", "args": 1}])
def test_whatever_stands_in_streams_the_others_run(wrong):
    world = World(wrong, entry("Good"))
    assert len(world.update().problems) == 1
    assert world.topics == {"Good": ["BTCUSDT"]}
    assert world.update() is None


def test_an_object_that_fails_in_every_way_is_a_wrong_entry():
    class Odd:
        def __call__(self):
            """Something of the user's."""

        def __getattr__(self, name):
            raise LookupError("odd")

    world = World({"name": "Odd", "func": Odd(), "args": ()}, entry("Good"))
    [problem] = world.update().problems
    assert problem == "STREAMS: Odd: LookupError('odd')"
    assert world.topics == {"Good": ["BTCUSDT"]}


def test_of_two_entries_with_one_name_the_first_runs_until_it_is_removed():
    world = World(entry(), entry(symbols="ETHUSDT"))
    assert world.update().problems == ["STREAMS: Trades: the name is used twice"]
    assert world.topics == {"Trades": ["BTCUSDT"]}
    del world.streams[0]
    assert world.update().problems == []
    assert world.topics == {"Trades": ["ETHUSDT"]}


def test_patterns_wait_for_the_list():
    world = World(entry(symbols="ALL"), entry("Some", ["BTCUSDT", "*PERP"]), entry("Plain"))
    world.update()
    assert world.plan.needs_list
    assert world.plan.waiting == ("Trades", "Some")
    assert world.topics == {"Trades": [], "Some": ["BTCUSDT"], "Plain": ["BTCUSDT"]}
    assert world.plan.wanted == {"Trades": None, "Some": 1, "Plain": 1}
    changes = world.list("BTCUSDT", "BTCPERP")
    assert changes == ([], [], {}, {}), "the first list is no news: nothing was listed just now"
    assert world.topics["Trades"] == ["BTCPERP", "BTCUSDT"]
    assert world.topics["Some"] == ["BTCUSDT", "BTCPERP"]
    assert world.plan.waiting == ()
    assert world.plan.wanted == {"Trades": 2, "Some": 2, "Plain": 1}


def test_what_is_listed_and_delisted_is_told_by_entry_and_topic():
    world = World(
        entry(symbols="ALL"),
        entry("Some", ["ETHUSDT", "BTC*"]),
        entry("Plain", ["NEWUSDT"]),
        listed=["BTCUSDT", "ETHUSDT"],
    )
    world.update()
    changes = world.list("NEWUSDT", "BTCUSDT")
    new = {"publicTrade.NEWUSDT": "NEWUSDT"}
    assert changes.listed == {"Trades": new}
    assert changes.newly_listed == ["publicTrade.NEWUSDT"] * 2, (
        "also that of a plain name, which Bybit may have rejected"
    )
    assert changes.delisted == {"Trades": {"publicTrade.ETHUSDT": "ETHUSDT"}}
    assert world.topics == {"Trades": ["BTCUSDT", "NEWUSDT"], "Some": ["ETHUSDT", "BTCUSDT"], "Plain": ["NEWUSDT"]}
    changes = world.list("BTCUSDT")
    assert changes.listed == {}
    assert changes.delisted == {"Trades": new}


def test_what_a_user_adds_is_not_listed_by_bybit():
    world = World(entry(symbols="BTC*"), listed=["BTCUSDT", "ETHUSDT"])
    world.update()
    world.streams[0] = entry(symbols="*")
    world.streams.append(entry("More", "ALL"))
    assert world.update() == ([], [], {}, {})


def test_trades_of_options_end_with_the_last_contract_of_their_coin():
    contracts = [f"BTC-25JUN27-{price}-C-USDT" for price in (100000, 106000)]
    world = World(entry(symbols="BTC-*"), category="option", listed=[*contracts, "ETH-25JUN27-4000-C-USDT"])
    world.update()
    assert world.topics == {"Trades": ["BTC"]}
    assert world.list(contracts[1]).delisted == {}
    assert world.topics == {"Trades": ["BTC"]}
    changes = world.list("ETH-25JUN27-4000-C-USDT")
    assert list(changes.delisted["Trades"]) == ["publicTrade.BTC"]
    assert world.topics == {"Trades": []}
    assert world.plan.wanted == {"Trades": 0}


def test_a_shard_without_symbols_wants_nothing():
    shards = [World(entry(shard=(number, 9))) for number in range(1, 10)]
    for world in shards:
        world.update()
    assert sorted(world.plan.wanted["Trades"] for world in shards) == [0] * 8 + [1]
    assert not shards[0].plan.waiting


def test_many_topics_are_several_connections_of_one_entry():
    symbols = [f"COIN{number:03}USDT" for number in range(800)]
    world = World(entry(symbols="ALL", func=book), listed=symbols)
    world.update()
    assert list(world.plan.connections) == ["Trades", "Trades#2"]
    assert sum(world.plan.wanted.values()) == 800
    before = world.topics
    world.list(*symbols[1:], "NEWUSDT")
    after = world.topics
    moved = {name: set(after[name]) ^ set(before[name]) for name in before}
    assert sorted(symbol for changed in moved.values() for symbol in changed) == ["COIN000USDT", "NEWUSDT"]
    first = world.plan.connections["Trades"]
    assert [f"orderbook.50.{symbol}" for symbol in first.spec.args[0]] == list(first.topics)


def test_an_entry_may_become_another_thing_altogether():
    world = World(entry(symbols=["BTCUSDT", "ETHUSDT"]))
    world.update()
    before = world.plan.connections["Trades"].entry
    world.streams[0] = {"name": "Trades", "func": print, "args": ()}
    world.update()
    [planned] = world.plan.connections.values()
    assert planned.topics is None
    assert not planned.entry.runs_as(before)
    world.streams[0] = entry(symbols="SOLUSDT", func=book)
    world.update()
    assert world.topics == {"Trades": ["SOLUSDT"]}


def test_entries_are_told_in_the_order_of_streams():
    world = World(entry("B"), None, entry("A"))
    world.update()
    assert [one.name for one in world.plan.entries] == ["B", "A"]
    assert all(isinstance(one, Entry) for one in world.plan.entries)
