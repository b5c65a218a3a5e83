"""conf/settings.py, imported in a process of its own each time: it reads its sources once and may end the program."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPTION = "BTC-25JUN27-106000-P-USDT"
IMPORT = """
import json
from conf import settings
print(json.dumps({name: value for name, value in vars(settings).items() if name in NAMES}))
"""


def _names():
    """Every setting there is: the first argument of each _setting() in the source."""
    tree = ast.parse((ROOT / "conf" / "settings.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call.args[0].value for call in calls if getattr(call.func, "id", "") == "_setting"]


NAMES = _names()


def start(directory=ROOT, **environment):
    """Import the settings in a new process with this environment; .env is read only in a `directory` of one's own."""
    inherited = dict(os.environ)
    if directory != ROOT:
        del inherited["PYTHON_DOTENV_DISABLED"]
    code = f"NAMES = {NAMES!r}\n{IMPORT}"
    return subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=directory,
        env=inherited | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )


def settings(directory=ROOT, **environment):
    """The settings as a dict; fails if anything was said on stderr."""
    process = start(directory, **environment)
    assert (process.returncode, process.stderr) == (0, "")
    return json.loads(process.stdout)


def refusal(directory=ROOT, **environment):
    """The one line on stderr with which the program refuses to start."""
    process = start(directory, **environment)
    assert process.returncode == 2, process
    assert process.stdout == ""
    assert process.stderr.endswith("\n")
    assert process.stderr.count("\n") == 1, "not one line"
    assert process.stderr.startswith("Cannot start: ")
    return process.stderr.rstrip("\n")


