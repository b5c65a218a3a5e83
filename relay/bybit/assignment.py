"""What main assigns to a connection, carried out while it runs."""

from collections.abc import Mapping

from relay.bybit.exchange import Exchange
from relay.bybit.repair import Repair
from relay.bybit.subscription import Subscription
from relay.dispatch import Callback, Router

# Seconds for which messages of a topic are at least still delivered after it has left: they were on their way. It is
# forgotten with the first change after that: what comes of a topic that was unsubscribed is not worth a timer.
LATE = 60.0


class Assignment:
    """A part of one connection, on its thread. name: of the connection. topics: with which it begins."""

    def __init__(
        self, exchange: Exchange, name: str, topics: Mapping[str, Callback], router: Router, repair: Repair
    ) -> None:
        self._exchange, self._name = exchange, name
        self._router, self._repair = router, repair
        self._topics = topics
        self._parted: dict[str, tuple[Callback, float]] = {}  # callback of a topic that was taken away, and when

    def follow(self, subscription: Subscription, now: float) -> None:
        """Makes the topics those that are assigned now: a Plan. Cheap when nothing has changed. Where nothing is
        assigned the topics stay what they were in the beginning.
        """
        topics = self._exchange.assigned.get(self._name)
        if topics is None or topics is self._topics:
            return
        gone = {topic: (callback, now) for topic, callback in self._topics.items() if topic not in topics}
        self._parted = {
            topic: (callback, since)
            for topic, (callback, since) in (self._parted | gone).items()
            if topic not in topics and (topic in subscription.states or now - since < LATE)
        }
        self._topics = topics
        # Before anything is asked of Bybit, so that whoever gets a message of a new topic knows of it.
        self._router.route({topic: callback for topic, (callback, _) in self._parted.items()} | topics)
        subscription.release(gone)
        subscription.want(topics)
        self._repair.follow()
