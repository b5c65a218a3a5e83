"""When what a server confirms is relied on, without a server."""

from math import inf

import pytest

from relay.redis.backlog import Backlog
from relay.redis.pipeline import Pipeline
from relay.redis.queries import SLICE, Probe
from relay.redis.resp import ReplyError
from relay.redis.trust import DOUBT, HANGS, HELD, LEAVE, PASSED_ON, Trust


class Server:
    """Plays Redis for a Trust: `now` is its clock.

    connect(): a new connection, to the end of the grace period. probes(): a second later. confirms(): a message.
    """

    def __init__(self, asks=False, several=True, standby_channel=""):
        self.pipeline = Pipeline(Backlog(1 << 20), "status", lambda *_: b"")
        self.trust = Trust(self.pipeline, several, asks, standby_channel, ["a"])
        self.now, self.asked_at, self.elsewhere = 100.0, 0.0 if asks else float("inf"), False
        self.replicas, self.subscribers, self.standbys = 1, 1, 0
        self.hides = False  # its role

    def connect(self, run_id="x"):
        self.trust.end()
        for query in self.trust.begin():
            query.on_reply(f"# Server\r\nrun_id:{run_id}\r\ntcp_port:1\r\n".encode() if run_id else None)
        self.answers(self.trust.probe.missing)
        again = self.trust.meet(self.now)
        self.trust.settle(self.now)
        return again

    def answers(self, channels):
        role, numbers, patterns = self.trust.probe.queries(channels)
        role.on_reply(ReplyError("NOPERM") if self.hides else [b"master", 0, [b"replica"] * self.replicas])
        names = [word for word in numbers.split(b"\r\n") if word in (b"a", b"watchers")]
        counts = {b"a": self.subscribers + self.standbys, b"watchers": self.standbys}
        numbers.on_reply([part for name in names for part in (name, counts[name])])
        patterns.on_reply(0)

    def probes(self, seconds=1.0):
        """A probe and a turn, and whether the server is left."""
        self.now += seconds
        self.answers(self.trust.channels(["a"]))
        return self.looks(0)

    def looks(self, seconds=0.1):
        self.now += seconds
        reason = self.trust.look(self.now, self.asked_at, self.elsewhere)
        self.trust.verify()
        return reason

    def confirms(self):
        self.pipeline.backlog.append("a", b"1")
        self.pipeline.take()
        self.pipeline.receive(b":1\r\n")

    @property
    def retained(self):
        return self.pipeline.retained


def test_role_verifies_what_was_confirmed_before():
    server = Server()
    server.connect()
    server.confirms()
    assert server.retained == 1
    server.probes()
    assert server.retained == 0


def test_without_replicas_nothing_is_retained():
    server = Server(several=False)
    server.replicas = 0
    server.connect()
    server.confirms()
    assert (server.retained, server.trust.proved, server.trust.doubt) == (0, True, "")


def test_a_node_of_a_cluster_gets_time_to_pass_on_what_it_has_confirmed():
    server = Server(several=False)
    server.replicas, server.trust.probe.nodes.is_cluster = 0, True
    server.connect()
    server.confirms()
    server.probes()
    server.confirms()
    server.looks(PASSED_ON / 2)
    assert server.retained == 2
    server.looks(PASSED_ON / 2)
    assert server.retained == 1, "what came after the probe waits for the next one"
    server.probes()
    server.looks(PASSED_ON)
    assert server.retained == 0


@pytest.mark.parametrize(("run_id", "again"), [("x", 0), ("y", 1), ("", 1)])
def test_another_server_gets_it_again_and_so_does_one_of_unknown_name(run_id, again):
    server = Server()
    server.connect()
    server.probes()
    server.confirms()
    assert server.connect(run_id) == again
    assert server.pipeline.messages == again


@pytest.mark.parametrize("end", ["back", "time"])
def test_a_server_without_the_subscribers_of_the_last_one_is_doubtful_for_a_while(end):
    server = Server()
    server.connect()
    server.probes()
    server.subscribers = 0
    server.connect("y")
    assert "missing" in server.trust.doubt
    server.confirms()
    server.probes()
    assert (server.retained, server.trust.proved) == (1, False)
    server.connect("y")
    assert server.trust.doubt, "another connection to it does not change that"
    if end == "back":
        server.subscribers = 1
        server.probes()
    else:
        server.probes(DOUBT)
    server.probes()
    assert (server.retained, server.trust.proved, server.trust.doubt) == (0, True, "")


def test_what_a_doubtful_server_confirmed_is_sent_to_the_next():
    server = Server()
    server.connect()
    server.probes()
    server.subscribers = 0
    server.connect("y")
    server.confirms()
    server.probes()
    server.subscribers = 1
    assert server.connect("z") == 1
    assert server.trust.proved


def test_subscribers_that_leave_a_server_that_is_right_are_not_missed_later():
    server = Server()
    server.connect()
    server.probes()
    server.subscribers = 0
    server.probes()
    server.connect("y")
    assert server.trust.proved


def test_standbys_do_not_count_as_subscribers():
    server = Server(standby_channel="watchers")
    server.standbys = 1
    server.connect()
    server.probes()
    assert server.trust.probe.expected == {b"a": 1}
    server.subscribers, server.standbys = 0, 2
    server.connect("y")
    assert server.trust.doubt


def test_a_replica_that_goes_may_be_the_new_master():
    server = Server()
    server.replicas = 2
    server.connect()
    server.probes()
    server.confirms()
    server.replicas = 1
    server.probes()
    server.probes(HELD - 1)
    assert (server.retained, server.trust.proved, server.trust.doubt) == (1, False, "")
    server.probes()
    server.probes()
    assert (server.retained, server.trust.proved) == (0, True)


