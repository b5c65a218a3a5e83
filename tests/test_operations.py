"""The operator's end: --check, --status, and what systemd is told. The real program, as a subprocess."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Subscriber, eventually

from sandbox.bybit import Bybit, Script

ROOT = Path(__file__).resolve().parent.parent
REPLICA = "FAILED  slave: publish to its master"


def environment(bybit_url, redis, **more):
    known = {"BYBIT_WS_URL": bybit_url, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis.port)}
    return os.environ | known | {"RECONNECT_DELAY": "0.1", "RECONNECT_DELAY_MAX": "0.2"} | more


def run(argument, bybit_url, redis, **more):
    command = [sys.executable, "main.py", argument]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment(bybit_url, redis, **more), timeout=50
    )


class Program:
    """The running collector; `stop()` ends it and checks that it ended well."""

    def __init__(self, bybit_url, redis, **more):
        self.process = subprocess.Popen(
            [sys.executable, "main.py"], cwd=ROOT, env=environment(bybit_url, redis, **more), stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0


def test_check_says_that_all_is_well(own_redis):
    """And publishes nothing while it looks."""
    with Subscriber(own_redis, "*") as subscriber, Bybit(rate=500) as bybit:
        ran = run("--check", bybit.url, own_redis)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[0].startswith(f"Redis at 127.0.0.1:{own_redis.port}  ok")
    streams = {line.split()[0]: line.split()[1] for line in lines[4:]}
    assert streams == dict.fromkeys(["OrderBook", "Trades", "Ticker", "Liquidations"], "ok")
    assert "FAILED" not in ran.stdout
    assert not subscriber.messages


def test_check_takes_quiet_trades_for_well_and_a_silent_order_book_for_broken(own_redis, tmp_path):
    script = tmp_path / "short.py"
    script.write_text(
        "import sys; sys.path.insert(0, '.'); import check, main; check.FIRST_MESSAGE_TIMEOUT = 1\n"
        "sys.exit(main.main(['--check']))"
    )
    with Bybit(rate=0, then=Script(end="silence")) as bybit:
        ran = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(bybit.url, own_redis),
        )
    found = {line.split()[0]: line for line in ran.stdout.splitlines()}
    assert ran.returncode == 1
    assert "subscribed; nothing has happened yet" in found["Trades"]
    assert "no message within 1 s" in found["OrderBook"]
    assert " ok " in found["Liquidations"]


def test_check_says_what_is_broken(own_redis):
    """A symbol that does not exist, a channel without the right to it, a replica."""
    admin = own_redis.client()
    admin.execute_command("ACL", "SETUSER", "some", "on", ">p", "+@all", "resetchannels", "&stream:bybit_t*")
    admin.replicaof("127.0.0.1", 1)
    with Bybit(rate=500) as bybit:
        more = {"SYMBOLS": "BTCUSDT,NOPE", "REDIS_USERNAME": "some", "REDIS_PASSWORD": "p"}
        ran = run("--check", bybit.url, own_redis, **more)
    assert ran.returncode == 1
    assert REPLICA in ran.stdout
    assert "FAILED  stream:bybit_orderbook, stream:bybit_liquidations, stream:bybit_status" in ran.stdout
    assert ran.stdout.count("FAILED  1 of 2 topics subscribed") == 4
    assert "refuses tickers.NOPE" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_check_ends_where_nothing_can_be_reached(own_redis):
    own_redis.stop()
    ran = run("--check", "ws://127.0.0.1:1", own_redis)
    assert ran.returncode == 1
    assert ran.stdout.count("FAILED") == 5
    assert ran.stderr == ""


def test_status_shows_the_running_collector(own_redis):
    ran = run("--status", "", own_redis)
    assert (ran.returncode, ran.stdout[:19]) == (1, "No collector runs: ")
    with Bybit(rate=500) as bybit, Program(bybit.url, own_redis) as program:
        eventually(lambda: all_have_messages(own_redis), 20)
        ran = run("--status", "", own_redis)
        assert ran.returncode == 0
        found = {line.split()[0]: line.split() for line in ran.stdout.splitlines()}
        assert list(found) == ["stream", "Liquidations", "OrderBook", "Ticker", "Trades"]
        assert found["OrderBook"][1:3] == ["up", "1"]
        assert int(found["OrderBook"][3].replace(",", "")) > 0
        assert found["OrderBook"][-2:] == ["1", "0"]
        program.stop()


def all_have_messages(redis):
    state = [json.loads(text) for text in redis.client().hgetall("stream:bybit_status").values()]
    return state and all(one["messages"] for one in state)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_ready_status_watchdog_and_stopping(own_redis, tmp_path, abstract):
    if abstract and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    address = f"@bybit-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if abstract else address)
        listener.settimeout(20)
        with Bybit(rate=100) as bybit, Program(bybit.url, own_redis, NOTIFY_SOCKET=address) as program:
            first = listener.recv(4096).decode().splitlines()
            assert first[0] == "READY=1"
            assert first[1].startswith("STATUS=4 of 4 streams up, ")
            second = listener.recv(4096).decode().splitlines()
            assert second[0].startswith("STATUS=4 of 4 streams up, ")
            assert second[1] == "WATCHDOG=1"
            program.stop()
            assert listener.recv(4096) == b"STOPPING=1"


def test_ready_waits_for_every_stream_but_not_for_a_refused_one(own_redis, tmp_path):
    address = str(tmp_path / "notify")
    scripts = [Script(), Script(), Script(handshake=503), Script()]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(20)
        more = {"NOTIFY_SOCKET": address, "SYMBOLS": "NOPE"}
        with Bybit(rate=100, script=scripts) as bybit, Program(bybit.url, own_redis, **more) as program:
            assert listener.recv(4096).decode().splitlines()[:1] == ["READY=1"]
            assert len(bybit.connections) == 5
            assert all(len(one.requests) for one in bybit.connections if one.closed is None)
            program.stop()
