"""Redis Streams beside Pub/Sub: what is in the one is in the other, and what is not is never silent."""

import json

import pytest
import redis
from conftest import Subscriber, eventually
from hypothesis import example, given
from hypothesis import strategies as st
from test_pipeline import announcement, commands_of
from test_publisher import CHANNEL, STATUS, Running, numbers, without_repetitions

from ops.durable import stream_problems
from relay.redis.backlog import Backlog
from relay.redis.durable import DurablePipeline
from relay.redis.pipeline import Refused, Unavailable
from sandbox.redis import LocalRedis, free_port

ADDED, PUBLISHED = b"$15\r\n1526919030474-5\r\n", b":1\r\n"
MAXLEN = 1000


def new_pipeline(*messages, channel="a"):
    pipeline = DurablePipeline(Backlog(1 << 30), "status", announcement, MAXLEN)
    for message in messages:
        pipeline.backlog.append(channel, message)
    return pipeline


# Commands and replies.


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.binary(), min_size=1, max_size=3))
@example("\r\n$", [b"1", b"2"])
@example("5\r\n$", [b""])
def test_each_message_is_added_and_then_published(channel, messages):
    expected = []
    for message in messages:
        name = channel.encode()
        expected.append([b"XADD", name, b"MAXLEN", b"~", b"1000", b"*", b"message", message])
        expected.append([b"PUBLISH", name, message])
    assert commands_of(new_pipeline(*messages, channel=channel).take()) == expected


@given(st.integers(1, 5), st.data())
def test_a_message_is_confirmed_when_both_replies_have_come(count, data):
    pipeline = new_pipeline(*(b"%d" % number for number in range(count)))
    pipeline.take()
    wire, received = (ADDED + PUBLISHED) * count, 0
    for end in [*sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6))), len(wire)]:
        pipeline.receive(wire[received:end])
        received = end
        assert pipeline.confirmed == received // len(ADDED + PUBLISHED)
    assert pipeline.is_settled


@pytest.mark.parametrize(
    ("replies", "reasons"),
    [
        (b"-OOM full\r\n" + PUBLISHED, ["OOM full (XADD)"]),
        (ADDED + b"-NOPERM no\r\n", ["NOPERM no"]),
        (b"-WRONGTYPE no\r\n-NOPERM no\r\n", ["WRONGTYPE no (XADD)"]),
    ],
)
def test_an_error_of_either_reply_rejects_the_message_once(replies, reasons):
    pipeline = new_pipeline(b"1", b"2", b"3")
    pipeline.take()
    pipeline.receive(ADDED + PUBLISHED + replies + ADDED + PUBLISHED)
    assert (pipeline.confirmed, pipeline.dropped) == (2, {"a": 1})
    assert [rejection.reason for rejection in pipeline.rejections] == reasons
    pipeline.announce_rejected()
    _added, (_, _, text) = commands_of(pipeline.take())
    assert (json.loads(text)["channel"], json.loads(text)["messages"]) == ("a", 1)


@pytest.mark.parametrize("error", ["READONLY no", "LOADING wait", "NOREPLICAS wait"])
def test_an_error_about_the_state_of_redis_costs_no_message(error):
    pipeline = new_pipeline(b"1", b"2")
    pipeline.take()
    with pytest.raises(Unavailable, match=error):
        pipeline.receive(ADDED + PUBLISHED + b"-%b\r\n:1\r\n" % error.encode())
    pipeline.connection_lost(broken=False)
    assert [words[-1] for words in commands_of(pipeline.take())] == [b"2", b"2"]


@pytest.mark.parametrize("error", ["MOVED 1 127.0.0.1:7001", "ASK 1 127.0.0.1:7001", "CROSSSLOT no"])
def test_a_cluster_is_refused_by_its_reply_to_a_message(error):
    pipeline = new_pipeline(b"1")
    pipeline.take()
    with pytest.raises(Refused, match="REDIS_STREAM_MAXLEN needs a Redis 5 or newer that is no Cluster: "):
        pipeline.receive(b"-%b\r\n:1\r\n" % error.encode())


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        (b"$19\r\ncluster_enabled:1\r\n\r\n-ERR no\r\n", Refused),
        (b"$19\r\ncluster_enabled:0\r\n\r\n-ERR no\r\n", None),
        (b"-NOPERM no\r\n-NOPERM no\r\n", None),
        (b"-NOPERM no\r\n-ERR unknown command 'XADD', with args beginning with: \r\n", Refused),
        (b"-NOPERM no\r\n-MOVED 1 127.0.0.1:7001\r\n", Refused),
        (b"-NOPERM no\r\n-NOREPLICAS no\r\n", Unavailable),
        (b"-NOPERM no\r\n-READONLY no\r\n", Unavailable),
    ],
)
def test_a_new_connection_asks_whether_streams_are_possible(replies, error):
    pipeline = new_pipeline()
    for query in pipeline.greeting():
        pipeline.ask(query)
    if error is None:
        pipeline.receive(replies)
    else:
        with pytest.raises(error) as raised:
            pipeline.receive(replies)
        assert type(raised.value) is error


# A real Redis.


def cluster_node():
    """One of a Cluster. Its second port is by default one of those that systems take for outgoing connections."""
    return LocalRedis(config=["cluster-enabled yes", f"cluster-port {free_port()}"])


def entries(server, channel=CHANNEL):
    with server.client() as client:
        return [fields[b"message"] for _, fields in client.xrange(channel)]


