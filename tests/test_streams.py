"""conf/streams.py: what an entry of STREAMS may be, and how it is split over connections."""

import copy
import json
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import main
from conf.streams import plan_streams
from relay.kinds import KINDS, LIQUIDATIONS, ORDERBOOK, TRADES, carries, is_symbol

LIMIT = 21_000  # characters of topics on a connection, as main.py passes them
CALL = "BTC-25JUN27-106000-C-USDT"


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


def plan(different=(), category="linear", limit=LIMIT, **entry):
    """The streams of a good entry that is `different` in some keys."""
    good = {"name": "Books", "func": book, "args": ("BTCUSDT", handle)}
    return list(plan_streams(good | dict(different) | entry, category, 200, limit))


def characters(topics):
    """What these topics take in the JSON text of a request."""
    return len(json.dumps(topics, separators=(",", ":"), ensure_ascii=False))


def topics_of(stream, category):
    return [stream.kind.topic_for(symbol, category, 200) for symbol in stream.args[0]]


def test_a_symbol_becomes_a_list_of_one():
    """One shape for all that run; the callback is handed on as it is."""
    assert plan() == [("Books", book, (["BTCUSDT"], handle), {})]


@pytest.mark.parametrize("args", [(["BTC", "ETH"], handle), (("BTC", "ETH"), handle), [["BTC", "ETH"], handle]])
def test_lists_and_tuples_mean_the_same(args):
    assert plan(args=args) == [("Books", book, (["BTC", "ETH"], handle), {})]


@pytest.mark.parametrize("seconds", [0, 5, 2.5, float("inf")])
def test_the_stall_timeout_is_passed_on(seconds):
    [stream] = plan(stall_timeout=seconds)
    assert stream.options == {"stall_timeout": seconds}


def test_a_symbol_named_twice_is_subscribed_once():
    """Bybit rejects a request that names a topic twice. The order stays."""
    [stream] = plan(args=(["ETHUSDT", "BTCUSDT", "ETHUSDT", "BTCUSDT", "SOLUSDT"], handle))
    assert stream.args[0] == ["ETHUSDT", "BTCUSDT", "SOLUSDT"]


def test_option_contracts_on_one_coin_share_a_topic_of_trades():
    contracts = [CALL, CALL.replace("-C-", "-P-"), CALL.replace("BTC", "ETH")]
    assert [stream.args[0] for stream in plan(func=trades, category="option", args=(contracts, handle))] == [
        [CALL, CALL.replace("BTC", "ETH")]
    ]
    [books] = plan(category="option", args=(contracts, handle))
    assert books.args[0] == contracts


@pytest.mark.parametrize(("number", "connections"), [(805, 1), (807, 1), (808, 2), (1614, 2), (1615, 3)])
def test_so_many_symbols_of_nine_letters_take_so_many_connections(number, connections):
    names = ["Books"] if connections == 1 else [f"Books.{n}" for n in range(1, connections + 1)]
    assert [stream.name for stream in plan(args=([f"{n:05}USDT" for n in range(number)], handle))] == names


symbols = st.from_regex(r"[\w-]{1,20}", fullmatch=True).filter(is_symbol)


@given(
    kind=st.sampled_from(KINDS),
    category=st.sampled_from(["linear", "inverse", "option"]),
    asked=st.lists(symbols, min_size=1, max_size=40),
    limit=st.integers(50, 400),
)
def test_every_topic_is_carried_once_within_the_limit_and_in_order(kind, category, asked, limit):
    if category not in kind.categories:
        return

    @carries(kind)
    def func(symbol, callback):
        """Stands for a subscribe_*."""

    entry = {"name": "All", "func": func, "args": (asked, handle), "stall_timeout": 7}
    before = copy.copy(entry), list(asked)
    streams = list(plan_streams(entry, category, 200, limit))
    parts = [topics_of(stream, category) for stream in streams]
    carried = [topic for part in parts for topic in part]
    assert carried == list(dict.fromkeys(kind.topic_for(symbol, category, 200) for symbol in asked))
    assert all(part and characters(part) <= limit for part in parts)
    for part, after in pairwise(parts):
        assert characters([*part, after[0]]) > limit, "as few connections as possible"
    assert len({stream.name for stream in streams}) == len(streams)
    for stream in streams:
        assert (stream.func, stream.kind, stream.args[1]) == (func, kind, handle)
        assert stream.options == {"stall_timeout": 7}
    assert (entry, asked) == before, "the entry is left as it was"


