"""Leader and standby as real processes, message by message: what `make drill` does with larger numbers."""

import json
import signal
import time

import pytest
from conftest import eventually
from stage import LEADER_KEY, Stage

from sandbox.consumer import NAMES
from sandbox.judge import judge

RATE = 200  # messages a second
SILENCE = 5.0  # seconds; the drill measures, this only fails if something hangs


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Everything but the collectors, whose logs are where the test's files are."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Stage(RATE) as stage:
        yield stage


def judged(stage, lost=0.0, twice=0.25, silence=SILENCE):
    """Ends the measurement, and returns the events with their times.

    lost, twice: seconds' worth of messages that may be. silence: seconds.
    """
    verdict, events = stage.ends()
    total = verdict.total
    assert total.lost <= lost * RATE, verdict
    assert total.twice <= twice * RATE, verdict
    assert not total.disorder, verdict
    assert not total.foreign, verdict
    assert total.silence < silence, verdict
    terms = [event["term"] for _, event in events if event["event"] == "leader"]
    assert terms == sorted(set(terms))
    for name, program in stage.programs.items():
        assert "Traceback" not in program.log, f"{name}: {program.log}"
    return events


def entries(stage):
    """The messages of all streams since the measurement began, with their times."""
    clock = time.time() - time.monotonic()
    with stage.redis.client() as client:
        found = [
            (int(number.partition(b"-")[0]) / 1000 - clock, fields[b"message"])
            for channel in NAMES
            for number, fields in client.xrange(channel)
        ]
    return [entry for entry in found if entry[0] >= stage.begun]  # each topic is in one stream, in its order


def leaders(events):
    return [event["instance"] for _, event in events if event["event"] == "leader"]


def names(events):
    return {event["event"] for _, event in events}


def test_a_leader_that_is_stopped_hands_over(stage):
    leader, standby = stage.run_pair()
    stage.begins()
    stage.signals(leader, signal.SIGTERM)
    stage.waits_for_leader(other_than=leader)
    assert stage.programs[leader].wait()[0] == 0
    stage.flows()
    events = judged(stage)
    assert leaders(events) == [leader, standby]
    assert not names(events) & {"stopped", "lost"}, "consumers miss nothing, so they are told of nothing"
    assert f"{leader} hands over to {standby}" in stage.programs[leader].log


def test_a_leader_that_is_killed_is_replaced(stage):
    """With Redis Streams, which miss no more than subscribers: what a standby strikes out is there."""
    leader, standby = stage.run_pair(REDIS_STREAM_MAXLEN=100_000)
    stage.begins()
    stage.signals(leader, signal.SIGKILL)
    stage.waits_for_leader(other_than=leader)
    stage.flows()
    assert leaders(judged(stage)) == [leader, standby]
    total = judge(stage.bybit.truth(), entries(stage), stage.begun, time.monotonic()).total
    assert (total.lost, total.disorder) == (0, 0), total
    assert total.twice <= 0.25 * RATE, total


def test_a_leader_whose_data_stops_loses_nothing_until_it_notices(stage):
    """It says that all is well for as long as it waits for data: the standby has the only copies."""
    leader, standby = stage.run_pair(STALL_TIMEOUT=7)
    stage.begins()
    for connection in stage.connections(leader):
        if not any(topic.startswith("publicTrade") for topic in connection.topics):
            connection.silence()
    stage.waits_for_leader(other_than=leader)
    stage.flows()
    assert leaders(judged(stage, twice=1.5, silence=10)) == [leader, standby]


def test_a_leader_that_was_frozen_publishes_nothing_when_it_wakes(stage):
    """Its sockets are full of messages then, from Bybit and for Redis: none comes after its successor's event."""
    leader, standby = stage.run_pair()
    stage.begins()
    stage.signals(leader, signal.SIGSTOP)
    stage.waits_for_leader(other_than=leader)
    stage.passes(1)
    stage.programs[leader].process.send_signal(signal.SIGCONT)
    assert stage.waits_for_pair() == (standby, leader)
    stage.flows()
    assert leaders(judged(stage)) == [leader, standby]
    stage.programs[leader].wait_for_log("stands by")


def test_a_leader_that_loses_bybit_hands_over(stage):
    leader, standby = stage.run_pair()
    stage.begins()
    for connection in stage.connections(leader):
        connection.drop()
    stage.waits_for_leader(other_than=leader)
    stage.waits_for_pair()
    stage.flows()
    events = judged(stage)
    assert leaders(events) == [leader, standby], "the lead does not come back by itself"
    assert "lost" not in names(events)


