"""Settings: from the environment, else from .env beside main.py, else the default.

load() is pure. The last lines of this file call it once, when the program imports it, and leave the settings as
constants; a value that cannot be used then ends the program with one sentence on stderr and exit code 2.
"""

import difflib
import io
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from dotenv.parser import parse_stream

from conf.converters import (
    Address,
    addresses,
    base_url,
    boolean,
    coins,
    contracts,
    integer,
    matching,
    number,
    one_of,
    optional,
    part_of,
    symbols,
    word,
)
from relay.kinds import CATEGORIES, DEPTHS, KINDS

T = TypeVar("T")

DAY = 86400.0  # seconds
HOSTS = "host names or addresses, each with :port or without, separated by commas, without redis://, user or database"
NAMES_OF_KINDS = tuple(kind.name for kind in KINDS)
SHARD_WORDS = "the number of this collector and how many there are, such as 1/3, or nothing"
# How alike an unknown name in .env and a setting must be (0 to 1) for the name to be a typing mistake.
LIKENESS = 0.8


class SettingsError(ValueError):
    """A setting cannot be used. Its text is a sentence for the user, and holds no password."""


# Every setting: its default, its converter, and what the user is told that it must be.


class Rule(NamedTuple, Generic[T]):
    """How one setting is read. expected: the end of the sentence "NAME=value: expected ..."."""

    default: str
    convert: Callable[[str], T]
    expected: str


# The values of the settings that stand above a setting in the class, by field name.
Above = Mapping[str, Any]


def _setting(default: str, convert: Callable[[str], T], expected: str) -> T:
    rule = Rule(default, convert, expected)
    return _dependent(lambda _above: rule)


def _dependent(rule: Callable[[Above], Rule[T]]) -> T:
    return field(metadata={"rule": rule})  # type: ignore[no-any-return]


def _symbols_rule(above: Above) -> Rule[tuple[str, ...]]:
    if above["channel_type"] == "option":
        return Rule("BTCUSDT", contracts, "option contracts such as BTC-25JUN27-106000-P-USDT, BTC-*, ALL")
    return Rule("BTCUSDT", symbols, "symbols separated by commas, such as BTCUSDT,ETHUSDT,*USDC or ALL")


def _depth_rule(above: Above) -> Rule[int]:
    category = above["channel_type"]
    depths = DEPTHS[category]
    default = "25" if category == "option" else "50"
    names = ", ".join(map(str, depths))
    return Rule(default, integer(depths), f"one of {names}, the depths that Bybit has for {category}")


def _host_rule(above: Above) -> Rule[tuple[Address, ...]]:
    return Rule("localhost", addresses(above["redis_port"]), HOSTS)


def _delay_max_rule(above: Above) -> Rule[float]:
    least = above["reconnect_delay"]
    expected = f"seconds, from RECONNECT_DELAY ({least:g}) to 86400"
    return Rule(str(max(5.0, least)), number(least, DAY), expected)


def _leader_key_rule(above: Above) -> Rule[str]:
    # What is there may be deleted: the state is a hash there, and Streams have the names of channels.
    key = matching(rf"(?!{re.escape(above['channel_prefix'])}_(state|status|{'|'.join(NAMES_OF_KINDS)})(:|$))\S*")
    return Rule("", key, "the name of a Redis key without spaces, not one of the collector's own, or nothing")


