"""Redis over TLS, plain, behind Sentinel and as a Cluster: with a server that can do it, which is named by
TLS_REDIS_SERVER or is the redis-server or valkey-server on the PATH.
"""

import json
import os
import shutil
import time

import pytest
from conftest import Subscriber, eventually
from topology import HASTE, Cluster, Replicated

from ops.status import run_status
from relay.redis.endpoint import located
from relay.redis.link import Timeouts
from relay.redis.publisher import Publisher

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


def test_a_cluster(tls, trusted, capsys):
    """The state is on another node, and MOVED gives that one's port for TLS."""
    with Cluster(password=PASSWORD, **tls) as redis:
        key = redis.key_of(redis.nodes[2], "test:state")
        publisher = publisher_to(*redis.addresses, state_key=key)
        with Subscriber(redis.nodes[1], CHANNEL) as subscriber:
            publisher.start()
            assert delivers(publisher, subscriber)
            publisher.set_state({"Trades": json.dumps({"up": True, "ts": round(time.time() * 1000)})})
            eventually(lambda: redis.nodes[2].ask("EXISTS", key))
            assert run_status(publisher) == 0
            assert "Trades  up" in capsys.readouterr().out
            redis.nodes[0].kill()
            publisher.publish(CHANNEL, "after")
            eventually(lambda: b"after" in subscriber.of(CHANNEL))
            assert publisher.stop(time.monotonic() + 5) == 0
