"""Bybit's list of instruments, without a network: what is asked, what counts, what is gone, what a pattern means."""

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bybit.instruments import MANY_GONE_AFTER, MAX_PAGES, NotWhole, Roster, Whole, api_base, expand, read_list
from relay.kinds import is_pattern
from sandbox.bybit.catalogue import Catalogue
from sandbox.bybit.script import RestScript

NOW = 1_800_000_000_000  # Unix ms
NAMES = st.sets(st.text("ABC1-", min_size=1, max_size=4).map(lambda text: f"{text}USDT"), min_size=1, max_size=12)


class Bybit:
    """The stand-in's catalogue, asked as pybit asks it. `queries` are those so far."""

    def __init__(self, symbols, **script):
        self.catalogue = Catalogue(lambda: symbols)
        self.script = RestScript(**script)
        self.queries = []

    def __call__(self, **query):
        self.queries.append(query)
        text = "&".join(f"{name}={value}" for name, value in query.items())
        return self.catalogue.answer(text, self.script, NOW)


def read(bybit, category="linear", coins=("BTC", "ETH")):
    return read_list(bybit, category, coins).symbols


def page(*instruments, cursor="", **members):
    result = {"category": "linear", "list": list(instruments), "nextPageCursor": cursor}
    return {"retCode": 0, "result": result, "time": NOW, **members}


def one(symbol="BTCUSDT", status="Trading", **members):
    return {"symbol": symbol, "status": status, **members}


# Reading.


@given(names=NAMES, size=st.integers(1, 13), at_end=st.booleans())
def test_the_whole_list_is_read_however_it_is_cut_into_pages(names, size, at_end):
    assert read(Bybit({"linear": sorted(names)}, page_size=size, cursor_at_end=at_end)) == names


@pytest.mark.parametrize("category", ["linear", "inverse"])
def test_what_begins_to_trade_while_the_list_is_read_is_in_it(category):
    bybit = Bybit({category: ["OLDUSDT"]})
    read(bybit, category)
    assert [query["status"] for query in bybit.queries] == ["PreLaunch", "Trading"]


def test_spot_is_one_query_without_pages():
    bybit = Bybit({"spot": ["BTCUSDT", "ETHUSDC"]}, page_size=1)
    assert read(bybit, "spot") == {"BTCUSDT", "ETHUSDC"}
    assert bybit.queries == [{"category": "spot"}]


def test_option_is_asked_coin_by_coin():
    contracts = {f"{coin}-25JUN27-4000-C-USDT" for coin in ("BTC", "ETH", "SOL")}
    bybit = Bybit({"option": sorted(contracts)})
    assert read(bybit, "option", ("ETH", "BTC", "XRP")) == {each for each in contracts if not each.startswith("SOL")}
    assert [query["baseCoin"] for query in bybit.queries] == ["ETH", "BTC", "XRP"]


@pytest.mark.parametrize(
    ("category", "status", "phase", "delivery", "counts"),
    [
        ("linear", "Trading", "", 0, True),
        ("linear", "PreLaunch", "CallAuction", 0, False),
        ("linear", "PreLaunch", "ContinuousTrading", 0, True),
        ("inverse", "PreLaunch", "ContinuousTrading", 0, True),
        ("linear", "PreLaunch", "", 0, False),
        ("linear", "Delivering", "", 0, False),
        ("linear", "Closed", "", 0, False),
        ("linear", "Trading", "", NOW + 1, True),
        ("linear", "Trading", "", NOW, False),
        ("option", "Trading", "", NOW + 1, True),
        ("option", "Trading", "", NOW - 1, False),
        ("option", "Delivering", "", NOW - 1, False),
        ("option", "PreLaunch", "ContinuousTrading", 0, False),
    ],
)
def test_which_instruments_count(category, status, phase, delivery, counts):
    names = ("BTC-NEW-1-C", "BTC-OLD-1-C") if category == "option" else ("BTCNEW", "BTCOLD")
    bybit = Bybit({category: [names[1]]})
    bybit.catalogue.put(category, names[0], status, phase, delivery)
    assert read(bybit, category) == set(names if counts else names[1:])


