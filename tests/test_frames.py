"""WebSocket frames: what a server wrote is what is read, however the bytes are cut; nothing else gets through."""

import gc
import random
import time
import weakref
from itertools import cycle, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from relay.bybit.frames import Closed, FrameReader, ProtocolError

BORDERS = (0, 1, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537)


def frame(opcode, payload=b"", fin=True):
    """The bytes of a frame as a server writes it."""
    return Frame(Opcode(opcode), payload, fin).serialize(mask=False)


def text(payload):
    return frame(Opcode.TEXT, payload)


def kept(reader):
    """Bytes that the reader holds between two chunks."""
    return sum(len(value) for value in vars(reader).values() if isinstance(value, bytes | bytearray))


def feed(reader, data, sizes):
    """Feeds data in chunks of these sizes, over and over. Returns messages and pings."""
    messages, pings, at = [], [], 0
    for size in cycle(sizes):
        if at >= len(data):
            return messages, pings
        messages += reader.feed(data[at : at + size])
        pings += reader.pings
        at += size


payloads = st.builds(
    lambda size, seed: random.Random(seed).randbytes(size),
    st.one_of(st.integers(0, 300), st.sampled_from(BORDERS)),
    st.integers(0, 1000),
)
chunk_sizes = st.lists(st.one_of(st.integers(1, 10), st.integers(1, 70_000)), min_size=1, max_size=5)


@st.composite
def conversations(draw):
    """Bytes of a server, and the messages and pings in them."""
    data, messages, pings = [], [], []

    def control():
        for opcode in draw(st.lists(st.sampled_from((Opcode.PING, Opcode.PONG)), max_size=2)):
            payload = draw(st.binary(max_size=125))
            data.append(frame(opcode, payload))
            if opcode is Opcode.PING:
                pings.append(payload)

    for parts in draw(st.lists(st.lists(payloads, min_size=1, max_size=4), max_size=6)):
        opcode = draw(st.sampled_from((Opcode.TEXT, Opcode.BINARY)))
        for number, part in enumerate(parts):
            control()
            data.append(frame(Opcode.CONT if number else opcode, part, fin=number == len(parts) - 1))
        messages.append(b"".join(parts))
    control()
    return b"".join(data), messages, pings


@settings(deadline=None)
@given(conversations(), chunk_sizes)
def test_messages_arrive_as_the_server_wrote_them_however_the_bytes_are_cut(conversation, sizes):
    data, messages, pings = conversation
    reader = FrameReader()
    assert feed(reader, data, sizes) == (messages, pings)
    assert reader.error is None
    assert kept(reader) == 0


@pytest.mark.parametrize("size", BORDERS)
def test_a_message_arrives_byte_by_byte(size):
    payload = random.Random(size).randbytes(size)
    data = text(payload) + frame(Opcode.PING, b"p") + text(b"next")
    assert feed(FrameReader(), data, [1]) == ([payload, b"next"], [b"p"])


@pytest.mark.parametrize("size", BORDERS)
@pytest.mark.parametrize("short", range(1, 12))
def test_a_message_whose_end_comes_later_arrives_then(size, short):
    payload = random.Random(size).randbytes(size)
    reader, data = FrameReader(), text(b"before") + text(payload)
    cut = max(len(data) - short, len(text(b"before")))
    assert reader.feed(data[:cut]) == [b"before"]
    assert reader.feed(data[cut:] + text(b"after")) == [payload, b"after"]


def test_a_ping_between_two_fragments_is_reported_with_its_chunk_and_only_with_it():
    reader = FrameReader()
    assert reader.feed(frame(Opcode.TEXT, b"one ", fin=False) + frame(Opcode.PING, b"now")) == []
    assert reader.pings == [b"now"]
    assert reader.feed(frame(Opcode.CONT, b"message")) == [b"one message"]
    assert reader.pings == []


def test_alive_tells_whether_the_chunk_completed_something_and_no_message_is_open():
    reader = FrameReader()

    def alive(chunk):
        reader.feed(chunk)
        return reader.alive

    message = text(b"x" * 200)
    assert not alive(b"")
    assert not alive(message[:1])
    assert not alive(message[1:3])
    assert not alive(message[3:100])
    assert alive(message[100:])
    assert not alive(b"")
    assert alive(frame(Opcode.PONG))
    assert alive(frame(Opcode.PING))
    assert not alive(frame(Opcode.TEXT, fin=False))
    assert not alive(frame(Opcode.CONT, fin=False) + frame(Opcode.PONG))
    assert alive(frame(Opcode.CONT, b"end") + message[:50])
    assert not alive(message[50:60])


