"""Collectors, an exchange, a Redis and a consumer at work, each in a process of its own: what the drill happens on."""

import json
import socket
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from conftest import eventually
from programs import Program

from sandbox.bybit import Bybit
from sandbox.collectors import LEADER_KEY, instances, pair_of
from sandbox.consumer import NAMES, STATUS, Consumer
from sandbox.judge import judge
from sandbox.redis import HOST, LocalRedis

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT")
QUIET = 1.0  # seconds without a message after which everything has arrived
SETTLE = 30.0  # seconds for everything to arrive


class Proxy:
    """A TCP proxy in front of a Redis, for one collector; ended with `with`."""

    def __init__(self, port):
        self._target = port
        self._passes = threading.Event()
        self._passes.set()
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._sockets, self._threads = [], []

    def __enter__(self):
        self._spawn(self._accept)
        return self

    def __exit__(self, *_):
        shut(self._listener)
        self.thaw()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def cut(self):
        """Ends all connections."""
        for each in list(self._sockets):
            shut(each)

    def freeze(self):
        """Nothing passes any more, connections stay open."""
        self._passes.clear()

    def thaw(self):
        self._passes.set()

    def _spawn(self, target, *args):
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self):
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return  # the end
            try:
                server = socket.create_connection((HOST, self._target), 1)
            except OSError:
                client.close()
                continue
            for each in (client, server):
                each.settimeout(None)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(each)
            self._spawn(self._pump, client, server)
            self._spawn(self._pump, server, client)

    def _pump(self, source, target):
        try:
            while data := source.recv(65536):
                self._passes.wait()
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            shut(each)


def shut(sock):
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side has closed it
    sock.close()


class Stage:
    """Everything but the collectors, started with `with`; `run` starts those.

    Attributes:
        directory: of the collectors' logs; it stays.
        programs: by instance, the latest of each.
        begun: time.monotonic() from which on nothing may be lost, see `begins`.
        fault: time.monotonic() of the fault, for the evidence.
        notes: what else was measured, in words.
    """

    def __init__(self, rate):
        self._rate = rate
        self.directory = Path(tempfile.mkdtemp(prefix="drill-"))
        self.programs, self._proxies, self._started = {}, {}, 0
        self.begun = self.fault = 0.0
        self.symbols, self.notes = SYMBOLS, []

    def __enter__(self):
        with ExitStack() as stack:
            self.redis = stack.enter_context(LocalRedis())
            symbols = {"linear": self.symbols}
            self.bybit = stack.enter_context(Bybit(rate=self._rate, truth=True, symbols=symbols, doors=2))
            self.consumer = stack.enter_context(Consumer(self.redis.port))
            eventually(self._consumer_is_there)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _consumer_is_there(self):
        with self.redis.client() as client:
            return all(count for _, count in client.pubsub_numsub(*NAMES))

    # Collectors.

    def run(self, name="a", proxy=False, **settings):
        """Starts a collector; `a` and `b` reach the exchange through doors of their own."""
        if proxy and name not in self._proxies:
            self._proxies[name] = self._stack.enter_context(Proxy(self.redis.port))
        port = self._proxies[name].port if name in self._proxies else self.redis.port
        settings = {
            "INSTANCE": name,
            "SYMBOLS": ",".join(self.symbols),
            "REDIS_HOST": HOST,
            "REDIS_PORT": port,
            "BYBIT_WS_URL": self.bybit.urls[self.door(name)],
            "LEADER_KEY": LEADER_KEY,
        } | settings
        self._started += 1
        directory = self.directory / f"{self._started}-{name}"
        directory.mkdir()
        self.programs[name] = self._stack.enter_context(Program(settings, directory))

    def asks(self, *arguments, **settings):
        """Runs the program with arguments, such as --status; returns its exit code and what it printed."""
        self._started += 1
        directory = self.directory / f"{self._started}-asks"
        directory.mkdir()
        with Program(settings, directory, arguments=arguments) as program:
            return program.wait()[0], program.output

    def run_pair(self, **options):
        """Starts `a`, then `b`; returns the leader's name and the standby's as soon as the standby is ready."""
        self.run("a", **options)
        self.waits_for_leader()
        self.run("b", **options)
        return self.waits_for_pair()

    def door(self, name):
        return int(name == "b")

    def proxy(self, name):
        return self._proxies[name]

    def connections(self, name):
        """The collector's open connections to the exchange."""
        port = int(self.bybit.urls[self.door(name)].rpartition(":")[2])
        return [one for one in self.bybit.connections if one.port == port and one.closed is None]

    def signals(self, name, number):
        self.fault = time.monotonic()
        self.programs[name].process.send_signal(number)

    def instances(self):
        """The registry: by instance, what it says of itself."""
        return instances(self.redis)

    def leads(self, other_than=None):
        """The leader's name, or None."""
        leaders = [name for name, each in self.instances().items() if each["role"] == "leader"]
        return next((name for name in leaders if name != other_than and self.alive(name)), None)

    def alive(self, name):
        return self.programs[name].process.poll() is None

    def waits_for_leader(self, other_than=None):
        return eventually(lambda: self.leads(other_than), 30)

    def waits_for_pair(self):
        """Waits until one leads and the other could; returns their names."""
        return eventually(lambda: pair_of(self.instances()), 40)

    # The measurement.

    def begins(self):
        """From here on nothing may be lost; returns when messages flow."""
        before = self.consumer.count()
        eventually(lambda: self.consumer.count() > before + self._rate / 2, 30)
        self.begun = time.monotonic()
        self.passes(1)

    def passes(self, seconds):
        """Lets the data flow for a while."""
        time.sleep(seconds)

    def flows(self):
        """Waits until messages arrive again, as fast as they are made."""

        def flowing():
            before, began = self.consumer.count(), time.monotonic()
            time.sleep(0.5)
            return self.consumer.count() - before > 0.8 * self._rate * (time.monotonic() - began)

        eventually(flowing, 60)

    def ends(self):
        """The verdict on all since `begins`, and the events with their times."""
        self.bybit.rate = 0
        until = time.monotonic()
        count, quiet_at = self.consumer.count(), until
        while time.monotonic() - quiet_at < QUIET and time.monotonic() - until < SETTLE:
            time.sleep(0.1)
            if (now := self.consumer.count()) != count:
                count, quiet_at = now, time.monotonic()
        messages = self.consumer.end()
        events = [(at, json.loads(payload)) for at, channel, payload in messages if channel == STATUS]
        data = [(at, payload) for at, channel, payload in messages if channel != STATUS and at >= self.begun]
        return judge(self.bybit.truth(), data, self.begun, until), events
