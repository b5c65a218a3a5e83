"""Redis as a Cluster: messages on all nodes, the state where its slot is, one node after the other."""

import json
import time

import pytest
from conftest import Subscriber, eventually
from programs import CHANNELS, by_topic
from topology import Cluster

from ops.check import run_check
from ops.reader import Place
from ops.status import asked, single
from relay.bybit.exchange import Exchange
from relay.redis.cluster import NO_LEASE, Nodes
from relay.redis.endpoint import Hosts
from relay.redis.link import Timeouts
from relay.redis.pipeline import Refused, Unavailable
from relay.redis.publisher import Publisher
from relay.redis.resp import Query, ReplyError
from relay.redis.state import ask, place
from sandbox.bybit import Bybit

PASSWORD = "secret"
CHANNEL = "test:a"
DATA = {f"stream:bybit_{name}" for name in CHANNELS.values()}
QUICK = Timeouts(reply=1.0, probe=0.1)
FIELDS = {"Trades": json.dumps({"up": True, "ts": 1})}


def read_hash(connect, key):
    return ask(connect, [Query(print, "HGETALL", key)], {})[0]


@pytest.fixture(scope="module")
def whole():
    """A Cluster of three."""
    with Cluster(nodes=3, password=PASSWORD, node_timeout=1000) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole):
    """The same; what the last test has broken is mended before."""
    for node in whole.nodes:
        if not node.running:
            node.start()
    whole.wait_until_healthy()
    return whole


class Running(Publisher):
    """A publisher to the first of these nodes, else to the next; `with` waits for its connection and stops it."""

    def __init__(self, *nodes, **options):
        endpoint = Hosts([node.address for node in nodes])
        super().__init__(endpoint=endpoint, **{"password": PASSWORD, "timeouts": QUICK} | options)

    def __enter__(self):
        self.start()
        eventually(lambda: self.connected)
        return self

    def __exit__(self, *_):
        assert self.stop(time.monotonic() + 5) == 0

    def send(self, *numbers):
        for number in numbers:
            self.publish(CHANNEL, b"%d" % number)
        self.flush()


def numbers(subscriber):
    return [int(payload) for payload in subscriber.of(CHANNEL)]


# Messages.


def test_what_one_node_gets_reaches_the_subscribers_of_all(cluster):
    first, second, third = cluster.nodes
    with Subscriber(first, CHANNEL) as a, Subscriber(second, CHANNEL) as b, Subscriber(third, "test:*") as c:
        with Running(second) as publisher:
            publisher.send(*range(3000))
        for subscriber in (a, b, c):
            eventually(lambda: len(subscriber.messages) >= 3000)  # noqa: B023
            assert numbers(subscriber) == list(range(3000))


def test_all_subscribers_hear_that_the_collector_lives(cluster):
    first, second, third = cluster.nodes
    status = "stream:bybit_status"
    with (
        Subscriber(first, status) as a,
        Subscriber(second, status) as b,
        Subscriber(third, status) as c,
        Running(second) as publisher,
    ):
        publisher.beat(up=4, streams=4)
        eventually(lambda: len(a.beats) == len(b.beats) == len(c.beats) == 1)


def test_a_node_that_is_cut_off_from_the_others_gets_nothing_more(cluster, caplog):
    """The backlog keeps it. What it got before it noticed waits in its links to the others."""
    first, second, third = cluster.nodes
    with Subscriber(second, CHANNEL) as subscriber, Running(first) as publisher:
        publisher.send(*range(100))
        second.pause()
        third.pause()
        try:
            eventually(lambda: "it is cut off from most of its Cluster" in caplog.text)
            publisher.send(*range(100, 200))
            assert not publisher.connected
        finally:
            second.resume()
            third.resume()
        eventually(lambda: numbers(subscriber)[-1:] == [199], 20)
        assert sorted(set(numbers(subscriber))) == list(range(200))


def test_another_database_than_the_one_of_a_cluster_is_refused_at_the_start(cluster):
    publisher = Publisher(endpoint=Hosts([cluster.nodes[0].address]), password=PASSWORD, db=3)
    publisher.start()
    reason = eventually(lambda: publisher.fatal)
    assert reason.startswith(f"Redis at 127.0.0.1:{cluster.nodes[0].port}: REDIS_DB: ")
    assert reason.endswith(" (a Cluster has database 0 only)")
    publisher.stop(time.monotonic() + 1)


def test_a_database_that_a_server_does_not_have_is_refused_at_the_start(redis_server):
    publisher = Publisher("127.0.0.1", redis_server.port, db=16)
    publisher.start()
    assert "REDIS_DB: DB index is out of range" in eventually(lambda: publisher.fatal)
    publisher.stop(time.monotonic() + 1)


