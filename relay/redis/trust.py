"""Whether what Redis confirms can be relied on. Pure.

A server that is no master any more, or not yet the one to which the subscribers have come, confirms like any other.
What it confirms is retained until it has proved to be the right one; if it has not, all that goes to the next one.

    unknown  --- it is the same server as before, and a master ---------------> proved
    unknown  --- it is another one: what is retained is sent there again; all
                 subscribers that were there before are back -----------------> proved
                 they are not, when the grace period has ended ---------------> doubtful
    doubtful --- they are back, or DOUBT seconds have passed -----------------> proved
    proved   --- a replica has gone, which may be the master now -------------> held: proved HELD seconds later; until
                 then what was confirmed that long ago is relied on, as replicas may come and go all the time
    proved   --- Sentinel has come to name another master --------------------> to be left: at once, if it hangs or
                 nobody is subscribed here any more, after LEAVE seconds at most
    any      --- the connection ends -----------------------------------------> unknown
"""

import math
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

from relay.redis.pipeline import Pipeline
from relay.redis.queries import Probe
from relay.redis.resp import Query

# Seconds. HELD, LEAVE: the old master becomes a replica 10 s after a planned failover, which brings its subscribers to
# the new one. HANGS: without a reply.
DOUBT, HELD, LEAVE, HANGS = 30.0, 15.0, 15.0, 1.0
# Seconds in which a node of a Cluster has surely passed a message on to the others, while it reaches them. It confirms
# at once, but small messages wait until the others have acknowledged the last ones: 40 ms where nothing is amiss.
PASSED_ON = 0.5
ELSEWHERE = "Sentinel names another master"


class Marks:
    """What was confirmed when Redis said that it was a master. With Sentinel that is right if most Sentinels answered
    later and named no other. wait: seconds that it takes all the same until that is certain.
    """

    def __init__(self) -> None:
        # Of which the publisher's thread does not know yet. Written under the link's lock, read and cleared without it:
        # it may be replaced meanwhile, and lost. The next probe brings a later one.
        self.latest: int | None = None
        self.right: int | None = None
        self.wait = 0.0
        self._open: deque[tuple[float, int]] = deque(maxlen=100)  # each with the time at which it was known

    def note(self, now: float) -> None:
        """The latest is known now."""
        if self.latest is not None:
            self._open.append((now, self.latest))
            self.latest = None

    @property
    def oldest(self) -> float:
        """When the oldest was known that may be wrong, inf = there is none."""
        return self._open[0][0] if self._open else math.inf

    def judge(self, asked_at: float) -> None:
        """All that was known by then is right."""
        while self._open and self._open[0][0] <= asked_at:
            self.right = self._open.popleft()[1]

    def clear(self) -> None:
        """Nothing is known to be right."""
        self.latest = self.right = None
        self._open.clear()


