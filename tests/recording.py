"""A made-up recording of Bybit: frames as it sends them, and what it may send tomorrow. For replays in the stand-in."""

import random

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT")
# Members that nobody knows yet; none of them survives a parser and an encoder unchanged.
ODDITIES = (
    "",
    ',"new":1e-7',
    ',"new":-0.0',
    ',"new":[1.10, 2 ,  3]',
    ',"new":123456789012345678901234567890',
    ',"new":{"x":1,"x":2}',
    ',"new":"\\u00fc\\/ €😀\\ud83d"',
)


def frames(rounds=100, seed=1):
    """(seconds, text) of each: order books without a gap, trades and tickers, several of them a round and symbol."""
    dice, u, cs = random.Random(seed), dict.fromkeys(SYMBOLS, 177_400_507), 753_843_900_397
    for number in range(rounds):
        for symbol in SYMBOLS:
            kind, ts, now = "delta" if number else "snapshot", 1_786_310_817_583 + number * 20, number * 0.02
            odd = dice.choice(ODDITIES)
            levels = dice.choice([1, 2, 3, 200]) if number else 200
            sides = [",".join(f'["{65114 - i / 10:.2f}","{dice.random():.3f}"]' for i in range(levels)) for _ in "ba"]
            sides[dice.randrange(2)] *= not number or dice.random() < 0.7
            u[symbol] += 1
            book = f'"b":[{sides[0]}],"a":[{sides[1]}],"u":{u[symbol]},"seq":{u[symbol] * 3}{odd}'
            head = f'{{"topic":"orderbook.200.{symbol}","type":"{kind}","ts":{ts}'
            yield now, f'{head},"data":{{"s":"{symbol}",{book}}},"cts":{ts - 3}}}'
            cs += dice.randint(1, 9)
            ticker = f'"symbol":"{symbol}","lastPrice":"{dice.random():.5f}"{odd}'
            yield now, f'{{"topic":"tickers.{symbol}","type":"{kind}","data":{{{ticker}}},"cs":{cs},"ts":{ts}}}'
            if dice.random() < 0.3:
                trades = ",".join(
                    f'{{"T":{ts},"s":"{symbol}","S":"Buy","v":"0.001","p":"65114.30","i":"{number}-{i}","BT":false{odd}}}'
                    for i in range(dice.choice([1, 2, 40]))
                )
                yield now, f'{{"topic":"publicTrade.{symbol}","type":"snapshot","ts":{ts},"data":[{trades}]}}'


def write(path):
    """Writes it as a replay reads it: arrival in Unix seconds, a tab, the text. Returns the path."""
    lines = [f"{1_786_310_819 + seconds:.6f}\t{text}\n" for seconds, text in frames()]
    path.write_text("".join(lines), encoding="utf-8")
    return path