@dataclass(frozen=True)
class Settings:
    """The settings. A field `redis_host` is the setting REDIS_HOST."""

    use_testnet: bool = _setting("True", boolean, "True or False")
    channel_type: str = _setting("linear", one_of(CATEGORIES, str.lower), f"one of {', '.join(CATEGORIES)}")
    symbols: tuple[str, ...] = _dependent(_symbols_rule)
    orderbook_depth: int = _dependent(_depth_rule)  # levels on each side
    # The base coins whose contracts a pattern in SYMBOLS stands for on option: Bybit lists them coin by coin.
    option_coins: tuple[str, ...] = _setting("BTC,ETH,SOL,XRP,DOGE", coins, "base coins such as BTC,ETH")
    # Seconds between two looks at Bybit's list of instruments, which patterns in SYMBOLS need.
    instruments_interval: float = _setting("60", number(1, DAY), "seconds, 1 to 86400")
    # The part of the symbols that this collector has: one of so many collectors.
    shard: tuple[int, int] | None = _setting("", part_of, SHARD_WORDS)
    # Base URL to use instead of Bybit's, without the path; empty: Bybit's testnet or mainnet.
    bybit_ws_url: str = _setting("", base_url("wss?"), "a base URL such as wss://stream.bybit.kz, or nothing")
    # The same for Bybit's REST; empty: the one that belongs to bybit_ws_url.
    bybit_api_url: str = _setting("", base_url("https?"), "a base URL such as https://api.bybit.kz, or nothing")
    # Channels are channel_prefix + _orderbook and so on: a name of relay.kinds each, and _status.
    channel_prefix: str = _setting("stream:bybit", matching(r"\S+"), "a word without spaces")
    # Whether each symbol has channels of its own, such as stream:bybit_trades:BTCUSDT.
    channel_by_symbol: bool = _setting("False", boolean, "True or False")

    # Seconds between the end of a connection that was up and the next attempt.
    reconnect_delay: float = _setting("2", number(0.01, DAY), "seconds, 0.01 to 86400")
    # Seconds up to which the delay doubles while connections fail.
    reconnect_delay_max: float = _dependent(_delay_max_rule)
    # Seconds without data after which an order-book or ticker connection is replaced; 0: never.
    stall_timeout: float = _setting("60", number(0), "seconds, 0 or more")

    redis_port: int = _setting("6379", integer(range(1, 65536)), "a port from 1 to 65535")
    # The first that works is taken: more than one are the nodes of a Cluster, or a master and its replicas.
    redis_host: tuple[Address, ...] = _dependent(_host_rule)
    # Sentinels that know where the master is; they take the place of redis_host.
    redis_sentinels: tuple[Address, ...] = _setting("", optional(addresses(26379)), f"{HOSTS}, or nothing")
    redis_sentinel_master: str = _setting("mymaster", matching(r"[A-Za-z0-9._-]+"), "the name that Sentinel gives it")
    redis_sentinel_username: str | None = _setting("", word, "a name")
    redis_sentinel_password: str | None = _setting("", word, "a password")
    redis_db: int = _setting("0", integer(range(1 << 20)), "the number of a database, 0 or more")
    redis_username: str | None = _setting("", word, "a name")
    redis_password: str | None = _setting("", word, "a password")
    redis_ssl: bool = _setting("False", boolean, "True or False")
    # Mebibytes of messages kept while Redis is unavailable.
    redis_buffer_mb: float = _setting("256", number(1, 1 << 20), "mebibytes, 1 or more")
    # Messages that a Redis Stream of each channel keeps, about; 0: there are no such Streams.
    redis_stream_maxlen: int = _setting("0", integer(range(10**9 + 1)), "a number of messages, or 0")

    # The key of the lease that collectors share: its holder publishes, the others stand by. Empty: no others.
    leader_key: str = _dependent(_leader_key_rule)
    instance: str = _setting("", matching("[A-Za-z0-9._-]{0,100}"), "a name of letters, digits and . _ -, or nothing")
    log_level: str = _setting(
        "INFO", one_of(("DEBUG", "INFO", "WARNING", "ERROR"), str.upper), "DEBUG, INFO, WARNING or ERROR"
    )

    # Sentences for the log: what works, and is probably not meant.
    warnings: tuple[str, ...] = ()


RULES: Mapping[str, Callable[[Above], Rule[Any]]] = {
    one.name: one.metadata["rule"] for one in fields(Settings) if "rule" in one.metadata
}
NAMES = tuple(name.upper() for name in RULES)


def load(environ: Mapping[str, str], text: str = "") -> Settings:
    """The settings in `environ`, else in `text`, which is that of a .env file, else the defaults. Pure.

    Raises SettingsError for the first that cannot be used.
    """
    file = parse(text)
    values: dict[str, Any] = {}
    for name, rule in RULES.items():
        values[name] = _value(name.upper(), rule(values), environ, file)
    return Settings(**values, warnings=tuple(_typing_mistakes(file)))


