"""What the tests share: real Redis servers, a subscriber of its own, and waiting for facts instead of sleeping."""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

# No developer's settings, from the environment or .env, leak into a test.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conf.rules import NAMES

for name in (*NAMES, "ENV_FILE"):
    os.environ.pop(name, None)
os.environ["PYTHON_DOTENV_DISABLED"] = "1"
# A shell without job control starts background commands with SIGINT ignored; programs started here would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import redis  # noqa: E402
import trustme  # noqa: E402
from vocabulary import POLL, Collector, StandIn, eventually  # noqa: E402

from sandbox.redis import LocalRedis  # noqa: E402

__all__ = ["Subscriber", "eventually"]

THREADS_END = 3.0  # seconds that a test's threads have to end once the test is over


class Subscriber:
    """A redis-py subscriber on a thread of its own, subscribed when `with` returns.

    Args:
        server: a LocalRedis, or anything with its `client(**options)`.
        channels: names; one with a `*` is subscribed as a pattern.
        reconnect: come back by itself, trying every 50 ms; otherwise a lost connection ends it.

    `messages` grows by (channel as str, payload as bytes) in order of arrival; `subscribed` is set while it is. The
    events `alive`, which come every 5 s whatever happens, are in `beats` instead.
    """

    def __init__(self, server, *channels, reconnect=False):
        self.messages, self.beats = [], []
        self.subscribed = threading.Event()
        self._client = server.client(retry=None, socket_timeout=1)
        self._channels = channels
        self._reconnect = reconnect
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="subscriber", daemon=True)

    def __enter__(self):
        self._thread.start()
        if not self.subscribed.wait(10):
            self.__exit__()
            raise AssertionError(f"no subscription to {self._channels} within 10 s")
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(5)
        self._client.close()
        assert not self._thread.is_alive(), "the subscriber's thread did not end"

    def of(self, channel):
        """The payloads of one channel, in order of arrival."""
        return [payload for name, payload in list(self.messages) if name == channel]

    def _run(self):
        while not self._stop.is_set():
            try:
                self._listen()
            except (redis.ConnectionError, redis.TimeoutError):
                self.subscribed.clear()
                if not self._reconnect:
                    return
                self._stop.wait(0.05)

    def _listen(self):
        patterns = [name for name in self._channels if "*" in name]
        plain = [name for name in self._channels if "*" not in name]
        with self._client.pubsub() as pubsub:
            if plain:
                pubsub.subscribe(*plain)
            if patterns:
                pubsub.psubscribe(*patterns)
            confirmed = 0
            while not self._stop.is_set():
                message = pubsub.get_message(timeout=0.1)
                if message is None:
                    continue
                if message["type"] in ("message", "pmessage"):
                    is_beat = message["data"].startswith(b'{"event":"alive"')
                    (self.beats if is_beat else self.messages).append((message["channel"].decode(), message["data"]))
                else:
                    confirmed += 1
                    if confirmed == len(self._channels):
                        self.subscribed.set()


@pytest.fixture(autouse=True)
def _no_threads_left():
    """Fails a test that leaves a thread behind. First in, so last out: after all other fixtures of the test."""
    before = set(threading.enumerate())

    def left():
        return [t for t in threading.enumerate() if t not in before and not t.name.startswith("pytest_timeout")]

    yield
    deadline = time.monotonic() + THREADS_END
    while left() and time.monotonic() < deadline:
        time.sleep(POLL)
    assert not left(), "the test left threads behind"


@pytest.fixture(scope="session")
def redis_server():
    """One Redis for all tests that only publish and subscribe: leave it running and unchanged."""
    with LocalRedis() as server:
        yield server


@pytest.fixture
def own_redis():
    """A Redis for one test, to be killed, paused and started again."""
    with LocalRedis() as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority of our own, and its certificate in a file."""
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return ca, str(path)


@pytest.fixture
def certificate(authority, tmp_path, monkeypatch):
    """Certificate and key file of a server on this machine, trusted by websocket-client for the length of a test."""
    ca, path = authority
    server = ca.issue_cert("localhost", "127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    monkeypatch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", path)
    return str(tmp_path / "server.pem"), str(tmp_path / "server.pem")


@pytest.fixture
def program(tmp_path_factory):
    """Starts programs with these settings beside those of every test; kills what is left of them.

    start(redis, bybit, script, arguments, **settings): a LocalRedis and a Bybit to use, or None; main.py, or the text
    of another script; arguments of its command line; environment variables. Returns a Program.
    """
    from programs import Program  # not above: programs.py imports this file

    with contextlib.ExitStack() as started:

        def start(redis=None, bybit=None, script="main.py", arguments=(), **settings):
            settings = {"REDIS_HOST": "127.0.0.1", "RECONNECT_DELAY": 0.2, "RECONNECT_DELAY_MAX": 1} | settings
            if redis:
                settings["REDIS_PORT"] = redis.port
            if redis and redis.password:
                settings["REDIS_PASSWORD"] = redis.password
            if bybit:
                settings["BYBIT_WS_URL"] = bybit.url
            directory = tmp_path_factory.mktemp("program")
            if script != "main.py":
                (directory / "script.py").write_text(script, encoding="utf-8")
                script = directory / "script.py"
            return started.enter_context(Program(settings, directory, script, arguments))

        yield start


@pytest.fixture
def exchange():
    """A stand-in for Bybit that sends only what a test lets it send."""
    with StandIn(rate=0, record=True) as stand_in:
        yield stand_in


@pytest.fixture
def tls_exchange(certificate):
    """The same over TLS, with a certificate that is trusted."""
    with StandIn(rate=0, record=True, tls=certificate) as stand_in:
        yield stand_in


@pytest.fixture
def lends():
    """Whether the connections of `collector` are lent to the Reader. @both_ways runs a test with both."""
    return False


@pytest.fixture
def collector(exchange, caplog, lends):
    """Streams of `exchange`, none yet. They are stopped at the end."""
    caplog.set_level("INFO")
    made = Collector(exchange, caplog, lends)
    yield made
    made.stops()
