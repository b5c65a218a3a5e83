"""Serves what the collectors say of themselves to Prometheus: python examples/exporter.py [PREFIX …] [--listen ADDRESS]

One exporter serves all collectors whose state hash is in this Redis. PREFIX is a CHANNEL_PREFIX, or a pattern of Redis
such as 'stream:bybit*'. New ones are found within 2 s; the states are read anew at each scrape; the events of the
status channels are counted. deploy/prometheus has a configuration and alerts, deploy/grafana a dashboard.

A state older than 3 s is not shown: its collector is dead, or cut off from Redis. Only bybit_collector_up 0 and
bybit_collector_state_age_seconds are left of it, for an hour (--forget); after a clean stop nothing is left. While
Redis does not answer, nothing is known of the collectors, and bybit_exporter_redis_up is 0.

The label `instance` is the collector's INSTANCE, as everywhere else. Prometheus keeps it with `honor_labels: true`;
otherwise it has its own address of the exporter there, and calls this one exported_instance. The alerts work with both.

Needs redis-py and prometheus_client: pip install redis prometheus_client. The environment variables REDIS_HOST,
REDIS_PORT, REDIS_USERNAME, REDIS_PASSWORD, REDIS_DB and CHANNEL_PREFIX (the default of PREFIX) have the collector's
defaults. REDIS_HOST takes one host name here, and no .env is read; for Sentinel change one line, see docs/consuming.md;
for TLS add ssl=True there. Rights in Redis: +ping +scan +hgetall +pttl +subscribe; the keys %R~*_state*
and the status channels.
"""

import argparse
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from typing import NamedTuple

import redis
from prometheus_client import CollectorRegistry, Metric, start_http_server

EXPIRY, FRESH = 15.0, 3.0  # seconds: how long Redis keeps a state; how old that of a living collector is at most
SEARCH, TIMEOUT, PAUSE = 2.0, 1.0, 0.5  # seconds: between two searches; for a reply of Redis; until the next attempt
SERIES = 10_000  # of events, at most: anybody who may publish can invent names
STATE = re.compile(r"(?P<prefix>.+?)_state(:(?P<shard>\d+of\d+))?(:(?P<instance>.+))?", re.DOTALL)
# Known events and channels are 0 from the start: a counter that begins at 1 does not seem to rise.
EVENTS = ("alive", "subscribed", "unsubscribed", "listed", "delisted", "rejected", "lost", "stalled", "gap", "silent")
EVENTS += ("dropped", "redis_reconnected", "leader", "stopped")
KINDS = ("orderbook", "trades", "ticker", "liquidations", "status")
# Name, field of the state, help. A name that ends in _total is a counter.
STREAM = (
    ("up", "up", "Whether each connection of the stream is subscribed and no thread of it is stuck."),
    ("topics", "topics", "Topics that are subscribed now."),
    ("topics_wanted", "wanted", "Topics that should be subscribed, with those that Bybit rejects."),
    ("topics_rejected", "rejected", "Topics that Bybit rejects now."),
    ("waits", "waits", "Whether topics are not known yet, as Bybit's list of instruments has not been read."),
    ("messages_total", "messages", "Messages received from Bybit."),
    ("messages_per_second", "rate", "Messages per second, as the collector measures it."),
    ("connections_total", "connections", "Connections to Bybit that were made."),
    ("reconnects_total", "reconnects", "Connections to Bybit that were made anew after one was lost."),
    ("gaps_total", "gaps", "Order book deltas whose u did not rise by one."),
    ("callback_failures_total", "callback_failures", "Messages on which a callback raised an exception."),
    ("ignored_messages_total", "ignored", "Frames that were not understood, and messages of unknown topics."),
)
QUANTILES = (("0.5", "delay_p50"), ("0.99", "delay_p99"))
COLLECTOR = (
    ("alive", "alive", "Whether every thread of the collector makes progress."),
    ("ready", "ready", "Whether this instance could publish at once. Only where collectors share a LEADER_KEY."),
    ("term", "term", "The term in which this instance last led."),
    ("behind_seconds", "behind", "Time since the oldest pending message arrived. Only with a LEADER_KEY."),
    ("backlog_messages", "pending", "Messages that wait for Redis, or that a standby keeps."),
    ("backlog_bytes", "backlog_bytes", "Bytes that wait for Redis, or that a standby keeps."),
    ("buffer_bytes", "buffer_bytes", "The limit of backlog_bytes; beyond it the oldest messages are dropped."),
    ("backlog_ratio", "buffer_share", "The share of the buffer that is in use, 0 to 1."),
    ("published_messages_total", "published", "Messages that Redis has confirmed."),
    ("redis_outages_total", "outages", "Outages of Redis that are over, as this collector saw them."),
    ("redis_outage_seconds_total", "outage_seconds", "Duration of the outages of Redis that are over."),
    ("waited_seconds_total", "waited", "Time that streams have waited as Redis took less than they read."),
    ("snapshot_requests_total", "requests", "Requests of consumers for snapshots."),
    ("snapshot_requests_rejected_total", "requests_rejected", "Requests for snapshots that were rejected."),
)
HELP = {
    "bybit_stream_last_message_age_seconds": "Time since the last message of the stream.",
    "bybit_stream_delay_seconds": "Time from a message's ts to its arrival; needs synchronised clocks.",
    "bybit_collector_up": "Whether the state of the collector is at most 3 s old.",
    "bybit_collector_state_age_seconds": "Time since the collector last wrote its state.",
    "bybit_collector_leader": "Whether this instance publishes: it leads, or is the only one.",
    "bybit_collector_start_time_seconds": "When the collector was started, in seconds since the epoch.",
    "bybit_collector_build_info": "1, with the version of the collector.",
    "bybit_collector_dropped_messages_total": "Messages that were dropped before Redis took them.",
    "bybit_events_total": "Events of the status channel since the exporter was started.",
    "bybit_heartbeat_age_seconds": "Time since the exporter last received the event alive.",
    "bybit_exporter_redis_up": "Whether the exporter could read the states from Redis.",
}
HELP |= {f"bybit_stream_{name}": text for name, _, text in STREAM}
HELP |= {f"bybit_collector_{name}": text for name, _, text in COLLECTOR}


