"""The runner `limit`: a bare loop between Python's own TLS sockets and Redis; a reference, not a program to use.

One thread waits for the TLS sockets, finds the frames' boundaries by index and writes ready-made PUBLISH commands,
one write for each read. No reconnecting, no pings, no check of any answer: Redis's replies are read now and then, and
dropped, so that they never wake the loop.
"""

import json
import os
import select
import socket
import ssl
from urllib.parse import urlsplit

PIECE = 65_536  # bytes a read
REPLIES_EVERY = 256  # writes between two reads of Redis's replies
KINDS = (
    (b"stream:bybit_orderbook", "orderbook.50."),
    (b"stream:bybit_trades", "publicTrade."),
    (b"stream:bybit_ticker", "tickers."),
    (b"stream:bybit_liquidations", "allLiquidation."),
)


class Heads(dict[int, bytes]):
    """What comes before a text of that many bytes: the end of the command before it, and PUBLISH to a channel."""

    def __init__(self, channel: bytes) -> None:
        self.head = b"\r\n*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$" % (len(channel), channel)

    def __missing__(self, size: int) -> bytes:
        self[size] = self.head + b"%d\r\n" % size
        return self[size]


def connect(url: str, topics: list[str]) -> tuple[ssl.SSLSocket, bytes]:
    """A subscribed connection, and what already followed its handshake."""
    place = urlsplit(url)
    context = ssl.create_default_context(cafile=os.environ["WEBSOCKET_CLIENT_CA_BUNDLE"])
    raw = socket.create_connection((place.hostname or "", place.port or 443))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = context.wrap_socket(raw, server_hostname=place.hostname)
    sock.sendall(
        f"GET {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    reply = b""
    while b"\r\n\r\n" not in reply:
        reply += sock.recv(PIECE)
    request = json.dumps({"op": "subscribe", "args": topics}).encode()
    sock.sendall(b"\x81\xfe" + len(request).to_bytes(2, "big") + bytes(4) + request)  # a mask of zeros
    return sock, reply.split(b"\r\n\r\n", 1)[1]


def main() -> None:
    redis = socket.create_connection((os.environ["REDIS_HOST"], int(os.environ["REDIS_PORT"])))
    redis.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sockets: dict[int, tuple[ssl.SSLSocket, Heads]] = {}
    rests: dict[int, bytes] = {}
    poller = select.poll()
    for group in json.loads(os.environ["BENCH_GROUPS"]):
        for channel, topic in KINDS:
            sock, rest = connect(os.environ["BENCH_URL"] + "/v5/public/linear", [topic + symbol for symbol in group])
            sockets[sock.fileno()] = sock, Heads(channel)
            rests[sock.fileno()] = rest
            poller.register(sock.fileno(), select.POLLIN)

    wait, write = poller.poll, redis.sendall
    writes = 0
    while True:
        for number, _ in wait():
            sock, heads = sockets[number]
            data = sock.recv(PIECE)
            if not data:
                return
            if rests[number]:
                data = rests[number] + data
            out: list[bytes] = []
            put = out.append
            at, end = 0, len(data)
            while at + 2 <= end:
                size, start = data[at + 1], at + 2
                if size == 126:
                    size, start = (data[at + 2] << 8 | data[at + 3], at + 4) if at + 4 <= end else (end, at)
                if start + size > end:
                    break
                at = start + size
                if data[start + 2] == 0x74:  # {"topic": all else is an acknowledgement
                    put(heads[size])
                    put(data[start:at])
            rests[number] = data[at:]
            if out:
                out[0] = out[0][2:]
                put(b"\r\n")
                write(b"".join(out))
                writes += 1
                if writes % REPLIES_EVERY == 0:
                    redis.recv(1 << 20)


if __name__ == "__main__":
    main()
