"""The judge: what it finds in a stream into which known faults were put."""

import json
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.bybit.feeds import new_feed
from sandbox.bybit.market import Market, instrument
from sandbox.bybit.script import Knobs
from sandbox.bybit.view import View
from sandbox.judge import Findings, backward, judge, longest_silence

BOOK, TRADES, TICKER = "orderbook.50.BTCUSDT", "publicTrade.BTCUSDT", "tickers.BTCUSDT"
TOPICS = {
    "linear": [BOOK, "orderbook.1.BTCUSDT", TRADES, TICKER, "allLiquidation.BTCUSDT"],
    "spot": [BOOK, TRADES, TICKER],
    "option": ["orderbook.25.BTC-25JUN27-106000-P-USDT", "publicTrade.BTC", "tickers.BTC-25JUN27-106000-P-USDT"],
}


@dataclass
class World:
    """Frames of the stand-in's market, one each 10 ms."""

    category: str
    story: list  # (time, topic, text) in order

    @property
    def truth(self):
        return {
            topic: [(at, text) for at, each, text in self.story if each == topic] for topic in TOPICS[self.category]
        }

    def stream(self, delay=0.001):
        return [(at + delay, text) for at, _, text in self.story]


def world(category, picks):
    """Frames of the topics with these numbers; each topic begins with one."""
    now = [1_790_000_000.0]
    markets, feeds, story = {}, {}, []

    def market(symbol):
        if symbol not in markets:
            markets[symbol] = Market(instrument(category, symbol), 1, lambda: now[0])
        return markets[symbol]

    topics = TOPICS[category]
    for topic in topics:
        feeds[topic] = new_feed(topic, market, ("BTC-25JUN27-106000-P-USDT",) if topic == "publicTrade.BTC" else ())
    for n in [*range(len(topics)), *picks]:
        now[0] += 0.01
        topic = topics[n % len(topics)]
        story.append((now[0], topic, feeds[topic].advance()))
    return World(category, story)


WORLDS = st.builds(world, st.sampled_from(sorted(TOPICS)), st.lists(st.integers(0, 4), min_size=10, max_size=60))


def units(text):
    """How much a frame counts for."""
    message = json.loads(text)
    return len(message["data"]) if message["topic"].startswith("publicTrade") else 1


def is_state(text):
    """Snapshots of books and tickers may come again at any time."""
    message = json.loads(text)
    numbered = message["topic"].startswith("orderbook") or "cs" in message
    return numbered and message["type"] == "snapshot"


def faults(findings):
    return findings.lost, findings.twice, findings.disorder, findings.foreign


@given(WORLDS)
def test_nothing_is_found_where_nothing_is_wrong(one):
    verdict = judge(one.truth, one.stream())
    count = sum(units(text) for _, _, text in one.story)
    assert verdict.total == Findings(
        made=count,
        received=count,
        silence=pytest.approx(0.01, abs=1e-5),
        silent_from=verdict.total.silent_from,
        delay=pytest.approx(0.001, abs=1e-5),
    )
    assert set(verdict.topics) == set(TOPICS[one.category])


@given(WORLDS, st.integers(0, 60), st.booleans(), st.booleans())
def test_own_ts_and_trades_cut_otherwise_are_no_difference(one, number, own_ts, cut_trades):
    knobs = Knobs()
    knobs.own_ts, knobs.cut_trades = own_ts, cut_trades
    view = View(knobs, number)
    stream = [(at, text) for at, topic, frame in one.story for text in view.texts(topic, frame)]
    stream += [(2e9, text) for topic in TOPICS[one.category] for text in view.release(topic)]
    verdict = judge(one.truth, stream)
    assert faults(verdict.total) == (0, 0, 0, 0), verdict
    assert verdict.total.received == verdict.total.made


@given(WORLDS, st.data())
def test_what_is_left_out_is_lost(one, data):
    first = len(TOPICS[one.category])  # the frames with which the topics begin
    out = data.draw(st.sets(st.integers(first, len(one.story) - 1)))
    verdict = judge(one.truth, [each for n, each in enumerate(one.stream()) if n not in out])
    lost = Counter()
    for n in out:
        lost[one.story[n][1]] += units(one.story[n][2])
    assert {topic: each.lost for topic, each in verdict.topics.items() if each.lost} == dict(lost)
    assert faults(verdict.total) == (lost.total(), 0, 0, 0)
    assert set(verdict.total.missing) == {one.story[n][0] for n in out}


@given(WORLDS, st.data())
def test_what_comes_again_comes_twice(one, data):
    """For instance what was in flight when the connection to Redis broke. Snapshots of states are meant to."""
    stream = one.stream()
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(stream))] * 2)))
    times = data.draw(st.integers(1, 3))
    again = stream[begin:end]
    verdict = judge(one.truth, stream[:end] + again * times + stream[end:])
    count = times * sum(units(text) for _, text in again if not is_state(text))
    assert faults(verdict.total) == (0, count, 0, 0)


@given(WORLDS, st.data())
def test_order_is_looked_at_within_a_topic(one, data):
    stream = data.draw(st.permutations(one.stream()))
    since = one.story[0][0]
    verdict = judge(one.truth, stream, since=since)
    disorder = 0
    for topic in TOPICS[one.category]:
        where = {text: n for n, (_, each, text) in enumerate(one.story) if each == topic}
        places = [where[text] for _, text in stream if text in where]
        for n, place in enumerate(places):
            if any(before > place for before in places[:n]):
                disorder += units(one.story[place][2])
    assert faults(verdict.total) == (0, 0, disorder, 0)


