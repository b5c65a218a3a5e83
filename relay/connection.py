"""Bybit's end: one life of one connection, from the handshake to its loss.

pybit makes the address, the topics and the thread; websocket-client makes the connection and keeps the protocol. What
either does to a message is left out: the rule here is that a callback gets the frame as Bybit sent it. A second rule:
once the handshake is done one thread alone, pybit's socket thread, touches the socket and all state of the connection;
others may only close() it.

These internals of the two packages are leaned on, no others; tests/test_contracts.py says what an upgrade broke:

* pybit: every *_stream() ends in self.subscribe(topic with {symbol}, callback, symbol); __init__ ends in _connect(url),
  which makes self.ws (a WebSocketApp) and self.wst (its thread) and asks is_connected() until that is true;
  WebSocketApp calls _on_open and _on_error on that thread; _send_initial_ping starts a timer; endpoint is the URL.
* websocket-client: WebSocketApp.sock is the WebSocket; its sock is the socket; its frame_buffer takes bytes from
  frame_buffer.recv(size) and, if that raises, goes on where it was at the next recv_data_frame(); nothing is read
  ahead in the handshake; run_forever returns once sock is shut down.
"""

import json
import logging
import math
import os.path
import select
import socket
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from time import monotonic, time
from types import TracebackType
from typing import Any

import websocket
from pybit.unified_trading import WebSocket

from relay.dispatch import Callback
from relay.dispatch import raw as raw  # tests take it from here
from relay.kinds import kind_of_topic

log = logging.getLogger(__name__)

# Seconds that resolving, connecting and the handshake may take together; each step of it by itself.
CONNECT_TIMEOUT = 12.0
STEP_TIMEOUT = 10.0
# Seconds between {"op": "ping"}; https://bybit-exchange.github.io/docs/v5/ws/connect recommends 20.
PING_INTERVAL = 20.0
# Seconds without a single whole frame, pongs included, after which the peer is held for dead.
SILENCE_TIMEOUT = 30.0
# Seconds for Bybit to acknowledge a subscription.
ACK_TIMEOUT = 12.0
# Seconds after which a topic that pushes a snapshot first is reported if nothing of it has come.
FIRST_DATA_TIMEOUT = 30.0
# Seconds before a topic that Bybit refused is asked for again.
REFUSED_RETRY = 3600.0
# Seconds between two looks at the clocks above, and seconds after which a thread that has not turned must be stuck.
TICK, PATIENCE = 1.0, 60.0
# Bytes asked of the socket at once. TLS gives at most one record of 16 KiB.
CHUNK = 65536
# Seconds without a message after which the next one is flushed at once, and messages after which it is done anyway
# though more lies on the socket.
PAUSE, FLUSH_EVERY = 0.001, 256
# Kinds of things that are logged once each, in all.
MAX_SAID = 1000
# Bytes of a frame; the largest that Bybit sends is about 175,000.
MAX_FRAME = 64 << 20
# Messages of a stream that are looked into each second, for the delay and for gaps: all of them at ordinary rates, few
# when it is busy.
LOOKS = 2000
# https://bybit-exchange.github.io/docs/v5/ws/connect: new connections in 300 s (500, less a margin for restarts),
# topics in a request on spot, and characters of topics on a connection.
CONNECTIONS, PER_SECONDS = 450, 300.0
TOPICS_PER_REQUEST = defaultdict(lambda: 200, spot=10)
MAX_TOPIC_CHARACTERS = 21_000

# pybit passes no timeout on, so this process-wide one is the only way to bound a handshake that is never answered.
websocket.setdefaulttimeout(STEP_TIMEOUT)

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ConnectionLost(Exception):
    """A connection ended or did not come up. `uptime`: seconds since all its topics were answered for, 0 = never."""

    def __init__(self, reason: str, uptime: float = 0.0) -> None:
        super().__init__(reason)
        self.uptime = uptime


class _Stalled(ConnectionLost):
    """No data, though pings are answered."""


@dataclass
class Stats:
    """What a stream has done since the program started. Written by its threads, read by any."""

    messages: int = 0
    connects: int = 0
    last: float | None = None  # monotonic time of the last message
    topics: int = 0  # subscribed now
    answered: bool = False  # Bybit has answered for all its topics at least once
    gaps: int = 0  # order-book deltas seen whose `u` did not rise by one
    delays: deque[float] = field(default_factory=lambda: deque(maxlen=1000))  # seconds from `ts` to here, the latest
    due: float = math.inf  # monotonic time by which its threads must have turned again


