"""The runner `naive`: what pybit's README leads to, with `redis.publish` in the callback.

pybit takes no URL, so `PUBLIC_WSS` is patched; all else is as documented: one WebSocket for each channel, default
callbacks, which get pybit's own merged books and tickers, dumped with `json.dumps`.
"""

import json
import os
import time
from typing import Any

import pybit.unified_trading
import redis
from pybit.unified_trading import WebSocket

pybit.unified_trading.PUBLIC_WSS = os.environ["BENCH_URL"] + "/v5/public/{CHANNEL_TYPE}"

client = redis.Redis(host=os.environ["REDIS_HOST"], port=int(os.environ["REDIS_PORT"]))


def handle_orderbook(message: dict[str, Any]) -> None:
    client.publish("stream:bybit_orderbook", json.dumps(message))


def handle_trades(message: dict[str, Any]) -> None:
    client.publish("stream:bybit_trades", json.dumps(message))


def handle_ticker(message: dict[str, Any]) -> None:
    client.publish("stream:bybit_ticker", json.dumps(message))


def handle_liquidations(message: dict[str, Any]) -> None:
    client.publish("stream:bybit_liquidations", json.dumps(message))


def main() -> None:
    sockets = []
    for symbols in json.loads(os.environ["BENCH_GROUPS"]):
        for subscribe, handler in (
            (lambda ws, *args: ws.orderbook_stream(50, *args), handle_orderbook),
            (WebSocket.trade_stream, handle_trades),
            (WebSocket.ticker_stream, handle_ticker),
            (WebSocket.all_liquidation_stream, handle_liquidations),
        ):
            ws = WebSocket(testnet=False, channel_type="linear")
            subscribe(ws, symbols, handler)
            sockets.append(ws)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
