"""WebSocket messages out of a stream of bytes: the receiving side of a client of RFC 6455, without extensions.

Performs no I/O and knows nothing of Bybit. `feed()` never raises: messages that came before an error are still
delivered, and `error` says why nothing more can be read.
"""

import struct
from collections.abc import Callable

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MAX_MESSAGE = 64 << 20  # bytes; the largest message of Bybit is about 175,000 bytes

# The first four bytes of a frame: its opcode and length, and the longer length of one that has it.
HEADER = struct.Struct(">HH")
TEXT_OF_0, TEXT_OF_125, TEXT_OF_16_BITS = 0x8100, 0x817D, 0x817E  # whole, unmasked


class ProtocolError(Exception):
    """The peer broke RFC 6455, or sent a message above the limit."""


class Closed(Exception):
    """The peer sent a close frame."""


class FrameReader:
    """
    messages = reader.feed(chunk)   # payloads of whole text and binary messages, oldest first
    reader.pings                    # payloads of pings in that chunk: to be answered
    reader.alive                    # whether that chunk completed a message, or a ping or a pong outside of one: a
                                    # message that never ends is silence, whatever comes in between
    reader.error                    # ProtocolError or Closed, once there is one; feed() then returns []

    max_message: bytes of a message, all its fragments together. Not much more is ever kept between two calls.
    """

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self.pings: list[bytes] = []
        self.alive = False
        self.error: ProtocolError | Closed | None = None
        self._max_message = max_message
        self._tail = bytearray()  # a frame that has begun
        self._need = 0  # bytes that _tail must have before the frame can be whole
        self._fragments: bytearray | None = None  # a message that has begun
        self._is_between = True  # neither has, nor was there an error

    def feed(self, chunk: bytes) -> list[bytes]:
        if self.pings:
            self.pings = []
        messages: list[bytes] = []
        at = take_plain(chunk, 0, self._max_message, messages.append) if self._is_between else 0
        self.alive = at == len(chunk) > 0
        if not self.alive and not self.error:
            self._feed(chunk, at, messages.append)
        return messages

    def _feed(self, data: bytes, position: int, append: Callable[[bytes], None]) -> None:
        """Takes what is not, or not only, whole plain messages, from `position` on."""
        if self._tail:
            self._tail += data
            if len(self._tail) < self._need:
                return  # a long frame is put together once, when it is whole
            data = bytes(self._tail)
        end, self._need = len(data), 0
        try:
            while position < end:
                if self._fragments is None:
                    position = take_plain(data, position, self._max_message, append)
                if position + 2 > end:
                    break
                start, stop = self._header(data, position)
                if stop > end:
                    self._need = stop - position
                    break
                self._frame(data[position], data[start:stop], append)
                position = stop
        except (ProtocolError, Closed) as error:
            # Its traceback leads back here: a cycle that would keep what was collected, 64 MiB at most, for long.
            self.error = error.with_traceback(None)
            self._fragments = None
        self.alive = position > 0 and self._fragments is None
        self._tail = bytearray(data[position:]) if position < end and not self.error else bytearray()
        self._is_between = not (self._tail or self._fragments is not None or self.error)

    def _header(self, data: bytes, at: int) -> tuple[int, int]:
        """Start and stop of the payload of the frame at `at`. Both are the end of the header while that is incomplete.

        Everything that a header alone can break is an error here: otherwise garbage that reads as a great length would
        be collected for a long time.
        """
        first, length = data[at], data[at + 1]
        final, opcode = first & 0x80, first & 0x0F
        if first & 0x70 or length & 0x80 or BINARY < opcode < CLOSE or opcode > PONG:
            raise ProtocolError(f"invalid frame header {data[at : at + 2].hex()}")
        if opcode >= CLOSE and (not final or length > 125):
            raise ProtocolError(f"invalid control frame {data[at : at + 2].hex()}")
        if opcode < CLOSE and (opcode == CONTINUATION) != (self._fragments is not None):
            raise ProtocolError(f"fragment out of order {data[at : at + 2].hex()}")
        start = at + 2 + {126: 2, 127: 8}.get(length, 0)
        if start > len(data):
            return start, start  # the rest of the header comes first
        if length > 125:
            length = int.from_bytes(data[at + 2 : start], "big")
        if opcode < CLOSE and length + len(self._fragments or b"") > self._max_message:
            raise ProtocolError(f"message of more than {self._max_message:,} bytes")
        return start, start + length

    def _frame(self, first: int, payload: bytes, append: Callable[[bytes], None]) -> None:
        """Control frames, fragments, long and binary messages. The header is valid."""
        final, opcode = first & 0x80, first & 0x0F
        if opcode == CLOSE:
            if len(payload) == 1:
                raise ProtocolError("invalid close frame")
            code = str(int.from_bytes(payload[:2], "big")) if payload else "without a code"
            raise Closed(f"{code} {payload[2:].decode(errors='replace')}".rstrip())
        if opcode == PING:
            self.pings.append(payload)
        elif opcode < CLOSE:
            if self._fragments is None and final:
                append(payload)
                return
            # One bytearray, not a list: an endless row of empty fragments must not take memory.
            fragments = bytearray() if self._fragments is None else self._fragments
            fragments += payload
            if final:
                append(bytes(fragments))
            self._fragments = None if final else fragments


def take_plain(data: bytes, at: int, max_message: int, append: Callable[[bytes], None]) -> int:
    """Takes what nearly all frames of Bybit's are: whole text messages, unmasked, shorter than 64 KiB. Returns where
    the first begins that is none, or is not complete. Every message passes here: about 0.2 us each.
    """
    end, header = len(data), HEADER.unpack_from
    last = end - HEADER.size
    while at <= last:
        first, length = header(data, at)
        start = at + 4
        if first != TEXT_OF_16_BITS:
            if not TEXT_OF_0 <= first <= TEXT_OF_125:
                break
            start, length = at + 2, first - TEXT_OF_0
        stop = start + length
        if stop > end or length > max_message:
            break
        append(data[start:stop])
        at = stop
    return at