@pytest.mark.parametrize(
    "members",
    [{"deliveryTime": ""}, {"deliveryTime": "soon"}, {"deliveryTime": None}, {"preListingInfo": None}, {"new": [1]}],
)
def test_a_member_of_another_form_changes_nothing(members):
    assert read(lambda **query: page(one(**members))) == {"BTCUSDT"}


def test_a_name_that_is_no_symbol_is_left_out():
    assert read(lambda **query: page(one(), one("BTC/USDT"), one("*"), one(""))) == {"BTCUSDT"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "the answer has no list"),
        ([], "the answer has no list"),
        ({"retCode": 0}, "the answer has no list"),
        ({"result": {"list": None}}, "the answer has no list"),
        (page(), "it is empty"),
        (page(one(status="Closed")), "it is empty"),
        (page(one(), {"status": "Trading"}), "an instrument has no symbol"),
        (page(one(), "BTCUSDT"), "an instrument has no symbol"),
        ({"result": {"category": "spot", "list": [one()]}}, "the answer is not about linear"),
        (page(*(one(f"A{n}") for n in range(20_001))), "it has more than 20,000 instruments"),
    ],
)
def test_what_is_no_whole_list(answer, reason):
    with pytest.raises(NotWhole, match=reason):
        read(lambda **query: answer)


def test_a_list_with_pre_market_contracts_only_is_not_whole():
    bybit = Bybit({"linear": []})
    bybit.catalogue.put("linear", "NEWUSDT", "PreLaunch", "ContinuousTrading", 0)
    with pytest.raises(NotWhole, match="it is empty"):
        read(bybit)


def test_a_failed_page_fails_the_whole_list():
    def ask(**query):
        if "cursor" in query:
            raise OSError("gone")
        return page(one(), cursor="more")

    with pytest.raises(OSError, match="gone"):
        read(ask)


def test_a_cursor_that_comes_again_ends_the_list_and_ever_new_ones_do_not():
    assert read(lambda **query: page(one(), cursor="same")) == {"BTCUSDT"}
    asked = []
    with pytest.raises(NotWhole, match=f"more than {MAX_PAGES} pages"):
        read(lambda **query: asked.append(query) or page(one(), cursor=f"{len(asked)}"))
    assert len(asked) == MAX_PAGES


# From one list to the next.


EVERY = MANY_GONE_AFTER / 9  # seconds from one list to the next


class Timed(Roster):
    """Takes a list each minute or so."""

    now = 1000.0

    def next(self, symbols, delivery=(), time=NOW):
        self.now += EVERY + 1e-6
        return self.take(Whole(frozenset(symbols), dict(delivery), time), self.now)


def follow(*lists):
    """What is listed after each of these whole lists, and whether each was plausible."""
    roster = Timed()
    plausible = [roster.next(each) for each in lists]
    return "".join(sorted(roster.symbols)), plausible


@pytest.mark.parametrize(
    ("lists", "listed"),
    [
        (["abc"], "abc"),
        (["abc", "abcd"], "abcd"),  # a new one counts at once
        (["abc", "ab"], "abc"),
        (["abc", "ab", "ab"], "ab"),  # gone: two lists in a row
        (["abc", "ab", "abc", "ab"], "abc"),
        (["abcd", "abc", "abd"], "abcd"),  # not the same one
        (["abcd", "abc", "ab"], "abc"),
        (["abc", "ab", "ab", "abc"], "abc"),  # back at once
        (["abcdef", "ab"], "abcdef"),
        (["abcdef", "ab", "ab", "ab"], "abcdef"),  # many at once
        (["abcdef", "ab", "a", *["ab"] * 7], "abcdef"),
        (["abcdef", *["ab"] * 10], "ab"),
        (["abcdef", *["ab"] * 9, "abc", "ab"], "abc"),
        (["abcdef", "ab", "abcdef", "ab"], "abcdef"),
        (["abcdef", "xy"], "abcdefxy"),
    ],
)
def test_how_one_list_follows_another(lists, listed):
    assert follow(*lists)[0] == listed


