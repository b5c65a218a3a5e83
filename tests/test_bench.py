"""The benchmark's pure parts: its frames, and what it makes of a play."""

import json

import pytest

from bench import frames
from bench.measure import Window, delays


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
