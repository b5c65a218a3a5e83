"""What the operator sees of a running collector, tick by tick: no clock, no socket but systemd's."""

import json
import logging
import math
import socket
import threading
from collections import Counter, deque
from types import SimpleNamespace

import pytest

from ops import VERSION
from ops import monitor as module
from ops import state as state_module
from ops.monitor import Monitor
from ops.rows import retire, rows
from ops.state import MAX_TOLD, MORE, Losses, Rates, State
from relay.stats import StreamStats, percentile
from sandbox.bybit import Bybit, Script

NOW = 1000.0
SPECIAL = {"subscribed": 0, "connections": 2, "answered": False, "rejected": 1, "callback_failures": 1}


def slots(*delays):
    """Delays of the last second, and of those before the last ten."""
    return deque([(NOW - 10.1, [9.9]), (NOW - 1, list(delays))])


def row_of(stats, wanted=None):
    """The row of a stream that has one connection."""
    [row] = rows({"A": stats}, {"A": wanted} if wanted is not None else {}, {}, NOW)
    return row


def state_fields(stats, rate, now, timestamp):
    return row_of(stats).fields(rate, now, timestamp)


def log_line(stats, rate, now):
    return row_of(stats).log_line(rate, now)


class Watched:
    """A monitor of streams and a publisher that do nothing by themselves; `states` is what it pushed."""

    def __init__(self, monkeypatch, *names, pulse=""):
        monkeypatch.setattr(module, "monotonic", lambda: NOW)
        self.streams = {name: StreamStats(subscribed=1, connections=1, answered=True) for name in names}
        self.threads = {name: threading.current_thread() for name in names}
        self.states = []
        self.beats = []  # the events `alive`
        self.publisher = SimpleNamespace(
            heartbeat_due=math.inf,
            backlog=7,
            set_state=self.states.append,
            published=5,
            lost=0,
            dropped=Counter(),
            outages=SimpleNamespace(number=2, seconds=3.1415),
            buffer=1000,
            buffered_bytes=250,
        )
        self.leadership = SimpleNamespace(heartbeat_due=math.inf)
        self.about = {"requests": 3}
        self.wanted, self.retired = {}, {}
        self.state = State(self.publisher, lambda: self.about)
        about = (self.state, self.leadership, lambda: self.wanted, self.retired, self.beat, pulse)
        self.monitor = Monitor(self.streams, self.threads, self.publisher, *about)

    def beat(self, *numbers):
        self.beats.append(numbers)

    def ups(self):
        """`up` of each stream in the last state."""
        return {name: json.loads(text)["up"] for name, text in self.states[-1].items() if name != "*"}

    def tick(self, after):
        """Ticks `after` seconds after the start; returns whether a state was pushed."""
        count = len(self.states)
        self.monitor.tick(NOW + after)
        return len(self.states) > count


