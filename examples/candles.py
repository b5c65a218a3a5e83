"""Makes one-second candles of trades, and marks those that may lack some: python examples/candles.py [SYMBOL …]

    12:00:01 BTCUSDT open 65111.40 high 65112.00 low 65110.00 close 65110.00 volume 12.750 trades 34
    12:00:03.412 BTCUSDT --- trades may be missing here: lost: Bybit closed the TCP connection without a close frame
    12:00:03 BTCUSDT open 65110.00 high 65110.10 low 65109.90 close 65110.00 volume 0.310 trades 3 INCOMPLETE: lost: …
    12:00:01 BTCUSDT open 65111.40 high 65112.00 low 65110.00 close 65109.80 volume 12.900 trades 35 CORRECTED

- A trade belongs to the second of its own time, T, in UTC. Its place in the candle is that of T and seq.
- A candle is closed, and printed, when a second has passed after its end by the time of the trades: T of the last one,
  and what has passed since it came. A trade that comes later still has its candle printed again: CORRECTED. One that is
  more than 30 s late is only told of.
- INCOMPLETE: trades may be missing. It is said of the candle of the last trade before a loss, of that of the first one
  after it, and of the very first one. The collector tells up to two seconds later of what Redis rejected (dropped):
  these two seconds count too. A candle that was printed already is printed again.
- A second without trades has no candle. What comes twice counts once. Block trades count as the others.

Without a SYMBOL it shows BTCUSDT; on option name the coin, such as BTC: each contract has its candles.

Needs redis-py, and synced.py, terminal.py and trades.py, which are beside this file. The environment variables
REDIS_HOST, REDIS_PORT, REDIS_PASSWORD, CHANNEL_PREFIX and CHANNEL_BY_SYMBOL have the collector's defaults. REDIS_HOST
takes one host name here, and no .env is read; for Sentinel change one line of terminal.py, see docs/consuming.md; for
TLS add ssl=True there.
"""

import argparse
import time
from collections import defaultdict
from contextlib import suppress
from decimal import Decimal
from typing import NamedTuple

from terminal import connection
from trades import clock, follow, loss

WAIT, KEPT = 1000, 30  # ms that a candle waits for late trades; seconds that it can be corrected
LATE = 2  # seconds until `dropped` tells at most; each other loss is told of in its place among the trades


class Candle(NamedTuple):
    """second: since 1970. Prices are in Bybit's own digits. incomplete: why it may lack trades, or ""."""

    second: int
    symbol: str
    open: str
    high: str
    low: str
    close: str
    volume: Decimal
    trades: int
    incomplete: str
    corrected: bool  # it has been shown before


class Candles:
    """The candles of one topic. It does no I/O and reads no clock: `now` is monotonic seconds.

    trades: by second and symbol, those that it keeps. due: which of them are not shown yet, or have changed since.
    newest: second of the latest trade. gaps: [first second, last second or None, reason], where trades may be missing.
    """

    def __init__(self):
        self.trades, self.due, self.shown = defaultdict(list), set(), set()
        self.gaps, self.newest = [[0, None, "it began in the middle"]], 0
        self.time, self.at = 0, 0.0  # T of the trade that came last, ms; when it came

    def add(self, trade, now):
        """Takes a trade that it has not had. Returns False if that is too late for its candle."""
        self.time, self.at, second = trade["T"], now, trade["T"] // 1000
        if second < self.newest - KEPT:
            return False
        self.newest = max(self.newest, second)
        if self.gaps and self.gaps[-1][1] is None:
            self.gaps[-1][1] = second
        key = second, trade["s"]
        self.trades[key].append((trade["T"], trade.get("seq", 0), trade["p"], trade["v"]))
        self.due.add(key)
        return True

    def lose(self, reason):
        """Trades may be missing between the one that came last and the one that comes next."""
        if self.gaps and self.gaps[-1][1] is None:
            return
        first = self.newest - LATE * reason.startswith("dropped")
        self.gaps.append([first, None, reason])
        self.due |= {key for key in self.trades if key[0] >= first}

    def closed(self, now):
        """The candles that are to be shown now, the oldest first."""
        until = self.time + (now - self.at) * 1000 - WAIT
        keys = sorted(key for key in self.due if (key[0] + 1) * 1000 <= until)
        made = [self.candle(*key) for key in keys]
        self.due.difference_update(keys)
        self.shown.update(keys)
        for key in [key for key in self.trades if key[0] < self.newest - KEPT]:
            del self.trades[key]
            self.shown.discard(key)
            self.due.discard(key)
        self.gaps = [gap for gap in self.gaps if gap[1] is None or gap[1] >= self.newest - KEPT]
        return made

    def candle(self, second, symbol):
        in_order = sorted(self.trades[second, symbol], key=lambda trade: trade[:2])  # those of one message stay so
        prices = [price for _, _, price, _ in in_order]
        high, low = max(prices, key=Decimal), min(prices, key=Decimal)
        volume = sum(Decimal(size) for _, _, _, size in in_order)
        reason = next((why for first, last, why in self.gaps if first <= second <= (last or second)), "")
        corrected = (second, symbol) in self.shown
        return Candle(second, symbol, prices[0], high, low, prices[-1], volume, len(prices), reason, corrected)


def line(candle):
    prices = f"open {candle.open} high {candle.high} low {candle.low} close {candle.close}"
    notes = f" INCOMPLETE: {candle.incomplete}" * bool(candle.incomplete) + " CORRECTED" * candle.corrected
    time_of_day = clock(candle.second * 1000)[:8]
    return f"{time_of_day} {candle.symbol} {prices} volume {candle.volume:f} trades {candle.trades}{notes}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("symbols", metavar="SYMBOL", nargs="*", default=["BTCUSDT"])
    symbols = parser.parse_args().symbols
    client, prefix, by_symbol = connection()
    candles, next_look = defaultdict(Candles), 0.0
    with suppress(KeyboardInterrupt, BrokenPipeError):  # or whoever reads this, such as head, has enough
        for entries in follow(client, prefix, symbols, by_symbol):
            now = time.monotonic()
            for topic, trade, reason in entries:
                if reason:
                    print(loss(topic, reason), flush=True)
                    candles[topic].lose(reason)
                elif not candles[topic].add(trade, now):
                    print(f"{clock(trade['T'])} {trade['s']} a trade came too late for its candle", flush=True)
            if now >= next_look:
                next_look = now + 0.1
                for each in candles.values():
                    for candle in each.closed(now):
                        print(line(candle), flush=True)


if __name__ == "__main__":
    main()