stats: defaultdict[str, Stats] = defaultdict(Stats)  # by the name of the stream

_live: set["Connection"] = set()
_refused: dict[tuple[str, str], float] = {}  # (address, topic) -> monotonic time of the refusal
_said: set[object] = set()


def close_all() -> None:
    """Ends every connection, also those being made. Any thread."""
    for connection in list(_live):
        connection.close()


def _once(kind: object) -> bool:
    """True the first time that something of this kind happens to the program: log that, and spare the log the rest."""
    if kind in _said or len(_said) >= MAX_SAID:
        return False
    _said.add(kind)
    return True


def _shown(text: object, limit: int = 200) -> str:
    """Text from the network for a log line: its messages may hold a whole frame or an HTML page."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[:limit] + "…"


def reason(error: BaseException) -> str:
    """Why a connection failed, in a sentence for the operator."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        hint = {
            403: " (Bybit refuses this address: usually its region, or too many connections; that ban ends by itself)",
            429: " (too many connections from this address)",
        }
        return f"the handshake was answered with HTTP {error.status_code}{hint.get(error.status_code, '')}"
    if isinstance(error, websocket.WebSocketAddressException | socket.gaierror):
        return f"the host name cannot be resolved: {_shown(error)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return _shown(error) or type(error).__name__


