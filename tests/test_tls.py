"""Redis over TLS, plain, behind Sentinel and as a Cluster: with a server that can do it, which is named by
TLS_REDIS_SERVER or is the redis-server or valkey-server on the PATH.
"""

import json
import os
import shutil
import ssl
import time

import pytest
import redis
import trustme
from conftest import Subscriber, eventually
from topology import HASTE, Cluster, Replicated

from ops.check import run_check
from ops.reader import Place
from ops.status import asked, single
from relay.bybit.exchange import Exchange
from relay.redis.dial import CLOSED, connections, located, told_of_tls
from relay.redis.endpoint import Hosts
from relay.redis.link import Timeouts
from relay.redis.publisher import Publisher
from sandbox.bybit import Bybit

PASSWORD, SENTINEL_PASSWORD = "secret", "word"
CHANNEL = "test:a"
QUICK = Timeouts(probe=0.1)


@pytest.fixture(scope="module")
def tls(authority, tmp_path_factory):
    """Arguments of Replicated and Cluster for servers that talk TLS; the certificate is for 127.0.0.1 only."""
    binary = os.environ.get("TLS_REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")
    if not binary:
        pytest.skip("no redis-server or valkey-server on the PATH, and TLS_REDIS_SERVER names none")
    ca, ca_file = authority
    file = tmp_path_factory.mktemp("redis") / "server.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    lines = [f"tls-cert-file {file}", f"tls-key-file {file}", f"tls-ca-cert-file {ca_file}", "tls-auth-clients no"]
    arguments = {"binary": binary, "tls": lines}
    try:
        with Replicated(replicas=0, sentinels=0, **arguments):
            return arguments
    except RuntimeError as error:
        pytest.skip(f"{binary} speaks no TLS: {error}")


@pytest.fixture
def trusted(authority, monkeypatch):
    """The authority is trusted by Python."""
    monkeypatch.setenv("SSL_CERT_FILE", authority[1])


def publisher_to(*addresses, sentinels=(), **options):
    login = {"password": SENTINEL_PASSWORD} if sentinels else {}
    endpoint = located(addresses, sentinels, tls=True, timeouts=QUICK, **login)
    return Publisher(endpoint=endpoint, **{"password": PASSWORD, "tls": True, "timeouts": QUICK} | options)


def delivers(publisher, subscriber, count=3000):
    """Whether messages come in order, once, and a large one too, which TLS cuts into records."""
    before = len(subscriber.messages)
    for number in range(count):
        publisher.publish(CHANNEL, b"%d" % number)
        publisher.flush()
    publisher.publish(CHANNEL, b"7" * 1_000_000)
    eventually(lambda: len(subscriber.messages) >= before + count + 1)
    return [int(payload) for payload in subscriber.of(CHANNEL)[before:-1]] == list(range(count))


def test_one_redis(tls, trusted):
    with Replicated(replicas=0, sentinels=0, password=PASSWORD, **tls) as redis:
        [node] = redis.nodes
        publisher = publisher_to(node.address)
        with Subscriber(node, CHANNEL) as subscriber:
            publisher.start()
            assert delivers(publisher, subscriber)
            assert publisher.stop(time.monotonic() + 5) == 0


def test_a_certificate_that_nobody_trusts_keeps_everything_back(tls, caplog):
    with Replicated(replicas=0, sentinels=0, password=PASSWORD, **tls) as redis:
        publisher = publisher_to(redis.nodes[0].address)
        publisher.start()
        publisher.publish(CHANNEL, "x")
        eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        assert publisher.stop(time.monotonic()) == 1


def checked(publisher, capsys):
    """What --check prints of it, in one line."""
    assert run_check([], Exchange("linear", testnet=True, sink=None), publisher, [], ("requests", "reply")) == 1
    return " ".join(capsys.readouterr().out.split())


def test_a_port_without_tls_is_told_in_one_sentence(redis_server, caplog, capsys):
    address = "127.0.0.1", redis_server.port
    told = "no answer to the TLS handshake within {} s (if this port has no TLS: REDIS_SSL=False)"
    publisher = publisher_to(address, timeouts=Timeouts(reply=0.2))
    publisher.start()
    sentence = "Cannot reach Redis at {}:{}: {}; buffering".format(*address, told.format(0.2))
    eventually(lambda: caplog.messages == [sentence])
    publisher.stop(time.monotonic())
    assert checked(publisher, capsys) == "Redis FAILED {}:{}: {}".format(*address, told.format(0.2))
    assert told.format(0.67) in checked(publisher_to(sentinels=[address]), capsys)


@pytest.mark.parametrize("login", [{"password": None}, {}, {"password": None, "db": 1}], ids=["", "password", "db"])
def test_a_port_with_tls_that_is_asked_without_is_told_in_one_sentence(tls, login, caplog, capsys):
    with Replicated(replicas=0, sentinels=0, **tls) as server:
        address = server.nodes[0].address
        publisher = publisher_to(address, tls=False, **login)
        publisher.start()
        told = "the connection was closed (if this port wants TLS: REDIS_SSL=True)"
        eventually(lambda: caplog.messages == ["Cannot reach Redis at {}:{}: {}; buffering".format(*address, told)])
        publisher.stop(time.monotonic())
        assert checked(publisher, capsys) == "Redis FAILED {}:{}: {}".format(*address, told)


def test_tls_is_not_suspected_where_redis_has_answered(own_redis, caplog):
    publisher = publisher_to(("127.0.0.1", own_redis.port), tls=False, password=None)
    with caplog.at_level("INFO"):
        publisher.start()
        eventually(lambda: "Publishing to Redis" in caplog.text)
    own_redis.kill()
    eventually(lambda: "Lost Redis" in caplog.text)
    publisher.stop(time.monotonic())
    assert "TLS" not in caplog.text


