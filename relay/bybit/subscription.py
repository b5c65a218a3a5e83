"""What one connection is subscribed to, and what Bybit answers to each request. Performs no I/O and reads no clock.

Every topic is in exactly one state:

    WANTED      request()   REQUESTED
    REQUESTED   receive()   SUBSCRIBED
    REQUESTED   receive()   REJECTED    Bybit does not know the topic
    REQUESTED   receive()   WANTED      its request failed because of another topic
    REJECTED    request()   REQUESTED   after REJECTED_RETRY: Bybit lists new symbols
    WANTED      due()       REJECTED    another connection has learnt that Bybit does not know it
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Any

REJECTED_RETRY = 3600.0  # seconds


class State(Enum):
    WANTED, REQUESTED, SUBSCRIBED, REJECTED = "wanted", "requested", "subscribed", "rejected"


@dataclass
class Verdict:
    """What a response does to the topics of its request. The four lists share no topic."""

    accepted: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    retry: list[list[str]] = field(default_factory=list)  # to be requested again, each list by itself
    deferred: list[str] = field(default_factory=list)  # to be requested again when nothing is pending
    reason: str = ""


class RequestRefused(Exception):
    """Bybit refuses a request, names no topic, and has accepted nothing: hardly the fault of a topic."""


class RejectedTopics:
    """The memory of the process for topics that Bybit rejects, so that a reconnect does not ask for them again.

    Threads share it. Python makes each access to the dict atomic. Two streams that add the same topic at the same
    moment may both report it, which is harmless.
    """

    def __init__(self, retry_after: float = REJECTED_RETRY) -> None:
        self.retry_after = retry_after
        self._since: dict[str, float] = {}  # topic -> time of its rejection

    def add(self, topic: str, now: float) -> bool:
        """Whether the topic was not rejected before."""
        new = topic not in self._since
        self._since[topic] = now
        return new

    def forget(self, topic: str) -> bool:
        """Whether the topic was rejected before."""
        return self._since.pop(topic, None) is not None

    def blocks(self, topic: str, now: float) -> bool:
        """Whether it is too early to ask again."""
        since = self._since.get(topic)
        return since is not None and now - since < self.retry_after


def judge(response: dict[str, Any], topics: list[str]) -> tuple[Verdict, bool]:
    """Reads the dialects; the flag says whether Bybit named the topics that it rejects.

    linear, inverse and spot take or refuse a request as a whole and name the first bad topic in ret_msg, if any;
    option takes the good topics and lists the others in failTopics.
    """
    data, reason = response.get("data"), str(response.get("ret_msg") or "")
    failed = data.get("failTopics") if isinstance(data, dict) else None
    if isinstance(failed, list) and any(topic in failed for topic in topics):
        rejected = [topic for topic in topics if topic in failed]
        accepted = [topic for topic in topics if topic not in failed]
        return Verdict(accepted, rejected, reason=reason or "failTopics"), True
    if response.get("success") is True:
        return Verdict(topics), True
    named = max((topic for topic in topics if topic in reason), key=len, default=None)
    already = "already subscribed" in reason
    if already and len(topics) == 1:
        return Verdict(topics), True
    if named:
        retry = [rest] if (rest := [topic for topic in topics if topic != named]) else []
        return Verdict([named], retry=retry) if already else Verdict(rejected=[named], retry=retry, reason=reason), True
    if len(topics) > 1:  # one of them is bad: halve until it is alone
        half = len(topics) // 2
        return Verdict(retry=[topics[:half], topics[half:]], reason=reason), False
    return Verdict(rejected=topics, reason=reason), False


class Subscription:
    """The topics of one connection. Its connection's thread owns it.

    per_request: topics that Bybit takes in one request.
    rejected: the memory of the process.
    snapshot_first: beginnings of topics that push a snapshot at once; for these the first message is awaited.
    """

    def __init__(
        self, topics: Iterable[str], per_request: int, rejected: RejectedTopics, snapshot_first: tuple[str, ...] = ()
    ) -> None:
        self.states = dict.fromkeys(topics, State.WANTED)
        self.awaiting_snapshot: set[bytes] = set()  # topics, as they stand in a message
        self._per_request, self._rejected, self._snapshot_first = per_request, rejected, snapshot_first
        self._pending: dict[str, list[str]] = {}  # topics by req_id, the oldest request first
        self._ids = count(1)

    def among(self, state: State) -> list[str]:
        """The topics in a state, in the order of the constructor."""
        return [topic for topic, current in self.states.items() if current is state]

    @property
    def pending(self) -> bool:
        """Whether an answer of Bybit is due."""
        return bool(self._pending)

    def due(self, now: float) -> list[str]:
        """The topics to be requested now: none while an answer is due. Those blocked become REJECTED."""
        if self._pending:
            return []
        topics = [topic for topic, state in self.states.items() if state in (State.WANTED, State.REJECTED)]
        blocked = {topic for topic in topics if self._rejected.blocks(topic, now)}
        self.states.update(dict.fromkeys(blocked, State.REJECTED))
        return [topic for topic in topics if topic not in blocked]

    def request(self, topics: list[str]) -> list[str]:
        """JSON texts that ask for these topics, cut to what Bybit takes in one request."""
        texts = []
        for first in range(0, len(topics), self._per_request):
            req_id, part = str(next(self._ids)), topics[first : first + self._per_request]
            self._pending[req_id] = part
            self.states.update(dict.fromkeys(part, State.REQUESTED))
            # Data may come before the answer: it is awaited from here on.
            self.awaiting_snapshot.update(topic.encode() for topic in part if topic.startswith(self._snapshot_first))
            texts.append(json.dumps({"req_id": req_id, "op": "subscribe", "args": part}, ensure_ascii=False))
        return texts

    def receive(self, response: dict[str, Any]) -> Verdict | None:
        """Takes an answer; None if it is the answer to no request of ours. Send request() of each `retry` next.

        Raises RequestRefused.
        """
        req_id = response.get("req_id") or next(iter(self._pending), None)  # option sends no req_id
        topics = self._pending.pop(req_id, None) if isinstance(req_id, str) else None
        if topics is None:
            return None
        verdict, named = judge(response, topics)
        if verdict.rejected and not named and State.SUBSCRIBED not in self.states.values():
            # Nothing is accepted yet: the topic may be good and Bybit unwilling. Others may show which it is.
            if not self._pending:
                raise RequestRefused(verdict.reason)
            verdict = Verdict(deferred=verdict.rejected)
        for state, moved in (
            (State.SUBSCRIBED, verdict.accepted),
            (State.REJECTED, verdict.rejected),
            (State.WANTED, [*verdict.deferred, *(topic for part in verdict.retry for topic in part)]),
        ):
            self.states.update(dict.fromkeys(moved, state))
        self.awaiting_snapshot.difference_update(topic.encode() for topic in verdict.rejected)
        return verdict

    def seen(self, messages: Iterable[bytes]) -> None:
        """Takes the messages that arrived, while snapshots are awaited: `{"topic":"NAME",…` as Bybit writes them."""
        for message in messages:
            self.awaiting_snapshot.discard(message[10 : message.find(b'"', 10)])
