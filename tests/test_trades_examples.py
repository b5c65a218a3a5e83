"""examples/trades.py and candles.py: what they print is what the exchange sent, or they say where it may not be."""

import json
import signal
import sys
from collections import defaultdict
from decimal import Decimal

import pytest
from conftest import eventually
from hypothesis import given
from hypothesis import strategies as st
from programs import ROOT, Program, by_topic

from sandbox.bybit import Bybit

sys.path.insert(0, str(ROOT / "examples"))  # they import each other, as on the user's machine
import candles
import trades
from candles import KEPT, LATE, WAIT, Candles
from trades import Tape

PREFIX = "stream:bybit"
STATUS = f"{PREFIX}_status"
TOPIC, OTHER = "publicTrade.BTCUSDT", "publicTrade.ETHUSDT"
SECOND = 1_795_000_000  # since 1970
END = 1e9  # seconds: by then everything is closed


def trade(at, price="1", size="1", number=None, symbol="BTCUSDT", seq=0):
    """at: ms after SECOND."""
    number = f"{at}-{seq}-{price}-{size}" if number is None else number
    return {"T": SECOND * 1000 + at, "s": symbol, "S": "Buy", "v": size, "p": price, "i": number, "seq": seq}


def message(*found, topic=TOPIC):
    return json.dumps({"topic": topic, "type": "snapshot", "ts": found[-1]["T"] + 1, "data": found})


def event(name, *topics, **members):
    return json.dumps({"event": name, "stream": "", "topics": topics, "ts": 1} | members)


def reasons(entries):
    return {topic: reason for topic, trade, reason in entries if trade is None}


# Trades.


def test_a_trade_comes_once(monkeypatch):
    monkeypatch.setattr(trades, "REMEMBERED", 3)
    tape = Tape(PREFIX, ["BTCUSDT"])
    first, second = trade(0, number="a"), trade(1, number="b")
    assert tape.receive(message(first)) == [(TOPIC, first, None)]
    assert tape.receive(message(first, second)) == [(TOPIC, second, None)]
    assert tape.receive(message(trade(0, number="a", symbol="ETHUSDT"), topic=OTHER)) == []
    for number in range(9):
        assert len(tape.receive(message(trade(number, number=str(number))))) == 1
    assert len(tape.seen) == 3


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (event("lost", TOPIC, reason="why"), {TOPIC: "lost: why"}),
        (event("stalled", TOPIC, OTHER, reason="why"), {TOPIC: "stalled: why", OTHER: "stalled: why"}),
        (event("lost", "orderbook.50.BTCUSDT", reason="why"), {}),
        (event("stopped"), {TOPIC: "stopped", OTHER: "stopped"}),
        (event("dropped", channel=f"{PREFIX}_trades:BTCUSDT", messages=1), {TOPIC: "dropped"}),
        (event("dropped", channel=f"{PREFIX}_orderbook:BTCUSDT", messages=1), {}),
        (event("dropped", channel=STATUS, messages=1), {TOPIC: "dropped", OTHER: "dropped"}),
        (event("rejected", OTHER, reason="why"), {OTHER: "rejected: why"}),
        (event("subscribed", TOPIC), {TOPIC: "the collector has begun anew"}),
        (event("gap", "orderbook.50.BTCUSDT", before=1, after=3), {}),
        (event("leader", instance="b", term=2), {}),
        (event("alive"), {}),
    ],
)
def test_an_event_says_which_trades_may_be_missing(payload, expected):
    tape = Tape(PREFIX, ["BTCUSDT", "ETHUSDT"], by_symbol=True)
    tape.receive(message(trade(0)))
    tape.receive(message(trade(0, symbol="ETHUSDT"), topic=OTHER))
    assert reasons(tape.receive(payload)) == expected