@pytest.mark.parametrize("args", [(), [], ("BTCUSDT",), ("BTCUSDT", "BTCUSDT", 7), [["ETHUSDT"] * 3, handle]])
def test_a_func_of_the_users_own_is_left_alone(args):
    """Its args mean what it wants."""

    def own(*args, **options):
        """Something of the user's."""

    [stream] = plan(func=own, args=args, stall_timeout=3)
    assert stream == ("Books", own, tuple(args), {"stall_timeout": 3})
    assert stream.kind is None


def test_a_func_of_the_users_own_may_be_an_object():
    """A dataclass with __call__ cannot be a key of a dict."""

    @dataclass
    class Own:
        symbol: str

        def __call__(self):
            """Something of the user's."""

    own = Own("BTCUSDT")
    assert plan(func=own, args=()) == [("Books", own, (), {})]


@pytest.mark.parametrize("entry", [None, "Trades", ("Books", book, ("BTCUSDT", handle)), {}, {"name": 7}, {"name": ""}])
def test_what_is_not_an_entry_is_refused(entry):
    with pytest.raises(ValueError, match=r"^STREAMS: .* is not a dict with a name, a func and args") as problem:
        list(plan_streams(entry, "linear", 200, LIMIT))
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
        ({"args": ("X" * LIMIT, handle)}, "'XXXXXXXXXXXX...XXXXXXXXXXXXX' is too long for a symbol"),
    ],
)
def test_a_wrong_entry_is_refused_in_a_sentence_that_names_it(wrong, sentence):
    with pytest.raises(ValueError, match=r"^STREAMS: ") as problem:
        plan(wrong)
    assert str(problem.value) == f"STREAMS: Books: {sentence}"


def test_the_name_that_the_state_hash_needs_is_refused():
    with pytest.raises(ValueError, match=r"^STREAMS: \*: the name stands for the collector as a whole$"):
        plan(name="*")


@pytest.mark.parametrize("category", ["spot", "option"])
def test_a_kind_that_the_category_does_not_have_is_refused(category):
    with pytest.raises(ValueError, match=f"^STREAMS: Books: Bybit has no such topic for CHANNEL_TYPE={category}$"):
        plan(func=liquidations, category=category)


@pytest.mark.parametrize(("missing", "sentence"), [("func", "func is not a function"), ("args", "args is not a tuple")])
def test_an_entry_without_a_part_is_refused(missing, sentence):
    entry = {"name": "Books", "func": book, "args": ("BTCUSDT", handle)}
    del entry[missing]
    with pytest.raises(ValueError, match=f"STREAMS: Books: {sentence}"):
        list(plan_streams(entry, "linear", 200, LIMIT))


def test_an_entry_whose_second_part_has_a_name_that_is_used_is_left_out_as_a_whole(monkeypatch):
    entries = [
        {"name": "Many.2", "func": main.subscribe_trades, "args": ("BTCUSDT", print)},
        {"name": "Many", "func": main.subscribe_trades, "args": ([f"SYMBOL{n}" for n in range(1500)], print)},
    ]
    monkeypatch.setattr(main, "STREAMS", entries)
    collector = main.Collector()
    with pytest.raises(ValueError, match=r"^STREAMS: Many\.2: the name is used twice$"):
        collector.take_new_entries()
    assert list(collector.specs) == ["Many.2"]
