"""Where Redis is and how to log in: what REDIS_URL, REDIS_UNIX_SOCKET and the single settings say together. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from conf.converters import Expected, SettingsError, matching

URL_WORDS = (
    "redis://user:password@host:6379/0, rediss:// for TLS or unix:///path?db=0, with %40 for @, %23 for #, %2F for / "
    "and %3F for ? in user and password, or nothing"
)
NO_PARAMETERS = "no ?parameters but db: REDIS_SSL_CA, REDIS_SSL_CERT and REDIS_SSL_KEY are settings of their own"
# Systems allow some hundred bytes.
SOCKET = r"/.{1,102}"
SOCKET_WORDS = "the absolute path of a socket, of at most 103 characters, or nothing"
DATABASES = 1 << 20

# The values of settings by field name.
Values = Mapping[str, Any]


class Url(NamedTuple):
    """What REDIS_URL names; None: it says nothing of that. host: of a Unix socket its path, with port 0."""

    host: str
    port: int
    tls: bool
    db: int | None
    username: str | None
    password: str | None


def redis_url(text: str) -> Url | None:
    """A converter. A user name and a password are percent-encoded in a URL."""
    if not text:
        return None
    matching(r"(?i:rediss?|unix)://[^\s#]+")(text)
    parts = urlsplit(text)  # ValueError: brackets without an IPv6 address
    if parts.scheme == "unix":
        host, port, path = matching(SOCKET)(unquote(parts.path)), 0, ""
        matching("")(parts.hostname or "")
    else:
        host, port, path = matching(r"[^\s/,@]+")(parts.hostname or ""), _port(parts.port), parts.path.removeprefix("/")
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    if any(name != "db" for name, _ in parameters):  # its name is not shown: it may be the end of a password
        raise Expected(NO_PARAMETERS)
    databases = [number for number in (path, *(value for _, value in parameters)) if number]
    db = int(matching(r"[0-9]{1,7}")("".join(databases))) if databases else None
    if len(databases) > 1 or (db or 0) >= DATABASES:
        raise ValueError
    user, password = (unquote(each or "", errors="strict") or None for each in (parts.username, parts.password))
    return Url(host, port, parts.scheme == "rediss", db, user, password)


def _port(given: int | None) -> int:
    if given == 0:
        raise ValueError
    return given or 6379


def resolve(values: Values) -> tuple[dict[str, Any], list[str]]:
    """What the settings of Redis come to: the values that replace others, and the warnings.

    In the result redis_host alone says where Redis is: a Unix socket is (path, 0). Raises SettingsError for settings
    that contradict each other.
    """
    url, socket = values["redis_url"], values["redis_unix_socket"]
    source, changes = ("REDIS_URL", of_url(url)) if url else ("REDIS_UNIX_SOCKET", _of_socket(values, socket))
    port = values["redis_port"]
    defaults = {"redis_port": 6379, "redis_host": (("localhost", port),)}  # those of the others are empty
    given = {name: values[name] for name in changes if values[name] and values[name] != defaults.get(name)}
    idle = [name.upper() for name, value in given.items() if value != changes[name]]
    merged = {**values, **changes}
    for name in ("redis_password", "redis_sentinel_password"):
        if merged[name] is not None and merged[f"{name}_file"]:
            raise SettingsError(f"{name.upper()} and {name.upper()}_FILE are both set: expected one of them")
    for name in ("redis_ssl_ca", "redis_ssl_cert", "redis_ssl_key"):
        if merged[name] and not merged["redis_ssl"]:
            raise SettingsError(f"{name.upper()} is set without TLS: expected REDIS_SSL=True, or REDIS_URL=rediss://…")
    if merged["redis_ssl_key"] and not merged["redis_ssl_cert"]:
        raise SettingsError("REDIS_SSL_KEY is set without REDIS_SSL_CERT: expected both")
    return changes, [f"{source} is set, so these have no effect: {', '.join(idle)}"] if idle else []


def of_url(url: Url) -> dict[str, Any]:
    """What it names takes the place of the single settings; they hold for the rest."""
    changes = {"redis_host": ((url.host, url.port),), "redis_sentinels": (), "redis_ssl": url.tls}
    changes |= {"redis_unix_socket": ""} if url.port else {"redis_unix_socket": url.host}
    changes |= {"redis_port": url.port} if url.port else {}
    changes |= {} if url.db is None else {"redis_db": url.db}
    changes |= {} if url.username is None else {"redis_username": url.username}
    return changes | ({} if url.password is None else {"redis_password": url.password, "redis_password_file": ""})


def _of_socket(values: Values, path: str) -> dict[str, Any]:
    if not path:
        return {}
    for words, is_set in (
        ("REDIS_SENTINELS", values["redis_sentinels"]),
        ("several hosts in REDIS_HOST", len(values["redis_host"]) > 1),
        ("REDIS_SSL=True", values["redis_ssl"]),
    ):
        if is_set:
            raise SettingsError(f"REDIS_UNIX_SOCKET cannot be used with {words}: expected one of the two")
    return {"redis_host": ((path, 0),), "redis_port": 6379}
