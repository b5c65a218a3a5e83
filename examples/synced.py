"""Order books and tickers that equal Bybit's, or say why they may not. Copy this file: it needs redis-py only.

    for changed, states in follow(redis.Redis(retry=None), "stream:bybit", ["orderbook.50.BTCUSDT", "tickers.BTCUSDT"]):
        for topic in changed:
            print(topic, states[topic].ts if states[topic].synced else states[topic].reason)

Where the collector has CHANNEL_BY_SYMBOL=True, so has follow(…, by_symbol=True): it then reads these symbols only.
docs/consuming.md explains each step under "Join late, stay in sync". Times are monotonic seconds: clocks do not matter.
"""

import json
import logging
import math
import secrets
import time
from bisect import bisect_left
from decimal import Decimal

import redis

SOON, RETRY, REJECTED = 0.5, 3.0, 60.0  # seconds until a snapshot is asked for: after a loss, without a reply, rejected
SILENCE, QUEUE, SIZE = 10.0, 1000, 1000  # seconds without any message; deltas that wait; topics of a request
# Events after which messages are missing, and the seconds until a snapshot is asked for unless it has come by itself.
# Never: not before the event `subscribed` or `leader`, as the collector gets no deltas that would follow the snapshot.
LOSSES = {"dropped": SOON, "gap": SOON, "silent": SOON, "lost": math.inf, "stalled": math.inf, "stopped": math.inf}
LOSSES["unsubscribed"] = math.inf  # the symbol was delisted, or is no longer asked for
PASSES = ("the stream of the topic is down", "no snapshot within", "too many requests")  # rejections: ask after RETRY

log = logging.getLogger("synced")


class State:
    """What a Book and a Ticker share. While it is not `synced`, `reason` says why, and it may be wrong.

    ts: time of the last message in it, ms. last: its position; positions rise with every message of the topic.
    queue: deltas since messages were lost. reply: the channel of the requests since then, "" if there is none.
    """

    def __init__(self):
        self.synced, self.reason, self.last, self.ts = False, "no snapshot yet", (0, 0), 0
        self.queue, self.reply, self.ask_at = [], "", math.inf

    def lose(self, reason, ask_at):
        """Messages may be missing here. A reply to an earlier request may be from before them: it no longer counts."""
        self.synced, self.reason, self.ask_at, self.reply, self.queue = False, reason, ask_at, "", []

    def receive(self, message, now):
        """Takes a message of the data channel."""
        if message["type"] == "snapshot" or message["data"].get("u") == 1:  # u = 1: Bybit's service has restarted
            self.queue = []
            self.apply(message, True, now)
        elif self.follows(message):
            self.apply(message, False, now)
        elif not self.synced or self.position(message) > self.last:  # else it is a duplicate
            if self.synced:
                self.lose("gap: messages are missing", now + SOON)
            elif len(self.queue) == QUEUE:
                self.lose("no snapshot came in time", now + SOON)
            self.queue.append(message)

    def receive_reply(self, snapshot, now):
        """Takes the snapshot that was asked for, and the deltas after it."""
        self.apply(snapshot, True, now)
        if not self.synced:
            self.ask_at = now + RETRY  # there is a gap between it and the deltas

    def apply(self, message, is_snapshot, now):
        self.update(message["data"], is_snapshot)
        self.last, self.ts, self.synced, self.reason = self.position(message), message["ts"], True, ""
        self.reply, queue, self.queue = "", self.queue, []
        for delta in queue:
            self.receive(delta, now)


class Book(State):
    """`bids` and `asks`: (price, size) in Bybit's own digits, best first."""

    bids = property(lambda self: [level[1:] for level in self.levels["b"]])
    asks = property(lambda self: [level[1:] for level in self.levels["a"]])

    def position(self, message):
        return message["data"]["seq"], message["data"]["u"]

    def follows(self, delta):
        return delta["data"]["u"] == self.last[1] + 1  # even if a loss was announced: it was not of this topic

    def update(self, data, is_snapshot):
        if is_snapshot:
            self.levels = {"b": [], "a": []}  # (key, price, size), sorted by key
        for side, levels in self.levels.items():
            for price, size in data[side]:
                key = -Decimal(price) if side == "b" else Decimal(price)
                at = bisect_left(levels, (key,))
                if at < len(levels) and levels[at][0] == key:
                    del levels[at]
                if Decimal(size):
                    levels.insert(at, (key, price, size))


class Ticker(State):
    """`data` has the fields of the topic, in Bybit's own digits."""

    def position(self, message):
        return message.get("cs", 0), message["ts"]  # option has no cs, and no deltas

    def follows(self, delta):
        return self.synced and self.position(delta) >= self.last  # cs does not show gaps: the events do

    def update(self, data, is_snapshot):
        self.data = data if is_snapshot else self.data | data


