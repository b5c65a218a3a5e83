"""main.py as its user runs it: the real program in a process of its own, between the stand-in for Bybit and a Redis."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress

import pytest
from conftest import Subscriber, eventually
from programs import ROOT, by_topic, channel_of, topic_of
from recording import write

from sandbox.bybit import Bybit
from sandbox.redis import LocalRedis, free_port

FRAMES = ROOT.parent / "shared" / "frames" / "linear-2026-08.tsv"
STOP = 5.0  # seconds that the program may take to end
OPTIONS = ["BTC-25JUN27-106000-P-USDT", "BTC-25JUN27-106000-C-USDT", "ETH-25JUN27-4000-C-USDT"]
SYMBOLS = {
    "linear": ["BTCUSDT", "ETHUSDT"],
    "spot": ["BTCUSDT", "ETHUSDT"],
    "inverse": ["BTCUSD", "ETHUSD"],
    "option": OPTIONS,
}


@pytest.fixture
def subscriber(redis_server):
    """Gets all that is published to any channel of a collector on `redis_server`."""
    with Subscriber(redis_server, "*") as subscriber:
        yield subscriber


def data(subscriber):
    """What came but for our own mark and what the collector says of itself on its status channel."""
    messages = list(subscriber.messages)
    return [
        (channel, payload) for channel, payload in messages if channel != "mark" and not channel.endswith("_status")
    ]


def flush(redis, subscriber):
    """The data, once the subscriber has got all that Redis took before."""
    with redis.client() as publisher:
        publisher.publish("mark", "mark")
    eventually(lambda: subscriber.of("mark"))
    return data(subscriber)


@pytest.fixture
def made_up(tmp_path):
    return write(tmp_path / "frames.tsv")


@pytest.fixture(params=["made up", "real"])
def recording(request, made_up):
    """The file of a recording."""
    if request.param == "real" and not FRAMES.exists():
        pytest.skip("there is no recording of Bybit beside the repository; the made-up one is tested")
    return FRAMES if request.param == "real" else made_up


def recorded(path):
    """The data frames of a recording by topic, as bytes and in order."""
    texts = [line.partition(b"\t")[2] for line in path.read_bytes().split(b"\n")]
    return by_topic(text for text in texts if b'"topic"' in text)


def sent_by(bybit):
    """Every data frame that each topic was sent, as bytes; a topic is sent on one connection only."""
    found = {}
    for connection in bybit.connections:
        topics = by_topic(text.encode() for text in connection.sent)
        assert not found.keys() & topics.keys(), "a topic was subscribed twice"
        found |= topics
    return found


def check_prefix(messages, sent, prefix="stream:bybit"):
    """Of each topic came what was sent, byte for byte, in order and once, up to what was still on its way."""
    got = defaultdict(list)
    for channel, payload in messages:
        assert channel == channel_of(topic_of(payload), prefix), (channel, payload)
        got[topic_of(payload)].append(payload)
    assert got.keys() <= sent.keys()
    for topic, payloads in sent.items():
        assert got[topic], f"nothing came of {topic}"
        assert got[topic] == payloads[: len(got[topic])], f"{topic} did not come as it was sent"


def test_a_recording_of_bybit_arrives_byte_for_byte(program, recording):
    """Every frame, in order, once, on the right channel, nothing else; and the log says little, the password never."""
    expected = recorded(recording)
    symbols = sorted({topic.rpartition(".")[2] for topic in expected})
    password = "pässwörd 'of' \"${HOME}\" #1"
    with (
        LocalRedis(password=password) as redis,
        Subscriber(redis, "stream:bybit_*", "mark") as subscriber,
        Bybit(replay=recording, speed=0) as bybit,
    ):
        collector = program(redis, bybit, ORDERBOOK_DEPTH=200, SYMBOLS=",".join(symbols))
        total = sum(map(len, expected.values()))
        eventually(lambda: len(data(subscriber)) >= total, 30)
        code, seconds = collector.stop()
        assert (code, seconds < STOP) == (0, True), collector.log
        messages = flush(redis, subscriber)
    assert by_topic(payload for _, payload in messages) == expected
    assert all(channel == channel_of(topic_of(payload)) for channel, payload in messages)

    assert password not in collector.log + collector.output
    lines = collector.lines()
    assert lines[0] == ("MainThread", f"{bybit.url}, linear, {', '.join(symbols)}: to Redis at 127.0.0.1:{redis.port}")
    subscribed = sorted(line for line in lines if line[1].startswith("Subscribed to "))
    kinds = {
        "Liquidations": "allLiquidation",
        "OrderBook": "orderbook.200",
        "Ticker": "tickers",
        "Trades": "publicTrade",
    }
    assert subscribed == [
        (name, "Subscribed to " + ", ".join(f"{kind}.{symbol}" for symbol in symbols)) for name, kind in kinds.items()
    ]
    # The start, Redis, four subscriptions, the signal.
    assert len(lines) == 7, collector.log
    assert not collector.lines("WARNING") + collector.lines("ERROR")
    assert collector.output == ""


@pytest.mark.parametrize(
    ("category", "number"),
    [*((category, signal.SIGTERM) for category in SYMBOLS), ("linear", signal.SIGINT)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_under_load_ends_it_with_nothing_lost(program, redis_server, subscriber, category, number):
    """All that it took from Bybit is in Redis when it ends, within 5 s and with code 0."""
    topics = {f"{kind}.{symbol}" for kind in ("orderbook.50", "publicTrade", "tickers") for symbol in SYMBOLS[category]}
    if category in ("linear", "inverse"):
        topics |= {f"allLiquidation.{symbol}" for symbol in SYMBOLS[category]}
    if category == "option":
        topics = {f"{kind}.{symbol}" for kind in ("orderbook.25", "tickers") for symbol in OPTIONS}
        topics |= {"publicTrade.BTC", "publicTrade.ETH"}
    with Bybit(rate=2000, record=True) as bybit:
        collector = program(
            redis_server,
            bybit,
            CHANNEL_TYPE=category,
            SYMBOLS=",".join(SYMBOLS[category]),
            CHANNEL_PREFIX=f"{category}:test",
        )
        bybit.wait(lambda: {topic for connection in bybit.connections for topic in connection.topics} >= topics, 20)
        eventually(lambda: len(data(subscriber)) > 1000, 30)
        eventually(lambda: {topic_of(payload) for _, payload in data(subscriber)} == topics, 30)
        code, seconds = collector.stop(number)
        assert (code, seconds < STOP) == (0, True), collector.log
        bybit.wait(lambda: all(connection.closed for connection in bybit.connections))
        sent, paths = sent_by(bybit), {connection.path for connection in bybit.connections}
        asked = [topic for connection in bybit.connections for one in connection.requests for topic in one["args"]]
    check_prefix(flush(redis_server, subscriber), sent, f"{category}:test")
    assert sent.keys() == topics
    assert paths == {f"/v5/public/{category}"}
    assert sorted(asked) == sorted(topics), "spot and option have no liquidations, and nothing is asked for twice"
    assert collector.lines()[-1] == ("MainThread", f"Stopping on {number.name}")


def test_it_ends_in_time_though_neither_end_can_be_reached(program):
    collector = program(REDIS_PORT=free_port(), BYBIT_WS_URL=f"ws://127.0.0.1:{free_port()}")
    collector.wait_for_log("Cannot reach Redis at")
    collector.wait_for_log("Lost Bybit", times=8)
    code, seconds = collector.stop()
    assert (code, seconds < STOP) == (0, True), collector.log
    assert "Traceback" not in collector.log


def test_a_log_that_nobody_reads_stops_neither_the_data_nor_the_end(redis_server, subscriber):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    with Bybit(rate=50) as bybit:
        settings = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_server.port), "BYBIT_WS_URL": bybit.url}
        settings |= {"RECONNECT_DELAY": "0.1"}
        with subprocess.Popen(
            [sys.executable, "main.py"], cwd=ROOT, env=os.environ | settings, stderr=writing
        ) as process:
            try:
                eventually(lambda: len(data(subscriber)) > 10, 20)
                before = len(bybit.connections)
                for connection in bybit.connections:
                    connection.drop()
                eventually(lambda: len(bybit.connections) >= before + 4, 20)
                process.send_signal(signal.SIGTERM)
                assert process.wait(STOP + 2) == 0
            finally:
                process.kill()
    for each in (reading, writing):
        os.close(each)


def test_a_redis_that_hangs_costs_the_messages_and_a_second_signal_ends_it_at_once(program, own_redis):
    """The first signal leaves 5 s for the rest; who does not want to wait sends another."""
    with Bybit(rate=500) as bybit, Subscriber(own_redis, "*") as subscriber:
        collector = program(own_redis, bybit)
        eventually(lambda: len(data(subscriber)) > 10, 20)
        own_redis.pause()
        bybit.wait(lambda: sum(connection.count for connection in bybit.connections) > len(data(subscriber)) + 100)
        collector.process.send_signal(signal.SIGTERM)
        collector.wait_for_log("Stopping")
        code, seconds = collector.stop()
        own_redis.resume()
    assert code == -signal.SIGTERM, collector.log
    assert seconds < STOP / 2


def test_what_must_be_left_behind_is_counted_and_makes_the_exit_code(program, made_up):
    """Redis is not there at all: five seconds for it to come, then 1 and the number."""
    frames = sum(map(len, recorded(made_up).values()))
    with Bybit(replay=made_up, speed=0) as bybit:
        collector = program(bybit=bybit, REDIS_PORT=free_port(), ORDERBOOK_DEPTH=200, SYMBOLS="BTCUSDT,ETHUSDT")
        bybit.wait(lambda: sum(connection.count for connection in bybit.connections) > frames // 3, 20)
        code, seconds = collector.stop()
        sent = sum(connection.count for connection in bybit.connections)
    assert code == 1, collector.log
    assert STOP - 0.5 < seconds < STOP + 3
    left = re.search(r"(\d+) messages could not be delivered to Redis and are lost\n\Z", collector.log)
    assert 0 < int(left[1]) <= sent


def test_redis_away_at_the_start_loses_nothing(program, made_up):
    """It comes later than all of Bybit's messages, which wait for it."""
    expected = recorded(made_up)
    total = sum(map(len, expected.values()))
    redis = LocalRedis()
    with Bybit(replay=made_up, speed=0) as bybit:
        symbols = "BTCUSDT,ETHUSDT,SOLUSDT,DOGEUSDT"
        collector = program(redis, bybit, ORDERBOOK_DEPTH=200, SYMBOLS=symbols)
        collector.wait_for_log("Cannot reach Redis at")
        bybit.wait(lambda: sum(connection.count for connection in bybit.connections) == total, 30)
        # Nobody is subscribed before Redis is up: the program must not find it before our subscriber does.
        collector.process.send_signal(signal.SIGSTOP)
        with redis, Subscriber(redis, "stream:bybit_*", "mark") as subscriber:
            collector.process.send_signal(signal.SIGCONT)
            eventually(lambda: len(data(subscriber)) >= total, 30)
            code, _ = collector.stop()
            messages = flush(redis, subscriber)
    assert code == 0, collector.log
    assert by_topic(payload for _, payload in messages) == expected
    assert all(channel == channel_of(topic_of(payload)) for channel, payload in messages)
    assert len(collector.lines("ERROR")) == 1, "an outage is one line"


