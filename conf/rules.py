"""Every setting: its default, its converter, and what the user is told that it must be. load() reads them all. Pure."""

import io
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, NamedTuple, TypeVar

from conf.converters import (
    Expected,
    SettingsError,
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
from conf.location import SOCKET, SOCKET_WORDS, URL_WORDS, Url, redis_url, resolve
from relay.kinds import CATEGORIES, DEPTHS, KINDS
from relay.redis.address import Address

T = TypeVar("T")

DAY = 86400.0  # seconds
HOSTS = "host names or addresses, each with :port or without, separated by commas, without redis://, user or database"
A_FILE = "the absolute path of a file, or nothing"
NAMES_OF_KINDS = tuple(kind.name for kind in KINDS)
SHARD_WORDS = "the number of this collector and how many there are, such as 1/3, or nothing"
# How alike an unknown name in .env and a setting must be (0 to 1) for the name to be a typing mistake.
LIKENESS = 0.8


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

    # Where Redis is and how to log in, in one; what it names takes the place of the settings below.
    redis_url: Url | None = _setting("", redis_url, URL_WORDS)  # noqa: RUF009 - it is frozen
    redis_port: int = _setting("6379", integer(range(1, 65536)), "a port from 1 to 65535")
    # The first that works is taken: more than one are the nodes of a Cluster, or a master and its replicas. A Unix
    # socket is (path, 0).
    redis_host: tuple[Address, ...] = _dependent(_host_rule)
    redis_unix_socket: str = _setting("", matching(f"({SOCKET})?"), SOCKET_WORDS)  # takes the place of redis_host
    # Sentinels that know where the master is; they take the place of redis_host.
    redis_sentinels: tuple[Address, ...] = _setting("", optional(addresses(26379)), f"{HOSTS}, or nothing")
    redis_sentinel_master: str = _setting("mymaster", matching(r"[A-Za-z0-9._-]+"), "the name that Sentinel gives it")
    redis_sentinel_username: str | None = _setting("", word, "a name")
    redis_sentinel_password: str | None = _setting("", word, "a password")
    redis_sentinel_password_file: str = _setting("", matching(r"(/.*)?"), A_FILE)
    redis_db: int = _setting("0", integer(range(1 << 20)), "the number of a database, 0 or more")
    redis_username: str | None = _setting("", word, "a name")
    redis_password: str | None = _setting("", word, "a password")
    redis_password_file: str = _setting("", matching(r"(/.*)?"), A_FILE)  # in place of redis_password
    redis_ssl: bool = _setting("False", boolean, "True or False")
    # PEM files: authorities that are trusted beside those of the system; the certificate to show, and its key.
    redis_ssl_ca: str = _setting("", matching(r"(/.*)?"), A_FILE)
    redis_ssl_cert: str = _setting("", matching(r"(/.*)?"), A_FILE)
    redis_ssl_key: str = _setting("", matching(r"(/.*)?"), A_FILE)
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
    log_format: str = _setting("text", one_of(("text", "json"), str.lower), "text or json")
    # A file that is touched every 5 s while every thread turns; empty: none.
    pulse_file: str = _setting("", matching(r"(/\S*)?"), "the absolute path of a file, without spaces, or nothing")

    # Sentences for the log: what works, and is probably not meant.
    warnings: tuple[str, ...] = ()


RULES: Mapping[str, Callable[[Above], Rule[Any]]] = {
    one.name: one.metadata["rule"] for one in fields(Settings) if "rule" in one.metadata
}
NAMES = tuple(name.upper() for name in RULES)


def load(environ: Mapping[str, str], text: str = "", name_of_file: str = ".env") -> Settings:
    """The settings in `environ`, else in `text`, which is that of a .env file, else the defaults.

    Raises SettingsError for the first that cannot be used.
    """
    return settings_of(environ, parse(text, name_of_file, environ), name_of_file)


def settings_of(environ: Mapping[str, str], file: Mapping[str, str], name_of_file: str) -> Settings:
    """load() with the names and values of the file as parse() has them."""
    values: dict[str, Any] = {}
    for name, rule in RULES.items():
        values[name] = _value(name.upper(), rule(values), environ, file)
    changes, warnings = resolve(values)
    return Settings(**values | changes, warnings=(*_typing_mistakes(file, name_of_file), *warnings))


def parse(text: str, name_of_file: str = ".env", given: Container[str] = ()) -> dict[str, str]:
    """The names and values in the text of a .env file, taken literally: `${…}` in a password is no variable.

    given: names whose lines do not matter. Raises SettingsError with the number of the first other line that is not
    NAME=value; the line may hold a password.
    """
    values: dict[str, str] = {}
    if not text:
        return values
    from dotenv.parser import parse_stream  # only where there is a file: it costs as much as all the rest

    for name, value, original, error in parse_stream(io.StringIO(text)):
        # systemd reads such files, too. It has other comments and other quotes: then what it has made of them counts.
        begins = original.string.partition("=")[0].strip()
        if begins.startswith(";") or (error and begins in given):
            continue
        if error or (name is not None and value is None):
            blank = len(original.string) - len(original.string.lstrip())  # a statement has the blank lines before it
            line = original.line + original.string[:blank].count("\n")
            raise SettingsError(f"{name_of_file}, line {line}: expected NAME=value")
        if name is not None and value is not None:
            values[name] = value
    return values


def _value(name: str, rule: Rule[T], environ: Mapping[str, str], file: Mapping[str, str]) -> T:
    text = environ.get(name, file.get(name, rule.default))
    try:
        text.encode()  # the environment may hold bytes that are not text
        # Blanks alone are no way to say nothing: who wrote them meant something.
        return rule.convert(text if rule.convert is word else text.strip() or text)
    except ValueError as error:
        # One line, whatever the value holds; and no password, which may also be part of a URL.
        shown = "…" if "PASSWORD" in name or name == "REDIS_URL" or "@" in text else repr(text)[1:-1]
        expected = error if isinstance(error, Expected) else rule.expected
        raise SettingsError(f"{name}={shown}: expected {expected}") from None


def _typing_mistakes(file: Mapping[str, str], name_of_file: str) -> list[str]:
    """A sentence for each name of the file that is not a setting, but nearly one. Others may be for other programs."""
    found: list[str] = []
    if all(name in NAMES for name in file):
        return found
    import difflib  # seldom needed, and --status is to be cheap

    for name in file:
        near = difflib.get_close_matches(name.upper(), NAMES, 3, LIKENESS)
        near.sort(key=lambda one: not one.startswith(name.upper()))  # it may have been cut short
        if name not in NAMES and near:
            found.append(f"{name_of_file}: {name} is not a setting and has no effect; did you mean {near[0]}?")
    return found
