"""RESP2, the protocol of Redis, as far as it is needed here: commands as bytes, replies as values. Pure."""

from collections.abc import Callable
from typing import Any, Self

_PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$"


class ReplyError(Exception):
    """An error reply to a query; on_reply gets it as a value."""


class Query(bytes):
    """A command that is not a message, such as ROLE. It is not sent again on another connection.

    on_reply: gets the reply: None, int, bytes, list or ReplyError. It runs under the link's lock on any thread, so it
    only stores the reply, or raises Unavailable.
    """

    on_reply: Callable[[Any], None]

    def __new__(cls, on_reply: Callable[[Any], None], *words: str) -> Self:
        parts = [word.encode(errors="backslashreplace") for word in words]
        query = super().__new__(cls, b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
        query.on_reply = on_reply
        return query


def ignore(_reply: Any) -> None:
    """The on_reply of a query whose reply nobody waits for, or that is read elsewhere."""


def publish_head(channel: str) -> bytes:
    """The beginning of a PUBLISH command; f"{size}\\r\\n{message}\\r\\n" completes it."""
    name = channel.encode()
    return b"%b%d\r\n%b\r\n$" % (_PUBLISH, len(name), name)


def _channel_at(command: bytes) -> tuple[int, int]:
    """Where the channel of a PUBLISH command begins and ends. A channel may hold anything, line ends too."""
    start = command.index(b"\r\n", len(_PUBLISH)) + 2
    return start, start + int(command[len(_PUBLISH) : start])


def channel_of(command: bytes) -> str:
    """The channel of a PUBLISH command."""
    start, end = _channel_at(command)
    return command[start:end].decode()


def text_of(command: bytes) -> bytes:
    """The message of a PUBLISH command."""
    _, end = _channel_at(command)
    return command[command.index(b"\r\n", end + 2) + 2 : -2]


def split(command: bytes) -> tuple[str, int]:
    """The channel of a PUBLISH command, and where its publish_head() ends."""
    start, end = _channel_at(command)
    return command[start:end].decode(), end + len(b"\r\n$")


def parse_reply(data: bytes, at: int) -> tuple[Any, int]:
    """The RESP2 value at `at` and where the next one begins, -1 if it is not complete. Errors are values."""
    end = data.find(b"\r\n", at)
    if end < 0:
        return None, -1
    kind, line, at = data[at : at + 1], data[at + 1 : end], end + 2
    if kind == b":":
        return int(line), at
    if kind == b"-":
        return ReplyError(line.decode(errors="replace")), at
    if kind == b"$":
        size = int(line)
        if size < 0:
            return None, at
        return (data[at : at + size], at + size + 2) if at + size + 2 <= len(data) else (None, -1)
    if kind == b"*":
        values = []
        for _ in range(int(line)):
            value, at = parse_reply(data, at)
            if at < 0:
                return None, -1
            values.append(value)
        return values, at
    return line, at
