"""How the stand-in treats a connection: answers, delays, faults."""

from dataclasses import dataclass
from typing import Literal

End = Literal["drop", "reset", "close", "freeze", "freeze inside frame", "silence"]


@dataclass(frozen=True)
class Script:
    """How the server treats one connection; the default is Bybit without any fault.

    A data frame is a text frame with a topic, wherever it comes from (market, replay, publish, inject, send).
    """

    handshake: int | Literal["ok", "never", "never tls", "nonsense"] = "ok"
    """An HTTP status to reject with; "never" answers no upgrade, "never tls" no TLS hello, "nonsense" is not HTTP."""
    ack_delay: float | None = 0.01
    """Seconds until (un)subscribing is answered, then the data starts; 0 in the same write; None never, and no data."""
    data_before_ack: int = 0
    """Data frames that go before the acknowledgement; with `ack_delay=None` data flows and is never acknowledged."""
    end: End | None = None
    """What happens after `end_after` data frames; see the methods of `Connection` with these names."""
    end_after: int = 0
    """0 = right after the handshake."""
    close_code: int = 1000
    """The code of the close frame of `end="close"`."""
    inject: tuple[tuple[int, str | bytes], ...] = ()
    """(n, payload) sends a text (str) or binary (bytes) frame after the n-th data frame."""
    refuse: tuple[str, ...] = ()
    """Topics rejected although known; on option they come back in failTopics and the rest is subscribed."""
    unnamed: bool = False
    """Rejections do not name the topic."""
    overflow: Literal["refuse", "close"] = "refuse"
    """What args beyond 21,000 characters cause (Bybit's way is unknown): the request is rejected, or the connection
    dropped."""


@dataclass(frozen=True)
class RestScript:
    """How REST is answered; the default is Bybit without any fault."""

    status: int = 200
    """HTTP."""
    ret_code: int = 0
    """Bybit's own: other than 0 an answer has nothing else."""
    ret_msg: str = "Too many visits. Exceeded the API Rate Limit."
    headers: tuple[tuple[str, str], ...] = ()
    """More headers: ("X-Bapi-Limit-Reset-Timestamp", "4102444800000") with `ret_code=10006`."""
    body: Literal["json", "garbage", "hang", "drip", "flood"] = "json"
    """"garbage" is no JSON, "hang" no answer; "drip" is one without an end, byte by byte, "flood" as fast as it is
    read."""
    listing: Literal["whole", "empty", "half"] = "whole"
    """"half" = the first half of the instruments that the request is about."""
    page_size: int = 1000
    """The most instruments in an answer, whatever the request wants."""
    without_page: int = 0
    """This page, from 1, is empty and the last."""
    cursor_at_end: bool = False
    """The last page has a cursor too; the one behind it is empty."""
    delay: float = 0.0
    """Seconds until the answer."""


class Knobs:
    """How the server treats all connections alike. Each may be set at any time, from any thread."""

    rest: RestScript = RestScript()

    own_ts: bool = False
    """Each connection has a `ts` of its own: it differs by some ms, and nothing else of the frame does."""
    cut_trades: bool = False
    """Each connection has the same trades in the same order, but cut into frames in its own way."""
    snapshot_again: bool = True
    """A topic that is subscribed again on a connection begins with a snapshot, as one that is new there."""