# A line each: id, address, flags, master, ping, pong, epoch, link, slots.
NODES = {
    "whole": ("myself,master connected 0-5", "master connected 6-9", "master connected 10-15"),
    "a node has just come back": ("myself,master connected 0-5", "master disconnected 6-9", "master connected 10-15"),
    "one has failed": ("myself,master connected 0-5", "master,fail disconnected 6-9", "master connected 10-15"),
    "one may have failed": ("myself,master connected 0-5", "master,fail? connected 6-9", "master connected 10-15"),
    "a replica": ("myself,slave connected", "master connected 0-9", "master connected 10-15", "slave connected"),
    "alone": ("myself,master connected 0-15",),
    "without slots": ("myself,master connected", "master,handshake disconnected"),
    "cut off": ("myself,master connected 0-5", "master disconnected 6-9", "master,fail? connected 10-15"),
    "half": ("myself,master connected 0-9", "master,fail disconnected 10-15"),
}
IN_PART = {"a node has just come back", "without slots"}
MOSTLY_CUT_OFF = {"cut off", "half"}


def hello(nodes, mode=b"cluster"):
    """Hands the reply to the first question to `nodes`."""
    [query] = nodes.queries()
    query.on_reply([b"server", b"redis", b"proto", 2, b"mode", mode, b"role", b"master", b"modules", []])


@pytest.mark.parametrize("name", NODES)
def test_a_node_serves_while_it_reaches_most_of_the_others(name):
    lines = []
    for line in NODES[name]:
        flags, link, *slots = line.split()
        lines.append(" ".join(["0f3a", "10.0.0.1:7000@17000,host", flags, "-", "0", "1", "2", link, *slots]))
    nodes = Nodes()
    hello(nodes)
    assert not nodes.reaches_all
    [query] = nodes.queries()
    if name in MOSTLY_CUT_OFF:
        with pytest.raises(Unavailable):
            query.on_reply("\n".join(lines).encode())
    else:
        query.on_reply("\n".join(lines).encode())
        assert nodes.reaches_all == (name not in IN_PART)


@pytest.mark.parametrize("reply", [ReplyError("NOPERM"), b"", b"vars 1\n\nodd line", None])
def test_a_cluster_that_does_not_tell_of_its_nodes_is_taken_as_whole(reply):
    nodes = Nodes()
    hello(nodes)
    nodes.queries()[0].on_reply(reply)
    assert nodes.reaches_all


@pytest.mark.parametrize("reply", [ReplyError("ERR unknown command"), [], [b"mode"], [b"mode", b"standalone"], None])
def test_a_redis_that_is_no_cluster_is_asked_once(reply):
    nodes = Nodes()
    nodes.queries()[0].on_reply(reply)
    assert (nodes.is_cluster, nodes.reaches_all, nodes.queries()) == (False, True, [])
    nodes.begin(True)
    assert len(nodes.queries()) == 1, "a new connection may go to another Redis"


def test_a_replica_is_known_without_the_right_to_ask_for_the_role():
    with pytest.raises(Unavailable, match="replica"):
        Nodes().queries()[0].on_reply([b"mode", b"standalone", b"role", b"replica", b"modules", []])


# The state hash.


@pytest.mark.parametrize("owner", [0, 1, 2])
def test_the_state_is_written_where_its_slot_is_and_read_from_anywhere(cluster, caplog, owner):
    key = cluster.key_of(cluster.nodes[owner], "test:state")
    with Running(cluster.nodes[0], state_key=key) as publisher:
        for text in ("1", "2"):
            publisher.set_state({"Trades": text})
            for node in cluster.nodes:
                connect = Publisher(*node.address, password=PASSWORD).new_connection
                eventually(lambda: read_hash(connect, key) == [b"Trades", text.encode()])  # noqa: B023
        publisher.set_state({"Ticker": "3"})
        eventually(lambda: {b"Ticker", b"3"} <= set(read_hash(connect, key)))
        assert 0 < cluster.nodes[owner].ask("TTL", key) <= 15
    eventually(lambda: cluster.nodes[owner].ask("TTL", key) == -2, 1)
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_the_status_is_there_whatever_node_is_asked(cluster):
    key = cluster.key_of(cluster.nodes[2], "test:status")
    fields = {"Trades": json.dumps({"up": True, "ts": round(time.time() * 1000)})}
    with Running(cluster.nodes[0], state_key=key) as publisher:
        publisher.set_state(fields)
        eventually(lambda: read_hash(publisher.new_connection, key))
        for node in cluster.nodes:
            place = Place([node.address], login=(None, PASSWORD))
            report = asked(place, lambda reader: single(reader, key))
            assert report.code == 0, report.lines
            assert report.lines[1].split()[:2] == ["Trades", "up"]


