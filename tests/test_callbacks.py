"""callbacks/: what each handle_* makes of a message, and which channel it goes to."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from time import monotonic

import pytest
import trustme
from conftest import Subscriber, eventually
from hypothesis import given
from hypothesis import strategies as st

import callbacks
from relay.events import encoded
from relay.kinds import KINDS, ORDERBOOK
from relay.redis.publisher import Publisher

ROOT = Path(__file__).resolve().parent.parent
NAMES = [kind.name for kind in KINDS]


# What JSON writers like to change: a dict and the text that must arrive.
@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({}, "{}"),
        (
            {"topic": "tickers.BTCUSDT", "type": "delta", "data": {"bid1Price": "65114.20"}, "cs": 1},
            '{"topic":"tickers.BTCUSDT","type":"delta","data":{"bid1Price":"65114.20"},"cs":1}',
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
    ],
)
def test_a_dict_becomes_compact_json(message, text):
    """Members keep their order, non-ASCII stays; half of a surrogate pair is escaped, or it could not be sent."""
    assert encoded(message) == text.encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON))
def test_a_dict_is_the_same_dict_when_it_is_parsed_again(message):
    assert json.loads(encoded(message)) == message


@given(st.text())
def test_text_is_left_as_it_is(text):
    assert encoded(text) == text.encode()


# Texts that would change if anybody parsed and dumped them.
TEXTS = [
    '{ "a" : 1.50 , "b":1E-7,"c":-0,"d":"\\u003c\\/","a":2}',
    '{"s":"币安人生USDT 🔑"}',
    "not JSON at all\r\n",
    "",
    json.dumps({"long": "x" * 300_000}),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_message_arrives_on_its_channel_as_it_was(name, redis_server, monkeypatch):
    """As bytes, as text and as a dict, in the order of the calls. The marks of the handlers are test_kinds's."""
    publisher = Publisher(port=redis_server.port)
    module = import_module(f"callbacks.{name}")
    monkeypatch.setattr(module, "publish", publisher.publish)
    handle = getattr(module, f"handle_{name}")
    messages = [*TEXTS, *map(str.encode, TEXTS), b"\xff\xfe no UTF-8", {"p": "1.50"}]
    expected = [*map(str.encode, TEXTS), *map(str.encode, TEXTS), b"\xff\xfe no UTF-8", b'{"p":"1.50"}']
    publisher.start()
    with Subscriber(redis_server, "*") as subscriber:
        for message in messages:
            assert handle(message) is None
        eventually(lambda: len(subscriber.messages) >= len(messages))
        assert subscriber.messages == [(f"stream:bybit_{name}", payload) for payload in expected]
    assert publisher.stop(monotonic() + 10) == 0


def test_the_channels_are_those_of_the_kinds_and_the_status_channel():
    assert list(callbacks.CHANNELS) == [f"stream:bybit_{name}" for name in (*NAMES, "status")]
    assert callbacks.publisher.status == "stream:bybit_status"
    assert callbacks.channel_of(ORDERBOOK) == import_module("callbacks.orderbook").CHANNEL


def test_all_share_one_publisher_that_is_made_from_the_settings():
    """Spot and linear share the names of their topics: each of two collectors has a prefix of its own."""
    code = "\n".join(
        [
            "import callbacks",
            "from importlib import import_module",
            f"modules = [import_module('callbacks.' + name) for name in {NAMES}]",
            "assert all(module.publish == callbacks.publisher.publish for module in modules)",
            "print(callbacks.publisher.address, *(module.CHANNEL for module in modules), callbacks.publisher.status)",
        ]
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"REDIS_HOST": "redis.example", "REDIS_PORT": "6380", "CHANNEL_PREFIX": "spot:цена"},
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )
    assert process.stderr == ""
    assert process.stdout.split() == ["redis.example:6380", *(f"spot:цена_{name}" for name in (*NAMES, "status"))]


def test_each_end_has_a_login_of_its_own():
    code = (
        "from callbacks import publisher; redis = publisher.new_connection(); print(redis.db, redis.certfile,"
        "*redis.credential_provider.get_credentials());"
        "sentinel = redis.endpoint._connect(host='h', port=1); print(sentinel.db, sentinel.certfile,"
        "*sentinel.credential_provider.get_credentials())"
    )
    certificate = trustme.CA().issue_cert("collector").private_key_and_cert_chain_pem
    with certificate.tempfile() as file:
        settings = {"REDIS_SENTINELS": "h", "REDIS_DB": "2", "REDIS_SSL": "True", "REDIS_SSL_CERT": file}
        settings |= {"REDIS_USERNAME": "u", "REDIS_PASSWORD": "p", "REDIS_SENTINEL_PASSWORD": "s"}
        printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=os.environ | settings, text=True)
    assert printed.splitlines() == [f"2 {file} u p", f"0 {file} s"]


BY_SYMBOL = """
import sys
from time import monotonic
from callbacks import BY_SYMBOL, publisher
from callbacks.orderbook import handle_orderbook
from callbacks.trades import handle_trades
publisher.start()
handle_trades(b'{"topic":"publicTrade.BTCUSDT","ts":1}')
handle_trades({"topic": "publicTrade.ETHUSDT"})
handle_orderbook('{"topic":"orderbook.50.BTCUSDT"}')
handle_orderbook(b"something else")
publisher.publish("stream:bybit_trades", b'{"topic":"publicTrade.BTCUSDT","mine":1}')
print(*BY_SYMBOL)
sys.exit(publisher.stop(monotonic() + 10))
"""


def test_each_symbol_has_its_channels_if_that_is_set(program, redis_server):
    """What the user publishes goes where the user says."""
    with Subscriber(redis_server, "*") as subscriber:
        publishes = program(redis_server, script=BY_SYMBOL, CHANNEL_BY_SYMBOL="True")
        assert (publishes.wait()[0], publishes.log) == (0, "")
        eventually(lambda: len(subscriber.messages) >= 5)
    assert publishes.output.split() == [f"stream:bybit_{name}" for name in NAMES]
    assert subscriber.messages == [
        ("stream:bybit_trades:BTCUSDT", b'{"topic":"publicTrade.BTCUSDT","ts":1}'),
        ("stream:bybit_trades:ETHUSDT", b'{"topic":"publicTrade.ETHUSDT"}'),
        ("stream:bybit_orderbook:BTCUSDT", b'{"topic":"orderbook.50.BTCUSDT"}'),
        ("stream:bybit_orderbook", b"something else"),
        ("stream:bybit_trades", b'{"topic":"publicTrade.BTCUSDT","mine":1}'),
    ]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "stream:bybit_state"),
        ({"SHARD": "1/2"}, "stream:bybit_state:1of2"),
        ({"LEADER_KEY": "lease", "INSTANCE": "a"}, "stream:bybit_state:a"),
        ({"LEADER_KEY": "lease", "INSTANCE": "a", "SHARD": "2/2"}, "stream:bybit_state:2of2:a"),
    ],
)
def test_collectors_that_share_channels_have_a_state_each(settings, key):
    process = subprocess.run(
        [sys.executable, "-c", "import callbacks; print(callbacks.publisher.state_key)"],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )
    assert (process.stdout.strip(), process.stderr) == (key, "")
