"""conf/: load() as tables; the files of the settings; the edge, which may end the program, in processes of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf import settings
from conf.converters import SettingsError
from conf.live import Live
from conf.rules import NAMES, Settings, load, parse

ROOT = Path(__file__).resolve().parent.parent
OPTION = "BTC-25JUN27-106000-P-USDT"
DEFAULTS = Settings(
    use_testnet=True,
    channel_type="linear",
    symbols=("BTCUSDT",),
    option_coins=("BTC", "ETH", "SOL", "XRP", "DOGE"),
    instruments_interval=60,
    shard=None,
    orderbook_depth=50,
    bybit_ws_url="",
    bybit_api_url="",
    channel_prefix="stream:bybit",
    channel_by_symbol=False,
    reconnect_delay=2,
    reconnect_delay_max=5,
    stall_timeout=60,
    redis_url=None,
    redis_port=6379,
    redis_host=(("localhost", 6379),),
    redis_unix_socket="",
    redis_sentinels=(),
    redis_sentinel_master="mymaster",
    redis_sentinel_username=None,
    redis_sentinel_password=None,
    redis_sentinel_password_file="",
    redis_db=0,
    redis_username=None,
    redis_password=None,
    redis_password_file="",
    redis_ssl=False,
    redis_ssl_ca="",
    redis_ssl_cert="",
    redis_ssl_key="",
    redis_buffer_mb=256,
    redis_stream_maxlen=0,
    leader_key="",
    instance="",
    log_level="INFO",
    log_format="text",
    pulse_file="",
)


def changed(settings):
    """The settings that differ from the defaults, by name."""
    return {name: value for name, value in vars(settings).items() if value != getattr(DEFAULTS, name)}


def read(path, environ):
    """The settings as the program reads them, with a file at `path` as the one beside main.py."""
    return Live(path, environ).settings


def sentence(environ=(), text=""):
    """What the user is told about settings that cannot be used: one line."""
    with pytest.raises(SettingsError) as error:
        load(dict(environ), text)
    told = str(error.value)
    assert "\n" not in told
    return told


# Values.


def test_the_defaults():
    assert load({}) == DEFAULTS


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        DEFAULTS.redis_port = 1


def test_every_setting_is_a_constant_of_the_module():
    """`from conf.settings import REDIS_HOST` is how the program takes them; SYMBOLS is a list there."""
    constants = {name: getattr(settings, name) for name in NAMES}
    special = {"SYMBOLS": ["BTCUSDT"], "INSTANCE": settings.INSTANCE}
    assert constants == {name: getattr(DEFAULTS, name.lower()) for name in NAMES} | special
    assert settings.WARNINGS == ()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("USE_TESTNET", text, False) for text in ("False", "no", "0", "off", " FALSE ")),
        *(("REDIS_SSL", text, True) for text in ("True", "yes", "1", "on", " TRUE ")),
        ("CHANNEL_TYPE", "Spot", "spot"),
        ("SYMBOLS", "BTCUSDT, ETHUSDT,BTCUSDT", ("BTCUSDT", "ETHUSDT")),
        ("SYMBOLS", "BTC-29MAR26,币安人生USDT,1000PEPEUSDT", ("BTC-29MAR26", "币安人生USDT", "1000PEPEUSDT")),
        ("SYMBOLS", "ALL", ("ALL",)),
        ("SYMBOLS", "BTC*,*USDT,*PERP,ETHUSDC", ("BTC*", "*USDT", "*PERP", "ETHUSDC")),
        ("OPTION_COINS", "BTC, XAUT", ("BTC", "XAUT")),
        ("INSTRUMENTS_INTERVAL", "5", 5),
        ("SHARD", "1/3", (1, 3)),
        ("ORDERBOOK_DEPTH", "1000", 1000),
        ("BYBIT_WS_URL", "wss://stream.bybit.kz/", "wss://stream.bybit.kz"),
        ("BYBIT_WS_URL", "ws://127.0.0.1:8765", "ws://127.0.0.1:8765"),
        ("BYBIT_API_URL", "https://api.bybit.kz/", "https://api.bybit.kz"),
        ("CHANNEL_PREFIX", "spot:bybit", "spot:bybit"),
        ("CHANNEL_BY_SYMBOL", "yes", True),
        ("RECONNECT_DELAY", "0.5", 0.5),
        ("STALL_TIMEOUT", "0", 0),
        ("REDIS_HOST", "::1", (("::1", 6379),)),
        ("REDIS_HOST", "2001:db8::7", (("2001:db8::7", 6379),)),
        ("REDIS_HOST", "[::1]:7000", (("::1", 7000),)),
        ("REDIS_HOST", "redis-1.example.com", (("redis-1.example.com", 6379),)),
        ("REDIS_HOST", "a, b:7001,a:6379", (("a", 6379), ("b", 7001))),
        ("REDIS_SENTINELS", "a,b:5000", (("a", 26379), ("b", 5000))),
        ("REDIS_SENTINEL_MASTER", "prices.eu-1", "prices.eu-1"),
        ("REDIS_STREAM_MAXLEN", "100000", 100_000),
        ("REDIS_DB", "3", 3),
        ("REDIS_USERNAME", "collector", "collector"),
        ("REDIS_PASSWORD_FILE", "/run/secrets/of redis", "/run/secrets/of redis"),
        ("REDIS_SENTINEL_PASSWORD_FILE", "/run/secrets/sentinel", "/run/secrets/sentinel"),
        ("REDIS_BUFFER_MB", "1.5", 1.5),
        ("LEADER_KEY", "stream:bybit_leader", "stream:bybit_leader"),
        ("INSTANCE", "host-1.a_B", "host-1.a_B"),
        ("LOG_LEVEL", "debug", "DEBUG"),
    ],
)
def test_a_good_value_is_taken_and_nothing_else_changes(name, text, value):
    assert changed(load({name: text})) == {name.lower(): value}
    assert load({}, f"{name}={text}\n") == load({name: text})


def test_a_port_is_that_of_every_host_without_one():
    chosen = changed(load({"REDIS_PORT": " 6380 ", "REDIS_HOST": "a,b:7001"}))
    assert chosen == {"redis_port": 6380, "redis_host": (("a", 6380), ("b", 7001))}


def test_an_instance_without_a_name_is_called_after_its_host_and_process():
    """Which the status, a Redis key and a shell can take as it is."""
    assert re.fullmatch(r"[A-Za-z0-9._-]+", settings.INSTANCE)
    assert settings.INSTANCE.endswith(f"-{os.getpid()}")


def test_an_empty_password_is_none():
    assert load({"REDIS_PASSWORD": "", "REDIS_USERNAME": ""}) == DEFAULTS


def test_a_reconnect_delay_above_a_minute_raises_the_default_of_its_maximum():
    assert load({"RECONNECT_DELAY": "90"}).reconnect_delay_max == 90


def test_option_has_a_depth_of_its_own():
    chosen = load({"CHANNEL_TYPE": "option", "SYMBOLS": OPTION})
    assert (chosen.orderbook_depth, chosen.symbols) == (25, (OPTION,))


def test_other_variables_do_not_matter():
    assert load({"HOME": "/root", "redis_port": "1", "": "", "REDIS_PORT2": "x"}) == DEFAULTS


BOOLEAN = "True or False"
SYMBOLS = "symbols separated by commas, such as BTCUSDT,ETHUSDT,*USDC or ALL"
CONTRACTS = "option contracts such as BTC-25JUN27-106000-P-USDT, BTC-*, ALL"
DEPTH = "one of 1, 50, 200, 1000, the depths that Bybit has for linear"
URL = "a base URL such as wss://stream.bybit.kz, or nothing"
DELAY = "seconds, 0.01 to 86400"
DELAY_MAX = "seconds, from RECONNECT_DELAY (2) to 86400"
HOST = "host names or addresses, each with :port or without, separated by commas, without redis://, user or database"
SOCKET = "the absolute path of a socket, of at most 103 characters, or nothing"
A_FILE = "the absolute path of a file, or nothing"
TLS_FILES = ("REDIS_SSL_CA", "REDIS_SSL_CERT", "REDIS_SSL_KEY")
PORT = "a port from 1 to 65535"


@pytest.mark.parametrize(
    ("name", "expected", "texts"),
    [
        ("USE_TESTNET", BOOLEAN, ["maybe", ""]),
        ("CHANNEL_TYPE", "one of linear, spot, inverse, option", ["futures", ""]),
        ("SYMBOLS", SYMBOLS, ["", "BTCUSDT,", "BTC USDT", "['BTCUSDT']", "publicTrade.BTCUSDT"]),
        ("ORDERBOOK_DEPTH", DEPTH, ["500", "fifty", "25"]),
        ("BYBIT_WS_URL", URL, ["127.0.0.1:8765", "https://stream.bybit.kz", "wss://{SUBDOMAIN}.bybit.com", "wss://"]),
        ("BYBIT_WS_URL", URL, ["ws://127.0.0.1:99999", "ws://x:abc", "ws://[::1", "ws://h?x=1"]),
        ("BYBIT_WS_URL", URL, ["wss://stream.bybit.com/v5/public/linear"]),
        ("CHANNEL_PREFIX", "a word without spaces", ["", "stream bybit"]),
        ("RECONNECT_DELAY", DELAY, ["0", "-1", "nan", "1e10", "2s", "1_0", "٢"]),
        ("RECONNECT_DELAY_MAX", DELAY_MAX, ["1", "inf"]),
        ("STALL_TIMEOUT", "seconds, 0 or more", ["nan", "never", "-1"]),
        (
            "REDIS_HOST",
            HOST,
            ["", "local host", "redis://localhost", "a:", "a:0", "a:65536", "[::1]:x", "/run/redis.sock", "a,"],
        ),
        ("REDIS_SENTINELS", f"{HOST}, or nothing", ["a b", "sentinel://a"]),
        ("REDIS_SENTINEL_MASTER", "the name that Sentinel gives it", ["", "my master"]),
        ("REDIS_STREAM_MAXLEN", "a number of messages, or 0", ["-1", "many", "10000000000"]),
        ("OPTION_COINS", "base coins such as BTC,ETH", ["", "btc", "BTC,", "BTC-*"]),
        ("INSTRUMENTS_INTERVAL", "seconds, 1 to 86400", ["0", "never"]),
        (
            "SHARD",
            "the number of this collector and how many there are, such as 1/3, or nothing",
            ["0/3", "4/3", "1", "1/3/5"],
        ),
        (
            "BYBIT_API_URL",
            "a base URL such as https://api.bybit.kz, or nothing",
            ["api.bybit.kz", "wss://api.bybit.kz"],
        ),
        ("CHANNEL_BY_SYMBOL", BOOLEAN, ["symbol"]),
        ("REDIS_UNIX_SOCKET", SOCKET, ["redis.sock", "/", "unix:///redis.sock", "/" + "a" * 103]),
        *((name, A_FILE, ["redis.pem", "~/redis.pem"]) for name in TLS_FILES),
        ("REDIS_PORT", PORT, ["abc", "0", "65536", "6379.0", "6_379", "٦٣٧٩"]),
        ("REDIS_DB", "the number of a database, 0 or more", ["-1", "a"]),
        ("REDIS_SSL", BOOLEAN, ["rediss"]),
        ("REDIS_BUFFER_MB", "mebibytes, 1 or more", ["0", "256MB"]),
        (
            "LEADER_KEY",
            "the name of a Redis key without spaces, not one of the collector's own, or nothing",
            ["stream leader", "stream:bybit_state", "stream:bybit_state:a", "stream:bybit_trades:BTCUSDT"],
        ),
        ("INSTANCE", "a name of letters, digits and . _ -, or nothing", ["a b", "a:b", "é", "a" * 101]),
        ("LOG_LEVEL", "DEBUG, INFO, WARNING or ERROR", ["verbose"]),
    ],
)
def test_a_bad_value_is_refused_in_a_sentence(name, expected, texts):
    """It names the variable, the value and what was expected, wherever the value is from."""
    for text in texts:
        assert sentence({name: text}) == f"{name}={text}: expected {expected}"
        assert sentence({}, f"{name}={text}\n") == f"{name}={text}: expected {expected}"


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(("USERNAME", "PASSWORD"))])
def test_blanks_alone_are_refused_also_where_nothing_is_allowed(name):
    shown = "…" if name == "REDIS_URL" or "PASSWORD" in name else r" \t"
    assert sentence({name: " \t"}).startswith(f"{name}={shown}: expected ")
    assert sentence({}, f"{name}=' '\n").startswith(f"{name}=")


def test_a_line_break_in_a_value_does_not_break_the_sentence():
    """A compose file's `SYMBOLS: |` has one symbol on each line."""
    assert sentence({"SYMBOLS": "BTCUSDT\nETHUSDT\n"}) == rf"SYMBOLS=BTCUSDT\nETHUSDT\n: expected {SYMBOLS}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BYBIT_WS_URL", "wss://a%s"),
        ("BYBIT_API_URL", "https://a%s"),
        ("CHANNEL_PREFIX", "a%s"),
        ("LEADER_KEY", "a%s"),
        ("REDIS_HOST", "a%s"),
        ("REDIS_HOST", "::1%s"),
        ("REDIS_SENTINELS", "a%s:1"),
        ("REDIS_UNIX_SOCKET", "/a%s"),
        ("REDIS_SSL_CA", "/a%s"),
    ],
)
def test_control_characters_are_refused(name, text):
    for each in ("\x1b[2J", "\x07", "\x7f"):
        assert sentence({name: text % each}).startswith(f"{name}={repr(text % each)[1:-1]}: expected ")


