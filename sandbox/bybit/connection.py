"""One connection as Bybit treats it: requests, topics and data; and the faults to hit the client with."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sandbox.bybit.dialect import Dialect, Reply
from sandbox.bybit.link import Link
from sandbox.bybit.loop import LoopThread, on_loop
from sandbox.bybit.script import Script
from sandbox.bybit.state import Delivery, Pause, Phase
from sandbox.bybit.view import View
from sandbox.bybit.wire import binary_frame, text_frame, topic_of
from sandbox.bybit.writer import CLOSE_TIMEOUT

if TYPE_CHECKING:
    from sandbox.bybit.sources import Source

SHOWN = 8  # topics in what a test says when it fails
HELD = 0.02  # seconds after which trades that were held back for the next frame are sent without it


class Connection(Link):
    """One TCP connection. The faults and `send*` may be called from any thread; all else is the server's thread.

    Attributes:
        port: the server's, on which it was accepted.
        requests: the client's requests, parsed, in order.
        feeds: topics subscribed now, each with what feeds it.
    """

    def __init__(
        self, loop: LoopThread, source: Source, script: Script, conn_id: str, record: bool, view: View, port: int
    ) -> None:
        super().__init__(loop, script)
        self.port = port
        self.requests: list[dict[str, object]] = []
        self.feeds: dict[str, object] = {}
        self._source = source
        self._dialect = Dialect(script, conn_id, source.knows)
        self._delivery = Delivery(record)
        self._view = view

    def __repr__(self) -> str:
        end = "open" if self.closed is None else f"closed after {self.closed - self.accepted:.3f} s"
        topics = sorted(self.feeds)
        shown = f"{topics[:SHOWN]} of {len(topics)} topics" if len(topics) > SHOWN else f"{topics}"
        return f"<{self.path or 'no handshake'} {end}, {len(self.requests)} requests, {self.count} data, {shown}>"

    @property
    def topics(self) -> set[str]:
        """The topics now subscribed (and acknowledged, if acknowledgements come first)."""
        return set(self.feeds)

    @property
    def count(self) -> int:
        """Data frames sent."""
        return self._delivery.count

    @property
    def sent(self) -> list[str]:
        """The data frames sent, if the server records."""
        return self._delivery.texts

    @on_loop
    def drop(self) -> None:
        """Ends the TCP connection with FIN, without a close frame, after what was already sent."""
        self._drop()

    @on_loop
    def reset(self) -> None:
        """Ends the TCP connection with RST."""
        self._phase = Phase.ENDED
        self._writer.reset()

    @on_loop
    def close(self, code: int = 1000, reason: str = "") -> None:
        """Sends a close frame; the TCP connection ends when the client has answered it, or soon after."""
        if self._phase is Phase.OPEN and not self._pause.frozen:
            self._websocket.send_close(code, reason)
            self._write_websocket()
            self._phase = Phase.CLOSING
            self.loop.later(CLOSE_TIMEOUT, self._writer.abort)

    @property
    def holds_trades(self) -> bool:
        """Whether trades wait for the next frame of their topic, see `cut_trades`."""
        return self._view.holds_any

    @on_loop
    def freeze(self) -> None:
        """Nothing more is read, sent or answered, and the TCP connection stays open."""
        self._writer.flush()
        self._pause.frozen = True

    @on_loop
    def freeze_inside_frame(self) -> None:
        """Sends the header and the first half of a data frame (the last one again), then freezes."""
        text = self._delivery.last
        frame = text_frame(text)
        middle = len(frame) - len(text.encode()) // 2
        self._write(frame[:middle])
        self._pause.unsent = text, frame[middle:]
        self.freeze()

    @on_loop
    def silence(self, *topics: str) -> None:
        """No more data, of these topics or of all; requests and pings are still answered.

        The silence of a topic ends when it is subscribed again.
        """
        if topics:
            self._view.silent.update(topics)
        else:
            self._pause.silent = True

    @on_loop
    def omit(self, topic: str, frames: int = 1) -> None:
        """Leaves out the next frames of a topic: a gap. Snapshots for a new subscription are sent all the same."""
        self._view.omitted[topic] += frames

    @on_loop
    def resume(self) -> None:
        """Ends freeze and silence; the data of the meantime is lost, so topics of the market begin with a snapshot."""
        pause, self._pause = self._pause, Pause()
        if pause.unsent:
            text, rest = pause.unsent
            self._write(rest)
            self._count(text)
        if pause.unread:
            self.data_received(pause.unread)
        self._view.resume()
        self._source.resume(self, list(self.feeds))

    @on_loop
    def send(self, text: str) -> None:
        """Sends a text frame to this connection, even if silenced."""
        self._write(text_frame(text))
        if topic_of(text):
            self._count(text)

    @on_loop
    def send_binary(self, data: bytes) -> None:
        """Sends a binary frame."""
        self._write(binary_frame(data))

    @on_loop
    def send_raw(self, data: bytes) -> None:
        """Puts bytes on the socket as they are, for broken frames."""
        self._write(data)

    # From here on the server's thread.

    def data(self, topic: str, text: str, frame: bytes) -> None:
        """Sends a data frame (its text, its bytes) as this connection gets it, unless silenced or frozen."""
        if self._pause.silent or not self._sending:
            return
        if self._view.clear:
            self._write(frame)
            self._count(text)
            return
        for each in self._view.texts(topic, text):
            self._send_data(each)
        if self._view.holds(topic):
            self.loop.later(HELD, lambda: self._release(topic))

    def snapshot(self, topic: str, text: str) -> None:
        """Sends what a topic begins with."""
        if topic not in self._view.bare and not self._pause.silent:
            self._send_data(self._view.stamped(text))

    def _release(self, topic: str) -> None:
        """Sends the trades that were held back."""
        for each in self._view.release(topic):
            self._send_data(each)

    def _send_data(self, text: str) -> None:
        self._write(text_frame(text))
        self._count(text)

    def _count(self, text: str) -> None:
        """Counts a data frame and does what is due after it."""
        if not self._sending:
            return
        for reply in self._delivery.add(text):
            self._write(text_frame(reply))
        count, script = self.count, self.script
        for after, payload in script.inject:
            if after == count:
                self.send(payload) if isinstance(payload, str) else self.send_binary(payload)
        if script.end and script.end_after == count:
            self._end()

    def _end(self) -> None:
        """The end that the script wants."""
        if self.script.end == "close":
            self.close(self.script.close_code)
        elif self.script.end:
            getattr(self, self.script.end.replace(" ", "_"))()

    def _opened(self) -> None:
        self._dialect.category = self.category
        if self.script.end and not self.script.end_after:
            self._end()

    def _ended(self) -> None:
        self._source.leave(self, list(self.feeds))

    def _received(self, text: str) -> None:
        reply = self._dialect.answer(text, time.time_ns() // 1_000_000)
        if reply.request is not None:
            self.requests.append(reply.request)
            self.loop.notify()
        if not reply.text:
            self.drop()
            return
        self._source.leave(self, reply.end)
        self._view.end(reply.end)
        for topic in reply.end:
            self.feeds.pop(topic, None)
        if reply.acknowledges:
            self._acknowledge(reply)
        else:
            self._write(text_frame(reply.text))

    def _acknowledge(self, reply: Reply) -> None:
        """Answers a (un)subscription when the script says, and lets its data flow before or after."""
        delay, before = self.script.ack_delay, self.script.data_before_ack
        if before and reply.begin:
            if delay is not None:
                self._delivery.waiting.append((self.count + before, reply.text))
            self._begin(reply.begin)
        elif delay is not None:

            def answer() -> None:
                self._write(text_frame(reply.text))
                self._begin(reply.begin)

            self.loop.later(delay, answer)

    def _begin(self, topics: Iterable[str]) -> None:
        """Lets the data of those topics flow that were not unsubscribed meanwhile."""
        wanted = [topic for topic in topics if topic in self._dialect.requested]
        if wanted and self._phase.sends:
            self._view.begin(wanted)
            self.feeds.update(dict.fromkeys(wanted, self._source.begin(self, wanted)))
            self.loop.notify()
