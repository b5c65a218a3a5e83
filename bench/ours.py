"""The runner `ours` with more than four connections: main.py with several entries for each channel."""

import json
import os
import sys

import main
from callbacks.liquidations import handle_liquidations
from callbacks.orderbook import handle_orderbook
from callbacks.ticker import handle_ticker
from callbacks.trades import handle_trades

KINDS = (
    ("OrderBook", main.subscribe_orderbook, handle_orderbook),
    ("Trades", main.subscribe_trades, handle_trades),
    ("Ticker", main.subscribe_ticker, handle_ticker),
    ("Liquidations", main.subscribe_liquidations, handle_liquidations),
)

if __name__ == "__main__":
    main.STREAMS[:] = [
        {"name": f"{name}_{n}", "func": subscribe, "args": (symbols, handler)}
        for n, symbols in enumerate(json.loads(os.environ["BENCH_GROUPS"]))
        for name, subscribe, handler in KINDS
    ]
    sys.exit(main.main())
