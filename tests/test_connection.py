"""Bybit's end: what a stream makes of everything that the socket and Bybit can do. One stream, real sockets."""

import gc
import json
import logging
import os
import socket
import ssl
import threading
import time
from functools import partial

import pytest
from conftest import eventually

import main
from relay import connection
from relay.connection import Connection, ConnectionLost, Pacer, close_all, raw
from sandbox.bybit import Bybit, Script

QUICK = 0.02  # seconds between attempts, where a test does not look at them


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Nothing of another test: no stop, no pacing, nothing said or refused, clocks looked at often."""
    monkeypatch.setattr(main, "stop", threading.Event())
    monkeypatch.setattr(main, "RECONNECT_DELAY", QUICK)
    monkeypatch.setattr(main, "RECONNECT_DELAY_MAX", QUICK)
    monkeypatch.setattr(connection, "pacer", Pacer(10_000, 300))
    monkeypatch.setattr(connection, "TICK", 0.02)
    for state in (connection._said, connection._refused, connection.stats):
        state.clear()


class Stream:
    """A stream as main.py runs it, on a thread of its own; `messages` is what its callback got."""

    def __init__(self, bybit, monkeypatch, func=None, symbols="BTCUSDT", callback=None, kind="linear", **options):
        self.messages = []
        self.events = []  # announced: (event, topics, more)
        self.flushed = 0
        monkeypatch.setattr(main, "connect", partial(self._connect, bybit.url, kind))
        monkeypatch.setattr(main, "CHANNEL_TYPE", kind)
        callback = callback or raw(lambda message: self.messages.append(message))
        args = (f"Test{id(self)}", func or main.subscribe_trades, (symbols, callback), options)
        self.thread = threading.Thread(target=main.run_stream, args=args, name=args[0])

    def _connect(self, url, kind, **options):
        def flush():
            self.flushed = len(self.messages)

        def announce(event, stream, topics, **more):
            assert stream == self.thread.name
            self.events.append((event, topics, more))

        return Connection(kind, testnet=True, url=url, stop=main.stop, flush=flush, announce=announce, **options)

    @property
    def texts(self):
        return [message.decode() for message in self.messages]

    @property
    def stats(self):
        return connection.stats[self.thread.name]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        main.stop.set()
        close_all()
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert self.flushed == len(self.messages)


@pytest.fixture
def stream(monkeypatch):
    return lambda bybit, *args, **options: Stream(bybit, monkeypatch, *args, **options)


def trade(number, symbol="BTCUSDT"):
    return json.dumps({"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": number, "data": []}, separators=",:")


def subscribed(bybit, count=1):
    """Waits until the newest of `count` connections is subscribed to something, and returns it."""
    bybit.wait(lambda: len(bybit.connections) >= count and bybit.connections[-1].topics)
    return bybit.connections[-1]


def flows(bybit, stream, number):
    """A message sent now arrives, once."""
    text = trade(number)
    bybit.publish(text)
    eventually(lambda: text in stream.texts)
    assert stream.texts.count(text) == 1


def open_ones(bybit):
    return [one for one in bybit.connections if one.closed is None]


# What ends a connection, and the next one.


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda one: one.drop(), "without a close frame"),
        (lambda one: one.reset(), ""),
        (lambda one: one.close(1000), "Bybit closed it: 1000"),
        (lambda one: one.close(1001, "going away"), "Bybit closed it: 1001 going away"),
        (lambda one: one.close(1012), "Bybit closed it: 1012"),
        (lambda one: one.send_raw(b"\x83\x00"), "Invalid opcode"),
        (lambda one: one.send_raw(b"\xc1\x02hi"), "no server may send: c102"),
        (lambda one: one.send_raw(b"\x81\x82hihihi"), "no server may send: 8182"),
        (lambda one: one.send_raw(b"\x82\x7f" + (1 << 40).to_bytes(8, "big")), "a frame of 1,099,511,627,776 bytes"),
        (lambda one: one.send_raw(b"\x81\x04\xff\xfe\xfd\xfc"), "not UTF-8"),
        (lambda one: one.send_raw(b"\x80\x02hi"), "Illegal frame"),
    ],
    ids=[
        "drop",
        "reset",
        "close1000",
        "close1001",
        "close1012",
        "opcode",
        "reserved",
        "masked",
        "endless",
        "utf8",
        "fragment",
    ],
)
def test_a_lost_connection_comes_back_once(stream, caplog, fault, says):
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        first = subscribed(bybit)
        flows(bybit, one, 1)
        fault(first)
        subscribed(bybit, 2)
        flows(bybit, one, 2)
        assert len(bybit.connections) == 2
        bybit.wait(lambda: open_ones(bybit) == [bybit.connections[1]])
        assert says in caplog.text


def test_it_comes_back_after_exactly_reconnect_delay_if_it_was_up_long_enough(stream, monkeypatch):
    monkeypatch.setattr(main, "RECONNECT_DELAY", 0.3)
    monkeypatch.setattr(main, "RECONNECT_DELAY_MAX", 100)
    monkeypatch.setattr(main, "STEADY", 0.05)
    waits = record_waits(monkeypatch)
    with Bybit(rate=0) as bybit, stream(bybit):
        for number in (1, 2, 3):
            one = subscribed(bybit, number)
            time.sleep(0.1)  # not a wait for a fact: the time it is up is what the test varies
            one.drop()
        subscribed(bybit, 4)
    assert waits[:3] == [0.3, 0.3, 0.3]


def test_the_delay_doubles_up_to_its_maximum_while_connections_fall_at_once(stream, monkeypatch):
    monkeypatch.setattr(main, "RECONNECT_DELAY", 0.01)
    monkeypatch.setattr(main, "RECONNECT_DELAY_MAX", 0.05)
    waits = record_waits(monkeypatch)
    with Bybit(rate=0, then=Script(end="drop", end_after=0)) as bybit, stream(bybit):
        bybit.wait(lambda: len(bybit.connections) >= 6)
    for wait, expected in zip(waits, [0.02, 0.04, 0.05, 0.05, 0.05], strict=False):
        assert 0.75 * expected <= wait <= expected


def record_waits(monkeypatch):
    """The pauses of the stream's thread, in a list."""
    waits = []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return super().wait(timeout)

    monkeypatch.setattr(main, "stop", Stop())
    return waits


