"""examples/exporter.py: what collectors write into Redis is what Prometheus reads, and what it no longer reads."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import eventually
from programs import ROOT
from prometheus_client import CollectorRegistry, generate_latest
from states import COLLECTOR, STREAM, metric_names, samples, scrape, start_exporter, write

from examples import exporter as exporter_module
from examples.exporter import EVENTS, EXPIRY, HELP, Exporter
from sandbox.bybit import Bybit

PREFIX = "stream:bybit"
KEY = f"{PREFIX}_state"
OF = f"prefix={PREFIX}"


@pytest.fixture
def exporter(own_redis):
    """Exporters in this process, without a thread: they search when they are told to."""
    clients = []

    def make(*prefixes, forget=3600.0):
        clients.append(own_redis.client(retry=None, socket_timeout=1))
        made = Exporter(clients[-1], prefixes or (PREFIX,), forget)
        made.search()
        return made

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def started():
    """Exporters in processes of their own; returns process and URL."""
    processes = []

    def start(*arguments, **settings):
        process, url = start_exporter(*arguments, **settings)
        processes.append(process)
        return process, url

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def text(exporter):
    registry = CollectorRegistry()
    registry.register(exporter)
    return generate_latest(registry).decode()


def read(exporter):
    return samples(text(exporter))


def ups(exporter):
    found = re.findall(r"bybit_collector_up{(.*?)} (.*)", text(exporter))
    return {" ".join(filter(None, re.findall(r'"(.*?)"', labels))): float(value) for labels, value in found}


def of_states(found):
    """Without what the exporter knows by itself, and without ages."""
    return {
        name: value
        for name, value in found.items()
        if not name.startswith(("bybit_events", "bybit_exporter")) and "_age_" not in name
    }


def test_each_field_of_a_state_is_a_metric(exporter, own_redis):
    with own_redis.client() as client:
        write(client, KEY, COLLECTOR | {"dropped": {"stream:bybit_trades": 3, "own": 4}}, age=1, Trades=STREAM)
    c, s = f"{{{OF}}}", f"{{{OF},stream=Trades}}"
    found = read(exporter())
    assert of_states(found) == {
        f"bybit_collector_up{c}": 1,
        f"bybit_collector_alive{c}": 1,
        f"bybit_collector_leader{c}": 1,
        f"bybit_collector_term{c}": 0,
        f"bybit_collector_backlog_messages{c}": 7,
        f"bybit_collector_backlog_bytes{c}": 1000,
        f"bybit_collector_buffer_bytes{c}": 4000,
        f"bybit_collector_backlog_ratio{c}": 0.25,
        f"bybit_collector_published_messages_total{c}": 5000,
        f"bybit_collector_redis_outages_total{c}": 2,
        f"bybit_collector_redis_outage_seconds_total{c}": 2.5,
        f"bybit_collector_waited_seconds_total{c}": 1.5,
        f"bybit_collector_snapshot_requests_total{c}": 8,
        f"bybit_collector_snapshot_requests_rejected_total{c}": 9,
        f"bybit_collector_start_time_seconds{c}": 1_795_000_000.5,
        f"bybit_collector_build_info{{{OF},version=2.5.0}}": 1,
        f"bybit_collector_dropped_messages_total{{channel=own,{OF}}}": 4,
        **{
            f"bybit_collector_dropped_messages_total{{channel={PREFIX}_{kind},{OF}}}": 3 * (kind == "trades")
            for kind in ("orderbook", "trades", "ticker", "liquidations", "status")
        },
        f"bybit_stream_up{s}": 1,
        f"bybit_stream_topics{s}": 9,
        f"bybit_stream_topics_wanted{s}": 10,
        f"bybit_stream_topics_rejected{s}": 1,
        f"bybit_stream_waits{s}": 0,
        f"bybit_stream_messages_total{s}": 1234,
        f"bybit_stream_messages_per_second{s}": 20.5,
        f"bybit_stream_connections_total{s}": 3,
        f"bybit_stream_reconnects_total{s}": 2,
        f"bybit_stream_gaps_total{s}": 4,
        f"bybit_stream_callback_failures_total{s}": 5,
        f"bybit_stream_ignored_messages_total{s}": 6,
        f"bybit_stream_delay_seconds{{{OF},quantile=0.5,stream=Trades}}": 0.001,
        f"bybit_stream_delay_seconds{{{OF},quantile=0.99,stream=Trades}}": 0.25,
    }
    assert 1.5 <= found[f"bybit_stream_last_message_age_seconds{s}"] < 3.5  # the age of the state is added


def test_the_collectors_of_all_prefixes_shards_and_instances_are_found(exporter, own_redis):
    with own_redis.client() as client:
        for key in ("spot_state", "spot_state:a", "spot_state:1of2", "spot_state:1of2:b:c", "linear_state"):
            write(client, f"stream:{key}", Trades=STREAM)
        client.set("stream:spot_state:text", "no hash")
        client.hset("stream:spot_state_of_mind", "a", "b")
        client.hset("stream:other_state", "a", "no JSON")
    every = exporter("stream:*")
    labels = {name for name in read(every) if name.startswith("bybit_collector_up")}
    assert labels == {
        "bybit_collector_up{prefix=stream:linear}",
        "bybit_collector_up{prefix=stream:spot}",
        "bybit_collector_up{instance=a,prefix=stream:spot}",
        "bybit_collector_up{prefix=stream:spot,shard=1of2}",
        "bybit_collector_up{instance=b:c,prefix=stream:spot,shard=1of2}",
        "bybit_collector_up{prefix=stream:other}",
    }
    assert ups(every)["stream:other"] == 0
    assert set(ups(exporter("stream:linear"))) == {"stream:linear"}
    with own_redis.client() as client:
        client.delete("stream:linear_state")
        client.set("stream:linear_state", "no hash any more")
    assert "stream:linear" not in ups(every)
    assert ups(every)["stream:spot"] == 1


def test_a_state_of_another_version_is_read_as_far_as_it_goes(exporter, own_redis):
    with own_redis.client() as client:
        write(client, KEY, {"new": [1]}, Own={"up": None}, Trades={"messages": "12", "age": None, "rate": 2})
    assert of_states(read(exporter())) == {
        f"bybit_collector_up{{{OF}}}": 1,
        f"bybit_stream_messages_per_second{{{OF},stream=Trades}}": 2,
    }


def test_who_publishes_and_who_stands_by(exporter, own_redis):
    with own_redis.client() as client:
        write(client, f"{KEY}:a", COLLECTOR | {"instance": "a", "role": "leader", "ready": True, "behind": 0.0})
        write(client, f"{KEY}:b", COLLECTOR | {"instance": "b", "role": "standby", "ready": False, "behind": 0.5})
    found = read(exporter())
    for metric, one, other in (("leader", 1, 0), ("ready", 1, 0), ("behind_seconds", 0, 0.5)):
        assert found[f"bybit_collector_{metric}{{instance=a,{OF}}}"] == one
        assert found[f"bybit_collector_{metric}{{instance=b,{OF}}}"] == other


def test_of_a_dead_collector_only_its_death_is_shown_until_it_is_forgotten(exporter, own_redis):
    with own_redis.client() as client:
        write(client, KEY, age=14.5, Trades=STREAM)
        one, forgetful = exporter(), exporter(forget=15.5)
        assert of_states(read(one)) == {f"bybit_collector_up{{{OF}}}": 0}
        age = read(one)[f"bybit_collector_state_age_seconds{{{OF}}}"]
        assert 14.5 <= age < 16
        eventually(lambda: not client.exists(KEY))
        one.search()
        assert of_states(read(one)) == {f"bybit_collector_up{{{OF}}}": 0}
        assert read(one)[f"bybit_collector_state_age_seconds{{{OF}}}"] > age
        eventually(lambda: ups(forgetful) == {})
        write(client, KEY, Trades=STREAM)
        assert ups(one) == {PREFIX: 1}


def test_nothing_is_left_of_a_collector_that_was_stopped(exporter, own_redis):
    with own_redis.client() as client:
        write(client, KEY, age=2, Trades=STREAM)
        one = exporter()
        assert ups(one) == {PREFIX: 1}
        client.delete(KEY)
    assert of_states(read(one)) == {}


def test_a_restart_of_redis_is_no_clean_stop(started, own_redis):
    """The states are gone with it: whoever does not write again is dead."""
    with own_redis.client() as client:
        write(client, KEY, Trades=STREAM)
    _, url = started(own_redis)
    eventually(lambda: samples(scrape(url)).get(f"bybit_collector_up{{{OF}}}") == 1)
    own_redis.kill()
    eventually(lambda: samples(scrape(url))["bybit_exporter_redis_up"] == 0)
    assert of_states(samples(scrape(url))) == {}
    own_redis.start()
    eventually(lambda: samples(scrape(url))["bybit_exporter_redis_up"] == 1)
    eventually(lambda: of_states(samples(scrape(url))) == {f"bybit_collector_up{{{OF}}}": 0})
    with own_redis.client() as client:
        write(client, KEY, Trades=STREAM)
        assert samples(scrape(url))[f"bybit_collector_up{{{OF}}}"] == 1


def test_events_are_counted_and_the_heartbeat_is_timed(started, own_redis):
    with own_redis.client() as client:
        write(client, KEY)
        process, url = started(own_redis)
        status = f"{PREFIX}_status"
        eventually(lambda: dict(client.pubsub_numsub(status))[status.encode()])
        zero = {f"bybit_events_total{{event={event},{OF}}}": 0.0 for event in EVENTS}
        assert {name: value for name, value in samples(scrape(url)).items() if "events" in name} == zero
        event = {"event": "lost", "stream": "Trades", "topics": [], "ts": 1}
        for sent in (event, event, event | {"event": "alive", "shard": "1of2"}, event | {"event": "new"}):
            client.publish(status, json.dumps(sent))
        for sent in ("", "[]", '{"event":1}', '{"event":"A B"}', '{"event":"alive","shard":"x"}', b"\xff"):
            client.publish(status, sent)
        client.publish(status, json.dumps(event | {"event": "gap"}))
        eventually(lambda: samples(scrape(url))[f"bybit_events_total{{event=gap,{OF}}}"])
    found = samples(scrape(url))
    counts = {name: value for name, value in found.items() if "events" in name and value}
    assert counts == {
        f"bybit_events_total{{event={event},{OF}}}": count
        for event, count in {"lost": 2, "alive": 1, "new": 1, "gap": 1}.items()
    }
    assert 0 <= found[f"bybit_heartbeat_age_seconds{{{OF},shard=1of2}}"] < 10
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert process.stdout.read() == b""


def test_a_scrape_of_a_redis_that_hangs_is_answered(started, own_redis):
    process, url = started(own_redis, "stream:*", REDIS_DB="1")
    eventually(lambda: samples(scrape(url))["bybit_exporter_redis_up"] == 1)
    own_redis.pause()
    began = time.monotonic()
    assert samples(scrape(url)) == {"bybit_exporter_redis_up": 0}
    assert time.monotonic() - began < 4
    own_redis.resume()
    eventually(lambda: samples(scrape(url))["bybit_exporter_redis_up"] == 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_the_rights_that_the_docstring_names_are_enough(started, own_redis):
    rights = re.findall(r"\+\w+|%R~\S+\*", exporter_module.__doc__)
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "metrics", "on", ">pw", "resetchannels", f"&{PREFIX}_status", *rights)
        _, url = started(own_redis, REDIS_USERNAME="metrics", REDIS_PASSWORD="pw")

        def heard():
            write(client, KEY, Trades=STREAM)
            client.publish(f"{PREFIX}_status", '{"event":"alive"}')
            found = samples(scrape(url))
            return found.get(f"bybit_collector_up{{{OF}}}") and found.get(f"bybit_events_total{{event=alive,{OF}}}")

        eventually(heard)
        client.execute_command("ACL", "SETUSER", "metrics", "-hgetall")
        assert samples(scrape(url))["bybit_exporter_redis_up"] == 0
        client.execute_command("ACL", "SETUSER", "metrics", "+hgetall")
        assert f"bybit_collector_up{{{OF}}}" in samples(scrape(url))  # and was not taken for stopped


def test_a_real_collector_is_seen_and_its_death(started, program, own_redis):
    with Bybit(rate=500) as bybit:
        collector = program(own_redis, bybit)
        _, url = started(own_redis)

        def found():
            return samples(scrape(url))

        def streams():
            return {name for name, value in found().items() if name.startswith("bybit_stream_up") and value}

        every = ("OrderBook", "Trades", "Ticker", "Liquidations")
        eventually(lambda: streams() == {f"bybit_stream_up{{{OF},stream={stream}}}" for stream in every}, 20)
        eventually(lambda: found().get(f"bybit_stream_messages_total{{{OF},stream=Trades}}"), 20)
        collector.process.kill()
        eventually(lambda: of_states(found()) == {f"bybit_collector_up{{{OF}}}": 0}, 20)


def test_promtool_finds_nothing_to_complain_of(exporter, own_redis):
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed")
    with own_redis.client() as client:
        write(client, KEY, COLLECTOR | {"ready": True, "behind": 0.0}, Trades=STREAM)
    one = exporter()
    one.receive(f"{PREFIX}_status", '{"event":"alive"}')
    found = text(one)
    assert metric_names(found) == set(HELP)  # nothing is left out
    checked = subprocess.run([promtool, "check", "metrics"], input=found, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_exporter_knows_how_long_a_state_lives(program, own_redis):
    with Bybit() as bybit, own_redis.client() as client:
        program(own_redis, bybit)
        left = eventually(lambda: max(0, client.pttl(KEY)), 20)
    assert EXPIRY - 5 < left / 1000 <= EXPIRY


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["--listen", "9810"], {}, "argument --listen: 9810: expected HOST:PORT, such as 127.0.0.1:9810 or [::1]:9810"),
        (["--forget", "1h"], {}, "argument --forget: invalid float value: '1h'"),
        ([], {"REDIS_PORT": "x"}, "REDIS_PORT=x: expected a number"),
        (["--listen", "192.0.2.1:9810"], {}, "Cannot listen on 192.0.2.1:9810: Cannot assign requested address"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, settings, sentence):
    command = [sys.executable, "examples/exporter.py", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=20)
    assert result.returncode in (1, 2)
    assert result.stderr.splitlines()[-1].removeprefix("exporter.py: error: ") == sentence
    assert "Traceback" not in result.stderr