def test_the_stream_has_what_subscribers_get(own_redis):
    with Subscriber(own_redis, CHANNEL, STATUS) as subscriber, Running(own_redis, stream_maxlen=100_000) as publisher:
        for number in range(0, 3000, 3):
            publisher.send(number, number + 1, number + 2)
        publisher.announce("lost", "Trades", ["publicTrade.BTCUSDT"])
        eventually(lambda: len(subscriber.messages) == 3001)
        eventually(lambda: publisher.backlog == 0)
        assert publisher.published == 3001
    assert numbers(subscriber) == list(range(3000))
    for channel in (CHANNEL, STATUS):
        assert entries(own_redis, channel) == subscriber.of(channel)


def test_the_stream_is_kept_at_its_length(own_redis):
    with Running(own_redis, stream_maxlen=1000) as publisher:
        publisher.send(*range(20_000))
        eventually(lambda: publisher.published == 20_000)
    kept = entries(own_redis)
    assert 1000 <= len(kept) <= 1200
    assert kept == [b"%d" % number for number in range(20_000 - len(kept), 20_000)]


def test_the_stream_misses_nothing_when_connections_are_cut(own_redis):
    count = 20_000
    with Running(own_redis, stream_maxlen=100_000) as publisher, own_redis.client() as client:
        for number in range(count):
            publisher.send(number)
            if number % 4000 == 2000:
                client.client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: publisher.backlog == 0)
    assert without_repetitions(map(int, entries(own_redis))) == list(range(count))


def test_a_message_that_the_stream_does_not_take_is_counted_and_announced(own_redis, caplog):
    with own_redis.client() as client:
        client.set(CHANNEL, "a text, no stream")
    with Subscriber(own_redis, CHANNEL, STATUS) as subscriber, Running(own_redis, stream_maxlen=1000) as publisher:
        publisher.send(1, 2)
        publisher.send(3, channel="test:b")
        eventually(lambda: [json.loads(text).get("messages") for text in subscriber.of(STATUS)] == [2])
        assert publisher.dropped == {CHANNEL: 2}
    assert numbers(subscriber) == [1, 2]
    assert entries(own_redis, "test:b") == [b"3"]
    assert f"Redis rejects a message of 1 bytes for {CHANNEL}: WRONGTYPE" in caplog.text


def test_without_memory_for_streams_the_channels_go_on(own_redis):
    with own_redis.client() as client, Subscriber(own_redis, CHANNEL) as subscriber:
        with Running(own_redis, connected=True, stream_maxlen=1000) as publisher:
            client.config_set("maxmemory", 1)
            publisher.send(1, 2)
            eventually(lambda: publisher.dropped == {CHANNEL: 2})
            client.config_set("maxmemory", 0)
            publisher.send(3)
            eventually(lambda: publisher.backlog == 0)
        assert numbers(subscriber) == [1, 2, 3]
        assert entries(own_redis) == [b"3"]


def test_without_the_right_to_add_messages_are_published_all_the_same(own_redis, caplog):
    with own_redis.client() as client:
        client.acl_setuser("p", enabled=True, passwords=["+pw"], categories=["-@all"], commands=["+publish"], keys="*")
        client.execute_command("ACL", "SETUSER", "p", "allchannels")
    with Subscriber(own_redis, CHANNEL) as subscriber:
        with Running(own_redis, stream_maxlen=1000, username="p", password="pw") as publisher:
            publisher.send(1)
            eventually(lambda: publisher.dropped == {CHANNEL: 1})
        assert numbers(subscriber) == [1]
    assert "NOPERM" in caplog.text


def test_a_redis_that_needs_replicas_gets_the_messages_when_it_has_them(own_redis):
    with own_redis.client() as client, Subscriber(own_redis, CHANNEL) as subscriber:
        client.config_set("min-replicas-to-write", 1)
        with Running(own_redis, stream_maxlen=1000) as publisher:
            publisher.send(1, 2)
            eventually(lambda: publisher.outages.since is not None)
            assert subscriber.messages == []
            client.config_set("min-replicas-to-write", 0)
            eventually(lambda: publisher.published == 2)
        assert (numbers(subscriber), entries(own_redis)) == ([1, 2], [b"1", b"2"])


def test_a_cluster_is_refused_at_the_start():
    with cluster_node() as server:
        publisher = Running(server, stream_maxlen=1000)
        publisher.start()
        eventually(lambda: publisher.fatal)
        publisher.__exit__()
    assert "REDIS_STREAM_MAXLEN needs a Redis 5 or newer that is no Cluster: it is one" in publisher.fatal


# --check.


def problems(server, *channels, **login):
    client = redis.Redis(port=server.port, **login)

    def ask(*command):
        try:
            return client.execute_command(*command)
        except redis.ResponseError as error:
            return error

    with client:
        client.set_response_callback("INFO", lambda reply, **_: reply)
        client.set_response_callback("TYPE", lambda reply, **_: reply)
        return list(stream_problems(ask, channels))


def test_check_tries_whether_redis_would_take_an_entry_and_adds_none(own_redis):
    with own_redis.client() as client:
        assert problems(own_redis, "a", "b") == []
        assert client.keys() == []
        client.set("a", "a text")
        client.xadd("b", {"message": "1"})
        assert problems(own_redis, "a", "b") == ["a: the key holds a string"]
        client.acl_setuser("p", enabled=True, passwords=["+pw"], categories=["-@all"], commands=["+xadd"], keys=["b*"])
        found = problems(own_redis, "a", "b", "c", username="p", password="pw")
        assert len(found) == 1
        assert found[0].startswith("a, c: ")
        assert client.xlen("b") == 1


def test_check_refuses_a_cluster():
    with cluster_node() as server:
        assert problems(server, "a") == ["REDIS_STREAM_MAXLEN needs a Redis 5 or newer that is no Cluster: it is one"]