@pytest.fixture
def watched(monkeypatch):
    return lambda *names, **options: Watched(monkeypatch, *names, **options)


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """The notifications that systemd has got since the last call, each as a list of lines."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def notifications():
            found = []
            while True:
                try:
                    found.append(listener.recv(4096).decode().splitlines())
                except BlockingIOError:
                    return found

        yield notifications


def test_percentiles_are_values_that_were_measured():
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.99) == 3
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0, 0.5, 0.99, 1)] == [1, 50, 99, 100]


def test_the_fields_of_a_stream_that_has_done_nothing():
    assert state_fields(StreamStats(), 0.0, NOW, 1_790_134_712_130) == {
        "up": False,
        "topics": 0,
        "wanted": None,
        "waits": False,
        "rejected": 0,
        "messages": 0,
        "rate": 0.0,
        "connections": 0,
        "reconnects": 0,
        "age": None,
        "delay_p50": None,
        "delay_p99": None,
        "gaps": 0,
        "callback_failures": 0,
        "ignored": 0,
        "ts": 1_790_134_712_130,
    }


def test_the_fields_of_a_busy_stream():
    stats = StreamStats(
        messages=12345,
        connections=3,
        reconnects=2,
        last_message=NOW - 0.25,
        subscribed=20,
        rejected=1,
        answered=True,
        gaps=2,
        callback_failures=4,
        ignored=5,
        delays=slots(*(number / 10_000 for number in range(1, 101))),
    )
    assert state_fields(stats, 123.456, NOW, 1) == {
        "up": True,
        "topics": 20,
        "wanted": None,
        "waits": False,
        "rejected": 1,
        "messages": 12345,
        "rate": 123.5,
        "connections": 3,
        "reconnects": 2,
        "age": 0.25,
        "delay_p50": 0.005,
        "delay_p99": 0.0099,
        "gaps": 2,
        "callback_failures": 4,
        "ignored": 5,
        "ts": 1,
    }


def test_a_message_that_came_after_the_clock_was_read_has_no_negative_age():
    stats = StreamStats(last_message=NOW + 0.001)
    assert state_fields(stats, 0.0, NOW, 1)["age"] == 0
    assert "the last 0.0 s ago" in log_line(stats, 0.0, NOW)


def test_rates_are_measured_over_a_second_at_least():
    rates, stats = Rates(NOW), StreamStats(messages=50)

    def update(after, **streams):
        rates.update(rows(streams, {}, {}, NOW), NOW + after)

    update(2, A=stats)
    assert (rates.of("A"), rates.of("B")) == (25, 0)
    stats.messages = 1000
    update(2.5, A=stats)
    assert rates.of("A") == 25
    update(4, A=stats, B=StreamStats(messages=19))
    assert (rates.of("A"), rates.of("B")) == (475, 9.5)
    update(6, A=StreamStats(messages=10))
    assert rates.of("A") == 0, "it was removed, and is another one"


def busy(**more):
    fields = {"messages": 100, "connections": 1, "subscribed": 10, "answered": True, "last_message": NOW - 1}
    return StreamStats(**fields | more)


def test_an_entry_is_one_row_over_its_connections():
    streams = {
        "Trades": busy(delays=slots(*[0.001] * 98), rejected=1),
        "Ticker": busy(),
        "Trades#2": busy(
            subscribed=7, delays=slots(0.1, 0.005), last_message=NOW - 0.5, connections=3, reconnects=2, gaps=2
        ),
    }
    wanted = {"Trades": 11, "Trades#2": 8, "Ticker": 10}
    trades, ticker = rows(streams, wanted, {}, NOW)
    assert (trades.name, ticker.name) == ("Trades", "Ticker")
    fields = trades.fields(2.0, NOW, 1)
    assert (fields["up"], fields["topics"], fields["wanted"], fields["rejected"]) == (True, 17, 19, 1)
    assert (fields["messages"], fields["connections"], fields["gaps"], fields["age"]) == (200, 4, 2, 0.5)
    assert (fields["delay_p50"], fields["delay_p99"], fields["reconnects"]) == (0.001, 0.005, 2)


def test_an_entry_is_up_if_all_its_connections_are():
    streams = {"Trades": busy(), "Trades#2": busy(subscribed=0)}
    assert rows(streams, {}, {}, NOW)[0].up is False
    assert rows(streams, {"Trades": 10, "Trades#2": 0}, {}, NOW)[0].up is True, "the second has nothing to carry"
    streams["Trades#2"].heartbeat_due = NOW - 60
    streams["Trades#2"].subscribed = 1
    assert rows(streams, {}, {}, NOW)[0].up is False, "its thread is stuck"


@pytest.mark.parametrize(
    ("wanted", "up", "awaited"),
    [(None, False, True), (0, None, False)],
    ids=["waits for the list", "none in its shard"],
)
def test_an_entry_without_a_connection(wanted, up, awaited):
    [row] = rows({}, {"Trades": wanted}, {}, NOW)
    assert (row.name, row.up, row.wanted, row.awaited) == ("Trades", up, wanted, awaited)


def test_what_connections_did_that_are_no_more_still_counts():
    retired = retire(retire(None, busy(rejected=2)), busy(callback_failures=1, ignored=2, connections=4))
    [row] = rows({"Trades": busy()}, {}, {"Trades": retired}, NOW)
    total = row.total
    assert (total.messages, total.connections, total.callback_failures, total.ignored) == (300, 6, 1, 2)
    assert (total.subscribed, total.rejected) == (10, 0)


def test_the_summary_and_the_log_have_one_line_for_an_entry(watched, systemd, caplog):
    caplog.set_level(logging.INFO)
    run = watched("Trades", "Trades#2", "Ticker")
    run.wanted = {"Trades": 1, "Trades#2": 1, "Ticker": 1}
    run.streams["Trades#2"].messages = 60
    run.tick(60)
    assert "STATUS=2 of 2 streams up, 60 messages, 7 buffered for Redis" in systemd()[0]
    assert [line.partition(":")[0] for line in caplog.messages] == ["Trades", "Ticker"]
    assert run.ups() == {"Trades": True, "Ticker": True}


def test_a_change_of_what_is_wanted_is_pushed_at_once(watched):
    run = watched("Trades")
    run.wanted = {"Trades": 1}
    run.tick(0)
    run.wanted = {"Trades": 2}
    assert [run.tick(0.25), run.tick(0.5)] == [True, False]


def test_an_entry_that_waits_for_the_list_delays_readiness_for_a_minute_at_most(watched, systemd, caplog):
    run = watched()
    run.wanted = {"Trades": None, "Ticker": 0}
    run.tick(0)
    assert not [lines for lines in systemd() if "READY=1" in lines]
    run.tick(60)
    assert [lines for lines in systemd() if "READY=1" in lines]
    assert "Streams without an answer of Bybit after 60 s: Trades" in caplog.messages


def test_the_state_is_pushed_at_the_first_tick_and_then_every_second(watched):
    run = watched("Trades", "Ticker")
    pushed = [run.tick(number / 4) for number in range(12)]
    assert [number / 4 for number, push in enumerate(pushed) if push] == [0, 1, 2]
    assert run.ups() == {"Trades": True, "Ticker": True}


@pytest.mark.parametrize(("name", "value"), [*SPECIAL.items(), ("last_message", NOW)])
def test_the_state_is_pushed_at_the_next_tick_when_a_stream_changes(watched, name, value):
    run = watched("Trades", "Ticker")
    run.tick(0)
    setattr(run.streams["Ticker"], name, value)
    assert [run.tick(0.25), run.tick(0.5)] == [True, False]


def test_the_state_is_pushed_at_the_next_tick_when_a_stream_is_added(watched):
    run = watched("Trades")
    run.tick(0)
    run.streams["Ticker"] = StreamStats()
    assert run.tick(0.25)
    assert run.ups().keys() == {"Trades", "Ticker"}


def test_the_state_has_a_field_for_the_collector_as_a_whole(watched, monkeypatch):
    monkeypatch.setattr(state_module, "time", lambda: 1.5)
    run = watched("Trades")
    run.tick(0)
    assert list(run.states[-1]) == ["Trades", "*"]
    assert json.loads(run.states[-1]["*"]) == {
        "requests": 3,
        "version": VERSION,
        "started": 1500,
        "interval": 1.0,
        "published": 5,
        "dropped": {},
        "outages": 2,
        "outage_seconds": 3.142,
        "backlog_bytes": 250,
        "buffer_bytes": 1000,
        "buffer_share": 0.25,
        "alive": True,
        "ts": 1500,
    }


def test_losses_are_added_up_over_symbols_and_only_when_there_are_more(watched):
    publisher = watched().publisher
    losses = Losses(publisher, ("x:trades",))
    publisher.dropped.update({"x:trades": 1, "x:trades:BTC": 2, "x:trades:ETH": 3, "x:ticker": 4, "my:BTC": 5})
    assert losses.by_channel() == {}, "nobody says that there are any"
    publisher.lost = 15
    found = losses.by_channel()
    assert found == {"x:trades": 6, "x:ticker": 4, "my:BTC": 5}
    assert losses.by_channel() is found
    publisher.dropped.update({f"my:{number}": 1 for number in range(2 * MAX_TOLD)})
    publisher.lost = 15 + 2 * MAX_TOLD
    found = losses.by_channel()
    assert (len(found), sum(found.values())) == (MAX_TOLD + 1, publisher.lost)
    assert found[MORE] == MAX_TOLD + 3


def test_consumers_are_told_every_five_seconds_how_many_streams_are_up(watched):
    run = watched("Trades", "Ticker")
    run.streams["Ticker"].subscribed = 0
    run.streams["Own"] = StreamStats(watched=False)
    for number in range(44):
        run.tick(number / 4)
    assert run.beats == [(1, 2), (1, 2)]


def test_the_pulse_file_is_touched_with_each_heartbeat_of_systemd(watched, systemd, tmp_path):
    """And not while a thread is stuck."""
    pulse = tmp_path / "pulse"
    run = watched("Trades", pulse=str(pulse))
    touched, told = [], []
    for number in range(1, 5):
        run.streams["Trades"].heartbeat_due = NOW - 60 if number == 3 else NOW + 100
        run.tick(5 * number)
        touched.append(pulse.exists())
        told.append(any("WATCHDOG=1" in lines for lines in systemd()))
        pulse.unlink(missing_ok=True)
    assert touched == told == [True, True, False, True]


def test_a_pulse_file_that_cannot_be_touched_is_logged_once_until_it_can(watched, tmp_path, caplog):
    folder = tmp_path / "folder"
    run = watched("Trades", pulse=str(folder / "pulse"))
    run.tick(5)
    run.tick(10)
    [warning] = caplog.messages
    assert warning.startswith("Cannot touch PULSE_FILE: ")
    assert str(folder / "pulse") in warning
    folder.mkdir()
    run.tick(15)
    assert (folder / "pulse").exists()
    assert caplog.messages == [warning]


def test_messages_alone_wait_for_the_next_regular_state(watched):
    run = watched("Trades")
    run.streams["Trades"].last_message = NOW
    run.tick(0)
    run.streams["Trades"].messages = 100
    run.streams["Trades"].last_message = NOW + 1
    assert not run.tick(0.75)
    assert run.tick(2)
    fields = json.loads(run.states[-1]["Trades"])
    assert (fields["messages"], fields["rate"], fields["age"]) == (100, 50, 1)


def test_reading_makes_no_statistics(watched):
    """A thread without statistics, and statistics without a thread, stay what they are."""
    run = watched("Trades")
    run.streams["Early"] = StreamStats()
    run.threads["Late"] = threading.current_thread()
    run.tick(60)
    assert list(run.streams) == ["Trades", "Early"]


def test_each_stream_has_a_line_in_the_log_every_minute(watched, caplog):
    caplog.set_level(logging.INFO)
    run = watched("Trades", "Ticker")
    run.streams["Trades"].messages = 1200
    run.streams["Trades"].last_message = NOW + 59.5
    for after in (0, 59.9):
        run.tick(after)
    assert not caplog.messages
    run.tick(60)
    assert caplog.messages == [
        "Trades: 1,200 messages, 20.0/s, the last 0.5 s ago; 1 connection so far",
        "Ticker: 0 messages, 0.0/s, none yet; 1 connection so far",
    ]
    named = caplog.records[0].args
    assert {name: named[name] for name in ("stream", "messages", "rate", "age", "connections", "gaps")} == {
        "stream": "Trades",
        "messages": 1200,
        "rate": 20,
        "age": 0.5,
        "connections": 1,
        "gaps": 0,
    }
    caplog.clear()
    run.streams["Trades"].messages += 60
    run.tick(119.9)
    assert not caplog.messages
    run.tick(120)
    assert caplog.messages[0] == "Trades: 1,260 messages, 1.0/s, the last 60.5 s ago; 1 connection so far"


def test_the_log_line_names_what_should_not_happen_only_if_it_did():
    stats = StreamStats(connections=12, rejected=1, gaps=2, callback_failures=3000, ignored=1)
    expected = "0 messages, 0.0/s, none yet; 12 connections so far; "
    expected += "1 rejected topic; 2 sequence gaps; 3,000 callback failures; 1 ignored message"
    assert log_line(stats, 0, NOW) == expected


def test_systemd_gets_ready_once_when_bybit_has_answered_for_every_stream(watched, systemd):
    run = watched("Trades", "Ticker")
    run.streams["Ticker"] = StreamStats()
    run.tick(0)
    assert not systemd()
    run.streams["Ticker"].answered = True  # all its topics are rejected: the stream is down, and will be
    run.streams["Trades"].messages = 1234
    run.tick(1)
    run.tick(2)
    assert systemd() == [["READY=1", "STATUS=1 of 2 streams up, 1,234 messages, 7 buffered for Redis"]]


def test_no_streams_are_not_ready(watched, systemd):
    run = watched()
    run.tick(0)
    run.tick(61)
    assert not [lines for lines in systemd() if "READY=1" in lines]


def test_ready_comes_at_the_latest_after_a_minute_and_names_the_streams_that_are_not(watched, systemd, caplog):
    """systemd arms its watchdog only then: a stream that never gets an answer must not keep it away."""
    run = watched("Trades", "Ticker")
    run.streams["Ticker"] = StreamStats()
    run.tick(59.9)
    assert not [lines for lines in systemd() if "READY=1" in lines]
    caplog.clear()
    run.tick(60)
    run.tick(61)
    assert [lines[0] for lines in systemd() if "READY=1" in lines] == ["READY=1"]
    assert caplog.messages == ["Streams without an answer of Bybit after 60 s: Ticker"]


def test_a_function_of_the_users_own_is_neither_up_nor_down_and_not_waited_for(watched, systemd):
    """Until it uses a Connection."""
    run = watched("Trades")
    own = run.streams["Own"] = StreamStats(watched=False)
    run.tick(0)
    assert systemd() == [["READY=1", "STATUS=1 of 1 streams up, 0 messages, 7 buffered for Redis"]]
    assert json.loads(run.states[-1]["Own"])["up"] is None
    own.connections = 1
    run.tick(0.25)
    assert json.loads(run.states[-1]["Own"])["up"] is False
    own.subscribed = 1
    run.tick(0.5)
    assert json.loads(run.states[-1]["Own"])["up"] is True


def test_a_stuck_stream_is_not_up_and_is_logged_once_as_is_its_end(watched, systemd, caplog):
    run = watched("Trades", "Ticker")
    run.streams["Ticker"].heartbeat_due = NOW - 55
    run.tick(4.9)
    assert json.loads(run.states[-1]["Ticker"])["up"] is True
    assert json.loads(run.states[-1]["*"])["alive"] is True
    assert not caplog.messages
    run.tick(5)
    assert json.loads(run.states[-1]["*"])["alive"] is False
    run.tick(5.25)
    assert run.ups() == {"Trades": True, "Ticker": False}
    assert "STATUS=1 of 2 streams up, 0 messages, 7 buffered for Redis" in systemd()[-1]
    expected = "Stream Ticker is stuck: its thread is overdue by 60 s; does a call not return?"
    assert [(record.levelname, record.message) for record in caplog.records] == [("ERROR", expected)]
    assert caplog.records[0].args["stream"] == "Ticker"
    caplog.clear()
    run.streams["Ticker"].heartbeat_due = NOW + 10
    run.tick(5.5)
    run.tick(5.75)
    assert json.loads(run.states[-1]["Ticker"])["up"] is True
    assert caplog.messages == ["Stream Ticker is no longer stuck"]


def test_a_stuck_publisher_is_logged(watched, caplog):
    run = watched("Trades")
    run.publisher.heartbeat_due = NOW - 60
    run.tick(0)
    run.tick(0.25)
    run.publisher.heartbeat_due = NOW + 10
    run.tick(0.5)
    assert caplog.messages == [
        "The publisher (thread Redis) is stuck: its thread is overdue by 60 s; does a call not return?",
        "The publisher (thread Redis) is no longer stuck",
    ]


def test_a_stuck_leadership_is_logged(watched, caplog):
    run = watched("Trades")
    run.leadership.heartbeat_due = NOW - 60
    run.tick(0)
    assert caplog.messages == [
        "The leadership (thread Leader) is stuck: its thread is overdue by 60 s; does a call not return?"
    ]
    assert not run.monitor.is_alive(NOW)


def test_the_role_is_in_the_summary_and_a_change_of_it_is_pushed_at_once(watched, systemd):
    run = watched("Trades")
    run.about = {"role": "standby", "term": 0, "ready": False}
    run.tick(0)
    [[_, status]] = systemd()
    assert status == "STATUS=standby, not ready: 1 of 1 streams up, 0 messages, 7 buffered for Redis"
    for change in ({"ready": True}, {"role": "leader"}, {"term": 1}):
        run.about = run.about | change
        assert [run.tick(0.25), run.tick(0.5)] == [True, False]
    run.tick(5)
    assert "STATUS=leader, ready: 1 of 1 streams up, 0 messages, 7 buffered for Redis" in systemd()[-1]


def test_systemd_gets_the_status_and_the_heartbeat_every_five_seconds(watched, systemd):
    run = watched("Trades")
    for number in range(44):
        run.tick(number / 4)
    status = "STATUS=1 of 1 streams up, 0 messages, 7 buffered for Redis"
    assert systemd() == [["READY=1", status], [status, "WATCHDOG=1"], [status, "WATCHDOG=1"]]


@pytest.mark.parametrize("late", ["stream", "publisher", "dead thread"])
def test_the_heartbeat_stops_when_a_thread_is_stuck_or_dead(watched, systemd, late):
    """Not when it is late, but when it is late by WATCHDOG_TIMEOUT."""
    run = watched("Trades", "Ticker")
    if late == "dead thread":
        run.threads["Ticker"] = threading.Thread()
    elif late == "stream":
        run.streams["Ticker"].heartbeat_due = NOW - 55
    else:
        run.publisher.heartbeat_due = NOW - 55
    run.tick(4.9)
    systemd()
    assert run.monitor.is_alive(NOW + 4.9) is (late != "dead thread")
    run.tick(5)
    assert ["WATCHDOG=1" in lines for lines in systemd()] == [False]
    run.threads["Ticker"] = threading.current_thread()
    run.streams["Ticker"].heartbeat_due = run.publisher.heartbeat_due = NOW + 10
    run.tick(10)
    assert ["WATCHDOG=1" in lines for lines in systemd()] == [True]


# The real program.


def test_systemd_gets_ready_status_watchdog_and_stopping(program, own_redis, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        with Bybit(rate=100) as bybit:
            collector = program(own_redis, bybit, NOTIFY_SOCKET=tmp_path / "notify")
            ready, status = listener.recv(4096).decode().splitlines()
            assert ready == "READY=1"
            assert status.startswith("STATUS=4 of 4 streams up, ")
            status, watchdog = listener.recv(4096).decode().splitlines()
            assert status.startswith("STATUS=4 of 4 streams up, ")
            assert watchdog == "WATCHDOG=1"
            code, _ = collector.stop()
            assert code == 0, collector.log
            assert listener.recv(4096) == b"STOPPING=1"


def test_ready_waits_for_every_stream_but_not_for_a_rejected_topic(program, own_redis, tmp_path):
    scripts = [Script(), Script(), Script(handshake=503), Script()]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        with Bybit(rate=100, script=scripts) as bybit:
            program(own_redis, bybit, NOTIFY_SOCKET=tmp_path / "notify", SYMBOLS="NOPE")
            assert listener.recv(4096).decode().splitlines()[0] == "READY=1"
            assert len(bybit.connections) == 5
            assert all(len(one.requests) for one in bybit.connections if one.closed is None)