class Synced:
    """The states by topic. It does no I/O: follow() does.

    data: the channel of each topic. channels: those to subscribe to, and the topics that each is about.
    """

    def __init__(self, prefix, topics, by_symbol=False):
        self.states = {topic: Book() if topic.startswith("orderbook.") else Ticker() for topic in topics}
        self.prefix, self.status, self.heard = prefix, f"{prefix}_status", math.inf
        self.data, self.channels = {}, {self.status: list(self.states)}
        for topic in self.states:
            kind = "orderbook" if topic.startswith("orderbook.") else "ticker"
            self.data[topic] = f"{prefix}_{kind}" + (f":{topic.rpartition('.')[2]}" if by_symbol else "")
            self.channels.setdefault(self.data[topic], []).append(topic)

    def lose(self, topics, reason, ask_at):
        for topic in topics:
            self.states[topic].lose(reason, ask_at)
        return list(topics)

    def receive(self, channel, payload, now):
        """Takes a message of any channel. Returns the topics whose state may have changed."""
        message, self.heard = json.loads(payload), now
        if "event" in message:
            return self.receive_event(channel, message, now)
        topic, state = message["topic"], self.states.get(message["topic"])
        if state and channel == self.data[topic]:
            state.receive(message, now)
        elif state and channel == state.reply:
            state.receive_reply(message, now)
        return [topic] if state else []

    def receive_event(self, channel, event, now):
        name, reason, named = event["event"], event.get("reason", "messages are missing"), set(event["topics"])
        if name == "alive":  # every 5 s while somebody publishes: it is `heard`, and nothing changes
            return []
        source = event.get("channel", self.status)  # without topics an event is about all of a channel, or all
        topics = [t for t in self.states if t in named or (not named and source in (self.status, self.data[t]))]
        for state in map(self.states.get, topics):
            if name in LOSSES:
                state.lose(f"{name}: {reason}", now + LOSSES[name])
            elif name == "rejected" and channel in (self.status, state.reply):
                state.lose(f"{name}: {reason}", now + (RETRY if reason.startswith(PASSES) else REJECTED))
            elif name in ("subscribed", "leader"):
                state.ask_at = min(state.ask_at, now + SOON)
        return topics

    def connected(self, channel, now):
        """A channel is subscribed to, on a new connection: what was published on it before is missed."""
        self.heard = now
        return self.lose(self.channels[channel], "connected to Redis just now", now)

    def look(self, now):
        """To be called often. Returns the topics that are out of sync because nothing arrives."""
        if now <= self.heard + SILENCE:
            return []
        self.heard = now
        return self.lose(self.states, f"nothing received for {SILENCE:.0f} s", now)

    def ask(self, now):
        """The reply channels of the topics to be asked for now. New losses share a new one."""
        new = f"{self.prefix}_reply_{secrets.token_hex(8)}"
        due = [state for state in self.states.values() if not state.synced and state.ask_at <= now]
        for state in due:
            state.reply, state.ask_at = state.reply or new, now + RETRY
        return {state.reply for state in due}

    def requests(self, reply):
        """The requests to be published when Redis has confirmed the subscription to this reply channel."""
        topics = [topic for topic, state in self.states.items() if state.reply == reply]
        parts = [topics[start : start + SIZE] for start in range(0, len(topics), SIZE)]
        return [{"op": "snapshot", "topics": part, "reply": reply} for part in parts]

    def unheard(self, topics, now):
        """Nobody has got the request."""
        for state in map(self.states.get, topics):
            state.reason = f"nobody listens on {self.prefix}_request: is the collector running?"
            state.ask_at = now + SOON


def follow(client, prefix, topics, by_symbol=False):
    """Follows topics for ever. Yields, ten times a second or more: those that may have changed; all states by topic.

    When nothing arrives for SILENCE seconds it connects anew: Redis may hang, and the client may know another by now.
    """
    synced, decode = Synced(prefix, topics, by_symbol), client.get_encoder().decode
    while True:
        try:
            with client.pubsub() as pubsub:
                pubsub.subscribe(*synced.channels)
                next_round, replies, synced.heard = 0.0, set(), time.monotonic()
                while True:
                    message, now, changed = pubsub.get_message(timeout=0.1), time.monotonic(), []
                    channel = message and decode(message["channel"], force=True)
                    if message and message["type"] == "message":
                        changed = synced.receive(channel, message["data"], now)
                    elif message and message["type"] == "subscribe" and channel in synced.channels:
                        changed = synced.connected(channel, now)
                    elif message and message["type"] == "subscribe":
                        for request in synced.requests(channel):
                            if not client.publish(f"{prefix}_request", json.dumps(request)):
                                synced.unheard(request["topics"], now)
                    if silent := synced.look(now):
                        yield silent, synced.states
                        break
                    if now >= next_round:
                        next_round = now + 0.1
                        if asked := synced.ask(now):  # who is subscribed already gets a confirmation, too
                            pubsub.subscribe(*asked)
                        replies |= asked
                        if unused := replies - {state.reply for state in synced.states.values()}:
                            pubsub.unsubscribe(*unused)
                            replies -= unused
                    yield changed, synced.states
        except (redis.ConnectionError, redis.TimeoutError) as error:
            log.warning("Redis: %s", error)
            yield synced.lose(synced.states, f"Redis: {error}", math.inf), synced.states
            time.sleep(0.5)  # less than the 2 s that the collector waits for subscribers after a restart of Redis
