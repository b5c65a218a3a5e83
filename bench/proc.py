"""A process under test: how it is started, and what it costs, from /proc."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox.redis import end_with_parent

ROOT = Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")
OUT = ROOT / "bench" / "out"  # logs and installed packages; not in the repository


def start(command: Sequence[str], settings: Mapping[str, str], log: str) -> subprocess.Popen[bytes]:
    """Starts it with these settings, without the proxies of the environment. log: name of a file in OUT, added to."""
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    OUT.mkdir(exist_ok=True)
    with (OUT / log).open("ab") as lines:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=plain | settings,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def cpu(pid: int) -> float:
    """Seconds of CPU time, user and system, that the process has used.

    From schedstat, in nanoseconds; stat counts the same in hundredths of a second, too coarse for a quiet rate, but
    also what threads used that have ended since.
    """
    total = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(thread.read_text().split()[0])
        except OSError:
            continue  # ended meanwhile
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return total / 1e9  # ended meanwhile
    return max(total / 1e9, (int(fields[11]) + int(fields[12])) / TICK)


def memory(pid: int, what: str = "VmRSS") -> float:
    """Resident memory in MiB; what: VmRSS, now, or VmHWM, the peak since forget_peak(). OSError: it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def forget_peak(pid: int) -> None:
    """The peak of the memory counts from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
