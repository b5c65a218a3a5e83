"""The event `alive`: told by who publishes, beside the messages, and never kept."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from conftest import Subscriber, eventually
from programs import ROOT
from test_publisher import STATE, STATUS, Running
from test_standby import Standby

from ops.reader import Place
from ops.status import asked, ready, single
from relay.redis.queries import Heartbeat
from relay.redis.resp import parse_reply
from sandbox.bybit import Bybit

NUMBERS = {"instance": "a", "shard": "1of2", "up": 3, "streams": 4}


def beats(subscriber):
    return [json.loads(payload) for _, payload in subscriber.beats]


def turns(publisher):
    """Waits for two turns of the publisher's thread: what it has to send then is sent, or forgotten."""
    for _ in range(2):
        before = publisher.heartbeat_due
        eventually(lambda: publisher.heartbeat_due != before)  # noqa: B023


def test_it_is_taken_once_and_the_latest_counts():
    heartbeat = Heartbeat()
    assert heartbeat.take() == []
    heartbeat.set("c", b"1")
    heartbeat.set("c", b"\xc3\xa9")
    [query] = heartbeat.take()
    assert parse_reply(query, 0)[0] == [b"PUBLISH", b"c", b"\xc3\xa9"]
    assert heartbeat.take() == []


@pytest.mark.parametrize("maxlen", [0, 100])
def test_it_is_published_and_is_no_message(own_redis, maxlen):
    with Subscriber(own_redis, STATUS) as subscriber:
        with Running(own_redis, connected=True, stream_maxlen=maxlen) as publisher:
            before = round(time.time() * 1000)
            publisher.beat(**NUMBERS)
            [event] = eventually(lambda: beats(subscriber))
            assert 0 <= event.pop("ts") - before < 10_000
            assert event == {"event": "alive", "stream": "", "topics": []} | NUMBERS
            assert (publisher.backlog, publisher.published) == (0, 0)
            publisher.send(1)
            eventually(lambda: publisher.published == 1)
        assert publisher.undelivered == 0
    assert own_redis.client().exists(STATUS) == 0, "no Redis Stream has it"


def test_what_was_said_while_redis_was_away_is_not_said_later(own_redis):
    with (
        Subscriber(own_redis, STATUS, reconnect=True) as subscriber,
        Running(own_redis, connected=True) as publisher,
    ):
        own_redis.kill()
        eventually(lambda: not publisher.connected)
        publisher.beat(**NUMBERS)
        own_redis.start()
        eventually(lambda: publisher.connected and subscriber.subscribed.is_set())
        publisher.publish(STATUS, b"back")
        publisher.flush()
        eventually(lambda: b"back" in subscriber.of(STATUS))
        assert beats(subscriber) == []
        publisher.beat(**NUMBERS)
        eventually(lambda: len(beats(subscriber)) == 1)
        assert publisher.outages.number == 1
        assert 0 < publisher.outages.seconds < 30


def test_a_standby_says_nothing_and_does_not_say_it_when_it_leads(redis_server):
    with Subscriber(redis_server, STATUS) as subscriber, Standby(redis_server) as publisher:
        publisher.beat(**NUMBERS)
        turns(publisher)
        assert publisher.pending == 0
        publisher.leads()
        publisher.beat(**NUMBERS | {"up": 4})
        eventually(lambda: beats(subscriber))
        assert [event["up"] for event in beats(subscriber)] == [4]
        assert publisher.outages.number == 0


# The real program.

QUICK = """
import sys
import ops.monitor
ops.monitor.NOTIFY_INTERVAL = 0.3
from main import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("settings", "instance", "shard"),
    [
        ({}, "", ""),
        ({"LEADER_KEY": "stream:lease", "INSTANCE": "a", "SHARD": "1/1", "CHANNEL_BY_SYMBOL": "True"}, "a", "1of1"),
    ],
    ids=["one", "a leader of a shard"],
)
def test_the_running_collector_says_how_many_streams_are_up(program, own_redis, settings, instance, shard):
    with Bybit(rate=100) as bybit, Subscriber(own_redis, STATUS) as subscriber:
        collector = program(own_redis, bybit, script=QUICK, **settings)
        event = eventually(lambda: next((one for one in beats(subscriber) if one["up"] == 4), None), 20)
        assert (event["streams"], event["instance"], event["shard"]) == (4, instance, shard)
        assert collector.stop()[0] == 0, collector.log
    at = [one["ts"] for one in beats(subscriber)]
    assert all(later - earlier > 200 for earlier, later in pairwise(at))


def test_a_collector_that_buffers_is_alive_and_one_that_was_killed_is_dead_within_four_seconds(
    program, own_redis, tmp_path
):
    """`live` never asks Redis: a collector is not to be restarted because Redis hangs."""
    pulse = tmp_path / "pulse"
    place = Place([("127.0.0.1", own_redis.port)])
    with Bybit(rate=100) as bybit:
        collector = program(own_redis, bybit, script=QUICK, PULSE_FILE=pulse)
        eventually(lambda: asked(place, lambda reader: ready(reader, STATE, "")).code == 0, 20)
        own_redis.pause()
        collector.wait_for_log("Lost Redis")
        eventually(pulse.exists)
        pulse.unlink()
        eventually(pulse.exists)
        live = program(own_redis, arguments=["--status", "live"], PULSE_FILE=pulse)
        assert (live.wait()[0], live.output[:6]) == (0, "Alive:"), live.log
        own_redis.resume()
        eventually(lambda: asked(place, lambda reader: single(reader, STATE)).code == 0)
        collector.process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: asked(place, lambda reader: single(reader, STATE)).code == 1)
        assert time.monotonic() - killed < 4
        status = program(own_redis, arguments=["--status", "--json"])
        assert status.wait()[0] == 1
        found = json.loads(status.output)
        assert (found["well"], [one["alive"] for one in found["instances"]]) == (False, [False])
        assert "the collector is dead" in found["problems"][0]


def test_the_status_imports_nothing_that_costs_much(own_redis):
    """Its CPU time is too noisy to be measured here: imports are nearly all of it."""
    environment = os.environ | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(own_redis.port), "LEADER_KEY": "lease"}
    for about in ([], ["live"], ["ready", "--json"]):
        command = [sys.executable, "-X", "importtime", "main.py", "--status", *about]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
        assert ended.returncode == (2 if about == ["live"] else 1)
        assert ended.stdout.startswith("{" if "--json" in about else ("No collector", "--status live needs"))
        found = {
            line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")
        }
        assert {"ops.status", "relay.redis.resp", "conf.settings"} <= found
        dear = {"redis", "pybit", "asyncio", "websocket", "requests", "dotenv", "argparse", "ssl", "difflib", "logging"}
        assert {name.partition(".")[0] for name in found} & dear == set()
