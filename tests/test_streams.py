"""conf/streams.py: what an entry of STREAMS may be, and which topics it wants."""

import copy
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.streams import Entry, checked, in_shard
from relay.kinds import KINDS, LIQUIDATIONS, ORDERBOOK, TICKER, TRADES, carries, is_symbol

LIMIT = 21_000  # characters of topics on a connection
CALL = "BTC-25JUN27-106000-C-USDT"
PUT = CALL.replace("-C-", "-P-")
ETHER = CALL.replace("BTC", "ETH")
LISTED = frozenset(["BTCUSDT", "ETHUSDT", "BTCPERP", "1000PEPEUSDT"])


@carries(ORDERBOOK)
def book(symbol, callback):
    """Stands for main.subscribe_orderbook."""


@carries(TRADES)
def trades(symbol, callback):
    """Stands for main.subscribe_trades."""


@carries(LIQUIDATIONS)
def liquidations(symbol, callback):
    """Stands for main.subscribe_liquidations."""


def handle(message):
    """Stands for a callback."""


def check(different=(), category="linear", no_list="", **entry):
    """A good entry that is `different` in some keys, checked."""
    good = {"name": "Books", "func": book, "args": ("BTCUSDT", handle)}
    return checked(good | dict(different) | entry, category, no_list)


def topics(listed=None, category="linear", **entry):
    return list(check(category=category, **entry).topics(category, 200, listed))


def test_a_symbol_becomes_a_tuple_of_one():
    """One shape for all that run; the callback is handed on as it is."""
    assert check() == Entry("Books", book, (("BTCUSDT",), handle), {}, ("BTCUSDT",), None)
    assert check().callback is handle


@pytest.mark.parametrize("args", [(["BTC", "ETH"], handle), (("BTC", "ETH"), handle), [["BTC", "ETH"], handle]])
def test_lists_and_tuples_mean_the_same(args):
    assert check(args=args).wanted == ("BTC", "ETH")


@pytest.mark.parametrize("seconds", [0, 5, 2.5, float("inf")])
def test_the_stall_timeout_is_passed_on(seconds):
    assert check(stall_timeout=seconds).options == {"stall_timeout": seconds}


@pytest.mark.parametrize(("category", "depth"), [("linear", 1), ("linear", 1000), ("option", 25)])
def test_a_depth_of_its_own_is_passed_on_and_is_in_its_topics(category, depth):
    entry = check(category=category, depth=depth)
    assert entry.options == {"depth": depth}
    assert list(entry.topics(category, 50, None)) == [f"orderbook.{depth}.BTCUSDT"]


def test_a_symbol_named_twice_is_subscribed_once():
    """Bybit rejects a request that names a topic twice. The order stays."""
    symbols = ["ETHUSDT", "BTCUSDT", "ETHUSDT", "BTCUSDT", "SOLUSDT"]
    assert topics(func=trades, args=(symbols, handle)) == [
        "publicTrade.ETHUSDT",
        "publicTrade.BTCUSDT",
        "publicTrade.SOLUSDT",
    ]


def test_option_contracts_on_one_coin_share_a_topic_of_trades():
    args = ([CALL, PUT, ETHER], handle)
    entry = check(func=trades, category="option", args=args)
    assert entry.topics("option", 25, None) == {"publicTrade.BTC": CALL, "publicTrade.ETH": ETHER}
    assert len(topics(category="option", args=args)) == 3


@pytest.mark.parametrize(
    ("wanted", "listed", "found"),
    [
        ("ALL", None, []),
        ("ALL", LISTED, ["1000PEPEUSDT", "BTCPERP", "BTCUSDT", "ETHUSDT"]),
        ("BTC*", LISTED, ["BTCPERP", "BTCUSDT"]),
        (["NEWUSDT", "BTC*", "ETHUSDT", "*USDT"], LISTED, ["NEWUSDT", "BTCPERP", "BTCUSDT", "ETHUSDT", "1000PEPEUSDT"]),
        (["NEWUSDT", "BTC*"], None, ["NEWUSDT"]),
        ("btc*", LISTED, []),
    ],
)
def test_patterns_stand_for_what_bybit_lists(wanted, listed, found):
    entry = check(func=trades, args=(wanted, handle))
    assert entry.has_patterns
    assert list(entry.topics("linear", 50, listed)) == [f"publicTrade.{symbol}" for symbol in found]


def test_a_pattern_without_a_source_of_the_list_is_refused():
    assert not check(no_list="there is none").has_patterns
    with pytest.raises(ValueError, match=r"^STREAMS: Books: there is none$"):
        check(no_list="there is none", args=(["BTCUSDT", "ETH*"], handle))


symbols = st.from_regex(r"[\w-]{1,20}", fullmatch=True).filter(is_symbol)


