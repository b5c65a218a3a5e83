"""What a channel for each symbol costs the collector, and what it saves a consumer: python -m bench.by_symbol

700 symbols, with the mix and the sizes of Bybit's linear stream. Both ways in one run, in turns. `symbols` and
`messages` of the command line make it shorter.
"""

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import redis

from bench import frames
from relay.channels import Publish, by_symbol
from relay.redis.publisher import Publisher
from sandbox.redis import HOST, LocalRedis

PREFIX = "stream:bybit"
KIND = {topic.partition(".")[0]: f"{PREFIX}_{name}" for name, topic in frames.TOPICS.items()}
SYMBOL = "BTCUSDT"
END = b"end"
PASSES = 15
# Redis disconnects a slow subscriber, which is not what is measured here.
CONFIG = ("client-output-buffer-limit pubsub 0 0 0",)

Messages = list[tuple[str, bytes]]  # channel for all, and text


def messages(symbols: int) -> Messages:
    """A cycle of messages, snapshots first."""
    _, cycle = frames.make(symbols // len(frames.COINS))
    texts = [(one.topic, bytes(one.wire[2 if one.wire[1] < 126 else 4 :])) for one in cycle]
    return [(KIND[topic.partition(".")[0]], text) for topic, text in texts]


def callback(publish: Publish) -> Callable[[Messages], None]:
    """What a stream's thread does with messages: callbacks like those in callbacks/."""

    def handler(channel: str) -> Callable[[bytes], None]:
        def handle(message: bytes) -> None:
            publish(channel, message)

        return handle

    handlers = {channel: handler(channel) for channel in KIND.values()}

    def run(found: Messages) -> None:
        for channel, message in found:
            handlers[channel](message)

    return run


def cost(found: Messages, wrap: Callable[[Publish], Publish]) -> Callable[[], float]:
    """A pass over all messages with a publisher that only queues them: microseconds of CPU a message."""
    publisher = Publisher(buffer=1 << 30)
    run = callback(wrap(publisher.publish))

    def measured() -> float:
        backlog = publisher._backlog
        backlog.waiting.clear()
        backlog.waiting_bytes = 0
        began = time.process_time()
        run(found)
        return (time.process_time() - began) / len(found) * 1e6

    return measured


def consume(port: int, channels: list[str], pipe: Connection) -> None:
    """A consumer that wants one symbol: reads until END, and tells what that took. A process of its own."""
    pubsub = redis.Redis(HOST, port, retry=None, socket_timeout=60).pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(*channels, END.decode())
    pubsub.get_message(timeout=1)
    pipe.send("subscribed")
    count = size = wanted = 0
    began = time.process_time()
    for message in pubsub.listen():
        data: bytes = message["data"]
        if data == END:
            break
        count += 1
        size += len(data)
        wanted += f'.{SYMBOL}"'.encode() in data[:60]
    pipe.send((count, size, wanted, time.process_time() - began))


def read_by_one(found: Messages, total: int, wrap: Callable[[Publish], Publish], suffix: str) -> dict[str, Any]:
    """Publishes `total` messages to a Redis with one consumer of one symbol."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with LocalRedis(config=CONFIG) as server, server.client() as client:
        channels = [channel + suffix for channel in KIND.values()]
        process = context.Process(target=consume, args=(server.port, channels, theirs))
        process.start()
        ours.recv()
        publisher = Publisher(HOST, server.port)
        publisher.start()
        run = callback(wrap(publisher.publish))
        used = cpu_of(client)
        endless = itertools.cycle(found)
        for _ in range(0, total, 100):
            run(list(itertools.islice(endless, 100)))
            publisher.flush()
            while publisher.backlog > 20_000:
                time.sleep(0.001)
        assert publisher.stop(time.monotonic() + 60) == 0
        used = cpu_of(client) - used
        client.publish(END.decode(), END)
        count, size, wanted, seconds = ours.recv()
        process.join()
    return {
        "messages": f"{count:,}",
        "of its symbol": f"{wanted:,}",
        "MB": f"{size / 1e6:,.1f}",
        "its CPU s": f"{seconds:,.2f}",
        "Redis's CPU us a message published": f"{used / total * 1e6:.2f}",
    }


def cpu_of(client: redis.Redis) -> float:
    info: Any = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=700)
    parser.add_argument("--messages", type=int, default=200_000)
    options = parser.parse_args()
    found = messages(options.symbols)
    ways = {"a channel for all": (lambda publish: publish, ""), "a channel for each symbol": (by_symbol, f":{SYMBOL}")}
    passes = {name: cost(found, wrap) for name, (wrap, _) in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(PASSES):
        for name, measured in passes.items():
            times[name].append(measured())
    print(f"{options.symbols} symbols; a callback and the backlog, us of CPU a message, {PASSES} passes in turns:")
    for name, values in times.items():
        print(f"  {name:26} median {statistics.median(values):.2f}, least {min(values):.2f}")
    print(f"A consumer of all four kinds of {SYMBOL}, while {options.messages:,} messages are published:")
    for name, (wrap, suffix) in ways.items():
        print(f"  {name:26} {read_by_one(found, options.messages, wrap, suffix)}")


if __name__ == "__main__":
    main()
