"""The runner `ccxt`: its watch* methods in asyncio, one exchange object and so one connection for each channel.

What a watch* method returns is dumped with json.dumps; trades and liquidations by their raw member `info`. watch*
gives the state at the time it is asked: updates that come while the loop is busy are merged into one. The markets are
given by hand, as there is no Bybit to ask for them.
"""

import asyncio
import json
import os
from typing import Any

import ccxt.pro
import redis.asyncio

client = redis.asyncio.Redis(host=os.environ["REDIS_HOST"], port=int(os.environ["REDIS_PORT"]))


def exchange(symbols: list[str]) -> Any:
    made = ccxt.pro.bybit({"cafile": os.environ["SSL_CERT_FILE"], "newUpdates": True})
    made.urls["api"]["ws"]["public"]["linear"] = os.environ["BENCH_URL"] + "/v5/public/linear"
    made.set_markets([market(made, symbol) for symbol in symbols])
    return made


def market(made: Any, symbol: str) -> dict[str, Any]:
    base = symbol.removesuffix("USDT")
    kind = {"type": "swap", "swap": True, "spot": False, "future": False, "option": False, "contract": True}
    money = {"base": base, "quote": "USDT", "settle": "USDT", "linear": True, "inverse": False, "contractSize": 1.0}
    made_up: dict[str, Any] = made.safe_market_structure(
        {"id": symbol, "symbol": unified(symbol), "active": True, **kind, **money}
    )
    return made_up


def unified(symbol: str) -> str:
    return f"{symbol.removesuffix('USDT')}/USDT:USDT"


async def orderbooks(made: Any, symbols: list[str]) -> None:
    while True:
        book = await made.watch_order_book_for_symbols(symbols, 50)
        await client.publish("stream:bybit_orderbook", json.dumps(book))


async def trades(made: Any, symbols: list[str]) -> None:
    while True:
        new = await made.watch_trades_for_symbols(symbols)
        await client.publish("stream:bybit_trades", json.dumps([trade["info"] for trade in new]))


async def tickers(made: Any, symbols: list[str]) -> None:
    while True:
        new = await made.watch_tickers(symbols)
        await client.publish("stream:bybit_ticker", json.dumps(new))


async def liquidations(made: Any, symbol: str) -> None:
    while True:
        new = await made.watch_liquidations(symbol)
        await client.publish("stream:bybit_liquidations", json.dumps([one["info"] for one in new]))


async def main() -> None:
    async with asyncio.TaskGroup() as tasks:
        for ids in json.loads(os.environ["BENCH_GROUPS"]):
            symbols = [unified(symbol) for symbol in ids]
            for watch in (orderbooks, trades, tickers):
                tasks.create_task(watch(exchange(ids), symbols))
            made = exchange(ids)
            for symbol in symbols:
                tasks.create_task(liquidations(made, symbol))


if __name__ == "__main__":
    asyncio.run(main())
