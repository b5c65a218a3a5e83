"""--check, where Redis Streams are kept beside the channels: tries whether Redis would take an XADD. Adds nothing."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import redis

from relay.redis.durable import DRY_RUN, is_welcome, refusal


def stream_problems(ask: Callable[..., Any], channels: Sequence[str]) -> Iterator[str]:
    """What speaks against a stream for each of these channels, a sentence each. ask: gives the reply to a command, an
    error too. Raises what it raises.
    """
    mode = ask("INFO", "cluster")
    if error := refusal(mode):
        yield error
        return
    errors: dict[str, list[str]] = {}
    for channel in channels:
        reply = ask("XADD", channel, *DRY_RUN)
        if not is_welcome(reply):
            errors.setdefault(str(reply), []).append(channel)
            continue
        kind = ask("TYPE", channel)
        if not isinstance(kind, redis.ResponseError) and kind not in (b"stream", b"none"):
            errors.setdefault(f"the key holds a {kind.decode()}", []).append(channel)
    for text, found in errors.items():
        yield f"{', '.join(found)}: {text}"