def test_bytes_that_are_not_text_are_refused():
    """As os.environ holds them."""
    assert sentence({"REDIS_USERNAME": "caf\udce9"}) == r"REDIS_USERNAME=caf\udce9: expected a name"


@pytest.mark.parametrize(
    ("category", "depths", "bad"), [("spot", "1, 50, 200, 1000", "25"), ("option", "25, 100", "50")]
)
def test_the_depths_are_those_of_the_category(category, depths, bad):
    told = sentence({"CHANNEL_TYPE": category, "ORDERBOOK_DEPTH": bad, "SYMBOLS": OPTION})
    assert told == f"ORDERBOOK_DEPTH={bad}: expected one of {depths}, the depths that Bybit has for {category}"


@pytest.mark.parametrize("symbols", [f"{OPTION},BTCUSDT", "BTCUSDT", "BTC", None])
def test_option_takes_contracts_only(symbols):
    """Bybit acknowledges any topic on option and stays silent. The default is not a contract either."""
    environ = {"CHANNEL_TYPE": "option"} | ({"SYMBOLS": symbols} if symbols else {})
    assert sentence(environ) == (f"SYMBOLS={symbols or 'BTCUSDT'}: expected {CONTRACTS}")


@pytest.mark.parametrize("name", sorted(name for name in NAMES if not name.endswith(("USERNAME", "PASSWORD"))))
def test_no_sentence_shows_the_password(name):
    password = "hidden-secret"
    assert password not in sentence({name: "bad value"}, f"REDIS_PASSWORD={password}\n")
    assert password not in sentence({name: "bad value", "REDIS_PASSWORD": password})


