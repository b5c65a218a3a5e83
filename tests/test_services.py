"""The program where the system has no thread to give, as a container with a limit on them."""

import time

import pytest
from conftest import Subscriber, eventually

from ops.services import Services
from relay.redis.dial import connections
from relay.redis.endpoint import Sentinels
from relay.redis.link import Timeouts
from relay.redis.queries import StateHash
from relay.redis.state import StateWriter
from sandbox.bybit import Bybit

# As CPython raises it. `allowed` gets the name of the thread and how often it was asked for.
LIMITED = """
import sys
import threading
from collections import Counter

asked, start = Counter(), threading.Thread.start

def limited(thread):
    asked[thread.name] += 1
    if not {allowed}:
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = limited
import main
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture
def no_threads(monkeypatch):
    """From now on there are none."""

    def refuses(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread.start", refuses)
        yield patched


def test_each_thread_that_is_not_to_be_had_at_first_is_started_later(program, own_redis):
    with Bybit(rate=300) as bybit, Subscriber(own_redis, "stream:bybit_trades") as subscriber:
        settings = {"LEADER_KEY": "lease", "SYMBOLS": "*USDT", "BYBIT_API_URL": bybit.api_url}
        script = LIMITED.replace("{allowed}", "asked[thread.name] > 1")
        collector = program(own_redis, bybit, script=script, **settings)
        collector.wait_for_log("All threads beside the streams run now")
        eventually(lambda: subscriber.messages, 20)
        code, _ = collector.stop()
    assert code == 0, collector.log
    assert "Traceback" not in collector.log
    assert collector.log.count("No thread to be had for Redis: can't start new thread; trying again") == 1
    # That of the list of instruments, and later those of the streams.
    assert collector.log.count("No thread to be had for a stream: can't start new thread; trying again") == 2


def test_without_any_thread_it_waits_and_a_signal_ends_it(program):
    script = LIMITED.replace("{allowed}", 'thread.name == "Log"')
    collector = program(script=script, LEADER_KEY="lease")
    collector.wait_for_log("No thread to be had for a stream")
    code, seconds = collector.stop()
    assert (code, seconds < 5) == (0, True), collector.log
    assert "Traceback" not in collector.log
    assert len(collector.lines("ERROR")) == 2, collector.log


def test_where_there_is_no_descriptor_either_it_tries_again(caplog):
    """As Reactor.start() needs some, beside a thread."""
    errors = [OSError(24, "Too many open files"), RuntimeError("can't start new thread")]

    def start():
        if errors:
            raise errors.pop(0)

    services = Services({"Reader": start})
    for _ in range(3):
        services.tick()
    assert caplog.text.count("No thread to be had for Reader: [Errno 24] Too many open files; trying again") == 1
    assert services._waiting == {}


def test_check_says_that_there_is_none(program, redis_server):
    with Bybit(rate=300) as bybit:
        script = LIMITED.replace("{allowed}", "False")
        checked = program(redis_server, bybit, script=script, arguments=["--check"])
        assert checked.wait()[0] == 1, checked.log
    assert "Traceback" not in checked.log
    assert "no thread to be had: can't start new thread" in checked.output


def test_who_cannot_ask_sentinel_all_the_time_does_not_begin(no_threads):
    sentinels = Sentinels([("127.0.0.1", 1)], "mymaster", connections(None, Timeouts(), tls=False))
    for _ in range(2):
        with pytest.raises(OSError, match="no thread to ask Sentinel with: can't start new thread"):
            sentinels.lead(lambda: None)
    no_threads.undo()
    sentinels.lead(lambda: None)
    watch = sentinels._watch
    sentinels.lead(lambda: None)
    assert sentinels._watch is watch
    sentinels.end(time.monotonic() + 5)


def test_the_state_of_a_cluster_is_written_when_there_is_a_thread_for_it(no_threads, redis_server, caplog):
    timeouts = Timeouts()
    state = StateHash("state", timeouts.state_expiry)
    writer = StateWriter(state, lambda **where: redis_server.client().connection_pool.make_connection())
    state._moved = f"MOVED 1 127.0.0.1:{redis_server.port}"
    for _ in range(2):
        state.set({"Trades": "{}"})
        assert writer.queries() == []
    assert caplog.messages == ["The Cluster does not take the state hash state: can't start new thread"]
    no_threads.undo()
    state.set({"Trades": "{}"})
    writer.queries()
    with redis_server.client() as client:
        eventually(lambda: client.hgetall("state") == {b"Trades": b"{}"})
        state.set({})
        writer.queries()
        eventually(lambda: not client.exists("state"))
    writer.stop()
