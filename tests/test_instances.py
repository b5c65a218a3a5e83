"""--status where collectors share a lease: from the registry and the hashes in Redis to tables and an exit code."""

import json

import pytest
from test_status import FIELDS

from ops.instances import Instance
from ops.reader import Place
from ops.status import asked, shared
from ops.words import INSTANCE_HEADS, instance_row
from relay.events import STATE_EXPIRY

REGISTRY, STATE = "stream:bybit_leader_instances", "stream:bybit_state"
STANDBY = {"role": "standby", "term": 3, "ready": True, "pending": 1234, "behind": 0.25, "interval": 1.0, "ts": 1}
LEADER = STANDBY | {"role": "leader"}


def test_a_row_tells_what_an_operator_wants_to_know():
    row = instance_row(Instance("b", 0.5, STANDBY, {"OrderBook": FIELDS, "Own": FIELDS | {"up": None}}))
    assert dict(zip(INSTANCE_HEADS, row, strict=True)) == {
        "instance": "b",
        "role": "standby",
        "term": "3",
        "ready": "yes",
        "streams up": "1 of 1",
        "pending": "1,234",
        "behind s": "0.2",
    }


@pytest.mark.parametrize("age", [None, 3.5])
def test_of_who_is_gone_only_that_is_said(age):
    assert instance_row(Instance("b", age, STANDBY, {"OrderBook": FIELDS}))[1:] == ("gone", *["-"] * 5)


def test_what_is_not_known_is_a_dash():
    assert instance_row(Instance("b", 1, {"ready": False}, {})) == ("b", "-", "-", "no", "0 of 0", "-", "-")


@pytest.fixture
def instances(own_redis):
    """Puts the states of instances into Redis, (age, about, streams) each; returns the report."""

    def run(**given):
        with own_redis.client() as client:
            for name, (age, about, streams) in given.items():
                client.hset(REGISTRY, name, "{}")
                fields = {key: json.dumps(value) for key, value in (streams | {"*": about}).items()}
                client.hset(f"{STATE}:{name}", mapping=fields)
                client.pexpire(f"{STATE}:{name}", round((STATE_EXPIRY - age) * 1000))
        return asked(Place([("127.0.0.1", own_redis.port)]), lambda reader: shared(reader, REGISTRY, STATE))

    return run


def test_all_instances_and_their_streams_are_shown_the_leader_first(instances):
    report = instances(a=(0, STANDBY, {"OrderBook": FIELDS, "Trades": FIELDS}), b=(1, LEADER, {"OrderBook": FIELDS}))
    lines = report.lines
    assert report.code == 0
    assert [line.split()[:2] for line in lines[1:3]] == [["a", "standby"], ["b", "leader"]]
    assert [line for line in lines if line.endswith(":")] == ["b, leader:", "a, standby:"]
    assert [line.split()[0] for line in lines[lines.index("a, standby:") + 2 :]] == ["OrderBook", "Trades"]
    found = json.loads(report.as_json())
    assert (found["well"], found["problems"]) == (True, [])
    assert [(one["instance"], one["role"], one["alive"]) for one in found["instances"]] == [
        ("a", "standby", True),
        ("b", "leader", True),
    ]


@pytest.mark.parametrize(("fields", "code"), [({}, 0), ({"up": None, "wanted": None}, 0), ({"up": False}, 1)])
def test_the_code_is_that_of_the_leaders_streams(instances, fields, code):
    down = FIELDS | {"up": False}
    report = instances(a=(0, STANDBY, {"OrderBook": down}), b=(0, LEADER, {"OrderBook": FIELDS | fields}))
    assert (report.code, list(report.problems)) == (code, ["Stream OrderBook is down"] * code)


def test_who_does_not_write_is_gone_and_without_a_leader_the_code_is_1(instances):
    report = instances(a=(0, STANDBY, {"OrderBook": FIELDS}), b=(3.5, LEADER, {"OrderBook": FIELDS}))
    assert report.code == 1
    assert report.lines[2].split()[:2] == ["b", "gone"]
    assert report.lines[-1] == report.problems[0] == "Nobody leads: nothing is published"


def test_who_has_left_nothing_but_the_term_is_no_instance(instances, own_redis):
    with own_redis.client() as client:
        client.hset(REGISTRY, "*", "{}")
        client.hset(f"{STATE}:c", "other", "what is no state")
        client.hset(REGISTRY, "c", "{}")
    report = instances(b=(0, LEADER, {"OrderBook": FIELDS}))
    assert [(one.name, one.alive) for one in report.instances] == [("b", True), ("c", False)]


def test_no_registry_is_no_collector(instances):
    report = instances()
    assert report.code == 1
    assert report.lines[0].startswith(f"No collector is running: there is no {REGISTRY} in Redis at 127.0.0.1:")