@pytest.mark.parametrize("password", ["not-the-right-one", ""], ids=["wrong", "missing"])
def test_a_redis_that_does_not_let_it_in_at_the_start_ends_it(program, password):
    """With code 2 and a sentence that shows no password: waiting would not help."""
    with LocalRedis(password="the-right-one") as redis, Bybit(rate=100) as bybit:
        collector = program(bybit=bybit, REDIS_PORT=redis.port, REDIS_PASSWORD=password)
        code, _ = collector.wait()
    assert code == 2, collector.log
    [(_, sentence)] = collector.lines("ERROR")
    assert sentence.startswith(f"Cannot start: authentication failed at Redis 127.0.0.1:{redis.port}: ")
    assert "right-one" not in collector.log + collector.output


@pytest.mark.parametrize("more", [{}, {"LEADER_KEY": "lease"}], ids=["single", "shared"])
def test_a_database_that_redis_does_not_have_ends_it_with_one_sentence(program, redis_server, more):
    with Bybit(rate=100) as bybit:
        collector = program(redis_server, bybit, REDIS_DB=99, **more)
        code, _ = collector.wait()
    assert code == 2, collector.log
    [(_, sentence)] = collector.lines("ERROR") + collector.lines("WARNING")
    reason = "REDIS_DB: DB index is out of range"
    assert sentence.startswith(f"Cannot start: Redis at 127.0.0.1:{redis_server.port}: {reason}")