@pytest.fixture
def home(tmp_path):
    """A directory as main.py's: conf/ is in it, and .env is looked for there."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


DEFAULTS = {
    "USE_TESTNET": True,
    "CHANNEL_TYPE": "linear",
    "SYMBOLS": ["BTCUSDT"],
    "ORDERBOOK_DEPTH": 50,
    "BYBIT_WS_URL": "",
    "CHANNEL_PREFIX": "stream:bybit",
    "RECONNECT_DELAY": 2,
    "RECONNECT_DELAY_MAX": 60,
    "STALL_TIMEOUT": 60,
    "REDIS_HOST": "localhost",
    "REDIS_PORT": 6379,
    "REDIS_DB": 0,
    "REDIS_USERNAME": None,
    "REDIS_PASSWORD": None,
    "REDIS_SSL": False,
    "REDIS_BUFFER_MB": 256,
    "LOG_LEVEL": "INFO",
}


def test_the_defaults_are_those_of_the_design():
    assert settings() == DEFAULTS


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("USE_TESTNET", "no", False),
        ("USE_TESTNET", " FALSE ", False),
        ("CHANNEL_TYPE", "Spot", "spot"),
        ("SYMBOLS", "BTCUSDT, ETHUSDT,BTCUSDT", ["BTCUSDT", "ETHUSDT"]),
        ("SYMBOLS", "BTC-29MAR26,币安人生USDT,1000PEPEUSDT", ["BTC-29MAR26", "币安人生USDT", "1000PEPEUSDT"]),
        ("ORDERBOOK_DEPTH", "1000", 1000),
        ("BYBIT_WS_URL", "wss://stream.bybit.kz/", "wss://stream.bybit.kz"),
        ("BYBIT_WS_URL", "ws://127.0.0.1:8765", "ws://127.0.0.1:8765"),
        ("CHANNEL_PREFIX", "spot:bybit", "spot:bybit"),
        ("RECONNECT_DELAY", "0.5", 0.5),
        ("STALL_TIMEOUT", "0", 0),
        ("REDIS_HOST", "::1", "::1"),
        ("REDIS_PORT", " 6380 ", 6380),
        ("REDIS_DB", "3", 3),
        ("REDIS_USERNAME", "collector", "collector"),
        ("REDIS_PASSWORD", "", None),
        ("REDIS_SSL", "1", True),
        ("REDIS_BUFFER_MB", "1.5", 1.5),
        ("LOG_LEVEL", "debug", "DEBUG"),
    ],
)
def test_a_good_value_is_taken_and_nothing_else_changes(name, text, value):
    assert settings(**{name: text}) == DEFAULTS | {name: value}


def test_a_reconnect_delay_above_a_minute_raises_the_default_of_its_maximum():
    assert settings(RECONNECT_DELAY="90")["RECONNECT_DELAY_MAX"] == 90


def test_option_has_a_depth_of_its_own():
    chosen = settings(CHANNEL_TYPE="option", SYMBOLS=OPTION)
    assert (chosen["ORDERBOOK_DEPTH"], chosen["SYMBOLS"]) == (25, [OPTION])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("USE_TESTNET", "maybe", "True or False"),
        ("USE_TESTNET", "", "True or False"),
        ("CHANNEL_TYPE", "futures", "one of linear, spot, inverse, option"),
        ("SYMBOLS", "", "symbols separated by commas"),
        ("SYMBOLS", "BTCUSDT,", "symbols separated by commas"),
        ("SYMBOLS", "BTC USDT", "symbols separated by commas"),
        ("SYMBOLS", "['BTCUSDT']", "symbols separated by commas"),
        ("SYMBOLS", "publicTrade.BTCUSDT", "symbols separated by commas"),
        ("ORDERBOOK_DEPTH", "500", "one of 1, 50, 200, 1000"),
        ("ORDERBOOK_DEPTH", "fifty", "one of 1, 50, 200, 1000"),
        ("ORDERBOOK_DEPTH", "25", "one of 1, 50, 200, 1000, the depths that Bybit has for linear"),
        ("BYBIT_WS_URL", "127.0.0.1:8765", "a base URL such as wss://"),
        ("BYBIT_WS_URL", "https://stream.bybit.kz", "a base URL such as wss://"),
        ("BYBIT_WS_URL", "wss://stream.bybit.com/v5/public/linear", "a base URL such as wss://"),
        ("BYBIT_WS_URL", "wss://{SUBDOMAIN}.bybit.com", "a base URL such as wss://"),
        ("BYBIT_WS_URL", "wss://", "a base URL such as wss://"),
        ("CHANNEL_PREFIX", "", "a word without spaces"),
        ("CHANNEL_PREFIX", "stream bybit", "a word without spaces"),
        ("RECONNECT_DELAY", "0", "seconds, 0.01 to 86400"),
        ("RECONNECT_DELAY", "-1", "seconds, 0.01 to 86400"),
        ("RECONNECT_DELAY", "nan", "seconds, 0.01 to 86400"),
        ("RECONNECT_DELAY", "1e10", "seconds, 0.01 to 86400"),
        ("RECONNECT_DELAY", "2s", "seconds, 0.01 to 86400"),
        ("RECONNECT_DELAY_MAX", "1", "seconds, from RECONNECT_DELAY (2) to 86400"),
        ("RECONNECT_DELAY_MAX", "inf", "seconds, from RECONNECT_DELAY (2) to 86400"),
        ("STALL_TIMEOUT", "nan", "seconds, 0 or more"),
        ("STALL_TIMEOUT", "never", "seconds, 0 or more"),
        ("REDIS_HOST", "", "a host name or address"),
        ("REDIS_HOST", "local host", "a host name or address"),
        ("REDIS_PORT", "abc", "a port from 1 to 65535"),
        ("REDIS_PORT", "0", "a port from 1 to 65535"),
        ("REDIS_PORT", "65536", "a port from 1 to 65535"),
        ("REDIS_PORT", "6379.0", "a port from 1 to 65535"),
        ("REDIS_DB", "-1", "the number of a database, 0 or more"),
        ("REDIS_SSL", "rediss", "True or False"),
        ("REDIS_BUFFER_MB", "0", "mebibytes, 1 or more"),
        ("REDIS_BUFFER_MB", "256MB", "mebibytes, 1 or more"),
        ("LOG_LEVEL", "verbose", "DEBUG, INFO, WARNING or ERROR"),
    ],
)
def test_a_bad_value_ends_the_program_with_one_sentence(name, text, expected):
    """It names the variable, the value and what was expected; exit code 2, no traceback."""
    assert refusal(**{name: text}).startswith(f"Cannot start: {name}={text}: expected {expected}")


def test_a_line_break_in_a_value_does_not_break_the_sentence():
    """A compose file's `SYMBOLS: |` has a symbol a line."""
    assert "expected symbols separated by commas" in refusal(SYMBOLS="BTCUSDT\nETHUSDT\n")


