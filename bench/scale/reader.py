"""The readers' end: a process that subscribes to the four channels, once or several times.

One subscription takes the time of every message; the others only read, as further consumers would.
"""

import signal
import socket
import threading
import time
from array import array
from multiprocessing.connection import Connection

from bench.scale.frames import INDEX
from bench.subscriber import CHANNELS
from sandbox.redis import end_with_parent

PIECE = 1 << 18  # bytes


class Reader:
    """A subscription. keeps: whether the times are of interest. by_pattern: each symbol has channels of its own."""

    def __init__(self, port: int, keeps: bool, by_pattern: bool) -> None:
        self.pieces: list[bytes] = []
        self.times = array("q")
        self.latest = 0  # nanoseconds
        self.sock = socket.create_connection(("127.0.0.1", port))
        channels = [f"{channel}:*" for channel in CHANNELS] if by_pattern else CHANNELS
        names = [name.encode() for name in ("PSUBSCRIBE" if by_pattern else "SUBSCRIBE", *channels)]
        self.sock.sendall(b"*%d\r\n" % len(names) + b"".join(b"$%d\r\n%s\r\n" % (len(name), name) for name in names))
        acknowledged = b""
        while acknowledged.count(b"subscribe\r\n") < len(CHANNELS) or not acknowledged.endswith(b":4\r\n"):
            acknowledged += self.sock.recv(PIECE)
        self.thread = threading.Thread(target=self.keep if keeps else self.drop, daemon=True)
        self.thread.start()

    def keep(self) -> None:
        clock, receive = time.monotonic_ns, self.sock.recv
        keep, note = self.pieces.append, self.times.append
        while piece := receive(PIECE):
            self.latest = now = clock()
            note(now)
            keep(piece)

    def drop(self) -> None:
        buffer = bytearray(PIECE)
        while self.sock.recv_into(buffer):
            pass

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sock.close()


def arrivals(pieces: list[bytes], times: array) -> tuple[array, array]:
    """The indexes of the numbered messages in the order of their arrival, and when the end of each arrived."""
    data, ends, end = b"".join(pieces), [], 0
    for piece in pieces:
        ends.append(end := end + len(piece))
    indexes, at = array("i"), array("q")
    number = 0
    for found in INDEX.finditer(data):
        if index := int(found[1]):
            close = data.find(b"\r\n", found.end())
            while number < len(ends) - 1 and ends[number] < close:
                number += 1
            indexes.append(index)
            at.append(times[number])
    return indexes, at


def run(orders: Connection, port: int) -> None:
    """The process's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the benchmark's business
    end_with_parent()
    readers: list[Reader] = []
    while True:
        try:
            order, *arguments = orders.recv()
        except (EOFError, ConnectionError):
            return  # the benchmark has ended
        if order == "start":
            count, by_pattern = arguments
            readers = [Reader(port, not number, by_pattern) for number in range(count)]
            orders.send(True)
        elif order == "latest":
            orders.send(readers[0].latest)
        elif order == "finish":
            for reader in readers:
                reader.finish()
            orders.send(arrivals(readers[0].pieces, readers[0].times))