def test_redis_restarts(stage):
    stage.run_pair()
    stage.begins()
    stage.redis.kill()
    stage.redis.start()
    stage.flows()
    stage.waits_for_pair()
    judged(stage, lost=0.2)  # what the killed Redis had confirmed and not delivered


def test_redis_is_frozen_and_meanwhile_the_leader_dies(stage):
    """Its last entry in the registry arrives when Redis goes on: the standby must not take it for a sign of life."""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.redis.pause()
    stage.passes(1)
    stage.signals(leader, signal.SIGKILL)
    stage.passes(6)
    stage.redis.resume()
    stage.waits_for_leader(other_than=leader)
    stage.flows()
    judged(stage, twice=1.0, silence=12)


def test_two_that_start_at_once(stage):
    stage.run("a")
    stage.run("b")
    stage.begins()
    stage.waits_for_pair()
    stage.flows()
    assert len(leaders(judged(stage))) <= 2


def test_of_three_one_leads_whatever_happens_to_the_others(stage):
    """Here each symbol has channels of its own."""
    leader, standby = stage.run_pair(CHANNEL_BY_SYMBOL=True)
    stage.run("c", CHANNEL_BY_SYMBOL=True)
    eventually(lambda: stage.instances().get("c", {}).get("ready"), 30)
    stage.begins()
    stage.signals(leader, signal.SIGKILL)
    second = stage.waits_for_leader(other_than=leader)
    eventually(lambda: stage.instances()[({"a", "b", "c"} - {leader, second}).pop()]["ready"], 30)
    stage.signals(second, signal.SIGTERM)
    eventually(lambda: not stage.alive(second), 20)
    third = eventually(lambda: stage.leads(), 20)
    assert third not in (leader, second)
    stage.flows()
    assert leaders(judged(stage)) == [leader, second, third]
    assert standby in (second, third)


def test_both_are_stopped(stage):
    """At once, as `systemctl stop` does: one of them publishes what is left, and says that it was stopped."""
    stage.run_pair()
    stage.begins()
    stage.bybit.rate = 0
    time.sleep(0.5)
    for name in "ab":
        stage.programs[name].process.send_signal(signal.SIGTERM)
    assert [stage.programs[name].wait()[0] for name in "ab"] == [0, 0]
    events = judged(stage)
    assert [event["event"] for _, event in events if event["event"] in ("stopped", "lost")] == ["stopped"]
    with stage.redis.client() as client:
        assert not client.exists(LEADER_KEY)
        assert client.hkeys(f"{LEADER_KEY}_instances") == [b"*"], "only the last term is kept"


def test_what_the_operator_sees(stage):
    """--status of both: a line for each instance, the streams of each, and its state in a hash of its own."""
    leader, standby = stage.run_pair()
    settings = {"LEADER_KEY": LEADER_KEY, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": stage.redis.port}
    with stage.redis.client(decode_responses=True) as client:

        def about(name):
            return json.loads(client.hget(f"stream:bybit_state:{name}", "*") or "{}")

        eventually(lambda: about(leader).get("ready") and about(standby).get("ready"))
        assert (about(leader)["role"], about(leader)["term"], about(leader)["instance"]) == ("leader", 1, leader)
        assert (about(standby)["role"], about(standby)["term"]) == ("standby", 0)
        assert not client.exists("stream:bybit_state")
    code, output = stage.asks("--status", **settings)
    lines = output.splitlines()
    assert code == 0, output
    assert lines[0].split() == ["instance", "role", "term", "ready", "streams", "up", "pending", "behind", "s"]
    assert [line.split()[:7] for line in lines[1:3]] == [
        ["a", "leader", "1", "yes", "4", "of", "4"],
        ["b", "standby", "0", "yes", "4", "of", "4"],
    ]
    assert lines.index(f"{leader}, leader:") < lines.index(f"{standby}, standby:")
    stage.signals(leader, signal.SIGKILL)
    stage.signals(standby, signal.SIGKILL)
    output = eventually(lambda: (found := stage.asks("--status", **settings)[1]).count(" gone ") == 2 and found)
    assert stage.asks("--status", **settings)[0] == 1
    assert [line.split()[:2] for line in output.splitlines()[1:3]] == [["a", "gone"], ["b", "gone"]]
    assert output.endswith("\nNobody leads: nothing is published\n")