def test_a_server_that_refuses_tcp_is_tried_until_it_is_back(stream, caplog):
    with Bybit(rate=0) as bybit:
        port = bybit.port
    with stream(bybit) as one:
        eventually(lambda: caplog.text.count("refused") >= 3)
        with Bybit(rate=0, port=port) as again:
            subscribed(again)
            flows(again, one, 1)


def test_an_unknown_host_is_said_and_tried_again(stream, monkeypatch, caplog):
    def unknown(*_args, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with Bybit(rate=0) as bybit, monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", unknown)
        with stream(bybit) as one:
            eventually(lambda: caplog.text.count("cannot be resolved") >= 2)
            patched.undo()
            subscribed(bybit)
            flows(bybit, one, 1)


@pytest.mark.parametrize("status", [403, 429, 502, 503, 504])
def test_a_refused_handshake_is_said_in_a_line_and_tried_again(stream, caplog, status):
    with Bybit(rate=0, script=[Script(handshake=status)] * 2) as bybit, stream(bybit) as one:
        subscribed(bybit, 3)
        flows(bybit, one, 1)
    lines = [record.getMessage() for record in caplog.records if f"HTTP {status}" in record.getMessage()]
    assert len(lines) == 2
    assert all(len(line) < 250 and "<" not in line for line in lines)
    assert ("region" in lines[0]) == (status == 403)


@pytest.mark.parametrize("handshake", ["nonsense", "never"])
def test_a_handshake_that_is_nonsense_or_never_answered_is_tried_again(stream, monkeypatch, handshake):
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.3)
    with Bybit(rate=0, script=[Script(handshake=handshake)]) as bybit, stream(bybit) as one:
        subscribed(bybit, 2)
        flows(bybit, one, 1)
        bybit.wait(lambda: len(open_ones(bybit)) == 1)


def test_address_resolution_that_hangs_is_given_up(stream, monkeypatch, caplog):
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.2)
    hang, real = threading.Event(), socket.getaddrinfo

    def hanging(*args, **options):
        hang.wait(10)
        return real(*args, **options)

    with Bybit(rate=0) as bybit:
        monkeypatch.setattr(socket, "getaddrinfo", hanging)
        with stream(bybit) as one:
            eventually(lambda: "no connection within 0.2 s" in caplog.text)
            hang.set()
            eventually(lambda: any(one.topics for one in open_ones(bybit)))
            flows(bybit, one, 1)
            bybit.wait(lambda: len(open_ones(bybit)) == 1)  # those that came too late are closed again