# What no server may send.

INVALID = [
    (b"\xc1\x02hi", "invalid frame header c102"),  # reserved bits: no extension was agreed
    (b"\xa1\x02hi", "invalid frame header a102"),
    (b"\x91\x02hi", "invalid frame header 9102"),
    (b"\x81\x82maskhi", "invalid frame header 8182"),  # masked: only clients mask
    (b"\x83\x00", "invalid frame header 8300"),  # opcodes that RFC 6455 reserves
    (b"\x87\x00", "invalid frame header 8700"),
    (b"\x8b\x00", "invalid frame header 8b00"),
    (b"\x8f\x00", "invalid frame header 8f00"),
    (b"HTTP/1.1 200 OK", "invalid frame header 4854"),
    (b"\x09\x00", "invalid control frame 0900"),  # control frames are neither fragmented nor long
    (b"\x08\x00", "invalid control frame 0800"),
    (b"\x8a\x7e", "invalid control frame 8a7e"),
    (b"\x88\x7f", "invalid control frame 887f"),
    (b"\x80\x02hi", "fragment out of order 8002"),  # a continuation of nothing
    (b"\x00\x02hi", "fragment out of order 0002"),
    (b"\x01\x02hi\x81\x02hi", "fragment out of order 8102"),  # a new message within another
    (b"\x01\x02hi\x02\x02hi", "fragment out of order 0202"),
    (b"\x01\x02hi\x89\x00\x81\x02hi", "fragment out of order 8102"),  # also after a ping
    (b"\x01\x02hi\x80\x82maskhi", "invalid frame header 8082"),
    (b"\x88\x01\x03", "invalid close frame"),  # half a code
    (b"\x81\x7f" + (1 << 40).to_bytes(8, "big"), "message of more than 67,108,864 bytes"),
    (b"\x82\x7f" + b"\xff" * 8, "message of more than 67,108,864 bytes"),
]


@pytest.mark.parametrize("sizes", [[1], [1000]], ids=["byte by byte", "at once"])
@pytest.mark.parametrize(("data", "reason"), INVALID, ids=[data[:8].hex() for data, _ in INVALID])
def test_an_invalid_frame_is_an_error_that_names_its_header_after_the_messages_before_it(data, reason, sizes):
    reader = FrameReader()
    assert feed(reader, text(b"before") + data, sizes)[0] == [b"before"]
    assert isinstance(reader.error, ProtocolError)
    assert str(reader.error) == reason


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "without a code"),
        (b"\x03\xe8", "1000"),
        (b"\x03\xe9going away", "1001 going away"),
        (b"\x03\xf4restart \xf0\x9f\x92\xa4", "1012 restart 💤"),
        (b"\x0f\xa1\xff\xfe", "4001 \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
        (b"\x03\xe8" + b"x" * 123, "1000 " + "x" * 123),
    ],
)
def test_a_close_frame_is_an_error_that_gives_code_and_reason(payload, reason):
    reader = FrameReader()
    assert reader.feed(text(b"last") + frame(Opcode.PING, b"p") + frame(Opcode.CLOSE, payload) + text(b"late")) == [
        b"last"
    ]
    assert isinstance(reader.error, Closed)
    assert str(reader.error) == reason
    assert reader.pings == [b"p"]


def test_after_an_error_nothing_is_read_or_kept_any_more():
    reader = FrameReader()
    reader.feed(frame(Opcode.TEXT, b"begun", fin=False) + frame(Opcode.PING) + b"\xff\xff" + b"x" * 1000)
    error = reader.error
    assert error is not None
    assert reader.pings == [b""]
    for chunk in (text(b"message"), frame(Opcode.PING, b"p"), frame(Opcode.CLOSE), b"\x00"):
        assert reader.feed(chunk) == []
        assert (reader.error, reader.pings, reader.alive) == (error, [], False)
    assert kept(reader) <= len(b"begun")


# Bounded memory.

almost_frames = st.builds(
    lambda first, length, rest: bytes([first, length]) + rest,
    st.one_of(st.sampled_from((0x81, 0x01, 0x00, 0x80, 0x82, 0x88, 0x89, 0x8A)), st.integers(0, 255)),
    st.one_of(st.integers(0, 30), st.integers(0, 127), st.integers(0, 255)),
    st.binary(max_size=60),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(st.one_of(almost_frames, almost_frames.map(lambda data: data * 20), st.binary())), chunk_sizes)
