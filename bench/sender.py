"""Bybit's end: a process that serves the frames over TLS, at a given rate or as fast as they are read.

It treats every runner alike. At a rate each frame is one TLS write at its due time, as from a server that has one frame
to send. At saturation FRAMES_PER_WRITE frames of a connection share a write on average (about 5 KB, one TLS
record), as Nagle-free servers and the proxies before them coalesce what waits; what a write holds depends on the
mix, not on the reader. A connection that does not take its frames never holds up the others at a rate: its frames
wait, and count as sent from the time they were due. At saturation the next frames wait for the slowest connection,
so that the mix stays the same for all. A burst is written as at saturation, but ready-made, and no connection waits
for another.
"""

import json
import re
import selectors
import signal
import socket
import ssl
import time
from array import array
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import frames
from bench.board import SLOTS, Board
from bench.clients import CLOSE, PING, PONG, SECOND, TEXT, Client, make_room
from sandbox.bybit.wire import text_frame
from sandbox.redis import end_with_parent

FRAMES_PER_WRITE = 16  # at saturation and in a burst, on average over the connections
ACK_DELAY = 0.02  # seconds from a subscription to its acknowledgement
TEND_EVERY = 20_000_000  # nanoseconds between two reads of the clients' requests
ANY_DEPTH = re.compile(r"^orderbook\.\d+\.")  # who can subscribe only another depth gets the same frames


Route = Sequence[tuple[frames.Frame, Client]]


def joined(route: Route, index: int, count: int) -> list[tuple[Client, bytes]]:
    """The writes, one a connection, with the `count` frames that follow frame `index`."""
    parts: dict[int, tuple[Client, list[bytearray]]] = {}
    length = len(route)
    for number in range(index, index + count):
        frame, client = route[number % length]
        parts.setdefault(id(client), (client, []))[1].append(frame.mark(number + 1))
    return [(client, b"".join(part)) for client, part in parts.values()]


