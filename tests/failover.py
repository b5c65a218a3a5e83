"""Fails a master over to its replica in every way, and follows each message to two consumers.

`make failover`, or `python tests/failover.py --only planned --rate 500`. Every part is a process of its own: Redis, its
replica, three Sentinels, collectors, consumers; the exchange is simulated. One consumer stays where it is until Redis
ends its connection, as a client of redis-py does; the other one asks Sentinel all the time and moves at once. Prints
what happened when, in seconds after the fault, and what became of the messages made in each half second. Ends with exit
code 1 if a consumer has lost a message that it could have got. The whole takes about three minutes.
"""

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import redis  # noqa: E402
from conftest import eventually  # noqa: E402
from programs import Program  # noqa: E402
from stage import LEADER_KEY, Proxy  # noqa: E402
from topology import Replicated  # noqa: E402

from sandbox.bybit import Bybit  # noqa: E402
from sandbox.consumer import NAMES, PREFIX, RETRY, STATUS, Consumer, is_over  # noqa: E402
from sandbox.judge import TS, judge  # noqa: E402
from sandbox.redis import HOST  # noqa: E402

SYMBOLS = ("BTCUSDT", "ETHUSDT")
BIN = 0.5  # seconds
QUIET, SETTLE = 2.0, 40.0  # seconds without a message after which all has arrived; and at most
LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (\w+) \[([^]]+)\] (.*)")


def consume(sentinels, moves, patience, pipe):
    """A consumer of all channels on the master that Sentinel names, in a process of its own. Answers questions until
    "end". Keeps (arrival, channel, payload); its own doings have the channel "".

    moves: whether it asks Sentinel all the time. patience: seconds without a message after which it connects anew.
    """
    messages = []
    clients = [redis.Redis(*address, retry=None, socket_timeout=0.5, decode_responses=True) for address in sentinels]

    def master():
        for client in clients:
            try:
                host, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", Replicated.name)
                return host, int(port)
            except (redis.ConnectionError, redis.TimeoutError):
                pass
        raise redis.ConnectionError("no Sentinel answers")

    def note(text):
        messages.append((time.monotonic(), "", text))

    while not is_over(pipe, messages):
        try:
            address = master()
            client = redis.Redis(*address, retry=None, socket_timeout=1)
            with client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
                pubsub.subscribe(*NAMES)
                pubsub.get_message(timeout=1)
                note(f"is subscribed at port {address[1]}")
                look, heard = 0.0, time.monotonic()
                while time.monotonic() - heard < patience:
                    if message := pubsub.get_message(timeout=0.05):
                        heard = time.monotonic()
                        messages.append((heard, message["channel"].decode(), message["data"]))
                    if time.monotonic() < look:
                        continue
                    look = time.monotonic() + 0.1
                    if is_over(pipe, messages):
                        return
                    if moves and master() != address:
                        note("leaves for another master")
                        break
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if "refused" not in str(error):
                note(f"is cut: {error}")
            time.sleep(RETRY)


class Switch(Proxy):
    """A name for the master that does not know of Sentinel: an address that leads to one Redis, then to another."""

    def leads_to(self, port):
        self._target = port
        self.cut()


