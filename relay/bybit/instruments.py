"""Bybit's list of instruments: how it is asked for, what of it counts, how one list follows another. Pure.

GET /v5/market/instruments-info: https://bybit-exchange.github.io/docs/v5/market/instrument
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from relay.kinds import is_pattern, is_symbol

# Instruments. Bybit would give 1,000 at once, but no stream reads while a page is parsed: this one takes 2 ms.
PAGE_SIZE = 200
# Bounds of what is believed: pages of one query, instruments of all.
MAX_PAGES, MAX_INSTRUMENTS = 100, 20_000
# Lists in a row that miss an instrument before it is gone. Where more are missing than these few, and this part, also
# the seconds for which lists did: ten minutes, less what the readings may have taken. No longer: a standby that starts
# meanwhile has the new list only, and for ten minutes may have other topics than the leader.
GONE_AFTER, MANY_GONE_AFTER = 2, 570.0
FEW, FEW_PART = 5, 0.1
# Where the REST server's name follows from that of the WebSocket's: Bybit's own hosts, of whatever country.
PLAIN_HOST = re.compile(r"stream(-testnet)?(\.by(?:bit|tick)[a-z-]*(?:\.[a-z]+)+)")

Query = dict[str, str | int]  # parameters of a request
Ask = Callable[..., Any]  # (**query) -> the answer, parsed


class Whole(NamedTuple):
    """A whole list. symbols: those that have data. delivery: of those that have one, its time. time: of the last page,
    as Bybit says it. Unix ms, 0 = it says none.
    """

    symbols: frozenset[str]
    delivery: dict[str, int]
    time: int


class NotWhole(ValueError):
    """What Bybit answered is not the whole list. Its text is the reason."""


def api_base(ws_url: str, api_url: str, testnet: bool) -> str:
    """The base URL of the REST server that belongs to a WebSocket server.

    ws_url, api_url: the settings BYBIT_WS_URL and BYBIT_API_URL, "" = not set. testnet: counts if neither is.
    Raises ValueError with a sentence for the user: it cannot be told.
    """
    if api_url:
        return api_url.rstrip("/")
    if not ws_url:
        return f"https://api{'-testnet' if testnet else ''}.bybit.com"
    parts = urlsplit(ws_url)
    host = PLAIN_HOST.fullmatch(parts.netloc.lower())
    if parts.scheme != "wss" or not host:
        raise ValueError(
            f"BYBIT_API_URL is empty: expected the REST server that belongs to BYBIT_WS_URL={ws_url}, such as "
            "https://api.bybit.kz, because a pattern of symbols needs Bybit's list of instruments"
        )
    return f"https://api{host[1] or ''}{host[2]}"


def expand(wanted: Sequence[str], listed: Collection[str] | None) -> list[str]:
    """The symbols that `wanted` stands for, each once and in its order: names as they are, listed or not; a pattern
    as the sorted names of `listed` that match it, case included.

    listed: None = there is no list yet: a pattern stands for nothing.
    """
    found: dict[str, None] = {}
    for each in wanted:
        found.update(dict.fromkeys(matches(each, listed or ()) if is_pattern(each) else [each]))
    return list(found)


def matches(pattern: str, symbols: Iterable[str]) -> list[str]:
    """The symbols that match, sorted. "ALL" = all; each "*" stands for any characters, or none."""
    if pattern == "ALL":
        return sorted(symbols)
    form = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    return sorted(filter(form.fullmatch, symbols))


def queries(category: str, coins: Sequence[str]) -> list[Query]:
    """The queries that make up the list of a category. coins: base coins, for option, which Bybit lists one by one."""
    if category == "option":
        return [{"category": category, "baseCoin": coin, "limit": PAGE_SIZE} for coin in coins]
    if category == "spot":  # one page, whatever its size
        return [{"category": category}]
    # By default Bybit gives those that trade. The others come first: one that begins to trade meanwhile is in both.
    query: Query = {"category": category, "limit": PAGE_SIZE}
    return [query | {"status": "PreLaunch"}, query | {"status": "Trading"}]


def read_list(ask: Ask, category: str, coins: Sequence[str]) -> Whole:
    """What Bybit lists and has data. ask: makes one request; whatever it raises ends the reading.

    Raises NotWhole. An empty list never is the whole one.
    """
    found: dict[str, int] = {}
    trading, now = False, 0
    for query in queries(category, coins):
        for page in _pages(ask, query):
            now = page["time"] if isinstance(page.get("time"), int) else 0
            symbols = {each["symbol"]: delivery(each) for each in page["result"]["list"] if counts(each, category, now)}
            found |= symbols
            trading = trading or (bool(symbols) and query.get("status") != "PreLaunch")
        if len(found) > MAX_INSTRUMENTS:
            raise NotWhole(f"it has more than {MAX_INSTRUMENTS:,} instruments")
    if not trading:
        raise NotWhole("it is empty")
    return Whole(frozenset(found), {symbol: at for symbol, at in found.items() if at}, now)


def _pages(ask: Ask, query: Query) -> Iterator[dict[str, Any]]:
    """The pages of a query, checked. The last has no cursor, a cursor that was there, or no instruments."""
    cursors: set[str] = set()
    for _ in range(MAX_PAGES):
        page = ask(**query)
        cursor = _checked(page, str(query["category"]))
        yield page
        if not cursor or cursor in cursors or not page["result"]["list"]:
            return
        cursors.add(cursor)
        query = query | {"cursor": cursor}  # it is percent-encoded already, and goes back as it is
    raise NotWhole(f"it has more than {MAX_PAGES} pages")


def _checked(page: Any, category: str) -> str:
    """The cursor of a page, "" = none. Raises NotWhole if it is no page of this category."""
    result = page.get("result") if isinstance(page, dict) else None
    if not isinstance(result, dict) or not isinstance(result.get("list"), list):
        raise NotWhole("the answer has no list")
    if result.get("category", category) != category:
        raise NotWhole(f"the answer is not about {category}")
    if not all(isinstance(each, dict) and isinstance(each.get("symbol"), str) for each in result["list"]):
        raise NotWhole("an instrument has no symbol")
    cursor = result.get("nextPageCursor")
    return cursor if isinstance(cursor, str) else ""


def delivery(instrument: dict[str, Any]) -> int:
    """When it is delivered, Unix ms; 0 = never, as far as is known."""
    text = str(instrument.get("deliveryTime", ""))
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else 0


def counts(instrument: dict[str, Any], category: str, now: int) -> bool:
    """Whether an instrument has data: it trades, or is in the continuous part of pre-market trading.

    now: the time of the answer, Unix ms, 0 = unknown: one that was delivered may still be in the list.
    """
    if not is_symbol(instrument["symbol"]):
        return False  # its topics could not be told from others
    if 0 < delivery(instrument) <= now:
        return False
    status = instrument.get("status")
    if status == "PreLaunch" and category in ("linear", "inverse"):
        phases = instrument.get("preListingInfo")
        return isinstance(phases, dict) and phases.get("curAuctionPhase") == "ContinuousTrading"
    return status == "Trading"


class Roster:
    """What is listed, from one whole list to the next.

    A new instrument counts at once. One that is missing is gone if the next whole list misses it too. Where many are
    missing at once the list is implausible, and they are gone only when all lists of MANY_GONE_AFTER seconds missed
    them: to carry what has ended costs nothing, to end what goes on costs its data. Those whose time of delivery has
    passed do not count among the many: hundreds of options end on a Friday.

    symbols: what is listed; None before the first list.
    """

    def __init__(self) -> None:
        self.symbols: frozenset[str] | None = None
        self._delivery: dict[str, int] = {}  # of those listed, as in Whole
        # Of those listed: how many lists in a row, to the latest, missed each, and when the first of these came.
        self._missed: dict[str, tuple[int, float]] = {}

    def take(self, whole: Whole, now: float) -> bool:
        """The next whole list. Returns whether it is plausible; if not, what it misses stays. now: monotonic time."""
        listed = self.symbols or frozenset()
        known = self._delivery | whole.delivery
        before = self._missed
        missed = {
            symbol: (before[symbol][0] + 1, before[symbol][1]) if symbol in before else (1, now)
            for symbol in listed - whole.symbols
        }
        ended = {symbol for symbol in missed if 0 < known.get(symbol, 0) <= whole.time}
        expected = len(listed) - len(ended)
        many = len(missed) - len(ended) > max(FEW, FEW_PART * expected) or 2 * len(whole.symbols) < expected
        gone = {
            symbol
            for symbol, (times, since) in missed.items()
            if times >= GONE_AFTER and (not many or symbol in ended or now - since >= MANY_GONE_AFTER)
        }
        self.symbols = symbols = (listed | whole.symbols) - gone
        self._delivery = {symbol: at for symbol, at in known.items() if symbol in symbols}
        self._missed = {symbol: each for symbol, each in missed.items() if symbol not in gone}
        return not many or not gone <= ended
