"""A consumer of the drill that comes late and asks for snapshots."""

import json
import time

from sandbox.consumer import PREFIX


class State:
    """An order book or a ticker, from a snapshot and the messages after it, as docs/consuming.md describes.

    Attributes:
        number: `u` or `cs` of the latest message; None before the snapshot.
    """

    def __init__(self, topic):
        self.book = topic.startswith("orderbook")
        self.number, self.fields, self.early = None, {}, []

    def begins_with(self, message):
        """The snapshot that was asked for; what came earlier and is younger follows."""
        self._take(message)
        for each in self.early:
            self.follows(each)

    def follows(self, message):
        if self.number is None:
            self.early.append(message)
        elif self._number_of(message) > self.number:
            assert not self.book or self._number_of(message) == self.number + 1, "a gap"
            self._take(message)

    def same_as(self, snapshot):
        other = State(snapshot["topic"])
        other.begins_with(snapshot)
        return (self.number, self.fields) == (other.number, other.fields)

    def _number_of(self, message):
        return message["data"]["u"] if self.book else message["cs"]

    def _take(self, message):
        self.number = self._number_of(message)
        if message["type"] == "snapshot":
            self.fields = {}
        if not self.book:
            self.fields.update(message["data"])
            return
        for side in "ba":
            for price, size in message["data"][side]:
                self.fields[side, price] = size
                if size == "0":
                    del self.fields[side, price]


class LateJoiner:
    """A consumer that asks for snapshots of its topics; `states` are theirs. Used in a `with`."""

    REPLY = f"{PREFIX}_reply_drill"

    def __init__(self, server, topics):
        self.states = {topic: State(topic) for topic in topics}
        self._client = server.client()
        self._pubsub = self._client.pubsub()

    def __enter__(self):
        self._pubsub.subscribe(f"{PREFIX}_orderbook", f"{PREFIX}_ticker", self.REPLY)
        for _ in range(3):
            assert self._pubsub.get_message(timeout=5)["type"] == "subscribe"
        return self

    def __exit__(self, *_):
        self._pubsub.close()
        self._client.close()

    def asks(self):
        """Asks for all topics, and returns the seconds until all states are there."""
        began = time.monotonic()
        request = {"op": "snapshot", "topics": list(self.states), "reply": self.REPLY}
        assert self._client.publish(f"{PREFIX}_request", json.dumps(request)), "nobody takes requests"
        while any(state.number is None for state in self.states.values()):
            assert time.monotonic() < began + 10, "no answer"
            self._reads()
        return time.monotonic() - began

    def follows(self, seconds):
        """Takes what comes for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._reads()

    def _reads(self):
        found = self._pubsub.get_message(timeout=0.05)
        if not found:
            return
        message = json.loads(found["data"])
        assert "event" not in message, message
        if state := self.states.get(message["topic"]):
            asked = found["channel"].decode() == self.REPLY
            state.begins_with(message) if asked else state.follows(message)
