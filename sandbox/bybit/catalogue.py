"""What the stand-in's REST answers: GET /v5/market/instruments-info, page by page. Pure.

https://bybit-exchange.github.io/docs/v5/market/instrument
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, quote

from sandbox.bybit.dialect import CATEGORIES
from sandbox.bybit.market import instrument
from sandbox.bybit.script import RestScript

DEFAULT_LIMIT = 500
STATUSES = {"option": ("PreLaunch", "Trading", "Delivering")}  # those of a query without a status; elsewhere: Trading
LAUNCHED = "1585526400000"  # Unix ms
CONTINUOUS = "ContinuousTrading"  # the phase of pre-market trading with books and trades

Details = dict[str, Any]


class Catalogue:
    """The instruments of all categories.

    Args:
        symbols: gives those that trade, by category.
    """

    def __init__(self, symbols: Callable[[], Mapping[str, Sequence[str]]]) -> None:
        self._symbols = symbols
        self._details: dict[tuple[str, str], Details] = {}  # of those that differ from others
        self._made: dict[tuple[str, str], Details] = {}

    def put(self, category: str, symbol: str, status: str, phase: str, delivery: int) -> None:
        """Lists an instrument, or changes it. See `Bybit.list`."""
        details: Details = {"status": status, "deliveryTime": str(delivery)}
        if phase:
            details |= {"isPreListing": True, "preListingInfo": {"curAuctionPhase": phase, "phases": []}}
        self._details[category, symbol] = details

    def remove(self, category: str, symbol: str) -> None:
        self._details.pop((category, symbol), None)

    def answer(self, query: str, script: RestScript, now: int) -> Details:
        """The answer to a request.

        Args:
            query: of its URL, percent-encoded.
            now: Unix ms.
        """
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        category = asked.get("category", "")
        if script.ret_code:
            return envelope(script.ret_code, script.ret_msg, {}, now)
        if category not in CATEGORIES:
            return envelope(10001, "params error: Category is invalid", {}, now)
        found = self._found(category, asked)
        match script.listing:
            case "empty":
                found = []
            case "half":
                found = found[: len(found) // 2]
        if category == "spot":
            return envelope(0, "OK", {"category": category, "list": found}, now)
        limit = min(int(asked.get("limit", DEFAULT_LIMIT)), script.page_size)
        start = 0
        if cursor := asked.get("cursor"):
            last = re.fullmatch("first=.*&last=(.*)", cursor)
            if not last:
                return envelope(10001, "params error: cursor is invalid", {}, now)
            start = sum(each["symbol"] <= last[1] for each in found)
        page = found[start : start + limit]
        if script.without_page == start // limit + 1:
            page = []
        more = bool(page) and (start + limit < len(found) or script.cursor_at_end)
        following = quote(f"first={page[0]['symbol']}&last={page[-1]['symbol']}", safe="") if more else ""
        return envelope(0, "OK", {"category": category, "list": page, "nextPageCursor": following}, now)

    def _found(self, category: str, asked: Mapping[str, str]) -> list[Details]:
        """The instruments that a query is about, by name."""
        names = {*self._symbols().get(category, ()), *(name for own, name in self._details if own == category)}
        statuses = [asked["status"]] if "status" in asked else STATUSES.get(category, ("Trading",))
        coin = asked.get("baseCoin", "BTC" if category == "option" else "")
        found = [self._instrument(category, name) for name in sorted(names)]
        return [
            each
            for each in found
            if each["status"] in statuses
            and (category == "spot" or coin in ("", each["baseCoin"]))
            and asked.get("symbol", each["symbol"]) == each["symbol"]
        ]

    def _instrument(self, category: str, symbol: str) -> Details:
        key = category, symbol
        if key not in self._made:
            self._made[key] = members(category, symbol)
        return self._made[key] | self._details.get(key, {})


def members(category: str, symbol: str) -> Details:
    """What Bybit says of an instrument that trades, in its order, as far as consumers use it."""
    unit = instrument(category, symbol)
    parts = re.match(r"(.+?)-?(USDT|USDC|PERP|USD|EUR)", symbol) or re.match(r"([^-]+)(-.*)?", symbol)
    base = symbol.split("-")[0] if category == "option" else parts[1] if parts else symbol
    quoted = "USDT" if symbol.endswith("USDT") else "USDC" if category != "inverse" else "USD"
    tick, lot = f"{unit.tick:.{unit.decimals}f}", f"{10.0**-unit.size_decimals:.{unit.size_decimals}f}"
    coins = {"baseCoin": base, "quoteCoin": quoted}
    if category == "spot":
        lots = {"basePrecision": lot, "minOrderQty": lot, "maxOrderQty": "71.73956243", "minOrderAmt": "5"}
        spot = {"innovation": "0", "symbolType": "", "status": "Trading", "marginTrading": "utaOnly", "stTag": "0"}
        return {"symbol": symbol, **coins, **spot, "lotSizeFilter": lots, "priceFilter": {"tickSize": tick}}
    settle = {"settleCoin": base if category == "inverse" else quoted}
    times = {"launchTime": LAUNCHED, "deliveryTime": "0", "deliveryFeeRate": ""}
    filters = {
        "priceFilter": {"minPrice": tick, "maxPrice": "1999999.80", "tickSize": tick},
        "lotSizeFilter": {"maxOrderQty": "1190.000", "minOrderQty": lot, "qtyStep": lot},
    }
    if category == "option":
        side = {"optionsType": "Put" if "-P" in symbol else "Call"}
        return {"symbol": symbol, **side, "status": "Trading", **coins, **settle, **times, **filters}
    kind = ("Inverse" if category == "inverse" else "Linear") + ("Futures" if "-" in symbol else "Perpetual")
    return {
        **{"symbol": symbol, "contractType": kind, "status": "Trading", **coins, **times},
        **{"priceScale": str(unit.decimals), "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00"}},
        **filters,
        **{"unifiedMarginTrade": True, "fundingInterval": 480, **settle, "copyTrading": "both"},
        **{"upperFundingRate": "0.00375", "lowerFundingRate": "-0.00375"},
        **{"isPreListing": False, "preListingInfo": None, "displayName": "", "symbolType": ""},
    }


def envelope(code: int, text: str, result: Details, now: int) -> Details:
    return {"retCode": code, "retMsg": text, "result": result, "retExtInfo": {}, "time": now}


def many_symbols(first: Sequence[str], count: int) -> list[str]:
    """`count` symbols: the first ones, then invented ones as long as Bybit's are on average."""
    return [*first, *(f"C{n:03}USDT" for n in range(1, count + 1))][:count]
