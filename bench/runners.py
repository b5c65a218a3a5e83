"""The programs that are compared, how each is installed and started.

All get the same four connections, one for each channel with the same symbols (or several times four), and the same
environment; the peers of other makers are installed from their registries, in the versions named here.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import frames
from bench.proc import OUT, ROOT, cpu, memory, start

HERE = Path(__file__).resolve().parent
STOP_TIMEOUT = 8.0  # seconds between SIGTERM and SIGKILL
INSTALL_TIMEOUT = 300.0  # seconds for one peer
GO_LIBRARIES = "golang-github-gorilla-websocket-dev golang-github-gomodule-redigo-dev"


class Skipped(Exception):
    """A runner is not available here; the text has the reason."""


@dataclass(frozen=True)
class Runner:
    """A program under test.

    Attributes:
        command: makes the command line for a number of groups; installs what is missing. Raises Skipped.
        about: what it is, for the tables.
        unsupported: channels it cannot subscribe to; their frames are left out.
    """

    name: str
    about: str
    command: Callable[[int], list[str]]
    unsupported: tuple[str, ...] = ()
    packages: str = ""  # the list of what it installs, in peers/

    def versions(self) -> dict[str, str]:
        """The versions of what it installs, from that list."""
        if not self.packages:
            return {}
        text = (HERE / "peers" / self.packages).read_text()
        if self.packages.endswith(".json"):
            node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()
            return {"Node": node, **json.loads(text)["dependencies"]}
        if self.packages.endswith(".go"):
            said = subprocess.run(["go", "version"], capture_output=True, text=True, check=False).stdout
            return {"Go": said.split()[2].removeprefix("go")}
        return dict(line.split("==") for line in text.splitlines() if not line.startswith("redis"))


@dataclass
class Process:
    """A running runner: its process tree's cost, from /proc."""

    runner: Runner
    groups: int
    url: str
    certificate: Path
    redis_port: int
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        symbols = frames.symbols(self.groups)
        settings = {
            # The collector's own settings; the others read BENCH_URL and BENCH_GROUPS.
            "BYBIT_WS_URL": self.url,
            "SYMBOLS": ",".join(symbols[0]),
            "CHANNEL_TYPE": "linear",
            "STALL_TIMEOUT": "0",
            "LOG_LEVEL": "INFO",
            "PYTHON_DOTENV_DISABLED": "1",
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.redis_port),
            "BENCH_URL": self.url,
            "BENCH_GROUPS": json.dumps(symbols),
            "WEBSOCKET_CLIENT_CA_BUNDLE": str(self.certificate),
            "SSL_CERT_FILE": str(self.certificate),
            "NODE_EXTRA_CA_CERTS": str(self.certificate),
        }
        self.process = start(self.runner.command(self.groups), settings, f"{self.runner.name}.log")

    def tree(self) -> list[int]:
        """The process ids of the runner and all its descendants."""
        parents: dict[int, int] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text()
                except OSError:
                    continue  # ended meanwhile
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for parent in found:
            found += [child for child, its in parents.items() if its == parent]
        return found

    def cpu(self) -> float:
        """Seconds of CPU time, user and system, that the tree's living processes have used."""
        return sum(map(cpu, self.tree()))

    def memory(self) -> float:
        """Peak resident memory of the tree's processes so far, in MB."""
        total = 0.0
        for pid in self.tree():
            try:
                total += memory(pid, "VmHWM")
            except OSError:
                continue  # ended meanwhile
        return total

    @property
    def ended(self) -> int | None:
        """Its exit code when it has ended by itself."""
        return self.process.poll()

    def stop(self) -> int:
        """End it, with force when it takes too long; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # what it may have left behind
        except ProcessLookupError:
            pass
        return self.process.wait()


def ours(groups: int) -> list[str]:
    if not (ROOT / "main.py").exists():
        raise Skipped("main.py is not there")
    return [sys.executable, "main.py"] if groups == 1 else [sys.executable, "-m", "bench.ours"]


def python(module: str) -> Callable[[int], list[str]]:
    return lambda groups: [sys.executable, "-m", module]


def install(folder: Path, packages: str, steps: Callable[[], list[list[str]]]) -> None:
    """Carry out `steps` in `folder` unless that was done for this list of packages. Raises Skipped."""
    listed = HERE / "peers" / packages
    done = folder / f"installed-{packages}"
    if done.exists() and done.read_text() == listed.read_text():
        return
    commands = steps()
    print(f"Installing the packages of {listed.relative_to(ROOT)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(listed, folder)
    for command in commands:
        tool = Path(command[0]).name
        try:
            made = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            raise Skipped(f"{tool} took more than {INSTALL_TIMEOUT:.0f} s to install it") from None
        if made.returncode:
            lines = made.stderr.strip().splitlines() or ["it printed nothing"]
            raise Skipped(f"{tool} could not install it: {lines[-1][:200]}")
    shutil.copy(listed, done)


def on_node(script: str, packages: str) -> Callable[[int], list[str]]:
    """A script whose packages npm installs."""

    def command(_groups: int) -> list[str]:
        node, npm = shutil.which("node"), shutil.which("npm")
        if not node or not npm:
            raise Skipped("it needs node and npm on PATH")
        folder = OUT / "node"
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        install(folder, packages, lambda: [[npm, "install", *options]])
        return [node, str(HERE / "peers" / script), str(folder)]

    return command


def in_venv(script: str, packages: str, newest: int) -> Callable[[int], list[str]]:
    """A script with a virtual environment of its own, of the first Python found from 3.`newest` down to 3.11."""

    def command(_groups: int) -> list[str]:
        folder = OUT / packages.removeprefix("requirements-").removesuffix(".txt")
        python = str(folder / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-r", packages]
        install(folder, packages, lambda: [[find_python(newest), "-m", "venv", "venv"], pip])
        return [python, str(HERE / "peers" / script)]

    return command


def compiled(source: str) -> Callable[[int], list[str]]:
    """A program in Go, compiled with the libraries of Debian's packages."""

    def command(_groups: int) -> list[str]:
        program = OUT / source.removesuffix(".go")
        go = shutil.which("go")
        if not go:
            raise Skipped("it needs go: apt-get install golang-go " + GO_LIBRARIES)
        OUT.mkdir(exist_ok=True)
        build = [go, "build", "-o", str(program), str(HERE / "peers" / source)]
        places = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(OUT / "go-cache")}
        made = subprocess.run(build, env=os.environ | places, capture_output=True, text=True, check=False)
        if made.returncode:
            reason = made.stderr.strip().splitlines()[-1][:200]
            raise Skipped(f"go could not compile it ({reason}); apt-get install {GO_LIBRARIES}?")
        return [str(program)]

    return command