def test_a_loss_is_told_once_and_the_subscription_after_it_is_none():
    tape = Tape(PREFIX, ["BTCUSDT"])
    assert reasons(tape.lose(tape.channels, "connected")) == {TOPIC: "connected"}
    assert not tape.receive(event("subscribed", TOPIC))
    tape.receive(message(trade(0)))
    lost = event("lost", TOPIC, reason="why")
    assert len(tape.receive(lost)) == 1
    assert not tape.receive(lost)
    assert not tape.receive(event("subscribed", TOPIC))
    tape.receive(message(trade(1)))
    assert len(tape.receive(lost)) == 1


def test_a_takeover_is_no_loss():
    """The new leader may tell late of how it subscribed. One that subscribes after that has begun anew."""
    tape = Tape(PREFIX, ["BTCUSDT"])
    tape.receive(message(trade(0)))
    assert not tape.receive(event("leader", instance="b", term=2, ts=1000))
    assert not tape.receive(event("subscribed", TOPIC, ts=900))
    assert len(tape.receive(event("subscribed", TOPIC, ts=1100))) == 1


def test_a_redis_that_says_nothing_is_noticed(own_redis, monkeypatch):
    monkeypatch.setattr(trades, "SILENCE", 0.3)
    following = trades.follow(own_redis.client(retry=None), PREFIX, ["BTCUSDT"])
    heard = []

    def hears(reason):
        heard.extend(reasons(next(following)).values())
        return reason in " ".join(heard)

    eventually(lambda: hears("connected to Redis just now"))
    eventually(lambda: hears("nothing received for 0 s"))
    heard.clear()
    eventually(lambda: hears("connected to Redis just now"))
    own_redis.kill()
    eventually(lambda: hears("Redis: "))
    following.close()


# Candles.


def shown(made):
    """(second after SECOND, incomplete, corrected) of each."""
    return [(one.second - SECOND, one.incomplete, one.corrected) for one in made]


def fed(*times):
    """Candles with trades at these ms after SECOND, all of which came at 0; the first candle is complete."""
    made = Candles()
    made.gaps.clear()
    for at in times:
        assert made.add(trade(at), 0.0)
    return made


def test_a_candle_has_the_first_highest_lowest_and_last_price_by_the_trades_own_time():
    made = Candles()
    given = [(500, "10.0", "1", 7), (100, "9.0", "0.5", 3), (100, "9.50", "0.25", 4), (999, "9.9", "2", 9)]
    for at, price, size, seq in given:
        made.add(trade(at, price, size, seq=seq), 0.0)
    made.add(trade(1000, "1"), 0.0)
    [candle] = [one for one in made.closed(END) if one.second == SECOND]
    assert candle[1:-2] == ("BTCUSDT", "9.0", "10.0", "9.0", "9.9", Decimal("3.75"), 4)
    assert candles.line(candle).endswith(
        "BTCUSDT open 9.0 high 10.0 low 9.0 close 9.9 volume 3.75 trades 4 INCOMPLETE: it began in the middle"
    )


def test_trades_of_one_message_keep_their_order():
    """A market order that takes from several: they have the same time and the same seq."""
    made = fed()
    for price in ("3", "1", "2"):
        made.add(trade(0, price, seq=5), 0.0)
    [candle] = made.closed(END)
    assert (candle.open, candle.close) == ("3", "2")


def test_a_candle_is_closed_a_second_after_its_end():
    made = fed(0, 900)
    wait = (100 + WAIT) / 1000  # from the trade at 900 on
    assert made.closed(wait - 0.01) == []
    assert shown(made.closed(wait + 0.01)) == [(0, "", False)]
    assert made.closed(END) == []
    made = fed(0, 1000 + WAIT - 1)
    assert made.closed(0.0) == []
    made.add(trade(1000 + WAIT), 0.0)
    assert shown(made.closed(0.0)) == [(0, "", False)]


def test_a_late_trade_corrects_its_candle():
    made = fed(0, 5000)
    assert shown(made.closed(0.0)) == [(0, "", False)]
    assert made.add(trade(1, "7"), 0.0)
    [candle] = made.closed(END)[:1]
    assert (candle.close, candle.trades, candle.corrected) == ("7", 2, True)