def test_no_sentence_shows_a_password_inside_a_url():
    assert sentence({"REDIS_HOST": "redis://:hidden@localhost"}) == f"REDIS_HOST=…: expected {HOST}"
    assert sentence({"REDIS_PASSWORD": "hidden\udce9"}) == "REDIS_PASSWORD=…: expected a password"


# The text of .env.


def test_the_file_is_read_and_the_environment_wins_over_it():
    text = (
        "# a comment\n\nexport SYMBOLS=BTCUSDT,ETHUSDT  # another\r\n"
        "REDIS_PORT = '6380'\nREDIS_HOST=redis\nREDIS_DB=1\nREDIS_DB=2\n"
    )
    read = {"symbols": ("BTCUSDT", "ETHUSDT"), "redis_port": 6380, "redis_host": (("redis", 6380),), "redis_db": 2}
    assert changed(load({}, text)) == read
    assert changed(load({"REDIS_PORT": "6381", "REDIS_DB": "0"}, text)) == {
        "symbols": ("BTCUSDT", "ETHUSDT"),
        "redis_port": 6381,
        "redis_host": (("redis", 6381),),
    }
    assert load({"REDIS_PASSWORD": ""}, "REDIS_PASSWORD=secret\n").redis_password is None, "an empty one wins too"