def test_tls_that_is_never_answered_is_given_up(stream, monkeypatch, certificate):
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(connection.websocket._socket, "_default_timeout", 0.5)
    with Bybit(rate=0, tls=certificate, script=[Script(handshake="never tls")]) as bybit, stream(bybit) as one:
        subscribed(bybit, 2)
        flows(bybit, one, 1)


def test_a_certificate_that_is_not_trusted_is_said(stream, monkeypatch, caplog, certificate):
    monkeypatch.delenv("WEBSOCKET_CLIENT_CA_BUNDLE")
    with Bybit(rate=0, tls=certificate) as bybit, stream(bybit):
        eventually(lambda: "certificate is not trusted" in caplog.text)


@pytest.mark.parametrize("fault", ["drop", "reset", "freeze", "freeze_inside_frame", "close"])
def test_the_faults_of_a_socket_under_tls(stream, monkeypatch, certificate, fault):
    monkeypatch.setattr(connection, "SILENCE_TIMEOUT", 0.5)
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.1)
    with Bybit(rate=0, tls=certificate) as bybit, stream(bybit) as one:
        first = subscribed(bybit)
        flows(bybit, one, 1)
        getattr(first, fault)()
        subscribed(bybit, 2)
        flows(bybit, one, 2)


@pytest.mark.parametrize("fault", ["freeze", "freeze_inside_frame"])
def test_a_frozen_peer_is_noticed_by_its_silence(stream, monkeypatch, caplog, fault):
    monkeypatch.setattr(connection, "SILENCE_TIMEOUT", 0.5)
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.1)
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        first = subscribed(bybit)
        flows(bybit, one, 1)
        getattr(first, fault)()
        subscribed(bybit, 2)
        flows(bybit, one, 2)
        assert "not even a pong" in caplog.text
        bybit.wait(lambda: len(open_ones(bybit)) == 1)


def test_the_clocks_meet_what_is_promised():
    """Frozen peers within 35 s, handshakes and acknowledgements within 15, an acknowledgement 10 s late is none."""
    assert connection.SILENCE_TIMEOUT + 2 * connection.TICK <= 35
    assert connection.SILENCE_TIMEOUT > connection.PING_INTERVAL + 5
    assert connection.CONNECT_TIMEOUT <= 15
    assert 10 < connection.ACK_TIMEOUT <= 15 - 2 * connection.TICK


# Silence that is one, and silence that is none.


def test_a_stalled_order_book_is_replaced(stream, monkeypatch, caplog):
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.05)
    with Bybit(rate=0) as bybit, stream(bybit, main.subscribe_orderbook, stall_timeout=0.4) as one:
        subscribed(bybit).silence()
        subscribed(bybit, 2)
        eventually(lambda: len(one.messages) >= 2)
        assert "no data for 0.4 s, though pings are answered" in caplog.text


def test_quiet_trades_are_left_alone(stream, monkeypatch):
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.02)
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        first = subscribed(bybit)
        eventually(lambda: sum(request["op"] == "ping" for request in first.requests) > 30)
        flows(bybit, one, 1)
        assert len(bybit.connections) == 1


def test_time_in_which_the_thread_did_not_look_is_no_silence(stream, monkeypatch):
    """A suspended machine, or a callback that takes long: the clock runs on, but nobody looked at the socket."""
    monkeypatch.setattr(connection, "SILENCE_TIMEOUT", 0.5)
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.1)
    done = threading.Event()

    @raw
    def slow(message):
        time.sleep(1.5)
        done.set()

    with Bybit(rate=0) as bybit, stream(bybit, main.subscribe_orderbook, callback=slow, stall_timeout=1.0) as one:
        one.flushed = 0
        first = subscribed(bybit)
        assert done.wait(10)
        pings = len(first.requests)
        bybit.wait(lambda: len(first.requests) > pings + 3)
        assert len(bybit.connections) == 1


def test_the_wall_clock_does_not_matter(stream, monkeypatch):
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.02)
    with Bybit(rate=0) as bybit, stream(bybit, main.subscribe_orderbook, stall_timeout=30) as one:
        first = subscribed(bybit)
        real = time.time
        for jump in (-3600, 3600):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            seen = len(first.requests)
            bybit.wait(lambda seen=seen: len(first.requests) > seen + 5)
        assert len(bybit.connections) == 1
        assert one.thread.is_alive()


