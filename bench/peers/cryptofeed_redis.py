"""The runner `cryptofeed`: a feed for each channel, callbacks that publish with redis.asyncio.

It publishes the raw message, or the raw part of it that cryptofeed hands over, so as not to count its own JSON forms.
Symbols and the address are given by hand, as there is no Bybit to ask. It knows one order-book depth (200), for which
it gets the frames of the others' 50, and not yet the topic allLiquidation.
"""

import asyncio
import json
import os
from decimal import Decimal
from typing import Any

import redis.asyncio
from cryptofeed import FeedHandler
from cryptofeed.connection import WebsocketEndpoint
from cryptofeed.defines import L2_BOOK, PERPETUAL, TICKER, TRADES
from cryptofeed.exchanges import Bybit
from cryptofeed.symbols import Symbol, Symbols

client = redis.asyncio.Redis(host=os.environ["REDIS_HOST"], port=int(os.environ["REDIS_PORT"]))


def plain(value: Any) -> str:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(type(value))


async def orderbook(book: Any, _received: float) -> None:
    await client.publish("stream:bybit_orderbook", json.dumps(book.raw, default=plain))


async def trade(one: Any, _received: float) -> None:
    await client.publish("stream:bybit_trades", json.dumps(one.raw, default=plain))


async def ticker(one: Any, _received: float) -> None:
    await client.publish("stream:bybit_ticker", json.dumps({"data": one.raw, "ts": int(one.timestamp)}, default=plain))


def main() -> None:
    groups = json.loads(os.environ["BENCH_GROUPS"])
    symbols = {
        symbol: Symbol(symbol.removesuffix("USDT"), "USDT", type=PERPETUAL).normalized
        for group in groups
        for symbol in group
    }
    names = {normalized: symbol for symbol, normalized in symbols.items()}
    info = {"tick_size": dict.fromkeys(names, "0.01"), "instrument_type": dict.fromkeys(names, PERPETUAL)}
    Symbols.set(Bybit.id, names, info)
    Bybit.websocket_endpoints = [
        WebsocketEndpoint(
            os.environ["BENCH_URL"] + "/v5/public/linear",
            instrument_filter=("TYPE", (PERPETUAL,)),
            options={"compression": None},
        )
    ]
    handler = FeedHandler(config={"uvloop": True, "log": {"disabled": True}})
    for group in groups:
        for channel, callback in ((L2_BOOK, orderbook), (TRADES, trade), (TICKER, ticker)):
            chosen = [symbols[symbol] for symbol in group]
            handler.add_feed(Bybit(symbols=chosen, channels=[channel], callbacks={channel: callback}))
    asyncio.set_event_loop(asyncio.new_event_loop())  # with uvloop's policy there is none to begin with
    handler.run()


if __name__ == "__main__":
    main()
