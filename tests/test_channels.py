"""relay/channels.py: which channel a message goes to, where each symbol has its own."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import channels
from relay.channels import by_symbol, pattern_of_symbols
from relay.events import encoded

CHANNEL = "stream:bybit_trades"


def published(*messages, channel=CHANNEL):
    """What is published of these messages: channel and message, each."""
    found = []
    publish = by_symbol(lambda channel, message: found.append((channel, message)))
    for message in messages:
        publish(channel, message)
    return found


TOPICS = [
    ("publicTrade.BTCUSDT", "BTCUSDT"),
    ("orderbook.50.BTCUSDT", "BTCUSDT"),
    ("kline.1.1000PEPEUSDT", "1000PEPEUSDT"),
    ("orderbook.25.BTC-25JUN27-106000-P-USDT", "BTC-25JUN27-106000-P-USDT"),
    ("publicTrade.BTC", "BTC"),  # option: the coin
    ("tickers.币安人生USDT", "币安人生USDT"),
]
FORMS = {
    "as Bybit sends it": lambda topic: f'{{"topic":"{topic}","type":"delta","data":{{"topic":"tickers.NO"}}}}'.encode(),
    "text": lambda topic: f'{{"topic":"{topic}","ts":1}}',
    "a dict": lambda topic: {"topic": topic, "data": {"topic": "tickers.NO"}},
    "a dict in another order": lambda topic: {"data": {"topic": "tickers.NO"}, "topic": topic},
    "another order": lambda topic: f'{{"data":{{"topic":"tickers.NO"}},"topic":"{topic}"}}'.encode(),
    "with spaces": lambda topic: f'{{ "topic" : "{topic}" }}'.encode(),
    "with escapes": lambda topic: json.dumps({"topic": topic}, separators=(",", ":")).encode(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("topic", "subject"), TOPICS)
def test_a_message_goes_to_the_channel_of_what_its_topic_names(form, topic, subject):
    """Whatever its form, and it is not changed."""
    message = form(topic)
    text = message if isinstance(message, bytes) else encoded(message)
    assert published(message, message) == [(f"{CHANNEL}:{subject}", text)] * 2


ODD = {
    "empty": b"",
    "no JSON": b"not JSON",
    "cut within the topic": b'{"topic":"publicTrade.BTC',
    "cut after the topic": b'{"topic":"publicTrade',
    "no object": b"[1]",
    "no topic": b'{"success":true}',
    "a topic that is no text": b'{"topic":7}',
    "an empty topic": b'{"topic":""}',
    "a topic that names nothing": b'{"topic":"publicTrade"}',
    "a topic that ends with a dot": b'{"topic":"publicTrade."}',
    "a topic that only begins with a dot": b'{"topic":".BTCUSDT"}',
    "no symbol": b'{"topic":"publicTrade.BTC*"}',
    "a line end": b'{"topic":"publicTrade.BTC\\r\\n"}',
    "a quote": b'{"topic":"publicTrade.BTC\\"USDT"}',
    "half of a surrogate pair": b'{"topic":"publicTrade.\\ud83d"}',
    "no UTF-8": b'{"topic":"publicTrade.\xff"}',
    "a topic of a kilobyte": b'{"topic":"publicTrade.%b"}' % (b"X" * 1000),
    "too deep": b"[" * 100_000,
    "a number": 7,
    "a list": [{"topic": "publicTrade.BTCUSDT"}],
}


@pytest.mark.parametrize("message", ODD.values(), ids=ODD)
def test_a_message_of_another_form_goes_to_the_channel_for_all(message):
    text = message if isinstance(message, bytes) else encoded(message)
    assert published(message) == [(CHANNEL, text)]


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda end: b'{"topic":"a.' + end))
def test_whatever_comes_is_published_once_and_to_a_channel_of_its_kind(message):
    [(channel, text)] = published(message)
    assert text == message
    assert channel == CHANNEL or channel.startswith(f"{CHANNEL}:")
    channel.encode()  # Redis gets it as UTF-8


def test_the_same_topic_has_a_channel_in_each_kind():
    """A callback of the user's own may publish it elsewhere."""
    found = []
    publish = by_symbol(lambda channel, _: found.append(channel))
    for channel in ("a", "b", "a", "b"):
        publish(channel, b'{"topic":"publicTrade.BTCUSDT"}')
    assert found == ["a:BTCUSDT", "b:BTCUSDT"] * 2


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(channels, "MAX_REMEMBERED", 10)
    known = channels.SymbolChannels(CHANNEL)
    for number in range(100):
        assert known.find(b'{"topic":"tickers.A%d"}' % number) == f"{CHANNEL}:A{number}"
        assert len(known.remembered) <= 10


@pytest.mark.parametrize("prefix", ["stream:bybit", "what?", "[ab]*", "back\\slash", "цена"])
def test_the_pattern_matches_the_channels_of_the_symbols_and_nothing_else(redis_server, prefix):
    others = [f"{prefix}_trades", f"{prefix}_tradesX:BTCUSDT", "whatX_trades:A", "a_trades:A", f"{prefix}_ticker:A"]
    with redis_server.client(socket_timeout=5) as client, client.pubsub() as pubsub:
        pubsub.psubscribe(pattern_of_symbols(f"{prefix}_trades"))
        assert pubsub.get_message(timeout=5)["type"] == "psubscribe"
        for channel in others:
            assert client.publish(channel, "") == 0
        assert client.publish(f"{prefix}_trades:BTCUSDT", "") == 1