def parse(text: str) -> dict[str, str]:
    """The names and values in the text of a .env file, taken literally: `${…}` in a password is no variable.

    Raises SettingsError with the number of the first line that is not NAME=value; the line may hold a password.
    """
    values = {}
    for name, value, original, error in parse_stream(io.StringIO(text)):
        if error or (name is not None and value is None):
            blank = len(original.string) - len(original.string.lstrip())  # a statement has the blank lines before it
            line = original.line + original.string[:blank].count("\n")
            raise SettingsError(f".env, line {line}: expected NAME=value")
        if name is not None and value is not None:
            values[name] = value
    return values


def _value(name: str, rule: Rule[T], environ: Mapping[str, str], file: Mapping[str, str]) -> T:
    text = environ.get(name, file.get(name, rule.default))
    try:
        text.encode()  # the environment may hold bytes that are not text
        return rule.convert(text if rule.convert is word else text.strip())
    except ValueError:
        # One line, whatever the value holds; and no password, which may also be part of a URL.
        shown = "…" if "PASSWORD" in name or "@" in text else repr(text)[1:-1]
        raise SettingsError(f"{name}={shown}: expected {rule.expected}") from None


def _typing_mistakes(file: Mapping[str, str]) -> list[str]:
    """A sentence for each name of the file that is not a setting, but nearly one. Others may be for other programs."""
    found = []
    for name in file:
        near = difflib.get_close_matches(name.upper(), NAMES, 1, LIKENESS)
        if name not in NAMES and near:
            found.append(f".env: {name} is not a setting and has no effect; did you mean {near[0]}?")
    return found


# The edge: everything below reads files or the environment, or ends the program.


def read(path: Path, environ: Mapping[str, str]) -> Settings:
    """load() with the text of the file at `path`, if there is one. Raises SettingsError."""
    if environ.get("PYTHON_DOTENV_DISABLED", "").lower() in ("1", "true", "yes") or not path.exists():
        return load(environ)
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    settings = load(environ, text)
    if mode & 0o004 and parse(text).get("REDIS_PASSWORD"):
        warning = f"{path} holds a password and everybody can read it: chmod o-r {path}"
        return replace(settings, warnings=(*settings.warnings, warning))
    return settings


try:
    _settings = read(Path(__file__).resolve().parent.parent / ".env", os.environ)
except SettingsError as problem:
    print(f"Cannot start: {problem}", file=sys.stderr)
    raise SystemExit(2) from None

USE_TESTNET = _settings.use_testnet
CHANNEL_TYPE = _settings.channel_type
SYMBOLS = list(_settings.symbols)
OPTION_COINS = _settings.option_coins
INSTRUMENTS_INTERVAL = _settings.instruments_interval
SHARD = _settings.shard
ORDERBOOK_DEPTH = _settings.orderbook_depth
BYBIT_WS_URL = _settings.bybit_ws_url
BYBIT_API_URL = _settings.bybit_api_url
CHANNEL_PREFIX = _settings.channel_prefix
CHANNEL_BY_SYMBOL = _settings.channel_by_symbol
RECONNECT_DELAY = _settings.reconnect_delay
RECONNECT_DELAY_MAX = _settings.reconnect_delay_max
STALL_TIMEOUT = _settings.stall_timeout
REDIS_PORT = _settings.redis_port
REDIS_HOST = _settings.redis_host
REDIS_SENTINELS = _settings.redis_sentinels
REDIS_SENTINEL_MASTER = _settings.redis_sentinel_master
REDIS_SENTINEL_USERNAME = _settings.redis_sentinel_username
REDIS_SENTINEL_PASSWORD = _settings.redis_sentinel_password
REDIS_DB = _settings.redis_db
REDIS_USERNAME = _settings.redis_username
REDIS_PASSWORD = _settings.redis_password
REDIS_SSL = _settings.redis_ssl
REDIS_BUFFER_MB = _settings.redis_buffer_mb
REDIS_STREAM_MAXLEN = _settings.redis_stream_maxlen
# Each part of the symbols has a lease of its own: its collectors cannot take over from those of another part.
LEADER_KEY = _settings.leader_key and _settings.leader_key + (":{}of{}".format(*SHARD) if SHARD else "")
INSTANCE = _settings.instance or re.sub(r"[^\w.-]", "-", f"{socket.gethostname()}-{os.getpid()}", flags=re.ASCII)
LOG_LEVEL = _settings.log_level
WARNINGS = _settings.warnings
