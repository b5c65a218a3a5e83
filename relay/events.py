"""What consumers are told of the collector: the JSON of the status channel, the state hash. Pure: the caller gives the
time.
"""

import json
from collections.abc import Sequence
from typing import Any

# The field of the state hash for the collector as a whole; the others have the names of streams.
RESERVED_NAME = "*"
# Seconds until the state hash is gone when nobody writes it any more. What is left of them tells its age.
STATE_EXPIRY = 15


def encoded(message: Any) -> bytes:
    """Text as UTF-8, all else as compact JSON. Non-ASCII stays as it is; a lone surrogate is escaped as JSON does."""
    text = message if isinstance(message, str) else json.dumps(message, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="backslashreplace")


def encoded_event(event: str, ts: int, stream: str = "", topics: Sequence[str] = (), **fields: Any) -> bytes:
    """One event of the status channel. `ts` is in milliseconds, as Bybit's; `fields` follow the four that all have."""
    return encoded({"event": event, "stream": stream, "topics": list(topics), "ts": ts} | fields)
