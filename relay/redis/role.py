"""Whether a publisher leads or stands by, and which of its connections may carry messages. Pure."""

from collections.abc import Callable
from typing import Any

from relay.redis.resp import Query, ReplyError

Client = tuple[int, str]  # a connection as Redis knows it: id, and address as "ip:port"


class Role:
    """Each attribute is one value, which Python replaces at once; any thread may read it.

    shared: whether there is a lease, and so a standby. Otherwise the publisher leads for ever, on any connection.
    leading: written by lead() and stand_by() of the publisher.
    carrier: the connection that lead() was for; the publisher's thread forgets it when a connection ends.
    on_client: called when a new connection is known, which lead() may be for. The link's lock is held.
    """

    def __init__(self, shared: bool) -> None:
        self.shared = shared
        self.leading = not shared
        self.carrier: Client | None = None
        self.on_client: Callable[[], object] = lambda: None
        self._error: str | None = None  # why Redis did not tell a client
        self._is_error_taken = False

    def may_carry(self, client: Client | None) -> bool:
        """Whether this connection may carry messages."""
        return not self.shared or (self.leading and client is not None and client == self.carrier)

    def queries(self, set_client: Callable[[Client], None]) -> list[Query]:
        """What a new connection begins with. set_client: gets the client, under the link's lock."""

        def on_info(reply: Any) -> None:
            try:
                if isinstance(reply, ReplyError):
                    raise ValueError(str(reply))
                fields = dict(field.split("=", 1) for field in reply.decode().split() if "=" in field)
                set_client((int(fields["id"]), fields["addr"]))
            except (ValueError, KeyError, AttributeError) as error:
                self._error = self._error or str(error)
            else:
                self.on_client()

        return [Query(on_info, "CLIENT", "INFO")] if self.shared else []

    def take_error(self) -> str | None:
        """Why Redis does not tell the client, once; else None."""
        if self._error is None or self._is_error_taken:
            return None
        self._is_error_taken = True
        return self._error
