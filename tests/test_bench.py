"""The benchmark's pure parts: its frames, what it makes of a play, its tables and its chart."""

import itertools
import json
import re
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench import frames
from bench.chart import CHART_RATES, WIDTH, chart
from bench.headroom import keeps, rates, sentence
from bench.measure import Window, delays, result
from bench.report import BURST, SATURATION, Result, Summary, markdown
from bench.sender import joined


def test_frames_are_the_same_for_everybody_and_have_the_recorded_mix():
    _, one = frames.make(1)
    _, other = frames.make(1)
    assert [frame.wire for frame in one] == [frame.wire for frame in other]
    counts = {kind: count / len(one) for kind, (count, *_) in frames.sizes(one).items()}
    assert counts["orderbook delta"] == pytest.approx(0.64, abs=0.02)
    assert counts["tickers delta"] == pytest.approx(0.29, abs=0.02)
    assert counts["publicTrade snapshot"] == pytest.approx(0.06, abs=0.01)


def test_a_marker_is_found_in_every_message_also_after_a_round_through_json():
    _, cycle = frames.make(2)
    for index, frame in enumerate(cycle[:500], 1):
        wire = bytes(frame.mark(index))
        assert set(map(int, frames.MARKER.findall(wire))) == {index}
        message = json.loads(wire[2 if wire[1] < 126 else 4 :])
        assert message["topic"] == frame.topic
        for single in message["data"] if isinstance(message["data"], list) else [message]:
            assert int(frames.MARKER.search(json.dumps(single).encode())[1]) == index


WINDOW = Window(begun=100, ended=200, cpu=1.0)


@pytest.mark.parametrize(
    ("received", "quiet", "late", "missing"),
    [
        ([0, 150, 160, 170], True, 0, 0),
        ([0, 150, 0, 170], False, 0, 1),  # a later one of its connection arrived
        ([0, 150, 160, 0], False, 1, 0),  # may still arrive
        ([0, 150, 160, 0], True, 0, 1),  # nothing is on its way any more
        ([0, 150, 160, 2_000_000_000], True, 1, 0),
    ],
)
def test_late_and_missing_messages(received, quiet, late, missing):
    window = Window(100, 200, 1.0, quiet)
    found = delays(window, [0, 110, 120, 130], received, ["a connection"], paced=True)
    assert (found.count, found.late, found.missing) == (3, late, missing)


def test_messages_outside_the_window_are_not_counted():
    found = delays(WINDOW, [0, 99, 100, 199, 200], [0, 101, 105, 210, 220], ["a connection"], paced=True)
    assert (found.count, found.delays) == (2, [5, 11])


FACTS = {"runner": "ours", "turn": 1, "memory": 40.0, "again": 0, "publishes": 3, "unmarked": 0, "lag": 0.0}
FACTS |= {"lost_connections": 0}
MS = 1_000_000  # nanoseconds


@pytest.mark.parametrize(
    ("received", "quiet", "last", "late", "missing", "behind"),
    [
        ([0, 2, 9, 5], True, 8, 0, 0, False),
        ([0, 2, 0, 5], False, 4, 0, 1, True),  # a later one of its connection arrived
        ([0, 2, 5, 0], True, 4, 0, 1, True),
        ([0, 2, 5, 0], False, 4, 1, 0, True),  # not done when the time was over
        ([0, 2, 5, 9_000], True, 8_999, 0, 0, False),  # a burst that takes long is not late
        ([0, 0, 0, 0], True, None, 0, 3, True),
    ],
)
def test_a_burst_lasts_from_its_first_message_sent_to_the_last_one_received(
    received, quiet, last, late, missing, behind
):
    window = Window(1 * MS, 20_000 * MS, 0.006, quiet)
    sent, arrivals = [0, *[1 * MS] * 3], [at * MS for at in received]
    found = result(window, sent, arrivals, ["a connection"], FACTS | {"rate": BURST})
    assert (found.last, found.late, found.missing, found.count) == (last, late, missing, 3)
    assert found.behind is behind
    assert (found.p50, found.p99, found.p999, found.worst) == (None,) * 4
    arrived = sum(at > 0 for at in received)
    assert found.cpu == (pytest.approx(6_000 / arrived) if arrived else None)


