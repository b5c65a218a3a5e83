"""Whether what Redis was sent still gets anywhere, so that a slow link is not taken for a hang. Pure."""

# Bytes a second. What arrives more slowly counts as hanging: else a peer that takes a byte now and then held up all.
SLOWEST = 8192


class Progress:
    """Seconds of patience, `timeout` at most. They pass; a reply gives all of them back, and each byte that arrives at
    the other machine a part: as long as SLOWEST allows for it.

    Only bytes that were on their way at the last reply count: the command that is to be answered next is among them. A
    Redis that hangs takes more, as its kernel has buffers, and that must not hide it.

    The holder of the link's lock owns it. sent: bytes that the socket has taken since the beginning. since: when all
    patience was given back, or later, by that part. Times are monotonic.
    """

    def __init__(self, timeout: float, now: float) -> None:
        self.sent = 0
        self._timeout, self.since = timeout, now
        self._goal = self._arrived = 0  # bytes since the beginning

    def begin(self, now: float, unsent: int) -> None:
        """A reply has come, or there is something to be answered after a pause. unsent: bytes that are to be sent."""
        self.since, self._goal = now, self.sent + unsent

    def is_overdue(self, now: float, queued: int) -> bool:
        """Whether patience has ended. queued: bytes of `sent` that have not arrived. To be asked several times a
        second while something is to be answered.
        """
        arrived = min(self.sent - queued, self._goal)
        if arrived > self._arrived:
            self.since = min(now, self.since + (arrived - self._arrived) / SLOWEST)
            self._arrived = arrived
        return now - self.since >= self._timeout
