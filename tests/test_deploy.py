"""What deploy/ ships, used as an operator would: installed, verified, and run where the machine has the tools."""

import getpass
import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import eventually
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conf.rules import load
from sandbox.bybit import Bybit

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNITS = ("bybit-collector.service", "bybit-collector@.service")
PROGRAM = {
    *ROOT.glob("*.py"),
    *(path for name in ("callbacks", "conf", "ops", "relay") for path in (ROOT / name).rglob("*.py")),
}
EXPOSURE = 20  # tenths of systemd's points, from 0, safe, to 100
OWN_MEMORY = 128  # MiB that a collector takes beside its full buffer, generously
TIMEOUT = 50.0  # seconds that a command may take
IN_CI = bool(os.environ.get("CI"))


# What a make around this one hands on, and what may be set in the environment and means something to install.mk.
MAKES = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "DESTDIR", "PREFIX", "SYSCONFDIR", "UNITDIR", "PYTHON", "HIDDEN")


def run(*command, check=True, env=None, **options):
    """Runs a command of the operator's; returns its result with the output as text, stdout and stderr in one."""
    result = subprocess.run(
        list(map(str, command)),
        env={name: value for name, value in os.environ.items() if name not in MAKES} | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=options.pop("timeout", TIMEOUT),
        **options,
    )
    assert not check or result.returncode == 0, result.stdout
    return result


def tool(name, reason=""):
    """The path of a program, from beside this Python or PATH; without it the test is skipped."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    return found or pytest.skip(reason or f"{name} is not on this machine")


def make(target, check=True, **variables):
    return run(
        tool("make"),
        "-f",
        DEPLOY / "install.mk",
        target,
        *(f"{name}={value}" for name, value in variables.items()),
        check=check,
        cwd=ROOT,
    )


def refuses_a_wrong_setting(python, home):
    """Whether the program in `home` starts far enough to refuse a setting."""
    result = run(
        python,
        "main.py",
        check=False,
        cwd=home,
        env={"SYMBOLS": "a b", "PYTHON_DOTENV_DISABLED": "1", "PYTHONPATH": ""},
    )
    return result.returncode == 2 and result.stdout.startswith("Cannot start: SYMBOLS=a b: expected")


def files_in(folder):
    return {
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture
def staged(tmp_path):
    """What `make install` puts into a DESTDIR."""
    make("install", DESTDIR=tmp_path)
    return tmp_path


def test_make_install_puts_the_program_the_units_and_the_settings_into_a_destdir(staged):
    """All that is needed and nothing else, ready to run; the settings are for root and the collector only."""
    home, etc = staged / "opt/bybit-collector", staged / "etc/bybit-collector"
    papers = {Path(name) for name in ("requirements.txt", "constraints.txt", "requirements.lock", "LICENSE")}
    there = {path for path in papers if (ROOT / path).exists()}
    assert files_in(home) == {path.relative_to(ROOT) for path in PROGRAM} | there
    assert files_in(staged / "etc/systemd/system") == {Path(unit) for unit in UNITS}
    for unit in UNITS:
        assert (staged / "etc/systemd/system" / unit).read_bytes() == (DEPLOY / unit).read_bytes()
    settings = etc / "collector.env"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o640
    assert stat.S_IMODE(etc.stat().st_mode) == 0o750
    for path in home.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path
    assert refuses_a_wrong_setting(sys.executable, home)


def test_the_settings_that_are_installed_mean_the_same_to_systemd_and_to_the_program(staged):
    """No quotes, escapes or comments behind values, on which the two would differ; the names are .env.example's."""
    lines = (staged / "etc/bybit-collector/collector.env").read_text(encoding="utf-8").splitlines()
    example = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    assert settings == [line for line in example if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Z_]+=[^\s\"'\\#$]*", line) for line in settings)
    assert '"double quotes"' in lines[0]


