"""More than one Redis on this machine, for tests and drills: a master with replicas and Sentinels, and a Cluster.

    with Replicated(replicas=1, sentinels=3, down_after=1000) as redis:
        redis.sentinels          # REDIS_SENTINELS: redis.sentinel_addresses; REDIS_SENTINEL_MASTER: redis.name
        redis.master.kill()      # a crash; redis.master waits for nothing, it says whom the Sentinels name now
        redis.failover()         # a planned one
        redis.old.start()        # comes back as what it was, on the same port

    with Cluster(nodes=3) as redis:
        redis.owner("key").kill()

Every node is a LocalRedis: kill(), stop(), start(), pause(), resume(), client(). Use these on the main thread.
"""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import redis

from sandbox.redis import CONFIG, HOST, LocalRedis, end_with_parent, free_port, server_binary

# Seconds until all nodes know each other, and between two looks.
HEALTHY_TIMEOUT, POLL = 20.0, 0.02
# How often Sentinels look at their servers and greet each other, in ms: in haste, and usually. Four greetings after a
# promotion a Sentinel that has not heard of it makes the new master a replica again, so haste has a limit.
HASTE, USUAL = (300, 500), (10_000, 2000)


class Node(LocalRedis):
    """A Redis or Sentinel with a configuration file and a directory that outlive its process: it remembers what it
    was told, as an installed one does.
    """

    def __init__(
        self,
        directory: Path,
        password: str = "",
        config: Sequence[str] = (),
        sentinel: bool = False,
        binary: str = "",
        tls: Sequence[str] = (),
    ) -> None:
        self.tls_port = free_port() if tls else 0  # beside the usual one; 0 = none
        lines = [f"tls-port {self.tls_port}", "tls-replication yes", *tls] if tls else []
        super().__init__(0, password, [f"dir {directory}", *lines, *config])
        self._file = directory / "node.conf"
        self._sentinel, self._binary = sentinel, binary
        directory.mkdir()

    def __repr__(self) -> str:
        return f"{'Sentinel' if self._sentinel else 'Node'}({self.port})"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, over TLS if there is that."""
        return HOST, self.tls_port or self.port

    def start(self) -> None:
        """As LocalRedis; the first time with the lines given, later with the file as the server has left it."""
        assert not self.running, "this node runs already"
        if not self._file.exists():
            lines = [f"bind {HOST}"] if self._sentinel else CONFIG
            self._file.write_text("\n".join([f"port {self.port}", *lines, *self._config, ""]))
        with tempfile.TemporaryFile() as output:
            self._process = subprocess.Popen(
                [self._binary or server_binary(), str(self._file), *(["--sentinel"] if self._sentinel else [])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
            try:
                self._wait_until_ready(output)
            except BaseException:
                self.kill()
                raise

    def ask(self, *command: Any) -> Any:
        """The reply to a command, text as str. Raises redis.RedisError."""
        with self.client(decode_responses=True, socket_timeout=2, retry=None, protocol=2) as client:
            return client.execute_command(*command)

    @property
    def role(self) -> str:
        """master, slave, or "" while it does not answer."""
        try:
            return str(self.ask("ROLE")[0])
        except redis.RedisError:
            return ""


def _wait(is_so: Any, what: str) -> None:
    deadline = time.monotonic() + HEALTHY_TIMEOUT
    while True:
        with contextlib.suppress(redis.RedisError):  # not yet
            if is_so():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {HEALTHY_TIMEOUT:g} s: {what}")
        time.sleep(POLL)


class _Nodes:
    """Starts nodes in a directory that goes with them."""

    def __init__(self, binary: str, tls: Sequence[str]) -> None:
        self._binary, self._tls = binary, tls
        self._running = contextlib.ExitStack()
        self._directory = Path()
        self._made = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as starting:
            self._directory = Path(starting.enter_context(tempfile.TemporaryDirectory(prefix="topology-")))
            self._running = starting
            self._start()
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def _start(self) -> None:
        raise NotImplementedError

    def _node(self, password: str, config: Sequence[str], sentinel: bool = False) -> Node:
        self._made += 1
        node = Node(self._directory / f"{self._made}", password, config, sentinel, self._binary, self._tls)
        return self._running.enter_context(node)


class Replicated(_Nodes):
    """A master, its replicas, and Sentinels that watch them.

    replicas, sentinels: how many; without Sentinels nobody fails over. down_after: ms without an answer after which a
    Sentinel counts a server as down. password, sentinel_password: of the servers, of the Sentinels. config,
    sentinel_config: further lines for each of them. binary: another server than the usual one. tls: lines that name its
    certificate; then all talk TLS to each other, too.

    nodes: the servers, the first one began as the master. sentinels: the Sentinels. name: of the master.
    """

    name = "mymaster"

    def __init__(
        self,
        replicas: int = 1,
        sentinels: int = 3,
        down_after: int = 1000,
        password: str = "",
        sentinel_password: str = "",
        config: Sequence[str] = (),
        sentinel_config: Sequence[str] = (),
        binary: str = "",
        tls: Sequence[str] = (),
    ) -> None:
        super().__init__(binary, tls)
        self.nodes: list[Node] = []
        self.sentinels: list[Node] = []
        self._counts, self._down_after = (replicas, sentinels), down_after
        self._password, self._sentinel_password = password, sentinel_password
        self._config, self._sentinel_config = config, sentinel_config

    def _start(self) -> None:
        replicas, sentinels = self._counts
        config = ["repl-diskless-sync-delay 0", *self._config]
        if self._password:
            config.append(f"masterauth {self._password}")
        self.nodes = [self._node(self._password, config)]
        config.append("replicaof {} {}".format(*self.nodes[0].address))
        self.nodes += [self._node(self._password, config) for _ in range(replicas)]
        host, port = self.nodes[0].address
        lines = [f"sentinel monitor {self.name} {host} {port} {sentinels // 2 + 1}"]
        lines += [f"sentinel down-after-milliseconds {self.name} {self._down_after}"]
        lines += [f"sentinel failover-timeout {self.name} 10000"]
        if self._password:
            lines.append(f"sentinel auth-pass {self.name} {self._password}")
        if self._sentinel_password:
            lines.append(f"sentinel sentinel-pass {self._sentinel_password}")
        lines += self._sentinel_config
        _wait(lambda: all(self._is_replica(node) for node in self.nodes[1:]), "replicas are in sync")
        self.sentinels = [self._node(self._sentinel_password, lines, sentinel=True) for _ in range(sentinels)]
        self.wait_until_healthy()

    def pace(self, info: int, publish: int) -> None:
        """How often the Sentinels look at their servers, and greet each other, in ms. pace(*HASTE): an old master
        learns of a failover within some 3 s, not after 10 s. Lasts until wait_until_healthy().
        """
        for sentinel in self.sentinels:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):  # this one is down
                # A Sentinel that is kept from running for 2 s, as on a busy machine, would do nothing for 30 s then.
                periods = ("INFO-PERIOD", info, "PUBLISH-PERIOD", publish, "TILT-TRIGGER", 20_000)
                sentinel.ask("SENTINEL", "DEBUG", *periods)

    def wait_until_healthy(self) -> None:
        """Returns when all running nodes do what they should: one master, all others follow it, all Sentinels agree.
        The Sentinels are in haste meanwhile: this would take 20 s after a failover. RuntimeError if they do not.
        """
        self.pace(*HASTE)
        _wait(self._is_healthy, "one master that all follow and all Sentinels know")
        self.pace(*USUAL)

    def _is_healthy(self) -> bool:
        running = [node for node in self.nodes if node.running]
        masters = [node for node in running if node.role == "master"]
        if len(masters) != 1 or not all(self._is_replica(node) for node in running if node not in masters):
            return False
        return all(self._knows(sentinel, masters[0]) for sentinel in self.sentinels if sentinel.running)

    @staticmethod
    def _is_replica(node: Node) -> bool:
        with node.client(socket_timeout=2, retry=None) as client:
            return client.info("replication").get("master_link_status") == "up"

    def _knows(self, sentinel: Node, master: Node) -> bool:
        with sentinel.client(socket_timeout=2, retry=None, decode_responses=True) as client:
            seen = client.sentinel_master(self.name)
            usable = [r for r in client.sentinel_slaves(self.name) if r["flags"] == "slave" and r["master-port"]]
        replicas = sum(node.running for node in self.nodes) - 1
        return (seen["port"], seen["flags"], seen["num-other-sentinels"], len(usable)) == (
            master.address[1],
            "master",
            len(self.sentinels) - 1,
            replicas,
        )

    @property
    def sentinel_addresses(self) -> list[tuple[str, int]]:
        """Host and port of each Sentinel."""
        return [sentinel.address for sentinel in self.sentinels]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each server."""
        return [node.address for node in self.nodes]

    @property
    def master(self) -> Node:
        """Whom the first Sentinel that answers names; without Sentinels the first that says so itself."""
        for sentinel in self.sentinels:
            with contextlib.suppress(redis.RedisError):
                _, port = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
                return next(node for node in self.nodes if node.address[1] == int(port))
        return next(node for node in self.nodes if node.role == "master")

    def failover(self) -> Node:
        """A planned failover: asks the first Sentinel for it and returns the new master once that is one. The old one
        learns of it only up to 10 s later, and takes messages until then.
        """
        old = self.master

        def is_under_way() -> bool:
            """Asks again: on a busy machine a Sentinel may find no replica good enough, and give up."""
            if "failover_in_progress" in self._flags() or self.master is not old:
                return True
            self.sentinels[0].ask("SENTINEL", "FAILOVER", self.name)
            return False

        def is_over() -> bool:
            return is_under_way() and self.master is not old and self.master.role == "master"

        _wait(is_over, "there is a new master")
        return self.master

    def _flags(self) -> str:
        answer = self.sentinels[0].ask("SENTINEL", "MASTER", self.name)
        return str(answer[answer.index("flags") + 1])

    def new_master(self, old: Node) -> Node:
        """Waits until another node than `old` is the master, by its own word and by that of the Sentinels."""
        _wait(lambda: self.master is not old and self.master.role == "master", "there is a new master")
        return self.master


