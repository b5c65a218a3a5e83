"""relay/kinds.py: the table of kinds, and that it agrees with pybit."""

from importlib import import_module

import pytest
from pybit.unified_trading import WebSocket

import main
from relay.kinds import (
    CATEGORIES,
    KINDS,
    LIQUIDATIONS,
    ORDERBOOK,
    TICKER,
    TRADES,
    carries,
    is_symbol,
    kind_of,
)

CONTRACT = "BTC-25JUN27-106000-P-USDT"


class Recorder(WebSocket):
    """pybit's WebSocket without a connection: `topics` are those that its *_stream methods ask for."""

    def __init__(self, category):
        self.topics = []
        super().__init__(category, testnet=True)

    def _connect(self, url):
        """Overridden: pybit would connect here."""

    def subscribe(self, topic, callback, symbol=False):
        self.topics += [topic.format(symbol=one) for one in ([symbol] if isinstance(symbol, str) else symbol)]


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        (ORDERBOOK, "orderbook_stream", {"depth": 50}),
        (TRADES, "trade_stream", {}),
        (TICKER, "ticker_stream", {}),
        (LIQUIDATIONS, "all_liquidation_stream", {}),
    ],
)
def test_a_topic_is_the_one_that_pybit_subscribes_to(kind, method, options, category):
    symbols = ["BTCUSDT", CONTRACT]
    recorder = Recorder(category)
    subjects = [kind.subject(symbol, category) for symbol in symbols]
    getattr(recorder, method)(symbol=subjects, callback=print, **options)
    assert recorder.topics == [kind.topic_for(symbol, category, 50) for symbol in symbols]


def test_only_linear_and_inverse_have_liquidations():
    having = {category: [kind.name for kind in KINDS if category in kind.categories] for category in CATEGORIES}
    three = ["orderbook", "trades", "ticker"]
    assert having == {"linear": [*three, "liquidations"], "spot": three, "inverse": having["linear"], "option": three}


def test_order_books_and_tickers_start_with_a_snapshot():
    assert [kind.name for kind in KINDS if kind.starts_with_snapshot] == ["orderbook", "ticker"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_has_a_subscribe_function_and_a_callback(kind):
    """Under the kind's name, wherever it is needed."""
    assert kind_of(getattr(main, f"subscribe_{kind.name}")) is kind
    callback = getattr(import_module(f"callbacks.{kind.name}"), f"handle_{kind.name}")
    assert callback.raw is True, "without this mark every message is parsed first, and its text is lost"


def test_a_function_of_the_users_own_carries_no_kind():
    class Own:
        kind = "something else"

    assert [kind_of(own) for own in (print, Own(), None)] == [None, None, None]


def test_the_mark_leaves_the_function_as_it_is():
    def subscribe():
        """Something of the user's."""

    assert carries(TRADES)(subscribe) is subscribe
    assert kind_of(subscribe) is TRADES


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((good, True) for good in ("BTCUSDT", "1000PEPEUSDT", CONTRACT, "币安人生USDT", "BTC_X")),
        *(
            (bad, False)
            for bad in ("", " ", "BTC USDT", " BTCUSDT", "BTCUSDT\n", "publicTrade.BTC", '"', "{}", None, 7)
        ),
    ],
)
def test_what_can_be_a_symbol(value, expected):
    assert is_symbol(value) is expected
