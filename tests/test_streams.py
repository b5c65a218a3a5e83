"""conf/streams.py: what an entry of STREAMS may be, and how it is cut to what one connection can carry."""

import json
from dataclasses import dataclass
from itertools import pairwise

import pytest

from conf.streams import jobs

MOST = 21_000  # characters of topics on a connection, as main.py passes them


def book(symbol, callback):
    """Stands for main.subscribe_orderbook."""


def nothing(symbol, callback):
    """Stands for a subscribe_* whose topics Bybit does not have here."""


def handle(message):
    """Stands for a callback."""


TOPICS = {book: "orderbook.200.{}".format, nothing: None}


def take(different=(), most=MOST, **entry):
    """The jobs of a good entry that is `different` in some keys."""
    good = {"name": "Books", "func": book, "args": ("BTCUSDT", handle)}
    return list(jobs(good | dict(different) | entry, TOPICS, most))


def characters(symbols):
    """What the topics of these symbols take in the JSON text of a request."""
    return len(json.dumps([f"orderbook.200.{symbol}" for symbol in symbols], separators=(",", ":")))


def test_a_symbol_becomes_a_list_of_one():
    """One shape for all that run; the callback is handed on as it is."""
    assert take() == [("Books", book, (["BTCUSDT"], handle), {})]


@pytest.mark.parametrize("symbols", [["BTCUSDT", "ETHUSDT"], ("BTCUSDT", "ETHUSDT")])
def test_a_list_of_symbols_is_one_job(symbols):
    assert take(args=(symbols, handle)) == [("Books", book, (["BTCUSDT", "ETHUSDT"], handle), {})]


def test_the_args_may_be_a_list():
    assert take(args=["BTCUSDT", handle]) == take()


def test_a_symbol_named_twice_is_subscribed_once():
    """Bybit refuses a request that names a topic twice. The order stays."""
    [job] = take(args=(["ETHUSDT", "BTCUSDT", "ETHUSDT", "BTCUSDT", "SOLUSDT"], handle))
    assert job.args[0] == ["ETHUSDT", "BTCUSDT", "SOLUSDT"]


def test_the_entry_is_left_as_it_was():
    symbols = ["BTCUSDT", "BTCUSDT"]
    entry = {"name": "Books", "func": book, "args": (symbols, handle), "stall_timeout": 5}
    list(jobs(entry, TOPICS, MOST))
    assert entry == {"name": "Books", "func": book, "args": (symbols, handle), "stall_timeout": 5}
    assert symbols == ["BTCUSDT", "BTCUSDT"]


@pytest.mark.parametrize("seconds", [0, 5, 2.5, float("inf")])
def test_the_stall_timeout_is_passed_on(seconds):
    [job] = take(stall_timeout=seconds)
    assert job.options == {"stall_timeout": seconds}


@pytest.mark.parametrize(("number", "connections"), [(805, 1), (807, 1), (808, 2), (1614, 2), (1615, 3)])
def test_so_many_symbols_of_nine_letters_take_so_many_connections(number, connections):
    """Each symbol exactly once and in order; the parts have names of their own and the rest in common."""
    symbols = [f"{n:05}USDT" for n in range(number)]
    parts = take(args=(symbols, handle), stall_timeout=7)
    names = ["Books"] if connections == 1 else [f"Books.{n}" for n in range(1, connections + 1)]
    assert [job.name for job in parts] == names
    assert [symbol for job in parts for symbol in job.args[0]] == symbols
    for job in parts:
        assert 0 < characters(job.args[0]) <= MOST
        assert (job.func, job.args[1], job.options) == (book, handle, {"stall_timeout": 7})


@pytest.mark.parametrize("length", [1, 7, 12, 25])
@pytest.mark.parametrize("number", [1, 2, 50, 700, 3000])
def test_the_parts_are_full_and_within_the_limit(length, number):
    """As few as can be: no part could take the next one's first symbol."""
    symbols = [f"{n:0{length}}" for n in range(min(number, 10**length))]
    parts = [job.args[0] for job in take(args=(symbols, handle))]
    assert [symbol for part in parts for symbol in part] == symbols
    assert all(0 < characters(part) <= MOST for part in parts)
    for part, after in pairwise(parts):
        assert characters([*part, after[0]]) > MOST


def test_no_part_more_than_the_limit_asks_for():
    symbols = ["BTCUSDT", "ETHUSDT"]
    assert len(take(most=characters(symbols), args=(symbols, handle))) == 1
    assert len(take(most=characters(symbols) - 1, args=(symbols, handle))) == 2


