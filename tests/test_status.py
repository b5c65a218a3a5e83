"""--status: from the hash in Redis to a table, and what the real collector keeps there."""

import json
import time

import pytest
from conftest import eventually

from ops import VERSION
from ops.reader import Place
from ops.status import PULSE_AGE, asked, live, ready, single
from ops.table import WIDTH, format_table
from ops.words import HEADS, status_row
from relay.events import STATE_EXPIRY
from sandbox.bybit import Bybit

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
    "reconnects": 2,
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
def put(own_redis):
    """Puts the fields of streams into the hash, as if they had been written `age` seconds ago; returns the place."""

    def write(age=0.0, **streams):
        with own_redis.client() as client:
            client.delete(STATE)
            if streams:
                client.hset(STATE, mapping={name: json.dumps(fields) for name, fields in streams.items()})
                client.pexpire(STATE, round((STATE_EXPIRY - age) * 1000))
        return Place([("127.0.0.1", own_redis.port)])

    return write


@pytest.fixture
def status(put):
    """The same; returns the exit code and the lines of --status."""

    def run(**given):
        report = asked(put(**given), lambda reader: single(reader, STATE))
        return report.code, report.lines

    return run


def problems_of(report):
    assert json.loads(report.as_json())["well"] is (report.code == 0) is (not report.problems)
    return list(report.problems)


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


WHOLE = {"role": "single", "term": 0, "interval": 1.0, "alive": True, "ts": 1}


@pytest.mark.parametrize("age", [3.5, 13])
def test_a_state_that_was_not_written_three_times_is_that_of_a_dead_collector(put, age):
    report = asked(put(age, **{"Trades": FIELDS, "*": WHOLE}), lambda reader: single(reader, STATE))
    assert report.code == 1, "a health check must not pass on it"
    shown, since = float(report.lines[1].split()[8]), age + FIELDS["age"]
    assert since - 0.1 <= shown <= since + 1
    assert report.lines[2].startswith(f"This was the state {age:.0f} s ago: the collector is dead")
    assert problems_of(report) == [report.lines[2]]
    assert json.loads(report.as_json())["instances"][0]["alive"] is False


def test_versions_that_write_the_state_every_5_s_are_not_dead_in_between(status):
    assert status(age=6, Trades=FIELDS)[0] == 0


def test_what_the_clock_of_the_collector_says_does_not_matter(status):
    code, lines = status(**{"Trades": FIELDS | {"ts": now() - 3_600_000}, "*": WHOLE}, age=2)
    assert code == 0
    assert 2.2 <= float(lines[1].split()[8]) < 3


def test_a_thread_that_is_stuck_is_a_problem_although_all_streams_are_up(put):
    report = asked(put(**{"Trades": FIELDS, "*": WHOLE | {"alive": False}}), lambda reader: single(reader, STATE))
    assert report.code == 1
    assert problems_of(report) == [report.lines[-1]] == ["A thread of the collector is stuck: its log says which"]


def test_the_state_as_one_json_object(put):
    fields = {"Trades": FIELDS, "Ticker": FIELDS | {"up": False}, "Books": FIELDS | {"topics": 19}, "*": WHOLE}
    report = asked(put(**fields), lambda reader: single(reader, STATE))
    found = json.loads(report.as_json())
    [instance] = found["instances"]
    assert 0 <= instance.pop("age") < 1
    assert instance.pop("collector") == WHOLE
    assert instance.pop("streams") == {name: one for name, one in fields.items() if name != "*"}
    assert instance == {"instance": "", "role": "single", "term": 0, "alive": True}
    problems = ["Stream Books has 19 of 21 topics, and 1 are rejected", "Stream Ticker is down"]
    assert (found["well"], found["problems"]) == (False, problems)


# Whether this instance is ready.


@pytest.mark.parametrize(
    ("whole", "fields", "problem"),
    [
        (WHOLE, {}, None),
        (WHOLE | {"role": "leader", "ready": False}, {}, None),
        (WHOLE | {"role": "standby", "ready": True}, {}, None),
        (WHOLE | {"role": "standby", "ready": False, "instance": "b"}, {}, "b could not publish at once"),
        (WHOLE, {"topics": 19}, "Stream Trades has 19 of 21 topics, and 1 are rejected"),
        (WHOLE, {"up": False}, "Stream Trades is down"),
        (WHOLE, {"waits": True}, "Stream Trades waits for Bybit's list of instruments"),
    ],
    ids=str,
)
def test_who_is_ready(put, whole, fields, problem):
    report = asked(put(**{"Trades": FIELDS | fields, "*": whole}), lambda reader: ready(reader, STATE, "a"))
    assert (report.code, report.lines) == ((1, [f"Not ready: {problem}"]) if problem else (0, ["Ready"]))
    assert problems_of(report) == ([problem] if problem else [])


def test_who_is_not_there_or_has_another_name_is_not_ready(put):
    place = put()
    report = asked(place, lambda reader: ready(reader, STATE, "a"))
    assert (report.code, report.lines) == (1, [f"Not ready: there is no {STATE} in Redis at {place.name}"])
    report = asked(place, lambda reader: ready(reader, f"{STATE}:a", "a"))
    assert report.lines[0].endswith("; is INSTANCE=a the collector's?")