@given(WORLDS, st.data())
def test_what_nobody_made_is_foreign(one, data):
    others = world(one.category, range(len(TOPICS[one.category]))).stream()
    alien = [text.replace('"u":', '"u":9').replace('"cs":', '"cs":9').replace('"i":"', '"i":"x') for _, text in others]
    alien = [text.replace('"T":', '"T":9').replace('"symbol":"', '"symbol":"x') for text in alien]
    stream = one.stream()
    place = data.draw(st.integers(0, len(stream)))
    verdict = judge(one.truth, [*stream[:place], *((2e9, text) for text in alien), *stream[place:]])
    assert faults(verdict.total)[:2] == (0, 0)
    assert verdict.total.foreign == sum(map(units, alien))


@given(WORLDS, st.data())
def test_the_snapshots_of_new_subscriptions_are_no_faults(one, data):
    """They have the number of the latest frame."""
    stream, expected = [], 0
    chosen = data.draw(st.sets(st.integers(0, len(one.story) - 1)))
    for n, (at, topic, text) in enumerate(one.story):
        stream.append((at, text))
        message = json.loads(text)
        numbered = topic.startswith("orderbook") or "cs" in message
        if n in chosen and numbered:
            expected += message["type"] == "delta"
            stream.append((at, text.replace('"type":"delta"', '"type":"snapshot"')))
    verdict = judge(one.truth, stream)
    assert faults(verdict.total) == (0, 0, 0, 0)
    assert verdict.total.snapshots == expected


def book(u, kind="delta"):
    return f'{{"topic":"{BOOK}","type":"{kind}","ts":{1790000000000 + u},"data":{{"b":[],"a":[],"u":{u},"seq":1}}}}'


def books(*numbers):
    return [(float(u), book(u)) for u in numbers]


def test_the_snapshot_before_the_first_delta_is_no_fault():
    stream = [(0.0, book(4, "snapshot")), *books(5, 6, 7)]
    verdict = judge({BOOK: books(5, 6, 7)}, stream)
    assert faults(verdict.total) == (0, 0, 0, 0)
    assert verdict.total.snapshots == 1
    assert faults(judge({BOOK: []}, stream[:1]).total) == (0, 0, 0, 0)
    assert judge({BOOK: books(3, 4, 5, 6, 7)}, [stream[0], *books(7)]).total.missing == (5.0, 6.0)


def test_a_snapshot_that_throws_the_book_back_is_out_of_order():
    stream = [*books(5, 6, 7), (7.5, book(6, "snapshot")), (7.6, book(6, "snapshot")), *books(8)]
    assert faults(judge({BOOK: books(5, 6, 7, 8)}, stream).total) == (0, 0, 1, 0)


def test_a_snapshot_is_not_the_delta_with_its_number():
    """A consumer that counts messages has lost 6 and 7, though its book is right again."""
    stream = [*books(5), (7.0, book(7, "snapshot")), *books(8)]
    verdict = judge({BOOK: books(5, 6, 7, 8)}, stream)
    assert (verdict.total.lost, verdict.total.missing) == (2, (6.0, 7.0))


def test_a_snapshot_from_the_future_is_foreign():
    assert judge({BOOK: books(5)}, [*books(5), (6.0, book(9, "snapshot"))]).total.foreign == 1


def test_what_is_due():
    truth = {BOOK: books(*range(1, 11)), TICKER: [(5.0, '{"topic":"tickers.BTCUSDT","type":"delta","cs":1,"data":{}}')]}
    late = books(4, 5, 7)
    assert judge(truth, late, until=7.0).topics[BOOK].missing == (6.0,)
    assert judge(truth, late).topics[BOOK].missing == (6.0, 8.0, 9.0, 10.0)
    assert judge(truth, late, since=2.0, until=7.0).topics[BOOK].missing == (2.0, 3.0, 6.0)
    assert judge(truth, late).topics[TICKER].missing == (5.0,)
    assert judge(truth, books(6)).topics[TICKER].missing == ()
    assert judge(truth, []).total.lost == 11


def test_what_is_no_data_is_ignored():
    stream = [(1.0, b'{"event":"lost","stream":"Trades","topics":["publicTrade.BTCUSDT"],"ts":1}'), *books(5)]
    assert judge({BOOK: books(5)}, stream).total == Findings(made=1, received=1)


def test_payloads_may_be_bytes():
    assert faults(judge({BOOK: books(5)}, [(5.0, book(5).encode())]).total) == (0, 0, 0, 0)


def test_the_longest_silence():
    assert longest_silence([]) == longest_silence([1.0]) == (0.0, 0.0)
    assert longest_silence([1.0, 1.5, 4.0, 5.0]) == (2.5, 1.5)
    verdict = judge({BOOK: books(1, 2, 6)}, books(1, 2, 6))
    assert (verdict.total.silence, verdict.total.silent_from) == (4.0, 2.0)


@given(st.lists(st.integers(0, 20)))
def test_how_many_stand_after_a_higher_one(places):
    assert backward(places) == sum(any(other > each for other in places[:n]) for n, each in enumerate(places))


def test_the_verdict_tells_all_in_words():
    text = str(judge({BOOK: books(5, 6)}, books(5)))
    assert text.startswith("1 of 2 received, 1 lost, 0 twice")
    assert f"\n  {BOOK}: 1 of 2 received" in text