class Sender:
    """Serves one runner at a time; commands come through `orders`."""

    def __init__(self, orders: Connection, certificate: Path, board: Path, groups: int) -> None:
        self.orders = orders
        self.board = Board(board)
        self.first, self.cycle = frames.make(groups)
        self.every = {
            kind + symbol for kind in frames.TOPICS.values() for group in frames.symbols(groups) for symbol in group
        }
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(certificate)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.clients: list[Client] = []
        self.topics: dict[str, Client] = {}
        self.wanted = self.every  # the topics that make a runner ready
        self.announced = False
        self.tended = 0  # when the clients' requests were last read, in nanoseconds

    def serve(self) -> None:
        """Carry out orders; raises EOFError or ConnectionError when the benchmark has ended."""
        self.orders.send(self.listener.getsockname()[1])
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(self.orders, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(TEND_EVERY / SECOND):
                    if key.fileobj is self.listener:
                        self.accept()
                    else:
                        self.obey()
                self.tend()
                for client in self.clients:
                    client.flush()
                if not self.announced and self.topics.keys() >= self.wanted:
                    self.announced = True
                    self.orders.send(len(self.clients))

    def obey(self) -> None:
        order, *arguments = self.orders.recv()
        if order == "await":
            for client in self.clients:
                client.close()
            self.clients, self.topics, self.announced = [], {}, False
            (unsupported,) = arguments
            kinds = tuple(frames.TOPICS[channel] for channel in unsupported)
            self.wanted = {topic for topic in self.every if not topic.startswith(kinds)} if kinds else self.every
        elif order == "play":
            self.orders.send(self.play(*arguments))
        elif order == "burst":
            self.orders.send(self.burst(*arguments))

    def accept(self) -> None:
        raw, _ = self.listener.accept()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.clients.append(Client(self.context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)))
        except (OSError, StopIteration):
            raw.close()

    def tend(self) -> None:
        """Answer the clients' requests."""
        self.tended = time.monotonic_ns()
        for client in self.clients:
            if client.open:
                for opcode, payload in client.messages():
                    self.answer(client, opcode, payload)

    def answer(self, client: Client, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            client.send(bytes((0x80 | PONG, len(payload))) + payload)
        elif opcode == CLOSE:
            client.send(bytes((0x80 | CLOSE, 0)))
            client.close()
        elif opcode == TEXT:
            request: dict[str, Any] = json.loads(payload)
            reply = {"success": True, "ret_msg": "", "conn_id": "bench", "req_id": request.get("req_id", "")}
            if request["op"] == "ping":
                client.send(text_frame(json.dumps(reply | {"ret_msg": "pong", "op": "ping"})))
            elif request["op"] == "subscribe":
                time.sleep(ACK_DELAY)
                client.send(text_frame(json.dumps(reply | {"op": "subscribe"})))
                for topic in request["args"]:
                    topic = ANY_DEPTH.sub(frames.TOPICS["orderbook"], topic)
                    self.topics[topic] = client
                    if topic in self.first:
                        client.send(self.first[topic].wire)

    def play(self, rate: int, seconds: float) -> dict[str, float]:
        """Send for `seconds`, `rate` frames a second, 0 = as fast as they are read.

        Returns:
            How many were sent and within how many seconds, how many writes still wait for a reader, connections that
            were lost, and the longest delay of a frame that was the sender's own fault, in seconds.
        """
        before = [client for client in self.clients if client.open]
        route = self.route()
        begun = time.monotonic_ns()
        sent, lag = self.flood(route, seconds) if rate == 0 else self.pace(route, rate, seconds)
        took = (time.monotonic_ns() - begun) / SECOND
        return self.outcome(before, sent, took) | {"lag": lag}

    def burst(self, count: int, seconds: float) -> dict[str, float]:
        """Send `count` frames at once, within `seconds` at most; when it begins it says so, in nanoseconds.

        Returns:
            As play(). All count as sent when it began.
        """
        before = [client for client in self.clients if client.open]
        route = self.route()
        block = FRAMES_PER_WRITE * len(self.clients)
        writes = [one for at in range(0, count, block) for one in joined(route, at, min(block, count - at))]
        begun = time.monotonic_ns()
        self.board.sent[1 : count + 1] = array("q", [begun]) * count
        self.orders.send(begun)
        for client, data in writes:
            client.send(data)
        while any(client.waiting for client in before) and (now := time.monotonic_ns()) < begun + seconds * SECOND:
            self.between(now + TEND_EVERY)
        took = (time.monotonic_ns() - begun) / SECOND
        return self.outcome(before, count, took) | {"lag": 0.0}

    @staticmethod
    def outcome(clients: list[Client], sent: int, took: float) -> dict[str, float]:
        waiting = sum(len(client.waiting) for client in clients)
        return {"sent": sent, "took": took, "waiting": waiting, "lost": sum(not client.open for client in clients)}

    def route(self) -> Route:
        """The frames of the cycle, and where each goes. Those of a topic without a subscriber are left out, and no
        message is counted for them.
        """
        return [(frame, self.topics[frame.topic]) for frame in self.cycle if frame.topic in self.topics]

    def pace(self, route: Route, rate: int, seconds: float) -> tuple[int, float]:
        clock, sent, length = time.monotonic_ns, self.board.sent, len(route)
        count = min(int(rate * seconds), SLOTS - 1)
        index = worst = 0
        start = clock()
        while index < count:
            now = clock()
            due = min(count, (now - start) * rate // SECOND + 1)
            if index < due:
                worst = max(worst, now - start - index * SECOND // rate)
            while index < due:
                frame, client = route[index % length]
                index += 1
                wire = frame.mark(index)
                sent[index] = clock()
                client.send(wire)
            self.between(start + index * SECOND // rate)
        return index, worst / SECOND

    def flood(self, route: Route, seconds: float) -> tuple[int, float]:
        clock, sent = time.monotonic_ns, self.board.sent
        clients = list({id(client): client for _, client in route}.values())
        block = FRAMES_PER_WRITE * len(clients)
        index, end = 0, clock() + int(seconds * SECOND)
        while (now := clock()) < end and index + block < SLOTS and any(client.open for client in clients):
            if any(client.waiting for client in clients):
                self.between(now + TEND_EVERY)
                continue
            writes = joined(route, index, block)
            sent[index + 1 : index + block + 1] = array("q", [now]) * block
            index += block
            for client, data in writes:
                client.send(data)
            if now - self.tended > TEND_EVERY:
                self.tend()
        return index, 0.0

    def between(self, until: int) -> None:
        """Pass the time to `until` (of monotonic_ns), at most: write what waits, answer requests."""
        now = time.monotonic_ns()
        if now - self.tended > TEND_EVERY:
            self.tend()
        if not make_room(self.clients, until) and until > now:
            time.sleep((until - now) / SECOND)


def run(orders: Connection, certificate: Path, board: Path, groups: int) -> None:
    """The process's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the benchmark's business
    end_with_parent()
    try:
        Sender(orders, certificate, board, groups).serve()
    except (EOFError, ConnectionError):
        pass  # the benchmark has ended