def test_percentiles_of_a_rate_are_in_order_and_saturation_has_none():
    sent = [0, *[100] * 10_000]
    received = [0, *(100 + n * MS for n in range(1, 10_001))]
    window = Window(100, 20_000 * MS, 1.0, True)
    found = result(window, sent, received, ["a connection"], FACTS | {"rate": 100})
    assert (found.p50, found.p99, found.p999, found.worst) == (5_001, 9_901, 9_991, 10_000)
    flooded = result(window, sent, received, ["a connection"], FACTS | {"rate": SATURATION})
    assert {getattr(flooded, name) for name in ("p50", "p99", "p999", "worst", "last")} == {None}


def play(runner, rate, turn=1, **changed):
    values = {"arrived": 100_000.0, "cpu": 5.0, "p50": None, "p99": None, "p999": None, "worst": None, "last": None}
    values |= {"late": 0, "missing": 0, "count": 1_000}
    if rate == BURST:
        values["last"] = 250.0
    elif rate != SATURATION:
        values |= {"p50": 0.1, "p99": 0.2, "p999": 0.3, "worst": 0.4}
    return Result(**FACTS | values | {"runner": runner, "rate": rate, "turn": turn} | changed)


RATES = (SATURATION, BURST, 100, *CHART_RATES)
EVERY = ["ours", "naive", "go", "limit", "bybit-api"]


def summary(runners=EVERY, rates=RATES, **changed):
    return Summary(play(runner, rate, **changed.get(runner, {})) for rate in rates for runner in runners)


def rows(table):
    """By runner, the cells by column; of columns with the same name the first."""
    return {row[0]: dict(reversed(list(zip(table.header, row, strict=True)))) for row in table.rows}


def test_there_is_one_table_for_each_rate_with_a_row_for_each_runner():
    tables = summary().tables()
    titles = ["At saturation", "A burst of 1,000 messages"]
    assert [table.title for table in tables] == titles + [f"At {rate:,} messages/s" for rate in (100, *CHART_RATES)]
    for table in tables:
        assert [row[0] for row in table.rows] == EVERY
        assert {len(row) for row in table.rows} == {len(table.header)}
    assert "p99.9 ms" in tables[2].header
    assert rows(tables[2])["ours"]["p99.9 ms"] == "0.30"


@pytest.mark.parametrize(
    ("changed", "shown", "lost"),
    [
        ({}, "250", "0"),
        ({"missing": 5}, "250", "0.5%"),
        ({"missing": 900}, "loses", "90.0%"),
        ({"late": 1}, "behind", "0"),
        ({"last": 12_000.0}, "12,000", "0"),
    ],
)
def test_what_the_table_of_the_burst_says_of_a_runner(changed, shown, lost):
    (table,) = summary(rates=[BURST], naive=changed).tables()
    naive = rows(table)["naive"]
    assert (naive["last after ms"], naive["lost"], naive["CPU µs/message"]) == (shown, lost, "5.00")


def test_a_burst_is_compared_within_a_round():
    plays = [play("ours", BURST, turn, last=100.0 * turn) for turn in (1, 2, 3)]
    plays += [play("go", BURST, turn, last=50.0 * turn) for turn in (1, 2, 3)]
    (table,) = Summary(plays).tables()
    assert rows(table)["ours"]["last after ms"] == "200"
    assert rows(table)["ours"]["× go"] == "2.00"


def test_a_burst_is_no_rate_that_a_runner_keeps_up_with():
    assert summary(rates=[SATURATION, BURST]).kept("ours") == 0
    assert summary(rates=[SATURATION, BURST, 100]).kept("ours") == 100


@pytest.mark.parametrize("rate", RATES)
def test_the_terminal_names_the_play_and_its_figures(rate):
    line = play("ours", rate).line()
    assert {SATURATION: "saturation", BURST: "burst"}.get(rate, f"{rate:,}/s") in line
    assert ("p99.9" in line) is (rate > 0)
    assert ("last after 250 ms" in line) is (rate == BURST)