@given(st.lists(symbols, min_size=1, max_size=40), st.integers(1, 9))
def test_every_subject_is_in_exactly_one_shard(names, count):
    shards = [{name for name in names if in_shard(name, (number, count))} for number in range(1, count + 1)]
    assert sum(map(len, shards)) == len(set(names))
    assert set().union(*shards) == set(names)
    assert all(in_shard(name, None) for name in names)


@given(kind=st.sampled_from(KINDS), category=st.sampled_from(["linear", "option"]), asked=st.lists(symbols, min_size=1))
def test_every_topic_is_wanted_by_one_shard_in_order(kind, category, asked):
    """Also the trades of options, which are by coin: no two collectors publish them."""
    if category not in kind.categories:
        return

    @carries(kind)
    def func(symbol, callback):
        """Stands for a subscribe_*."""

    entry = {"name": "All", "func": func, "args": (asked, handle)}
    before = copy.copy(entry), list(asked)
    whole = list(checked(entry, category).topics(category, 200, None))
    assert whole == list(dict.fromkeys(kind.topic_for(symbol, category, 200) for symbol in asked))
    parts = [
        list(checked(entry | {"shard": (number, 3)}, category).topics(category, 200, None)) for number in (1, 2, 3)
    ]
    assert sorted(topic for part in parts for topic in part) == sorted(whole)
    assert all(part == [topic for topic in whole if topic in part] for part in parts)
    assert (entry, asked) == before, "the entry is left as it was"


def test_the_kinds_of_a_symbol_are_in_one_shard():
    """One collector has the book, the trades and the ticker of a symbol."""
    assert {kind.subject("BTCUSDT", "linear") for kind in (ORDERBOOK, TRADES, TICKER, LIQUIDATIONS)} == {"BTCUSDT"}


@pytest.mark.parametrize("args", [(), [], ("BTCUSDT",), ("BTCUSDT", "BTCUSDT", 7), [["ETHUSDT"] * 3, handle]])
def test_a_func_of_the_users_own_is_left_alone(args):
    """Its args mean what it wants."""

    def own(*args, **options):
        """Something of the user's."""

    entry = check(func=own, args=args, stall_timeout=3, shard=None)
    assert entry == Entry("Books", own, tuple(args), {"stall_timeout": 3})
    assert entry.kind is None
    assert entry.topics("linear", 50, LISTED) == {}
    assert all(one is other for one, other in zip(entry.args, args, strict=True))


def test_a_func_of_the_users_own_may_be_an_object():
    """A dataclass with __call__ cannot be a key of a dict."""

    @dataclass
    class Own:
        symbol: str

        def __call__(self):
            """Something of the user's."""

    own = Own("BTCUSDT")
    assert check(func=own, args=()) == Entry("Books", own, (), {})


class Odd:
    """As numpy's arrays: it refuses to be compared."""

    def __eq__(self, other):
        raise ValueError("ambiguous")

    __hash__ = None


def test_what_runs_may_go_on_if_only_its_symbols_change():
    entry = check()
    assert entry.runs_as(check(args=(["ETHUSDT", "ALL"], handle)))
    assert entry.runs_as(check(shard=(1, 2)))
    assert not entry.runs_as(check(args=("BTCUSDT", print)))
    assert not entry.runs_as(check(func=trades))
    assert not entry.runs_as(check(stall_timeout=5))
    assert not entry.runs_as(check(depth=200))
    assert not entry.runs_as(check(func=print))
    odd = Odd()
    assert check(func=print, args=(odd,)).runs_as(check(func=print, args=[odd]))
    assert not check(func=print, args=(odd,)).runs_as(check(func=print, args=(Odd(),)))


