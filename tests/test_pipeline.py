"""What happens to messages between publish() and Redis, without a socket: laws for any sequence of events."""

import json
from collections import Counter, deque

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.events import encoded, encoded_event
from relay.redis.backlog import OVERHEAD, Backlog
from relay.redis.durable import DurablePipeline
from relay.redis.notices import DropNotice
from relay.redis.pending import Pending
from relay.redis.pipeline import WINDOW, Pipeline, Unavailable
from relay.redis.poison import MAX_DELIVERY_ATTEMPTS
from relay.redis.queries import Probe, StateHash
from relay.redis.resp import Query, ReplyError, channel_of, parse_reply, publish_head, text_of

STATUS = "status"
CHANNELS = ["a", "b", "ünï", STATUS]


def announcement(channel, messages):
    return encoded_event("dropped", 0, channel=channel, messages=messages)


def new_pipeline(limit=1 << 30):
    return Pipeline(Backlog(limit), STATUS, announcement)


def commands_of(data):
    """The commands in bytes that were sent, parsed as Redis does: each a list of words."""
    commands, at = [], 0
    while at < len(data):
        words, at = parse_reply(data, at)
        commands.append(words)
    return commands


def size(commands):
    return sum(map(len, commands))


class Delivery(RuleBasedStateMachine):
    """Any sequence of messages, replies cut anywhere, rejections, outages, overflows, and of leading and standing by.

    The test plays Redis: it has the commands that arrived and owes a reply to each. It plays the other instance, too,
    which publishes what this one has pending.
    """

    LIMIT = 3000
    ACCEPTED, REJECTED = b":1\r\n", (b"-NOPERM no\r\n",)  # replies to one message

    def __init__(self):
        super().__init__()
        self.pending = Pending(self.LIMIT)
        self.pipeline = self.new_pipeline(Backlog(self.LIMIT, self.pending))
        self.pipeline.backlog.lead()
        self.leading = True
        self.lost_while_pending = 0  # messages, as far as lead() counted them as dropped
        self.appended = 0
        self.unanswered = deque()  # commands that Redis got on this connection, as lists of words
        self.replies = b""  # that Redis sent and the pipeline has not received
        self.outcomes = deque()  # of the replies: "confirmed", "rejected", "answered", by command, until received
        self.received = {}  # numbers by channel, in the order in which Redis accepted them
        self.announced = Counter()  # lost messages by channel, whose announcement Redis replied to
        self.confirmed = self.rejected = 0  # messages, announcements not counted
        self.asked = self.answered = self.void = 0  # queries
        self.retained = deque()  # commands that were confirmed and not verified, as lists of words

    def new_pipeline(self, backlog):
        return Pipeline(backlog, STATUS, announcement)

    # Events.

    @rule(
        channel=st.sampled_from(CHANNELS),
        fate=st.sampled_from([b"accept", b"accept", b"reject"]),
        length=st.sampled_from([0, 10, 100, 2000, 4000]),
    )
    def append(self, channel, fate, length):
        self.pipeline.backlog.append(channel, b"%d %b %b" % (self.appended, fate, b"x" * length))
        self.appended += 1
        backlog = self.pipeline.backlog
        if not backlog.diverted:
            assert backlog.waiting_bytes + backlog.in_flight_bytes <= self.LIMIT or not backlog.waiting
        assert self.pending.bytes <= self.LIMIT

    @rule(topics=st.sampled_from([[], [""], ["a"], ["", "a"]]))
    def announce(self, topics):
        """About a topic that the messages have, as it happens the empty one, or about another."""
        self.pipeline.backlog.announce(STATUS, b"%d accept" % self.appended, topics)
        self.appended += 1

    @rule()
    def divert(self):
        self.pipeline.backlog.divert()

    @rule()
    def stand_by(self):
        self.leading = False
        self.lose_connection(False)
        self.pipeline.backlog.stand_by()
        assert self.waiting_and_in_flight() == []

    @rule()
    def lead(self):
        dropped = self.pipeline.backlog.overflowed.total()
        self.pipeline.backlog.lead()
        self.lost_while_pending += self.pipeline.backlog.overflowed.total() - dropped
        assert self.lost_while_pending <= self.pending.overflowed
        self.leading = True
        assert len(self.pending) == self.pending.bytes == 0

    @precondition(lambda self: not self.leading)
    @rule(channel=st.sampled_from(CHANNELS), number=st.integers(0, 5))
    def other_instance_publishes(self, channel, number):
        messages = [command for command in self.kept() if channel_of(command) == channel and type(command) is bytes]
        for command in messages[number : number + 1]:
            self.pipeline.backlog.strike(channel, text_of(command))
            assert not set(messages[: number + 1]) & set(self.kept())
            assert set(messages[number + 1 :]) <= set(self.kept())

    @precondition(lambda self: self.leading)
    @rule()
    def take(self):
        self.arrive(self.pipeline.take())

    @rule(words=st.sampled_from([("ROLE",), ("PUBSUB", "NUMSUB", "a"), ("HSET", "h", "f", "1\r\n:2\r\n")]))
    def ask(self, words):
        self.asked += 1
        self.arrive(self.pipeline.ask(Query(self.on_reply, *words)))

    def on_reply(self, reply):
        self.answered += 1
        if reply[0] == b"master":
            self.pipeline.verified()

    def arrive(self, data):
        self.unanswered.extend(commands_of(data))

    @precondition(lambda self: self.unanswered)
    @rule(number=st.integers(1, 20), accept_announcements=st.booleans())
    def reply(self, number, accept_announcements):
        for _ in range(min(number, len(self.unanswered))):
            words = self.unanswered.popleft()
            if words[0] != b"PUBLISH":
                replies = {b"ROLE": b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n", b"HSET": b"*1\r\n-NOPERM\r\n"}
                self.replies += replies.get(words[0], b"*2\r\n$3\r\na\r\n\r\n:1\r\n")
                self.outcomes.append(("answered", words))
            elif accept_announcements if words[2].startswith(b"{") else b"accept" in words[2]:
                self.replies += self.ACCEPTED
                self.outcomes.append(("confirmed", words))
                if not words[2].startswith(b"{"):
                    self.received.setdefault(words[1], []).append(int(words[2].split()[0]))
            else:
                self.replies += self.REJECTED[self.appended % len(self.REJECTED)]
                self.outcomes.append(("rejected", words))

    @precondition(lambda self: self.replies)
    @rule(share=st.floats(0, 1))
    def receive(self, share):
        at = max(1, round(len(self.replies) * share))
        in_flight = len(self.pipeline.in_flight)
        self.pipeline.receive(self.replies[:at])
        self.replies = self.replies[at:]
        for _ in range(in_flight - len(self.pipeline.in_flight)):
            self.settle(*self.outcomes.popleft())

    def settle(self, outcome, words):
        if outcome == "answered":
            if words == [b"ROLE"]:
                self.retained.clear()
            return
        if outcome == "confirmed" and self.pipeline.retains:
            self.retained.append(words)
        if words[2].startswith(b"{"):
            event = json.loads(words[2])
            if outcome == "confirmed":
                self.announced[event["channel"]] += event["messages"]
        elif outcome == "confirmed":
            self.confirmed += 1
        else:
            self.rejected += 1

    @rule(broken=st.booleans())
    def lose_connection(self, broken):
        self.void += sum(type(command) is Query for command in self.pipeline.in_flight)
        messages = [command for command in self.pipeline.in_flight if type(command) is not Query]
        dropped = self.pipeline.dropped.total()
        self.pipeline.connection_lost(broken)
        if self.pipeline.dropped.total() > dropped:
            poison = messages[0]
            assert len(messages) == 1
            assert not isinstance(poison, DropNotice)
            self.rejected += 1
        self.unanswered.clear()
        self.outcomes.clear()
        self.replies = b""

    @rule()
    def announce_rejected(self):
        self.pipeline.announce_rejected()

    @rule(retains=st.sampled_from([True, True, False]))
    def retain(self, retains):
        self.pipeline.retains = retains

    @rule()
    def verify(self):
        self.pipeline.verified()
        self.retained.clear()

    @rule(broken=st.booleans())
    def send_again(self, broken):
        """The server was no master: on a new connection, or between two."""
        self.lose_connection(broken)
        waited = self.waiting_and_in_flight()
        number = self.pipeline.send_again()
        assert number <= len(self.retained)
        again = [self.retained.pop() for _ in range(number)][::-1]
        if self.leading:
            assert [commands_of(command)[0] for command in self.pipeline.backlog.waiting][:number] == again
            behind = self.waiting_and_in_flight()[number:]
            notices = behind[: len(behind) - len(waited)]
            assert behind == notices + waited
            assert all(isinstance(command, DropNotice) for command in notices)
        else:
            assert self.waiting_and_in_flight() == []
        for words in again:
            if words[2].startswith(b"{"):
                event = json.loads(words[2])
                self.announced[event["channel"]] -= event["messages"]
            else:
                self.confirmed -= 1
        self.verify()

    # Laws.

    def waiting_and_in_flight(self):
        commands = [*self.pipeline.in_flight, *self.pipeline.backlog.waiting]
        return [command for command in commands if type(command) is not Query]

    def kept(self):
        return [entry.command for entry in self.pending._order if entry.command]

    @invariant()
    def every_message_has_exactly_one_state(self):
        here = [command for command in self.waiting_and_in_flight() if not isinstance(command, DropNotice)]
        dropped = self.pipeline.backlog.overflowed.total() - self.lost_while_pending + self.pending.overflowed
        settled = self.confirmed + self.rejected + dropped + self.pending.struck
        assert self.appended == settled + len(here) + len(self.pending)
        assert len(self.pending) == len(self.kept())

    @invariant()
    def every_loss_is_announced_exactly_once(self):
        promised = self.announced + self.pipeline.backlog.unannounced + self.pipeline._unannounced
        for command in self.waiting_and_in_flight():
            if isinstance(command, DropNotice):
                promised[command.channel] += command.messages
        lost = Counter(self.pipeline.dropped)
        # What Redis rejects on the status channel is counted and not announced there, but for announcements.
        lost[STATUS] = self.pipeline.backlog.overflowed[STATUS]
        assert promised == +lost

    @invariant()
    def bytes_add_up(self):
        backlog = self.pipeline.backlog
        assert backlog.waiting_bytes == size(backlog.waiting) + OVERHEAD * len(backlog.waiting)
        assert backlog.in_flight_bytes == size(self.pipeline.in_flight)

    @invariant()
    def order_is_kept_within_a_channel(self):
        for numbers in self.received.values():
            firsts = list(dict.fromkeys(numbers))
            assert firsts == sorted(firsts)
        for channel in CHANNELS:
            numbers = [
                int(text_of(command).split()[0])
                for command in [*self.waiting_and_in_flight(), *self.kept()]
                if not isinstance(command, DropNotice) and channel_of(command) == channel
            ]
            assert numbers == sorted(numbers)

    @invariant()
    def what_is_retained_is_what_was_confirmed_last(self):
        retained = [commands_of(command)[0] for command in self.pipeline._retained]
        assert len(retained) == self.pipeline.retained <= len(self.retained)
        assert retained == [*self.retained][len(self.retained) - len(retained) :]
        assert self.pipeline._retained.bytes == size(self.pipeline._retained) + OVERHEAD * len(retained)
        assert self.pipeline._retained.bytes <= self.LIMIT

    @invariant()
    def every_query_is_answered_once_or_void(self):
        in_flight = sum(type(command) is Query for command in self.pipeline.in_flight)
        assert self.asked == self.answered + self.void + in_flight
        assert self.pipeline.messages == len(self.waiting_and_in_flight())

    def teardown(self):
        """In the end everything can be delivered, and consumers know the number of every loss."""
        self.lose_connection(False)
        self.lead()
        for _ in range(200):
            if self.pipeline.is_settled:
                break
            self.announce_rejected()
            self.take()
            if self.unanswered:
                self.reply(20, True)
                self.receive(1.0)
        assert self.pipeline.is_settled
        assert self.pipeline.undelivered() == 0
        self.every_message_has_exactly_one_state()
        self.every_loss_is_announced_exactly_once()
        assert not self.pipeline.backlog.unannounced


class DurableDelivery(Delivery):
    """The same with Redis Streams: two commands for each message, and a reply to each of them."""

    ACCEPTED = b"$15\r\n1526919030474-0\r\n:1\r\n"
    REJECTED = (
        b"-OOM no\r\n:1\r\n",
        b"$15\r\n1526919030474-0\r\n-NOPERM no\r\n",
        b"-WRONGTYPE no\r\n-NOPERM no\r\n",
    )

    def new_pipeline(self, backlog):
        return DurablePipeline(backlog, STATUS, announcement, 1000)

    def arrive(self, data):
        commands = deque(commands_of(data))
        while commands:
            words = commands.popleft()
            if words[0] == b"XADD":
                added, words = words, commands.popleft()
                channel, text = words[1:]
                assert added == [b"XADD", channel, b"MAXLEN", b"~", b"1000", b"*", b"message", text]
            else:
                assert words[0] != b"PUBLISH"
            self.unanswered.append(words)


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDurableDelivery = DurableDelivery.TestCase
TestDurableDelivery.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


# Replies.

SCALARS = st.one_of(st.integers(), st.none(), st.binary(max_size=20), st.just(ReplyError("ERR no")))
REPLIES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=10)