def test_any_bytes_end_in_an_error_or_in_waiting_for_more_with_no_more_than_a_message_kept(pieces, sizes):
    reader, maximum = FrameReader(max_message=100), 100
    data, at = b"".join(pieces), 0
    for size in cycle(sizes):
        if at >= len(data):
            break
        known = reader.error
        messages = reader.feed(data[at : at + size])
        at += size
        assert all(len(message) <= maximum for message in messages)
        assert kept(reader) <= maximum + 127  # and a control frame that has begun
        if known:
            assert reader.error is known
            assert messages == []


@pytest.mark.parametrize("maximum", [10, 125, 126, 1000, 65534, 65535, 65536, 100_000])
def test_a_message_of_the_limit_arrives_and_one_byte_more_is_an_error(maximum):
    for opcode in (Opcode.TEXT, Opcode.BINARY):
        reader = FrameReader(maximum)
        assert reader.feed(frame(opcode, b"x" * maximum)) == [b"x" * maximum]
        header = len(frame(opcode, b"x" * (maximum + 1))) - (maximum + 1)
        assert reader.feed(frame(opcode, b"x" * (maximum + 1))[:header]) == []  # its header alone is enough
        assert str(reader.error) == f"message of more than {maximum:,} bytes"


def test_fragments_count_together_towards_the_limit_of_a_message():
    reader = FrameReader(max_message=1000)
    reader.feed(frame(Opcode.TEXT, b"x" * 100, fin=False))
    for _ in range(9):
        reader.feed(frame(Opcode.CONT, b"x" * 100, fin=False))
    assert reader.error is None
    reader.feed(frame(Opcode.CONT, b"x", fin=False))
    assert str(reader.error) == "message of more than 1,000 bytes"
    assert kept(reader) <= 1000


def test_a_control_frame_between_fragments_does_not_count_towards_the_limit():
    reader = FrameReader(max_message=100)
    reader.feed(frame(Opcode.TEXT, b"x" * 99, fin=False))
    assert reader.feed(frame(Opcode.PING, b"p" * 125) + frame(Opcode.CONT, b"y")) == [b"x" * 99 + b"y"]
    assert reader.pings == [b"p" * 125]


def test_endless_empty_fragments_take_no_memory():
    reader = FrameReader()
    reader.feed(frame(Opcode.TEXT, b"begun", fin=False))
    for _ in range(100):
        reader.feed(frame(Opcode.CONT, fin=False) * 100)
        assert kept(reader) == len(b"begun")
    assert reader.feed(frame(Opcode.CONT, b" and done")) == [b"begun and done"]


# Cost.


def cpu(data, size=1024):
    """CPU seconds to read data in chunks, the best of three times."""
    chunks = [data[first : first + size] for first in range(0, len(data), size)]
    clock = []
    for _ in range(3):
        reader = FrameReader()
        clock.append(time.process_time())
        for chunk in chunks:
            reader.feed(chunk)
        clock.append(time.process_time())
        assert reader.error is None
        assert kept(reader) == 0
    return min(end - start for start, end in list(pairwise(clock))[::2])


def test_a_long_message_costs_about_as_much_as_as_many_bytes_in_short_ones():
    """Copying what is there with each chunk would cost some hundred times as much."""
    count, kilobyte = 5000, b"x" * 1020
    short = cpu(text(kilobyte) * count)
    long = cpu(text(kilobyte * count))
    begin, end = frame(Opcode.TEXT, kilobyte, fin=False), frame(Opcode.CONT, kilobyte)
    fragmented = cpu(begin + frame(Opcode.CONT, kilobyte, fin=False) * (count - 2) + end)
    assert long < 30 * short
    assert fragmented < 30 * short


def test_an_error_keeps_nothing_of_what_was_collected():
    """A traceback in the error would lead back to the reader: a cycle, which Python frees late."""
    reader = FrameReader(max_message=1000)
    gone = weakref.ref(reader)
    reader.feed(b"\x01\x7d" + bytes(125))
    reader.feed(b"\x80\x7e\xff\xff")
    assert isinstance(reader.error, ProtocolError)
    gc.disable()
    try:
        del reader
        assert gone() is None
    finally:
        gc.enable()
