"""Bybit's end over real sockets: what a stream makes of the faults of the network and of Bybit.

Frames, clocks, subscriptions, sampling and dispatch have tests without sockets: test_frames.py, test_health.py,
test_subscription.py, test_stats.py, test_dispatch.py.
"""

import gc
import logging
import os
import random
import socket
import threading
import time
from functools import partial
from itertools import pairwise

import pytest
from vocabulary import PAUSE, TIMER, Collector, StandIn, both_ways, eventually, message, rejected, subscribed
from websockets.sync.server import serve

from relay.backoff import Backoff
from relay.bybit import pacer
from relay.bybit.exchange import NEW_CONNECTIONS_BURST, NEW_CONNECTIONS_RATE, Exchange
from relay.bybit.health import Health, Timeouts
from relay.bybit.pacer import Pacer
from relay.dispatch import batched, raw
from relay.stats import recent
from sandbox.bybit import Script

GOOD = [f"A{number}" for number in range(13)]


class RecordingEvent(threading.Event):
    """An event that keeps how long was waited for it."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return super().wait(timeout)


# One thread a stream.


def test_a_stream_is_one_thread(exchange, collector):
    before, ran_on = set(threading.enumerate()), set()
    collector.streams("tickers", "BTCUSDT", callback=raw(lambda _: ran_on.add(threading.current_thread())))
    eventually(lambda: ran_on and set(threading.enumerate()) - before == {collector.thread}, 1)
    assert ran_on == {collector.thread}, "the callback runs on the thread that was started for the stream"


@pytest.mark.parametrize("lends", [True], ids=["reader"])
def test_a_stream_whose_callback_takes_batches_is_lent_to_the_reader(exchange, collector):
    collector.timeouts = Timeouts(timer=60)  # it is lent again only because it was given back
    collector.streams("tickers", "BTCUSDT")
    collector.delivers()
    exchange.sends("no JSON", '{"op":"new"}')
    for _ in range(3):
        collector.delivers()
    collector.read_on.clear()
    for _ in range(3):
        collector.delivers()
    assert collector.read_on == {"Reader"}


# How a connection ends, and the next one.


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (StandIn.drops, "Bybit closed the TCP connection without a close frame"),
        (StandIn.resets, "reset"),
        (StandIn.closes, "Bybit closed the connection: 1000"),
        (partial(StandIn.closes, code=1001, reason="going away"), "Bybit closed the connection: 1001 going away"),
        (partial(StandIn.closes, code=1012), "Bybit closed the connection: 1012"),
        (partial(StandIn.sends_bytes, data=b"\xc1\x02hi"), "invalid frame header c102"),
        (partial(StandIn.sends_bytes, data=b"\x81\x04\xff\xfe\xfd\xfc"), "a frame that is not UTF-8"),
    ],
    ids=["drop", "reset", "close 1000", "close 1001", "close 1012", "invalid frame", "not UTF-8"],
)
@both_ways
def test_a_lost_connection_is_replaced_once(exchange, collector, fault, reason):
    collector.streams("publicTrade", "BTCUSDT")
    collector.delivers(connection=1)
    fault(exchange)
    collector.delivers(connection=2)
    assert len(collector.lines("Lost Bybit: ")) == len(collector.lines(reason)) == 1


@pytest.mark.parametrize("fault", [StandIn.freezes, StandIn.freezes_inside_a_frame])
@both_ways
def test_a_frozen_peer_is_noticed_by_its_silence(exchange, collector, fault):
    collector.timeouts = Timeouts(timer=TIMER, silence=0.5, ping_interval=0.1)
    collector.streams("publicTrade", "BTCUSDT")
    collector.delivers(connection=1)
    fault(exchange)
    collector.delivers(connection=2)
    assert collector.lines("nothing received for 0.5 s, not even a pong")


@both_ways
def test_bytes_that_never_become_a_frame_are_silence(exchange, collector):
    collector.timeouts = Timeouts(timer=TIMER, silence=0.5)
    collector.streams("publicTrade", "BTCUSDT")
    first = exchange.subscribed()
    first.send_raw(b"\x82\x7f" + (1 << 25).to_bytes(8, "big"))
    while first.closed is None:
        first.send_raw(b"drip")
        time.sleep(0.01)
    collector.delivers(connection=2)
    assert collector.lines("nothing received for 0.5 s")


@both_ways
def test_a_message_that_never_ends_is_silence_whatever_comes_in_between(exchange, collector):
    collector.timeouts = Timeouts(timer=TIMER, silence=0.5)
    collector.streams("publicTrade", "BTCUSDT")
    first = exchange.subscribed()
    first.send_raw(b"\x01\x01x")
    while first.closed is None:
        first.send_raw(b"\x00\x00\x89\x00\x8a\x00")  # an empty fragment, a ping, a pong
        time.sleep(0.01)
    collector.delivers(connection=2)
    assert collector.lines("nothing received for 0.5 s")


@both_ways
def test_what_came_before_the_end_in_the_same_bytes_counts(exchange, collector):
    text = message("publicTrade.BTCUSDT")
    collector.streams("publicTrade", "BTCUSDT")
    exchange.sends_bytes((b"\x81" + bytes([len(text)]) + text.encode()) * 5 + b"\x88\x02\x03\xe8")
    assert collector.received(5) == [text] * 5
    assert [event.event for event in collector.events(2)[:2]] == ["subscribed", "lost"]
    assert collector.events()[1].fields["since"], "the time of the last message is known"


@both_ways
@pytest.mark.parametrize("size", [100, 3000, 5000, 20_000, 40_000, 70_000])
def test_a_peer_that_ends_right_after_its_data_is_read_to_the_end(exchange, collector, size):
    """Whatever the socket had when it was read, also more than is read at once."""
    texts = [message("publicTrade.BTCUSDT", number, x='"' + "y" * size + '"') for number in range(3)]
    collector.streams("publicTrade", "BTCUSDT")
    first = exchange.subscribed()
    for text in texts:
        first.send(text)
    first.drop()
    assert collector.received(3) == texts
    collector.delivers(connection=2)


@pytest.mark.parametrize(
    "fault", [StandIn.drops, StandIn.resets, StandIn.closes, StandIn.freezes, StandIn.freezes_inside_a_frame]
)
@both_ways
def test_the_faults_of_a_socket_under_tls(tls_exchange, collector, fault):
    collector.timeouts = Timeouts(timer=TIMER, silence=0.5, ping_interval=0.1)
    collector.reads_from(tls_exchange)
    collector.streams("publicTrade", "BTCUSDT")
    collector.delivers(connection=1)
    fault(tls_exchange)
    collector.delivers(connection=2)


@both_ways
def test_a_busy_stream_under_tls_loses_nothing(tls_exchange, collector):
    collector.reads_from(tls_exchange)
    tls_exchange.rate = 3000
    collector.streams("orderbook", "BTCUSDT", "ETHUSDT")
    received = collector.received(3000)
    assert tls_exchange.connections[0].sent[: len(received)] == received


# Connecting.


def test_a_server_that_refuses_tcp_is_tried_until_it_is_back(exchange, collector):
    with StandIn(rate=0) as down:
        collector.reads_from(down)
    collector.streams("publicTrade", "BTCUSDT")
    collector.logs("Connection refused", times=3)
    with StandIn(rate=0, port=down.port) as back:
        collector.reads_from(back)
        collector.delivers()


def test_an_unknown_host_is_logged_and_tried_again(exchange, collector, monkeypatch):
    def unknown(*_args, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", unknown)
        collector.streams("publicTrade", "BTCUSDT")
        collector.logs("the host name 127.0.0.1 cannot be resolved", times=2)
    collector.delivers(connection=1)


@pytest.mark.parametrize("status", [403, 429, 502, 503, 504])
def test_a_refused_handshake_is_logged_in_a_line_and_tried_again(exchange, collector, monkeypatch, status):
    exchange.treats(Script(handshake=status), Script(handshake=status))
    monkeypatch.setattr(pacer, "REFUSED_EVERY", 0.05)
    collector.streams("publicTrade", "BTCUSDT")
    collector.delivers(connection=3)
    lines = collector.lines(f"HTTP {status}")
    assert len(lines) == 2
    assert all(len(line) < 250 and "<" not in line for line in lines), "no HTML page"
    assert ("region" in lines[0]) == (status == 403)


def test_a_system_without_a_thread_to_give_is_logged_in_a_line_and_asked_again(exchange, collector, monkeypatch):
    start, refused = threading.Thread.start, []

    def refuse(thread):
        if thread.name.endswith("connecting") and len(refused) < 3:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    collector.streams("publicTrade", "BTCUSDT")
    collector.delivers()
    assert len(collector.logs("Lost Bybit: no thread to connect with: can't start new thread; reconnecting")) == 3
    assert not collector.lines(level=logging.ERROR)


@pytest.mark.parametrize("handshake", ["nonsense", "never"])
def test_a_handshake_that_is_nonsense_or_never_answered_is_tried_again(exchange, collector, handshake):
    collector.timeouts = Timeouts(timer=TIMER, connect=0.3)
    exchange.treats(Script(handshake=handshake))
    collector.streams("publicTrade", "BTCUSDT")
    collector.delivers(connection=2)


def test_name_resolution_that_hangs_is_given_up(exchange, collector, monkeypatch):
    collector.timeouts = Timeouts(timer=TIMER, connect=0.2)
    answer, resolve = threading.Event(), socket.getaddrinfo

    def hang(*args, **options):
        answer.wait(10)
        return resolve(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    collector.streams("publicTrade", "BTCUSDT")
    collector.logs("no connection within 0.2 s")
    answer.set()
    collector.delivers()  # and the connections that came too late are closed again


def test_tls_that_is_never_answered_is_given_up(tls_exchange, collector):
    collector.timeouts = Timeouts(timer=TIMER, connect=0.3, connect_step=0.5)
    tls_exchange.treats(Script(handshake="never tls"))
    collector.reads_from(tls_exchange)
    collector.streams("publicTrade", "BTCUSDT")
    collector.delivers(connection=2)


def test_a_certificate_that_is_not_trusted_is_logged(tls_exchange, collector, monkeypatch):
    monkeypatch.delenv("WEBSOCKET_CLIENT_CA_BUNDLE")
    collector.reads_from(tls_exchange)
    collector.streams("publicTrade", "BTCUSDT")
    collector.logs("its certificate is not trusted")


def test_a_certificate_of_another_host_is_not_trusted(authority, certificate, collector, tmp_path):
    authority[0].issue_cert("bybit.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "other.pem")
    with StandIn(rate=0, tls=(str(tmp_path / "other.pem"),) * 2) as other:
        collector.reads_from(other)
        collector.streams("publicTrade", "BTCUSDT")
        collector.logs("its certificate is not trusted: Hostname mismatch")
        collector.stops()


# How often.


def test_the_next_connection_comes_after_exactly_the_delay_if_the_last_was_stable(exchange, collector):
    collector.backoff = partial(Backoff, 0.3, 100, stable_after=0.05)
    collector.stop = RecordingEvent()
    collector.streams("publicTrade", "BTCUSDT")
    for number in (1, 2, 3):
        exchange.subscribed(number)
        time.sleep(0.1)  # longer than stable_after
        exchange.drops()
    collector.delivers(connection=4)
    assert collector.stop.waits == [0.3, 0.3, 0.3]


def test_the_delay_doubles_up_to_its_maximum_while_connections_are_lost_at_once(exchange, collector):
    collector.backoff = partial(Backoff, 0.01, 0.05)
    collector.stop = RecordingEvent()
    exchange.treats(then=Script(end="drop", end_after=0))
    collector.streams("publicTrade", "BTCUSDT")
    exchange.wait(lambda: len(exchange.connections) >= 6)
    for wait, longest in zip(collector.stop.waits, [0.02, 0.04, 0.05, 0.05, 0.05], strict=False):
        assert 0.75 * longest <= wait <= longest


def test_fifty_streams_against_a_server_that_drops_stay_under_the_limit_of_bybit(exchange, collector):
    """150 connections at once, and then one a second."""
    collector.pacer = Pacer(NEW_CONNECTIONS_BURST, NEW_CONNECTIONS_RATE)
    exchange.treats(then=Script(end="drop", end_after=0))
    began = time.monotonic()
    for number in range(50):
        collector.streams("publicTrade", "BTCUSDT", name=f"trades {number}")
    exchange.wait(lambda: len(exchange.connections) >= 153, 40)
    assert collector.stops() < 2
    assert 153 <= len(exchange.connections) <= 151 + time.monotonic() - began
    assert len(collector.lines("150 new connections in a short time: waiting")) == 1


@pytest.mark.timeout(150)
def test_a_thousand_reconnects_leave_no_threads_files_or_memory_behind(exchange, collector, caplog):
    caplog.set_level("WARNING")  # pytest keeps the lines, and with them the lists of topics that they name
    collector.backoff = partial(Backoff, 0.0005, 0.001)
    exchange.treats(then=Script(ack_delay=0, end="drop", end_after=1))
    collector.streams("tickers", "BTCUSDT")
    exchange.wait(lambda: len(exchange.connections) >= 50, 30)
    before = usage()
    exchange.wait(lambda: len(exchange.connections) >= 1050, 120)
    after = usage()
    assert after["threads"] <= before["threads"] + 2
    assert after["files"] <= before["files"] + 6  # both ends of a connection that is being made or ended
    assert after["objects"] <= before["objects"] + 50  # of a connection that is being made or ended


def usage():
    gc.collect()
    modules = [str(type(one).__module__) for one in gc.get_objects()]
    return {
        "threads": threading.active_count(),
        "files": len(os.listdir("/dev/fd")),
        "objects": sum(
            module.startswith(("relay.", "websocket.", "pybit.", "threading", "_thread")) for module in modules
        ),
    }


# Stopping.


@pytest.mark.parametrize("handshake", ["ok", "never", "nonsense", 503])
@both_ways
def test_a_stop_takes_no_time_wherever_the_connection_is(exchange, collector, handshake):
    collector.timeouts = Timeouts()
    collector.backoff = partial(Backoff, 100, 100)
    exchange.treats(then=Script(handshake=handshake))
    before = set(threading.enumerate())
    collector.streams("tickers", "BTCUSDT")
    exchange.wait(lambda: exchange.connections)
    time.sleep(0.1)  # until it reads, waits for the handshake, or waits for the next attempt
    assert collector.stops() < 0.5
    eventually(lambda: set(threading.enumerate()) <= before, 0.5)


def test_a_stop_takes_no_time_while_a_name_is_resolved(exchange, collector, monkeypatch):
    resolving, answer = threading.Event(), threading.Event()

    def hang(*_args, **_options):
        resolving.set()
        answer.wait(10)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    collector.timeouts = Timeouts()
    collector.streams("tickers", "BTCUSDT")
    assert resolving.wait(10)
    assert collector.stops() < 0.5
    answer.set()


def test_a_stop_takes_no_time_while_a_stream_waits_for_its_place(exchange, collector):
    collector.pacer = Pacer(1, 0.001)
    collector.streams("tickers", "BTCUSDT")
    exchange.drops()
    collector.logs("1 new connections in a short time: waiting")
    assert collector.stops() < 0.5


@both_ways
def test_a_stop_at_any_moment_ends_the_stream(exchange, caplog, lends):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    exchange.rate = 1000
    for _ in range(100):
        collector = Collector(exchange, caplog, lends)
        collector.streams("tickers", "BTCUSDT")
        time.sleep(chance.uniform(0, 0.03))
        assert collector.stops() < 1
        assert not [event for event in collector.events() if event.event == "lost"]
    exchange.wait(lambda: not exchange.open_connections())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# Silence, and what only looks like it.


@both_ways
def test_the_timer_keeps_time_whenever_messages_come(exchange, collector):
    """Each comes just before the timer is due: that must not wait for the next one."""
    collector.timeouts = Timeouts(timer=0.2)
    collector.streams("publicTrade", "BTCUSDT")
    exchange.subscribed()
    due, end = [], time.monotonic() + 2
    while time.monotonic() < end:
        exchange.publish(message("publicTrade.BTCUSDT", len(due)))
        until = time.monotonic() + 0.19
        while time.monotonic() < until:
            if (latest := collector.stats.heartbeat_due) not in due:
                due.append(latest)
            time.sleep(0.005)
    periods = [later - earlier for earlier, later in pairwise(due)]
    assert min(period for period in periods if period > 0) < 0.3  # while it connects it is due later


@both_ways
def test_a_quiet_connection_is_kept_alive_by_pings(exchange, collector):
    collector.timeouts = Timeouts(timer=TIMER, silence=0.5, ping_interval=0.1)
    collector.streams("publicTrade", "BTCUSDT")
    exchange.subscribed()
    exchange.wait(lambda: exchange.pings() > 10)
    collector.delivers(connection=1)


@both_ways
def test_pings_of_the_server_are_answered(collector):
    answered = threading.Event()

    def ping(connection):
        if all(connection.ping(b"%d" % number).wait(5) for number in range(3)):
            answered.set()
        for _ in connection:
            pass

    with serve(ping, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        collector.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        collector.streams("publicTrade", "BTCUSDT")
        assert answered.wait(10)
        collector.stops()
    thread.join()


def test_a_callback_that_takes_long_does_not_look_like_silence(exchange, collector):
    """Nor does a suspended machine: the clock runs on, but nobody watches the socket."""
    collector.timeouts = Timeouts(timer=TIMER, silence=0.5, ping_interval=0.1)
    done = threading.Event()
    collector.streams("orderbook", "BTCUSDT", callback=raw(lambda _: time.sleep(1.5) or done.set()), stall_timeout=1)
    assert done.wait(10)
    pings = exchange.pings()
    exchange.wait(lambda: exchange.pings() > pings + 3)
    assert len(exchange.connections) == 1


def test_slow_callbacks_do_not_look_like_a_dead_network(exchange, collector):
    """50 ms a message at 200 messages/s: pongs queue behind a growing backlog, and pings must go out all along."""
    collector.timeouts = Timeouts(timer=TIMER, silence=1.0, ping_interval=0.2)
    exchange.rate = 200
    taken = []
    collector.streams("tickers", "BTCUSDT", callback=raw(lambda text: time.sleep(0.05) or taken.append(text)))
    eventually(lambda: len(taken) >= 60, 30)
    assert len(exchange.connections) == 1
    assert exchange.pings() >= 3, "they go out between the messages of one read"


@both_ways
def test_the_wall_clock_does_not_matter(exchange, collector, monkeypatch):
    collector.timeouts = Timeouts(timer=TIMER, ping_interval=0.02)
    collector.streams("orderbook", "BTCUSDT", stall_timeout=30)
    exchange.subscribed()
    for jump in (-3600, 3600):
        monkeypatch.setattr("relay.bybit.connection.time", lambda jump=jump: time.time() + jump)
        pings = exchange.pings()
        exchange.wait(lambda pings=pings: exchange.pings() > pings + 5)
        collector.delivers(connection=1)


# What consumers learn.


@both_ways
def test_consumers_learn_what_interrupts_their_stream(exchange, collector):
    collector.timeouts = Timeouts(timer=TIMER, ping_interval=0.05)
    exchange.treats(Script(), Script(handshake=503))
    book = "orderbook.50.BTCUSDT"
    collector.streams("orderbook", "BTCUSDT", "NOPE", stall_timeout=1)
    collector.received(1)
    now = time.time() * 1000
    exchange.drops()
    exchange.subscribed(3)
    exchange.falls_silent()
    first, second, lost, third, stalled, last = collector.events(6)
    assert (first, second) == (rejected("orderbook.50.NOPE", NOT_FOUND + "orderbook.50.NOPE"), subscribed(book))
    assert lost[:2] == ("lost", [book])
    assert lost.fields["reason"] == "Bybit closed the TCP connection without a close frame"
    assert now - 60_000 < lost.fields["since"] <= now + 1
    assert stalled[:2] == ("stalled", [book])
    assert stalled.fields["reason"] == "no data for 1 s, though pings are answered"
    assert third == last == subscribed(book)
    collector.stops()
    assert len(collector.events()) == 6, "neither the failed attempt nor the stop is one more loss"


@both_ways
def test_delays_are_measured(exchange, collector):
    text = '{"topic":"tickers.BTCUSDT","type":"delta","ts":%d,"data":{"symbol":"BTCUSDT"}}'
    collector.streams("tickers", "BTCUSDT")
    collector.received(1)  # its snapshot

    def measured():
        exchange.publishes(text % ((time.time() - 5) * 1000))
        found = recent(collector.stats.delays, time.monotonic())
        return len(found) > 5 and found

    assert all(4.99 <= delay < 15 for delay in eventually(measured)[1:])


# Subscribing.

NOT_FOUND = "error:handler not found,topic:"


@pytest.mark.parametrize("category", ["linear", "inverse", "spot"])
@pytest.mark.parametrize("unnamed", [False, True], ids=["named", "unnamed"])
@both_ways
def test_a_rejected_topic_costs_only_itself(exchange, collector, category, unnamed):
    exchange.knows(*GOOD, category=category)
    exchange.treats(then=Script(unnamed=unnamed))
    collector.category = category
    collector.streams("tickers", *GOOD[:4], "NOPE", *GOOD[4:], "nope")
    exchange.subscribed(1, topics=13)
    collector.received(13)
    collector.logs("Bybit rejects", 2)
    exchange.drops()
    exchange.subscribed(2, topics=13)
    collector.received(26)
    assert len(collector.lines("Bybit rejects tickers.NOPE: ", logging.ERROR)) == 1
    assert len(collector.lines("Bybit rejects tickers.nope: ", logging.ERROR)) == 1
    assert len(collector.lines(level=logging.ERROR)) == 2
    assert not {"tickers.NOPE", "tickers.nope"} & set().union(*exchange.requested(2)), "not asked for at once again"


def test_a_stream_of_topics_that_another_knows_to_be_rejected_counts_as_answered(exchange, collector):
    exchange.knows("BTCUSDT")
    collector.streams("publicTrade", "BTCUSDT", "NOPE", name="first")
    collector.events(2)  # one is rejected, one subscribed
    collector.streams("publicTrade", "NOPE", name="second")
    second = collector.exchange.streams["second"]
    eventually(lambda: second.answered)
    assert (second.topics, second.rejected) == (1, 1)


def test_a_topic_that_option_rejects_costs_only_itself(exchange, collector):
    bad, good = "BTC-25JUN27-106000-P-USDT", "BTC-25JUN27-106000-C-USDT"
    exchange.treats(then=Script(refuse=(f"tickers.{bad}",)))
    collector.category = "option"
    collector.streams("tickers", bad, good)
    assert f'"topic":"tickers.{good}"' in collector.received(1)[0]
    assert {event.event: event.topics for event in collector.events(2)} == {
        "rejected": [f"tickers.{bad}"],
        "subscribed": [f"tickers.{good}"],
    }


def test_a_topic_that_option_accepts_but_never_feeds_is_logged_once(exchange, collector):
    collector.timeouts = Timeouts(timer=TIMER, first_message=0.3)
    collector.category = "option"
    collector.streams("tickers", "BTC-25JUN27-106000-P-USDT", "BTC-1JAN99-1-P-USDT")
    collector.logs("tickers.BTC-1JAN99-1-P-USDT: accepted, but no data within 0.3 s")
    collector.delivers(connection=1)
    assert len(collector.lines("accepted, but no data")) == 1


def test_a_rejected_topic_is_found_in_a_reason_of_any_length(exchange, collector):
    """Only what is logged and announced is cut: 200 characters."""
    exchange.knows("BTCUSDT")
    name = "X" * 300
    collector.streams("tickers", "BTCUSDT", name)
    reason = (NOT_FOUND + f"tickers.{name}")[:200] + "…"
    assert collector.events(2) == [rejected(f"tickers.{name}", reason), subscribed("tickers.BTCUSDT")]
    assert len(exchange.requested(1)) == 2, "no search for the bad topic by halves"


def test_a_refusal_of_everything_without_a_name_is_a_failed_connection(exchange, collector):
    """Such as an internal error of Bybit's: the topic is asked for again at once."""
    exchange.treats(*[Script(refuse=("tickers.BTCUSDT",), unnamed=True)] * 2)
    collector.streams("tickers", "BTCUSDT")
    collector.delivers(connection=3)
    assert len(collector.lines("the subscription was rejected")) == 2
    assert collector.events() == [subscribed("tickers.BTCUSDT")]