def resp(value):
    if isinstance(value, int):
        return b":%d\r\n" % value
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, ReplyError):
        return b"-%b\r\n" % str(value).encode()
    return b"*%d\r\n" % len(value) + b"".join(map(resp, value))


def same(value, expected):
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    return str(value) == str(expected) if isinstance(expected, ReplyError) else value == expected


@given(REPLIES, st.binary(max_size=9))
def test_a_reply_is_parsed_when_and_only_when_it_is_complete(value, rest):
    data = resp(value)
    parsed, after = parse_reply(data + rest, 0)
    assert (same(parsed, value), after) == (True, len(data))
    assert all(parse_reply(data[:end], 0) == (None, -1) for end in range(len(data)))


@given(st.lists(st.one_of(REPLIES, st.just("message")), max_size=8), st.data())
def test_replies_reach_their_commands_wherever_they_are_cut(expected, data):
    pipeline, received, wire = new_pipeline(), [], b""
    for value in expected:
        if value == "message":
            pipeline.backlog.append("a", b"x")
            pipeline.take()
            wire += b":0\r\n"
        else:
            pipeline.ask(Query(received.append, "ROLE"))
            wire += resp(value)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        pipeline.receive(wire[begin:end])
    assert same(received, [value for value in expected if value != "message"])
    assert pipeline.confirmed == expected.count("message")
    assert pipeline.is_settled