def drawing(found):
    """The texts and the bars (x, width) of a chart."""
    root = ElementTree.fromstring(chart(found))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    bars = [element for element in root.iter() if element.tag.endswith("rect")]
    return texts, [(float(bar.get("x")), float(bar.get("width"))) for bar in bars]


@pytest.mark.parametrize("rates", [RATES[:count] for count in range(1, len(RATES) + 1)])
def test_the_chart_has_a_bar_for_each_runner_and_each_figure_that_it_shows(rates):
    texts, bars = drawing(summary(rates=rates))
    paced = len(set(rates) & set(CHART_RATES))
    assert len(bars) == len(EVERY) * (2 * paced + (SATURATION in rates) + 2 * (BURST in rates))
    assert all(x + width < WIDTH for x, width in bars)
    for rate in CHART_RATES:
        assert (f"{rate:,}/s" in texts) is (f"p99 at {rate:,}/s" in texts) is (rate in rates)


def test_columns_of_the_chart_do_not_overlap_whatever_the_values():
    sizes = {runner: {"cpu": 0.8 * 7**n} for n, runner in enumerate(EVERY)}
    _, bars = drawing(summary(rates=RATES, **sizes))
    cost = sorted(set(bars[: len(bars) * 5 // 9]))  # the first panel has five columns, the second four
    for (x, width), (following, _) in itertools.pairwise(cost):
        assert x == following or x + width < following


def test_the_chart_says_why_a_bar_is_missing():
    found = Summary([play("ours", 800), play("naive", 800, late=900), play("ccxt", 800, missing=900)])
    texts, bars = drawing(found)
    assert "behind" in texts
    assert "loses" in texts
    assert len(bars) == 4  # three with a CPU time, one with a delay


@pytest.mark.parametrize(
    ("sent", "took", "waiting", "lag", "kept"),
    [
        (10_000, 1.0, 0, 0.001, True),
        (10_000, 1.02, 0, 0.001, False),
        (10_000, 1.0, 200, 0.001, False),  # the reader has not taken them
        (10_000, 1.0, 0, 0.06, False),
    ],
)
def test_when_the_sender_keeps_a_rate(sent, took, waiting, lag, kept):
    assert keeps(10_000, {"sent": sent, "took": took, "waiting": waiting, "lag": lag}) is kept


def test_the_rates_of_the_sender_rise_and_the_sentence_names_the_last_one_kept():
    tried = list(itertools.islice(rates(), 20))
    assert all(one < other for one, other in itertools.pairwise(tried))
    assert "keeps rates of up to 182,000 messages/s, and sends 711,000/s" in sentence(182_000, 711_094.3)
    assert "keeps rates of less than 10,000 messages/s" in sentence(0, 711_094.3)


def test_joined_frames_keep_their_order_within_a_connection_and_none_is_left_out():
    _, cycle = frames.make(1)
    route = [(replace(frame, wire=frame.wire[:]), sys.intern(frame.topic.partition(".")[0])) for frame in cycle[:100]]
    indexes = {client: list(map(int, frames.MARKER.findall(data))) for client, data in joined(route, 90, 60)}
    assert sorted({index for found in indexes.values() for index in found}) == list(range(91, 151))
    assert all(found == sorted(found) for found in indexes.values())


def test_the_report_has_the_tables_and_the_sentence_about_the_sender():
    facts = {"date": "2026-01-01", "machine": "two cores", "versions": {}, "rounds": 1, "seconds": 1, "connections": 4}
    facts |= {"frames_per_write_at_saturation": 16, "frames": {}, "runners": {"ours": "this"}, "skipped": {}}
    facts |= {"lag": "The lag.", "sender": sentence(182_000, 711_094.3), "command": "python -m bench"}
    text = markdown(summary(), facts, "results.svg")
    assert facts["sender"] in text
    assert len(re.findall("^### ", text, re.M)) == len(RATES)
