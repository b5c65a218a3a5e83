"""What a ticker reports of a market: its fields in Bybit's order, all of them strings. Pure."""

from sandbox.bybit.market import Market

FUNDING_INTERVAL = 8 * 3600  # seconds


def ticker(market: Market) -> dict[str, str]:
    """The data of a `tickers` message."""
    category = market.instrument.category
    if category == "option":
        return option_ticker(market)
    return spot_ticker(market) if category == "spot" else derivative_ticker(market)


def spot_ticker(market: Market) -> dict[str, str]:
    unit, day = market.instrument, market.day
    return {
        "symbol": unit.symbol,
        "lastPrice": unit.price(day.last),
        "highPrice24h": unit.price(day.high),
        "lowPrice24h": unit.price(day.low),
        "prevPrice24h": unit.price(day.day_ago),
        "volume24h": unit.size(day.volume),
        "turnover24h": unit.number(turnover(market), 8),
        "price24hPcnt": f"{day.last / day.day_ago - 1:.4f}",
        "usdIndexPrice": f"{market.index * unit.tick:.{unit.decimals + 4}f}",
    }


def derivative_ticker(market: Market) -> dict[str, str]:
    """linear and inverse; on inverse sizes are in US dollars and values in coins."""
    unit, day, book = market.instrument, market.day, market.book
    inverse = unit.category == "inverse"
    mark = market.mark * unit.tick
    interest = market.open_interest / 10**unit.size_decimals
    value = interest / mark if inverse else interest * mark
    traded = day.volume / (book.mid * unit.tick) if inverse else turnover(market)
    bid, ask = book.bids.best, book.asks.best
    return {
        "symbol": unit.symbol,
        "tickDirection": day.direction,
        "price24hPcnt": f"{day.last / day.day_ago - 1:.6f}",
        "lastPrice": unit.price(day.last),
        "prevPrice24h": unit.price(day.day_ago),
        "highPrice24h": unit.price(day.high),
        "lowPrice24h": unit.price(day.low),
        "prevPrice1h": unit.price(day.hour_ago),
        "markPrice": unit.price(market.mark),
        "indexPrice": unit.price(market.index),
        "openInterest": unit.size(market.open_interest),
        "openInterestValue": f"{value:.2f}",
        "singleOpenInterest": unit.size(market.open_interest / 2),
        "singleOpenInterestValue": f"{value / 2:.2f}",
        "turnover24h": f"{traded:.4f}",
        "volume24h": f"{day.volume / 10**unit.size_decimals:.4f}",
        "fundingIntervalHour": str(FUNDING_INTERVAL // 3600),
        "fundingCap": "0.005",
        "nextFundingTime": str((int(market.clock()) // FUNDING_INTERVAL + 1) * FUNDING_INTERVAL * 1000),
        "fundingRate": f"{market.funding:.8f}".rstrip("0"),
        "bid1Price": unit.price(bid),
        "bid1Size": unit.size(book.bids.sizes[bid]),
        "ask1Price": unit.price(ask),
        "ask1Size": unit.size(book.asks.sizes[ask]),
        "preOpenPrice": "",
        "preQty": "",
        "curPreListingPhase": "",
    }


def option_ticker(market: Market) -> dict[str, str]:
    unit, day, book = market.instrument, market.day, market.book
    bid, ask = book.bids.best, book.asks.best
    zeros = ("openInterest", "turnover24h", "volume24h", "totalVolume", "totalTurnover")
    return {
        "symbol": unit.symbol,
        "bidPrice": unit.price(bid),
        "bidSize": unit.size(book.bids.sizes[bid]),
        "bidIv": f"{0.3285 * bid / market.start:.4f}",
        "askPrice": unit.price(ask),
        "askSize": unit.size(book.asks.sizes[ask]),
        "askIv": f"{0.4489 * -ask / market.start:.4f}",
        "lastPrice": unit.price(day.last),
        "highPrice24h": unit.price(day.high),
        "lowPrice24h": unit.price(day.low),
        "markPrice": unit.price(book.mid),
        "indexPrice": "83885",
        "markPriceIv": f"{0.3868 * book.mid / market.start:.4f}",
        "underlyingPrice": f"{86977.1 * market.index / market.start:.1f}",
        **dict.fromkeys(zeros, "0"),
        "delta": "-0.5",
        "gamma": "0.00001",
        "vega": "100",
        "theta": "-40",
        "predictedDeliveryPrice": "0",
        "change24h": "0",
    }


def turnover(market: Market) -> float:
    """The day's turnover in quote coin."""
    unit = market.instrument
    return market.day.turnover * unit.tick / float(10**unit.size_decimals)
