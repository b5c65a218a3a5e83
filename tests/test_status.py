"""--status: from the hash in Redis to a table, and what the real collector keeps there."""

import json
import time

import pytest
from conftest import eventually

from ops.status import HEADS, run_status, status_row
from ops.table import WIDTH, format_table
from relay.redis.publisher import Publisher
from sandbox.bybit import Bybit
from sandbox.redis import free_port

STATE = "stream:bybit_state"
FIELDS = {
    "up": True,
    "topics": 20,
    "wanted": 21,
    "waits": False,
    "rejected": 1,
    "messages": 1234567,
    "rate": 316.4,
    "connections": 3,
    "age": 0.25,
    "delay_p50": 0.00061,
    "delay_p99": 0.0921,
    "gaps": 2,
    "callback_failures": 4,
    "ignored": 5,
    "ts": 1_790_134_712_130,
}


def test_a_row_has_the_fields_of_the_stream_in_units_for_the_eye():
    row = status_row("OrderBook", FIELDS, since=1.5)
    assert dict(zip(HEADS, row, strict=True)) == {
        "stream": "OrderBook",
        "": "up",
        "topics": "20 of 21",
        "rejected": "1",
        "messages": "1,234,567",
        "per s": "316",
        "age s": "1.8",
        "p50 ms": "0.6",
        "p99 ms": "92.1",
        "conns": "3",
        "gaps": "2",
        "failed": "4",
    }


def test_what_is_not_known_is_a_dash():
    unknown = dict.fromkeys(("age", "delay_p50", "delay_p99"))
    row = status_row("Trades", FIELDS | unknown | {"up": False, "rate": 0.34}, since=0)
    assert row[1] == "DOWN"
    assert row[5:9] == ("0.3", "-", "-", "-")


def test_the_table_fits_an_ordinary_terminal():
    rows = [HEADS, status_row("Liquidations", FIELDS, 0), status_row("OrderBook", FIELDS | {"rate": 99_999}, 100)]
    lines = list(format_table(rows, numbers_from=2))
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) == 3
    assert lines[1].startswith("Liquidations  up  20 of 21         1  1,234,567")


@pytest.fixture
def status(own_redis, capsys):
    """Puts the fields of streams into the hash; returns the exit code and the printed lines of --status."""
    publisher = Publisher("127.0.0.1", own_redis.port)

    def run(**streams):
        with own_redis.client() as client:
            client.delete(STATE)
            if streams:
                client.hset(STATE, mapping={name: json.dumps(fields) for name, fields in streams.items()})
        code = run_status(publisher)
        return code, capsys.readouterr().out.splitlines()

    return run


def now():
    return round(time.time() * 1000)


def test_all_streams_up_are_code_0_and_sorted_by_name(status):
    code, lines = status(Trades=FIELDS | {"ts": now()}, OrderBook=FIELDS | {"ts": now()})
    assert code == 0
    assert [line.split()[0] for line in lines] == ["stream", "OrderBook", "Trades"]


def test_the_collector_as_a_whole_is_no_stream(status):
    code, lines = status(**{"Trades": FIELDS | {"ts": now()}, "*": {"role": "single", "ts": now()}})
    assert code == 0
    assert [line.split()[0] for line in lines] == ["stream", "Trades"]


def test_a_collector_whose_user_has_taken_all_streams_away_runs(status):
    code, (line,) = status(**{"*": {"role": "single", "ts": now()}})
    assert (code, line) == (0, "The collector has no streams: STREAMS is empty")


def test_a_stream_that_is_down_makes_code_1(status):
    code, lines = status(Trades=FIELDS | {"ts": now(), "up": False, "topics": 0}, Ticker=FIELDS | {"ts": now()})
    assert code == 1
    assert [line.split()[1] for line in lines[1:]] == ["up", "DOWN"]


def test_a_stream_of_which_nothing_is_known_is_a_dash_and_does_not_count(status):
    code, lines = status(
        Own=FIELDS | {"ts": now(), "up": None, "topics": 0, "wanted": None}, Ticker=FIELDS | {"ts": now()}
    )
    assert code == 0
    assert [line.split()[1] for line in lines[1:]] == ["-", "up"]


@pytest.mark.parametrize(
    ("fields", "cell", "code"),
    [
        ({"topics": 700, "wanted": 700, "rejected": 0}, "700", 0),
        ({"topics": 695, "wanted": 700, "rejected": 5}, "695 of 700", 0),
        ({"topics": 695, "wanted": 700, "rejected": 4}, "695 of 700", 1),
        ({"topics": 0, "wanted": 0, "rejected": 0, "up": None}, "0", 0),
        ({"topics": 0, "wanted": None, "rejected": 0, "up": False, "waits": True}, "0 of ?", 1),
        ({"topics": 1, "wanted": 1, "rejected": 0, "waits": True}, "1 of ?", 1),
    ],
    ids=["all", "the others are rejected", "one is missing", "nothing to carry", "waits for the list", "a name too"],
)
def test_topics_that_are_missing_make_code_1_unless_bybit_rejects_them(status, fields, cell, code):
    state = FIELDS | {"ts": now()} | fields
    assert status_row("Trades", state, 0)[2] == cell
    assert status(Trades=state)[0] == code


def test_a_state_of_an_earlier_version_says_nothing_of_what_is_wanted(status):
    state = FIELDS | {"ts": now()}
    del state["wanted"]
    assert status(Trades=state)[0] == 0
    assert status_row("Trades", state, 0)[2] == "20"


