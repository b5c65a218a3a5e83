"""The connections of a runner, as the sender has them: they take what they can, and never block."""

import base64
import collections
import hashlib
import selectors
import ssl
import time

HANDSHAKE_TIMEOUT = 5.0  # seconds
SECOND = 1_000_000_000  # nanoseconds
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
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
        written = self._write(data)
        if self.open and written < len(data):
            self.waiting.append(bytes(data[written:]))

    def flush(self) -> None:
        """Write what waits, as far as it goes."""
        while self.waiting and self.open:
            first = self.waiting.popleft()
            written = self._write(first)
            if self.open and written < len(first):
                self.waiting.appendleft(first[written:])
                return

    def _write(self, data: bytes | bytearray) -> int:
        """Bytes that the kernel takes now. Closes a connection that is lost."""
        try:
            return self.sock.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        except OSError:
            self.close()
            return 0

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