APPEND = """
import sys
from main import STREAMS, main, subscribe_liquidations, subscribe_trades
STREAMS.append({entry})
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ('{"name": "Trades", "func": subscribe_trades, "args": ("ETHUSDT", print)}', "Trades: the name is used twice"),
        ('{"name": "Mine", "func": subscribe_trades, "args": ("ETHUSDT",)}', "Mine: args is not (symbol or list"),
        (
            '{"name": "Mine", "func": subscribe_liquidations, "args": ("ETHUSDT", print)}',
            "Mine: Bybit has no such topic",
        ),
    ],
    ids=["a name twice", "no callback", "no such topics"],
)
def test_a_wrong_entry_of_streams_is_refused_at_the_start(program, entry, sentence):
    """Before anything is connected: the ends of this collector do not exist."""
    collector = program(script=APPEND.replace("{entry}", entry), CHANNEL_TYPE="spot", REDIS_HOST="nowhere.invalid")
    code, _ = collector.wait()
    assert code == 2, collector.log
    assert collector.log.startswith(f"Cannot start: STREAMS: {sentence}")
    assert collector.log.count("\n") == 1


FAULTY = """
import sys
import main
from ops.monitor import Monitor

tick, faults = Monitor.tick, iter(range(3))

def faulty(monitor):
    if next(faults, None) is not None:
        raise LookupError("a mistake of ours")
    tick(monitor)

