"""From a message to its callback. A failing callback costs neither the connection nor the other messages."""

import json
import logging
import os.path
import reprlib
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, TypeVar

from relay.batch import Batch
from relay.errors import ConnectionLost
from relay.log import LogOnce, shorten
from relay.stats import StreamStats

log = logging.getLogger(__name__)

Message = dict[str, Any] | str | bytes
Callback = Callable[[Any], object]
C = TypeVar("C", bound=Callback)


def raw(callback: C) -> C:
    """Marks a callback that takes the text of a message, in bytes, instead of a dict: then nothing is parsed."""
    callback.raw = True  # type: ignore[attr-defined]
    return callback


def batched(callback: C) -> C:
    """Marks a callback that takes the text of a message, in bytes, or a Batch of such texts. The thread Reader gives it
    all that it has read at once; the connection's own thread gives it one text at a time. It must not block: the Reader
    reads all connections.
    """
    callback.batched = True  # type: ignore[attr-defined]
    return raw(callback)


def is_utf8(message: bytes) -> bool:
    try:
        message.decode()
    except UnicodeDecodeError:
        return False
    return True


class Router:
    """Delivers the messages of one connection, on the thread that owns it.

    callbacks: by topic. on_control: gets every JSON object without a topic, such as an answer to a request.
    """

    def __init__(
        self,
        callbacks: Mapping[str, Callback],
        stats: StreamStats,
        log_once: LogOnce,
        on_control: Callable[[dict[str, Any]], None],
    ) -> None:
        self._stats, self._log_once, self._on_control = stats, log_once, on_control
        self._unlogged: dict[type, tuple[Callback, BaseException]] = {}  # the first failure of each kind
        self.route(callbacks)

    def route(self, callbacks: Mapping[str, Callback]) -> None:
        """Delivers by these callbacks from now on, in place of all others."""
        self._callbacks = callbacks
        first = next(iter(callbacks.values()), None)
        only = first if all(callback is first for callback in callbacks.values()) else None
        self._raw_callback = only if getattr(only, "raw", False) else None
        self.takes_batches = getattr(only, "batched", False)
        # A message that begins like this goes to the callback unparsed. Bybit's documentation promises no order of
        # JSON members, so every other message is parsed, and arrives just the same.
        common = os.path.commonprefix(list(callbacks))  # noqa: RUF071 - topics are no paths
        self._prefix = b'{"topic":"' + common.encode()

    def deliver(self, messages: Sequence[bytes]) -> int:
        """Hands each message to its callback. Returns how many were data. Raises ConnectionLost; those before the
        message that ends the connection are delivered and counted.
        """
        callback, prefix, data = self._raw_callback, self._prefix, 0
        try:
            for message in messages:
                # ASCII needs no check of its UTF-8, and nearly every message of Bybit's is ASCII.
                if callback is not None and message.startswith(prefix) and (message.isascii() or is_utf8(message)):
                    data += 1
                    try:
                        callback(message)
                    except BaseException as error:  # also SystemExit, see _failed()
                        self._failed(callback, error)
                else:
                    data += self._parse(message)
        finally:
            if data:
                self._stats.messages += data
                self._stats.last_message = monotonic()
        return data

    def deliver_plain(self, messages: list[bytes]) -> bool:
        """Hands all messages on at once, if they are plainly data. Returns whether they were. For the Reader, where
        `takes_batches`: the connection's thread calls log_failures() later.
        """
        callback, prefix = self._raw_callback, self._prefix
        assert callback
        if not messages:
            return True
        for message in messages:
            if not (message.startswith(prefix) and (message.isascii() or is_utf8(message))):
                return False
        try:
            callback(Batch(messages) if len(messages) > 1 else messages[0])
        except BaseException as error:
            self._stats.callback_failures += len(messages)
            self._unlogged.setdefault(type(error), (callback, error))
        stats = self._stats
        stats.messages += len(messages)
        stats.last_message = monotonic()
        return True

    def log_failures(self) -> None:
        """Tells the log what failed in deliver_plain(). The connection's thread, as the line bears its name."""
        if self._unlogged:
            failures, self._unlogged = self._unlogged, {}
            for callback, error in failures.values():
                self._log_failure(callback, error)

    def _parse(self, message: bytes) -> int:
        """Delivers a message that is not plainly data for a raw callback. Returns 1 if it was data, else 0."""
        try:
            text = message.decode()
        except UnicodeDecodeError as error:
            # RFC 6455, 8.1: a text frame that is not UTF-8 fails the connection.
            raise ConnectionLost(f"a frame that is not UTF-8: {shorten(message[:80])}") from error
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            self._stats.ignored += 1
            if self._log_once.first("not an object"):
                log.error(
                    "Ignoring (logged once): a frame that is not a JSON object: %(text)s", {"text": shorten(text)}
                )
            return 0
        topic = parsed.get("topic")
        if not isinstance(topic, str):
            self._on_control(parsed)
            return 0
        callback = self._callbacks.get(topic)
        if callback is None:
            self._stats.ignored += 1
            if self._log_once.first("unknown topic", topic):
                log.error(
                    "Ignoring (logged once): messages of %(topic)s, which was not requested", {"topic": shorten(topic)}
                )
            return 0
        try:
            callback(message if getattr(callback, "raw", False) else parsed)
        except BaseException as error:
            self._failed(callback, error)
        return 1

    def _failed(self, callback: Callback, error: BaseException) -> None:
        """The fault barrier around callbacks. Every failure is counted, the first of a kind is logged. sys.exit() in a
        callback is one, too: on a connection's thread it would end no program, only the connection.
        """
        self._stats.callback_failures += 1
        self._log_failure(callback, error)

    def _log_failure(self, callback: Callback, error: BaseException) -> None:
        name = getattr(callback, "__qualname__", None) or reprlib.repr(callback)  # short, whatever its __repr__ does
        if self._log_once.first("callback", (name, type(error))):
            log.error(
                "callback %(callback)s failed (later failures of this kind are only counted)",
                {"callback": name},
                exc_info=error,
            )