def test_a_callback_that_exits_costs_only_its_message(exchange, collector):
    @raw
    def leave(_message):
        raise SystemExit("bye")

    collector.streams("tickers", "BTCUSDT", callback=leave)
    exchange.subscribed(1)
    exchange.publishes(message("tickers.BTCUSDT"), message("tickers.BTCUSDT"))
    eventually(lambda: collector.stats.callback_failures >= 2)
    assert collector.events() == [subscribed("tickers.BTCUSDT")]


@pytest.mark.parametrize("lends", [True], ids=["reader"])
def test_a_callback_that_exits_on_the_reader_costs_only_its_message(exchange, collector):
    """It is logged by the connection's thread, as the collector asserts."""

    @batched
    def leave(_messages):
        raise SystemExit("bye")

    collector.timeouts = Timeouts(timer=TIMER)
    collector.streams("publicTrade", "BTCUSDT", callback=leave)
    for number in (1, 2, 3):
        exchange.publishes(message("publicTrade.BTCUSDT"))
        eventually(lambda number=number: collector.stats.callback_failures == number)
    assert len(collector.logs("leave failed")) == 1
    assert collector.events() == [subscribed("publicTrade.BTCUSDT")]


@both_ways
def test_consumers_learn_of_the_gap_that_a_defect_of_the_program_makes(exchange, collector, monkeypatch):
    monkeypatch.setattr(Health, "advance", defective_once(Health.advance))
    collector.timeouts = Timeouts(timer=TIMER)
    collector.streams("tickers", "BTCUSDT")
    exchange.subscribed(2)
    events = collector.events(3)
    assert events[0] == events[2] == subscribed("tickers.BTCUSDT")
    event, topics, fields = events[1]
    assert (event, topics, fields["reason"]) == ("lost", ["tickers.BTCUSDT"], "KeyError('a defect')")