@pytest.mark.parametrize("replies", [b":1\r\n:1\r\n", b":1\r\n-ERR\r\n"])
def test_a_reply_to_no_command_ends_the_connection(replies):
    pipeline = new_pipeline()
    pipeline.backlog.append("a", b"x")
    pipeline.take()
    with pytest.raises(Unavailable, match="more replies than commands"):
        pipeline.receive(replies)


@pytest.mark.parametrize(
    "error", ["BUSY", "LOADING", "MASTERDOWN", "NOAUTH", "READONLY", "TRYAGAIN", "CLUSTERDOWN", "DENIED"]
)
def test_an_error_about_the_state_of_redis_costs_no_message(error):
    pipeline = new_pipeline()
    for number in range(3):
        pipeline.backlog.append("a", b"%d" % number)
    sent = pipeline.take()
    with pytest.raises(Unavailable, match=error):
        pipeline.receive(b":1\r\n-%b wait\r\n:1\r\n" % error.encode())
    pipeline.connection_lost(broken=False)
    assert commands_of(pipeline.take()) == commands_of(sent)[1:]
    assert not pipeline.dropped


@pytest.mark.parametrize("error", ["NOPERM no", "ERR unknown command", "CLUSTERDOWN", "OOM"])
def test_an_error_about_a_query_is_its_reply(error):
    pipeline, replies = new_pipeline(), []
    pipeline.ask(Query(replies.append, "ROLE"))
    pipeline.receive(b"-%b\r\n" % error.encode())
    assert isinstance(replies[0], ReplyError)
    assert str(replies[0]) == error