class Stage:
    """All that takes part. Times are of time.monotonic()."""

    def __init__(self, rate, patience=math.inf):
        self.rate, self._patience = rate, patience
        self.directory = Path(tempfile.mkdtemp(prefix="failover-"))
        self.notes = []  # (time, text)
        self.collectors = {}

    def __enter__(self):
        with ExitStack() as stack:
            self.nodes = stack.enter_context(Replicated())
            self.bybit = stack.enter_context(Bybit(rate=self.rate, truth=True, symbols={"linear": SYMBOLS}))
            self.switch = stack.enter_context(Switch(self.nodes.master.port))
            addresses = self.nodes.sentinel_addresses
            self.consumers = {
                "stays": stack.enter_context(Consumer(addresses, False, self._patience, task=consume)),
                "moves": stack.enter_context(Consumer(addresses, True, math.inf, task=consume)),
            }
            with self.nodes.master.client() as client:
                eventually(lambda: all(count == 2 for _, count in client.pubsub_numsub(*NAMES)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def run(self, name="a", behind_switch=False, listed=False, pair=False):
        """Starts a collector, which knows the Sentinels, or one address, or those of both servers."""
        settings = {"INSTANCE": name, "SYMBOLS": ",".join(SYMBOLS), "BYBIT_WS_URL": self.bybit.url}
        if behind_switch:
            settings |= {"REDIS_HOST": HOST, "REDIS_PORT": self.switch.port}
        elif listed:
            settings["REDIS_HOST"] = ",".join(f"{host}:{port}" for host, port in self.nodes.addresses)
        else:
            settings["REDIS_SENTINELS"] = ",".join(f"{host}:{port}" for host, port in self.nodes.sentinel_addresses)
        if pair:
            settings["LEADER_KEY"] = LEADER_KEY
        (directory := self.directory / name).mkdir()
        self.collectors[name] = self._stack.enter_context(Program(settings, directory))

    def run_pair(self, **options):
        self.run("a", pair=True, **options)
        self.collectors["a"].wait_for_log("leads now")
        self.run("b", pair=True, **options)
        with self.nodes.master.client() as client:
            eventually(lambda: all(count == 3 for _, count in client.pubsub_numsub(*NAMES)), 30)

    def begins(self):
        """From here on nothing may be lost."""
        before = self.counts()
        eventually(lambda: all(now > then + self.rate for now, then in zip(self.counts(), before, strict=True)), 60)
        self.begun = time.monotonic()
        time.sleep(3)

    def counts(self):
        return [consumer.count() for consumer in self.consumers.values()]

    def note(self, text):
        self.notes.append((time.monotonic(), text))

    def fault(self, text):
        self.zero = time.monotonic()
        self.note(text)

    def has_new_master(self, old):
        new = self.nodes.new_master(old)
        self.note(f"Sentinel names port {new.port}, which is a master")
        return new

    def flows(self):
        """Waits until messages arrive as fast as they are made, at both."""

        def flowing():
            before, began = self.counts(), time.monotonic()
            time.sleep(0.5)
            due = 0.8 * self.rate * (time.monotonic() - began)
            return all(now - then > due for now, then in zip(self.counts(), before, strict=True))

        eventually(flowing, 60)

    def ends(self):
        """Stops the exchange. Returns what each consumer has got."""
        self.flows()
        time.sleep(1)
        self.bybit.rate = 0
        self.until = quiet_at = time.monotonic()
        counts = self.counts()
        while time.monotonic() - quiet_at < QUIET and time.monotonic() - self.until < SETTLE:
            time.sleep(0.1)
            if (now := self.counts()) != counts:
                counts, quiet_at = now, time.monotonic()
        return {name: consumer.end() for name, consumer in self.consumers.items()}


# Scenarios.


def crash(stage):
    """the master is killed"""
    stage.run()
    stage.begins()
    old = stage.nodes.master
    stage.fault(f"port {old.port} is killed")
    old.kill()
    stage.has_new_master(old)


def planned(stage):
    """SENTINEL FAILOVER: the old master stays one for ten seconds"""
    stage.run()
    stage.begins()
    fail_over(stage)


def planned_list(stage):
    """the same for a collector that knows both servers, and not the Sentinels"""
    stage.run(listed=True)
    stage.begins()
    fail_over(stage)


def planned_pair(stage):
    """the same with Sentinels and a standby"""
    stage.run_pair()
    stage.begins()
    fail_over(stage)


def fail_over(stage):
    old = stage.nodes.master
    stage.fault(f"SENTINEL FAILOVER; port {old.port} is the master")
    stage.nodes.failover()
    stage.note(f"Sentinel names port {stage.nodes.master.port}, which is a master")
    eventually(lambda: old.role == "slave", 30)
    stage.note(f"port {old.port} is a replica")


def hang(stage):
    """the master hangs, is failed over, and goes on; the consumer that stays connects anew after 3 s of silence"""
    stage.run()
    stage.begins()
    old = stage.nodes.master
    stage.fault(f"port {old.port} hangs")
    old.pause()
    stage.has_new_master(old)
    time.sleep(3)
    old.resume()
    stage.note(f"port {old.port} goes on")


def back(stage):
    """the old master comes back for 7.5 s, and a name without Sentinel leads to it"""
    stage.run(behind_switch=True)
    stage.begins()
    come_back(stage)


def back_pair(stage):
    """the same with a standby"""
    stage.run_pair(behind_switch=True)
    stage.begins()
    come_back(stage)


def come_back(stage):
    old = stage.nodes.master
    stage.fault(f"port {old.port} is killed")
    old.kill()
    new = stage.has_new_master(old)
    eventually(lambda: all(count >= 2 for _, count in new.client().pubsub_numsub(*NAMES)))
    stage.note(f"both consumers are at port {new.port}")
    old.start()
    stage.note(f"port {old.port} is back, and the collector's address leads to it")
    time.sleep(7.5)
    stage.switch.leads_to(new.port)
    stage.note(f"the address leads to port {new.port}")


SCENARIOS = (crash, planned, planned_list, planned_pair, hang, back, back_pair)


# The report.


def log_lines(stage):
    """(time, text) of the collectors' logs."""
    offset = time.time() - time.monotonic()
    for name, program in stage.collectors.items():
        for line in program.log.splitlines():
            if found := LINE.fullmatch(line):
                at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp() - offset
                if found[3] in ("Redis", "Leader", "Sentinel"):
                    yield at, f"collector {name}: {found[2][0]} {found[4]}"


def timeline(stage, received):
    """Prints what happened when."""
    happened = [*stage.notes, *log_lines(stage)]
    for name, messages in received.items():
        happened += [(at, f"consumer {name} {text}") for at, channel, text in messages if not channel]
        for at, channel, payload in messages:
            if channel == STATUS and (event := json.loads(payload))["event"] not in ("subscribed",):
                more = {key: value for key, value in event.items() if key not in ("event", "ts", "topics", "stream")}
                happened.append((at, f"consumer {name} gets {event['event']} {json.dumps(more)}"))
    for at, text in sorted(happened):
        if at >= stage.zero - 1:
            print(f"  {at - stage.zero:8.3f} s  {text}"[:230])


def fates(stage, received):
    """Prints what became of the messages that were made in each part of a second."""
    arrivals = {}
    for name, messages in received.items():
        arrivals[name] = defaultdict(list)
        for at, channel, payload in messages:
            if channel.startswith(PREFIX) and channel != STATUS:
                arrivals[name][TS.sub("", payload.decode(), count=1)].append(at)
    bins = defaultdict(list)
    for frames in stage.bybit.truth().values():
        for made, text in frames:
            if stage.begun <= made <= stage.until:
                bins[int((made - stage.zero) // BIN)].append((made, TS.sub("", text, count=1)))
    print(f"  {'made from':>12}{'messages':>10}", *(f"{name + ':':>8} lost once more  delay s" for name in received))
    shown = None
    for number in sorted(bins):
        row = ""
        for found in arrivals.values():
            fate = [(made, found.get(text, [])) for made, text in bins[number]]
            lost = sum(not times for _, times in fate)
            twice = sum(len(times) > 1 for _, times in fate)
            delay = max((times[0] - made for made, times in fate if times), default=0)
            row += f"{'':>9}{lost:>5}{len(fate) - lost - twice:>5}{twice:>5}{delay:>9.3f}"
        is_usual = not re.search(r"[1-9]\d* +\d+ +[1-9]|^ +[1-9]", row) and max(map(float, row.split()[3::4])) < 0.25
        if is_usual and shown:
            if shown != "…":
                print(f"  {'…':>12}")
            shown = "…"
            continue
        print(f"  {number * BIN:>10.1f} s{len(bins[number]):>10} {row}")
        shown = "row"


def play(scenario, rate):
    """Runs one scenario, prints its report, and returns whether nothing was lost."""
    name = scenario.__name__.replace("_", "-")
    print(f"\n{name}: {scenario.__doc__}", flush=True)
    with Stage(rate, 3.0 if scenario is hang else math.inf) as stage:
        scenario(stage)
        received = stage.ends()
        truth = stage.bybit.truth()
        timeline(stage, received)
        fates(stage, received)
    good = True
    for consumer, messages in received.items():
        data = [(at, payload) for at, channel, payload in messages if channel not in ("", STATUS) and at >= stage.begun]
        total = judge(truth, data, stage.begun, stage.until).total
        good &= not (total.lost or total.disorder or total.foreign)
        print(f"  consumer {consumer}: {total}")
        if total.missing:
            print(f"    lost: made from {total.missing[0] - stage.zero:.3f} to {total.missing[-1] - stage.zero:.3f} s")
    if good:
        shutil.rmtree(stage.directory)
    print(f"  {'ok' if good else f'FAILED; logs: {stage.directory}'}", flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="NAME", help="scenarios whose names match this regular expression")
    parser.add_argument("--rate", type=float, default=500, help="messages a second")
    options = parser.parse_args()
    chosen = [each for each in SCENARIOS if re.search(options.only or "", each.__name__.replace("_", "-"))]
    failed = [each.__name__ for each in chosen if not play(each, options.rate)]
    print(f"\n{len(failed)} of {len(chosen)} lost something: {', '.join(failed)}" if failed else "\nNothing was lost")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
