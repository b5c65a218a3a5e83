"""Bybit's end: a process that serves the frames over TLS at a given rate.

Two ways of sending, between which a real server is: each frame alone, at its own time and in a TLS record of its own
(the dearest for who reads), or together: the frames of a connection that are due in the same 2 ms share a record.
The times are random, as of many independent symbols. A connection that does not take its frames holds up no other.
"""

import json
import random
import selectors
import signal
import socket
import ssl
import time
from array import array
from collections import Counter
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.clients import CLOSE, PING, PONG, SECOND, TEXT, Client, make_room
from bench.scale.frames import CYCLE, FIRST_U, Frame, cycle
from bench.scale.measure import Played
from sandbox.bybit.wire import text_frame
from sandbox.redis import end_with_parent

TEND_EVERY = 20_000_000  # nanoseconds between two reads of the clients' requests
TOGETHER = 2_000_000  # nanoseconds
SEED = 7


class Sender:
    """Serves one play at a time; orders come through the pipe."""

    def __init__(self, orders: Connection, certificate: Path) -> None:
        self.orders = orders
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(certificate)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listener.setblocking(False)
        self.clients: list[Client] = []
        self.moves: list[Frame] = []
        self.snapshots: dict[str, Frame] = {}
        self.missing: Counter[str] = Counter()  # how many subscriptions of each topic are still to come
        self.owners: dict[str, list[Client]] = {}  # of each topic
        self.updates: dict[str, int] = {}  # the `u` of each book
        # When each frame of a cycle is due, in mean gaps after the one before the first.
        rng = random.Random(SEED)
        gaps = list(accumulate(rng.expovariate(1.0) for _ in range(CYCLE)))
        self.times = [gap * CYCLE / gaps[-1] for gap in gaps]
        self.tended = 0

    def serve(self) -> None:
        """Carries out orders; raises EOFError or ConnectionError when the benchmark has ended."""
        self.orders.send(self.listener.getsockname()[1])
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(self.orders, selectors.EVENT_READ)
            while True:
                selector.select(0.002 if self.missing or any(client.waiting for client in self.clients) else 0.02)
                self.tend()
                if self.orders.poll():
                    order, *arguments = self.orders.recv()
                    if order == "await":
                        self.prepare(*arguments)
                    else:
                        self.orders.send(self.play(*arguments))

    def prepare(self, count: int, recorded: Path | None, copies: int) -> None:
        """Forgets the play before; answers when each topic has been subscribed `copies` times, with that time."""
        for client in self.clients:
            client.close()
        made = cycle(count, recorded)
        self.clients, self.moves, self.snapshots = [], made.moves, made.snapshots
        self.owners = {topic: [] for topic in made.topics}
        self.missing = Counter(dict.fromkeys(made.topics, copies))
        self.updates = dict.fromkeys(made.topics, FIRST_U)

    def tend(self) -> None:
        """Takes new connections, answers requests, writes what waits."""
        self.tended = time.monotonic_ns()
        try:
            while True:
                raw, _ = self.listener.accept()
                raw.setblocking(True)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    sock = self.context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
                    self.clients.append(Client(sock))
                except (OSError, StopIteration):
                    raw.close()
        except BlockingIOError:
            pass
        for client in self.clients:
            if client.open:
                for opcode, payload in client.messages():
                    self.answer(client, opcode, payload)
                client.flush()

    def answer(self, client: Client, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            client.send(bytes((0x80 | PONG, len(payload))) + payload)
        elif opcode == CLOSE:
            client.send(bytes((0x80 | CLOSE, 0)))
            client.close()
        elif opcode == TEXT:
            request: dict[str, Any] = json.loads(payload)
            reply = {"success": True, "ret_msg": "", "conn_id": "bench", "req_id": request.get("req_id", "")}
            reply["op"] = request["op"]
            client.send(text_frame(json.dumps(reply | ({"ret_msg": "pong"} if request["op"] == "ping" else {}))))
            if request["op"] == "subscribe":
                self.subscribe(client, request["args"])
            elif request["op"] == "unsubscribe":
                for topic in request["args"]:
                    self.owners[topic].remove(client)

    def subscribe(self, client: Client, topics: list[str]) -> None:
        """Each snapshot follows, as at Bybit."""
        for topic in topics:
            self.owners[topic] = [one for one in self.owners[topic] if one.open and one is not client] + [client]
            if topic in self.snapshots:
                client.send(self.snapshots[topic].number(0, self.updates[topic]))
        if self.missing:
            self.missing -= Counter(topics)
            if not self.missing:
                self.orders.send((time.monotonic_ns(), sum(client.open for client in self.clients)))

    def play(self, rate: int, seconds: float, together: bool) -> Played:
        """Sends `rate` frames a second for `seconds`."""
        before = [client for client in self.clients if client.open]
        sent, lag, size = (self.send_together if together else self.send_alone)(rate, int(rate * seconds))
        while any(client.waiting and client.open for client in self.clients):
            self.between(time.monotonic_ns() + TEND_EVERY)
        return Played(sent, lag / SECOND, sum(not client.open for client in before), size)

    def send_alone(self, rate: int, count: int) -> tuple[array, int, int]:
        clock, sent, moves, owners, updates = time.monotonic_ns, array("q"), self.moves, self.owners, self.updates
        lag = size = 0
        start, gap, times = clock(), SECOND / rate, self.times
        for index in range(1, count + 1):
            place = (index - 1) % CYCLE
            due = start + int(((index - 1) // CYCLE * CYCLE + times[place]) * gap)
            now = clock()
            if now < due:
                self.between(due)
                now = clock()
            elif now - self.tended > TEND_EVERY:
                self.tend()
            lag = max(lag, now - due)
            frame = moves[place]
            updates[frame.topic] = update = updates[frame.topic] + 1
            wire = frame.number(index, update)
            size += len(wire)
            sent.append(now)
            for client in owners[frame.topic]:
                client.send(wire)
        return sent, lag, size

    def send_together(self, rate: int, count: int) -> tuple[array, int, int]:
        clock, sent, moves, owners, updates = time.monotonic_ns, array("q"), self.moves, self.owners, self.updates
        parts: dict[Client, list[bytes]] = {}
        start, lag, size, index = clock(), 0, 0, 0
        tick = start
        while index < count:
            tick += TOGETHER
            self.between(tick)
            now = clock()
            lag = max(lag, now - tick)
            due = min(count, (now - start) * rate // SECOND)
            while index < due:
                frame = moves[index % CYCLE]
                index += 1
                updates[frame.topic] = update = updates[frame.topic] + 1
                wire = bytes(frame.number(index, update))
                size += len(wire)
                for client in owners[frame.topic]:
                    parts.setdefault(client, []).append(wire)
                sent.append(now)
            for client, some in parts.items():
                if some:
                    client.send(b"".join(some))
                    some.clear()
        return sent, lag, size

    def between(self, until: int) -> None:
        """Passes the time to `until` (of monotonic_ns), at most: writes what waits, answers requests."""
        if time.monotonic_ns() - self.tended > TEND_EVERY:
            self.tend()
        make_room(self.clients, until)
        while until > (now := time.monotonic_ns()):
            time.sleep((until - now) / SECOND)


def run(orders: Connection, certificate: Path) -> None:
    """The process's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the benchmark's business
    end_with_parent()
    try:
        Sender(orders, certificate).serve()
    except (EOFError, ConnectionError):
        pass  # the benchmark has ended