# The window, rejections, poison.


@given(st.lists(st.integers(0, WINDOW), max_size=30))
def test_the_window_is_exceeded_by_one_message_at_most(sizes):
    pipeline = new_pipeline()
    for length in sizes:
        pipeline.backlog.append("a", b"x" * length)
    while pipeline.messages:
        while pipeline.take():
            pass
        in_flight = pipeline.in_flight
        assert size(in_flight) - len(in_flight[-1]) < WINDOW
        pipeline.receive(b":0\r\n" * len(in_flight))


def test_the_first_rejection_of_each_kind_is_described():
    pipeline = new_pipeline()
    for _ in range(3):
        for channel in ("a", "b"):
            pipeline.backlog.append(channel, b"x" * 1000)
    pipeline.take()
    pipeline.receive(b"-NOPERM no\r\n" * 6)
    assert [(one.channel, one.reason, one.size) for one in pipeline.rejections] == [
        ("a", "NOPERM no", 1000),
        ("b", "NOPERM no", 1000),
    ]
    assert pipeline.dropped == {"a": 3, "b": 3}
    pipeline.announce_rejected()
    events = [json.loads(words[2]) for words in commands_of(pipeline.take())]
    assert [(event["channel"], event["messages"]) for event in events] == [("a", 3), ("b", 3)]


