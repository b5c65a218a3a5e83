"""--status where collectors share a lease: from the registry and the hashes in Redis to tables and an exit code."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from test_status import FIELDS

from ops.instances import HEADS, instance_row, run_instances
from relay.redis.publisher import Publisher
from relay.redis.registry import LEADER, STANDBY, Entry
from sandbox.redis import free_port

KEY, STATE = "stream:bybit_leader", "stream:bybit_state"
ENTRY = Entry(7, "127.0.0.1:5000", STANDBY, 3, True, 1234, "linear, 4 topics", 1)
WHOLE = {"role": STANDBY, "behind": 0.25, "ts": 1}


def test_a_row_tells_what_an_operator_wants_to_know():
    row = instance_row("b", ENTRY, True, {"OrderBook": FIELDS, "Own": FIELDS | {"up": None}, "*": WHOLE})
    assert dict(zip(HEADS, row, strict=True)) == {
        "instance": "b",
        "role": "standby",
        "term": "3",
        "ready": "yes",
        "streams up": "1 of 1",
        "pending": "1,234",
        "behind s": "0.2",
    }


def test_of_who_is_gone_only_that_is_said():
    assert instance_row("b", ENTRY, False, {"OrderBook": FIELDS}) == ("b", "gone", "3", "-", "-", "-", "-")


def test_what_is_not_known_is_a_dash():
    row = instance_row("b", replace(ENTRY, ready=False), True, {})
    assert row == ("b", "standby", "3", "no", "-", "1,234", "-")


class Instances:
    """What instances keep in Redis: `living` write their entries anew all the time."""

    def __init__(self, redis, capsys):
        self._client, self._capsys = redis.client(), capsys
        self._publisher = Publisher("127.0.0.1", redis.port)

    def put(self, name, entry, **streams):
        self._client.hset(f"{KEY}_instances", name, entry.encoded())
        if streams:
            texts = {stream: json.dumps(fields) for stream, fields in streams.items()}
            self._client.hset(f"{STATE}:{name}", mapping=texts | {"*": json.dumps(WHOLE)})

    @contextmanager
    def living(self, **entries):
        over = threading.Event()

        def beat():
            number = 1
            while not over.wait(0.05):
                number += 1
                for name, entry in entries.items():
                    self.put(name, replace(entry, beat=number))

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def run(self):
        """The exit code and the lines."""
        code = run_instances(self._publisher, KEY, STATE)
        return code, self._capsys.readouterr().out.splitlines()


@pytest.fixture
def instances(own_redis, capsys):
    return Instances(own_redis, capsys)


def up(**more):
    return FIELDS | {"ts": round(time.time() * 1000)} | more


LEADING = replace(ENTRY, role=LEADER)


def test_all_instances_and_their_streams_are_shown_the_leader_first(instances):
    instances.put("a", ENTRY, OrderBook=up(), Trades=up())
    instances.put("b", LEADING, OrderBook=up())
    with instances.living(a=ENTRY, b=LEADING):
        code, lines = instances.run()
    assert code == 0
    assert [line.split()[:2] for line in lines[1:3]] == [["a", "standby"], ["b", "leader"]]
    assert [line for line in lines if line.endswith(":")] == ["b, leader:", "a, standby:"]
    assert [line.split()[0] for line in lines[lines.index("a, standby:") + 2 :]] == ["OrderBook", "Trades"]


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        ({"OrderBook": {}}, 0),
        ({"OrderBook": {"up": None}}, 0),
        ({"OrderBook": {"up": False}}, 1),
        ({}, 1),
    ],
)
def test_the_code_is_that_of_the_leaders_streams(instances, streams, code):
    instances.put("a", ENTRY, OrderBook=up(up=False))
    instances.put("b", LEADING, **{name: up(**more) for name, more in streams.items()})
    with instances.living(a=ENTRY, b=LEADING):
        assert instances.run()[0] == code


def test_who_does_not_write_is_gone_and_without_a_leader_the_code_is_1(instances):
    instances.put("a", ENTRY, OrderBook=up())
    instances.put("b", LEADING, OrderBook=up())
    with instances.living(a=ENTRY):
        code, lines = instances.run()
    assert code == 1
    assert lines[2].split()[:2] == ["b", "gone"]
    assert lines[-1] == "Nobody leads: nothing is published"


def test_clocks_that_differ_do_not_matter(instances):
    instances.put("b", LEADING, OrderBook=up(ts=round(time.time() * 1000) - 3_600_000))
    with instances.living(b=LEADING):
        code, lines = instances.run()
    assert code == 0
    assert lines[-1].split()[8] == "0.2"  # age s


def test_no_registry_is_no_collector(instances):
    code, [line] = instances.run()
    assert code == 1
    assert line.startswith(f"No collector is running: there is no {KEY}_instances in Redis at 127.0.0.1:")


def test_a_redis_that_cannot_be_reached_is_named(capsys):
    port = free_port()
    assert run_instances(Publisher("127.0.0.1", port), KEY, STATE) == 1
    assert capsys.readouterr().out.startswith(f"Cannot read the state from Redis at 127.0.0.1:{port}: ")
