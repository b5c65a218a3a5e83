"""What one connection is subscribed to, and what Bybit answers to each request. Performs no I/O and reads no clock.

Every topic is in exactly one state, which is what Bybit has been asked and has answered:

    none           want()      WANTED
    WANTED         request()   REQUESTED
    REQUESTED      receive()   SUBSCRIBED
    REQUESTED      receive()   REJECTED        Bybit does not know the topic
    REQUESTED      receive()   WANTED          its request failed because of another topic
    REJECTED       request()   REQUESTED       after a while: Bybit lists new symbols
    WANTED         due()       REJECTED        another connection has learnt that Bybit does not know it
    SUBSCRIBED     requests()  UNSUBSCRIBING   it was released or renewed
    UNSUBSCRIBING  receive()   none            it was released
    UNSUBSCRIBING  receive()   WANTED          it was renewed

What is to become of it is noted beside its state, in `_leaving`, and acted on when it is SUBSCRIBED and no answer due:

               WANTED, REJECTED   REQUESTED           SUBSCRIBED, UNSUBSCRIBING
    release()  none, at once      noted               noted; takes the place of renew()
    renew()    -                  noted, or nothing   noted, unless it is released
                                  where its snapshot
                                  is still to come
    want()     -                  a release becomes a renew(), so that a snapshot follows
    receive()                     what is noted ends where the topic is not accepted: one that is released leaves
"""

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate, count
from typing import Any

from relay.bybit.rejected import RejectedTopics

# Characters of topics on a connection: https://bybit-exchange.github.io/docs/v5/ws/connect.
MAX_TOPIC_CHARACTERS = 21_000


class State(Enum):
    WANTED, REQUESTED, SUBSCRIBED, REJECTED = "wanted", "requested", "subscribed", "rejected"
    UNSUBSCRIBING = "unsubscribing"


@dataclass
class Verdict:
    """What a response does to the topics of its request. The lists share no topic, but for `renewed`."""

    accepted: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)  # those of `accepted` that were accepted before
    rejected: list[str] = field(default_factory=list)
    retry: list[list[str]] = field(default_factory=list)  # to be requested again, each list by itself
    deferred: list[str] = field(default_factory=list)  # to be requested again when nothing is pending
    reason: str = ""


class RequestRefused(Exception):
    """Bybit refuses a request, names no topic, and has accepted nothing: hardly the fault of a topic."""


def characters(topics: Iterable[str]) -> int:
    """What topics take of MAX_TOPIC_CHARACTERS: their JSON list, as Bybit counts it."""
    return sum(map(width, topics)) + 1


