"""How the text of a setting becomes its value. A converter raises ValueError for a text that it cannot take. Pure."""

import math
import re
from collections.abc import Callable, Collection
from typing import TypeVar
from urllib.parse import urlsplit

from relay.kinds import is_pattern, is_symbol
from relay.redis.address import Address

T = TypeVar("T")

Shard = tuple[int, int]  # its number, from 1, and how many there are


class SettingsError(ValueError):
    """A setting cannot be used. Its text is a sentence for the user, and holds no password."""


class Expected(ValueError):
    """What a text should have been, where a converter knows that better than its rule."""


def _check(condition: bool) -> None:
    if not condition:
        raise ValueError


def boolean(text: str) -> bool:
    _check(text.lower() in ("true", "1", "yes", "on", "false", "0", "no", "off"))
    return text.lower() in ("true", "1", "yes", "on")


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    def convert(text: str) -> float:
        _check(text.isascii() and "_" not in text)  # float() takes 1_0 and the digits of all scripts
        value = float(text)
        _check(math.isfinite(value) and low <= value <= high)
        return value

    return convert


def integer(allowed: Collection[int]) -> Callable[[str], int]:
    def convert(text: str) -> int:
        _check(text.isascii() and "_" not in text)
        value = int(text)
        _check(value in allowed)
        return value

    return convert


def one_of(allowed: Collection[str], fold: Callable[[str], str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        _check(fold(text) in allowed)
        return fold(text)

    return convert


def matching(pattern: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        _check(text.isprintable() and re.fullmatch(pattern, text) is not None)
        return text

    return convert


def base_url(schemes: str) -> Callable[[str], str]:
    """schemes: as a regular expression."""

    def convert(text: str) -> str:
        _check(text.isprintable() and re.fullmatch(rf"({schemes}://[^\s/{{}}@?#]+/?)?", text) is not None)
        parts = urlsplit(text)  # ValueError: brackets without an IPv6 address
        _check(not text or (bool(parts.hostname) and parts.port != 0))  # .port: ValueError if it is none
        return text.rstrip("/")

    return convert


def addresses(port: int) -> Callable[[str], tuple[Address, ...]]:
    """Hosts, each with a port or without, separated by commas. port: of those without one."""
    return lambda text: tuple(dict.fromkeys(_address(each.strip(), port) for each in text.split(",")))


def _address(text: str, port: int) -> Address:
    """host, host:port, an IPv6 address, or [IPv6 address]:port."""
    _check(text.isprintable())
    bracketed = re.fullmatch(r"\[([^\s/@\[\]]+)\](?::([0-9]{1,5}))?", text)
    plain = re.fullmatch(r"([^\s/@\[\]:]+)(?::([0-9]{1,5}))?", text)
    if found := bracketed or plain:
        host, given = found.groups()
    else:  # more than one colon: an IPv6 address
        host, given = text, None
        _check(re.fullmatch(r"[^\s/@\[\]]+", text) is not None and text.count(":") > 1)
    _check(given is None or 1 <= int(given) <= 65535)
    return host, int(given or port)


def optional(convert: Callable[[str], tuple[T, ...]]) -> Callable[[str], tuple[T, ...]]:
    """The same converter; nothing becomes an empty tuple."""
    return lambda text: convert(text) if text else ()


def word(text: str) -> str | None:
    """Anything; nothing becomes None."""
    return text or None


def symbols(text: str) -> tuple[str, ...]:
    """Symbols and patterns of symbols."""
    found = tuple(dict.fromkeys(symbol.strip() for symbol in text.split(",")))
    _check(all(is_symbol(symbol) or is_pattern(symbol) for symbol in found))
    return found


def contracts(text: str) -> tuple[str, ...]:
    """The same for option: Bybit acknowledges any topic there and then stays silent, so a wrong symbol is refused."""
    _check(all(symbol.count("-") >= 3 or is_pattern(symbol) for symbol in symbols(text)))
    return symbols(text)


def coins(text: str) -> tuple[str, ...]:
    """Names of base coins."""
    found = tuple(dict.fromkeys(coin.strip() for coin in text.split(",")))
    _check(all(re.fullmatch("[A-Z0-9]+", coin) for coin in found))
    return found


def part_of(text: str) -> Shard | None:
    """ "1/3": the first of three. Nothing: None."""
    if not text:
        return None
    found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    _check(found is not None and 1 <= int(found[1]) <= int(found[2]))
    return (int(found[1]), int(found[2])) if found else None