def defective_once(advance):
    failures = iter([KeyError("a defect")])

    def defective(health, elapsed, **state):
        if state["subscribed"] and (failure := next(failures, None)):
            raise failure
        advance(health, elapsed, **state)

    return defective


def test_many_topics_go_in_requests_of_the_size_that_spot_allows(exchange, collector):
    symbols = [f"A{number}" for number in range(45)]
    exchange.knows(*symbols, category="spot")
    collector.category = "spot"
    collector.streams("publicTrade", *symbols)
    exchange.subscribed(1, topics=45)
    assert [len(topics) for topics in exchange.requested(1)] == [10, 10, 10, 10, 5]


def test_more_topics_than_a_connection_carries_are_given_up_in_one_sentence(exchange, collector):
    collector.streams("publicTrade", *[f"SYMBOL{number}" for number in range(2000)])
    (line,) = collector.logs("Giving up on stream publicTrade: ")
    assert "characters of topics: one connection carries 21,000" in line
    time.sleep(10 * PAUSE)  # in which a retry would come
    assert collector.lines(level=logging.WARNING) == [line]
    assert not [record for record in collector._caplog.records if record.exc_info]
    assert not exchange.connections
    assert collector.thread.is_alive(), "main would start the thread again"


@pytest.mark.parametrize("data", [0, 1], ids=["no data", "data"])
@both_ways
def test_a_missing_acknowledgement_is_a_failed_connection(exchange, collector, data):
    collector.timeouts = Timeouts(timer=TIMER, acknowledgement=0.3)
    exchange.treats(Script(ack_delay=None, data_before_ack=data))
    exchange.rate = 200
    collector.streams("tickers", "BTCUSDT")
    exchange.subscribed(2)
    assert collector.lines("a subscription was not acknowledged within 0.3 s")