@pytest.mark.parametrize(
    ("error", "tls", "suspected"),
    [
        (ConnectionResetError("Redis closed the connection"), False, True),
        (ConnectionResetError(104, "Connection reset by peer"), False, True),
        (BrokenPipeError(32, "Broken pipe"), False, True),
        (redis.ConnectionError("Connection closed by server."), False, True),
        (redis.ConnectionError("Error 111 connecting to h:1. Connection refused."), False, False),
        (redis.AuthenticationError("WRONGPASS"), False, False),
        (TimeoutError("no reply within 5 s"), False, False),
        (ConnectionResetError(104, "Connection reset by peer"), True, False),
    ],
)
def test_when_tls_is_suspected(error, tls, suspected):
    told = told_of_tls(connections(Hosts([("h", 1)]), QUICK, tls)(), error)
    assert str(told) == (CLOSED if suspected else str(error))


def test_sentinel(tls, trusted):
    """It and its servers have different passwords. A planned failover is followed; it ends all connections."""
    with Replicated(password=PASSWORD, sentinel_password=SENTINEL_PASSWORD, **tls) as redis:
        first, second = redis.nodes
        publisher = publisher_to(sentinels=redis.sentinel_addresses)
        with Subscriber(first, CHANNEL) as before, Subscriber(second, CHANNEL, reconnect=True) as after:
            publisher.start()
            assert delivers(publisher, before)
            redis.pace(*HASTE)
            assert redis.failover() is second
            eventually(lambda: first.role == "slave")

            def arrives():
                publisher.publish(CHANNEL, "after")
                return b"after" in after.of(CHANNEL)

            eventually(arrives)
            assert publisher.stop(time.monotonic() + 5) == 0


def test_a_cluster(tls, trusted):
    """The state is on another node, and MOVED gives that one's port for TLS."""
    with Cluster(password=PASSWORD, **tls) as redis:
        key = redis.key_of(redis.nodes[2], "test:state")
        publisher = publisher_to(*redis.addresses, state_key=key)
        with Subscriber(redis.nodes[1], CHANNEL) as subscriber:
            publisher.start()
            assert delivers(publisher, subscriber)
            publisher.set_state({"Trades": json.dumps({"up": True, "ts": round(time.time() * 1000)})})
            eventually(lambda: redis.nodes[2].ask("EXISTS", key))
            place = Place(redis.addresses, login=(None, PASSWORD), tls=ssl.create_default_context)
            report = asked(place, lambda reader: single(reader, key))
            assert report.code == 0, report.lines
            assert report.lines[1].split()[:2] == ["Trades", "up"]
            redis.nodes[0].kill()
            publisher.publish(CHANNEL, "after")
            eventually(lambda: b"after" in subscriber.of(CHANNEL))
            assert publisher.stop(time.monotonic() + 5) == 0


@pytest.fixture
def demanding(tls):
    """As tls, for servers that want a certificate of their clients."""
    return tls | {"tls": [line.replace("tls-auth-clients no", "tls-auth-clients yes") for line in tls["tls"]]}


def test_a_certificate_of_the_collectors_own_and_an_authority_of_its_own(demanding, authority, program, tmp_path):
    """The key is in a file of its own or with the certificate. Nobody trusts the authority but by the setting."""
    ca, ca_file = authority
    issued = ca.issue_cert("collector")
    cert, key, both = (str(tmp_path / name) for name in ("cert.pem", "key.pem", "both.pem"))
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    issued.private_key_and_cert_chain_pem.write_to_path(both)
    with Replicated(replicas=0, sentinels=0, password=PASSWORD, **demanding) as redis, Bybit(rate=400) as bybit:
        [node] = redis.nodes
        settings = {"REDIS_URL": f"rediss://:{PASSWORD}@127.0.0.1:{node.tls_port}", "REDIS_HOST": "localhost"}
        for files in ({"CERT": cert, "KEY": key}, {"CERT": both}):
            named = {f"REDIS_SSL_{name}": file for name, file in {"CA": ca_file, **files}.items()}
            collector = program(bybit=bybit, **settings, **named)
            with Subscriber(node, "stream:bybit_trades") as subscriber:
                eventually(lambda messages=subscriber.messages: len(messages) > 10, 20)
            assert collector.stop()[0] == 0, collector.log
        stranger = program(bybit=bybit, **settings, REDIS_SSL_CA=ca_file)
        stranger.wait_for_log("Cannot reach Redis at 127.0.0.1")
        assert "Publishing to Redis" not in stranger.log
        stranger.process.kill()


def test_a_certificate_is_read_again_for_each_connection(demanding, authority, tmp_path, caplog):
    """It may have been renewed."""
    ca, ca_file = authority
    file = tmp_path / "collector.pem"
    trustme.CA().issue_cert("collector").private_key_and_cert_chain_pem.write_to_path(file)
    with Replicated(replicas=0, sentinels=0, password=PASSWORD, **demanding) as redis:
        publisher = publisher_to(redis.nodes[0].address, ssl_ca_certs=ca_file, ssl_certfile=str(file))
        with Subscriber(redis.nodes[0], CHANNEL) as subscriber:
            publisher.start()
            eventually(lambda: "Cannot reach Redis" in caplog.text)
            ca.issue_cert("collector").private_key_and_cert_chain_pem.write_to_path(file)
            assert delivers(publisher, subscriber)
            assert publisher.stop(time.monotonic() + 5) == 0