def test_consumers_are_told_what_breaks_their_stream(stream, monkeypatch):
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.05)
    symbols, topics = ["BTCUSDT", "NOPE"], ["orderbook.50.BTCUSDT"]
    with (
        Bybit(rate=0, script=[Script(), Script(handshake=503)]) as bybit,
        stream(bybit, main.subscribe_orderbook, symbols, stall_timeout=1) as one,
    ):
        eventually(lambda: one.messages)
        before = time.time() * 1000
        subscribed(bybit).drop()
        bybit.wait(lambda: len(bybit.connections) == 3 and bybit.connections[2].topics)
        bybit.connections[2].silence()
        eventually(lambda: len(one.events) == 6)
    words = {"words": "error:handler not found,topic:orderbook.50.NOPE"}
    assert one.events[:2] == [("refused", ["orderbook.50.NOPE"], words), ("subscribed", topics, {})]
    lost, again, stalled, last = one.events[2:6]
    assert lost[:2] == ("lost", topics)
    assert lost[2]["why"] == "Bybit cut it without a close frame"
    assert before - 60_000 < lost[2]["since"] <= before + 1
    assert again == last == ("subscribed", topics, {})
    assert stalled[:2] == ("stalled", topics)
    assert len(one.events) == 6, "a connection that never came up is no second loss, and the stop is none"


def test_gaps_and_delays_are_measured_from_the_messages(stream, caplog):
    def delta(update, ago=0.0):
        return json.dumps(
            {
                "topic": "orderbook.50.BTCUSDT",
                "type": "delta",
                "ts": round((time.time() - ago) * 1000),
                "data": {"s": "BTCUSDT", "b": [["1", "2"]], "a": [], "u": update, "seq": 7},
                "cts": 1,
            },
            separators=(",", ":"),
        )

    with Bybit(rate=0) as bybit, stream(bybit, main.subscribe_orderbook) as one:
        subscribed(bybit)
        eventually(lambda: one.messages)
        first = json.loads(one.messages[0])["data"]["u"]
        one.stats.delays.clear()
        for update in (first + 1, first + 2, first + 4, first + 5, 1, 2):
            bybit.publish(delta(update, ago=5))
        eventually(lambda: len(one.messages) == 7)
        assert one.stats.gaps == 1
        assert 4.99 <= min(one.stats.delays) <= max(one.stats.delays) < 15
    assert f"orderbook.50.BTCUSDT: u leapt from {first + 2} to {first + 4}" in caplog.text


def test_a_busy_stream_is_looked_into_only_now_and_then(stream, monkeypatch):
    monkeypatch.setattr(connection, "LOOKS", 10)
    monkeypatch.setattr(connection, "TICK", 0.1)
    with Bybit(rate=2000) as bybit, stream(bybit, main.subscribe_orderbook, ["BTCUSDT", "ETHUSDT"]) as one:
        eventually(lambda: len(one.messages) > 1500)
        assert one.stats.gaps == 0
        assert 0 < len(one.stats.delays) < 1000


# Subscribing.


def test_a_lost_acknowledgement_is_a_failed_connection(stream, monkeypatch, caplog):
    monkeypatch.setattr(connection, "ACK_TIMEOUT", 0.3)
    with Bybit(rate=0, script=[Script(ack_delay=None)]) as bybit, stream(bybit) as one:
        subscribed(bybit, 2)
        flows(bybit, one, 1)
        assert "not acknowledged within 0.3 s" in caplog.text


def test_an_acknowledgement_is_missed_also_while_data_flows(stream, monkeypatch, caplog):
    monkeypatch.setattr(connection, "ACK_TIMEOUT", 0.3)
    with Bybit(rate=500, script=[Script(ack_delay=None, data_before_ack=1)]) as bybit, stream(bybit):
        bybit.wait(lambda: len(bybit.connections) == 2)
        assert "not acknowledged" in caplog.text


def test_a_late_acknowledgement_is_none_of_these(stream):
    with Bybit(rate=0, script=[Script(ack_delay=0.5)]) as bybit, stream(bybit) as one:
        subscribed(bybit)
        flows(bybit, one, 1)
        assert len(bybit.connections) == 1