@given(st.integers(1, 12), st.data())
def test_only_the_message_that_breaks_every_connection_is_dropped(count, data):
    poison = data.draw(st.integers(0, count - 1))
    pipeline = new_pipeline()
    for number in range(count):
        pipeline.backlog.append("a", b"%d" % number)
    received, connections = [], 0
    while pipeline.messages:
        for words in commands_of(pipeline.take()):
            if int(words[2]) == poison:
                connections += 1
                pipeline.connection_lost(broken=True)
                break
            received.append(int(words[2]))
            pipeline.receive(b":1\r\n")
    assert received == [number for number in range(count) if number != poison]
    assert connections == MAX_DELIVERY_ATTEMPTS
    assert pipeline.dropped == {"a": 1}


@given(st.lists(st.integers(1, 5), min_size=1))
def test_no_message_is_dropped_for_breaks_that_it_does_not_cause(breaks):
    """Each connection carries some messages before it breaks."""
    pipeline = new_pipeline()
    for number in range(sum(breaks)):
        pipeline.backlog.append("a", b"%d" % number)
    for count in breaks:
        for _ in range(count):
            if len(pipeline.in_flight) == 0:
                pipeline.take()
            pipeline.receive(b":1\r\n")
        pipeline.connection_lost(broken=True)
    assert pipeline.is_settled
    assert not pipeline.dropped


def test_an_announcement_that_is_dropped_is_announced_again():
    pipeline = new_pipeline(limit=1000)
    for _ in range(3):
        pipeline.backlog.append("a", b"x" * 600)
    assert [json.loads(words[2])["messages"] for words in commands_of(pipeline.take())[:1]] == [2]
    pipeline.connection_lost(broken=False)
    pipeline.backlog.append("a", b"x" * 900)
    assert pipeline.backlog.unannounced == pipeline.dropped == {"a": 3}


# Retention.


def pipeline_with(*messages, limit=1 << 30):
    """A pipeline that retains, after these were confirmed."""
    pipeline = new_pipeline(limit)
    pipeline.retains = True
    for message in messages:
        pipeline.backlog.append("a", message)
        pipeline.take()
        pipeline.receive(b":1\r\n")
    return pipeline


def texts(pipeline):
    return [words[2] for words in commands_of(pipeline.take())]


def test_what_a_lost_server_confirmed_goes_before_all_else():
    pipeline = pipeline_with(b"1", b"2")
    pipeline.backlog.append("a", b"3")
    pipeline.take()
    pipeline.backlog.append("a", b"4")
    pipeline.connection_lost(broken=True)
    assert pipeline.confirmed == pipeline.retained == 2
    assert pipeline.send_again() == 2
    assert (pipeline.confirmed, pipeline.retained, pipeline.messages) == (2, 0, 4)
    assert texts(pipeline) == [b"1", b"2", b"3", b"4"]


def test_nothing_is_retained_unless_asked():
    pipeline = new_pipeline()
    pipeline.backlog.append("a", b"1")
    pipeline.take()
    pipeline.receive(b":1\r\n")
    assert (pipeline.retained, pipeline.send_again(), pipeline.confirmed) == (0, 0, 1)


def test_a_reply_verifies_what_was_confirmed_before_it_and_no_more():
    pipeline = pipeline_with(b"1")
    pipeline.ask(Query(lambda _reply: pipeline.verified(), "ROLE"))
    pipeline.backlog.append("a", b"2")
    pipeline.take()
    pipeline.receive(b"*1\r\n$6\r\nmaster\r\n:1\r\n")
    assert pipeline.send_again() == 1
    assert texts(pipeline) == [b"2"]


