"""The processes under test: one collector, or several that share the symbols."""

import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bench.proc import start

STOP_TIMEOUT = 8.0  # seconds between SIGTERM and SIGKILL
PAGE = 500  # symbols in an answer of the list of instruments


@dataclass(frozen=True)
class Ends:
    """Where the collectors connect to, and the certificate of the authority that they have to trust."""

    bybit: str
    rest: str
    redis_port: int
    authority: Path


class Collector:
    """A running collector.

    names: its symbols; empty = all that the list has, of which it takes its shard. parts: entries of STREAMS for each
    channel. more: further settings.
    """

    def __init__(self, ends: Ends, names: list[str], shard: tuple[int, int], parts: int, more: dict[str, str]) -> None:
        settings = {
            "BYBIT_WS_URL": ends.bybit,
            "BYBIT_API_URL": ends.rest,
            "SYMBOLS": ",".join(names) or "ALL",
            "SHARD": "" if names or shard[1] == 1 else f"{shard[0]}/{shard[1]}",
            "CHANNEL_TYPE": "linear",
            "PYTHON_DOTENV_DISABLED": "1",
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(ends.redis_port),
            "WEBSOCKET_CLIENT_CA_BUNDLE": str(ends.authority),
            "SSL_CERT_FILE": str(ends.authority),
            "BENCH_PARTS": str(parts),
        }
        command = [sys.executable, "main.py"] if parts == 1 else [sys.executable, "-m", "bench.scale.streams"]
        self.process = start(command, settings | more, "scale.log")

    @property
    def ended(self) -> int | None:
        """Its exit code when it has ended by itself."""
        return self.process.poll()

    def stop(self) -> None:
        """Ends it, with force when it takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


class Rest:
    """Bybit's list of instruments, as far as a collector reads it. A context manager; it has a thread of its own."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Rest":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def page(self, query: dict[str, list[str]]) -> bytes:
        """The body of an answer."""
        first = int(query.get("cursor", ["0"])[0])
        size = int(query.get("limit", [str(PAGE)])[0])
        names = self.names if query.get("status", ["Trading"]) == ["Trading"] else []
        rows = [
            {
                "symbol": name,
                "contractType": "LinearPerpetual",
                "status": "Trading",
                "baseCoin": name.removesuffix("USDT"),
                "quoteCoin": "USDT",
                "settleCoin": "USDT",
                "launchTime": "1585526400000",
                "deliveryTime": "0",
                "isPreListing": False,
                "preListingInfo": None,
            }
            for name in names[first : first + size]
        ]
        cursor = str(first + size) if first + size < len(names) else ""
        result = {"category": "linear", "list": rows, "nextPageCursor": cursor}
        answer = {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": int(time.time() * 1000)}
        return dumps(answer).encode()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        rest = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = rest.page(parse_qs(urlsplit(self.path).query))
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