@pytest.mark.parametrize("asks", [True, False])
def test_what_is_retained_does_not_grow_while_replicas_come_and_go(asks):
    server = Server(asks=asks)
    server.connect()
    for second in range(90):
        server.replicas = second % 4 > 0
        server.confirms()
        server.probes()
        server.asked_at = server.now if asks else server.asked_at
    assert HELD - 2 <= server.retained <= HELD + 2
    assert (server.trust.proved, server.trust.hindsight) == (False, HELD)
    server.elsewhere = True
    server.probes()
    assert server.trust.hindsight == float("inf")


@pytest.mark.parametrize("asks", [True, False])
def test_without_the_right_to_ask_for_the_role_it_is_kept_for_some_seconds_only(asks):
    """Else it would be kept up to the size of the buffer, and all of that be sent again to the next server."""
    server = Server(asks=asks)
    server.hides = True
    server.connect()
    for _ in range(60):
        server.confirms()
        server.probes()
        server.asked_at = server.now if asks else server.asked_at
    assert 0 < server.retained <= HELD + 2


def test_it_says_from_when_on_another_look_finds_something():
    server = Server(asks=True)
    server.connect()
    assert server.trust.decides_at == inf, "nothing was confirmed"
    server.confirms()
    server.probes()
    assert (server.retained, server.trust.decides_at) == (1, server.now)
    server.asked_at = server.now + 0.1
    server.looks(0.2)
    assert (server.retained, server.trust.decides_at) == (0, inf)


def test_of_a_server_that_hides_its_role_it_is_found_later():
    server = Server()
    server.hides = True
    server.connect()
    server.confirms()
    server.probes()
    began = server.now
    assert server.trust.decides_at == began + HELD
    server.looks(HELD)
    assert server.trust.decides_at == inf
    assert server.retained == 0


def test_with_sentinel_what_was_confirmed_is_right_once_that_was_asked_later():
    server = Server(asks=True)
    server.connect()
    server.probes()
    server.confirms()
    server.probes()
    server.confirms()  # after ROLE
    server.looks()
    assert server.retained == 2
    server.asked_at = server.now
    server.looks()
    assert server.retained == 1
    server.probes()
    server.asked_at = server.now
    server.looks()
    assert server.retained == 0


def test_a_master_that_sentinel_has_left_keeps_its_subscribers_but_not_for_ever():
    server = Server(asks=True)
    server.connect()
    server.probes()
    server.confirms()
    server.elsewhere, server.asked_at = True, server.now + 100
    assert server.probes() == ""
    assert "Sentinel names another master" in server.trust.doubt
    for _ in range(int(LEAVE) - 1):
        assert server.probes() == ""
    assert server.retained == 1
    assert server.probes(1.1) == "Sentinel names another master"


def test_a_master_that_sentinel_has_left_is_left_when_its_last_subscriber_is_gone():
    server = Server(asks=True)
    server.connect()
    server.probes()
    server.elsewhere = True
    assert server.probes() == ""
    server.subscribers = 0
    assert [server.probes() for _ in range(4)][-1] != ""


def test_a_master_that_sentinel_has_left_is_left_when_it_hangs():
    server = Server(asks=True)
    server.connect()
    server.probes()
    server.elsewhere = True
    server.looks()
    server.trust.probe.queries(["a"])
    assert server.looks(HANGS / 2) == ""
    assert server.looks(HANGS) != ""


def test_a_failover_that_did_not_happen_is_forgotten():
    server = Server(asks=True)
    server.connect()
    server.probes()
    server.elsewhere = True
    server.probes()
    server.elsewhere = False
    server.probes()
    assert server.trust.proved


def test_a_master_that_was_left_and_that_sentinel_names_again_is_not_left_for_the_same_reason():
    server = Server(asks=True)
    server.connect()
    server.probes()
    server.elsewhere = True
    server.probes()
    server.now += LEAVE
    before = server.trust.since
    server.connect()
    assert server.trust.since == server.now > before, "what Sentinel said earlier counts no more"


# The probe.


def channels_of(query):
    return [word for word in query.split(b"\r\n")[4::2] if word]


def test_many_channels_are_asked_for_in_turn():
    probe, names = Probe(), [f"c{number}" for number in range(2 * SLICE + 1)]
    asked = [len(channels_of(probe.queries(names)[1])) - 1 for _ in range(4)]  # NUMSUB itself
    assert asked == [SLICE, SLICE, 1, SLICE]
    assert probe.rounds == 1


def test_in_the_grace_period_only_those_are_asked_for_that_are_missing():
    probe = Probe()
    probe.expected = {b"a": 1, b"b": 2, b"": 1}
    probe.begin()
    assert probe.missing == ["a", "b"]
    _, numbers, patterns = probe.queries(probe.missing)
    numbers.on_reply([b"a", 1, b"b", 1])
    patterns.on_reply(1)
    assert (probe.missing, probe.all_are_back, probe.nobody) == (["b"], False, False)


def test_channels_of_symbols_are_watched_by_pattern():
    probe = Probe(standby_channel="w", watched=["t"])
    _, numbers, patterns = probe.queries(["t", "t:BTCUSDT"])
    numbers.on_reply([b"w", 1, b"t", 3, b"t:BTCUSDT", 3])
    patterns.on_reply(0)
    assert probe.subscribers == {b"t": 2, b"t:BTCUSDT": 3, b"": 0}