class Seen(NamedTuple):
    """A collector. written: when its state was, monotonic. sure: Redis has answered ever since."""

    labels: dict
    written: float
    sure: bool = True


class Families(dict):
    """The metrics of a scrape, by name."""

    def add(self, name, labels, value):
        """Adds a sample, unless the value is missing, null, or no number."""
        if not isinstance(value, int | float):
            return
        if name not in self:
            kind = "counter" if name.endswith("_total") else "summary" if name.endswith("delay_seconds") else "gauge"
            self[name] = Metric(name.removesuffix("_total"), HELP[name], kind)
        self[name].add_sample(name, labels, float(value))

    def add_collector(self, labels, age, state):
        """age: seconds since the state was written. state: as parsed() returns it."""
        fields = state.pop("*", {})
        is_up = age <= FRESH and bool(fields or state)
        self.add("bybit_collector_up", labels, is_up)
        self.add("bybit_collector_state_age_seconds", labels, age)
        if not is_up:
            return
        for name, field, _ in COLLECTOR:
            self.add(f"bybit_collector_{name}", labels, fields.get(field))
        if "role" in fields:
            self.add("bybit_collector_leader", labels, fields["role"] in ("single", "leader"))
        if isinstance(started := fields.get("started"), int):
            self.add("bybit_collector_start_time_seconds", labels, started / 1000)
        if "version" in fields:
            self.add("bybit_collector_build_info", labels | {"version": str(fields["version"])}, 1)
        if isinstance(dropped := fields.get("dropped"), dict):
            known = dict.fromkeys((f"{labels['prefix']}_{kind}" for kind in KINDS), 0)
            for channel, count in (known | dropped).items():
                self.add("bybit_collector_dropped_messages_total", labels | {"channel": channel}, count)
        for stream, values in state.items():
            self.add_stream(labels | {"stream": stream}, age, values)

    def add_stream(self, labels, age, values):
        for name, field, _ in STREAM:
            self.add(f"bybit_stream_{name}", labels, values.get(field))
        if isinstance(last := values.get("age"), int | float):
            self.add("bybit_stream_last_message_age_seconds", labels, last + age)
        for quantile, field in QUANTILES:
            self.add("bybit_stream_delay_seconds", labels | {"quantile": quantile}, values.get(field))


