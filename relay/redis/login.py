"""Logging in to Redis: with what counts now, whenever a connection is made."""

from collections.abc import Callable

import redis

# For the log, where Redis denies a login that is not the first.
REMEDY = "each attempt reads REDIS_PASSWORD_FILE again, SIGHUP the settings"


class Login(redis.CredentialProvider):
    """Asks for user name and password whenever a connection is made. current: tells them; any thread."""

    def __init__(self, current: Callable[[], tuple[str | None, str | None]]) -> None:
        self._current = current

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        username, password = self._current()
        if username:
            return username, password or ""
        return (password,) if password else ()  # type: ignore[return-value]  # no AUTH: the contract tests hold it


def is_denied(error: Exception) -> bool:
    """Whether Redis or Sentinel does not accept the login, or wants one."""
    return isinstance(error, redis.AuthenticationError) or str(error).startswith(("NOAUTH", "Authentication required"))