def quoted(text):
    """A value for .env as python-dotenv wants it: in single quotes, where only they and backslashes are escaped."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_password_arrives_literally(password):
    """Every character that a shell, a .env file, a format string or JSON treats in its own way."""
    assert load({"REDIS_PASSWORD": password}).redis_password == password
    if "\r" not in password:  # a file knows one end of a line
        found = load({}, f"REDIS_PASSWORD={quoted(password)}\nREDIS_PORT=6380\n")
        assert (found.redis_password, found.redis_port) == (password, 6380)


@pytest.mark.parametrize(
    "password", ["a#b", "${HOME}", "$HOME", "a'b", 'a"b', "back\\slash\\n", "a=b", "a b", "пароль", "%s{0}"]
)
def test_such_passwords_need_no_quotes_in_the_file(password):
    assert load({"HOME": "/root"}, f"REDIS_PASSWORD={password}\n").redis_password == password


def test_a_file_saved_by_a_windows_editor_is_read_whole():
    """Some begin a file with a byte order mark, which must not become part of the first name."""
    found = changed(load({}, "\ufeffREDIS_PORT=6380\r\nREDIS_DB=1\r\n"))
    assert found == {"redis_port": 6380, "redis_host": (("localhost", 6380),), "redis_db": 1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("REDIS_PASSWORD='hidden\nREDIS_PORT=6380\n", 1),
        ("REDIS_PORT=6380\nREDIS_PASSWORD: hidden\n", 2),
        ("REDIS_PORT=6380\n\n  \n# a comment\n\nREDIS_PASSWORD hidden\n", 6),
        ("REDIS_PORT\nREDIS_PASSWORD=hidden\n", 1),
        ("REDIS_PORT=6380\r\n\r\nhidden", 3),
        ("=hidden\n", 1),
    ],
    ids=["an open quote", "a colon", "a space", "a name alone", "a word", "no name"],
)
def test_a_line_that_is_not_a_setting_is_refused_by_its_number(text, line):
    """And is not shown: it may hold a password."""
    assert sentence({}, text) == f".env, line {line}: expected NAME=value"


@given(st.text())
def test_any_text_gives_settings_or_a_sentence(text):
    try:
        told = str(load({}, text).warnings)
    except SettingsError as error:
        told = str(error)
    assert "\n" not in told


# Warnings.


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("USE_TESNET", "USE_TESTNET"),
        ("SYMBOL", "SYMBOLS"),
        ("symbols", "SYMBOLS"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("REDIS_USER", "REDIS_USERNAME"),
        ("BYBIT_URL", "BYBIT_WS_URL"),
        ("ORDER_BOOK_DEPTH", "ORDERBOOK_DEPTH"),
    ],
)
def test_a_typing_mistake_in_a_name_is_warned_about(name, meant):
    chosen = load({}, f"REDIS_DB=1\n{name}=hidden\n{name}=hidden\n")
    assert chosen.warnings == (f".env: {name} is not a setting and has no effect; did you mean {meant}?",)
    assert changed(chosen).keys() == {"redis_db", "warnings"}


@pytest.mark.parametrize("name", ["COMPOSE_PROJECT_NAME", "TZ", "PYTHONUNBUFFERED", "POSTGRES_PASSWORD", "PATH", "é"])
def test_names_for_other_programs_are_not(name):
    assert load({}, f"{name}=x\n") == DEFAULTS


@pytest.mark.parametrize(("mode", "text", "warned"), [(0o644, "x", True), (0o640, "x", False), (0o644, "", False)])
def test_a_password_that_everybody_can_read_is_warned_about(tmp_path, mode, text, warned):
    path = tmp_path / ".env"
    path.write_text(f"SYMBOL=x\nREDIS_PASSWORD={text}\n", encoding="utf-8")
    path.chmod(mode)
    warnings = read(path, {}).warnings
    assert len(warnings) == 1 + warned
    if warned:
        assert warnings[1] == f"{path} holds a password and everybody can read it: chmod o-r {path}"


# The file.


def test_a_file_that_is_not_there_is_an_empty_one(tmp_path):
    assert read(tmp_path / ".env", {"REDIS_DB": "1"}) == load({"REDIS_DB": "1"})


@pytest.mark.parametrize("disabled", ["1", "true", "YES"])
def test_the_file_may_be_switched_off(tmp_path, disabled):
    (tmp_path / ".env").write_text("REDIS_PORT=6380\n", encoding="utf-8")
    assert read(tmp_path / ".env", {"PYTHON_DOTENV_DISABLED": disabled}) == DEFAULTS


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "Is a directory"), (b"REDIS_HOST=caf\xe9\nREDIS_PASSWORD=hidden\n", "it is not UTF-8")],
    ids=["a directory", "not UTF-8"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, reason):
    path = tmp_path / ".env"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"^{re.escape(str(path))} cannot be read: .*{reason}") as error:
        read(path, {})
    assert "hidden" not in str(error.value)


def test_the_example_file_works_as_it_is_and_shows_the_defaults():
    """As the README says: cp .env.example .env. A setting may be commented out in it."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert load({}, text) == DEFAULTS
    lines = re.findall(rf"(?m)^(?:# ?)?((?:{'|'.join(NAMES)})=.*)$", text)
    assert sorted(line.partition("=")[0] for line in lines) == sorted(NAMES)
    assert load({}, "\n".join(lines)) == DEFAULTS
    assert parse(text).keys() <= set(NAMES)