class Exporter:
    """A collector in the sense of prometheus_client. watch() runs on the main thread, collect() on any.

    seen: by key. heard: when a heartbeat was, by (prefix, shard). events: by (prefix, event). The lock guards them.
    """

    def __init__(self, client, prefixes, forget):
        self.client, self.prefixes, self.forget = client, prefixes, forget
        self.seen, self.heard, self.events, self.lock = {}, {}, Counter(), threading.Lock()

    def watch(self, signals):
        """Looks for collectors and listens to their events. Ends when `signals` is not empty."""
        said = ""
        while not signals:
            try:
                with self.client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    next_search, channels = 0.0, set()
                    while not signals:
                        if time.monotonic() >= next_search:
                            self.search()
                            next_search = time.monotonic() + SEARCH
                            if new := {f"{prefix}_status" for prefix, _ in self.events} - channels:
                                pubsub.subscribe(*new)
                                channels |= new
                        if message := pubsub.get_message(timeout=PAUSE):
                            self.receive(message["channel"].decode(errors="replace"), message["data"])
                        said = ""
            except (redis.RedisError, OSError) as error:
                if said != (said := f"Redis: {error}"):
                    print(said, flush=True)
                with self.lock:  # what is missing after this may have expired, or been deleted
                    self.seen = {key: one._replace(sure=False) for key, one in self.seen.items()}
                time.sleep(PAUSE)

    def search(self):
        """Finds states. SCAN goes through all keys, as KEYS does, but lets Redis serve others meanwhile."""
        find = self.client.scan_iter
        for key in (key for prefix in self.prefixes for key in find(f"{prefix}_state*", count=1000, _type="hash")):
            if place := STATE.fullmatch(key.decode(errors="replace")):
                labels = place.groupdict("")
                with self.lock:
                    self.seen.setdefault(key, Seen(labels, time.monotonic()))
                    self.events.update({(labels["prefix"], event): 0 for event in EVENTS})
        self.read()

    def receive(self, channel, data):
        """Takes a message of a status channel."""
        try:
            event = json.loads(data)
            name, shard = event["event"], event.get("shard", "")
            is_known = re.fullmatch("[a-z_]{1,40}", name) and re.fullmatch(r"(\d+of\d+)?", shard)
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        prefix = channel.removesuffix("_status")
        with self.lock:
            if is_known and ((prefix, name) in self.events or len(self.events) < SERIES):
                self.events[prefix, name] += 1
                if name == "alive" and len(self.heard) < SERIES:
                    self.heard[prefix, shard] = time.monotonic()

    def read(self):
        """Reads all states that were found. Returns what Redis has, by key; raises RedisError, OSError."""
        with self.lock:
            keys = list(self.seen)
        with self.client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hgetall(key).pttl(key)
            *replies, _ = pipeline.ping().execute(raise_on_error=False)
        for reply in replies:  # a key may be of another type by now; anything else is about all of them
            if isinstance(reply, redis.RedisError) and not str(reply).startswith("WRONGTYPE"):
                raise reply
        found = {}
        with self.lock:
            for key, state, left in zip(keys, replies[::2], replies[1::2], strict=True):
                if isinstance(state, dict) and state and left != -2:
                    found[key] = state
                self.note(key, key in found, left)
        return found

    def note(self, key, is_there, left):
        """Keeps what a reading tells of a key. left: ms until it expires. The caller has the lock."""
        now, one = time.monotonic(), self.seen.get(key)
        if one and is_there:
            age = EXPIRY - left / 1000 if left >= 0 else 0.0
            self.seen[key] = Seen(one.labels, now - max(0.0, age))
        elif one and ((one.sure and now - one.written < EXPIRY - 2 * TIMEOUT) or now - one.written > self.forget):
            del self.seen[key]  # deleted before it could expire, which is a clean stop; or dead for long

    def collect(self):
        """The metrics, for prometheus_client."""
        families = Families()
        try:
            found = self.read()
        except (redis.RedisError, OSError):
            found = None
        families.add("bybit_exporter_redis_up", {}, found is not None)
        with self.lock:
            now, seen, heard, events = time.monotonic(), self.seen.copy(), self.heard.copy(), self.events.copy()
        for key, one in seen.items() if found is not None else ():
            families.add_collector(one.labels, now - one.written, parsed(found.get(key, {})))
        for (prefix, event), count in events.items():
            families.add("bybit_events_total", {"prefix": prefix, "event": event}, count)
        for (prefix, shard), at in heard.items():
            if now - at <= self.forget:
                families.add("bybit_heartbeat_age_seconds", {"prefix": prefix, "shard": shard}, now - at)
        return families.values()


def parsed(state):
    """A state as it was written, field by field; {} if it is none."""
    try:
        fields = {name.decode(): json.loads(text) for name, text in state.items()}
    except ValueError:
        return {}
    return fields if all(isinstance(values, dict) for values in fields.values()) else {}


def address(text):
    """HOST:PORT as a pair."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: expected HOST:PORT, such as 127.0.0.1:9810 or [::1]:9810")
    return host.strip("[]"), int(port)


def main():
    env, signals = os.environ.get, []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefixes", metavar="PREFIX", nargs="*", default=[env("CHANNEL_PREFIX", "stream:bybit")])
    parser.add_argument("--listen", metavar="ADDRESS", type=address, default="127.0.0.1:9810", help="(%(default)s)")
    parser.add_argument("--forget", metavar="SECONDS", type=float, default=3600.0, help="(%(default)g)")
    options = parser.parse_args()
    for name in ("REDIS_PORT", "REDIS_DB"):
        if not env(name, "0").isdecimal():
            parser.error(f"{name}={env(name)}: expected a number")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    where = env("REDIS_HOST", "localhost"), int(env("REDIS_PORT", "6379")), int(env("REDIS_DB", "0"))
    # A scrape must not wait for long, nor for a second attempt.
    limits = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": None, "socket_keepalive": True}
    client = redis.Redis(*where, env("REDIS_PASSWORD"), username=env("REDIS_USERNAME"), **limits)
    exporter = Exporter(client, options.prefixes, options.forget)
    registry = CollectorRegistry()
    registry.register(exporter)
    host, port = options.listen
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        parser.exit(1, f"Cannot listen on {host}:{port}: {error.strerror}\n")
    print(f"Metrics of {', '.join(options.prefixes)} on http://{host}:{server.server_port}/metrics", flush=True)
    exporter.watch(signals)
    server.shutdown()
    thread.join()


if __name__ == "__main__":
    main()
