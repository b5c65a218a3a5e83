"""Settings: read once from the environment and then from .env beside main.py, checked, and left here as constants.

A value that cannot be used ends the program at import with one sentence on stderr and exit code 2.
"""

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from dotenv import dotenv_values

T = TypeVar("T")

DAY = 86400.0
# https://bybit-exchange.github.io/docs/v5/websocket/public/orderbook
DEPTHS = dict.fromkeys(("linear", "spot", "inverse"), (1, 50, 200, 1000)) | {"option": (25, 100)}
# https://bybit-exchange.github.io/docs/v5/websocket/public/all-liquidation
LIQUIDATIONS = ("linear", "inverse")


# What the operator should know of the settings, for the log.
WARNINGS: list[str] = []


class _Problem(ValueError):
    """A sentence for the user."""


def _read_env_file(path: Path) -> dict[str, str]:
    """The settings in the .env at `path`, taken literally: no ${…} expansion, which would eat parts of passwords."""
    if os.environ.get("PYTHON_DOTENV_DISABLED", "").lower() in ("1", "true", "yes") or not path.exists():
        return {}
    complaints: list[str] = []
    watcher = logging.Handler(logging.WARNING)
    watcher.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    parser_log = logging.getLogger("dotenv.main")
    parser_log.addHandler(watcher)
    try:
        with path.open(encoding="utf-8") as stream:
            values = dotenv_values(stream=stream, interpolate=False)
    except (OSError, UnicodeError) as error:
        raise _Problem(f"{path} cannot be read: {error}") from None
    finally:
        parser_log.removeHandler(watcher)
    complaints += [f"{name} has no value (NAME=value is expected)" for name, value in values.items() if value is None]
    if complaints:
        raise _Problem(f"{path} cannot be read: {complaints[0]}")
    if values.get("REDIS_PASSWORD") and path.stat().st_mode & 0o004:
        WARNINGS.append(f"{path} holds a password and can be read by everybody: chmod o-r {path}")
    return {name: value for name, value in values.items() if value is not None}


def _setting(name: str, default: str, convert: Callable[[str], T], expected: str) -> T:
    text = os.environ.get(name, _file.get(name, default))
    try:
        text.encode()  # the environment may hold bytes that are no text
        return convert(text if convert is str else text.strip())
    except (ValueError, KeyError):
        shown = "…" if "PASSWORD" in name else repr(text)[1:-1]  # one line, whatever it holds
        raise _Problem(f"{name}={shown}: expected {expected}") from None


_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _boolean(text: str) -> bool:
    return _BOOLEANS[text.lower()]


def _check(condition: bool) -> None:
    if not condition:
        raise ValueError


def _number(low: float, high: float = math.inf) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = float(text)
        _check(math.isfinite(value) and low <= value <= high)
        return value

    return convert


def _integer(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        _check(low <= value <= high)
        return value

    return convert


def _one_of(allowed: Collection[str], fold: Callable[[str], str] = str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        _check(fold(text) in allowed)
        return fold(text)

    return convert


def _matching(pattern: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        _check(re.fullmatch(pattern, text) is not None)
        return text

    return convert


def _symbols(text: str) -> list[str]:
    symbols = list(dict.fromkeys(symbol.strip() for symbol in text.split(",")))
    # Symbols may hold letters of any script (Bybit lists some), but never white space, quotes or dots.
    _check(all(re.fullmatch(r"[\w-]+", symbol) for symbol in symbols))
    return symbols


try:
    _file = _read_env_file(Path(__file__).resolve().parent.parent / ".env")

    USE_TESTNET = _setting("USE_TESTNET", "True", _boolean, "True or False")
    CHANNEL_TYPE = _setting(
        "CHANNEL_TYPE", "linear", _one_of(DEPTHS, str.lower), "one of linear, spot, inverse, option"
    )
    SYMBOLS = _setting("SYMBOLS", "BTCUSDT", _symbols, "symbols separated by commas, such as BTCUSDT,ETHUSDT")
    # Levels on each side.
    ORDERBOOK_DEPTH = int(
        _setting(
            "ORDERBOOK_DEPTH",
            "25" if CHANNEL_TYPE == "option" else "50",
            _one_of([str(depth) for depth in DEPTHS[CHANNEL_TYPE]]),
            f"one of {', '.join(map(str, DEPTHS[CHANNEL_TYPE]))}, the depths that Bybit has for {CHANNEL_TYPE}",
        )
    )
    # Base URL in place of Bybit's, without the path; empty = Bybit's testnet or mainnet.
    BYBIT_WS_URL = _setting(
        "BYBIT_WS_URL", "", _matching(r"(wss?://[^\s/{}@]+/?)?"), "a base URL such as wss://stream.bybit.kz, or nothing"
    ).rstrip("/")
    # Channels are CHANNEL_PREFIX + _orderbook, _trades, _ticker, _liquidations.
    CHANNEL_PREFIX = _setting("CHANNEL_PREFIX", "stream:bybit", _matching(r"\S+"), "a word without spaces")

    # Seconds before a connection that was up comes back.
    RECONNECT_DELAY = _setting("RECONNECT_DELAY", "2", _number(0.01, DAY), "seconds, 0.01 to 86400")
    # Seconds; the delay doubles up to this while connections fail.
    RECONNECT_DELAY_MAX = _setting(
        "RECONNECT_DELAY_MAX",
        str(max(60.0, RECONNECT_DELAY)),
        _number(RECONNECT_DELAY, DAY),
        f"seconds, from RECONNECT_DELAY ({RECONNECT_DELAY:g}) to 86400",
    )
    # Seconds without data after which an order-book or ticker connection is replaced; 0 = never.
    STALL_TIMEOUT = _setting("STALL_TIMEOUT", "60", _number(0), "seconds, 0 or more")

    REDIS_HOST = _setting("REDIS_HOST", "localhost", _matching(r"\S+"), "a host name or address")
    REDIS_PORT = _setting("REDIS_PORT", "6379", _integer(1, 65535), "a port from 1 to 65535")
    REDIS_DB = _setting("REDIS_DB", "0", _integer(0, 1 << 20), "the number of a database, 0 or more")
    REDIS_USERNAME = _setting("REDIS_USERNAME", "", str, "a name") or None
    REDIS_PASSWORD = _setting("REDIS_PASSWORD", "", str, "a password") or None
    REDIS_SSL = _setting("REDIS_SSL", "False", _boolean, "True or False")
    # Mebibytes of messages kept while Redis is away.
    REDIS_BUFFER_MB = _setting("REDIS_BUFFER_MB", "256", _number(1, 1 << 20), "mebibytes, 1 or more")

    LOG_LEVEL = _setting(
        "LOG_LEVEL", "INFO", _one_of(("DEBUG", "INFO", "WARNING", "ERROR"), str.upper), "DEBUG, INFO, WARNING or ERROR"
    )

    if CHANNEL_TYPE == "option" and not all(symbol.count("-") >= 3 for symbol in SYMBOLS):
        # Bybit acknowledges any topic on option and then stays silent, so this must be caught here.
        raise _Problem(f"SYMBOLS={','.join(SYMBOLS)}: expected option contracts such as BTC-25JUN27-106000-P-USDT")
except _Problem as problem:
    print(f"Cannot start: {problem}", file=sys.stderr)
    raise SystemExit(2) from None
