"""Leader and standby where each symbol has channels of its own; and collectors that share the symbols."""

import json
import time

import pytest
from conftest import Subscriber, eventually
from test_leadership import CHANNEL, STATUS, Instance, events, stands_by

from relay.channels import by_symbol
from relay.redis.publisher import Publisher
from relay.redis.reports import RedisLog
from sandbox.bybit import Bybit

SYMBOLS = [f"S{number}USDT" for number in range(800)]


class SymbolInstance(Instance):
    """One that publishes each symbol to its own channel. The plain one has no message."""

    def __init__(self, server, name, **options):
        super().__init__(server, name, by_symbol=[CHANNEL], **options)
        self._publish = by_symbol(self.publisher.publish)

    def receives_of(self, symbols, number=1):
        for symbol in symbols:
            ts = 1_790_000_000_000 + number
            self._publish(CHANNEL, b'{"topic":"publicTrade.%b","ts":%d,"n":%d}' % (symbol.encode(), ts, number))
        self.leadership.flush()


@pytest.fixture
def pair(own_redis):
    with SymbolInstance(own_redis, "a") as a:
        eventually(lambda: a.leads)
        with SymbolInstance(own_redis, "b") as b:
            stands_by(a, b)
            yield a, b


def subscriptions(server):
    """What is subscribed to: channels and patterns."""
    with server.client() as client:
        return {channel.decode() for channel in client.pubsub_channels()}, client.pubsub_numpat()


def test_a_standby_watches_by_pattern_and_strikes_each_message_where_it_was_published(pair, own_redis):
    """Hundreds of symbols, new ones among them, cost it no further subscription, and it keeps nothing of them."""
    a, b = pair
    before = subscriptions(own_redis)
    assert (CHANNEL in before[0], before[1]) == (True, 1)
    for number in (1, 2):
        b.receives_of(SYMBOLS, number)
        assert b.publisher.pending == 800
        a.receives_of(SYMBOLS, number)
        eventually(lambda: b.publisher.pending == 0)
    watch = b.leadership._standby._watch
    connection = watch._connection
    b.receives_of(["NEWUSDT"])
    b.publisher.publish(CHANNEL, "no message of a symbol")
    a.receives_of(["NEWUSDT"])
    a.publisher.publish(CHANNEL, "no message of a symbol")
    a.leadership.flush()
    eventually(lambda: b.publisher.pending == 0)
    assert watch._connection is connection
    assert subscriptions(own_redis) == before


def test_a_takeover_publishes_what_is_missing_to_the_channels_of_the_symbols(pair, own_redis):
    a, b = pair
    with Subscriber(own_redis, f"{CHANNEL}*", STATUS) as consumer:
        a.receives_of(SYMBOLS[:2])
        b.receives_of(SYMBOLS[:3])
        a.stops()
        eventually(lambda: b.leads)
        eventually(lambda: len(consumer.messages) == 4)
        assert [channel for channel, _ in consumer.messages] == [
            f"{CHANNEL}:S0USDT",
            f"{CHANNEL}:S1USDT",
            STATUS,
            f"{CHANNEL}:S2USDT",
        ]
    assert [event["instance"] for event in events(consumer)] == ["b"]


def test_a_channel_of_the_users_own_is_watched_beside(pair, own_redis):
    a, b = pair
    for instance in (b, a):
        instance.publisher.publish("mine:BTCUSDT", "1")
    a.leadership.flush()
    eventually(lambda: "mine:BTCUSDT" in subscriptions(own_redis)[0])
    for instance in (b, a):
        instance.publisher.publish("mine:BTCUSDT", "2")
    a.leadership.flush()
    eventually(lambda: b.publisher.pending == 0)


# The log stays short however many channels there are.


def test_what_redis_rejects_on_many_channels_is_named_for_a_few_and_counted_for_all(own_redis, caplog):
    own_redis.client().execute_command("ACL", "SETUSER", "pub", "on", ">p", "&stream:bybit_status", "-@all", "+publish")
    publisher = Publisher("127.0.0.1", own_redis.port, username="pub", password="p")
    with Subscriber(own_redis, STATUS) as subscriber:
        publisher.start()
        for symbol in SYMBOLS[:100]:
            publisher.publish(f"{CHANNEL}:{symbol}", "x")
        assert publisher.stop(time.monotonic() + 5) == 0
        eventually(lambda: sum(event["messages"] for event in events(subscriber, "dropped")) == 100)
    assert publisher.dropped == {f"{CHANNEL}:{symbol}": 1 for symbol in SYMBOLS[:100]}
    assert caplog.text.count("Redis rejects a message") == 8
    assert caplog.text.count("Rejections like these on other channels are only counted: NOPERM") == 1


def test_what_a_full_buffer_dropped_of_many_channels_is_told_in_one_short_line(caplog):
    publisher = Publisher("127.0.0.1", 1, buffer=1)
    for symbol in (*SYMBOLS[:20], "MOSTUSDT", "MOSTUSDT"):
        publisher.publish(f"{CHANNEL}:{symbol}", "x")
    log = RedisLog("somewhere", publisher._pipeline, publisher._role)
    log.update()
    log.end_overflow()
    text = caplog.messages[-1]
    assert text.startswith("The Redis buffer overflowed for 0.0 s; dropped: stream:bybit_trades:MOSTUSDT 2, ")
    assert text.endswith("S6USDT 1, and on 13 more channels; 22 in all")


# Collectors that share the symbols.


def test_two_shards_with_a_standby_each_work_side_by_side(program, own_redis):
    """One prefix, one LEADER_KEY in the settings: a lease for each part, a state for each, and --status shows its own.
    A part that stops says that its topics do, and no others.
    """
    symbols = ["ETHUSDT", "BTCUSDT"]  # of the first part, and of the second

    def start(bybit, part, symbol):
        more = {"SYMBOLS": symbol, "SHARD": part, "INSTANCE": "a", "LEADER_KEY": "stream:bybit_leader"}
        return program(own_redis, bybit, **more)

    with (
        own_redis.client(decode_responses=True) as client,
        Subscriber(own_redis, STATUS) as consumer,
        Bybit(rate=500, symbols={"linear": symbols}) as bybit,
    ):
        collectors = [start(bybit, f"{number}/2", symbol) for number, symbol in enumerate(symbols, 1)]
        for number in (1, 2):
            state = f"stream:bybit_state:{number}of2:a"
            eventually(lambda state=state: json.loads(client.hget(state, "*") or "{}").get("ready"), 20)
            assert client.hkeys(f"stream:bybit_leader:{number}of2_instances") == ["a"]

        def status_of_a_leader():
            """What it writes of itself may be a turn old."""
            status = program(own_redis, None, arguments=["--status"], SHARD="2/2", LEADER_KEY="stream:bybit_leader")
            return status if status.wait()[0] == 0 else None

        status = eventually(status_of_a_leader, 20)
        assert "a, leader:" in status.output
        assert status.output.count("leader") == 2  # in the table, and above the streams
        assert collectors[1].stop()[0] == 0
        [stopped] = eventually(lambda: events(consumer, "stopped"))
        assert stopped["topics"] == sorted(
            f"{kind}.BTCUSDT" for kind in ("orderbook.50", "publicTrade", "tickers", "allLiquidation")
        )
        assert collectors[0].stop()[0] == 0
