"""The scale benchmark's pure parts, and the files for the whole market on two machines."""

import json
import re
import shutil
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
import redis
from conftest import eventually

from bench.scale import frames, reader
from bench.scale.measure import Case, Played, median, result
from bench.scale.report import BEGIN, END, PAGE, TABLES
from conf.rules import load, parse
from examples.synced import follow
from relay.kinds import KINDS
from sandbox.bybit import Bybit
from sandbox.redis import LocalRedis

ROOT = Path(__file__).resolve().parent.parent
MARKET = ROOT / "deploy/market"
CATEGORIES = ("linear", "inverse", "spot", "option")


def text_of(frame):
    return json.loads(frame.wire[2 if frame.wire[1] < 126 else 4 :])


def test_frames_are_the_same_at_every_call_and_carry_their_numbers():
    made, again = frames.cycle(20, length=500), frames.cycle(20, length=500)
    assert [one.wire for one in made.moves] == [one.wire for one in again.moves]
    for index, frame in enumerate(made.moves, 1):
        before = len(frame.wire)
        frame.number(index, 123_456_789)
        message = text_of(frame)
        assert len(frame.wire) == before
        assert message["topic"] == frame.topic
        assert str(message["ts"]).endswith(f"{index:07d}")
        assert frame.topic.startswith("orderbook.") == (message["data"].__class__ is dict and "u" in message["data"])
        if frame.u_at:
            assert message["data"]["u"] == 123_456_789
    assert {one.topic for one in made.moves} <= made.topics
    assert len(made.topics) == 80


def test_recorded_frames_take_the_place_of_the_kinds_that_are_among_them(tmp_path):
    line = {
        "topic": "orderbook.200.XUSDT",
        "type": "delta",
        "ts": 1786310817583,
        "data": {"s": "XUSDT", "u": 7, "b": []},
    }
    path = tmp_path / "recording.tsv"
    path.write_text(f"1786310819.5\t{json.dumps(line, separators=(',', ':'))}\n", encoding="utf-8")
    made = frames.cycle(2, path, length=300)
    books = [text_of(one) for one in made.moves if one.topic.startswith("orderbook.")]
    assert {(book["topic"], tuple(book["data"])) for book in books} == {
        (f"orderbook.50.{name}", ("s", "u", "b")) for name in frames.symbols(2)
    }
    assert any(one.topic.startswith("tickers.") for one in made.moves)


def test_arrivals_have_the_time_of_the_piece_with_the_end_of_the_message():
    messages = [b'$30\r\n{"topic":"t","ts":175384%07d}\r\n' % index for index in (0, 3, 4)]
    data = b"".join(messages)
    pieces = [data[:50], data[50:90], data[90:]]
    indexes, times = reader.arrivals(pieces, array("q", (10, 20, 30)))
    assert (list(indexes), list(times)) == ([3, 4], [20, 30])


def played(arrived, times, burst=False):
    measured = ("start", "start_cpu", "cpu", "standby", "redis", "sender", "reader", "memory", "standby_memory", "peak")
    facts = {
        **dict.fromkeys(measured, 1.0),
        "connections": 4,
        "case": Case("x", burst=burst),
        "window": (0, 1_000_000_000),
    }
    facts["played"] = Played(array("q", (10, 20, 30)), 0.0, 0, 900)
    return result(facts, arrived, times, ["a", "b", "a"])


@pytest.mark.parametrize(
    ("arrived", "missing", "again", "disordered"),
    [((1, 2, 3), 0, 0, 0), ((2, 1, 3), 0, 0, 0), ((3, 2, 1), 0, 0, 1), ((1, 3), 1, 0, 0), ((1, 1, 2, 3), 0, 1, 0)],
)
def test_a_message_is_missed_or_noticed_twice_or_out_of_the_order_of_its_topic(arrived, missing, again, disordered):
    found = played(arrived, [100 + n for n in range(len(arrived))])
    assert (found.missing, found.again, found.disordered) == (missing, again, disordered)
    assert found.worst == pytest.approx((100 + len(arrived) - 1 - (0, 10, 20, 30)[arrived[-1]]) / 1e6, rel=0.5)


def test_of_several_plays_the_median_counts_and_every_loss():
    some = [played((1, 2, 3), (100, at, at)) for at in (200, 300, 900)] + [played((1,), (100,))]
    middle = median(some[:3])
    assert middle.p99 == some[1].p99
    assert median(some).missing == 2