class Pacer:
    """Keeps the whole process under `limit` new connections in any `seconds`. Threads share it."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._starts: deque[float] = deque(maxlen=limit)
        self._seconds = seconds
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event, stats: Stats) -> None:
        """Waits until one more connection may be started, or for `stop`."""
        while not stop.is_set():
            with self._lock:
                now = monotonic()
                full = len(self._starts) == self._starts.maxlen
                pause = self._starts[0] + self._seconds - now if full else 0.0
                if pause <= 0:
                    self._starts.append(now)
                    return
            if _once("paced"):
                log.warning("%d connections in %g s: waiting before the next", CONNECTIONS, PER_SECONDS)
            stats.due = now + pause + PATIENCE
            stop.wait(pause)


pacer = Pacer(CONNECTIONS, PER_SECONDS)


def _fit(data: bytes, position: int) -> bool:
    """Whether enough of a frame's header has come to hand it to websocket-client, which looks at nothing before it has
    the whole frame: garbage that reads as a length would be collected for ever. Raises ConnectionLost for such.
    """
    header = data[position : position + 10]
    if header[0] & 0x70 or (len(header) > 1 and header[1] & 0x80):
        raise ConnectionLost(f"a frame that no server may send: {header[:2].hex()}")
    if len(header) < 2 or (header[1] == 127 and len(header) < 10):
        return False
    if header[1] == 127 and int.from_bytes(header[2:], "big") > MAX_FRAME:
        raise ConnectionLost(f"a frame of {int.from_bytes(header[2:], 'big'):,} bytes")
    return True


class _Dry(Exception):
    """websocket-client asks for bytes that have not arrived yet."""


class Connection(WebSocket):
    """A connection to one of Bybit's public channels. Made, subscribed and run on the thread of its stream:

        with Connection("linear", testnet=True, stop=stop) as bybit:
            bybit.trade_stream(symbol="BTCUSDT", callback=handle_trades)
            bybit.run()

    channel_type: linear, spot, inverse or option.
    url: base URL in place of Bybit's (pybit has no such argument), "" = Bybit's own.
    stop: set when the program ends.
    flush: called on the socket's thread when all that has arrived was handed to the callbacks.
    announce: called with what consumers must know: announce(event, stream, topics, **more); on any thread.
    stall_timeout: seconds without data after which the connection is given up, 0 = never.
    Raises ConnectionLost, from here and from run(); after close(), run() returns.
    """

    def __init__(
        self,
        channel_type: str,
        *,
        testnet: bool,
        stop: threading.Event,
        url: str = "",
        flush: Callable[[], object] = lambda: None,
        announce: Callable[..., object] = lambda *event, **more: None,
        stall_timeout: float = 0.0,
    ) -> None:
        self._name = threading.current_thread().name
        self._channel_type, self._url, self._stop = channel_type, url, stop
        self._flush, self._announce, self._stall_timeout = flush, announce, stall_timeout
        self._callbacks: dict[str, Callback] = {}  # by topic
        self._cause: BaseException | None = None
        self._opened = self._closing = False
        self._run = threading.Event()
        self._stats = stats[self._name]

        self._pending: dict[str, list[str]] = {}  # topics of the requests not yet answered, by req_id
        self._request_ids = count(1)
        self._subscribed: set[str] = set()
        self._unseen: set[bytes] = set()  # topics whose first snapshot has not come
        self._subscribed_at: float | None = None

        self._rest = b""  # bytes received and not yet used
        self._partial = False  # websocket-client has begun a frame and waits for the rest of it
        self._looks = LOOKS  # messages that may still be looked into in this second
        self._updates: dict[bytes, int] = {}  # the last `u` of each order book, as far as all are looked into
        # Seconds, counted only while this thread looked at the socket: neither a callback that takes long nor a
        # machine that was suspended makes the network look dead.
        self._silent = self._unanswered = self._without_data = self._connected_for = 0.0

        pacer.wait(stop, self._stats)
        self._stats.due = monotonic() + PATIENCE
        _live.add(self)
        self._deadline = monotonic() + CONNECT_TIMEOUT
        try:
            # ping_interval=0: no thread of websocket-client's; pings are sent in _tick.
            super().__init__(channel_type, testnet=testnet, restart_on_error=False, retries=0, ping_interval=0)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        self.wst.join()

    def close(self) -> None:
        """Ends the connection soon; its threads end by themselves. Any thread, any time, never blocks."""
        self._closing = True
        self._run.set()
        _live.discard(self)
        core = getattr(getattr(self, "ws", None), "sock", None)
        if core and (sock := core.sock):
            try:
                # Wakes the socket's thread. Not SSLSocket's own shutdown: that drops the TLS state under its feet.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # it was gone already

    def run(self) -> None:
        """Subscribes, and hands on messages until the connection is lost."""
        if len(json.dumps(list(self._callbacks), separators=(",", ":"))) > MAX_TOPIC_CHARACTERS:
            raise ValueError(f"more than {MAX_TOPIC_CHARACTERS:,} characters of topics on one connection")
        self._run.set()
        self.wst.join()
        self._stats.topics = 0
        if self._closing or self._stop.is_set():
            return
        why = reason(self._cause or EOFError("it ended"))
        if self._subscribed:
            since = self._stats.last and round((time() - monotonic() + self._stats.last) * 1000)
            event = "stalled" if isinstance(self._cause, _Stalled) else "lost"
            self._announce(event, self._name, sorted(self._subscribed), why=why, since=since)
        raise ConnectionLost(why, monotonic() - self._subscribed_at if self._subscribed_at else 0.0) from self._cause

    # What pybit calls on the thread of the stream.

    def _connect(self, url: str) -> None:
        super()._connect(f"{self._url}/v5/public/{self._channel_type}" if self._url else url)

    def is_connected(self) -> bool:
        """pybit asks this in an endless loop while it connects. Raising is the only way out of that loop."""
        if self._closing or self._stop.is_set():
            raise ConnectionLost("stopped")
        if not hasattr(self, "wst"):
            return False  # asked before the first attempt
        if not self._opened and (self._cause or not self.wst.is_alive()):
            raise ConnectionLost(reason(self._cause or EOFError("it ended"))) from self._cause
        if not self._opened and monotonic() > self._deadline:
            raise ConnectionLost(f"no connection within {CONNECT_TIMEOUT:g} s")
        return self._opened

    def _send_initial_ping(self) -> None:
        """Overridden: pybit would send a ping from a timer's thread."""

    def subscribe(self, topic: str, callback: Callback, symbol: str | Iterable[str] = ()) -> None:
        """The end of each of pybit's *_stream methods. run() sends the requests, one thread and one place for all."""
        for one in [symbol] if isinstance(symbol, str) else symbol or [""]:
            self._callbacks[topic.format(symbol=one)] = callback

    # All from here runs on the socket's thread.

    def _on_error(self, error: BaseException) -> None:
        self._cause = self._cause or error

    def _on_open(self) -> None:
        """Called when the handshake is done, and stays for the life of the connection, so that websocket-client's own
        loop (a select, three recv and a check of UTF-8 in Python for each frame) never gets to run.
        """
        threading.current_thread().name = self._name
        core = self.ws.sock
        try:
            self._stats.connects += 1
            self._opened = True
            self._run.wait()
            if not self._closing:
                self._read(core)
        except Exception as error:
            self._cause = self._cause or error
            if not isinstance(error, OSError | ConnectionLost | websocket.WebSocketException):
                log.exception("The connection ends because of an error of ours")
        finally:
            self._flush()
            core.shutdown()

    def _read(self, core: websocket.WebSocket) -> None:
        """Takes from the socket until it is dry, flushes, waits."""
        sock = core.sock
        core.frame_buffer.recv = self._take
        # Text is decoded strictly in _handle; the library's own check takes longer than all the rest.
        core.frame_buffer.skip_utf8_validation = core.cont_frame.skip_utf8_validation = True
        raws = set(self._callbacks.values())
        only = raws.pop() if len(raws) == 1 else None
        # Frames that begin like this go straight to the callback. Bybit's documentation promises no order of members,
        # so all others take the way through the JSON parser and arrive just the same.
        common = os.path.commonprefix(list(self._callbacks))  # noqa: RUF071 - topics are no paths
        self._prefix = b'{"topic":"' + common.encode()
        self._raw_callback = only if getattr(only, "raw", False) else None

        now = ticked = self._pinged = monotonic()
        self._request([topic for topic in self._callbacks if not self._is_refused(topic, now)])
        sock.settimeout(0)
        readable = select.poll()
        readable.register(sock, select.POLLIN)
        unflushed, flushed = 0, now
        # One for the life of the connection: recv() would allocate as much each time, and fragment memory.
        buffer = memoryview(bytearray(CHUNK))
        while not self._closing:
            dry = False
            try:
                size = sock.recv_into(buffer)
            except _WOULD_BLOCK:
                dry = True
            else:
                if not size:
                    raise ConnectionLost("Bybit cut it without a close frame")
                unflushed += self._feed(core, bytes(buffer[:size]))
            now = monotonic()
            # At once after a pause. Else more is probably there already, to go out in one piece with this.
            if dry or now - flushed >= PAUSE or unflushed >= FLUSH_EVERY:
                self._flush()
                unflushed, flushed = 0, now
                readable.poll(TICK * 1000)
                now = monotonic()
            if now - ticked >= TICK:
                self._tick(now, min(now - ticked, 2 * TICK))
                ticked = now

    def _feed(self, core: websocket.WebSocket, data: bytes) -> int:
        """Hands on every whole frame in what has arrived; returns how many messages that were. Plain text frames under
        64 KiB are cut out here; all that is not such a frame goes through websocket-client, which gets its bytes from
        _take.
        """
        if self._rest:
            data = self._rest + data
        callback, prefix, unseen = self._raw_callback, self._prefix, self._unseen
        look = self._look if self._looks > 0 else None
        messages = position = 0
        end = len(data)
        whole = False
        try:
            while position < end:
                plain = data[position] == 0x81 and not self._partial  # FIN and text
                if plain:
                    start = position + 2
                    if start > end:
                        break
                    length = data[position + 1]
                    if length == 126:
                        start += 2
                        if start > end:
                            break
                        length = data[position + 2] << 8 | data[position + 3]
                    elif length > 126:
                        plain = False
                if not plain:
                    if not (self._partial or _fit(data, position)):
                        break
                    self._rest = data[position:]
                    frame = self._protocol(core)
                    data, position, end = self._rest, 0, len(self._rest)
                    whole = whole or not self._partial
                    if frame is None:
                        continue
                else:
                    if start + length > end:
                        break
                    position = start + length
                    frame = data[start:position]
                    whole = True
                if look is not None:
                    look(frame)
                if callback is not None and frame.startswith(prefix) and frame.isascii():
                    try:
                        callback(frame)
                    except Exception as error:
                        self._failed(callback, error)
                    messages += 1
                    if unseen:
                        unseen.discard(frame[10 : frame.find(b'"', 10)])
                else:
                    messages += self._handle(frame)
                if not messages & 7:
                    self._ping_if_due()  # callbacks that take long must not keep the pings back
            self._rest = data[position:]
        finally:  # also when a frame in the middle of it ends the connection
            if whole:  # mere bytes do not count: a peer may drip them into a frame that never ends
                self._silent = 0.0
            if messages:
                self._stats.messages += messages
                self._stats.last = monotonic()
                self._without_data = 0.0
                self._looks -= messages
        return messages

    def _look(self, frame: bytes) -> None:
        """Reads the few bytes of a message that tell its delay and, of an order-book delta, whether one is missing."""
        try:
            at = frame.index(b'"ts":') + 5
            self._stats.delays.append(time() - int(frame[at : at + 13]) / 1000)
            if frame.startswith(b'{"topic":"orderbook.'):
                topic = frame[10 : frame.index(b'"', 10)]
                at = frame.rindex(b'"u":') + 4
                update = int(frame[at : frame.index(b",", at)])
                expected = self._updates.get(topic, update - 1) + 1
                self._updates[topic] = update
                if update not in (expected, 1) and b'"type":"delta"' in frame[:100]:
                    self._stats.gaps += 1
                    if _once(("gap", topic)):
                        said = "%s: u leapt from %d to %d, a consumer's book is wrong; further leaps are only counted"
                        log.warning(said, topic.decode(), expected - 1, update)
        except ValueError:
            pass  # a message of another form

    def _take(self, size: int) -> bytes:
        """websocket-client's recv: from what has arrived, or _Dry."""
        if not self._rest:
            raise _Dry
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def _protocol(self, core: websocket.WebSocket) -> bytes | None:
        """Lets websocket-client handle what lies at the front of _rest: fragments, control frames, long and broken
        ones. Returns a message, or None if there was none (or not all of it yet).
        """
        try:
            opcode, frame = core.recv_data_frame(True)
        except _Dry:
            self._partial = True
            return None
        self._partial = False
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            code = int.from_bytes(frame.data[:2], "big") if frame.data else "without a code"
            raise ConnectionLost(f"Bybit closed it: {code} {_shown(frame.data[2:].decode(errors='replace'))}".rstrip())
        return bytes(frame.data) if opcode in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY) else None

    def _handle(self, frame: bytes) -> int:
        """A frame that is not plainly data: parsed, and handed on or dealt with. Returns how many messages it was."""
        try:
            text = frame.decode()
        except UnicodeDecodeError as error:
            # RFC 6455, 8.1: a text frame that is not UTF-8 fails the connection.
            raise ConnectionLost(f"a frame that is not UTF-8: {_shown(frame[:80])}") from error
        try:
            message = json.loads(text)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            if _once((self._name, "not an object")):
                log.error("Ignored, here and from now on: a frame that is not a JSON object: %s", _shown(text))
            return 0
        topic = message.get("topic")
        if not isinstance(topic, str):
            self._control(message)
            return 0
        callback = self._callbacks.get(topic)
        if callback is None:
            if _once((self._name, "unknown topic", topic)):
                log.error("Ignored, here and from now on: messages of %s, which was not asked for", _shown(topic))
            return 0
        self._unseen.discard(topic.encode())
        try:
            callback(frame if getattr(callback, "raw", False) else message)
        except Exception as error:
            self._failed(callback, error)
        return 1

    def _failed(self, callback: Callback, error: Exception) -> None:
        """The fault barrier around callbacks: one bad message costs neither the connection nor the others."""
        name = getattr(callback, "__qualname__", repr(callback))
        if _once((name, type(error))):
            log.error("%s failed; its further failures of this kind are not logged", name, exc_info=error)

    def _control(self, message: dict[str, Any]) -> None:
        if message.get("ret_msg") == "pong" or message.get("op") == "pong":
            return
        if message.get("op") == "subscribe" or message.get("type") == "COMMAND_RESP":
            self._answered(message)
        elif _once((self._name, "control", str(message.get("op")), str(message.get("ret_msg")))):
            log.warning("Ignored: a control message that is not known: %s", _shown(message))

    def _answered(self, message: dict[str, Any]) -> None:
        """Bybit's answer to a request. It names no topics but one that it refuses, and on option it has no req_id."""
        request = message.get("req_id") or next(iter(self._pending), None)
        topics = self._pending.pop(request, None) if isinstance(request, str) else None
        if topics is None:
            if _once((self._name, "answer")):
                log.warning("Ignored: an answer to no request of ours: %s", _shown(message))
            return
        data = message.get("data")
        failed = data.get("failTopics") if isinstance(data, dict) else None
        words = _shown(message.get("ret_msg") or "")
        again: list[str] = []
        if isinstance(failed, list) and failed:
            self._refuse([topic for topic in topics if topic in failed], words or "failTopics")
            topics = [topic for topic in topics if topic not in failed]
        elif message.get("success") is not True:
            # The whole request is refused, for the first bad topic in it: ask again for the others.
            named = max((topic for topic in topics if topic in words), key=len, default=None)
            topics, again = [], topics
            if named and "already subscribed" in words:
                topics = [named]
            elif named:
                self._refuse([named], words)
            elif len(again) == 1 and self._subscribed:
                self._refuse([named := again[0]], words)
            elif len(again) == 1:  # nothing is accepted: that is hardly the topic's fault
                raise ConnectionLost(f"the subscription was refused: {words}")
            else:
                half = len(again) // 2
                self._request(again[:half])
                again = again[half:]
            self._request([topic for topic in again if topic != named])
        for topic in topics:
            if _refused.pop((self.endpoint, topic), None):
                log.info("%s is accepted now", topic)
        self._subscribed.update(topics)
        self._stats.topics = len(self._subscribed)
        self._stats.answered = self._stats.answered or not self._pending
        if topics:
            self._announce("subscribed", self._name, topics)
        if not self._pending and self._subscribed:
            self._subscribed_at = self._subscribed_at or monotonic()
            listed = sorted(self._subscribed)
            more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
            log.info("Subscribed to %s%s", ", ".join(listed[:4]), more)

    def _refuse(self, topics: list[str], words: str) -> None:
        for topic in topics:
            self._unseen.discard(topic.encode())
            known = (self.endpoint, topic) in _refused
            _refused[self.endpoint, topic] = monotonic()
            if not known:
                log.error("Bybit refuses %s: %s. Asked again in %g min", topic, words, REFUSED_RETRY / 60)
                self._announce("refused", self._name, [topic], words=words)

    def _is_refused(self, topic: str, now: float) -> bool:
        return now - _refused.get((self.endpoint, topic), -REFUSED_RETRY) < REFUSED_RETRY

    def _request(self, topics: list[str]) -> None:
        most = TOPICS_PER_REQUEST[self._channel_type]
        for first in range(0, len(topics), most):
            request = str(next(self._request_ids))
            self._pending[request] = topics[first : first + most]
            for topic in self._pending[request]:
                if (kind := kind_of_topic(topic)) and kind.starts_with_snapshot:
                    self._unseen.add(topic.encode())  # data may come before the answer
            self._send({"req_id": request, "op": "subscribe", "args": self._pending[request]})
        self._unanswered = 0.0

    def _ping_if_due(self) -> None:
        now = monotonic()
        if now - self._pinged >= PING_INTERVAL:
            self._pinged = now
            self._send({"op": "ping"})

    def _send(self, message: dict[str, Any]) -> None:
        sock = self.ws.sock.sock
        sock.settimeout(STEP_TIMEOUT)
        self.ws.send(json.dumps(message, ensure_ascii=False))
        sock.settimeout(0)

    def _tick(self, now: float, elapsed: float) -> None:
        """What is due by the clock. elapsed: seconds since the last time, as far as this thread looked."""
        self._silent += elapsed
        self._without_data += elapsed
        self._unanswered += elapsed
        self._connected_for += elapsed
        self._stats.due = now + PATIENCE
        if self._looks <= 0:
            self._updates.clear()  # some were not looked into
        self._looks = LOOKS
        if self._silent >= SILENCE_TIMEOUT:
            raise ConnectionLost(f"nothing came for {SILENCE_TIMEOUT:g} s, not even a pong")
        if self._pending and self._unanswered >= ACK_TIMEOUT:
            raise ConnectionLost(f"a subscription was not acknowledged within {ACK_TIMEOUT:g} s")
        if self._stall_timeout and self._subscribed and self._without_data >= self._stall_timeout:
            raise _Stalled(f"no data for {self._stall_timeout:g} s, though pings are answered")
        if self._unseen and self._connected_for >= FIRST_DATA_TIMEOUT:
            for topic in sorted(self._unseen):
                if _once((self.endpoint, topic)):
                    log.warning("%s was accepted, but nothing came: is the symbol right?", topic.decode())
            self._unseen.clear()
        self._ping_if_due()
        if not self._pending:
            missing = [topic for topic in self._callbacks if topic not in self._subscribed]
            self._request([topic for topic in missing if not self._is_refused(topic, now)])
