"""Programs of the demo as processes of their own, and what collectors that share a LEADER_KEY say of themselves."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sandbox.consumer import PREFIX
from sandbox.redis import HOST, LocalRedis, end_with_parent

ROOT = Path(__file__).resolve().parent.parent
LEADER_KEY = f"{PREFIX}_leader"
KEPT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR")  # of the environment; a developer's settings are not for the demo
LOG = re.compile(r"\S+ (\d\d:\d\d:\d\d)\S* \w+ \[(.*?)\] (.*)")  # date, time, level, thread, text
STOP_TIMEOUT = 8.0  # seconds between SIGTERM and SIGKILL; the collector gives itself 5

Instances = Mapping[str, Mapping[str, Any]]


def short(line: str) -> str:
    """A line of the collector's log without date and level."""
    match = LOG.fullmatch(line)
    return "{} {}: {}".format(*match.groups()) if match else line


def follow(output: IO[str], lines: list[str]) -> None:
    """Runs on a thread of its own until the process that writes to `output` ends."""
    with output:
        for text in output:
            lines.append(short(text.rstrip()))


@contextmanager
def child(lines: list[str], *command: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """`python COMMAND` with these settings and no others; its output is appended to `lines`."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={name: os.environ[name] for name in KEPT if name in os.environ} | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl+C is for the demo, which ends the others in order
        preexec_fn=end_with_parent,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=follow, args=(process.stdout, lines), name="reader")
    reader.start()
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()


def settings_for(server: LocalRedis, url: str, symbols: str) -> dict[str, str]:
    """The settings of a collector between this exchange and this Redis."""
    settings = {"BYBIT_WS_URL": url, "SYMBOLS": symbols, "PYTHON_DOTENV_DISABLED": "1"}
    return settings | {"REDIS_HOST": HOST, "REDIS_PORT": str(server.port)}


def instances(server: LocalRedis) -> Instances:
    """The registry: by instance, what it says of itself. Raises redis.RedisError."""
    with server.client(socket_timeout=1) as client:
        found: Mapping[bytes, bytes] = client.hgetall(f"{LEADER_KEY}_instances")
    return {name.decode(): json.loads(text) for name, text in found.items()}


def pair_of(found: Instances) -> tuple[str, str] | None:
    """The one that leads and the one that could; None if there is not just one of each."""
    leaders = [name for name, each in found.items() if each["role"] == "leader"]
    ready = [name for name, each in found.items() if each["role"] == "standby" and each["ready"]]
    return (leaders[0], ready[0]) if len(leaders) == len(ready) == 1 else None