@pytest.mark.parametrize("kind", ["tickers", "publicTrade"])
@both_ways
def test_a_topic_that_has_sent_data_before_its_acknowledgement_is_lost_with_the_connection(exchange, collector, kind):
    exchange.treats(Script(ack_delay=None, data_before_ack=1))
    exchange.rate = 200
    collector.streams(kind, "BTCUSDT")
    collector.received(1)
    exchange.drops()
    lost = collector.events(1)[0]
    assert lost[:2] == ("lost", [f"{kind}.BTCUSDT"])


@pytest.mark.parametrize("before", [0, 1, 5])
@both_ways
def test_data_before_with_and_after_the_acknowledgement_arrives(exchange, collector, before):
    exchange.treats(Script(ack_delay=0 if before == 1 else 0.05, data_before_ack=before))
    exchange.rate = 200
    collector.streams("tickers", "BTCUSDT")
    received = collector.received(20)
    assert received == exchange.connections[0].sent[: len(received)]
    assert len(exchange.connections) == 1


@both_ways
def test_a_thousand_instant_acknowledgements_lose_nothing(exchange, collector):
    """pybit registers a request after sending it, and dies of a faster answer. Here each comes in the same write."""

    class OneTopicPerRequest(Exchange):
        topics_per_request = 1

    symbols = [f"S{number}USDT" for number in range(1000)]
    exchange.knows(*symbols)
    exchange.treats(then=Script(ack_delay=0))
    collector.exchange_type = OneTopicPerRequest
    collector.streams("tickers", *symbols)
    assert collector.received(1000, timeout=30) == exchange.connections[0].sent
    assert len(exchange.requested(1)) == 1000
    assert len(exchange.connections) == 1


