"""How --status reads from Redis, over plain sockets: where it is found, how long it may take, what goes wrong."""

import socket
import ssl
import threading
import time

import pytest
from topology import Replicated

from ops.reader import HOPS, Place, Reader, Unreadable
from ops.status import DEADLINE, Report, asked, single
from relay.redis.resp import ReplyError
from sandbox.redis import HOST, LocalRedis, free_port

KEY = "test:reader"


@pytest.fixture(scope="module")
def replicated():
    with Replicated(password="p-w", sentinel_password="s-e") as nodes:
        yield nodes


@pytest.fixture
def served():
    """Starts servers that send these bytes to whoever connects, and read what comes; returns their address."""
    over, threads, listeners = threading.Event(), [], []

    def serve(listener, answer):
        while not over.is_set():
            try:
                peer, _ = listener.accept()
                with peer:
                    peer.settimeout(0.05)
                    peer.sendall(answer)
                    while not over.is_set():
                        try:
                            if not peer.recv(4096):
                                break
                        except TimeoutError:
                            continue
            except OSError:
                continue

    def start(answer=b"", tls=None):
        listener = socket.create_server((HOST, 0))
        listener.settimeout(0.05)
        listeners.append(listener)
        address = listener.getsockname()
        answer = answer(address[1]) if callable(answer) else answer
        if tls:
            listener = tls.wrap_socket(listener, server_side=True)
            listeners.append(listener)
        threads.append(threading.Thread(target=serve, args=(listener, answer)))
        threads[-1].start()
        return address

    yield start
    over.set()
    for thread in threads:
        thread.join()
    for listener in listeners:
        listener.close()


def read(place, *commands, seconds=2.0):
    """The replies, and where the reader was in the end."""
    reader = Reader(place, time.monotonic() + seconds)
    try:
        return reader.ask(*(commands or [("GET", KEY)])), reader._client.address
    finally:
        reader.close()


def dead():
    return HOST, free_port()


def test_replies_come_in_order_and_errors_are_values(redis_server):
    with redis_server.client() as client:
        client.hset(KEY, "a", "x" * 200_000)
        client.expire(KEY, 10)
    (found, left, wrong), _ = read(Place([(HOST, redis_server.port)]), ("HGETALL", KEY), ("PTTL", KEY), ("GET", KEY))
    assert found == [b"a", b"x" * 200_000]
    assert 0 < left <= 10_000
    assert str(wrong).startswith("WRONGTYPE")
    assert isinstance(wrong, ReplyError)


@pytest.mark.parametrize("login", [(None, "p-w"), ("reader", "r")])
def test_login_database_and_socket(tmp_path, login):
    path = str(tmp_path / "redis.sock")
    with LocalRedis(password="p-w", config=[f"unixsocket {path}"]) as redis:
        with redis.client(db=3) as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">r", "~*", "+get", "+select")
            client.set(KEY, "3")
        for host in ((HOST, redis.port), (path, 0)):
            place = Place([host], login=login, db=3)
            assert read(place)[0] == [b"3"]
        assert place.name == f"unix:{path}"
        for wrong in ((None, None), (login[0], "secret word")):
            report = asked(
                Place([(HOST, redis.port)], login=wrong, db=3), lambda reader: Report(0, reader.ask(("GET", KEY)))
            )
            assert report.code == 1
            assert any(word in report.lines[0] for word in ("NOAUTH", "WRONGPASS"))
            assert "secret" not in report.lines[0]


def test_of_several_hosts_the_first_that_is_a_master(replicated, served):
    master, replica = replicated.nodes
    master.client().set(KEY, "1")
    place = Place([dead(), served(), replica.address, master.address], login=(None, "p-w"))
    assert read(place) == ([b"1"], master.address)
    with pytest.raises(Unreadable, match=f"refused; {HOST}:{replica.port} is no master$"):
        read(place._replace(hosts=[dead(), replica.address]))