def test_the_page_has_a_place_for_every_table():
    page = PAGE.read_text(encoding="utf-8")
    for name in ("summary", *TABLES):
        assert page.count(BEGIN.format(name)) == 1, name
    assert page.count(END) == len(TABLES) + 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_settings_of_the_two_machines_are_those_of_the_whole_category(category):
    settings = load({}, (MARKET / f"{category}.env").read_text(encoding="utf-8"))
    assert (settings.channel_type, settings.symbols, settings.use_testnet) == (category, ("ALL",), False)
    assert settings.warnings == ()
    assert len(settings.redis_sentinels) == 3
    assert settings.channel_prefix == f"stream:bybit_{category}"
    assert settings.leader_key == f"stream:bybit_{category}_leader"


def test_systemd_finds_nothing_to_complain_of_in_the_target(tmp_path):
    analyze = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not on this machine")
    unit = (ROOT / "deploy/bybit-collector@.service").read_text(encoding="utf-8")
    unit = unit.replace("/opt/bybit-collector/.venv/bin/python", sys.executable)
    (tmp_path / "bybit-collector@.service").write_text(unit, encoding="utf-8")
    shutil.copy(MARKET / "bybit-market.target", tmp_path)
    (tmp_path / "bybit-collector@.service.d").mkdir()
    shutil.copy(MARKET / "market.conf", tmp_path / "bybit-collector@.service.d")
    files = [tmp_path / "bybit-market.target", *(tmp_path / f"bybit-collector@{name}.service" for name in CATEGORIES)]
    done = subprocess.run(
        [analyze, "verify", "--man=no", *files], capture_output=True, text=True, timeout=30, check=False
    )
    complaint = done.stdout + done.stderr
    if done.returncode and "bybit" not in complaint:
        pytest.skip(f"systemd-analyze does not work here: {complaint.strip()}")
    assert (done.returncode, complaint) == (0, "")
    wanted = re.findall(
        r"bybit-collector@(\w+)\.service", (MARKET / "bybit-market.target").read_text().split("[Unit]")[1]
    )
    assert sorted(wanted) == sorted(CATEGORIES)


@pytest.fixture(scope="module")
def market():
    """A Redis with the configuration of the market, whose default user is the test's."""
    lines = (MARKET / "redis.conf").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and line[0] != "#" and not line.startswith("user default")]
    with LocalRedis(config=lines) as server:
        yield server


def test_redis_takes_the_configuration_and_the_users_have_the_rights_that_are_needed(market):
    with market.client() as admin:
        limit = admin.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
        assert limit.endswith(f"pubsub {256 << 20} {128 << 20} 60")

        def may(user, *command):
            return admin.execute_command("ACL", "DRYRUN", user, *command) == b"OK"

        for name in CATEGORIES:
            state, trades = f"stream:bybit_{name}_state", f"stream:bybit_{name}_trades"
            assert may("collector", "PUBLISH", trades, "x")
            assert may("collector", "SET", f"stream:bybit_{name}_leader", "x")
            assert may("collector", "EXPIRE", state, "1")
            assert may("collector", "CLIENT", "KILL", "ID", "1")
            for kind in KINDS:
                pattern = f"stream:bybit_{name}_{kind.name}:*"
                assert may("collector", "PSUBSCRIBE", pattern) is (name in kind.categories)
            assert may("consumer", "SUBSCRIBE", trades)
            assert may("consumer", "PUBLISH", f"stream:bybit_{name}_request", "x")
            for other in (trades, f"{trades}:BTCUSDT", f"stream:bybit_{name}_status", f"stream:bybit_{name}_reply_1"):
                assert not may("consumer", "PUBLISH", other, "x")


def test_all_that_the_collector_needs_is_allowed_whatever_is_set(program, market):
    settings = parse((MARKET / "linear.env").read_text(encoding="utf-8"))
    settings |= {
        "REDIS_SENTINELS": "",
        "SYMBOLS": "BTCUSDT",
        "CHANNEL_BY_SYMBOL": "True",
        "REDIS_STREAM_MAXLEN": "1000",
    }
    with Bybit(rate=500) as bybit:
        checked = program(market, bybit, arguments=["--check"], **settings)
        assert (checked.wait()[0], checked.log) == (0, ""), checked.output
    rows = [line for line in checked.output.splitlines() if not line.startswith("   ")]
    assert len(rows) == 12
    assert all(re.search(r"\w  +ok  ", row) for row in rows), checked.output


def test_a_consumer_of_the_market_gets_the_snapshots_that_it_asks_for(program, market):
    settings = parse((MARKET / "linear.env").read_text(encoding="utf-8"))
    topic = "orderbook.50.BTCUSDT"
    client = redis.Redis(port=market.port, username="consumer", password="change-me", retry=None)
    with Bybit(rate=500) as bybit, client:
        program(market, bybit, **settings | {"REDIS_SENTINELS": "", "SYMBOLS": "BTCUSDT"})
        for _ in range(2):  # who comes second gets none that he does not ask for
            following = follow(client, "stream:bybit_linear", [topic])
            eventually(lambda: next(following)[1][topic].synced, 20)  # noqa: B023
            following.close()