# What arrives.


@both_ways
def test_messages_of_any_form_and_size_arrive_as_they_are(exchange, collector):
    texts = [
        '{"id":"x","ts":1,"topic":"publicTrade.BTCUSDT","data":[]}',
        '{ "topic" : "publicTrade.BTCUSDT" , "data" : [ ] }',
        '{"topic":"publicTrade.BTCUSDT","новое":"поле","n":1.50,"big":123456789012345678901234567890,"e":1E-7}',
        '{"topic":"publicTrade.BTCUSDT","slash":"\\/","escaped":"\\u003e"}',
        *(message("publicTrade.BTCUSDT", x='"' + "y" * size + '"') for size in (0, 100, 65_400, 70_000, 5_000_000)),
        message("publicTrade.BTCUSDT"),
    ]
    collector.streams("publicTrade", "BTCUSDT")
    exchange.sends(*texts)
    assert collector.received(len(texts)) == texts


@both_ways
def test_garbage_costs_nothing(exchange, collector):
    collector.streams("publicTrade", "BTCUSDT")
    exchange.sends(
        "", "not JSON", "[1,2]", "7", "null", '"text"', '{"op":"new"}', '{"topic":7}', '{"topic":"tickers.X"}'
    )
    exchange.subscribed().send_binary(b"{\x00")
    collector.delivers(connection=1)
    assert len(collector.received()) == 1
    assert len(collector.lines("Ignoring (logged once)")) == 4
