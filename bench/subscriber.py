"""The reader's end: a process that subscribes to the four channels and notes when each message arrives.

During a play it only receives and takes the time; messages are parsed afterwards, so that this end takes as little of
the machine as possible. A runner may serialize a message in any way as long as the marker survives; several markers
in one message all count as arrived.
"""

import signal
import socket
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bench import frames
from bench.board import LAST, Board
from sandbox.redis import end_with_parent

CHANNELS = tuple(f"stream:bybit_{name}" for name in frames.CHANNELS)
PIECE = 1 << 18  # bytes
MAX_KEPT = 512 << 20  # bytes kept before they are parsed during a play
PUSH = b"*3\r\n$7\r\nmessage\r\n$"


class Subscriber:
    """One play's subscription."""

    def __init__(self, port: int, board: Board) -> None:
        self.board = board
        self.pieces: list[tuple[int, bytes]] = []
        self.rest = b""  # the beginning of a message whose end has not arrived
        self.messages = self.again = self.unmarked = 0
        self.sock = socket.create_connection(("127.0.0.1", port))
        names = [name.encode() for name in ("SUBSCRIBE", *CHANNELS)]
        self.sock.sendall(b"*%d\r\n" % len(names) + b"".join(b"$%d\r\n%s\r\n" % (len(name), name) for name in names))
        acknowledged = b""
        while acknowledged.count(b"subscribe\r\n") < len(CHANNELS) or not acknowledged.endswith(b":4\r\n"):
            acknowledged += self.sock.recv(PIECE)
        self.thread = threading.Thread(target=self.receive, daemon=True)
        self.thread.start()

    def receive(self) -> None:
        clock, received, keep = time.monotonic_ns, self.board.received, self.pieces.append
        held = 0
        while piece := self.take():
            now = clock()
            keep((now, piece))
            received[LAST] = now
            held += len(piece)
            if held > MAX_KEPT:
                self.parse()
                held = 0

    def take(self) -> bytes:
        try:
            return self.sock.recv(PIECE)
        except ConnectionResetError:  # ended from our side while more was on its way
            return b""

    def finish(self) -> dict[str, int]:
        """End the subscription and parse what came."""
        self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sock.close()
        self.parse()
        return {"messages": self.messages, "again": self.again, "unmarked": self.unmarked}

    def parse(self) -> None:
        """Note the arrival of the messages in `pieces`, which is emptied."""
        received, markers = self.board.received, frames.MARKER.findall
        for now, piece in self.pieces:
            data, at = self.rest + piece if self.rest else piece, 0
            while (size_end := data.find(b"\r\n", at + len(PUSH))) > 0:
                length_at = size_end + 2 + int(data[at + len(PUSH) : size_end]) + 3
                length_end = data.find(b"\r\n", length_at)
                if length_end < 0:
                    break
                end = length_end + 2 + int(data[length_at:length_end])
                if len(data) < end + 2:
                    break
                found = set(map(int, markers(data, length_end, end)))
                at = end + 2
                if found == {0}:
                    continue
                self.messages += 1
                self.unmarked += not found
                for index in found:
                    if received[index]:
                        self.again += 1
                    else:
                        received[index] = now
            self.rest = data[at:]
        self.pieces.clear()


def run(orders: Connection, port: int, board_file: Path) -> None:
    """The process's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the benchmark's business
    end_with_parent()
    board = Board(board_file)
    subscriber: Subscriber | None = None
    while True:
        try:
            order = orders.recv()
        except (EOFError, ConnectionError):
            return  # the benchmark has ended
        if order == "start":
            subscriber = Subscriber(port, board)
            orders.send(True)
        elif order == "finish" and subscriber is not None:
            orders.send(subscriber.finish())