@pytest.mark.parametrize("before", [0, 1, 5])
def test_data_before_with_and_after_the_acknowledgement_arrives(stream, before):
    script = Script(ack_delay=0 if before == 1 else 0.05, data_before_ack=before)
    with Bybit(rate=200, script=[script], record=True) as bybit, stream(bybit, main.subscribe_ticker) as one:
        eventually(lambda: len(one.messages) > 20)
        assert bybit.connections[0].sent[:20] == one.texts[:20]
        assert len(bybit.connections) == 1


def test_a_thousand_instant_acknowledgements_lose_nothing(monkeypatch):
    """pybit registers a request after sending it: a fast answer kills it. Here each is answered in the same write."""
    symbols = [f"S{number}USDT" for number in range(1000)]
    script = Script(ack_delay=0, data_before_ack=0)
    monkeypatch.setitem(connection.TOPICS_PER_REQUEST, "linear", 1)
    with Bybit({"linear": symbols}, rate=0, script=[script], record=True) as bybit:
        one = Stream(bybit, monkeypatch, main.subscribe_ticker, symbols)
        with one:
            eventually(lambda: len(one.messages) == 1000, 30)
            assert bybit.connections[0].sent == one.texts
        assert len(bybit.connections) == 1


@pytest.mark.parametrize("kind", ["linear", "inverse", "spot"])
@pytest.mark.parametrize("unnamed", [False, True])
def test_a_bad_topic_among_good_ones_is_named_once_and_the_others_flow(stream, caplog, kind, unnamed):
    good = [f"A{number}" for number in range(13)]
    symbols = [*good[:4], "NOPE", *good[4:], "nope"]
    with (
        Bybit({kind: good}, rate=0, then=Script(unnamed=unnamed)) as bybit,
        stream(bybit, main.subscribe_ticker, symbols, kind=kind) as one,
    ):
        bybit.wait(lambda: bybit.connections and len(bybit.connections[-1].topics) == 13)
        eventually(lambda: len(one.messages) == 13)
        bybit.connections[-1].drop()
        bybit.wait(lambda: len(bybit.connections) == 2 and len(bybit.connections[-1].topics) == 13)
        eventually(lambda: len(one.messages) == 26)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len([line for line in errors if "tickers.NOPE:" in line]) == 1
    assert len([line for line in errors if "tickers.nope:" in line]) == 1
    assert len(errors) == 2
    asked = [topic for request in bybit.connections[1].requests for topic in request.get("args", [])]
    assert "tickers.NOPE" not in asked, "a refused topic is left out of the next connection"


def test_a_topic_that_bybit_says_is_subscribed_already_costs_the_others_nothing(stream):
    with Bybit(rate=0) as bybit:
        with stream(bybit, main.subscribe_ticker, ["BTCUSDT", "ETHUSDT"]) as one:
            first = subscribed(bybit)
            eventually(lambda: len(one.messages) == 2)
        taken = first.requests[0]["args"]
        assert taken == ["tickers.BTCUSDT", "tickers.ETHUSDT"]


def test_a_refusal_of_everything_without_a_name_is_no_word_on_the_symbol(stream, caplog):
    """Such as an internal error of Bybit's: the connection is made anew, and the topic is asked for at once."""
    script = Script(refuse=("tickers.BTCUSDT",), unnamed=True)
    with Bybit(rate=0, script=[script, script]) as bybit, stream(bybit, main.subscribe_ticker) as one:
        eventually(lambda: one.messages)
        assert len(bybit.connections) == 3
    assert caplog.text.count("the subscription was refused") == 2


def test_a_topic_that_another_stream_got_back_is_asked_for_too(stream, caplog):
    with Bybit({"linear": ["A"]}, rate=0) as bybit, stream(bybit, main.subscribe_ticker, ["A", "LATER"]) as one:
        eventually(lambda: "refuses tickers.LATER" in caplog.text)
        bybit.symbols = {"linear": ["A", "LATER"]}
        connection._refused.clear()  # as the other stream does when it is accepted
        eventually(lambda: len(one.messages) == 2)


def test_bytes_that_never_become_a_frame_are_silence(stream, monkeypatch, caplog):
    monkeypatch.setattr(connection, "SILENCE_TIMEOUT", 0.5)
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        first = subscribed(bybit)
        first.send_raw(b"\x82\x7f" + (1 << 25).to_bytes(8, "big"))
        while first.closed is None:
            first.send_raw(b"drip")
            time.sleep(0.01)
        subscribed(bybit, 2)
        flows(bybit, one, 1)
    assert "nothing came for 0.5 s" in caplog.text