def find_python(newest: int) -> str:
    for minor in range(newest, 10, -1):
        name = f"python3.{minor}"
        for path in (shutil.which(name), *sorted(Path.home().glob(f".pyenv/versions/*/bin/{name}"))):
            # A pyenv shim is on PATH for versions that are not chosen, and fails.
            if path and not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
                return str(path)
    raise Skipped(f"it needs a Python from 3.11 to 3.{newest}")


RUNNERS = {
    runner.name: runner
    for runner in (
        Runner("ours", "this collector, `python main.py`", ours),
        Runner(
            "naive",
            "pybit as its README shows, `json.dumps` and `redis.publish` in the callback; gets merged books",
            python("bench.naive"),
        ),
        Runner(
            "bybit-api",
            "bybit-api and ioredis on Node, `JSON.stringify` of each message",
            on_node("bybit_api.js", "package.json"),
            packages="package.json",
        ),
        Runner(
            "cryptofeed",
            "cryptofeed's callbacks and redis.asyncio, the raw message; without liquidations",
            in_venv("cryptofeed_redis.py", "requirements-cryptofeed.txt", 13),
            unsupported=("liquidations",),
            packages="requirements-cryptofeed.txt",
        ),
        Runner(
            "ccxt",
            "ccxt's `watch*` and redis.asyncio; publishes the state when asked, which skips messages when it is busy",
            in_venv("ccxt_pro.py", "requirements-ccxt.txt", 13),
            packages="requirements-ccxt.txt",
        ),
        Runner(
            "go",
            "a program in Go with gorilla/websocket and redigo; one goroutine pipelines all that waits",
            compiled("relay.go"),
            packages="relay.go",
        ),
        Runner("limit", "a bare loop in Python from Python's own TLS sockets to PUBLISH", python("bench.limit")),
    )
}