class Cluster(_Nodes):
    """A Redis Cluster: `nodes` masters that share all slots, each with `replicas` replicas.

    password: of all. node_timeout: ms without an answer after which a node counts as failed, where most say so.
    config: further lines for each. binary, tls: as in Replicated. A node that dies does not keep the
    others from serving their slots.

    nodes: the masters at the start; replicas: the others.
    """

    def __init__(
        self,
        nodes: int = 3,
        replicas: int = 0,
        password: str = "",
        node_timeout: int = 2000,
        config: Sequence[str] = (),
        binary: str = "",
        tls: Sequence[str] = (),
    ) -> None:
        super().__init__(binary, tls)
        self.nodes: list[Node] = []
        self.replicas: list[Node] = []
        self._counts, self._password = (nodes, nodes * replicas), password
        self._config = [f"cluster-node-timeout {node_timeout}", *config]

    def _start(self) -> None:
        count, replicas = self._counts
        buses: dict[Node, int] = {}
        for _ in range(count + replicas):
            bus = free_port()
            config = ["cluster-enabled yes", "cluster-require-full-coverage no"]
            if self._tls:
                config.append("tls-cluster yes")
            config += [f"cluster-port {bus}", "repl-diskless-sync-delay 0", *self._config]
            if self._password:
                config.append(f"masterauth {self._password}")
            buses[self._node(self._password, config)] = bus
        everyone = list(buses)
        self.nodes, self.replicas = everyone[:count], everyone[count:]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", 16384 * number // count, 16384 * (number + 1) // count - 1)
        for node in everyone[1:]:
            everyone[0].ask("CLUSTER", "MEET", *node.address, buses[node])
        _wait(lambda: all(self._is_ok(node) for node in everyone), "all nodes know each other")
        for number, node in enumerate(self.replicas):
            node.ask("CLUSTER", "REPLICATE", self.nodes[number % count].ask("CLUSTER", "MYID"))
        self.wait_until_healthy()

    def _is_ok(self, node: Node) -> bool:
        known = [line.split() for line in node.ask("CLUSTER", "NODES").splitlines()]
        others = all(link == "connected" and "handshake" not in flags for _, _, flags, _, _, _, _, link, *_ in known)
        return "cluster_state:ok" in node.ask("CLUSTER", "INFO") and len(known) == sum(self._counts) and others

    def wait_until_healthy(self) -> None:
        """Returns when all nodes run and serve. RuntimeError if they do not."""
        _wait(
            lambda: (
                all(self._is_ok(node) for node in (*self.nodes, *self.replicas))
                and all(node.ask("ROLE")[3] == "connected" for node in self.replicas if node.role == "slave")
            ),
            "all nodes serve",
        )

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each node that was a master at the start."""
        return [node.address for node in self.nodes]

    def owner(self, key: str) -> Node:
        """The node that has the slot of this key, by the word of the first that answers."""
        for asked in (*self.nodes, *self.replicas):
            with contextlib.suppress(redis.RedisError):
                slot = asked.ask("CLUSTER", "KEYSLOT", key)
                for first, last, (_, port, *_), *_ in asked.ask("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(
                            node for node in (*self.nodes, *self.replicas) if port in (node.port, node.tls_port)
                        )
        raise RuntimeError(f"no node of the cluster answers, or nobody has the slot of {key}")

    def key_of(self, node: Node, prefix: str) -> str:
        """A key that begins with `prefix` and whose slot is that node's."""
        keys = (f"{prefix}{number}" for number in range(1000))
        return next(key for key in keys if self.owner(key) is node)

    def promoted(self, old: Node) -> Node:
        """Waits until a replica has taken the slots of `old`, and returns it."""
        _wait(lambda: any(node.role == "master" for node in self.replicas), "a replica takes over")
        return next(node for node in self.replicas if node.role == "master")
