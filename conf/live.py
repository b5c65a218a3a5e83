"""The settings as they are read from the environment and the settings file, and read again while the program runs.

The settings file is .env beside main.py, or the one that the environment variable ENV_FILE names.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from conf.converters import SettingsError
from conf.location import of_url
from conf.rules import NAMES, Settings, parse, settings_of

Login = tuple[str | None, str | None]  # user name and password

# What counts as soon as it is read again.
LOGIN = ("username", "password", "password_file")
LIVE = ("log_level", *(f"redis_{each}" for each in LOGIN), *(f"redis_sentinel_{each}" for each in LOGIN))
PASSWORDS = ("REDIS_PASSWORD", "REDIS_SENTINEL_PASSWORD")


class Changes(NamedTuple):
    """What reload() found.

    live: the names of the settings that count from now on. waiting: of those that need a restart. warnings: new ones.
    """

    live: list[str]
    waiting: list[str]
    warnings: list[str]
    log_level: str


class Credentials:
    """User name and password. The latter may be the content of a file, which is read whenever it is needed.

    name: of the setting that is the password. Raises SettingsError if the file cannot be read at first; later what it
    held before counts.
    """

    def __init__(self, name: str, username: str | None, password: str | None, file: str) -> None:
        self._name, self._username, self._file = name, username, file
        self._password = self._read() if file else password
        self._is_lost = False

    def login(self) -> Login:
        """As it is now. Any thread."""
        if self._file:
            try:
                self._password, self._is_lost = self._read(), False
            except SettingsError as problem:
                if not self._is_lost:
                    self._is_lost = True
                    import logging  # here, as --status is to be cheap

                    log = logging.getLogger(__name__)
                    log.warning("%(problem)s; going on with the password that it held before", {"problem": problem})
        return self._username, self._password

    def _read(self) -> str:
        text = text_of(Path(self._file), f"{self._name}_FILE").removesuffix("\n").removesuffix("\r")
        if not text:
            raise SettingsError(f"{self._name}_FILE: {self._file} is empty: expected a password")
        return text


class Live:
    """The main thread makes it and calls reload(); any thread calls the others.

    settings: those of the start. Raises SettingsError.
    """

    def __init__(self, beside_main: Path, environ: Mapping[str, str]) -> None:
        self._path = file_of(beside_main, environ)
        self._environ = {name: environ[name] for name in NAMES if name in environ}
        # A .env may be missing, a file that was named may not.
        text = text_of(self._path) if self._path and (self._path != beside_main or self._path.exists()) else ""
        self._name = self._path.name if self._path else ""
        self._file = parse(text, self._name, self._environ)
        self.settings = self._now = self._load(self._environ, self._file)
        check_certificates(self.settings)
        self._credentials = credentials(self.settings)

    def login(self) -> Login:
        """User name and password at Redis, as they are now."""
        return self._credentials[0].login()

    def sentinel_login(self) -> Login:
        """The same at Sentinel."""
        return self._credentials[1].login()

    def reload(self) -> Changes:
        """Reads the settings file again. What has changed in it since counts, also over the environment, from which it
        may have come at the start. Raises SettingsError, and then all stays as it was.
        """
        if self._path is None:
            raise SettingsError("they come from the environment alone, where nobody can change them")
        text = text_of(self._path)
        file, environ = parse(text, self._name), self._environ.copy()
        for name in environ.keys() & {*file, *self._file}:
            before, after = self._file.get(name), file.get(name)
            if before != after and (after is not None or environ[name] == before):
                del environ[name]
        settings = self._load(environ, file)
        found = credentials(settings)
        changes = Changes(
            _differing(self._now, settings, live=True),
            _differing(self.settings, settings, live=False),
            [warning for warning in settings.warnings if warning not in self._now.warnings],
            settings.log_level,
        )
        self._environ, self._file, self._now, self._credentials = environ, file, settings, found
        return changes

    def _load(self, environ: Mapping[str, str], file: Mapping[str, str]) -> Settings:
        settings = settings_of(environ, file, self._name)
        holds_password = any(file.get(name) for name in PASSWORDS) or "@" in file.get("REDIS_URL", "")
        if holds_password and self._path and self._path.stat().st_mode & 0o004:
            warning = f"{self._path} holds a password and everybody can read it: chmod o-r {self._path}"
            return replace(settings, warnings=(*settings.warnings, warning))
        return settings


def file_of(beside_main: Path, environ: Mapping[str, str]) -> Path | None:
    """The settings file; None: there is none."""
    if named := environ.get("ENV_FILE"):
        return Path(named).absolute()
    return None if environ.get("PYTHON_DOTENV_DISABLED", "").lower() in ("1", "true", "yes") else beside_main


def text_of(path: Path, name: str = "") -> str:
    """The text of a file. name: of the setting that names it. Raises SettingsError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{name}{': ' if name else ''}{path} cannot be read: {reason}") from None


def credentials(settings: Settings) -> tuple[Credentials, Credentials]:
    """For Redis and for Sentinel. Raises SettingsError."""
    redis = settings.redis_username, settings.redis_password, settings.redis_password_file
    sentinel = (
        settings.redis_sentinel_username,
        settings.redis_sentinel_password,
        settings.redis_sentinel_password_file,
    )
    return Credentials("REDIS_PASSWORD", *redis), Credentials("REDIS_SENTINEL_PASSWORD", *sentinel)


def check_certificates(settings: Settings) -> None:
    """Raises SettingsError for a file that cannot be used. Each connection reads them again."""
    ca, cert, key = settings.redis_ssl_ca, settings.redis_ssl_cert, settings.redis_ssl_key
    if not ca and not cert:
        return
    import ssl  # here, as it takes time, and few need it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    name, file = "REDIS_SSL_CA", ca
    try:
        if ca:
            context.load_verify_locations(ca)
        name, file = "REDIS_SSL_CERT", f"{cert} with the key of {key or 'the same file'}"
        if cert:
            context.load_cert_chain(cert, key or None, password="")
    except OSError as error:
        reason = error.strerror or f"{error}"
        raise SettingsError(f"{name}: {file} cannot be used: {reason}; expected PEM, without a passphrase") from None


def _differing(one: Settings, other: Settings, *, live: bool) -> list[str]:
    """The names of the settings in which they differ: those that count at once, or the others."""
    by_url = {name for each in (one, other) if each.redis_url for name in of_url(each.redis_url)}
    found = [field.name for field in fields(Settings) if getattr(one, field.name) != getattr(other, field.name)]
    chosen = [name for name in found if name not in ("redis_url", "warnings") and (name in LIVE) == live]
    return list(dict.fromkeys("REDIS_URL" if name in by_url else name.upper() for name in chosen))