Monitor.tick = faulty
sys.exit(main.main())
"""


def test_an_error_in_the_main_thread_is_logged_once_and_ends_nothing(program, redis_server):
    with Bybit(rate=300) as bybit:
        collector = program(redis_server, bybit, script=FAULTY)
        collector.wait_for_log("Subscribed to ", times=4)
        code, _ = collector.stop()
    assert code == 0, collector.log
    assert collector.log.count("ERROR [MainThread] Internal error; going on") == 1
    assert collector.log.count("LookupError: a mistake of ours") == 1


# What a user may write into main.py: a callback of his own, entries added while it runs.
OWN = """
import json
import sys
import threading
import main

def mine(message):
    print(json.dumps([type(message).__name__, message]), flush=True)

def raises(message):
    raise LookupError("a mistake of the user's")

def append(entry):
    sys.stdin.readline()
    main.STREAMS.append(entry)

def change():
    append({"name": "Wrong"})
    append({"name": "Mine", "func": main.subscribe_ticker, "args": (["ETHUSDT", "BTCUSDT"], mine), "stall_timeout": 30})
    append({"name": "Raises", "func": main.subscribe_orderbook, "args": ("ETHUSDT", raises)})

threading.Thread(target=change, daemon=True).start()
sys.exit(main.main())
"""


def test_entries_appended_while_it_runs_are_started(program, redis_server, subscriber):
    """A wrong one is left out; a callback of the user's gets each message as a dict, as Bybit sent it."""
    with Bybit(rate=300, record=True) as bybit:
        collector = program(redis_server, bybit, script=OWN)
        bybit.wait(lambda: len(bybit.connections) == 4 and all(connection.topics for connection in bybit.connections))
        collector.send_line()
        collector.wait_for_log("Wrong: func is not a function")
        collector.send_line()
        bybit.wait(lambda: len(bybit.connections) == 5 and bybit.connections[4].topics)
        collector.send_line()
        bybit.wait(lambda: len(bybit.connections) == 6 and bybit.connections[5].topics)
        collector.wait_for_log("LookupError")
        bybit.wait(lambda: bybit.connections[5].count > 10)
        eventually(lambda: collector.output.count("\n") > 100, 30)
        code, _ = collector.stop()
        assert code == 0, collector.log
        own, raising = bybit.connections[4:]
        rest = [connection for connection in bybit.connections if connection not in (own, raising)]
        sent = by_topic(text.encode() for connection in rest for text in connection.sent)
        assert [one["args"] for one in own.requests] == [["tickers.ETHUSDT", "tickers.BTCUSDT"]]
        got = [json.loads(line) for line in collector.output.splitlines()]
        assert {kind for kind, _ in got} == {"dict"}
        messages = [message for _, message in got]
        assert messages == [json.loads(text) for text in own.sent[: len(messages)]]
        assert {message["type"] for message in messages} == {"snapshot", "delta"}, "deltas stay deltas"
        assert len(bybit.connections) == 6, "none of this cost a connection"
    assert collector.log.count("LookupError: a mistake of the user's") == 1, "logged once"
    assert collector.log.count("ignoring this entry") == 1
    check_prefix(flush(redis_server, subscriber), sent)