def test_make_install_again_upgrades_and_keeps_what_is_the_users(staged):
    """A module that is gone goes; the settings stay; the program that was there and its main.py are kept."""
    home, settings = staged / "opt/bybit-collector", staged / "etc/bybit-collector/collector.env"
    before = files_in(staged)
    settings.write_text("REDIS_PASSWORD=secret\n", encoding="utf-8")
    (home / "relay/dropped.py").write_text("", encoding="utf-8")
    (home / "main.py").write_text("# STREAMS of my own\n", encoding="utf-8")
    said = make("install", DESTDIR=staged).stdout
    [backup] = home.glob("backup-*")
    kept = {path.relative_to(home) for path in map(staged.joinpath, before) if path.is_relative_to(home)}
    assert files_in(backup) == kept | {Path("relay/dropped.py")}
    shutil.rmtree(backup)
    assert files_in(staged) == before | {Path("opt/bybit-collector/main.py.old")}
    assert settings.read_text(encoding="utf-8") == "REDIS_PASSWORD=secret\n"
    assert (home / "main.py.old").read_text(encoding="utf-8") == "# STREAMS of my own\n"
    assert "main.py.old" in said
    assert f"is now in {backup}\n" in said
    assert "collector.env is left as it is" in said


def test_no_upgrade_loses_code_of_the_users_own(staged):
    """STREAMS and a channel, over several upgrades; and an installation that has not changed makes no backup."""
    home = staged / "opt/bybit-collector"
    assert "backup" not in make("install", DESTDIR=staged).stdout
    own = {
        "main.py": "# STREAMS\n",
        "mine.py": "",
        "callbacks/kline.py": "# a channel\n",
        "relay/kinds.py": "# KLINE\n",
    }
    for name, text in own.items():
        (home / name).write_text(text, encoding="utf-8")
    make("install", DESTDIR=staged)
    [first] = home.glob("backup-*")
    (home / "main.py").write_text("# the next version\n", encoding="utf-8")
    make("install", DESTDIR=staged)
    assert {name: (first / name).read_text(encoding="utf-8") for name in own} == own
    [second] = set(home.glob("backup-*")) - {first}
    assert (second / "main.py").read_text(encoding="utf-8") == "# the next version\n"
    assert (second / "main.py.old").read_text(encoding="utf-8") == "# STREAMS\n"
    assert not (home / "callbacks/kline.py").exists()
    assert not (home / "mine.py").exists()
    (home / "requirements.txt").write_text("mine\n", encoding="utf-8")
    make("install", DESTDIR=staged)
    assert len(list(home.glob("backup-*"))) == 3


def test_make_uninstall_leaves_the_settings_and_what_it_does_not_know(staged):
    """It says both. A folder that is not the collector's is not touched at all."""
    home, settings = staged / "opt/bybit-collector", Path("etc/bybit-collector/collector.env")
    (home / "README.md").write_text("of an earlier version", encoding="utf-8")
    (home / "notes.txt").write_text("mine", encoding="utf-8")
    said = make("uninstall", DESTDIR=staged).stdout
    assert files_in(staged) == {settings, Path("opt/bybit-collector/notes.txt")}
    assert "settings in /etc/bybit-collector" in said
    assert "did not put there" in said
    foreign = staged / "foreign"
    (foreign / "conf").mkdir(parents=True)
    (foreign / "conf/precious").write_text("", encoding="utf-8")
    make("uninstall", DESTDIR=staged, PREFIX="/foreign")
    make("install", DESTDIR=staged, PREFIX="/foreign")
    assert (foreign / "conf/precious").exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PREFIX": "opt/bybit"}, "expected an absolute path"),
        ({"PREFIX": "/opt/by bit"}, "letters, digits"),
        ({"UNITDIR": "/"}, "expected an absolute path"),
        ({"SERVICE_USER": "a|b"}, "letters, digits"),
    ],
)
def test_make_install_refuses_what_would_not_work(tmp_path, variables, words):
    result = make("install", check=False, DESTDIR=tmp_path, **variables)
    assert result.returncode != 0
    assert words in result.stdout
    assert not files_in(tmp_path)


@pytest.fixture
def installing(tmp_path):
    """Variables of a real `make install` into folders of the test, and the file in which its systemctl takes notes."""
    if os.geteuid() != 0:
        pytest.skip("make install needs root")
    notes = tmp_path / "notes"
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {notes}\n', encoding="utf-8")
    systemctl.chmod(0o755)
    variables = {name: tmp_path / name for name in ("PREFIX", "SYSCONFDIR", "UNITDIR")}
    variables |= {"SERVICE_USER": getpass.getuser(), "SYSTEMCTL": systemctl, "PYTHON": sys.executable}
    return variables, notes