def test_a_list_of_less_than_half_is_implausible_for_long():
    assert follow("abcdef", "abc", *["ab"] * 10)[1] == [True, True, *[False] * 8, True, True]


@pytest.mark.parametrize("part", [0.11, 0.25, 0.5, 0.9])
def test_many_instruments_do_not_end_at_once(part):
    """A page is missing, or a cache has half of them: their data goes on, and would be lost."""
    roster, whole = Timed(), frozenset(f"C{number:03}USDT" for number in range(700))
    roster.next(whole)
    rest = frozenset(sorted(whole)[int(700 * part) :])
    for _ in range(9):
        assert not roster.next(rest)
        assert roster.symbols == whole
    assert roster.next(rest)
    assert roster.symbols == rest


@pytest.mark.parametrize(("interval", "lists"), [(1, 571), (60, 11), (300, 3), (3600, 2)])
def test_many_instruments_are_gone_after_ten_minutes_however_often_bybit_is_asked(interval, lists):
    """So long a standby that has started meanwhile may have other topics than the leader."""
    roster = Roster()
    roster.take(Whole(frozenset("abcdef"), {}, NOW), 0.0)
    for n in range(1, lists):
        roster.take(Whole(frozenset("ab"), {}, NOW), n * interval)
        assert roster.symbols == frozenset("abcdef")
    roster.take(Whole(frozenset("ab"), {}, NOW), lists * interval)
    assert roster.symbols == frozenset("ab")


def test_what_was_delivered_is_gone_with_the_second_list_however_much_it_is():
    """Options on a Friday."""
    roster, whole = Timed(), frozenset(f"BTC-{number}-C" for number in range(700))
    ends = {symbol: NOW + (1 if number < 300 else 10**9) for number, symbol in enumerate(sorted(whole))}
    rest = frozenset(sorted(whole)[300:])
    later = {symbol: ends[symbol] for symbol in rest}
    assert roster.next(whole, ends)
    assert roster.next(rest, later, NOW + 1)
    assert roster.symbols == whole
    assert roster.next(rest, later, NOW + 60_000)
    assert roster.symbols == rest


def test_what_was_delivered_says_nothing_of_the_others():
    roster, whole = Timed(), [f"BTC-{number}-C" for number in range(100)]
    assert roster.next(whole, dict.fromkeys(whole[:50], NOW))
    for _ in range(3):
        assert not roster.next(whole[70:])
    assert roster.symbols == frozenset(whole[50:])


def test_the_time_of_delivery_is_read():
    instruments = one("BTC-1-C", deliveryTime=f"{NOW + 5}"), one("BTC-2-C", deliveryTime="0"), one("BTC-3-C")
    assert read_list(lambda **query: page(*instruments), "linear", ()) == (
        {"BTC-1-C", "BTC-2-C", "BTC-3-C"},
        {"BTC-1-C": NOW + 5},
        NOW,
    )


def test_few_instruments_end_with_the_second_list():
    """Futures of a quarter, on inverse."""
    roster, whole = Timed(), frozenset(f"C{number:03}USD" for number in range(20))
    rest = frozenset(sorted(whole)[5:])
    assert [roster.next(each) for each in (whole, rest, rest)] == [True] * 3
    assert roster.symbols == rest


@given(st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1).map(frozenset), min_size=1, max_size=12))
def test_nothing_is_gone_that_one_of_the_latest_two_lists_has(lists):
    roster = Timed()
    for n, whole in enumerate(lists):
        roster.next(whole)
        assert whole | lists[max(0, n - 1)] <= roster.symbols
        assert roster.symbols <= frozenset().union(*lists[: n + 1])