def test_of_what_is_retained_the_oldest_go_and_nobody_is_told():
    each = len(publish_head("a") + b"600\r\n\r\n") + 600 + OVERHEAD
    pipeline = pipeline_with(*(b"%d" % number * 600 for number in range(5)), limit=3 * each)
    assert pipeline.retained == 3
    pipeline.backlog.append("a", b"5" * 600)
    assert pipeline.send_again() == 2
    assert [text[:1] for text in texts(pipeline)] == [b"3", b"4", b"5"]
    assert not pipeline.dropped


def test_a_loss_is_announced_behind_what_is_sent_again():
    pipeline = pipeline_with(b"1", limit=1000)
    for _ in range(2):
        pipeline.backlog.append("a", b"x" * 500)
    assert pipeline.send_again() == 1
    first, second, third = texts(pipeline)
    assert (first, third) == (b"1", b"x" * 500)
    assert json.loads(second)["messages"] == 1


def test_who_stands_by_sends_nothing_again_but_keeps_it_in_case_nobody_else_has_it():
    pipeline = Pipeline(Backlog(1 << 20, Pending(1 << 20)), STATUS, announcement)
    pipeline.retains = True
    pipeline.backlog.lead()
    for text in (b"1", b"2"):
        pipeline.backlog.append("a", text)
    pipeline.take()
    pipeline.receive(b":1\r\n")
    pipeline.connection_lost(broken=True)
    pipeline.backlog.stand_by()
    assert pipeline.send_again() == 1
    assert (pipeline.retained, pipeline.messages, pipeline.confirmed) == (0, 0, 1)
    pipeline.backlog.lead()
    assert texts(pipeline) == [b"1", b"2"]


def test_what_was_confirmed_after_the_mark_is_not_verified_with_it():
    pipeline = pipeline_with(b"1")
    mark = pipeline.mark()
    pipeline.backlog.append("a", b"2")
    pipeline.take()
    pipeline.receive(b":1\r\n")
    pipeline.verified(mark)
    assert pipeline.retained == 1
    pipeline.verified(mark)
    assert pipeline.send_again() == 1
    assert texts(pipeline) == [b"2"]


def test_a_message_that_breaks_servers_is_found_although_others_are_sent_again_before_it():
    pipeline = pipeline_with(b"1", b"2")
    pipeline.backlog.append("a", b"poison")
    for _ in range(2 * MAX_DELIVERY_ATTEMPTS):
        pipeline.send_again()
        while text := texts(pipeline):
            if b"poison" in text:
                pipeline.connection_lost(broken=True)
                break
            pipeline.receive(b":1\r\n" * len(text))
        if pipeline.dropped:
            break
    assert pipeline.dropped == {"a": 1}
    assert (pipeline.retained, pipeline.messages) == (2, 0)


# Queries.


@pytest.mark.parametrize(
    ("before", "now", "back"),
    [
        ({}, {}, True),
        ({"a": 2}, {"a": 2}, True),
        ({"a": 2}, {"a": 1}, False),
        ({"a": 2}, {"a": 3}, True),
        ({"a": 0}, {}, True),
        ({"": 1}, {"a": 1}, False),
    ],
)
def test_the_grace_period_is_for_subscribers_that_were_there(before, now, back):
    probe = Probe()
    for counts in (before, now):
        role, channels, patterns = probe.queries(["a"])
        assert probe.subscribers is None
        role.on_reply([b"master", 0, []])
        channels.on_reply([b"a", counts.get("a", 0)])
        patterns.on_reply(counts.get("", 0))
        if counts is before:
            probe.accept()
            probe.begin()
    assert probe.all_are_back == back


def test_a_replica_is_unavailable_and_a_missing_permission_is_not():
    role, channels, patterns = Probe().queries(["a"])
    for query in (role, channels, patterns):
        query.on_reply(ReplyError("NOPERM"))
    with pytest.raises(Unavailable, match="it is a replica"):
        role.on_reply([b"slave", b"host", 6379, b"connected", 0])