# The edge, in processes of its own.


@pytest.fixture
def home(tmp_path):
    """A directory like main.py's, with a conf/ of its own: .env is looked for there."""
    for path in ("conf", "relay"):
        shutil.copytree(ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def start(directory, *, cwd=None, **environ):
    """Imports the settings of `directory` in a new process: exit code, stdout, stderr."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHON_DOTENV_DISABLED"}
    process = subprocess.run(
        [
            sys.executable,
            "-B",
            "-c",
            "import json; from conf.settings import *; print(json.dumps([REDIS_PORT, REDIS_DB]))",
        ],
        cwd=cwd or directory,
        env=inherited | {"PYTHONPATH": str(directory)} | environ,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )
    return process.returncode, process.stdout, process.stderr


def test_the_file_is_that_beside_main_wherever_the_program_is_started_and_the_environment_wins(home, tmp_path_factory):
    (home / ".env").write_text("REDIS_PORT=6380\nREDIS_DB=1\n", encoding="utf-8")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / ".env").write_text("REDIS_PORT=6381\n", encoding="utf-8")
    code, output, errors = start(home, cwd=elsewhere, REDIS_DB="2")
    assert (code, json.loads(output), errors) == (0, [6380, 2], "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("REDIS_PORT=abc\n", "REDIS_PORT=abc: expected a port from 1 to 65535"),
        ("\nREDIS_PORT\n", ".env, line 2: expected NAME=value"),
    ],
    ids=["a bad value", "a bad line"],
)
def test_settings_that_cannot_be_used_end_the_program_with_one_line(home, text, told):
    (home / ".env").write_text(text, encoding="utf-8")
    assert start(home) == (2, "", f"Cannot start: {told}\n")


def test_no_setting_of_the_environment_leaks_into_the_tests():
    """Not even one that would end the program."""
    code = "import os, conftest; from conf.rules import NAMES; print([name for name in NAMES if name in os.environ])"
    environ = {**os.environ, **dict.fromkeys(NAMES, "?"), "PYTHON_DOTENV_DISABLED": "0", "KEPT": "1"}
    tests = Path(__file__).resolve().parent
    found = subprocess.run([sys.executable, "-c", code], cwd=tests, env=environ, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("[]\n", "")