# Whether this instance is alive.


@pytest.mark.parametrize(
    ("age", "code"), [(0, 0), (PULSE_AGE - 1, 0), (PULSE_AGE + 1, 1), (1 - PULSE_AGE, 0), (-PULSE_AGE - 1, 1)]
)
def test_the_age_of_the_pulse_decides_who_is_alive(tmp_path, age, code):
    """Also where the clock was set back."""
    path = tmp_path / "pulse"
    path.touch()
    report = live(str(path), path.stat().st_mtime + age)
    assert (report.code, report.lines[0].startswith("Alive: ")) == (code, not code)
    assert problems_of(report) == (report.lines if code else [])


def test_without_a_pulse_nobody_is_alive_and_without_its_name_nothing_is_known(tmp_path):
    assert live(str(tmp_path / "pulse"), now()).code == 1
    report = live("", now())
    assert (report.code, report.lines[0].split()[:4]) == (2, ["--status", "live", "needs", "PULSE_FILE,"])


def test_no_hash_is_no_collector(status):
    code, [line] = status()
    assert code == 1
    assert line.startswith(f"No collector is running: there is no {STATE} in Redis at 127.0.0.1:")


def test_fields_of_another_type_are_not_taken_for_a_state(status):
    code, [line] = status(Trades=FIELDS | {"topics": "many"})
    assert code == 1
    assert "is not the state of a collector" in line


@pytest.mark.parametrize("fields", ["a text", {"what": "another program's"}], ids=str)
def test_a_hash_of_another_program_is_not_taken_for_a_state(status, fields):
    code, [line] = status(Some=fields)
    assert code == 1
    assert line.endswith("is not the state of a collector: unknown field Some")


def test_another_programs_hash_that_does_not_expire_is_not_taken_for_a_state(own_redis):
    with own_redis.client() as client:
        client.hset(STATE, "Trades", json.dumps(FIELDS))
    report = asked(Place([("127.0.0.1", own_redis.port)]), lambda reader: single(reader, STATE))
    assert (report.code, report.lines[0].rpartition(": ")[2]) == (1, "it does not expire")


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
        assert 0 <= now() - about.pop("started") < 60_000
        for name in ("pending", "waited", "published", "backlog_bytes", "buffer_share"):
            assert about.pop(name) >= 0
        assert about == {
            "instance": "",
            "role": "single",
            "term": 0,
            "requests": 0,
            "requests_rejected": 0,
            "version": VERSION,
            "interval": 1.0,
            "alive": True,
            "dropped": {},
            "outages": 0,
            "outage_seconds": 0.0,
            "buffer_bytes": 256 << 20,
        }
        eventually(lambda: all(one["delay_p99"] for one in state_of(own_redis).values()))
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
import ops.monitor
import ops.rows
from main import STREAMS, main, subscribe_trades

ops.rows.WATCHDOG_TIMEOUT = 1
ops.monitor.NOTIFY_INTERVAL = 0.2

def hangs(message):
    threading.Event().wait()

STREAMS[:] = [{"name": "Hanging", "func": subscribe_trades, "args": ("BTCUSDT", hangs)}]
sys.exit(main())
"""


def test_a_stream_whose_callback_does_not_return_is_down(program, own_redis, tmp_path):
    pulse = tmp_path / "pulse"
    with Bybit(rate=500) as bybit:
        collector = program(own_redis, bybit, script=HANGING, PULSE_FILE=pulse)
        eventually(pulse.exists, 20)
        eventually(lambda: (one := state_of(own_redis).get("Hanging")) and one["topics"] and one["up"] is False, 20)
        collector.wait_for_log("Stream Hanging is stuck: its thread is overdue by ")
        pulse.unlink()
        last = eventually(lambda: (about := state_of(own_redis, whole=True))["alive"] is False and about)
        eventually(lambda: state_of(own_redis, whole=True)["ts"] > last["ts"])
        assert not pulse.exists(), "so it is not alive"
        status = program(own_redis, arguments=["--status"])
        assert status.wait()[0] == 1
        assert status.output.splitlines()[1].split()[:2] == ["Hanging", "DOWN"]


def test_what_redis_says_does_not_reach_the_terminal_as_it_is():
    rows = [("stream", ""), ("  a\x1b]0;b\x07", "x\r\ny"), ("c", "d" * 3)]
    assert list(format_table(rows)) == ["stream", "  a�]0;b�  x��y", "c          ddd"]


def test_a_state_of_nobody_does_not_reach_the_terminal_as_it_is(redis_server):
    key = "other:state"
    with redis_server.client() as client:
        client.hset(key, "a\x1b[2J", '{"ts": 1}')
        client.expire(key, 10)
    report = asked(Place([("127.0.0.1", redis_server.port)]), lambda reader: single(reader, key))
    assert (report.code, report.lines[0].rpartition(": ")[2]) == (1, "unknown field a�[2J")
