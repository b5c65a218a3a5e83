"""A collector that stands by: it strikes out what the leader publishes, and takes the lease when it is free."""

import logging
import math
from collections.abc import Collection
from time import monotonic, time

from relay.channels import channel_of_symbol, pattern_of_symbols
from relay.events import encoded_event
from relay.redis.lease import TIMEOUT
from relay.redis.member import Member
from relay.redis.publisher import Publisher
from relay.redis.registry import LEADER, STANDBY
from relay.redis.role import Client
from relay.redis.watch import Watch

log = logging.getLogger(__name__)

# Seconds between two attempts to take the lease; that a new leader waits for its own announcement.
TRY, SETTLE = 0.1, 1.0
# Seconds for which a standby keeps what it has not seen published, although the leader says that all is well: longer
# than a leader needs to notice that its own connection to Bybit is dead (30 s) or stalls (STALL_TIMEOUT).
KEPT = 600.0


class Standby:
    """The thread "Leader" owns it.

    channels: on which data may be published, beside those that the publisher has seen. by_symbol: those of them beside
    which each symbol has its own: these are watched by pattern, as there may be thousands, and new ones at any time.
    """

    def __init__(
        self, publisher: Publisher, member: Member, channels: Collection[str], by_symbol: Collection[str] = ()
    ) -> None:
        self._publisher, self._member = publisher, member
        self._channels = frozenset(channels) | {publisher.status, publisher.standby_channel}
        self._watch = Watch(publisher.new_connection, TIMEOUT)
        self._free_since = math.inf  # monotonic time at which the lease was first seen to be free
        self._try_at = 0.0  # monotonic time of the next attempt to take it
        self._patterns = tuple(map(pattern_of_symbols, by_symbol))
        self._matched = tuple(channel_of_symbol(channel, "") for channel in by_symbol)  # how what they match begins
        self._seen: list[str] = []  # channels of the publisher at the last look

    def turn(self) -> Client | None:
        """One turn, of up to TRY seconds. Returns the connection that leads from now on, if one does."""
        member = self._member
        self.subscribe()
        if member.is_due():
            member.look()
            self.tell()
            member.examine()
            if (until := member.registry.published_until(monotonic())) is not None:
                self._publisher.prune(round((until - KEPT) * 1000))
        if self._may_take() and (led := self.take()):
            return led
        self.strike(TRY)
        return None

    def subscribe(self) -> None:
        """Makes the subscription stand, on all channels that are known by now."""
        seen = self._publisher.channels
        if self._watch.is_open and seen == self._seen:  # a turn must be cheap
            return
        self._seen = seen
        channels = {channel for channel in self._channels.union(seen) if not channel.startswith(self._matched)}
        if channels != set(self._watch.channels):
            self._watch.open(channels, self._patterns)

    def tell(self) -> None:
        """Writes the entry of this instance."""
        publisher, member = self._publisher, self._member
        client = publisher.client
        ready = client is not None and self._watch.is_open and member.is_subscribed
        member.tell(member.entry(STANDBY, client, ready, publisher.pending))

    def strike(self, seconds: float) -> list[bytes]:
        """Strikes out what was published. Waits up to `seconds` for it. Returns the messages of the status channel."""
        events = []
        for channel, message in self._watch.read(seconds):
            if channel == self._publisher.status:
                events.append(message)
            else:
                self._publisher.strike(channel, message)
        return events

    def close(self) -> None:
        """Ends the subscription."""
        self._watch.close()

    def _may_take(self) -> bool:
        """Whether to try now. Who is not ready leaves the lease to somebody who is, for a while."""
        now, member = monotonic(), self._member
        if member.lease.is_valid:  # taken, but the takeover was interrupted
            return True
        if now < self._try_at or member.registry.name_is_taken(now):
            return False
        self._try_at = now + TRY
        patience = member.registry.patience(member.is_subscribed, now)
        if not patience:
            return True
        if member.lease.holder() is not None:
            self._free_since = math.inf
        elif self._free_since == math.inf:
            self._free_since = now
        return now - self._free_since >= patience

    def take(self) -> Client | None:
        """Takes the lease if it is free, and over from whoever led. Returns the connection that leads from now on, if
        one does. Nothing of an earlier leader comes after the announcement, and nothing of this one before it.
        """
        publisher, member, lease = self._publisher, self._member, self._member.lease
        client = publisher.client
        if client is None or not (lease.is_valid or lease.acquire(client)):
            return None
        self._free_since = math.inf
        member.look()
        # The lease may be gone, though the own clock says that it is valid: Redis was restarted, or this machine was
        # suspended. Then the connections of the others are not to be cut.
        if not lease.renew():
            lease.valid_until = 0.0
            return None
        member.cut(member.registry.clients())  # none of the others publishes from here on
        missing = member.missing()
        member.term = member.registry.term + 1
        event = encoded_event("leader", round(time() * 1000), instance=member.name, term=member.term)
        entry = member.entry(LEADER, client, True, publisher.pending)
        if not member.tell_as_holder(entry, publisher.status, event):
            lease.valid_until = 0.0
            return None
        deadline = monotonic() + SETTLE
        while event not in self.strike(TRY):
            if monotonic() >= deadline:
                log.warning(
                    "%(instance)s does not see its own announcement: messages may come twice", {"instance": member.name}
                )
                break
        if not lease.renew():
            lease.valid_until = 0.0
            return None
        pending = publisher.pending
        publisher.lead(client)
        for stream, topics in missing.items():
            publisher.announce("lost", stream, topics, reason=f"{member.name} was not ready to take over", since=None)
        self.close()
        log.warning(
            "%(instance)s leads now, term %(term)d; %(messages)d messages were pending",
            {"instance": member.name, "term": member.term, "messages": pending},
        )
        return client
