"""An outage of Bybit: all streams are back soon after it, and nobody is hammered meanwhile."""

import time
from functools import partial

import pytest
from vocabulary import TIMER, StandIn, Timeouts

from conf.rules import load
from relay.backoff import Backoff
from relay.bybit.exchange import LOOK_AGAIN, NEW_CONNECTIONS_BURST, NEW_CONNECTIONS_RATE
from relay.bybit.pacer import Pacer

DELAY, DELAY_MAX, PROBE, STEP = 0.1, 0.5, 0.1, 0.5  # seconds; the real ones are ten times as long
SLACK = 2.0  # seconds that a busy machine may take for twenty handshakes


def start(collector, streams):
    collector.pacer = Pacer(NEW_CONNECTIONS_BURST, NEW_CONNECTIONS_RATE, PROBE)
    collector.backoff = partial(Backoff, DELAY, DELAY_MAX)
    collector.timeouts = Timeouts(timer=TIMER, silence=1.0, ping_interval=0.2, connect_step=STEP)
    for number in range(streams):
        collector.streams("publicTrade", "BTCUSDT", name=f"trades {number}")


def all_are_up(exchange, streams):
    exchange.wait(lambda: sum(bool(one.topics) for one in exchange.open_connections()) == streams, 20)


def attempts(collector):
    return len(collector.lines("Lost Bybit: "))


@pytest.mark.parametrize("streams", [4, 20])
def test_after_an_outage_all_streams_are_back_within_the_longest_delay(exchange, collector, streams):
    start(collector, streams)
    all_are_up(exchange, streams)
    began = time.monotonic()
    exchange.away()
    collector.logs("refused", times=streams + 15)  # long enough for every delay to have grown
    assert attempts(collector) <= 2 * streams + 1 + (time.monotonic() - began) / PROBE
    exchange.back()
    began = time.monotonic()
    all_are_up(exchange, streams)
    assert time.monotonic() - began < DELAY_MAX + PROBE + LOOK_AGAIN + SLACK


def test_after_an_outage_that_hangs_no_stream_waits_for_what_is_never_answered(exchange, collector):
    streams = 20
    start(collector, streams)
    all_are_up(exchange, streams)
    exchange.away(hang=True)
    collector.logs("timed out", times=streams)
    exchange.back()
    began = time.monotonic()
    all_are_up(exchange, streams)
    assert time.monotonic() - began < STEP + DELAY_MAX + PROBE + LOOK_AGAIN + SLACK


def test_a_stream_that_waits_for_its_place_is_not_one_that_hangs(exchange, collector):
    with StandIn(rate=0) as down:
        collector.reads_from(down)
    start(collector, 5)
    collector.logs("refused", times=12)
    now = time.monotonic()
    assert all(stats.heartbeat_due > now - 1 for stats in collector.exchange.streams.values())


def test_the_longest_delay_is_a_few_seconds():
    assert load({}).reconnect_delay_max == 5
    assert load({"RECONNECT_DELAY": "90"}).reconnect_delay_max == 90
    assert Timeouts().connect_step + load({}).reconnect_delay_max < 10