class Trust:
    """The publisher's thread owns it; what gets replies runs under the link's lock.

    several: whether there is more than one Redis, as far as is known at the start. asks: whether Sentinel is asked all
    the time. standby_channel, watched: as of the probe.
    """

    def __init__(
        self, pipeline: Pipeline, several: bool, asks: bool, standby_channel: str, watched: Collection[str]
    ) -> None:
        pipeline.retains = several
        self.probe = Probe(self._on_master, standby_channel, watched)
        self.marks = Marks()
        self.since = -math.inf  # monotonic time of the first connection to this server
        self._pipeline, self._asks = pipeline, asks
        self._told = ""  # the run_id of the server as told on this connection, "" where INFO is denied
        self._server = ""  # that of the server that confirmed last
        self._is_proved = False
        self._doubtful_since: float | None = None
        self._left_since: float | None = None  # Sentinel has named another master
        self._rounds = 0  # of the probe that must be over until it is clear that nobody is left
        self._answered_at = -math.inf  # when no probe was under way
        self._replicas, self._a_replica_has_gone, self._held_until = 0, False, -math.inf

    @property
    def proved(self) -> bool:
        """Whether this server is the right one, as far as is known. Any thread. Always where there is only one."""
        if not self._pipeline.retains:
            return True
        return self._is_reliable and not self._a_replica_has_gone and self._held_until == -math.inf

    @property
    def hindsight(self) -> float:
        """For how many seconds what is published may turn out to have been in vain, inf = nobody knows. Any thread."""
        return 0.0 if self.proved else HELD if self._is_reliable else math.inf

    @property
    def _is_reliable(self) -> bool:
        return self._is_proved and self._doubtful_since is None and self._left_since is None

    @property
    def decides_at(self) -> float:
        """The time from which on look() may find that more is right, inf = there is nothing to be found."""
        return self.marks.oldest + self._wait if self._is_reliable else math.inf

    @property
    def _wait(self) -> float:
        return self.marks.wait if self.proved else HELD

    @property
    def is_left(self) -> bool:
        """Whether Sentinel has named another master, where all that is retained belongs in the end."""
        return self._left_since is not None

    @property
    def doubt(self) -> str:
        """Why what is confirmed is retained for longer than usual, "" = it is not."""
        if not self._pipeline.retains:
            return ""
        if self._left_since is not None:
            return f"{ELSEWHERE}, and subscribers are still here"
        return "" if self._doubtful_since is None else "subscribers that were there before are missing"

    # A connection, from its beginning to its end.

    def begin(self) -> list[Query]:
        """What a new connection begins with."""
        self._told = ""
        self.probe.begin()
        return [Query(self._on_info, "INFO", "server")]

    def meet(self, now: float) -> int:
        """The first replies are there: it is a master. now: the time before it was looked for. The link's lock is held.
        Returns how many confirmed messages are sent again.
        """
        if self._told and self._told == self._server:
            if self._left_since is not None and now - self._left_since >= LEAVE:
                self.since, self._left_since = now, None  # it was left, and Sentinel has named it all the same
            return 0
        self._server, self.since = self._told, now
        self._doubtful_since = self._left_since = None
        self._a_replica_has_gone, self._held_until = False, -math.inf
        return self._pipeline.send_again() if self._pipeline.retained else 0

    def settle(self, now: float) -> None:
        """The grace period is over. A node of a Cluster knows of its own subscribers only, and passes on to all."""
        if self._doubtful_since is None and not self.probe.all_are_back and not self.probe.nodes.is_cluster:
            self._doubtful_since = now
        self._is_proved = True

    def end(self) -> None:
        """The connection has ended."""
        self._is_proved, self._replicas = False, 0
        self.marks.clear()

    # Meanwhile.

    def look(self, now: float, asked_at: float, is_elsewhere: bool) -> str:
        """Each turn. asked_at, is_elsewhere: of Sentinel. Returns why this server is to be left, or ""."""
        if self._a_replica_has_gone:
            self._held_until, self._a_replica_has_gone = now + HELD, False
        elif now >= self._held_until:
            self._held_until = -math.inf
        if not is_elsewhere:
            self._left_since = None
        elif self._left_since is None:
            self._left_since, self._rounds = now, self.probe.rounds + 2
        if self.probe.take():
            self._probed(now)
        if self._is_reliable:
            self.marks.judge(min(asked_at, now - self._wait))
        if self.probe.subscribers is not None:
            self._answered_at = now
        if self._left_since is None:
            return ""
        is_over = now - self._left_since >= LEAVE or now - self._answered_at >= HANGS
        is_empty = self.probe.rounds > self._rounds and self.probe.nobody
        return ELSEWHERE if is_over or is_empty else ""

    def _probed(self, now: float) -> None:
        self.marks.note(now)
        if self._doubtful_since is not None and (self.probe.all_are_back or now - self._doubtful_since >= DOUBT):
            self._doubtful_since = None
        if self._is_reliable:
            self.probe.accept()

    def verify(self) -> None:
        """Forgets what is known to have come to the right server. The link's lock is held."""
        if self.marks.right is not None:
            self._pipeline.verified(self.marks.right)
            self.marks.right = None

    def channels(self, everyone: Sequence[str]) -> Sequence[str]:
        """Which channels the next probe is about."""
        if self._doubtful_since is not None:
            return self.probe.missing
        if self._left_since is not None:
            return [channel.decode() for channel in self.probe.expected if channel]
        self.probe.keep(everyone)
        return everyone

    # The link's lock is held.

    def _on_info(self, reply: Any) -> None:
        if isinstance(reply, bytes):
            found = [line[7:] for line in reply.decode(errors="replace").splitlines() if line.startswith("run_id:")]
            self._told = found[0] if found else ""

    def _on_master(self, replicas: int | None) -> None:
        """Redis says that it is a master, with so many replicas; None: it may be one, and may not say."""
        pipeline = self._pipeline
        is_cluster = self.probe.nodes.is_cluster
        pipeline.retains = pipeline.retains or bool(replicas) or is_cluster
        self.marks.wait = HELD if replicas is None and not self._asks else PASSED_ON if is_cluster else 0.0
        self._a_replica_has_gone |= (replicas or 0) < self._replicas
        self._replicas = replicas or 0
        if self.proved and not (self._asks or self.marks.wait):
            pipeline.verified()
        elif self._is_reliable:
            self.marks.latest = pipeline.mark()
