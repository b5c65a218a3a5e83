"""Symbols come and go for ever, as contracts of options do: what is remembered of them has a bound, and of those that
are still there nothing is forgotten.
"""

import time
from collections import Counter

import pytest
from test_snapshots import BOOK, PREFIX, Noting, request
from test_trust import Server
from vocabulary import eventually, message

from relay.bybit import rejected, snapshots
from relay.bybit.rejected import RejectedTopics
from relay.bybit.snapshots import Snapshots
from relay.channels import by_symbol
from relay.log import LIMIT
from relay.redis import backlog, durable, notices, pending
from relay.redis.backlog import Backlog
from relay.redis.durable import DurablePipeline
from relay.redis.lines import EARLY
from relay.redis.notices import MORE
from relay.redis.pending import Pending
from relay.redis.pipeline import Pipeline
from relay.redis.standby import Standby


def frame(topic, number):
    return b'{"topic":"%b","type":"snapshot","ts":%d,"data":[]}' % (topic.encode(), 1_790_000_000_000 + number)


# Towards Redis.


@pytest.fixture
def few_channels(monkeypatch):
    for module in (backlog, durable):
        monkeypatch.setattr(module, "MAX_CHANNELS", 10)


def test_the_channels_that_are_known_are_those_named_and_the_latest(few_channels):
    kept = Backlog(1 << 20, channels=["named"])
    for number in range(1000):
        for channel in ("busy", f"c{number}"):
            kept.append(channel, b"text")
        assert {"named", "busy", *(f"c{each}" for each in range(max(0, number - 7), number + 1))} <= set(kept.channels)
        assert len(kept.channels) <= 21
    pipeline = Pipeline(kept, "status", lambda *_: b"")
    words = [command.split(b"\r\n") for command in pipeline.batch()]
    assert [one[4].decode() for one in words] == [each for number in range(1000) for each in ("busy", f"c{number}")]


def test_what_makes_commands_for_the_streams_of_redis_is_bounded(few_channels):
    pipeline = DurablePipeline(Backlog(1 << 20), "status", lambda *_: b"", 1000)
    for number in range(100):
        pipeline.backlog.append(f"c{number}", b"text")
        assert b"XADD\r\n$%d\r\nc%d\r\n" % (len(f"c{number}"), number) in pipeline.take()
    assert len(pipeline._heads) <= 10


def test_losses_are_counted_by_channel_up_to_a_bound_and_all_of_them(monkeypatch):
    monkeypatch.setattr(notices, "MAX_COUNTED", 3)
    pipeline = Pipeline(Backlog(1 << 20), "status", lambda *_: b"")
    for channel in [*"abcde", *"abcde"]:
        pipeline.backlog.append(channel, b"text")
    pipeline.take()
    pipeline.receive(b"-ERR no\r\n" * 10)
    assert pipeline.dropped == {"a": 2, "b": 2, "c": 2, MORE: 4}
    pipeline.backlog.limit = pipeline.backlog._threshold = 0
    for channel in "defgh":
        pipeline.backlog.append(channel, b"text")
    assert pipeline.dropped.total() == 15
    assert len(pipeline.dropped) <= 7
    announced = pipeline.backlog.take_unannounced() + pipeline._unannounced
    assert announced == Counter("abcdeabcdedefgh"), "consumers are told of each channel"


def test_rejections_are_shown_of_some_channels_for_each_error():
    pipeline = Pipeline(Backlog(1 << 24), "status", lambda *_: b"")
    for error in (b"-NOPERM no", b"-OOM no"):
        for number in range(LIMIT + 100):
            pipeline.backlog.append(f"c{number}", b"text")
        while pipeline.take():
            pipeline.receive(b"%b\r\n" % error * len(pipeline.in_flight))
    assert Counter(one.reason for one in pipeline.rejections) == {"NOPERM no": LIMIT, "OOM no": LIMIT}
    assert pipeline.rejected.total() == 2 * (LIMIT + 100)


def test_nobody_is_expected_on_a_channel_that_is_not_known_any_more():
    """Its consumer has gone without a probe that could see it: a restart of Redis must not wait for it."""
    server = Server()
    server.connect()
    server.probes()
    assert server.trust.probe.expected == {b"a": 1}
    for _ in range(2):
        server.trust.channels(["b"])
        server.trust.probe.queries(["b"])[2].on_reply(0)
        server.looks()
    assert server.trust.probe.expected == {}
    assert server.trust.probe.subscribers == {b"": 0}


class Known:
    """A publisher and its watch, of which only the channels matter."""

    status, standby_channel, is_open, new_connection = "status", "watchers", True, None

    def __init__(self):
        self.channels, self.opened = [], []

    def open(self, channels, patterns):
        self.opened.append(set(channels))


def test_a_standby_subscribes_to_a_channel_that_takes_the_place_of_another():
    known = Known()
    standby = Standby(known, None, ["named"])
    standby._watch = known
    for known.channels in (["a"], ["b"], ["b"]):
        standby.subscribe()
        known.channels = list(known.channels)
    assert [each - {"named", "status", "watchers"} for each in known.opened[:2]] == [{"a"}, {"b"}]