@pytest.mark.parametrize(
    ("category", "depths", "bad"), [("spot", "1, 50, 200, 1000", "25"), ("option", "25, 100", "50")]
)
def test_the_depths_are_those_of_the_category(category, depths, bad):
    line = refusal(CHANNEL_TYPE=category, ORDERBOOK_DEPTH=bad, SYMBOLS=OPTION)
    assert f"ORDERBOOK_DEPTH={bad}: expected one of {depths}, the depths that Bybit has for {category}" in line


def test_option_takes_contracts_only():
    """Bybit acknowledges any topic on option and stays silent."""
    line = refusal(CHANNEL_TYPE="option", SYMBOLS=f"{OPTION},BTCUSDT")
    assert line == (
        f"Cannot start: SYMBOLS={OPTION},BTCUSDT: expected option contracts such as BTC-25JUN27-106000-P-USDT"
    )


def test_option_without_symbols_of_its_own_is_refused():
    assert "SYMBOLS=BTCUSDT: expected option contracts" in refusal(CHANNEL_TYPE="option")


# Every character that a shell, a .env file, a format string or JSON treats in its own way.
PASSWORDS = [
    "simple",
    "a#b",
    "a # b",
    " spaces at both ends ",
    "${HOME}",
    "$HOME$$",
    "a'b",
    'a"b',
    """both ' and " """,
    "back\\slash\\n",
    "%s{0}",
    "пароль-密码-🔑",
    "=equals=",
    "export REDIS_PASSWORD=x",
]


