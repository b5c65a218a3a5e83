"""Which topics Bybit has rejected, and until when it is not asked for them again. Pure: the caller gives the time."""

from collections.abc import Callable

# Seconds until a topic is asked for again: at first, doubling at each rejection, and at most. Bybit may list a symbol
# before each of its WebSocket servers knows it.
FIRST_RETRY, REJECTED_RETRY = 60.0, 3600.0
# Topics that are remembered: contracts of options come and go for ever.
MAX_REMEMBERED = 10_000


class RejectedTopics:
    """The memory of the process for topics that Bybit rejects, so that a reconnect does not ask for them again.

    first_retry, retry_after: seconds, after the first rejection and at most. forgotten: called with each topic that may
    be asked for again before its time, on the thread that called forget().

    Threads share it. Python makes each access to the dict atomic. Two streams that add the same topic at the same
    moment may both report it, which is harmless.
    """

    def __init__(
        self, retry_after: float = REJECTED_RETRY, forgotten: Callable[[str], object] = lambda _topic: None
    ) -> None:
        self.first_retry, self.retry_after = min(FIRST_RETRY, retry_after), retry_after
        self._forgotten = forgotten
        self._until: dict[str, tuple[float, float]] = {}  # by topic: when it may be asked for, the pause until then

    def add(self, topic: str, now: float) -> bool:
        """Whether the topic was not rejected before."""
        known = self._until.get(topic)
        pause = min(2 * known[1], self.retry_after) if known else self.first_retry
        if known is None or now >= known[0]:  # else another stream has just said so
            self._until[topic] = now + pause, pause
        if known is None and len(self._until) > MAX_REMEMBERED:
            # Those that may be asked for first: what is still wanted of them has its chance now.
            for each, _ in sorted(self._until.items(), key=lambda item: item[1])[: MAX_REMEMBERED // 2]:
                self._until.pop(each, None)
        return known is None

    def forget(self, topic: str) -> bool:
        """Has the topic asked for again, at once where a connection runs. Whether it was rejected before."""
        known = self._until.pop(topic, None) is not None
        if known:
            self._forgotten(topic)
        return known

    def blocks(self, topic: str, now: float) -> bool:
        """Whether it is too early to ask again."""
        known = self._until.get(topic)
        return known is not None and now < known[0]
