"""Where connections go: one of several hosts, or the master that real Sentinels name."""

import re
import socket
import threading
import time

import pytest
import redis
from conftest import Subscriber, eventually
from topology import Replicated

from relay.redis.address import named
from relay.redis.dial import connections, located, settle
from relay.redis.endpoint import Hosts, Sentinels
from relay.redis.lease import Lease
from relay.redis.link import Timeouts
from relay.redis.listener import Listener, Replies
from relay.redis.publisher import Publisher
from relay.redis.sentinel import LAG, MasterWatch
from sandbox.redis import HOST, LocalRedis, free_port

CHANNEL = "test:a"
QUICK = Timeouts(connect=0.5, reply=1.0, probe=0.1)


@pytest.fixture(scope="module")
def replicated():
    with Replicated(sentinel_password="s-e") as nodes:
        yield nodes


@pytest.fixture
def hanging():
    """A Sentinel that accepts connections and says nothing."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()


def sentinels(nodes, *before, password="s-e", master="mymaster"):
    return located([], [*before, *nodes.sentinel_addresses], master, timeouts=QUICK, password=password)


def dead():
    return HOST, free_port()


def port_of(connect):
    """Connects, and returns the port."""
    connection = connect()
    try:
        connection.connect()
        return connection.port
    finally:
        connection.disconnect()


class Running:
    """A publisher that runs during `with`."""

    def __init__(self, endpoint, timeouts=QUICK, **options):
        self.publisher = Publisher(endpoint=endpoint, timeouts=timeouts, **options)

    def __enter__(self):
        self.publisher.start()
        return self.publisher

    def __exit__(self, *_):
        self.publisher.stop(time.monotonic() + 1)


# Fixed addresses.


def test_a_host_that_refuses_the_password_is_passed_over_at_the_start(own_redis):
    with LocalRedis(password="p") as other:
        hosts = Hosts([(HOST, other.port), (HOST, own_redis.port)])
        with Subscriber(own_redis, CHANNEL) as subscriber, Running(hosts) as publisher:
            publisher.publish(CHANNEL, b"1")
            eventually(lambda: subscriber.of(CHANNEL) == [b"1"])
            assert publisher.fatal is None


def test_hosts_that_all_refuse_the_password_are_fatal_at_the_start():
    with LocalRedis(password="p") as first, LocalRedis(password="q") as second:
        with Running(Hosts([(HOST, first.port), (HOST, second.port)]), password="wrong") as publisher:
            eventually(lambda: publisher.fatal)
        assert f"Redis {HOST}:{first.port}, {HOST}:{second.port}: " in publisher.fatal


def test_a_host_that_is_away_may_still_let_it_in(caplog):
    with LocalRedis(password="p") as first:
        hosts = Hosts([dead(), (HOST, first.port)])
        with Running(hosts, password="wrong") as publisher:
            eventually(lambda: "still unavailable" in caplog.text)
            assert publisher.fatal is None


def test_how_addresses_are_named():
    assert (named(("a", 1)), named(("::1", 2))) == ("a:1", "[::1]:2")
    assert Hosts([("a", 1), ("b", 2)]).name == "a:1, b:2"


def test_without_a_publisher_each_connection_tries_all_hosts():
    hosts = Hosts([("a", 1), ("b", 2), ("c", 3)])
    assert [host for host, _ in hosts.addresses(1)] == ["a", "b", "c"]


def test_the_publisher_decides_for_all_connections():
    hosts = Hosts([("a", 1), ("b", 2)])
    hosts.lead(lambda: None)
    assert list(hosts.addresses(1)) == [("a", 1)]
    hosts.move_on()
    assert list(hosts.addresses(1)) == [("b", 2)]
    hosts.move_on()
    assert list(hosts.addresses(1)) == [("a", 1)]


def test_the_first_host_that_answers_is_taken(redis_server):
    connect = Publisher(endpoint=Hosts([dead(), (HOST, redis_server.port)])).new_connection
    assert port_of(connect) == redis_server.port


@pytest.mark.parametrize("before", ["dead", "hanging", "replica", "another password"])
def test_what_has_no_publisher_settles_with_the_first_host_that_is_good(own_redis, hanging, before):
    """So --check and --status are about the Redis which the collector uses."""
    config, password = {"replica": [f"replicaof {HOST} {own_redis.port}"]}.get(before, []), before[:7] == "another"
    with LocalRedis(password="p" if password else "", config=config) as other:
        first = {"dead": dead(), "hanging": hanging}.get(before, (HOST, other.port))
        hosts = Hosts([first, (HOST, own_redis.port)])
        connect = Publisher(endpoint=hosts, timeouts=QUICK).new_connection
        settle(connect)
        assert port_of(connect) == own_redis.port


def test_where_no_host_is_good_the_error_is_said_as_before():
    connect = Publisher(endpoint=Hosts([dead(), last := dead()])).new_connection
    settle(connect)
    with pytest.raises(redis.ConnectionError, match=f"{last[1]}"):
        connect().connect()


def test_where_no_host_answers_the_error_is_that_of_the_last():
    connection = Publisher(endpoint=Hosts([dead(), last := dead()])).new_connection()
    with pytest.raises(redis.ConnectionError, match=f"{last[1]}"):
        connection.connect()


def test_a_dead_host_and_a_replica_are_passed_over(own_redis, caplog):
    caplog.set_level("INFO")
    with LocalRedis(config=[f"replicaof {HOST} {own_redis.port}"]) as replica:
        hosts = Hosts([dead(), (HOST, replica.port), (HOST, own_redis.port)])
        with Subscriber(own_redis, CHANNEL) as subscriber, Running(hosts) as publisher:
            publisher.publish(CHANNEL, b"1")
            eventually(lambda: subscriber.of(CHANNEL) == [b"1"])
            assert port_of(publisher.new_connection) == own_redis.port, "all other connections go there, too"
    assert "back after 0.1 s; sending 1 buffered messages" in re.sub(r"0\.\d s", "0.1 s", caplog.text)
    assert f"Redis at {HOST}:{own_redis.port} is back" in caplog.text


def test_a_connection_that_was_cut_is_made_to_the_same_host(own_redis):
    with LocalRedis() as other, Running(Hosts([(HOST, own_redis.port), (HOST, other.port)])) as publisher:
        eventually(lambda: publisher.connected)
        own_redis.client().client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: not publisher.connected)
        eventually(lambda: publisher.connected)
        assert port_of(publisher.new_connection) == own_redis.port


def test_a_host_that_dies_is_left_for_the_next(own_redis):
    with LocalRedis() as other, Running(Hosts([(HOST, own_redis.port), (HOST, other.port)])) as publisher:
        eventually(lambda: publisher.connected)
        own_redis.kill()
        eventually(lambda: not publisher.connected)
        with Subscriber(other, CHANNEL) as subscriber:
            publisher.publish(CHANNEL, b"1")
            eventually(lambda: subscriber.of(CHANNEL) == [b"1"])


# Sentinel.


def test_connections_go_to_the_master_that_sentinel_names(replicated):
    endpoint = sentinels(replicated)
    assert endpoint.name.startswith(f"mymaster of Sentinel {HOST}:{replicated.sentinels[0].port}, ")
    assert port_of(Publisher(endpoint=endpoint).new_connection) == replicated.master.port


def test_sentinel_is_asked_again_whenever_redis_py_connects_anew(replicated):
    connection = Publisher(endpoint=sentinels(replicated)).new_connection()
    connection.connect()
    connection.disconnect()
    connection.host, connection.port = dead()
    connection.send_command("PING")  # connects
    assert connection.read_response() == b"PONG"
    assert connection.port == replicated.master.port
    connection.disconnect()


@pytest.mark.parametrize("fault", ["dead", "hangs"])
def test_a_bad_sentinel_leaves_time_for_the_lease_and_is_asked_last_then(replicated, hanging, fault):
    endpoint = sentinels(replicated, hanging if fault == "hangs" else dead())
    lease = Lease(Publisher(endpoint=endpoint, timeouts=QUICK).new_connection, "lease", "me")
    began = time.monotonic()
    assert lease.acquire((1, "a"))
    assert time.monotonic() - began < 0.7
    lease.close()
    began = time.monotonic()
    assert lease.renew()
    assert time.monotonic() - began < 0.1
    lease.release()
    lease.close()


def test_without_an_answer_it_is_said_which_sentinel_has_failed_and_how(hanging):
    endpoint = located([], [dead(), hanging], "prod", timeouts=QUICK)
    connection = Publisher(endpoint=endpoint, timeouts=QUICK).new_connection()
    with pytest.raises(redis.ConnectionError) as caught:
        connection.connect()
    assert re.search(r"no Sentinel tells where prod is: 127.*refused.*; 127.*: Timeout", str(caught.value))
    assert not isinstance(caught.value, redis.AuthenticationError)


def test_a_master_that_sentinel_does_not_know(replicated):
    connection = Publisher(endpoint=sentinels(replicated, master="other")).new_connection()
    with pytest.raises(redis.ConnectionError, match="it knows no master other"):
        connection.connect()


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_password_of_sentinel_is_fatal_at_the_start(replicated, password):
    with Running(sentinels(replicated, password=password)) as publisher:
        eventually(lambda: publisher.fatal)
        assert "authentication failed at Redis mymaster of Sentinel" in publisher.fatal


def test_what_sentinel_says_may_be_anything():
    """Nothing that a stranger answers gets further than into the sentence of the error."""

    class Odd:
        def __init__(self, **_): ...
        def send_command(self, *_): ...
        def read_response(self):
            return replies.pop()

        def disconnect(self): ...

    replies = [7, b"", [b"a"], [b"a", b"b"], [None, None], [b"a", b"1", b"2"], [[], b"1"]]
    while replies:
        with pytest.raises(redis.ConnectionError, match="no Sentinel tells where m is: s:1: "):
            Sentinels([("s", 1)], "m", Odd).addresses(1)


def test_the_options_of_a_caller_go_before_those_of_the_publisher(redis_server):
    connect = connections(Hosts([(HOST, redis_server.port)]), QUICK, tls=False)
    assert connect(socket_timeout=7).socket_timeout == 7


def test_requests_and_replies_follow_the_publisher(own_redis):
    """Though the server that they are at is well, and has only been demoted."""
    requests, stop = [], threading.Event()
    with LocalRedis() as other, Running(Hosts([(HOST, own_redis.port), (HOST, other.port)])) as publisher:
        eventually(lambda: publisher.connected)
        replies = Replies(publisher.new_connection)
        replies.send([("test:reply", b"1")])
        listener = Listener(publisher.new_connection, "test:request", requests.append, lambda: None, stop)
        listener.start()
        own_redis.client().replicaof("192.0.2.1", 1)
        eventually(lambda: publisher._loop._endpoint.place == (HOST, other.port))
        with Subscriber(other, "test:reply") as subscriber:
            replies.send([("test:reply", b"2")])
            eventually(lambda: subscriber.of("test:reply") == [b"2"])
        eventually(lambda: other.client().publish("test:request", "x"))
        eventually(lambda: requests)
        stop.set()
        listener.join(time.monotonic() + 5)
        replies.close()


# Sentinel, all the time.


class Says:
    """Plays Sentinels for a MasterWatch: what each says of the master; an error is raised."""

    def __init__(self, **answers):
        self.answers, self.changes, self.connections = answers, 0, 0
        self.watch = MasterWatch([(name, 1) for name in answers], "m", self.connect, self.changed)

    def changed(self):
        self.changes += 1

    def connect(self, host, **_):
        says, self.connections = self, self.connections + 1

        class Connection:
            def send_command(self, *_): ...
            def disconnect(self): ...
            def read_response(self):
                if isinstance(says.answers[host], Exception):
                    raise says.answers[host]
                return [says.answers[host].encode(), b"1"]

        return Connection()


def test_a_sentinel_that_comes_to_name_another_master_is_believed():
    says = Says(s="old", t="old")
    began = time.monotonic()
    says.watch._ask_all()
    assert says.watch.elsewhere(("old", 1), 0.0) is None
    assert began <= says.watch.asked_at <= time.monotonic()
    says.answers["t"] = "new"
    says.watch._ask_all()
    assert says.watch.elsewhere(("old", 1), began) == ("new", 1)
    assert says.watch.elsewhere(("new", 1), began) is None, "the other Sentinel only lags behind"
    assert says.watch.elsewhere(("old", 1), time.monotonic()) is None, "a later connection knew"
    assert (says.changes, says.connections) == (1, 2)


def test_a_sentinel_that_names_another_one_all_the_time_is_not_believed():
    """It may write the same address in another way."""
    says = Says(s="old", t="10.0.0.1")
    says.watch._ask_all()
    says.watch._ask_all()
    assert says.watch.elsewhere(("old", 1), 0.0) is None


def test_sentinels_that_are_silent_are_logged_once_and_when_they_are_back(monkeypatch, caplog):
    caplog.set_level("INFO")
    now = time.monotonic()
    monkeypatch.setattr("relay.redis.sentinel.monotonic", lambda: now)
    says = Says(s="old")
    for s, seconds, lines in (
        ("old", 20, 0),
        (OSError("gone"), 9, 0),
        (OSError("gone"), 9, 1),
        (OSError("gone"), 9, 1),
    ):
        now, says.answers["s"] = now + seconds, s
        says.watch._ask_all()
        assert caplog.text.count("No Sentinel has said for 18 s where m is") == lines, caplog.text
    now, says.answers["s"] = now + 9, "old"
    says.watch._ask_all()
    says.watch._ask_all()
    assert caplog.text.count("Sentinel answers again, after 36 s") == 1
    assert len(caplog.records) == 2


def test_fewer_than_most_sentinels_prove_nothing(monkeypatch, caplog):
    """Cut off together with an old master, one goes on to name it."""
    now = time.monotonic()
    monkeypatch.setattr("relay.redis.sentinel.monotonic", lambda: now)
    says = Says(s="old", t="old", u="old")
    says.watch._ask_all()
    asked_at = says.watch.asked_at
    says.answers |= {"t": OSError("gone"), "u": OSError("gone")}
    for _ in range(3):
        now += 9
        says.watch._ask_all()
    assert says.watch.asked_at == asked_at
    assert caplog.text.count("Most Sentinels have not said for 18 s where m is") == len(caplog.records) == 1
    says.answers["u"] = "old"
    now += 9
    says.watch._ask_all()
    assert says.watch.asked_at == now


def test_a_sentinel_that_lags_behind_another_one_is_not_believed_for_some_seconds(monkeypatch):
    """Else the way would lead back to a master that hangs, for as long as it may take to reply."""
    says = Says(x="old", y="old")
    watch = says.watch
    watch._ask_all()
    assert watch.newer(("x", 1), ("old", 1)) == ("old", 1)
    says.answers["y"] = "new"
    watch._ask_all()
    assert watch.newer(("x", 1), ("old", 1)) == ("new", 1)
    assert watch.newer(("y", 1), ("new", 1)) == ("new", 1)
    assert watch.newer(("x", 1), ("newest", 1)) == ("newest", 1), "what it says for the first time"
    now = time.monotonic()
    monkeypatch.setattr("relay.redis.sentinel.monotonic", lambda: now + LAG)
    assert watch.newer(("x", 1), ("old", 1)) == ("old", 1), "it has heard of it, and does not agree"


def test_a_sentinel_that_fails_costs_the_others_nothing_for_a_while():
    says = Says(s=redis.TimeoutError("no"), t="old", u="old")
    says.watch._ask_all()
    assert says.watch.asked_at > 0
    says.watch._ask_all()
    assert says.connections == 3
    says.answers["t"] = OSError("gone")
    asked_at = says.watch.asked_at
    says.watch._ask_all()
    assert says.watch.asked_at == asked_at, "one of three has answered"
