"""What consumers ask for: their requests, checked, and who waits for the snapshot of which topic. Pure.

A request comes from anybody who may publish to Redis. So it is checked in every part, and all that is kept is bounded.

A topic is asked of Bybit in rounds: subscribe, take the first snapshot, unsubscribe. The rule on which a consumer's
book depends: **a round serves only those whose request was here before the subscription was sent.** A consumer first
subscribes to the data channel, and then asks. A snapshot made after its request is at least as new as its subscription:
every delta after the snapshot reaches it. A snapshot made before may be older than a delta that the consumer has
missed: a hole, which a book shows by its `u`, and a ticker never. So who comes while a round is under way waits for the
next, which begins when Bybit has acknowledged the end of the first. Any number of requests for a topic therefore costs
one round at a time.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import NamedTuple

from relay.bybit.subscription import characters, width

# Of one request.
MAX_BYTES, MAX_TOPICS, MAX_REPLY = 64 * 1024, 2000, 200  # bytes, topics, characters of the reply channel
# Of all requests: pairs of a topic and a reply channel that wait, 30 consumers of books and tickers of 800 symbols that
# come at once; seconds until one is rejected.
MAX_WAITING, EXPIRY = 50_000, 10.0

# Replies that go out in one piece, and bytes of them: what waits may be tens of MB.
PART, PART_BYTES = 100, 1024 * 1024

TOO_MANY = "too many requests are waiting"


class InvalidRequest(Exception):
    """A request that cannot be served. Its text is the reason.

    reply: its reply channel, "" if it has no valid one. topics: those it names, if it names any properly.
    """

    def __init__(self, reason: str, reply: str = "", topics: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.reply, self.topics = reply, topics


class Request(NamedTuple):
    """A request for snapshots: each topic once, and the channel for the replies."""

    topics: list[str]
    reply: str


class Waiting(NamedTuple):
    """A reply channel that waits for the snapshot of a topic."""

    topic: str
    reply: str


def parse(payload: bytes, reply_prefix: str) -> Request:
    """{"op":"snapshot","topics":[...],"reply":"..."}; members that are not known are ignored. Raises InvalidRequest."""
    if len(payload) > MAX_BYTES:
        raise InvalidRequest(f"a request has at most {MAX_BYTES} bytes")
    try:
        request = json.loads(payload)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise InvalidRequest("a request is a JSON object")
    reply, topics = request.get("reply"), request.get("topics")
    # isprintable(): nor can a lone surrogate, which no channel can have in its name, pass here.
    if not isinstance(reply, str) or not reply.startswith(reply_prefix) or not reply.isprintable():
        raise InvalidRequest(f'"reply" is the name of a channel that begins with {reply_prefix}')
    if len(reply) > MAX_REPLY:
        raise InvalidRequest(f'"reply" has at most {MAX_REPLY} characters')
    if not isinstance(topics, list) or not topics or not all(isinstance(topic, str) for topic in topics):
        raise InvalidRequest('"topics" is a list of topics, at least one', reply)
    topics = list(dict.fromkeys(topics))
    if len(topics) > MAX_TOPICS:
        raise InvalidRequest(f"a request has at most {MAX_TOPICS} topics", reply)
    if request.get("op") != "snapshot":
        raise InvalidRequest('"op" is "snapshot"', reply, topics)
    return Request(topics, reply)


def unservable(
    topics: Iterable[str],
    carries: Callable[[str], bool],
    flows: Callable[[str], bool],
    snapshot_first: tuple[str, ...],
) -> dict[str, list[str]]:
    """Those of the topics that cannot be served, by the reason. One whose stream is down is among them: nothing would
    follow its snapshot, and who has just come does not know. The stream's own snapshot will come to all.
    """
    found: dict[str, list[str]] = {}
    for topic in topics:
        if not topic.startswith(snapshot_first):
            found.setdefault("Bybit has no snapshots of such topics", []).append(topic)
        elif not carries(topic):
            found.setdefault("this collector does not carry the topic", []).append(topic)
        elif not flows(topic):
            found.setdefault("the stream of the topic is down: its snapshot will come to all", []).append(topic)
    return found


def by_reply(waiting: Iterable[Waiting]) -> Iterator[tuple[str, list[str]]]:
    """The topics for which each reply channel waits."""
    found: dict[str, list[str]] = {}
    for topic, reply in waiting:
        found.setdefault(reply, []).append(topic)
    return iter(found.items())


def parts(replies: Sequence[tuple[str, bytes]]) -> Iterator[Sequence[tuple[str, bytes]]]:
    """Replies, in order, cut to what goes out in one piece. One that is larger goes alone."""
    first = size = 0
    for index, (_, message) in enumerate(replies):
        if index > first and (index - first >= PART or size + len(message) > PART_BYTES):
            yield replies[first:index]
            first, size = index, 0
        size += len(message)
    if replies:
        yield replies[first:]


class Rounds:
    """Who waits for which snapshot, and the rounds under way. The caller guards it, where threads share it.

    Each pair of a topic and a reply channel that add() has taken comes out exactly once: of answer(), of reject(), or
    of expire(). A pair that waits already is taken as the same; one whose round is under way waits for the next, too.

        add()       waits for the next round of its topic
        begin()     the round of a topic begins: those who wait for it now are those whom it serves
        answer()    the snapshot is here; the topic is to be released
        release()   ... and is being unsubscribed from now on
        end()       that is acknowledged: the next round may begin
        interrupt() the connection is gone, and all rounds with it: whoever was to be served waits again

    max_characters: of the topics of all rounds under way; what does not fit waits.
    """

    def __init__(self, max_characters: int, max_waiting: int = MAX_WAITING, expiry: float = EXPIRY) -> None:
        self._max_characters, self._max_waiting, self._expiry = max_characters, max_waiting, expiry
        # The monotonic time of each request, by reply channel, by topic; topics in the order of their requests.
        self._next: dict[str, dict[str, float]] = {}
        self._under_way: dict[str, dict[str, float]] = {}
        self._released: set[str] = set()  # those under way that are being unsubscribed
        self._pairs = 0  # in _next and _under_way

    @property
    def waiting(self) -> bool:
        """Whether somebody waits, also for a round under way."""
        return self._pairs > 0

    @property
    def under_way(self) -> list[str]:
        """The topics whose rounds are under way, those being unsubscribed included."""
        return list(self._under_way)

    @property
    def wanted(self) -> Set[str]:
        """The topics for whose next round somebody waits."""
        return self._next.keys()

    @property
    def unanswered(self) -> list[str]:
        """The topics whose rounds are under way, and whose snapshots are still to come."""
        return [topic for topic, replies in self._under_way.items() if replies]

    def add(self, topics: Iterable[str], reply: str, now: float) -> list[str]:
        """Takes a request. Returns the topics that found no room: they are not taken."""
        left_out = []
        for topic in topics:
            replies = self._next.get(topic, {})
            if reply in replies:
                continue
            if self._pairs >= self._max_waiting:
                left_out.append(topic)
                continue
            self._next.setdefault(topic, replies)[reply] = now
            self._pairs += 1
        return left_out

    def begin(self) -> list[str]:
        """The topics whose rounds begin now: they are to be subscribed, after this call."""
        begun = []
        room = self._max_characters - characters(self._under_way)
        for topic in self._next:
            if topic in self._under_way:
                continue
            room -= width(topic)
            if room < 0:  # nobody overtakes: what does not fit now is the first to fit later
                break
            begun.append(topic)
        for topic in begun:
            self._under_way[topic] = self._next.pop(topic)
        return begun

    def answer(self, topic: str) -> list[str]:
        """The reply channels that get the snapshot which has come of the topic."""
        replies = list(self._under_way.get(topic, ()))
        if replies:
            self._under_way[topic] = {}
            self._pairs -= len(replies)
        return replies

    def reject(self, topics: Iterable[str]) -> list[Waiting]:
        """Those who will get no snapshot, as Bybit rejects these topics: of the rounds under way only."""
        return [Waiting(topic, reply) for topic in topics for reply in self.answer(topic)]

    def release(self) -> list[str]:
        """The topics that nobody waits for any more in a round under way: they are to be unsubscribed. Each once."""
        released = [topic for topic, replies in self._under_way.items() if not replies and topic not in self._released]
        self._released.update(released)
        return released

    def end(self, subscribed: Callable[[str], bool]) -> None:
        """Ends the rounds of the topics that are released and, as `subscribed` says, no longer with Bybit."""
        for topic in [topic for topic in self._released if not subscribed(topic)]:
            self._released.remove(topic)
            del self._under_way[topic]

    def interrupt(self) -> None:
        """The connection is gone. Whoever was to be served waits again, before all others."""
        again = {topic: replies for topic, replies in self._under_way.items() if replies}
        for topic, replies in self._next.items():
            known = again.setdefault(topic, {})
            self._pairs -= len(known.keys() & replies.keys())
            again[topic] = replies | known
        self._next, self._under_way, self._released = again, {}, set()

    def expire(self, now: float) -> list[Waiting]:
        """Those who have waited too long: they wait no more."""
        expired = []
        for waiting in (self._next, self._under_way):
            for topic in list(waiting):
                late = [reply for reply, since in waiting[topic].items() if now - since >= self._expiry]
                expired += [Waiting(topic, reply) for reply in late]
                for reply in late:
                    del waiting[topic][reply]
                if waiting is self._next and not waiting[topic]:
                    del waiting[topic]
        self._pairs -= len(expired)
        return expired
