"""Bybit's answers: a request in, a reply out, in each category's form.

Pure: no socket, no clock, no thread. Protocol: https://bybit-exchange.github.io/docs/v5/ws/connect
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.bybit.script import Script
from sandbox.bybit.wire import compact

CATEGORIES = ("spot", "linear", "inverse", "option")
DEPTHS = {"option": ("25", "100")} | dict.fromkeys(("spot", "linear", "inverse"), ("1", "50", "200", "1000"))
SPOT_ARGS = 10  # topics in one spot request
ARGS_LENGTH = 21_000  # characters of the JSON text of all args of one connection


@dataclass(frozen=True)
class Reply:
    """What the server does with one text from a client.

    Attributes:
        text: the reply, a JSON text; "" = the connection is dropped without one.
        request: the parsed request; None when the text is no request.
        acknowledges: the text answers a (un)subscription, so `Script.ack_delay` holds for it.
        begin: topics whose data starts.
        end: topics whose data ends at once.
    """

    text: str
    request: dict[str, Any] | None = None
    acknowledges: bool = False
    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()


class Dialect:
    """The answers of one connection.

    Args:
        script: which topics to reject, and how.
        conn_id: the connection's id in replies.
        knows: whether a category has a topic.

    Attributes:
        category: as in the connection's path; set at the handshake.
        requested: topics of accepted requests, acknowledged or not.
    """

    def __init__(self, script: Script, conn_id: str, knows: Callable[[str, str], bool], category: str = "") -> None:
        self.category = category
        self.requested: set[str] = set()
        self._script, self._conn_id, self._knows = script, conn_id, knows

    def answer(self, text: str, now: int) -> Reply:
        """What to do with a client's text at `now` (Unix ms)."""
        try:
            request = json.loads(text)
            if not isinstance(request, dict) or not isinstance(request.get("args", []), list | None):
                raise ValueError(text)
        except ValueError:
            return Reply(self._response({}, "", False, decode_error(text)))
        topics = [str(topic) for topic in request.get("args") or []]
        match request.get("op"):
            case "ping" if self.category == "option":
                return Reply(compact({"args": [str(now)], "op": "pong"}), request)
            case "ping":
                return Reply(self._response(request, "ping", True, "pong"), request)
            case "subscribe":
                return self._subscribe(request, topics)
            case "unsubscribe":
                return self._unsubscribe(request, topics)
        return Reply(self._response(request, "", False, "error:invalid op"), request)

    def _subscribe(self, request: dict[str, Any], topics: list[str]) -> Reply:
        if len(compact([*self.requested, *topics])) > ARGS_LENGTH:
            if self._script.overflow == "close":
                return Reply("", request)
            reason: str | None = f"args length >{ARGS_LENGTH}"
        else:
            reason = self._rejection(topics)
        if reason:
            return Reply(self._response(request, "subscribe", False, reason), request, acknowledges=True)
        failed = [topic for topic in topics if topic in self._script.refuse]
        accepted = [topic for topic in topics if topic not in failed]
        self.requested.update(accepted)
        if self.category == "option":
            text = self._command_response(failed, accepted)
        else:
            text = self._response(request, "subscribe", True, "subscribe" if self.category == "spot" else "")
        return Reply(text, request, acknowledges=True, begin=tuple(accepted))

    def _rejection(self, topics: list[str]) -> str | None:
        """Why Bybit rejects the whole request: the ret_msg, or None. Option rejects nothing."""
        if self.category == "option":
            return None
        if self.category == "spot" and len(topics) > SPOT_ARGS:
            return f"args size >{SPOT_ARGS}"
        for n, topic in enumerate(topics):
            if topic in self._script.refuse or not self._knows(self.category, topic):
                if self.category == "spot":
                    return "Invalid symbol" if self._script.unnamed else f"Invalid symbol :[{topic}]"
                return "error:handler not found" + ("" if self._script.unnamed else f",topic:{topic}")
            if topic in self.requested or topic in topics[:n]:
                return "error:already subscribed" + ("" if self._script.unnamed else f",topic:{topic}")
        return None

    def _unsubscribe(self, request: dict[str, Any], topics: list[str]) -> Reply:
        self.requested.difference_update(topics)
        if self.category == "option":
            text = self._command_response([], topics)
        else:
            text = self._response(request, "unsubscribe", True, "unsubscribe" if self.category == "spot" else "")
        return Reply(text, request, acknowledges=True, end=tuple(topics))

    def _response(self, request: dict[str, Any], op: str, success: bool, ret_msg: str) -> str:
        """The reply of spot, linear and inverse; spot leaves req_id out where the request had none."""
        reply = {"success": success, "ret_msg": ret_msg, "conn_id": self._conn_id}
        if self.category != "spot" or request.get("req_id"):
            reply["req_id"] = request.get("req_id") or ""
        return compact(reply | {"op": op})

    def _command_response(self, failed: list[str], topics: list[str]) -> str:
        """The reply of option to (un)subscriptions."""
        data = {"failTopics": failed, "successTopics": topics}
        return compact({"success": not failed, "conn_id": self._conn_id, "data": data, "type": "COMMAND_RESP"})


def has_topic(symbols: Mapping[str, Sequence[str]], category: str, topic: str) -> bool:
    """Whether Bybit has the topic, given the symbols of each category; case matters."""
    names = symbols.get(category, ())
    match topic.split("."):
        case ["orderbook", depth, symbol]:
            return depth in DEPTHS[category] and symbol in names
        case ["publicTrade", coin] if category == "option":
            return bool(contracts_of(names, coin))
        case ["publicTrade" | "tickers", symbol]:
            return symbol in names
        case ["allLiquidation", symbol]:
            return category in ("linear", "inverse") and symbol in names
    return False


def contracts_of(symbols: Sequence[str], coin: str) -> list[str]:
    """The option contracts of a base coin."""
    return [symbol for symbol in symbols if symbol.split("-")[0] == coin]


def decode_error(text: str) -> str:
    """What Bybit's JSON library reports for text that is no JSON object."""
    start = text.lstrip()[:1]
    problem = f"readObjectStart: expect {{ or n, but found {start}" if start != "{" else "readObject: invalid object"
    return (
        f"Failed to decode incoming data:{problem}, error found in #1 byte of ...|{text[:10]}|..., "
        f"bigger context ...|{text[:100]}|..."
    )