def test_what_came_before_the_end_in_the_same_bytes_counts(stream):
    body = trade(1).encode()
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        first = subscribed(bybit)
        first.send_raw((b"\x81" + length(body) + body) * 5 + b"\x88\x02\x03\xe8")
        subscribed(bybit, 2)
        assert one.stats.messages == 5
        assert [event[0] for event in one.events[:2]] == ["subscribed", "lost"]
        assert one.events[1][2]["since"]


def test_a_topic_in_fail_topics_is_named_and_the_others_flow(stream, caplog):
    contracts = ["BTC-25JUN27-106000-P-USDT", "BTC-25JUN27-106000-C-USDT"]
    refuse = Script(refuse=(f"tickers.{contracts[0]}",))
    with Bybit(rate=0, then=refuse) as bybit, stream(bybit, main.subscribe_ticker, contracts, kind="option") as one:
        eventually(lambda: one.messages)
        assert f"refuses tickers.{contracts[0]}" in caplog.text


def test_a_topic_that_option_accepts_silently_is_named_once(stream, monkeypatch, caplog):
    monkeypatch.setattr(connection, "FIRST_DATA_TIMEOUT", 0.3)
    symbols = ["BTC-25JUN27-106000-P-USDT", "BTC-1JAN99-1-P-USDT"]
    with Bybit(rate=0) as bybit, stream(bybit, main.subscribe_ticker, symbols, kind="option") as one:
        eventually(lambda: "tickers.BTC-1JAN99-1-P-USDT was accepted, but nothing came" in caplog.text)
        assert len(one.messages) == 1
        assert caplog.text.count("nothing came") == 1


def test_a_first_message_before_the_answer_counts(stream, monkeypatch, caplog):
    monkeypatch.setattr(connection, "FIRST_DATA_TIMEOUT", 0.2)
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.05)
    script = Script(ack_delay=0.05, data_before_ack=1)
    with Bybit(rate=0, script=[script]) as bybit, stream(bybit, main.subscribe_orderbook) as one:
        eventually(lambda: one.messages)
        bybit.wait(lambda: len(bybit.connections[0].requests) > 10)
    assert "nothing came" not in caplog.text