@given(
    st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1).map(frozenset), max_size=6),
    st.sets(st.sampled_from("abcdefgh"), min_size=1).map(frozenset),
)
def test_a_list_that_stays_the_same_is_what_is_listed(lists, last):
    roster = Timed()
    for whole in [*lists, *[last] * 11]:
        roster.next(whole)
    assert roster.symbols == last


# Patterns.


@pytest.mark.parametrize(
    ("wanted", "symbols"),
    [
        (("BTCUSDT",), ["BTCUSDT"]),
        (("NOPE", "BTCUSDT", "NOPE"), ["NOPE", "BTCUSDT"]),  # names need no list
        (("ALL",), ["BTC-26JUN26", "BTCPERP", "BTCUSDT", "ETHUSDT", "allUSDT"]),
        (("*",), ["BTC-26JUN26", "BTCPERP", "BTCUSDT", "ETHUSDT", "allUSDT"]),
        (("BTC*",), ["BTC-26JUN26", "BTCPERP", "BTCUSDT"]),
        (("*USDT",), ["BTCUSDT", "ETHUSDT", "allUSDT"]),
        (("*T*S*",), ["BTCUSDT", "ETHUSDT"]),
        (("ETHUSDT", "*USDT", "*PERP"), ["ETHUSDT", "BTCUSDT", "allUSDT", "BTCPERP"]),
        (("btc*",), []),
        (("BTCUSDT*",), ["BTCUSDT"]),  # "*" stands for nothing too
        ((), []),
    ],
)
def test_what_names_and_patterns_stand_for(wanted, symbols):
    listed = frozenset({"ETHUSDT", "BTCUSDT", "BTCPERP", "BTC-26JUN26", "allUSDT"})
    assert expand(wanted, listed) == symbols
    assert expand(wanted, None) == [each for each in dict.fromkeys(wanted) if not is_pattern(each)]


@given(st.text("AB*", min_size=1, max_size=6), st.sets(st.text("ABC", min_size=1, max_size=5), max_size=8))
def test_a_pattern_matches_as_in_a_shell(pattern, listed):
    expected = sorted(each for each in listed if fnmatch.fnmatchcase(each, pattern))
    assert expand([pattern], listed) == (expected if "*" in pattern else [pattern])


# The REST server's address.


@pytest.mark.parametrize(
    ("ws_url", "api_url", "testnet", "base"),
    [
        ("", "", True, "https://api-testnet.bybit.com"),
        ("", "", False, "https://api.bybit.com"),
        ("", "https://api.bybit.kz/", False, "https://api.bybit.kz"),
        ("ws://127.0.0.1:8765", "http://127.0.0.1:8765", True, "http://127.0.0.1:8765"),
        ("wss://stream.bybit.kz", "", True, "https://api.bybit.kz"),
        ("wss://stream.bybit.com.hk", "", False, "https://api.bybit.com.hk"),
        ("wss://stream.bybit-tr.com", "", False, "https://api.bybit-tr.com"),
        ("wss://stream.bytick.com", "", False, "https://api.bytick.com"),
        ("wss://Stream-Testnet.bybit.com", "", False, "https://api-testnet.bybit.com"),
    ],
)
def test_the_rest_server_that_belongs_to_a_websocket_server(ws_url, api_url, testnet, base):
    assert api_base(ws_url, api_url, testnet) == base


@pytest.mark.parametrize(
    "ws_url",
    ["ws://127.0.0.1:8765", "wss://stream.example.com", "ws://stream.bybit.com", "wss://stream.bybit.com:9443"],
)
def test_a_server_whose_rest_cannot_be_told_is_refused_in_a_sentence(ws_url):
    with pytest.raises(ValueError, match=f"BYBIT_API_URL is empty: .* BYBIT_WS_URL={re.escape(ws_url)}"):
        api_base(ws_url, "", False)