def test_many_symbols_are_spread_over_connections(program, redis_server):
    """1,000 symbols do not fit on one: each is subscribed once, none refused, within the characters Bybit allows."""
    symbols = [f"S{number:04}USDT" for number in range(1000)]
    kinds = ("orderbook.200", "publicTrade", "tickers", "allLiquidation")
    with Bybit(symbols={"linear": symbols}, rate=0) as bybit:
        collector = program(redis_server, bybit, SYMBOLS=",".join(symbols), ORDERBOOK_DEPTH=200)
        collector.wait_for_log("Subscribed to ", times=8)
        code, _ = collector.stop()
        assert code == 0, collector.log
        asked = [[topic for one in link.requests for topic in one["args"]] for link in bybit.connections]
    assert not collector.lines("ERROR"), "Bybit refuses what is more than 21,000 characters"
    assert all(len(json.dumps(topics, separators=(",", ":"))) <= 21_000 for topics in asked)
    topics = sorted(topic for topics in asked for topic in topics)
    assert topics == sorted(f"{kind}.{symbol}" for kind in kinds for symbol in symbols)
    threads = {thread for thread, text in collector.lines("INFO") if text.startswith("Subscribed to ")}
    names = ("OrderBook", "Trades", "Ticker", "Liquidations")
    assert threads == {*names, *(f"{name}#2" for name in names)}, "20 % of each are left for what comes later"


def test_the_trades_of_many_option_contracts_come_once(program, redis_server):
    """Option has trades by coin: however many contracts there are, a coin is subscribed on one connection."""
    symbols = [f"BTC-25JUN27-{number}000-C-USDT" for number in range(100, 700)]
    with Bybit(symbols={"option": symbols}, rate=0) as bybit:
        collector = program(redis_server, bybit, CHANNEL_TYPE="option", SYMBOLS=",".join(symbols))
        wanted = 2 * len(symbols) + 1  # books, tickers, and the trades of one coin
        eventually(lambda: len({topic for link in bybit.connections for topic in link.topics}) == wanted, 30)
        code, _ = collector.stop()
        assert code == 0, collector.log
        asked = [topic for link in bybit.connections for one in link.requests for topic in one["args"]]
    assert asked.count("publicTrade.BTC") == 1, "every trade would come more than once"


def test_ctrl_c_in_the_middle_of_the_imports_prints_nothing(tmp_path):
    (tmp_path / "redis.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    command = [sys.executable, "main.py"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")
