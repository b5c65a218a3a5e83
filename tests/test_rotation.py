"""The password of Redis changes while the program runs: nothing ends, nothing is lost, and the log tells."""

import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import Subscriber, eventually
from programs import ROOT, by_topic, topic_of

from relay.redis.login import REMEDY
from sandbox.bybit import Bybit
from sandbox.redis import LocalRedis, free_port

USER = "collector"


class Secret:
    """The password of USER: known to Redis, and to the collector from its settings file or a file of its own."""

    def __init__(self, server, folder, way):
        self._client = server.client()
        self._way = way
        self.file, self.secret = folder / "collector.env", folder / "secret"
        self.rotate("first-secret")
        self.write("first-secret")

    def rotate(self, password):
        """Redis takes this password and no other. Connections stay."""
        self._client.execute_command("ACL", "SETUSER", USER, "on", "resetpass", f">{password}", "~*", "&*", "+@all")

    def write(self, password, *more):
        """The collector's file has this one."""
        self.secret.write_text(f"{password}\n")
        login = f"REDIS_PASSWORD={password}" if self._way == "signal" else f"REDIS_PASSWORD_FILE={self.secret}"
        new = self.file.with_suffix(".new")
        new.write_text("\n".join([f"REDIS_USERNAME={USER}", login, *more, ""]))
        new.replace(self.file)

    def cut(self):
        """Redis ends all connections of the collector. Returns how many."""
        return self._client.execute_command("CLIENT", "KILL", "USER", USER)


def topics_of(messages):
    """The payloads by topic, each once, in order."""
    payloads = [payload for channel, payload in messages if not channel.endswith(("_status", "_standby"))]
    return {topic: list(dict.fromkeys(each)) for topic, each in by_topic(payloads).items()}


def all_sent(bybit):
    found = defaultdict(list)
    for connection in bybit.connections:
        for text in connection.sent:
            found[topic_of(text)].append(text.encode())
    return found


@pytest.mark.parametrize(
    ("way", "more"), [("signal", {}), ("secret", {"LEADER_KEY": "lease"})], ids=["signal", "secret"]
)
def test_a_password_is_rotated_under_load_and_nothing_is_lost(program, own_redis, tmp_path, way, more):
    """In either order: the collector's file first, or Redis first. A mounted secret needs no signal. With a lease, its
    connections log in anew, too.
    """
    secret = Secret(own_redis, tmp_path, way)
    with Subscriber(own_redis, "stream:bybit_*") as subscriber, Bybit(rate=400, record=True) as bybit:
        collector = program(own_redis, bybit, ENV_FILE=secret.file, **more)

        def flows():
            before = len(subscriber.messages)
            return eventually(lambda: len(subscriber.messages) > before + 200, 20)

        def is_listened_to():
            return own_redis.client().pubsub_numsub("stream:bybit_request")[0][1] == 1

        flows()
        eventually(is_listened_to)
        # The file first.
        secret.rotate("second-secret")
        flows()
        if way == "signal":
            secret.write("second-secret", "REDIS_PORT=no")
            collector.process.send_signal(signal.SIGHUP)
            collector.wait_for_log("Settings not read again, all stays as it was: REDIS_PORT=no")
        secret.write("second-secret", "SYMBOLS=ETHUSDT", "LOG_LEVEL=DEBUG")
        if way == "signal":
            collector.process.send_signal(signal.SIGHUP)
            collector.wait_for_log("Settings read again; changed: REDIS_PASSWORD, LOG_LEVEL")
            collector.wait_for_log("Settings that need a restart have changed: SYMBOLS")
        assert secret.cut() >= 2
        collector.wait_for_log("is back after")
        flows()
        eventually(is_listened_to)
        # Redis first.
        secret.rotate("third-secret")
        secret.cut()
        collector.wait_for_log(REMEDY)
        held = sum(connection.count for connection in bybit.connections)
        bybit.wait(lambda: sum(connection.count for connection in bybit.connections) > held + 200, 20)
        secret.write("third-secret", "SYMBOLS=ETHUSDT", "LOG_LEVEL=DEBUG")
        if way == "signal":
            collector.process.send_signal(signal.SIGHUP)
        collector.wait_for_log("is back after", times=2)
        flows()
        eventually(is_listened_to)
        assert collector.stop()[0] == 0, collector.log
        eventually(lambda: subscriber.of("stream:bybit_trades"))
        sent, came = all_sent(bybit), topics_of(subscriber.messages)
    assert came.keys() == sent.keys()
    for topic, payloads in came.items():
        assert payloads == sent[topic][: len(payloads)], topic
    assert "-secret" not in collector.log
    assert "Traceback" not in collector.log


def test_make_run_ends_at_a_hangup_where_there_is_a_terminal(tmp_path):
    """`make run` hands it on to the collector, which has the same terminal."""
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    port = free_port()
    settings = {"REDIS_PORT": str(port), "BYBIT_WS_URL": f"ws://127.0.0.1:{free_port()}"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.redis", sys.executable, "main.py"],
            cwd=ROOT,
            env=os.environ | settings,
            stdin=theirs,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    os.close(theirs)
    try:
        eventually(lambda: "Publishing to Redis" in log.read_text(), 20)
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 0
        assert "Stopping on SIGHUP" in log.read_text()
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture
def socket_path():
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/redis.sock"


def test_a_redis_at_a_unix_socket(program, socket_path):
    """Also with a lease, whose holder Redis knows by its connection. An outage is one as with any other."""
    settings = {"REDIS_HOST": "localhost", "REDIS_URL": f"unix://:p%40ss@{socket_path}?db=1", "LEADER_KEY": "lease"}
    with LocalRedis(password="p@ss", config=[f"unixsocket {socket_path}"]) as server, Bybit(rate=400) as bybit:
        collector = program(bybit=bybit, **settings)
        with Subscriber(server, "stream:bybit_trades", reconnect=True) as subscriber:

            def flows():
                before = len(subscriber.messages)
                return eventually(lambda: len(subscriber.messages) > before + 20, 20)

            flows()
            status = eventually(lambda: (one := program(arguments=["--status"], **settings)).wait()[0] == 0 and one, 20)
            server.kill()
            Path(socket_path).unlink()
            collector.wait_for_log(f"Lost Redis at unix:{socket_path}: ")
            collector.wait_for_log(f"Redis at unix:{socket_path} is still unavailable: Error 2: No such file")
            server.start()
            flows()
            assert server.client(db=1).exists("lease")
        assert collector.stop()[0] == 0, collector.log
    assert f": to Redis at unix:{socket_path}\n" in collector.log
    assert "p@ss" not in collector.log + status.output
    assert "no effect" not in collector.log