def test_a_symbol_longer_than_the_limit_gets_a_connection_to_itself():
    """Bybit will refuse it, and the others live."""
    parts = take(most=60, args=(["BTCUSDT", "X" * 100, "ETHUSDT"], handle))
    assert [job.args[0] for job in parts] == [["BTCUSDT"], ["X" * 100], ["ETHUSDT"]]


@pytest.mark.parametrize("args", [(), [], ("BTCUSDT",), ("BTCUSDT", "BTCUSDT", 7), [["ETHUSDT"] * 3, handle]])
def test_a_func_of_the_users_own_is_left_alone(args):
    """Whatever its args mean is its own business."""

    def own(*args, **options):
        """Something of the user's."""

    assert take(func=own, args=args, stall_timeout=3) == [("Books", own, tuple(args), {"stall_timeout": 3})]


def test_a_func_of_the_users_own_may_be_an_object():
    """A dataclass with __call__ cannot be a key of a dict."""

    @dataclass
    class Own:
        symbol: str

        def __call__(self):
            """Something of the user's."""

    own = Own("BTCUSDT")
    assert take(func=own, args=()) == [("Books", own, (), {})]


@pytest.mark.parametrize("entry", [None, "Trades", ("Books", book, ("BTCUSDT", handle)), {}, {"name": 7}, {"name": ""}])
def test_what_is_no_entry_is_refused(entry):
    with pytest.raises(ValueError, match=r"^STREAMS: .* is not a dict with a name, a func and args") as problem:
        list(jobs(entry, TOPICS, MOST))
    assert repr(entry) in str(problem.value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"funk": book}, "Books has an unknown key: 'funk'"),
        ({7: book}, "Books has an unknown key: 7"),
        ({"func": None}, "Books needs a func to call and a tuple of args"),
        ({"func": "subscribe_trades"}, "Books needs a func to call and a tuple of args"),
        ({"args": None}, "Books needs a func to call and a tuple of args"),
        ({"args": "BTCUSDT"}, "Books needs a func to call and a tuple of args"),
        ({"args": {"symbol": "BTCUSDT"}}, "Books needs a func to call and a tuple of args"),
        ({"stall_timeout": -1}, "the stall_timeout of Books is not a number of seconds, 0 or more"),
        ({"stall_timeout": "60"}, "the stall_timeout of Books is not a number of seconds, 0 or more"),
        ({"stall_timeout": None}, "the stall_timeout of Books is not a number of seconds, 0 or more"),
        ({"stall_timeout": float("nan")}, "the stall_timeout of Books is not a number of seconds, 0 or more"),
        ({"func": nothing}, "Books cannot be had: Bybit has no such topics for this CHANNEL_TYPE"),
        ({"args": ()}, "the args of Books are not (symbol or list of symbols, callback)"),
        ({"args": ("BTCUSDT",)}, "the args of Books are not (symbol or list of symbols, callback)"),
        ({"args": ("BTCUSDT", "ETHUSDT", handle)}, "the args of Books are not (symbol or list of symbols, callback)"),
        ({"args": ("BTCUSDT", "handle")}, "the args of Books are not (symbol or list of symbols, callback)"),
        ({"args": (handle, "BTCUSDT")}, "the args of Books are not (symbol or list of symbols, callback)"),
        ({"args": ([], handle)}, "the args of Books are not (symbol or list of symbols, callback)"),
        ({"args": ({"BTCUSDT"}, handle)}, "the args of Books are not (symbol or list of symbols, callback)"),
        ({"args": (None, handle)}, "the args of Books are not (symbol or list of symbols, callback)"),
        ({"args": ("", handle)}, "Books has a symbol that is none: ''"),
        ({"args": (["BTCUSDT", " "], handle)}, "Books has a symbol that is none: ' '"),
        ({"args": (["BTCUSDT", None], handle)}, "Books has a symbol that is none: None"),
        ({"args": (["BTCUSDT", ["ETHUSDT"]], handle)}, "Books has a symbol that is none: ['ETHUSDT']"),
    ],
)
def test_a_wrong_entry_is_refused_in_a_sentence_that_names_it(wrong, sentence):
    with pytest.raises(ValueError, match=r"^STREAMS: ") as problem:
        take(wrong)
    assert str(problem.value) == f"STREAMS: {sentence}"


@pytest.mark.parametrize("missing", ["func", "args"])
def test_an_entry_without_a_part_is_refused(missing):
    entry = {"name": "Books", "func": book, "args": ("BTCUSDT", handle)}
    del entry[missing]
    with pytest.raises(ValueError, match="STREAMS: Books needs a func to call and a tuple of args"):
        list(jobs(entry, TOPICS, MOST))