def test_when_the_node_of_the_state_dies_its_replica_gets_it_and_messages_flow_meanwhile(caplog):
    caplog.set_level("INFO")
    with Cluster(nodes=3, replicas=1, password=PASSWORD, node_timeout=1000) as cluster:
        first, second, third = cluster.nodes
        key = cluster.key_of(third, "test:state")
        with Subscriber(second, CHANNEL) as subscriber, Running(first, state_key=key) as publisher:
            publisher.set_state(FIELDS)
            eventually(lambda: read_hash(publisher.new_connection, key))
            third.kill()

            def logged(text):
                publisher.set_state(FIELDS)
                publisher.send(len(numbers(subscriber)))
                return text in caplog.text

            eventually(lambda: logged(f"The Cluster does not take the state hash {key}: "))
            eventually(lambda: logged(f"The Cluster takes the state hash {key} again"))
            assert cluster.promoted(third).ask("EXISTS", key)
            assert read_hash(publisher.new_connection, key)
            assert len(numbers(subscriber)) > 5
    assert caplog.text.count("does not take") == 1
    assert "Lost Redis" not in caplog.text


def test_where_a_slot_is(cluster):
    assert place("MOVED 3999 10.0.0.1:7001") == {"host": "10.0.0.1", "port": 7001}
    assert place("3999 fd00::1:7001") == {"host": "fd00::1", "port": 7001}
    assert place("3999 :7001", "here") == {"host": "here", "port": 7001}
    assert place("3999 :7001") == {}


# Leader and standby.


def test_a_lease_is_refused(cluster, program):
    nodes = Nodes()
    nodes.begin(True)
    with pytest.raises(Refused):
        hello(nodes)
    settings = {"REDIS_PORT": cluster.nodes[0].port, "REDIS_PASSWORD": PASSWORD, "LEADER_KEY": "lease"}
    collector = program(bybit=None, BYBIT_WS_URL="ws://127.0.0.1:1", **settings)
    assert collector.wait()[0] == 2
    sentence = f"Redis at 127.0.0.1:{cluster.nodes[0].port}: {NO_LEASE}"
    assert collector.lines("ERROR") == [("MainThread", f"Cannot start: {sentence}")]


def test_the_check_says_that_a_lease_is_refused(cluster, capsys):
    publisher = Publisher(*cluster.nodes[0].address, password=PASSWORD)
    exchange = Exchange("linear", testnet=True, sink=publisher, url="ws://127.0.0.1:1")
    check = ([], exchange, publisher, [CHANNEL], ("req", "reply_"))
    assert run_check(*check, lease=("lease", "a")) == 1
    assert NO_LEASE in " ".join(capsys.readouterr().out.split())


# The whole program.


def test_the_collector_goes_on_and_answers_requests_when_a_node_dies(cluster, program):
    first, second, third = cluster.nodes
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
    settings = {"REDIS_HOST": hosts, "REDIS_PASSWORD": PASSWORD}
    with Bybit(rate=500, record=True) as bybit, Subscriber(third, "stream:bybit_*") as subscriber:
        collector = program(bybit=bybit, **settings)

        def came():
            """The data by topic."""
            return by_topic(payload for name, payload in list(subscriber.messages) if name in DATA)

        def answered(node, reply):
            asked = {"op": "snapshot", "topics": ["orderbook.50.BTCUSDT"], "reply": f"stream:bybit_reply_{reply}"}
            with node.client() as client:
                client.publish("stream:bybit_request", json.dumps(asked))
            eventually(lambda: subscriber.of(asked["reply"]))
            return "snapshot" in json.loads(subscriber.of(asked["reply"])[-1])["type"]

        eventually(lambda: len(came()) == 4, 20)
        assert answered(second, "before")
        first.kill()
        eventually(lambda: " is back after " in collector.log, 20)
        before = sum(map(len, came().values()))
        eventually(lambda: sum(map(len, came().values())) > before + 200, 20)
        assert eventually(lambda: answered(second, "after"))
        assert collector.stop()[0] == 0
        streams = [connection for connection in bybit.connections if len(connection.sent) > 100]
    for connection in streams:  # not those that fetched a snapshot
        for topic, sent in by_topic(text.encode() for text in connection.sent).items():
            got = list(dict.fromkeys(came()[topic]))
            assert got == sent[: len(got)], f"something of {topic} is missing"
    assert len(streams) >= 3
