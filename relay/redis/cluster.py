"""Whether the Redis that publishes is a node of a Cluster, and whether it reaches the others. Pure.

A node hands each message to all others once, and whom it has no link to goes without. So a node that has just come
back, or that the network cuts off from most of the Cluster, takes messages that few subscribers get.
"""

from typing import Any

from relay.redis.pipeline import Refused, Unavailable
from relay.redis.resp import Query

# The keys of the lease have different slots; its holder ends connections, which another node may have; and two nodes
# hand on what they get in no common order, by which a standby strikes out what was published.
NO_LEASE = "LEADER_KEY needs a single Redis, or one behind Sentinel, and this is a node of a Cluster"
REPLICA = "it is a replica, whose messages would not reach the subscribers of its master"


class Nodes:
    """Asks what Redis is (HELLO), and, of a node, for its view of the Cluster. A replica is left.

    The publisher's thread; replies are stored under the link's lock.

    is_cluster: whether the present Redis has said so. reaches_all: whether the node has a link to each other one that
    is not known to have failed.
    """

    def __init__(self) -> None:
        self.begin(False)

    def begin(self, shares_lease: bool) -> None:
        """There is a new connection, perhaps to another Redis. shares_lease: to which no Cluster may lead."""
        self._is_asked, self._shares_lease = False, shares_lease
        self.is_cluster, self.reaches_all = False, True

    def queries(self) -> list[Query]:
        """The first question of a connection is what Redis is; it needs no right. Later ones go to a Cluster only."""
        if self._is_asked:
            return [Query(self._on_nodes, "CLUSTER", "NODES")] if self.is_cluster else []
        self._is_asked = True
        return [Query(self._on_hello, "HELLO")]

    def _on_hello(self, reply: Any) -> None:
        # Names and values in turn. An error: it is older than 6.0.
        words = reply if isinstance(reply, list) else []
        told = dict(zip(words[::2], words[1::2], strict=False))
        if told.get(b"role") == b"replica":  # the right to ask for the role later may be missing
            raise Unavailable(REPLICA)
        self.is_cluster = told.get(b"mode") == b"cluster"
        self.reaches_all = not self.is_cluster  # as far as is known
        if self.is_cluster and self._shares_lease:
            raise Refused(NO_LEASE)

    def _on_nodes(self, reply: Any) -> None:
        self.reaches_all = True
        if not isinstance(reply, bytes):
            return  # an error: the user lacks the right to ask
        # A line each: id, address, flags, master, ping, pong, epoch, link, then ranges of slots if it has some.
        nodes = [words for line in reply.decode(errors="replace").splitlines() if len(words := line.split()) >= 8]
        self.reaches_all = all(_is_linked(words) or "fail" in words[2].split(",") for words in nodes)
        masters = [words for words in nodes if words[8:] and "master" in words[2].split(",")]
        reached = [words for words in masters if _is_linked(words) and not {"fail", "fail?"} & {*words[2].split(",")}]
        if masters and len(reached) * 2 <= len(masters):
            raise Unavailable("it is cut off from most of its Cluster")


def _is_linked(words: list[str]) -> bool:
    return words[7] == "connected" or "myself" in words[2]