def test_a_refused_topic_is_asked_for_again_much_later(stream, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with Bybit({"linear": ["A"]}, rate=0) as bybit, stream(bybit, main.subscribe_ticker, ["A", "LATER"]) as one:
        eventually(lambda: "refuses tickers.LATER" in caplog.text)
        bybit.symbols = {"linear": ["A", "LATER"]}
        requests = len(bybit.connections[0].requests)
        monkeypatch.setattr(connection, "REFUSED_RETRY", 0.1)
        eventually(lambda: len(one.messages) == 2)
        assert "tickers.LATER is accepted now" in caplog.text
        assert len(bybit.connections[0].requests) == requests + 1


def test_many_topics_go_in_requests_of_the_allowed_size(stream):
    symbols = [f"A{number}" for number in range(45)]
    with Bybit({"spot": symbols}, rate=0) as bybit, stream(bybit, main.subscribe_trades, symbols, kind="spot"):
        bybit.wait(lambda: bybit.connections and len(bybit.connections[0].topics) == 45)
        assert [len(request["args"]) for request in bybit.connections[0].requests] == [10, 10, 10, 10, 5]


def test_option_trades_are_asked_for_by_coin(stream):
    symbols = ["BTC-25JUN27-106000-P-USDT", "BTC-25JUN27-106000-C-USDT", "ETH-25JUN27-4000-C-USDT"]
    with Bybit(rate=0) as bybit, stream(bybit, main.subscribe_trades, symbols, kind="option"):
        bybit.wait(lambda: bybit.connections and bybit.connections[0].requests)
        assert bybit.connections[0].requests[0]["args"] == ["publicTrade.BTC", "publicTrade.ETH"]


# What comes in frames.


@pytest.mark.parametrize(
    "garbage",
    ["", "not JSON", "[1,2]", "7", "null", '"text"', '{"op":"new","x":1}', '{"topic":7}', '{"topic":"tickers.X"}'],
)
def test_garbage_costs_nothing_and_is_logged_once(stream, caplog, garbage):
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        first = subscribed(bybit)
        for _ in range(5):
            first.send(garbage)
        flows(bybit, one, 1)
        assert one.texts == [trade(1)]
        assert len(bybit.connections) == 1
    assert len([record for record in caplog.records if "Ignored" in record.getMessage()]) == 1


def test_a_binary_frame_with_a_message_is_a_message(stream):
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        first = subscribed(bybit)
        first.send_binary(trade(1).encode())
        first.send_binary(b"{\x00")
        flows(bybit, one, 2)
        assert one.texts == [trade(1), trade(2)]


@pytest.mark.parametrize("size", [0, 125, 126, 127, 65535, 65536, 70_000, 1_000_000, 5_000_000])
def test_frames_of_any_size_arrive_as_they_are(stream, size):
    text = trade(1)[:-1] + ',"x":"' + "y" * max(0, size - len(trade(1)) - 7) + '"}'
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        subscribed(bybit)
        bybit.publish(text)
        flows(bybit, one, 2)
        assert one.texts == [text, trade(2)]


@pytest.mark.parametrize(
    "text",
    [
        '{"id":"x","ts":1,"topic":"publicTrade.BTCUSDT","data":[]}',
        '{ "topic" : "publicTrade.BTCUSDT" , "data" : [ ] }',
        '{"topic":"publicTrade.BTCUSDT","новое":"поле","n":1.50,"big":123456789012345678901234567890,"e":1E-7}',
        '{"topic":"publicTrade.BTCUSDT","slash":"\\/","escaped":"\\u003e"}',
    ],
    ids=["late", "spaced", "foreign", "escaped"],
)
def test_a_message_of_any_form_arrives_as_it_is(stream, text):
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        subscribed(bybit).send(text)
        eventually(lambda: one.texts == [text])


def test_frames_cut_anywhere_and_mixed_with_control_frames_arrive_whole(stream):
    """Every frame twice: cut into fragments with a ping inside, and whole; the stream of bytes cut at every place."""
    texts = [trade(number) + " " * number for number in (0, 40, 200)]
    wire = b""
    for text in texts:
        body = text.encode()
        wire += bytes([0x01, 20]) + body[:20] + b"\x89\x02hi" + bytes([0x00, 5]) + body[20:25]
        rest = body[25:]
        wire += bytes([0x80]) + length(rest) + rest + b"\x8a\x00"
        wire += bytes([0x81]) + length(body) + body
    expected = [text for text in texts for _ in range(2)]
    with Bybit(rate=0) as bybit, stream(bybit) as one:
        first = subscribed(bybit)
        for size in (1, 2, 3, 7, 64, len(wire)):
            one.messages.clear()
            for start in range(0, len(wire), size):
                first.send_raw(wire[start : start + size])
            eventually(lambda: len(one.messages) >= len(expected))
            assert one.texts == expected
        assert len(bybit.connections) == 1


def length(body):
    return bytes([len(body)]) if len(body) < 126 else bytes([126]) + len(body).to_bytes(2, "big")


# Callbacks.


def test_a_callback_of_the_users_gets_the_message_as_bybit_sent_it(monkeypatch):
    """Not pybit's merged book: deltas stay deltas, and each message is a dict of its own."""
    got = []
    with Bybit(rate=300, record=True) as bybit:
        with Stream(bybit, monkeypatch, main.subscribe_orderbook, callback=got.append):
            eventually(lambda: len(got) > 20)
        assert got == [json.loads(text) for text in bybit.connections[0].sent[: len(got)]]
    assert {message["type"] for message in got} == {"snapshot", "delta"}


@pytest.mark.parametrize("mark", [raw, lambda callback: callback], ids=["raw", "dict"])
def test_a_raising_callback_keeps_the_connection(monkeypatch, caplog, mark):
    calls = []

    @mark
    def failing(message):
        calls.append(message)
        raise KeyError("oops") if len(calls) % 2 else ValueError("again")

    with Bybit(rate=500) as bybit, Stream(bybit, monkeypatch, main.subscribe_ticker, callback=failing) as one:
        eventually(lambda: len(calls) > 30)
        assert len(bybit.connections) == 1
        assert one.stats.messages > 0
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == 2, "once per kind"
    assert all(record.exc_info for record in logged)


def test_a_slow_callback_does_not_look_like_a_dead_network(monkeypatch):
    """100 ms a message at 100 messages/s: the backlog grows, pongs queue behind it, and pings must go out all along."""
    monkeypatch.setattr(connection, "PING_INTERVAL", 0.2)
    monkeypatch.setattr(connection, "SILENCE_TIMEOUT", 1.0)
    got = []

    @raw
    def slow(message):
        got.append(message)
        time.sleep(0.1)

    with Bybit(rate=100) as bybit, Stream(bybit, monkeypatch, main.subscribe_ticker, callback=slow):
        eventually(lambda: len(got) >= 40, 30)
        assert len(bybit.connections) == 1
        pings = [request for request in bybit.connections[0].requests if request["op"] == "ping"]
        assert len(pings) >= 4


# Limits and leaks.


def test_the_pacer_spreads_what_is_too_much():
    stop, pacer = threading.Event(), Pacer(3, 0.3)
    starts = []
    for _ in range(7):
        pacer.wait(stop, connection.Stats())
        starts.append(time.monotonic())
    for first, fourth in zip(starts, starts[3:], strict=False):
        assert fourth - first >= 0.29


def test_fifty_streams_against_a_server_that_drops_stay_under_bybits_limit(monkeypatch):
    """All that 50 streams can do in ten seconds is 450 connections, since that is all they may do in 300."""
    monkeypatch.setattr(connection, "pacer", Pacer(connection.CONNECTIONS, connection.PER_SECONDS))
    with Bybit(rate=0, then=Script(end="drop", end_after=0)) as bybit:
        streams = [Stream(bybit, monkeypatch) for _ in range(50)]
        for one in streams:
            one.thread.start()
        bybit.wait(lambda: len(bybit.connections) >= 450, 40)
        asked = time.monotonic() + 1.5
        eventually(lambda: time.monotonic() > asked)
        main.stop.set()
        close_all()
        for one in streams:
            one.thread.join(10)
            assert not one.thread.is_alive()
        assert len(bybit.connections) == 450


@pytest.mark.timeout(150)
def test_a_thousand_reconnects_leave_no_threads_files_or_memory_behind(stream, monkeypatch):
    monkeypatch.setattr(main, "RECONNECT_DELAY", 0.0005)
    monkeypatch.setattr(main, "RECONNECT_DELAY_MAX", 0.001)
    dropping = Script(ack_delay=0, end="drop", end_after=1)
    with Bybit(rate=0, then=dropping) as bybit, stream(bybit, main.subscribe_ticker):
        bybit.wait(lambda: len(bybit.connections) >= 50, 30)
        before = usage()
        bybit.wait(lambda: len(bybit.connections) >= 1050, 120)
        after = usage()
    assert after["threads"] <= before["threads"] + 2
    assert after["files"] <= before["files"] + 6  # both ends of a connection that is being made or ended
    assert after["objects"] < before["objects"] * 1.2 + 60_000  # the stand-in keeps a record of each connection


def usage():
    gc.collect()
    return {
        "threads": threading.active_count(),
        "files": len(os.listdir("/dev/fd")),
        "objects": len(gc.get_objects()),
    }


@pytest.mark.parametrize("handshake", ["ok", "never"])
def test_stopping_takes_no_time_wherever_the_connection_is(stream, handshake):
    with Bybit(rate=100, then=Script(handshake=handshake)) as bybit:
        with stream(bybit, main.subscribe_ticker):
            bybit.wait(lambda: bybit.connections)
            began = time.monotonic()
        assert time.monotonic() - began < 2


def test_too_many_topics_for_one_connection_are_refused_by_it():
    with Bybit(rate=0) as bybit, Connection("linear", testnet=True, url=bybit.url, stop=threading.Event()) as one:
        one.trade_stream(symbol=[f"SYMBOL{number}" for number in range(2000)], callback=print)
        with pytest.raises(ValueError, match="21,000 characters"):
            one.run()


def test_a_lost_connection_says_how_long_it_was_up():
    stop = threading.Event()
    with Bybit(rate=0) as bybit, Connection("linear", testnet=True, url=bybit.url, stop=stop) as one:
        one.ticker_stream(symbol="BTCUSDT", callback=lambda message: bybit.connections[0].drop())
        with pytest.raises(ConnectionLost) as lost:
            one.run()
        assert 0 < lost.value.uptime < 10


def test_a_context_that_verifies_is_what_is_used(stream, certificate):
    with Bybit(rate=0, tls=certificate) as bybit, stream(bybit) as one:
        subscribed(bybit)
        flows(bybit, one, 1)
        (live,) = connection._live
        assert live.ws.sock.sock.context.verify_mode == ssl.CERT_REQUIRED
        assert live.ws.sock.sock.context.check_hostname