def test_a_host_that_may_not_say_what_it_is_is_taken():
    with LocalRedis() as redis:
        redis.client().execute_command("ACL", "SETUSER", "default", "-role")
        assert read(Place([dead(), (HOST, redis.port)]))[1] == (HOST, redis.port)


def test_sentinel_knows_the_master(replicated, served):
    master, _ = replicated.nodes
    master.client().set(KEY, "2")
    hanging, other = served(), served(b"*1\r\n$1\r\nx\r\n" * 2)
    sentinels = [dead(), hanging, other, *replicated.sentinel_addresses]
    place = Place([dead()], sentinels, login=(None, "p-w"), sentinel_login=(None, "s-e"))
    assert read(place, seconds=4) == ([b"2"], master.address)
    with pytest.raises(Unreadable, match=r"no Sentinel tells where others is: .*it knows no master others"):
        read(place._replace(sentinels=replicated.sentinel_addresses, master="others"))
    with pytest.raises(Unreadable, match="WRONGPASS"):
        read(place._replace(sentinels=replicated.sentinel_addresses, sentinel_login=(None, "x")))


def test_who_is_sent_from_node_to_node_gives_up(served):
    """The one that answers does not know its own name."""
    with pytest.raises(Unreadable, match=f"MOVED from node to node, {HOPS} times"):
        read(Place([served(lambda port: b"-MOVED 1 :%d\r\n" % port)]))


def test_tls(served, certificate, authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[0])
    address = served(b"+OK\r\n$1\r\n1\r\n", context)
    place = Place([address], login=(None, "x"), tls=lambda: ssl.create_default_context(cafile=authority[1]))
    assert read(place)[0] == [b"1"]
    report = asked(place._replace(tls=ssl.create_default_context), lambda reader: Report(0, []))
    assert "certificate verify failed" in report.lines[0].lower().replace("_", " ")


def test_a_redis_that_hangs_costs_a_few_seconds_and_gives_a_sentence(own_redis):
    own_redis.pause()
    began = time.monotonic()
    report = asked(Place([(HOST, own_redis.port)]), lambda reader: Report(0, reader.ask(("GET", KEY))))
    own_redis.resume()
    assert time.monotonic() - began < DEADLINE + 1
    assert (report.code, report.lines) == (
        1,
        [f"Cannot read the state from Redis at {HOST}:{own_redis.port}: no answer in time"],
    )


def test_a_name_server_that_hangs_does_no_more(monkeypatch):
    over = threading.Event()

    def hangs(*_):
        over.wait()
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hangs)
    monkeypatch.setattr("ops.status.DEADLINE", 0.1)
    report = asked(Place([("redis", 6379)]), lambda reader: Report(0, []))
    over.set()
    assert (report.code, report.lines[0].rpartition(": ")[2]) == (1, "no answer in time")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it does not answer as Redis does"),
        (b"*x\r\n", "it does not answer as Redis does"),
        (b"-LOADING Redis is loading\r\n" * 2, "LOADING Redis is loading"),
    ],
)
def test_what_is_no_redis_is_named(served, answer, reason):
    host, port = served(answer)
    report = asked(Place([(host, port)]), lambda reader: single(reader, KEY))
    assert (report.code, report.lines) == (1, [f"Cannot read the state from Redis at {host}:{port}: {reason}"])


def test_a_name_that_no_host_can_have_is_named():
    report = asked(Place([("redis..local", 6379)]), lambda reader: Report(0, []))
    assert report.code == 1
    assert report.lines[0].startswith("Cannot read the state from Redis at redis..local:6379: ")


def test_a_redis_that_cannot_be_reached_is_named():
    host, port = dead()
    report = asked(Place([(host, port)]), lambda reader: Report(0, []))
    assert report.lines == [f"Cannot read the state from Redis at {host}:{port}: Connection refused"]
    assert list(report.problems) == report.lines