def test_what_is_too_late_is_told_and_nothing_is_kept_for_ever():
    made = fed(0)
    for second in range(1, 500):
        made.add(trade(second * 1000), 0.0)
        made.lose("lost")
        made.closed(0.0)
    for kept in (made.trades, made.shown, made.gaps):
        assert len(kept) <= KEPT + 2
    assert len(made.due) <= 3
    assert not made.add(trade((499 - KEPT) * 1000 - 1), 0.0)
    assert made.add(trade((499 - KEPT) * 1000), 0.0)


def test_a_burst_of_old_trades_makes_whole_candles():
    """As after an outage of Redis: seconds of trades come at once, in order."""
    made = Candles()
    for at in range(0, 100_000, 100):
        made.add(trade(at), 0.0)
    found = made.closed(0.0)
    assert {one.trades for one in found} == {10}
    assert [one.second - SECOND for one in found] == list(range(100 - WAIT // 1000 - 1))


def test_candles_around_a_loss_are_incomplete():
    """Those of the last trade before and of the first one after; what was shown is shown again."""
    made = fed(0, 1000, 2000)
    assert shown(made.closed(END)) == [(0, "", False), (1, "", False), (2, "", False)]
    made.lose("lost: why")
    assert shown(made.closed(END)) == [(2, "lost: why", True)]
    made.lose("connected")
    for at in (6000, 6500, 7000):
        made.add(trade(at), 0.0)
    assert shown(made.closed(END)) == [(6, "lost: why", False), (7, "", False)]
    made.add(trade(3000), 0.0)
    assert shown(made.closed(END)) == [(3, "lost: why", False)]


def test_what_was_dropped_may_have_been_earlier():
    made = fed(0, 1000, 2000, 3000)
    made.lose("dropped")
    made.add(trade(4000), 0.0)
    made.add(trade(5000), 0.0)
    assert [second for second, why, _ in shown(made.closed(END)) if why] == [*range(3 - LATE, 4), 4]


PRICES = st.integers(1, 5).map(lambda number: f"{number}.0")
SIZES = st.sampled_from(["0.001", "1", "2.50"])
MOMENTS = st.lists(st.integers(0, KEPT * 1000 - 1), min_size=1, max_size=30, unique=True)


@given(MOMENTS, st.data())
def test_neither_the_order_of_messages_nor_duplicates_matter(moments, data):
    """Within the time that candles are kept. What is shown last of each second equals what was traded in it."""
    sent = []
    for at in sorted(moments):
        fills = data.draw(st.lists(st.tuples(PRICES, SIZES), min_size=1, max_size=3))
        sent.append([trade(at, price, size, f"{at}-{n}") for n, (price, size) in enumerate(fills)])
    arriving = data.draw(st.permutations(sent + data.draw(st.lists(st.sampled_from(sent), max_size=10))))
    tape, made, latest = Tape(PREFIX, ["BTCUSDT"]), fed(), {}
    for number, found in enumerate(arriving):
        for _, one, _ in tape.receive(message(*found)):
            assert made.add(one, float(number))
        latest |= {one.second: one for one in made.closed(number + data.draw(st.sampled_from([0.0, 0.9, 5.0])))}
    latest |= {one.second: one for one in made.closed(END)}
    assert {second: one[2:8] for second, one in latest.items()} == summary(one for found in sent for one in found)
    assert not any(one.incomplete for one in latest.values())
    total = sum(Decimal(one["v"]) for found in sent for one in found)
    assert sum(one.volume for one in latest.values()) == total


def summary(in_order):
    """Open, high, low, close, volume and number of the trades in each second."""
    found = defaultdict(list)
    for one in in_order:
        found[one["T"] // 1000].append(one)
    return {
        second: (
            group[0]["p"],
            max((one["p"] for one in group), key=Decimal),
            min((one["p"] for one in group), key=Decimal),
            group[-1]["p"],
            sum(Decimal(one["v"]) for one in group),
            len(group),
        )
        for second, group in found.items()
    }


# The programs.


def runs(server, directory, name, *arguments, **settings):
    (directory / name).mkdir()
    settings = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": server.port} | settings
    return Program(settings, directory / name, f"examples/{name}", arguments)


def test_all_trades_of_the_exchange_are_printed_and_losses_in_their_place(program, own_redis, tmp_path):
    with (
        runs(own_redis, tmp_path, "trades.py", "BTCUSDT", "ETHUSDT", "--big", "0") as tape,
        runs(own_redis, tmp_path, "candles.py", "BTCUSDT", "ETHUSDT") as chart,
        Bybit(rate=1000, record=True) as bybit,
        own_redis.client() as client,
    ):
        eventually(lambda: client.pubsub_numsub(STATUS)[0][1] == 2)
        collector = program(own_redis, bybit, SYMBOLS="BTCUSDT,ETHUSDT")
        eventually(lambda: len(complete(chart)) > 2, 20)
        for connection in bybit.connections:
            if TOPIC in connection.topics:
                connection.drop()
        eventually(lambda: chart.output.count("INCOMPLETE: lost: ") > 1 and len(complete(chart)) > 4, 20)
        assert collector.stop()[0] == 0
        bybit.wait(lambda: all(connection.closed for connection in bybit.connections))
        sent = by_topic(text.encode() for connection in bybit.connections for text in connection.sent)
        eventually(lambda: tape.output.count("here: stopped\n") == chart.output.count("here: stopped\n") == 2)
        eventually(lambda: len(complete(chart)) > 4)
        assert [each.stop(signal.SIGINT)[0] for each in (tape, chart)] == [0, 0]
        assert tape.log == chart.log == ""

    lines = [line.partition(" <<< ")[0] for line in tape.output.splitlines()]
    for symbol in ("BTCUSDT", "ETHUSDT"):
        traded = [one for payload in sent[f"publicTrade.{symbol}"] for one in json.loads(payload)["data"]]
        expected = [trades.line(one, Decimal("Infinity")) for one in traded]
        mine = [line for line in lines if f" {symbol} " in line]
        found = [line for line in mine if "---" not in line]
        assert found == expected[: len(found)]  # what was in flight when the collector ended is missing
        told = [line.partition("here: ")[2].partition(":")[0] for line in mine if "---" in line]
        assert told == ["connected to Redis just now", "lost", "stopped"]
        assert "---" in mine[0]
        assert "---" in mine[-1]
        made, exact = complete(chart), summary(traded)
        for second, figures in exact.items():
            if (key := (trades.clock(second * 1000)[:8], symbol)) in made:
                names = ("open", "high", "low", "close", "volume", "trades")
                words = " ".join(f"{name} {figure}" for name, figure in zip(names, figures, strict=True))
                assert made[key] == words


def complete(chart):
    """By time and symbol the candles that were shown last, and of which nothing is said to be missing."""
    latest = {}
    for line in chart.output.splitlines():
        if "---" not in line:
            at, symbol, words = line.split(" ", 2)
            latest[at, symbol] = words.removesuffix(" CORRECTED")
    return {key: words for key, words in latest.items() if "INCOMPLETE" not in words}


@pytest.mark.parametrize("name", ["trades.py", "candles.py"])
def test_the_program_reads_the_channels_of_its_symbols(own_redis, tmp_path, name):
    """With the collector's setting."""
    channel = f"{PREFIX}_trades"
    with runs(own_redis, tmp_path, name, CHANNEL_BY_SYMBOL="True") as process, own_redis.client() as client:
        eventually(lambda: client.pubsub_channels(f"{channel}*") == [f"{channel}:BTCUSDT".encode()])
        assert process.stop(signal.SIGINT)[0] == 0


@pytest.mark.parametrize("name", ["trades.py", "candles.py"])
def test_help_says_what_the_program_does(own_redis, tmp_path, name):
    with runs(own_redis, tmp_path, name, "--help") as asked:
        assert asked.wait()[0] == 0
        assert "REDIS_HOST" in asked.output
        assert "SYMBOL" in asked.output