@pytest.mark.parametrize("timestamp", ["soon", None, 1.5, True])
def test_a_state_without_a_time_is_not_the_state_of_a_collector(status, timestamp):
    code, (line,) = status(Trades=FIELDS | {"ts": timestamp})
    assert code == 1
    assert "is not the state of a collector" in line


def test_an_old_state_is_called_old(status):
    code, lines = status(Trades=FIELDS | {"ts": now() - 13_000})
    assert code == 1, "a health check must not pass on it"
    assert lines[1].split()[8] in ("13.2", "13.3", "13.4")
    assert lines[2].startswith("This was the state 13 s ago: ")


def test_no_hash_is_no_collector(status):
    code, [line] = status()
    assert code == 1
    assert line.startswith(f"No collector is running: there is no {STATE} in Redis at 127.0.0.1:")


@pytest.mark.parametrize("fields", ["a text", {"what": "another program's"}], ids=str)
def test_a_hash_of_another_program_is_not_taken_for_a_state(status, fields):
    code, [line] = status(Some=fields)
    assert code == 1
    assert line.endswith("is not the state of a collector: unknown field Some")


def test_a_redis_that_cannot_be_reached_is_named(capsys):
    port = free_port()
    assert run_status(Publisher("127.0.0.1", port)) == 1
    assert capsys.readouterr().out.startswith(f"Cannot read the state from Redis at 127.0.0.1:{port}: ")


def test_a_name_that_no_host_can_have_is_named(capsys):
    assert run_status(Publisher("redis..local", 6379)) == 1
    assert capsys.readouterr().out.startswith("Cannot read the state from Redis at redis..local:6379: ")


# The real program.


def state_of(redis, *, whole=False):
    """The fields of the streams; with `whole` those of the collector as a whole."""
    state = {name: json.loads(text) for name, text in redis.client(decode_responses=True).hgetall(STATE).items()}
    about = state.pop("*", {})
    return about if whole else state


def test_the_running_collector(program, own_redis):
    """The state is there as soon as the streams are; a rejected topic is counted and leaves its stream up."""
    with Bybit(rate=500) as bybit:
        collector = program(own_redis, bybit, SYMBOLS="BTCUSDT,NOPE")
        eventually(lambda: len(state := state_of(own_redis)) == 4 and all(one["messages"] for one in state.values()))
        state = state_of(own_redis)
        assert list(state["OrderBook"]) == list(FIELDS)
        about = state_of(own_redis, whole=True)
        assert abs(about.pop("ts") - now()) < 10_000
        assert about.pop("pending") >= 0
        assert about.pop("waited") >= 0
        assert about == {"instance": "", "role": "single", "term": 0, "requests": 0, "requests_rejected": 0}
        assert all((one["topics"], one["rejected"], one["connections"]) == (1, 1, 1) for one in state.values())
        status = program(own_redis, arguments=["--status"])
        assert status.wait()[0] == 0, status.output
        assert status.log == ""
        found = {line.split()[0]: line.split() for line in status.output.splitlines()}
        assert list(found) == ["stream", "Liquidations", "OrderBook", "Ticker", "Trades"]
        assert found["OrderBook"][1:6] == ["up", "1", "of", "2", "1"]
        assert int(found["OrderBook"][6].replace(",", "")) > 0
        assert collector.stop()[0] == 0, collector.log


FAILING = """
import sys
from main import STREAMS, main, subscribe_trades

def fails(message):
    raise LookupError

STREAMS[:] = [{"name": "Failing", "func": subscribe_trades, "args": ("BTCUSDT", fails)}]
sys.exit(main())
"""


def test_failures_of_a_callback_are_counted(program, own_redis):
    with Bybit(rate=500) as bybit:
        program(own_redis, bybit, script=FAILING)
        one = eventually(lambda: (one := state_of(own_redis).get("Failing")) and one["callback_failures"] and one)
        assert one["callback_failures"] <= one["messages"]
        status = program(own_redis, arguments=["--status"])
        assert status.wait()[0] == 0
        assert int(status.output.split()[-1].replace(",", "")) >= one["callback_failures"]


HANGING = """
import sys
import threading
import ops.rows
from main import STREAMS, main, subscribe_trades

ops.rows.WATCHDOG_TIMEOUT = 1

def hangs(message):
    threading.Event().wait()

STREAMS[:] = [{"name": "Hanging", "func": subscribe_trades, "args": ("BTCUSDT", hangs)}]
sys.exit(main())
"""


def test_a_stream_whose_callback_does_not_return_is_down(program, own_redis):
    with Bybit(rate=500) as bybit:
        collector = program(own_redis, bybit, script=HANGING)
        eventually(lambda: (one := state_of(own_redis).get("Hanging")) and one["topics"] and one["up"] is False, 20)
        assert "Stream Hanging is stuck: its thread is overdue by " in collector.log
        status = program(own_redis, arguments=["--status"])
        assert status.wait()[0] == 1
        assert status.output.splitlines()[1].split()[:2] == ["Hanging", "DOWN"]


def test_what_redis_says_does_not_reach_the_terminal_as_it_is():
    rows = [("stream", ""), ("  a\x1b]0;b\x07", "x\r\ny"), ("c", "d" * 3)]
    assert list(format_table(rows)) == ["stream", "  a�]0;b�  x��y", "c          ddd"]


def test_a_state_of_nobody_does_not_reach_the_terminal_as_it_is(redis_server, capsys):
    key = "other:state"
    with redis_server.client() as client:
        client.hset(key, "a\x1b[2J", '{"ts": 1}')
    assert run_status(Publisher("127.0.0.1", redis_server.port, state_key=key)) == 1
    assert capsys.readouterr().out.endswith("unknown field a�[2J\n")