def test_a_standby_forgets_the_topics_of_which_it_keeps_nothing(monkeypatch):
    monkeypatch.setattr(pending, "TIDY_EVERY", 10)
    kept = Pending(1 << 20)
    kept.add(b"command", "c", frame("stays", 0), 0)
    for number in range(100):
        now, text = 1000 * number, frame(f"gone{number}", number)
        kept.add(b"command", "c", text, now)
        kept.strike("c", text, now)
    assert len(kept) == 1
    assert len(kept._lines) <= 22
    kept.strike("c", early := frame("early", 0), now)
    for number in range(30):
        kept.add(b"command", "c", frame(f"more{number}", number), now + EARLY)
    kept.add(b"command", "c", early, now + EARLY)
    assert len(kept) == 31, "what the leader has published is not kept"


def test_a_standby_does_not_forget_what_the_limit_took_until_that_is_known_to_be_published(monkeypatch):
    monkeypatch.setattr(pending, "TIDY_EVERY", 10)
    kept = Pending(1000)

    def churn(now):
        for number in range(20):
            text = frame(f"gone{number}", 0)
            kept.add(b"command", "other", text, now)
            kept.strike("other", text, now)

    for number in range(20):
        kept.add(b"command", "c", frame(f"t{number}", 0), 100)
    kept.prune(100)
    churn(100)
    assert sum(line.lost for line in kept._lines.values()) == kept.overflowed >= 10
    kept.prune(101)
    for _ in range(2):
        churn(101)
    assert kept.take() == ([], Counter())


def test_the_channels_of_symbols_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr("relay.channels.MAX_REMEMBERED", 10)
    got = []
    publish = by_symbol(lambda channel, _: got.append(channel))
    for number in range(100):
        publish("trades", frame(f"publicTrade.S{number}USDT", 0))
    (kinds,) = [cell.cell_contents for cell in publish.__closure__ if isinstance(cell.cell_contents, dict)]
    assert len(kinds["trades"].remembered) <= 10
    assert got == [f"trades:S{number}USDT" for number in range(100)]


# Towards Bybit.


def test_rejections_are_remembered_up_to_a_bound_the_latest_of_them(monkeypatch):
    monkeypatch.setattr(rejected, "MAX_REMEMBERED", 10)
    memory = RejectedTopics(retry_after=60)
    for number in range(100):
        memory.add(f"t{number}", number)
        assert all(memory.blocks(f"t{each}", number) for each in range(max(0, number - 3), number + 1))
    assert len(memory._until) <= 10


def test_a_message_that_comes_after_its_topic_has_left_is_not_remembered(exchange, collector):
    topics = [f"orderbook.50.S{number}USDT" for number in range(3)]
    exchange.knows("S0USDT", "S1USDT", "S2USDT")
    collector.assigns("orderbook", *topics[:2])
    collector.streams("orderbook", "S0USDT")
    collector.received(2)
    collector.assigns("orderbook", topics[0])
    repair = collector.exchange._running["orderbook"]._repair
    eventually(lambda: repair._topics == {topics[0].encode()})
    text = message(topics[1], u=7, seq=1)
    exchange.sends(text)
    eventually(lambda: text in collector.received())
    collector.assigns("orderbook", topics[0], topics[2])
    collector.received(4)
    eventually(lambda: repair._sequence.updates().keys() == {topics[0].encode(), topics[2].encode()})


def test_a_side_connection_that_has_served_many_topics_is_replaced_while_nobody_waits(exchange, collector, monkeypatch):
    monkeypatch.setattr(snapshots, "MAX_SERVED", 2)
    monkeypatch.setattr(snapshots, "FRESH_EVERY", 0.0)
    symbols = [f"S{number}USDT" for number in range(4)]
    exchange.knows(*symbols)
    collector.streams("orderbook", *symbols)
    eventually(lambda: collector.stats.subscribed == 4)
    replies = Noting()
    service = Snapshots(collector.exchange, replies, PREFIX)
    service.start()
    for number, symbol in enumerate(symbols):
        topic = f"orderbook.50.{symbol}"
        service.receive(request(topic).encode())
        eventually(lambda number=number: sum(map(len, replies.sent)) == number + 1)
        eventually(lambda: exchange.open_connections()[1:] == [] or not exchange.connections[-1].topics)
        if number == 2:
            eventually(lambda: len(exchange.open_connections()) == 1)
    assert [reply for part in replies.sent for reply, _ in part] == [f"{PREFIX}x"] * 4
    assert len(exchange.connections) == 3
    collector.stop.set()
    collector.exchange.close_all()
    service.join(time.monotonic() + 5)


def test_the_reasons_of_rejections_on_the_side_are_bounded(collector):
    side = Snapshots(collector.exchange, Noting(), PREFIX)._side
    for number in range(10_000):
        side.announce("rejected", "Snapshots", [f"{BOOK}{number}"], reason="no")
    assert len(side._reasons) <= snapshots.MAX_REASONS
    assert side._reasons[f"{BOOK}9999"] == "no"