@pytest.mark.parametrize("entry", [None, "Trades", ("Books", book, ("BTCUSDT", handle)), {}, {"name": 7}, {"name": ""}])
def test_what_is_not_an_entry_is_refused(entry):
    with pytest.raises(ValueError, match=r"^STREAMS: .* is not a dict with a name, a func and args") as problem:
        checked(entry, "linear")
    assert repr(entry) in str(problem.value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"funk": book}, "unknown key 'funk'"),
        ({7: book}, "unknown key 7"),
        ({"func": None}, "func is not a function"),
        ({"func": "subscribe_trades"}, "func is not a function"),
        ({"args": None}, "args is not a tuple"),
        ({"args": "BTCUSDT"}, "args is not a tuple"),
        ({"args": {"symbol": "BTCUSDT"}}, "args is not a tuple"),
        ({"stall_timeout": -1}, "stall_timeout is not a number of seconds, 0 or more"),
        ({"stall_timeout": "60"}, "stall_timeout is not a number of seconds, 0 or more"),
        ({"stall_timeout": None}, "stall_timeout is not a number of seconds, 0 or more"),
        ({"stall_timeout": float("nan")}, "stall_timeout is not a number of seconds, 0 or more"),
        ({"args": ()}, "args is not (symbol or list of symbols, callback)"),
        ({"args": ("BTCUSDT",)}, "args is not (symbol or list of symbols, callback)"),
        ({"args": ("BTCUSDT", "ETHUSDT", handle)}, "args is not (symbol or list of symbols, callback)"),
        ({"args": ("BTCUSDT", "handle")}, "args is not (symbol or list of symbols, callback)"),
        ({"args": (handle, "BTCUSDT")}, "args is not (symbol or list of symbols, callback)"),
        ({"args": ({"BTCUSDT"}, handle)}, "args is not (symbol or list of symbols, callback)"),
        ({"args": (None, handle)}, "args is not (symbol or list of symbols, callback)"),
        ({"args": ([], handle)}, "the list of symbols is empty"),
        ({"args": ("", handle)}, "'' is not a symbol"),
        ({"args": ("BTC USDT", handle)}, "'BTC USDT' is not a symbol"),
        ({"args": ("publicTrade.BTCUSDT", handle)}, "'publicTrade.BTCUSDT' is not a symbol"),
        ({"args": (["BTCUSDT", " "], handle)}, "' ' is not a symbol"),
        ({"args": (["BTCUSDT", None], handle)}, "None is not a symbol"),
        ({"args": (["BTCUSDT", ["ETHUSDT"]], handle)}, "['ETHUSDT'] is not a symbol"),
        ({"args": ("BTC.*", handle)}, "'BTC.*' is not a symbol"),
        ({"args": (["ALL", "*."], handle)}, "'*.' is not a symbol"),
        ({"args": ("X" * LIMIT, handle)}, "'XXXXXXXXXXXX...XXXXXXXXXXXXX' is too long for a symbol"),
        ({"depth": 25}, "depth is not one of 1, 50, 200, 1000, the depths that Bybit has for linear"),
        ({"depth": "50"}, "depth is not one of 1, 50, 200, 1000, the depths that Bybit has for linear"),
        ({"depth": True}, "depth is not one of 1, 50, 200, 1000, the depths that Bybit has for linear"),
        ({"depth": None}, "depth is not one of 1, 50, 200, 1000, the depths that Bybit has for linear"),
        ({"depth": 50, "func": trades}, "depth is for order books only"),
        ({"depth": 50, "func": print}, "depth is for order books only"),
        ({"shard": "1/3"}, "shard is not (number, how many), such as (1, 3)"),
        ({"shard": (0, 3)}, "shard is not (number, how many), such as (1, 3)"),
        ({"shard": (4, 3)}, "shard is not (number, how many), such as (1, 3)"),
        ({"shard": (1, 3.0)}, "shard is not (number, how many), such as (1, 3)"),
        ({"shard": (True, 3)}, "shard is not (number, how many), such as (1, 3)"),
        ({"shard": (1, 3), "func": print}, "shard is for the functions that subscribe to one kind of data"),
        ({"name": "Books#2"}, 'a name has no "#": that numbers the connections of an entry'),
    ],
)
def test_a_wrong_entry_is_refused_in_a_sentence_that_names_it(wrong, sentence):
    with pytest.raises(ValueError, match=r"^STREAMS: ") as problem:
        check(wrong)
    name = wrong.get("name", "Books")
    assert str(problem.value) == f"STREAMS: {name}: {sentence}"


def test_a_name_that_no_text_can_hold_is_refused():
    """It would be a thread's, a field's of the state hash, and part of every event."""
    with pytest.raises(ValueError, match=r"^STREAMS: a�: the name has half of a surrogate pair$"):
        check(name="a\ud800")


def test_the_name_that_the_state_hash_needs_is_refused():
    with pytest.raises(ValueError, match=r"^STREAMS: \*: the name stands for the collector as a whole$"):
        check(name="*")


@pytest.mark.parametrize("category", ["spot", "option"])
def test_a_kind_that_the_category_does_not_have_is_refused(category):
    with pytest.raises(ValueError, match=f"^STREAMS: Books: Bybit has no such topic for CHANNEL_TYPE={category}$"):
        check(func=liquidations, category=category)


@pytest.mark.parametrize(("missing", "sentence"), [("func", "func is not a function"), ("args", "args is not a tuple")])
def test_an_entry_without_a_part_is_refused(missing, sentence):
    entry = {"name": "Books", "func": book, "args": ("BTCUSDT", handle)}
    del entry[missing]
    with pytest.raises(ValueError, match=f"STREAMS: Books: {sentence}"):
        checked(entry, "linear")
