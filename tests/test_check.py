"""--check: streams that behave in every way, and the real program between a stand-in for Bybit and a real Redis."""

import functools
import tempfile
import threading

import pytest
from conftest import Subscriber

from conf.streams import StreamSpec
from ops import trials as module
from ops.check import describe_limit, run_check
from ops.rights import lease_problems
from ops.table import WIDTH
from ops.trials import Outcome, bybit_rows
from relay.bybit.exchange import Exchange
from relay.kinds import ORDERBOOK, TICKER, TRADES, carries
from relay.redis.endpoint import Hosts
from relay.redis.publisher import Publisher
from sandbox.bybit import Bybit, Script
from sandbox.redis import LocalRedis, free_port

ADDRESS = "wss://stream-testnet.bybit.com"


def outcome(name="Trades", symbols=("BTCUSDT",), snapshot=True, **more):
    known = {"connected": True, "subscribed": len(symbols), "rejections": [], "first_message_after": None}
    known |= {"failure": ""}
    return Outcome(name=name, symbols=symbols, starts_with_snapshot=snapshot, **known | more)


@pytest.mark.parametrize(
    ("found", "result", "details"),
    [
        (outcome(first_message_after=0.34), "ok", "1 topic subscribed, first message after 0.3 s"),
        (outcome(snapshot=False), "ok", "1 topic subscribed; no message yet, as nothing has happened"),
        (outcome(), "FAILED", "1 topic subscribed, but no message within 20 s"),
        (outcome(symbols=["BTCUSDT", "ETHUSDT"], subscribed=1), "FAILED", "1 of 2 topics subscribed"),
        (
            outcome(symbols=["BTCUSDT", "NOPE"], subscribed=1, rejections=["tickers.NOPE: why"]),
            "FAILED",
            "1 of 2 topics rejected: tickers.NOPE: why",
        ),
        (
            outcome(symbols=list("abcde"), subscribed=0, rejections=list("abcde")),
            "FAILED",
            "5 of 5 topics rejected (Bybit's symbols are in capitals): a; b; c; and 2 more",
        ),
        (outcome(failure="lost at once"), "FAILED", "lost at once"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_result_of_a_stream(found, result, details):
    assert list(bybit_rows(ADDRESS, [found])) == [
        ("Bybit", "ok", ADDRESS),
        ("  Trades", result, details),
    ]


def test_why_no_stream_can_connect_is_said_once_with_the_host():
    reason = "the host name cannot be resolved"
    found = [
        outcome("A", connected=False, subscribed=0, failure=reason),
        outcome("B", connected=False, subscribed=0, failure=reason),
        outcome("C", connected=False, subscribed=0, failure="HTTP 503"),
        outcome("D", connected=False, subscribed=0),
    ]
    assert list(bybit_rows(ADDRESS, found)) == [
        ("Bybit", "FAILED", f"{ADDRESS}: {reason}"),
        ("  A", "FAILED", "not connected"),
        ("  B", "FAILED", "not connected"),
        ("  C", "FAILED", "HTTP 503"),
        ("  D", "FAILED", "not connected"),
    ]


def test_no_streams_to_test_say_nothing_of_bybit():
    assert not list(bybit_rows(ADDRESS, []))


def test_the_limit_of_slow_subscribers_in_words():
    text = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"
    assert describe_limit(text) == "disconnected 32 MiB behind, or 8 MiB for 60 s"
    assert describe_limit("pubsub 0 0 0") == "never disconnected"


class Streams:
    """Functions that subscribe at once and send, or do not send, until the exchange is stopped."""

    def __init__(self):
        self.exchange = Exchange("linear", testnet=True, sink=None)

    def flowing(self, symbols, callback, stall_timeout=0):
        self._subscribe(len(symbols))
        callback(b"{}")
        self.exchange.stop.wait(20)

    def silent(self, symbols, callback):
        self._subscribe(len(symbols))
        self.exchange.stop.wait(20)

    def rejected(self, symbols, callback):
        self.exchange.sink.announce("rejected", threading.current_thread().name, ["tickers.NOPE"], reason="why")
        self._subscribe(0)
        self.exchange.stop.wait(20)

    def failing(self, symbols, callback):
        raise ConnectionError("broken")

    def returning(self, symbols, callback):
        pass

    def _subscribe(self, topics):
        stats = self.exchange.streams[threading.current_thread().name]
        stats.connections, stats.subscribed, stats.answered = 1, topics, True


def table(output):
    """What --check printed: the result and the details of each line, wrapped text joined."""
    found, name = {}, ""
    for line in output.splitlines():
        assert len(line) <= WIDTH
        if line.startswith("   "):
            found[name] += f" {line.strip()}"
        else:
            name, result, details = (cell.strip() for cell in line.split("  ") if cell.strip())
            found[name] = f"{result} {details}"
    return found


@pytest.fixture
def check(redis_server, capsys, monkeypatch):
    """Runs --check on funcs by name; returns its exit code and its table."""
    monkeypatch.setattr(module, "FIRST_MESSAGE_TIMEOUT", 0.3)
    streams = Streams()

    def run(**funcs):
        """funcs: by the name of the stream a kind, None for a function of the user's own, and what the stream does."""
        specs = []
        for name, (kind, behaviour) in funcs.items():
            func = functools.partial(getattr(streams, behaviour))
            specs.append(StreamSpec(name, carries(kind)(func), (["BTCUSDT", "ETHUSDT"], print), {}))
        publisher = Publisher("127.0.0.1", redis_server.port)
        code = run_check(specs, streams.exchange, publisher, ["test:a", "test:b"], ("test:request", "test:reply_"))
        assert streams.exchange.stop.is_set()
        assert publisher.backlog == 0
        return code, table(capsys.readouterr().out)

    return run


def test_streams_that_flow_are_well(check):
    code, found = check(A=(ORDERBOOK, "flowing"), B=(TRADES, "flowing"))
    assert code == 0
    assert found["A"] == "ok 2 topics subscribed, first message after 0.0 s"
    assert found["permission to publish"] == "ok all 2 channels"
    assert found["snapshots on request"] == "ok on test:request"


def test_a_silent_stream_fails_if_its_kind_starts_with_a_snapshot(check):
    code, found = check(A=(ORDERBOOK, "flowing"), B=(TICKER, "silent"))
    assert (code, found["B"]) == (1, "FAILED 2 topics subscribed, but no message within 0.3 s")


def test_a_silent_stream_of_another_kind_is_well(check):
    code, found = check(A=(ORDERBOOK, "flowing"), B=(TRADES, "silent"))
    assert (code, found["B"]) == (0, "ok 2 topics subscribed; no message yet, as nothing has happened")


def test_a_stream_that_ends_fails(check):
    code, found = check(A=(ORDERBOOK, "flowing"), B=(TRADES, "failing"), C=(TRADES, "returning"))
    assert code == 1
    assert (found["B"], found["C"]) == ("FAILED broken", "FAILED it ended")


def test_a_rejected_topic_is_named_with_the_reason(check):
    code, found = check(A=(ORDERBOOK, "rejected"))
    assert (code, found["A"]) == (1, "FAILED 1 of 2 topics rejected: tickers.NOPE: why")


def test_a_function_of_the_users_own_is_not_called(check):
    code, found = check(A=(ORDERBOOK, "flowing"), B=(None, "failing"))
    assert (code, found["B"]) == (0, "? your own function: not tested")


def test_a_name_that_no_host_can_have_is_named(capsys):
    code = run_check([], Exchange("linear", testnet=True, sink=None), Publisher("redis..local", 6379), [], ("a", "b"))
    assert code == 1
    assert table(capsys.readouterr().out)["Redis"].startswith("FAILED redis..local:6379: ")


@pytest.mark.parametrize("there", [True, False])
def test_a_redis_at_a_unix_socket_is_asked_there(capsys, there):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/redis.sock"
        publisher = Publisher(endpoint=Hosts([(path, 0)]), password="word")
        with LocalRedis(password="word", config=[f"unixsocket {path}"] if there else []):
            code = run_check([], Exchange("linear", testnet=True, sink=None), publisher, ["test:a"], ("a", "b"))
        found = table(capsys.readouterr().out)["Redis"]
        assert code == (0 if there else 1)
        told = f"ok unix:{path}, " if there else f"FAILED unix:{path}: Error 2: No such file or directory"
        assert found.startswith(told)


# The real program.


def test_all_is_well(program, own_redis):
    """And nothing is published by the check, or stored."""
    with Subscriber(own_redis, "*") as subscriber, Bybit(rate=500) as bybit:
        checked = program(own_redis, bybit, arguments=["--check"], REDIS_STREAM_MAXLEN=1000)
        assert (checked.wait()[0], checked.log) == (0, "")
        found = table(checked.output)
        assert found.pop("Redis").startswith(f"ok 127.0.0.1:{own_redis.port}, ")
        assert found.pop("slow subscribers").startswith("ok disconnected ")
        assert found.pop("role") == "ok master"
        assert found.pop("Redis Streams") == "ok 1,000 messages of each channel"
        assert found.pop("permission to publish") == "ok all 5 channels"
        assert found.pop("snapshots on request") == "ok on stream:bybit_request"
        assert found.pop("Bybit") == f"ok {bybit.url}"
        assert list(found) == ["OrderBook", "Trades", "Ticker", "Liquidations"]
        assert all(text.startswith("ok 1 topic subscribed") for text in found.values())
        assert not subscriber.messages
        with own_redis.client() as client:
            assert not client.keys()


SHORT = """
import sys
import main
import ops.trials
ops.trials.FIRST_MESSAGE_TIMEOUT = 1
sys.exit(main.main(["--check"]))
"""


def test_quiet_trades_are_well_and_a_silent_order_book_is_not(program, own_redis):
    with Bybit(rate=0, then=Script(end="silence")) as bybit:
        checked = program(own_redis, bybit, script=SHORT)
        assert checked.wait()[0] == 1
        found = table(checked.output)
    assert found["Trades"] == found["Liquidations"] == "ok 1 topic subscribed; no message yet, as nothing has happened"
    assert found["OrderBook"] == found["Ticker"] == "FAILED 1 topic subscribed, but no message within 1 s"


def test_what_is_broken_is_named(program, own_redis):
    """A symbol that does not exist, channels without permission, a replica."""
    admin = own_redis.client()
    admin.execute_command("ACL", "SETUSER", "some", "on", ">p", "+@all", "resetchannels", "&stream:bybit_t*")
    admin.replicaof("127.0.0.1", 1)
    with Bybit(rate=500) as bybit:
        more = {"SYMBOLS": "BTCUSDT,NOPE", "REDIS_USERNAME": "some", "REDIS_PASSWORD": "p"}
        checked = program(own_redis, bybit, arguments=["--check"], **more)
        assert checked.wait()[0] == 1
        found = table(checked.output)
    assert found["role"] == "FAILED slave: publish to its master"
    denied = "stream:bybit_orderbook, stream:bybit_liquidations, stream:bybit_status"
    assert found["permission to publish"] == f"FAILED denied for {denied}"
    denied = "SUBSCRIBE stream:bybit_request and PUBLISH stream:bybit_reply_check"
    assert found["snapshots on request"] == f"FAILED denied: {denied}"
    for name, topic in (("OrderBook", "orderbook.50.NOPE"), ("Trades", "publicTrade.NOPE"), ("Ticker", "tickers.NOPE")):
        assert found[name].startswith("FAILED 1 of 2 topics rejected: ")
        assert topic in found[name]
    assert checked.log == ""


def test_rights_that_only_show_when_they_are_needed_are_named(program, own_redis):
    rights = ("+@all", "allchannels", "~*", "-hset", "-pubsub|numpat")
    own_redis.client().execute_command("ACL", "SETUSER", "some", "on", ">p", *rights)
    with Bybit(rate=500) as bybit:
        checked = program(own_redis, bybit, arguments=["--check"], REDIS_USERNAME="some", REDIS_PASSWORD="p")
        assert checked.wait()[0] == 1
    found = table(checked.output)
    assert found["state for --status"] == "FAILED denied: HSET stream:bybit_state"
    assert found["subscribers"].startswith("FAILED denied: PUBSUB NUMPAT: ")


LEASE = {"LEADER_KEY": "stream:bybit_leader", "INSTANCE": "c"}


def test_what_the_lease_needs_is_tried_and_leaves_nothing_behind(program, own_redis):
    """Also while somebody leads, who does not notice."""
    admin = own_redis.client()
    admin.set("stream:bybit_leader", "a/1", px=60_000)
    with Bybit(rate=500) as bybit:
        checked = program(own_redis, bybit, arguments=["--check"], **LEASE)
        assert checked.wait()[0] == 0, checked.output
        assert table(checked.output)["leader and standby"] == "ok all that stream:bybit_leader needs is allowed"
    assert admin.get("stream:bybit_leader") == b"a/1"
    assert admin.keys() == [b"stream:bybit_leader"]


# As the manual has them: for a leader or standby, beside those of a single collector.
SINGLE = "+publish +role +pubsub +info +multi +discard +hset +del +expire +hgetall +ping &stream:bybit_*"
SHARED = "+set +get +pttl +pexpire +evalsha +script|load +hdel +client|info +client|kill +subscribe ~stream:bybit_*"


@pytest.mark.parametrize("missing", [None, *SHARED.split()])
def test_each_missing_right_of_the_lease_is_named(own_redis, missing):
    rights = [right for right in f"{SINGLE} {SHARED}".split() if right != missing]
    own_redis.client().execute_command("ACL", "SETUSER", "some", "on", ">p", "resetkeys", *rights)
    publisher = Publisher("127.0.0.1", own_redis.port, username="some", password="p")
    problems = list(lease_problems(publisher, "stream:bybit_leader", "a", ["stream:bybit_trades"]))
    assert bool(problems) is (missing is not None), problems
    if missing and missing.startswith("+"):
        assert any(missing[1:].split("|")[0] in problem.lower() for problem in problems)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "nowhere.invalid"])
def test_ends_that_cannot_be_reached_are_named(program, own_redis, host):
    own_redis.stop()
    checked = program(own_redis, arguments=["--check"], BYBIT_WS_URL=f"ws://{host}")
    assert (checked.wait()[0], checked.log) == (1, "")
    found = table(checked.output)
    assert found.pop("Redis").startswith(f"FAILED 127.0.0.1:{own_redis.port}: ")
    reason = found.pop("Bybit")
    assert reason.startswith(f"FAILED ws://{host}: ")
    assert ("refused" in reason) if host == "127.0.0.1:1" else ("cannot be resolved" in reason)
    assert found == dict.fromkeys(("OrderBook", "Trades", "Ticker", "Liquidations"), "FAILED not connected")


WARNING = """
import sys
from conf import settings
settings.WARNINGS = ["SYMBOL is not a setting"]
from main import main
sys.exit(main(["--check"]))
"""


def test_warnings_of_the_settings_are_shown(program, own_redis):
    with Bybit(rate=500) as bybit:
        checked = program(own_redis, bybit, script=WARNING)
        assert checked.wait()[0] == 0, checked.output
    assert table(checked.output)["Settings"] == "? SYMBOL is not a setting"


# Where each symbol has channels of its own.


def test_the_channels_of_the_symbols_are_tried(program, own_redis):
    some = ["resetchannels", "&stream:bybit_re*", "&stream:bybit_status", "&stream:bybit_t*"]
    some += ["&stream:bybit_orderbook", "&stream:bybit_liquidations", "&stream:bybit_liquidations:BTC*"]
    own_redis.client().execute_command("ACL", "SETUSER", "some", "on", ">p", "+@all", *some)
    keys = [f"~stream:bybit_{name}" for name in ("orderbook", "t*", "liquidations", "status")]
    own_redis.client().execute_command("ACL", "SETUSER", "some", "resetkeys", *keys)
    more = {"CHANNEL_BY_SYMBOL": "True", "REDIS_STREAM_MAXLEN": "1000"}
    with Bybit(rate=500) as bybit:
        checked = program(own_redis, bybit, arguments=["--check"], **more)
        denied = program(own_redis, bybit, arguments=["--check"], REDIS_USERNAME="some", REDIS_PASSWORD="p", **more)
        assert checked.wait()[0] == 0, checked.output
        assert denied.wait()[0] == 1
    assert table(checked.output)["permission to publish"] == "ok all 5 channels, and those of the symbols"
    channels = "stream:bybit_orderbook:*, stream:bybit_liquidations:*"
    assert table(denied.output)["permission to publish"] == f"FAILED denied for {channels}"
    assert table(checked.output)["Redis Streams"] == "ok 1,000 messages of each channel"
    assert table(denied.output)["Redis Streams"].startswith(f"FAILED {channels}: ")


@pytest.mark.parametrize("missing", [None, "+psubscribe", "&stream:bybit_trades:*"])
def test_the_lease_needs_the_right_to_their_patterns_word_for_word(own_redis, missing):
    """As Redis has it: to subscribe to a pattern an ACL must have the very same one."""
    rights = f"{SINGLE} {SHARED} +psubscribe &stream:bybit_trades:*".split()
    rights = [right for right in rights if right != missing]
    own_redis.client().execute_command("ACL", "SETUSER", "some", "on", ">p", "resetkeys", *rights)
    publisher = Publisher("127.0.0.1", own_redis.port, username="some", password="p")
    channels = ["stream:bybit_trades", "stream:bybit_status", "stream:bybit_trades:*"]
    problems = list(lease_problems(publisher, "stream:bybit_leader", "a", channels))
    assert [problem.partition(":")[0] for problem in problems] == ["PSUBSCRIBE"] * (missing is not None)


def test_a_redis_that_cannot_be_reached_is_said_in_one_sentence(capsys):
    address = f"127.0.0.1:{free_port()}"
    publisher = Publisher("127.0.0.1", int(address.rpartition(":")[2]))
    assert run_check([], Streams().exchange, publisher, [], ("requests", "reply")) == 1
    assert capsys.readouterr().out.split() == [
        "Redis",
        "FAILED",
        f"{address}:",
        "Error",
        "111:",
        "Connection",
        "refused",
    ]