def width(topic: str) -> int:
    """What one topic adds to characters()."""
    return len(topic) + len('"",')


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
        return Verdict(accepted, rejected=rejected, reason=reason or "failTopics"), True
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
        self.changes = 0  # how often a topic came or went
        self._leaving: dict[str, bool] = {}  # topics to be unsubscribed; the value: whether to request them again
        self._returning: set[str] = set()  # topics that were unsubscribed and are requested again
        self._early: set[str] = set()  # topics that have sent data before the answer to their request
        self._left: list[str] = []  # topics that were accepted and are gone, until take_left()
        self._per_request, self._rejected, self._snapshot_first = per_request, rejected, snapshot_first
        self._pending: dict[str, tuple[str, list[str]]] = {}  # op and topics by req_id, the oldest request first
        self._ids = count(1)

    def want(self, topics: Iterable[str]) -> None:
        """Has these topics requested, unless they are already. What was released is renewed: a snapshot follows."""
        for topic in topics:
            if topic not in self.states:
                self.states[topic] = State.WANTED
                self.changes += 1
            elif self._leaving.get(topic) is False:
                del self._leaving[topic]
                self._leave(topic, again=True)

    def release(self, topics: Iterable[str]) -> None:
        """Has these topics unsubscribed: they leave `states` when Bybit has acknowledged it, at once where nothing was
        asked of it.
        """
        for topic in topics:
            self._leaving.pop(topic, None)
            self._leave(topic, again=False)

    def renew(self, topics: Iterable[str]) -> None:
        """Has these topics unsubscribed, and requested again once Bybit has acknowledged it: a snapshot follows."""
        for topic in topics:
            if topic not in self._leaving:
                self._leave(topic, again=True)

    def _leave(self, topic: str, *, again: bool) -> None:
        match self.states.get(topic):
            case State.WANTED | State.REJECTED if not again:
                self._forget(topic)
            case State.REQUESTED if again and topic.encode() in self.awaiting_snapshot:
                pass  # its snapshot is still to come
            case State.REQUESTED | State.SUBSCRIBED | State.UNSUBSCRIBING:
                self._leaving[topic] = again

    def _forget(self, topic: str) -> None:
        if self.states.pop(topic) is State.UNSUBSCRIBING or topic in self._returning:
            self._left.append(topic)
        self.changes += 1
        self._returning.discard(topic)
        self._early.discard(topic)
        self.awaiting_snapshot.discard(topic.encode())

    def among(self, state: State) -> list[str]:
        """The topics in a state, in the order of the constructor."""
        return [topic for topic, current in self.states.items() if current is state]

    def is_released(self, topic: str) -> bool:
        """Whether the topic is being unsubscribed, or will be, for good."""
        return self._leaving.get(topic) is False

    @property
    def carried(self) -> list[str]:
        """The topics that Bybit has accepted and sends: those SUBSCRIBED, and those that are being renewed."""
        return [topic for topic in self._accepted() if not self.is_released(topic)]

    @property
    def flowing(self) -> list[str]:
        """Those carried, and those that have sent data before their answer; not those with a renewal noted."""
        return self.carried + sorted(self._early - self._leaving.keys() - self._returning)

    @property
    def parting(self) -> list[str]:
        """The topics that Bybit has accepted and that were released: it has not acknowledged their end."""
        return [topic for topic in self._accepted() if self.is_released(topic)]

    def _accepted(self) -> list[str]:
        accepted = (State.SUBSCRIBED, State.UNSUBSCRIBING)
        return [topic for topic, state in self.states.items() if state in accepted or topic in self._returning]

    @property
    def wanted(self) -> int:
        """How many topics are not released."""
        return len(self.states) - list(self._leaving.values()).count(False)

    def take_left(self) -> list[str]:
        """The topics that had been accepted, were released and are gone, each once."""
        left, self._left = self._left, []
        return left

    @property
    def pending(self) -> bool:
        """Whether an answer of Bybit is due."""
        return bool(self._pending)

    def requests(self, now: float) -> list[str]:
        """JSON texts of all that is to be asked of Bybit now: nothing while an answer is due."""
        topics = self.due(now)
        return self._unsubscribe() + self.request(topics)

    def due(self, now: float) -> list[str]:
        """The topics to be requested now: none while an answer is due. Those blocked become REJECTED.

        What is more than a connection may carry stays as it is until others have left.
        """
        if self._pending:
            return []
        topics = [topic for topic, state in self.states.items() if state in (State.WANTED, State.REJECTED)]
        blocked = {topic for topic in topics if self._rejected.blocks(topic, now)}
        self.states.update(dict.fromkeys(blocked, State.REJECTED))
        self._returning -= blocked
        due = [topic for topic in topics if topic not in blocked]
        used = characters(self.states.keys() - set(topics)) if due else 0
        room = bisect_right(list(accumulate(map(width, due))), MAX_TOPIC_CHARACTERS - used)
        return due[:room]

    def request(self, topics: list[str]) -> list[str]:
        """JSON texts that ask for these topics, cut to what Bybit takes in one request."""
        # Data may come before the answer: it is awaited from here on.
        self.awaiting_snapshot.update(topic.encode() for topic in topics if topic.startswith(self._snapshot_first))
        return self._ask("subscribe", topics, State.REQUESTED)

    def _unsubscribe(self) -> list[str]:
        """JSON texts that end what was released or renewed."""
        if self._pending:
            return []
        leaving = [topic for topic in self._leaving if self.states[topic] is State.SUBSCRIBED]
        return self._ask("unsubscribe", leaving, State.UNSUBSCRIBING)

    def _ask(self, op: str, topics: list[str], state: State) -> list[str]:
        texts = []
        for first in range(0, len(topics), self._per_request):
            req_id, part = str(next(self._ids)), topics[first : first + self._per_request]
            self._pending[req_id] = op, part
            self.states.update(dict.fromkeys(part, state))
            texts.append(json.dumps({"req_id": req_id, "op": op, "args": part}, ensure_ascii=False))
        return texts

    def receive(self, response: dict[str, Any]) -> Verdict | None:
        """Takes an answer; None if it is the answer to no request of ours. Send request() of each `retry` next.

        Raises RequestRefused. The verdict on an unsubscription is empty: where Bybit refuses one, it has no such
        subscription, or will say "already subscribed" to the next request.
        """
        req_id = response.get("req_id") or next(iter(self._pending), None)  # option sends no req_id
        op, topics = self._pending.get(req_id, ("", [])) if isinstance(req_id, str) else ("", [])
        if not isinstance(req_id, str) or not topics or response.get("op", op) != op:  # option sends no op
            return None
        del self._pending[req_id]
        if op == "unsubscribe":
            self._part_with(topics)
            return Verdict()
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
        verdict.renewed = [topic for topic in verdict.accepted if topic in self._returning]
        self._returning.difference_update(verdict.accepted, verdict.rejected)
        self._early.difference_update(topics)
        self.awaiting_snapshot.difference_update(topic.encode() for topic in verdict.rejected)
        for topic in [topic for topic in topics if self.states[topic] is not State.SUBSCRIBED]:
            if self._leaving.pop(topic, None) is False:
                self._forget(topic)
        verdict.retry = [wanted for part in verdict.retry if (wanted := [one for one in part if one in self.states])]
        return verdict

    def _part_with(self, topics: list[str]) -> None:
        """Bybit sends nothing more of these topics."""
        for topic in topics:
            if self._leaving.pop(topic):
                self.states[topic] = State.WANTED
                self._returning.add(topic)
                self.awaiting_snapshot.discard(topic.encode())
            else:
                self._forget(topic)

    def seen(self, messages: Iterable[bytes]) -> None:
        """Takes messages, while snapshots or answers are awaited: `{"topic":"NAME",…` as Bybit writes them."""
        for message in messages:
            topic = message[10 : message.find(b'"', 10)]
            self.awaiting_snapshot.discard(topic)
            if self._pending and self.states.get(name := topic.decode(errors="replace")) is State.REQUESTED:
                self._early.add(name)
