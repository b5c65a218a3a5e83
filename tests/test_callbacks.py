"""callbacks/: what each handle_* makes of a message, seen by a subscriber of a real Redis."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from time import monotonic

import pytest
from conftest import Subscriber, eventually

from relay.publisher import Publisher

ROOT = Path(__file__).resolve().parent.parent
CHANNELS = {
    "orderbook": "stream:bybit_orderbook",
    "trades": "stream:bybit_trades",
    "ticker": "stream:bybit_ticker",
    "liquidations": "stream:bybit_liquidations",
}
KINDS = list(CHANNELS)

# What JSON writers like to change on the way: (a dict, its JSON as it must arrive).
MESSAGES = [
    ({}, "{}"),
    (
        {"topic": "tickers.BTCUSDT", "type": "delta", "data": {"symbol": "BTCUSDT", "bid1Price": "65114.20"}, "cs": 1},
        '{"topic":"tickers.BTCUSDT","type":"delta","data":{"symbol":"BTCUSDT","bid1Price":"65114.20"},"cs":1}',
    ),
    ({"b": [["1.50", "0"]], "a": []}, '{"b":[["1.50","0"]],"a":[]}'),
    ({"z": 1, "a": 2, "m": 3}, '{"z":1,"a":2,"m":3}'),
    ({"RPI": False, "BT": True, "x": None}, '{"RPI":false,"BT":true,"x":null}'),
    ({"seq": 2**63, "big": 10**400, "minus": -1}, f'{{"seq":{2**63},"big":1{"0" * 400},"minus":-1}}'),
    ({"p": 1.5, "q": 0.1, "r": 100.0, "tiny": 1e-07}, '{"p":1.5,"q":0.1,"r":100.0,"tiny":1e-07}'),
    ({"s": "币安人生USDT", "é": "🔑"}, '{"s":"币安人生USDT","é":"🔑"}'),
    ({"q": 'a "quoted" \\ word', "n": "a\nb\tc\x00"}, r'{"q":"a \"quoted\" \\ word","n":"a\nb\tc\u0000"}'),
    ({"html": "<a & b>", "slash": "a/b"}, '{"html":"<a & b>","slash":"a/b"}'),
    ({"half": "\ud83d", "s": "币"}, r'{"half":"\ud83d","s":"币"}'),
    ({"\udc00": 1}, r'{"\udc00":1}'),
]
# Texts that would change if anybody parsed and dumped them.
TEXTS = [
    '{"topic":"orderbook.50.BTCUSDT"}',
    '{ "a" : 1.50 , "b":1E-7,"c":-0,"d":"\\u003c\\/","a":2}',
    '{"s":"币安人生USDT 🔑"}',
    r'{"half":"\ud83d"}',
    "not JSON at all\r\n",
    "",
    json.dumps({"long": "x" * 300_000}),
]


@pytest.fixture(scope="module")
def publisher(redis_server):
    """The tests' own publisher, in place of the program's, whose address is in the settings."""
    publisher = Publisher(port=redis_server.port)
    publisher.start()
    yield publisher
    assert publisher.stop(monotonic() + 10) == 0


@pytest.fixture(scope="module")
def handlers(publisher):
    """The callbacks by kind, publishing through `publisher`."""
    with pytest.MonkeyPatch.context() as patch:
        found = {}
        for kind in KINDS:
            module = import_module(f"callbacks.{kind}")
            patch.setattr(module, "publisher", publisher)
            found[kind] = getattr(module, f"handle_{kind}")
        yield found


@pytest.fixture
def published(redis_server, handlers):
    """published(kind, messages): gives them to the callback, returns what came: (channel, payload)s, in order."""
    with Subscriber(redis_server, "*") as subscriber:

        def publish(kind, messages):
            for message in messages:
                assert handlers[kind](message) is None
            eventually(lambda: len(subscriber.messages) >= len(messages))
            return subscriber.messages

        yield publish


@pytest.mark.parametrize("kind", KINDS)
def test_a_dict_arrives_as_compact_json(published, kind):
    """Parsed, it is the same dict; members keep their order, non-ASCII stays as it is, numbers keep their form.

    Half of a surrogate pair is no text: it is escaped, as no message may be lost for it.
    """
    arrived = published(kind, [message for message, _ in MESSAGES])
    assert arrived == [(CHANNELS[kind], text.encode()) for _, text in MESSAGES]
    assert [json.loads(payload) for _, payload in arrived] == [message for message, _ in MESSAGES]


@pytest.mark.parametrize("kind", KINDS)
def test_text_arrives_unchanged(published, kind):
    """As str or as bytes, JSON or not."""
    messages = [form for text in TEXTS for form in (text, text.encode())] + [b"\xff\xfe no UTF-8"]
    expected = [message.encode() if isinstance(message, str) else message for message in messages]
    assert published(kind, messages) == [(CHANNELS[kind], payload) for payload in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_each_takes_the_frame_unparsed(handlers, kind):
    """The mark that relay looks for: without it each message is parsed first, and its text is not exact any more."""
    assert handlers[kind].raw is True


def test_the_order_of_a_channel_is_the_order_of_the_calls(published):
    texts = [b'{"n":%d}' % n for n in range(5000)]
    assert published("trades", texts) == [(CHANNELS["trades"], text) for text in texts]


def test_a_prefix_of_the_users_own_names_the_channels():
    """Spot and linear share the names of their topics, so each of two collectors gets its own."""
    code = "\n".join(f"from callbacks.{kind} import CHANNEL as {kind}" for kind in KINDS)
    process = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint({', '.join(KINDS)})"],
        cwd=ROOT,
        env=os.environ | {"CHANNEL_PREFIX": "spot:цена"},
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )
    assert process.stdout.split() == [CHANNELS[kind].replace("stream:bybit", "spot:цена") for kind in KINDS]


def test_all_share_one_publisher():
    """One connection to Redis and one buffer for the whole program, made from the settings."""
    code = "\n".join(
        ["import callbacks", *(f"import callbacks.{kind}" for kind in KINDS)]
        + [f"assert callbacks.{kind}.publisher is callbacks.publisher" for kind in KINDS]
        + ["print(callbacks.publisher.address)"]
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"REDIS_HOST": "redis.example", "REDIS_PORT": "6380"},
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )
    assert (process.stdout, process.stderr) == ("redis.example:6380\n", "")