def test_make_install_refuses_a_python_that_the_service_cannot_see(installing):
    variables, _ = installing
    hidden = os.path.realpath(sys.executable).rsplit("/", 2)[0]
    result = make("install", check=False, **variables, HIDDEN=hidden)
    assert result.returncode != 0
    assert f"the service cannot see {hidden}" in result.stdout
    assert not variables["PREFIX"].exists()


def test_make_install_names_no_systemctl_where_there_is_none(installing):
    variables, _ = installing
    fake = variables["PREFIX"] / ".venv/bin/python"  # as if the packages were there already
    fake.parent.mkdir(parents=True)
    fake.write_text(f'#!/bin/sh\n[ "$1" = -m ] || exec {sys.executable} "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    variables["SYSCONFDIR"].mkdir()
    modes = {"a.env": 0o600, "b.env": 0o640, "c.env": 0o604, "notes": 0o600}
    for name, mode in modes.items():
        (variables["SYSCONFDIR"] / name).touch(mode)
    said = make("install", **variables | {"SYSTEMCTL": ""}, HIDDEN="/nowhere").stdout
    assert "systemctl" not in said
    assert "no systemd here" in said
    now = {name: stat.S_IMODE((variables["SYSCONFDIR"] / name).stat().st_mode) for name in modes}
    assert now == modes | {"a.env": 0o640}, "the collector may read what systemd read for it"


def test_make_install_makes_what_the_units_start(installing):
    """A virtual environment of exactly the locked packages, in which the program starts; and all that goes again."""
    variables, notes = installing
    home = variables["PREFIX"]
    result = make("install", check=False, **variables, HIDDEN="/nowhere")
    if result.returncode and not IN_CI and re.search("No matching distribution|NewConnectionError", result.stdout):
        pytest.skip("no package index can be reached")
    assert result.returncode == 0, result.stdout
    for words in (f"nano {variables['SYSCONFDIR']}/collector.env", "systemctl enable --now", "journalctl -u"):
        assert words in result.stdout

    for unit in UNITS:
        text = (variables["UNITDIR"] / unit).read_text(encoding="utf-8")
        assert f"ExecStart={home}/.venv/bin/python {home}/main.py\n" in text
        assert f"\nUser={getpass.getuser()}\n" in text
        assert f"EnvironmentFile={variables['SYSCONFDIR']}/" in text
        assert "/opt/" not in text
        assert "/etc/" not in text
    python = home / ".venv/bin/python"
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check").stdout)
    found = {canonicalize_name(one["name"]): one["version"] for one in listed}
    wanted = {
        name: requirement.specifier
        for name, requirement in locked().items()
        if requirement.marker is None or requirement.marker.evaluate()
    }
    assert found.keys() - {"pip", "setuptools"} == wanted.keys()
    assert all(found[name] in specifier for name, specifier in wanted.items())
    assert refuses_a_wrong_setting(python, home)
    assert (home / "__pycache__").exists(), "the service may not write, so its bytecode must be there"

    make("install", **variables, HIDDEN="/nowhere")
    make("uninstall", **variables)
    assert not home.exists()
    assert files_in(variables["SYSCONFDIR"]) == {Path("collector.env")}
    assert not files_in(variables["UNITDIR"])
    assert notes.read_text(encoding="utf-8").splitlines() == [
        "daemon-reload",
        "daemon-reload",
        "stop bybit-collector.service bybit-collector@*.service",
        "disable bybit-collector.service bybit-collector@.service",
        "reset-failed bybit-collector*.service",
        "daemon-reload",
    ]


def test_make_install_can_be_had_from_the_makefile():
    for target, words in (("install", "install.sh install"), ("uninstall", "install.sh uninstall"), ("run", "main.py")):
        assert words in run(tool("make"), "--dry-run", target, cwd=ROOT).stdout


def test_make_alone_prints_the_targets():
    printed = run(tool("make"), cwd=ROOT).stdout
    assert printed == run(tool("make"), "help", cwd=ROOT).stdout
    for target in ("run", "demo", "sandbox", "test", "bench", "soak", "install", "uninstall", "lock", "audit", "clean"):
        assert re.search(rf"^make {target}  ", printed, re.MULTILINE)
    assert max(map(len, printed.splitlines())) <= 100


@pytest.fixture
def checkout(tmp_path):
    """A folder with as much of the repository as make looks at, without a virtual environment."""
    for name in ("Makefile", "deploy/install.mk", "requirements.txt", "constraints.txt", "sandbox/requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def python_that(path, script):
    """A program of this path in place of a Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("python", ["old-python", "no-such-python"])
def test_a_python_that_is_too_old_is_one_sentence_and_leaves_no_virtual_environment(checkout, python):
    old = python_that(checkout / "old-python", "exit 1")  # as one before 3.11 answers when asked for its version
    named = str(old) if python == "old-python" else python
    made = run(tool("make"), "--no-print-directory", "demo", f"PYTHON={named}", check=False, cwd=checkout)
    assert made.returncode == 2
    said = made.stdout.splitlines()
    assert said[0].startswith(f"Python 3.11 or newer is needed; {named} is not: apt-get install")
    assert [line.startswith("make: ***") for line in said] == [False, True]
    assert not (checkout / ".venv").exists()


def test_without_any_python_that_is_new_enough_make_says_so(checkout):
    """None is named, and those in PATH are too old."""
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        python_that(checkout / "bin" / name, "exit 1")
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    made = run(tool("make"), "--no-print-directory", "demo", check=False, cwd=checkout, env={"PATH": path})
    assert made.stdout.startswith("Python 3.11 or newer is needed: apt-get install python3 python3-venv")
    assert not (checkout / ".venv").exists()


def test_the_collector_itself_says_that_a_python_is_too_old():
    """Who starts it without make."""
    start = "import runpy, sys; sys.version_info = (3, 10, 13); runpy.run_path('main.py', run_name='__main__')"
    ended = run(sys.executable, "-c", start, check=False, cwd=ROOT)
    assert ended.returncode == 2
    assert re.fullmatch(r"Cannot start: Python 3.11 or newer is needed, this is \S+\n", ended.stdout)


def test_who_names_another_python_gets_a_virtual_environment_of_it(checkout):
    """Also where there is one. Who names the same one, or none, keeps what there is."""
    python_that(checkout / ".venv/bin/python", "echo /usr 3 11 2")
    same = python_that(checkout / "same", "echo /usr 3 11 2")
    other = python_that(checkout / "other", "echo /usr 3 13 0")
    for stamp in ("python.stamp", "run.stamp"):
        (checkout / ".venv" / stamp).touch()

    def made(*arguments, **env):
        return run(tool("make"), "--dry-run", "run", *arguments, cwd=checkout, env=env).stdout

    assert f"{other} -m venv --clear .venv" in made(f"PYTHON={other}")
    assert f"{other} -m venv --clear .venv" in made(PYTHON=str(other))
    for unchanged in (made(f"PYTHON={same}"), made()):
        assert "-m venv" not in unchanged
        assert "main.py" in unchanged


def test_the_install_script_is_clean():
    scripts = [DEPLOY / "install.sh", DEPLOY / "rolling-restart.sh"]
    for script in scripts:
        run("sh", "-n", script)
    run(tool("shellcheck"), *scripts)


def unit_lines(unit):
    return [line for line in (DEPLOY / unit).read_text(encoding="utf-8").splitlines() if line and line[0] not in "#;"]


def test_the_template_differs_in_nothing_but_the_settings_file():
    single, template = map(unit_lines, UNITS)
    template.remove("Environment=INSTANCE=%i")  # a name for those that share a LEADER_KEY
    assert len(single) == len(template)
    differing = [(one, other) for one, other in zip(single, template, strict=True) if one != other]
    names = [one.split("=")[0] for one, _ in differing]
    assert names == ["Description", "AssertPathExists", "EnvironmentFile", "Environment"]
    assert [other for one, other in differing[1:]] == [
        one.replace("/collector.env", "/%i.env") for one, _ in differing[1:]
    ]


@pytest.mark.parametrize("unit", UNITS)
def test_the_file_of_a_unit_is_the_one_that_a_reload_reads_again(unit):
    lines = unit_lines(unit)
    [file] = [line.removeprefix("EnvironmentFile=") for line in lines if line.startswith("EnvironmentFile=")]
    assert f"Environment=ENV_FILE={file}" in lines
    assert "ExecReload=/bin/kill -HUP $MAINPID" in lines


def test_the_units_leave_room_for_the_buffer():
    """Memory for the default of REDIS_BUFFER_MB and the program."""
    default = re.search(r"^REDIS_BUFFER_MB=(\d+)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.M)
    for text in (*map("\n".join, map(unit_lines, UNITS)), (DEPLOY / "compose.yaml").read_text(encoding="utf-8")):
        limit = re.search(r"^\s*(?:MemoryMax=|mem_limit: )(\d+)m$", text, re.M | re.I)
        assert int(limit[1]) >= int(default[1]) + OWN_MEMORY


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_to_complain_of(tmp_path, unit):
    analyze = tool("systemd-analyze")
    text = (DEPLOY / unit).read_text(encoding="utf-8").replace("/opt/bybit-collector/.venv/bin/python", sys.executable)
    (tmp_path / unit).write_text(text, encoding="utf-8")
    result = run(analyze, "verify", "--man=no", tmp_path / unit, check=False)
    if result.returncode and "bybit-collector" not in result.stdout:
        pytest.skip(f"systemd-analyze does not work here: {result.stdout.strip()}")
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_the_units_are_closed(tmp_path, unit):
    """systemd's own judgement of how much the service is exposed: 2.0 of 10 at most."""
    analyze = tool("systemd-analyze")
    if "--offline" not in run(analyze, "--help").stdout:
        pytest.skip("this systemd-analyze cannot judge a file")
    shutil.copy(DEPLOY / unit, tmp_path)
    result = run(
        analyze, "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", tmp_path / unit, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "Overall exposure level" in result.stdout


@pytest.fixture
def fleet(tmp_path):
    """deploy/rolling-restart.sh with a systemctl of the test's: run(*names) -> exit code, output; states; notes."""
    states = tmp_path / "states"
    states.mkdir()
    notes = tmp_path / "notes"
    notes.touch()
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        f"""#!/bin/sh
case $1 in
show) cat {states}/${{5#bybit-collector@}} ;;
restart) echo "$2" >>{notes}; cp {states}/after {states}/${{2#bybit-collector@}} ;;
esac
""",
        encoding="utf-8",
    )
    systemctl.chmod(0o755)
    script = DEPLOY / "rolling-restart.sh"

    class Fleet:
        def has(self, **texts):
            for name, text in texts.items():
                path = states / (name if name == "after" else f"{name}.service")
                path.write_text(text + "\n", encoding="utf-8")

        def run(self, *names):
            result = run(
                script, *names, check=False, env={"SYSTEMCTL": str(systemctl), "TIMEOUT": "2", "PAUSE": "0.05"}
            )
            return result.returncode, result.stdout

        def restarted(self):
            return notes.read_text(encoding="utf-8").split()

    return Fleet()


READY = "standby, ready: 4 of 4 streams up, 0 messages, 0 buffered for Redis"


def test_a_rolling_restart_goes_from_one_to_the_next(fleet):
    fleet.has(a=READY.replace("standby", "leader"), b=READY, after=READY)
    code, output = fleet.run("a", "b")
    assert code == 0, output
    assert fleet.restarted() == ["bybit-collector@a.service", "bybit-collector@b.service"]
    assert f"bybit-collector@b: {READY}" in output


@pytest.mark.parametrize("text", ["standby, not ready: 3 of 4 streams up", "4 of 4 streams up, 0 messages", ""])
def test_a_rolling_restart_touches_nothing_while_another_could_not_take_over(fleet, text):
    fleet.has(a=READY, b=text, after=READY)
    code, output = fleet.run("a", "b")
    assert code == 1
    assert f"bybit-collector@b is not ready after 2 s: {text}" in output
    assert fleet.restarted() == []


def test_a_rolling_restart_stops_at_one_that_does_not_come_back(fleet):
    fleet.has(a=READY, b=READY, after="standby, not ready: 0 of 4 streams up")
    code, output = fleet.run("a", "b")
    assert code == 1
    assert "bybit-collector@a is not ready" in output
    assert fleet.restarted() == ["bybit-collector@a.service"]


def test_a_rolling_restart_of_one_is_refused(fleet):
    code, output = fleet.run("a")
    assert (code, output.startswith("Usage: ")) == (1, True)


class Supervisor:
    """supervisord with deploy/supervisor.conf, the paths and the user of which are the test's."""

    def __init__(self, home, folder):
        pytest.importorskip("supervisor", reason="supervisor is not installed")
        self.log, said = folder / "supervisord.log", folder / "collector.log"
        self.said = said
        section = (DEPLOY / "supervisor.conf").read_text(encoding="utf-8")
        for mine, theirs in (
            (f"user={getpass.getuser()}\n", "user=bybit-collector\n"),
            (str(said), "/var/log/bybit-collector.log"),
            (str(home), "/opt/bybit-collector"),
        ):
            assert theirs in section
            section = section.replace(theirs, mine)
        (folder / "collector.conf").write_text(section, encoding="utf-8")
        self._conf = folder / "supervisord.conf"
        self._conf.write_text(
            f"""[supervisord]
logfile={self.log}
pidfile={folder}/pid
childlogdir={folder}
[unix_http_server]
file={folder}/socket
[supervisorctl]
serverurl=unix://{folder}/socket
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[include]
files = {folder}/collector.conf
""",
            encoding="utf-8",
        )
        self._env = {name: value for name, value in os.environ.items() if name != "PYTHON_DOTENV_DISABLED"}
        self._output = (folder / "output").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(self._conf)],
            cwd=folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()  # ends the collector first
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            self._output.close()

    def ctl(self, *words):
        """What supervisorctl says."""
        return run(sys.executable, "-m", "supervisor.supervisorctl", "-c", self._conf, *words, check=False).stdout

    def pid(self):
        said = self.ctl("pid", "bybit-collector").strip()
        return int(said) if said.isdigit() else 0

    def logged(self, words):
        assert words in self.log.read_text(encoding="utf-8")
        return True


@pytest.fixture
def short_folder():
    """A folder whose path leaves room for a socket's name, which may have some hundred characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_supervisor_keeps_the_collector_running(staged, redis_server, short_folder):
    """It comes back when it is killed, and when it is ended by mistake, but not with bad settings; it stops cleanly."""
    pytest.importorskip("supervisor", reason="supervisor is not installed")
    home = staged / "opt/bybit-collector"
    python = home / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    with Bybit(rate=500) as bybit:
        settings = f"REDIS_HOST=127.0.0.1\nREDIS_PORT={redis_server.port}\nBYBIT_WS_URL={bybit.url}\n"
        settings += "CHANNEL_PREFIX=supervised\nRECONNECT_DELAY=0.2\n"
        (home / ".env").write_text(settings, encoding="utf-8")
        with redis_server.client() as client, Supervisor(home, short_folder) as supervisor:

            def flows():
                with client.pubsub() as pubsub:
                    pubsub.subscribe("supervised_orderbook")
                    return eventually(lambda: (pubsub.get_message(timeout=0.1) or {}).get("type") == "message", 20)

            def comes_back(after):
                return eventually(lambda: (pid := supervisor.pid()) not in (0, after) and pid, 20)

            pid = comes_back(0)
            flows()
            os.kill(pid, 9)
            pid = comes_back(pid)
            flows()
            os.kill(pid, 15)  # nobody asked Supervisor for it: the exit code is 0, and yet
            pid = comes_back(pid)
            flows()

            assert "stopped" in supervisor.ctl("stop", "bybit-collector")
            assert "STOPPED" in supervisor.ctl("status")
            assert supervisor.logged("stopped: bybit-collector (exit status 0)")
            assert "Stopping on SIGTERM" in supervisor.said.read_text(encoding="utf-8").splitlines()[-1]

            (home / ".env").write_text(settings + "SYMBOLS=a b\n", encoding="utf-8")
            supervisor.ctl("start", "bybit-collector")
            eventually(lambda: supervisor.logged("exited: bybit-collector (exit status 2; expected)"), 20)
            assert "EXITED" in supervisor.ctl("status")
            assert "Cannot start: SYMBOLS=a b" in supervisor.said.read_text(encoding="utf-8")
            supervisor.ctl("shutdown")
            assert supervisor.process.wait(20) == 0


def dockerfile():
    """(instruction, the rest) of each line, those with a backslash joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    return [tuple(line.split(None, 1)) for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


def test_the_dockerfile_has_what_a_container_needs():
    """Two stages from one base that has a tag; no root and no shell between Docker's signals and the collector."""
    lines = dockerfile()
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+-slim[\w.-]*", dict(lines)["ARG"])
    assert [rest for name, rest in lines if name == "FROM"] == ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"]
    last = dict(lines[max(number for number, (name, _) in enumerate(lines) if name == "FROM") :])
    assert json.loads(last["CMD"]) == ["/app/.venv/bin/python", "main.py"]
    assert json.loads(last["HEALTHCHECK"].partition("CMD ")[2]) == [*json.loads(last["CMD"]), "--status", "ready"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert "RUN" not in last
    assert last["COPY"] == "--from=build /app /app"
    assert "--require-hashes" in dict(lines)["RUN"] + "".join(rest for name, rest in lines if name == "RUN")


def test_the_builder_gets_the_program_and_no_more():
    """What the Dockerfile copies is what .dockerignore lets through, and is the whole program."""
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"
    ]
    sources = [rest.split()[0] for name, rest in dockerfile() if name == "COPY" and "--from" not in rest]
    assert sorted(sources) == sorted(allowed)
    assert (ROOT / ".dockerignore").read_text(encoding="utf-8").count("\n*\n") == 1
    copied = {path for name in sources for path in ROOT.glob(name)}
    assert {*copied, *(path for folder in copied for path in folder.rglob("*.py"))} >= PROGRAM
    assert not any(path.name.startswith(".") or path.name in ("tests", "sandbox", "bench") for path in copied)


def test_hadolint_finds_nothing_to_complain_of():
    run(tool("hadolint"), DEPLOY / "Dockerfile")


def test_the_composition_keeps_redis_on_this_machine():
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert re.findall(r"ports:\n\s+- (.*)", text) == ['"127.0.0.1:${REDIS_PUBLISHED_PORT:-6379}:6379"']
    assert re.search(r"image: redis:\d+\.\d+", text)
    assert "- pubsub 256mb 128mb 60\n" in text
    assert text.count("stop_grace_period: 15s") == 2


def test_compose_understands_the_composition(tmp_path):
    """With settings of the user's, which must not reach the Redis that comes with it, and without."""
    docker = tool("docker")
    if run(docker, "compose", "version", check=False).returncode:
        pytest.skip("docker has no compose here")
    (tmp_path / "deploy").mkdir()
    shutil.copy(DEPLOY / "compose.yaml", tmp_path / "deploy")

    def collector():
        command = (docker, "compose", "-f", tmp_path / "deploy/compose.yaml", "config", "--format", "json")
        return json.loads(run(*command).stdout)["services"]["collector"]

    assert collector()["environment"]["REDIS_HOST"] == "redis"
    (tmp_path / ".env").write_text(
        "SYMBOLS=ETHUSDT\nREDIS_HOST=elsewhere\nREDIS_SENTINELS=there\nREDIS_PASSWORD=secret\n", encoding="utf-8"
    )
    found = collector()
    assert (
        found["environment"]
        | {"SYMBOLS": "ETHUSDT", "REDIS_HOST": "redis", "REDIS_SENTINELS": "", "REDIS_PASSWORD": ""}
        == (found["environment"])
    )
    assert found["build"] == {"context": str(tmp_path), "dockerfile": "deploy/Dockerfile"}


def test_compose_understands_two_collectors():
    """They differ in their names only, and both wait for Redis."""
    docker = tool("docker")
    if run(docker, "compose", "version", check=False).returncode:
        pytest.skip("docker has no compose here")
    files = [word for name in ("compose.yaml", "compose.standby.yaml") for word in ("-f", DEPLOY / name)]
    services = json.loads(run(docker, "compose", *files, "config", "--format", "json").stdout)["services"]
    one, other = services["collector"], services["standby"]
    assert [each["environment"].pop("INSTANCE") for each in (one, other)] == ["a", "b"]
    assert one["environment"]["LEADER_KEY"]
    assert {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} == set()


def service(file, name):
    """The lines of a service, without comments."""
    text = (DEPLOY / file).read_text(encoding="utf-8")
    block = re.search(rf"^  {name}:\n((?:(?:    .*|  *#.*)?\n)*)", text, re.M)[1]
    return [line for line in block.splitlines() if line.strip() and line.strip()[0] != "#"]


def test_the_second_collector_differs_in_its_name_only():
    """Compose has no way to say so that all its versions know."""
    second, shared = service("compose.standby.yaml", "standby"), service("compose.standby.yaml", "collector")
    assert shared == ["    environment:", "      LEADER_KEY: stream:bybit_leader", "      INSTANCE: a"]
    assert [line for line in second if line not in ("      INSTANCE: b", shared[1])] == service(
        "compose.yaml", "collector"
    )
    assert len(second) == len(service("compose.yaml", "collector")) + 2


@pytest.mark.parametrize(("file", "name"), [("compose.yaml", "collector"), ("compose.standby.yaml", "standby")])
def test_the_redis_of_the_composition_is_used_whatever_the_users_settings_say(file, name):
    given = dict(re.findall(r'^      (REDIS_\w+): "?(.*?)"?$', "\n".join(service(file, name)), re.M))
    users = "REDIS_HOST=one,two:7000\nREDIS_PORT=1\nREDIS_SENTINELS=three\nREDIS_SENTINEL_MASTER=other\nREDIS_DB=5\n"
    users += (
        "REDIS_USERNAME=u\nREDIS_PASSWORD=p\nREDIS_SSL=True\nREDIS_SENTINEL_USERNAME=u\nREDIS_SENTINEL_PASSWORD=p\n"
    )
    users += "REDIS_SSL_CA=/ca\nREDIS_SSL_CERT=/c\nREDIS_SSL_KEY=/k\nREDIS_UNIX_SOCKET=/s\nREDIS_PASSWORD_FILE=/p\n"
    users += "REDIS_URL=rediss://u:p@other/5\nREDIS_SENTINEL_PASSWORD_FILE=/p\n"
    used = load(given, users)
    assert (used.redis_host, used.redis_sentinels, used.redis_url) == ((("redis", 6379),), (), None)
    assert (used.redis_db, used.redis_username, used.redis_password, used.redis_ssl) == (0, None, None, False)
    assert not used.redis_password_file + used.redis_sentinel_password_file + used.redis_unix_socket + used.redis_ssl_ca
    assert used.warnings == ()


@pytest.mark.timeout(600)
def test_the_image_runs_the_collector(redis_server):
    """Built and run: settings refused, messages flowing, healthy, and a stop that Docker does not have to force."""
    docker = tool("docker")
    if run(docker, "info", check=False).returncode:
        pytest.skip("no Docker engine answers here")
    if sys.platform != "linux":
        pytest.skip("a container has this machine's network on Linux only")
    image, name = "bybit-collector:test", f"bybit-collector-test-{os.getpid()}"
    run(docker, "build", "--network", "host", "-f", DEPLOY / "Dockerfile", "-t", image, ROOT, timeout=500)
    refused = run(docker, "run", "--rm", "--network", "host", "-e", "SYMBOLS=a b", image, check=False)
    assert refused.returncode == 2, refused.stdout
    with Bybit(rate=500) as bybit, redis_server.client() as client:
        settings = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis_server.port, "BYBIT_WS_URL": bybit.url}
        given = [word for key, value in settings.items() for word in ("-e", f"{key}={value}")]
        run(docker, "run", "-d", "--name", name, "--read-only", "--network", "host", *given, image)
        try:
            with client.pubsub() as pubsub:
                pubsub.subscribe("stream:bybit_orderbook")
                eventually(lambda: (pubsub.get_message(timeout=0.1) or {}).get("type") == "message", 30)
            status = ("exec", name, *json.loads(dict(dockerfile())["CMD"]), "--status")
            eventually(lambda: run(docker, *status, check=False).returncode == 0, 30)
            run(docker, "stop", "-t", "15", name)
            assert run(docker, "inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "0"
        finally:
            run(docker, "rm", "-f", name)


def locked():
    """The requirements of requirements.lock by canonical name, without their hashes."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    lines = [line.partition(" \\")[0] for line in text.splitlines() if line and line[0] not in " #"]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def test_the_lock_is_what_the_requirements_ask_for():
    """Each version is the one pinned elsewhere, each has hashes, and it says how it is made but not where."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = [
        Requirement(line)
        for name in ("requirements.txt", "constraints.txt")
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if line and line[0] not in "-#"
    ]
    found = locked()
    assert {canonicalize_name(one.name): one.specifier for one in pinned}.items() <= {
        name: one.specifier for name, one in found.items()
    }.items()
    for block in re.split(r"\n(?=[a-z])", text)[1:]:
        assert re.search(r"^    --hash=sha256:[0-9a-f]{64}", block, re.M), block
    assert "make lock" in text.partition("==")[0]
    assert not re.search(r"://|--(?:extra-)?index|--find-links|(?<!\w)/\w", text)


def test_the_lock_is_complete_on_every_python():
    """pip refuses the whole lock over one package that is missing, though only one Python asks for it."""
    found = locked()
    for name in found:
        try:
            asked = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another Python
            continue
        for requirement in map(Requirement, asked):
            if requirement.marker is None or "extra" not in str(requirement.marker):
                assert canonicalize_name(requirement.name) in found, f"{name} asks for {requirement}"
