"""Bybit's end: a process that serves the frames over TLS, at a given rate or as fast as they are read.

It treats every runner alike. At a rate each frame is one TLS write at its due time, as from a server that has one frame
to send. At saturation FRAMES_PER_WRITE frames of a connection share a write on average (about 5 KB, one TLS
record), as Nagle-free servers and the proxies before them coalesce what waits; what a write holds depends on the
mix, not on the reader. A connection that does not take its frames never holds up the others at a rate: its frames
wait, and count as sent from the time they were due. At saturation the next frames wait for the slowest connection,
so that the mix stays the same for all.
"""

import base64
import collections
import hashlib
import json
import re
import selectors
import signal
import socket
import ssl
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import frames
from bench.board import SLOTS, Board
from sandbox.bybit.wire import text_frame
from sandbox.redis import end_with_parent

FRAMES_PER_WRITE = 16  # at saturation, on average over the connections
ACK_DELAY = 0.02  # seconds from a subscription to its acknowledgement
HANDSHAKE_TIMEOUT = 5.0  # seconds
TEND_EVERY = 20_000_000  # nanoseconds between two reads of the clients' requests
SECOND = 1_000_000_000  # nanoseconds
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
ANY_DEPTH = re.compile(r"^orderbook\.\d+\.")  # who can subscribe only another depth gets the same frames
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class Client:
    """One connection of a runner, after its handshake; never blocks."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.settimeout(HANDSHAKE_TIMEOUT)
        sock.do_handshake()
        request = b""
        while b"\r\n\r\n" not in request:
            piece = sock.recv(65_536)
            if not piece:
                raise ConnectionError("closed in the handshake")
            request += piece
        head, self.inbox = request.split(b"\r\n\r\n", 1)
        fields = dict(line.split(b":", 1) for line in head.split(b"\r\n")[1:])
        key = next(value.strip() for name, value in fields.items() if name.lower() == b"sec-websocket-key")
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        sock.setblocking(False)
        self.sock = sock
        self.waiting: collections.deque[bytes] = collections.deque()  # what the kernel would not take yet
        self.open = True

    def send(self, data: bytes | bytearray) -> None:
        """Write, or keep what cannot be written now."""
        if not self.open:
            return
        if self.waiting:
            self.waiting.append(bytes(data))
            return
        try:
            written = self.sock.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            written = 0
        except OSError:
            self.close()
            return
        if written < len(data):
            self.waiting.append(bytes(data[written:]))

    def flush(self) -> None:
        """Write what waits, as far as it goes."""
        while self.waiting and self.open:
            first = self.waiting.popleft()
            try:
                written = self.sock.send(first)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                written = 0
            except OSError:
                self.close()
                return
            if written < len(first):
                self.waiting.appendleft(first[written:])
                return

    def messages(self) -> list[tuple[int, bytes]]:
        """What the client sent since the last call: opcode and payload of each frame."""
        try:
            while piece := self.sock.recv(65_536):
                self.inbox += piece
            self.close()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self.close()
        found = []
        while len(self.inbox) >= 6:
            size, at = self.inbox[1] & 127, 2
            if size == 126:
                size, at = int.from_bytes(self.inbox[2:4], "big"), 4
            elif size == 127:
                size, at = int.from_bytes(self.inbox[2:10], "big"), 10
            if len(self.inbox) < at + 4 + size:
                break
            mask, masked = self.inbox[at : at + 4], self.inbox[at + 4 : at + 4 + size]
            payload = bytes(byte ^ mask[n & 3] for n, byte in enumerate(masked))
            found.append((self.inbox[0] & 15, payload))
            self.inbox = self.inbox[at + 4 + size :]
        return found

    def close(self) -> None:
        self.open = False
        self.waiting.clear()
        self.sock.close()


def make_room(clients: list[Client], until: int) -> bool:
    """Writes what waits for clients that take it again, until then (monotonic_ns) at most. Whether anything waited."""
    blocked = [client for client in clients if client.waiting and client.open]
    if blocked:
        with selectors.PollSelector() as selector:
            for client in blocked:
                selector.register(client.sock, selectors.EVENT_WRITE, client)
            for key, _ in selector.select(max(0, until - time.monotonic_ns()) / SECOND):
                key.data.flush()
    return bool(blocked)


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
            How many were sent, connections that were lost, and the longest delay of a frame that was the sender's own
            fault, in seconds.
        """
        before = [client for client in self.clients if client.open]
        # Frames of a topic without a subscriber are left out, and no message is counted for them.
        route = [(frame, self.topics[frame.topic]) for frame in self.cycle if frame.topic in self.topics]
        begun = time.monotonic_ns()
        sent, lag = self.flood(route, seconds) if rate == 0 else self.pace(route, rate, seconds)
        lost = sum(not client.open for client in before)
        return {"sent": sent, "begun": begun, "lost": lost, "lag": lag}

    def pace(self, route: list[tuple[frames.Frame, Client]], rate: int, seconds: float) -> tuple[int, float]:
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

    def flood(self, route: list[tuple[frames.Frame, Client]], seconds: float) -> tuple[int, float]:
        clock, sent, length = time.monotonic_ns, self.board.sent, len(route)
        clients = list({id(client): client for _, client in route}.values())
        block = FRAMES_PER_WRITE * len(clients)
        parts: dict[int, list[bytearray]] = {id(client): [] for client in clients}
        index, end = 0, clock() + int(seconds * SECOND)
        while (now := clock()) < end and index + block < SLOTS and any(client.open for client in clients):
            if any(client.waiting for client in clients):
                self.between(now + TEND_EVERY)
                continue
            for _ in range(block):
                frame, client = route[index % length]
                index += 1
                parts[id(client)].append(frame.mark(index))
                sent[index] = now
            for client in clients:
                if part := parts[id(client)]:
                    client.send(b"".join(part))
                    part.clear()
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