def quoted(text):
    """A value for .env as python-dotenv wants it: in single quotes, where only they and backslashes are escaped."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_arrives_literally(home, password):
    assert settings(REDIS_PASSWORD=password)["REDIS_PASSWORD"] == password
    (home / ".env").write_text(f"REDIS_PASSWORD={quoted(password)}\nREDIS_PORT=6380\n", encoding="utf-8")
    from_file = settings(home)
    assert (from_file["REDIS_PASSWORD"], from_file["REDIS_PORT"]) == (password, 6380)


@pytest.mark.parametrize(
    "password", ["a#b", "${HOME}", "$HOME", "a'b", 'a"b', "back\\slash\\n", "a=b", "a b", "пароль"]
)
def test_such_passwords_need_no_quotes_in_the_file(home, password):
    (home / ".env").write_text(f"REDIS_PASSWORD={password}\n", encoding="utf-8")
    assert settings(home)["REDIS_PASSWORD"] == password


def test_the_file_is_read_and_the_environment_wins_over_it(home):
    (home / ".env").write_text(
        "# a comment\n\nexport SYMBOLS=BTCUSDT,ETHUSDT  # another\r\n"
        "REDIS_PORT = '6380'\nREDIS_HOST=redis\nREDIS_DB=2\n",
        encoding="utf-8",
    )
    read = DEFAULTS | {"SYMBOLS": ["BTCUSDT", "ETHUSDT"], "REDIS_PORT": 6380, "REDIS_HOST": "redis", "REDIS_DB": 2}
    assert settings(home) == read
    assert settings(home, REDIS_PORT="6381", REDIS_DB="0") == read | {"REDIS_PORT": 6381, "REDIS_DB": 0}


def test_an_empty_variable_wins_over_the_file_too(home):
    (home / ".env").write_text("REDIS_PASSWORD=secret\n", encoding="utf-8")
    assert settings(home, REDIS_PASSWORD="")["REDIS_PASSWORD"] is None


def test_the_file_is_that_beside_main_wherever_the_program_is_started(home, tmp_path_factory):
    (home / ".env").write_text("REDIS_PORT=6380\n", encoding="utf-8")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / ".env").write_text("REDIS_PORT=6381\n", encoding="utf-8")
    assert settings(elsewhere, PYTHONPATH=str(home))["REDIS_PORT"] == 6380


def test_the_file_may_be_switched_off(home):
    (home / ".env").write_text("REDIS_PORT=6380\n", encoding="utf-8")
    assert settings(home, PYTHON_DOTENV_DISABLED="1") == DEFAULTS


def test_a_file_saved_by_a_windows_editor_is_read_whole(home):
    """Some begin a file with a byte order mark, which must not become part of the first name."""
    (home / ".env").write_bytes(b"\xef\xbb\xbfREDIS_PORT=6380\r\nREDIS_DB=1\r\n")
    chosen = settings(home)
    assert (chosen["REDIS_PORT"], chosen["REDIS_DB"]) == (6380, 1)


def test_a_bad_value_in_the_file_is_refused_like_any_other(home):
    (home / ".env").write_text("REDIS_PORT=abc\n", encoding="utf-8")
    assert refusal(home) == "Cannot start: REDIS_PORT=abc: expected a port from 1 to 65535"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "Is a directory"),
        (b"REDIS_HOST=caf\xe9\nREDIS_PASSWORD=hidden\n", "can't decode byte 0xe9"),
        (b"REDIS_PASSWORD='hidden\nREDIS_PORT=6380\n", "could not parse statement starting at line 1"),
        (b"REDIS_PORT=6380\nREDIS_PASSWORD: hidden\n", "could not parse statement starting at line 2"),
        (b"REDIS_PORT\nREDIS_PASSWORD=hidden\n", "REDIS_PORT has no value"),
    ],
    ids=["a directory", "not UTF-8", "an open quote", "a colon", "a name alone"],
)
def test_a_file_that_cannot_be_read_ends_the_program_with_one_sentence(home, content, why):
    if content is None:
        (home / ".env").mkdir()
    else:
        (home / ".env").write_bytes(content)
    line = refusal(home)
    assert line.startswith(f"Cannot start: {home / '.env'} cannot be read: ")
    assert why in line
    assert "hidden" not in line


def test_no_refusal_shows_the_password(home):
    """Whatever else is wrong, with the password in the environment or in the file."""
    password = "hidden-secret"
    (home / ".env").write_text(f"REDIS_PASSWORD={password}\n", encoding="utf-8")
    for name in sorted(set(NAMES) - {"REDIS_USERNAME", "REDIS_PASSWORD"}):
        assert password not in refusal(home, **{name: "bad value"})
    assert password not in refusal(REDIS_PASSWORD=password, REDIS_PORT="abc")


def test_the_example_file_names_every_setting_with_its_default(home):
    """Its settings may be commented out; read as they stand, they are the defaults."""
    example = ROOT / ".env.example"
    if not example.exists():
        pytest.skip(".env.example is not there yet")
    lines = re.findall(rf"(?m)^(?:# ?)?((?:{'|'.join(NAMES)})=.*)$", example.read_text(encoding="utf-8"))
    assert sorted(line.partition("=")[0] for line in lines) == sorted(NAMES)
    (home / ".env").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert settings(home) == DEFAULTS


def test_the_example_file_works_as_it_is(home):
    """As the README says: cp .env.example .env."""
    if not (ROOT / ".env.example").exists():
        pytest.skip(".env.example is not there yet")
    shutil.copy(ROOT / ".env.example", home / ".env")
    assert settings(home) == DEFAULTS


@pytest.mark.parametrize(("mode", "text", "warned"), [(0o644, "x", True), (0o640, "x", False), (0o644, "", False)])
def test_a_password_that_everybody_can_read_is_warned_about(home, mode, text, warned):
    """In the log; the words are kept for it. The password is not among them."""
    (home / ".env").write_text(f"REDIS_PASSWORD={text}\n")
    (home / ".env").chmod(mode)
    code = "from conf import settings; print(settings.WARNINGS)"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHON_DOTENV_DISABLED"}
    ran = subprocess.run([sys.executable, "-B", "-c", code], cwd=home, env=inherited, capture_output=True, text=True)
    assert ("can be read by everybody: chmod o-r" in ran.stdout) == warned
    assert "'x'" not in ran.stdout