def test_the_state_hash_is_written_when_it_changes_and_on_a_new_connection():
    status = StateHash("h", 15)
    assert status.queries() == []
    status.write_again()
    assert status.queries() == []
    status.set({"Trades": "{}"})
    words = [words for query in status.queries() for words in commands_of(query)]
    assert words == [[b"DEL", b"h"], [b"HSET", b"h", b"Trades", b"{}"], [b"EXPIRE", b"h", b"15"]]
    assert status.queries() == []
    status.write_again()
    assert len(status.queries()) == 3


def test_each_reason_why_the_state_hash_is_rejected_is_reported_once_and_so_is_the_end():
    status = StateHash("h", 15)
    told = []
    for reply in [5, ReplyError("NOPERM no"), ReplyError("OOM a"), ReplyError("NOPERM no"), 5, 5, ReplyError("OOM a")]:
        status.set({"Trades": "{}"})
        status.queries()[-2].on_reply(reply)
        told.append(status.take_change())
        assert status.take_change() is None
    assert told == [None, "NOPERM no", "OOM a", None, "", None, "OOM a"]


# Commands and text.


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary())
@example("\r\n", b"")
def test_a_publish_command_gives_back_its_channel_and_text(channel, text):
    command = b"%b%d\r\n%b\r\n" % (publish_head(channel), len(text), text)
    assert (channel_of(command), text_of(command)) == (channel, text)
    assert commands_of(command) == [[b"PUBLISH", channel.encode(), text]]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("ünï", "ünï".encode()),
        ({"a": [1, "ü"]}, '{"a":[1,"ü"]}'.encode()),
        ("\ud800", b"\\ud800"),
        (["\ud800"], b'["\\ud800"]'),
        (None, b"null"),
    ],
)
def test_what_is_not_bytes_becomes_text(message, text):
    assert encoded(message) == text
    backlog = Backlog(1 << 20)
    backlog.append("a", message)
    assert text_of(backlog.waiting[0]) == text


@pytest.mark.parametrize("made", [Pipeline, lambda *args: DurablePipeline(*args, 10)], ids=["Pub/Sub", "Streams"])
@pytest.mark.parametrize("asks", [False, True])
def test_a_reply_without_an_end_is_given_up(made, asks):
    pipeline = made(Backlog(1 << 30), STATUS, announcement)
    pipeline.backlog.append("a", b"1")
    pipeline.take()
    if asks:
        pipeline.ask(Query(lambda _: None, "ROLE"))
    for _ in range(5):
        pipeline.receive(b"x" * (1 << 18))
    with pytest.raises(Unavailable, match="a reply of more than 1,048,576 bytes"):
        pipeline.receive(b"x")
    pipeline.connection_lost(broken=False)
    assert pipeline.messages == 1


def test_a_query_can_hold_any_text():
    assert Query(lambda _: None, "HSET", "a\ud800") == b"*2\r\n$4\r\nHSET\r\n$7\r\na\\ud800\r\n"


def messages_of(data):
    return [words[2] for words in commands_of(data)]


def test_a_loss_is_announced_behind_what_was_in_flight():
    """What was dropped while Redis hung is newer than what it had got already."""
    pipeline = new_pipeline(3000)
    for number in range(3):
        pipeline.backlog.append("a", b"%d" % number + b"x" * 200)
    pipeline.take()
    for number in range(3, 20):
        pipeline.backlog.append("a", b"%d" % number + b"x" * 200)
    dropped = pipeline.dropped["a"]
    pipeline.connection_lost(broken=False)
    sent = [text.rstrip(b"x") for text in messages_of(pipeline.take())]
    assert sent[:5] == [b"0", b"1", b"2", announcement("a", dropped), b"%d" % (3 + dropped)]


def test_an_announcement_that_redis_rejects_is_made_again_and_does_not_hold_up_the_end():
    pipeline = new_pipeline()
    pipeline.backlog.append("a", b"1")
    pipeline.take()
    pipeline.receive(b"-NOPERM no\r\n")
    for _ in range(3):
        pipeline.announce_rejected()
        assert messages_of(pipeline.take()) == [announcement("a", 1)]
        assert not pipeline.is_settled
        pipeline.receive(b"-NOPERM no\r\n")
        assert pipeline.is_settled
    pipeline.announce_rejected()
    pipeline.take()
    pipeline.receive(b":1\r\n")
    assert pipeline.dropped == {"a": 1}
    pipeline.announce_rejected()
    assert pipeline.take() == b""
