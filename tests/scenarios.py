"""What the drill does to collectors, to Redis and to the exchange, and what may be lost, doubled or late then."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from consumers import LateJoiner
from stage import Stage

IN_FLIGHT = 0.25  # seconds' worth of messages that may be under way when a connection breaks
OTHER_FRAMES = 3.0  # seconds' worth of messages that may come twice where two connections have different frames
CONFIRMED = 0.05  # seconds' worth of messages that a killed Redis had confirmed and not delivered


@dataclass(frozen=True)
class Scenario:
    """What happens, and its limits.

    Attributes:
        silence: seconds.
        lost, twice: seconds' worth of messages.
        hole: what was made until `silence` seconds after the fault may be lost.
    """

    act: Callable[[Stage], None]
    silence: float
    lost: float = 0.0
    twice: float = 0.0
    hole: bool = False

    @property
    def name(self) -> str:
        return self.act.__name__.replace("_", "-")

    @property
    def about(self) -> str:
        return (self.act.__doc__ or "").strip()


# Two collectors.


def sigterm(stage):
    """the leader is stopped"""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.signals(leader, signal.SIGTERM)
    stage.waits_for_leader(other_than=leader)
    stage.flows()
    assert stage.programs[leader].wait()[0] == 0


def kill(stage):
    """the leader is killed"""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.signals(leader, signal.SIGKILL)
    stage.waits_for_leader(other_than=leader)
    stage.flows()


def stop_and_continue(stage):
    """the leader is frozen for 8 s, then goes on"""
    leader, standby = stage.run_pair()
    stage.begins()
    stage.signals(leader, signal.SIGSTOP)
    stage.passes(8)
    stage.programs[leader].process.send_signal(signal.SIGCONT)
    stage.flows()
    stage.passes(3)
    assert stage.waits_for_pair() == (standby, leader), "the woken one leads"


def redis_link_cut(stage):
    """the leader's connections to Redis are cut for 3 s, again and again"""
    leader, _ = stage.run_pair(proxy=True)
    stage.begins()
    stage.fault = time.monotonic()
    while time.monotonic() < stage.fault + 3:
        stage.proxy(leader).cut()
        stage.passes(0.1)
    stage.flows()
    stage.waits_for_pair()


def redis_link_killed(stage):
    """Redis kills the leader's publishing connection, ten times in 3 s"""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.fault = time.monotonic()
    with stage.redis.client() as client:
        for _ in range(10):
            if found := stage.instances().get(leader):
                client.client_kill_filter(_id=found["client"])
            stage.passes(0.3)
    stage.flows()
    stage.waits_for_pair()


def redis_link_frozen(stage):
    """nothing passes between the leader and Redis for 8 s"""
    leader, _ = stage.run_pair(proxy=True)
    stage.begins()
    stage.fault = time.monotonic()
    stage.proxy(leader).freeze()
    stage.passes(8)
    stage.proxy(leader).thaw()
    stage.flows()
    stage.waits_for_pair()


def bybit_link_cut(stage):
    """all connections of the leader to Bybit are dropped"""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.fault = time.monotonic()
    for connection in stage.connections(leader):
        connection.drop()
    stage.passes(5)
    stage.flows()
    stage.waits_for_pair()


def bybit_link_frozen(stage):
    """the leader's connections to Bybit freeze, which it notices after 30 s"""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.fault = time.monotonic()
    for connection in stage.connections(leader):
        connection.freeze()
    stage.passes(32)
    stage.waits_for_leader(other_than=leader)
    stage.flows()


def one_stream_cut(stage):
    """one connection of the leader to Bybit is dropped, then one of the next leader"""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.fault = time.monotonic()
    for _ in range(2):
        stage.connections(leader)[0].drop()
        stage.passes(5)
        leader, _ = stage.waits_for_pair()
    stage.flows()


def bybit_unreachable(stage):
    """the leader cannot reach Bybit for 10 s"""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.fault = time.monotonic()
    stage.bybit.away(door=stage.door(leader))
    stage.passes(10)
    stage.bybit.back()
    stage.flows()
    stage.waits_for_pair()


def redis_restart(stage):
    """Redis is killed and started again at once"""
    stage.run_pair()
    stage.begins()
    stage.fault = time.monotonic()
    stage.redis.kill()
    stage.redis.start()
    stage.flows()
    stage.waits_for_pair()


def both_start(stage):
    """both are started at once"""
    stage.begun = time.monotonic()
    stage.run("a")
    stage.run("b")
    stage.waits_for_pair()
    stage.flows()


def both_killed(stage):
    """both are killed and started again"""
    stage.run_pair()
    stage.begins()
    for name in "ab":
        stage.signals(name, signal.SIGKILL)
    for name in "ab":
        stage.run(name)
    stage.flows()
    stage.waits_for_pair()


def rolling_upgrade(stage):
    """the leader is restarted, then the other one"""
    leader, standby = stage.run_pair()
    stage.begins()
    for name in (leader, standby):
        stage.signals(name, signal.SIGTERM)
        assert stage.programs[name].wait()[0] == 0
        stage.run(name)
        stage.waits_for_pair()
    stage.flows()


def joining(stage):
    """a standby joins under load"""
    stage.run("a")
    stage.waits_for_leader()
    stage.begins()
    stage.fault = time.monotonic()
    stage.run("b")
    assert stage.waits_for_pair() == ("a", "b")
    stage.flows()


def redis_frozen(stage):
    """Redis is frozen for 30 s, meanwhile the leader is killed"""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.redis.pause()
    stage.passes(10)
    stage.signals(leader, signal.SIGKILL)
    stage.passes(20)
    stage.redis.resume()
    stage.waits_for_leader(other_than=leader)
    stage.flows()


def redis_down(stage):
    """Redis is down for 30 s, meanwhile the leader is killed"""
    leader, _ = stage.run_pair()
    stage.begins()
    stage.redis.kill()
    stage.passes(10)
    stage.signals(leader, signal.SIGKILL)
    stage.passes(20)
    stage.redis.start()
    stage.waits_for_leader(other_than=leader)
    stage.flows()


def own_ts(stage):
    """the leader is killed; Bybit gives each connection its own ts"""
    stage.bybit.own_ts = True
    kill(stage)


def cut_trades(stage):
    """the leader is killed; Bybit cuts trades differently for each connection"""
    stage.bybit.cut_trades = True
    kill(stage)


# One collector, without a standby.


def single_kill(stage):
    """a single collector is killed and started again"""
    stage.run("a", LEADER_KEY="")
    stage.begins()
    stage.signals("a", signal.SIGKILL)
    stage.run("a", LEADER_KEY="")
    stage.flows()


def single_redis_restart(stage):
    """a single collector; Redis is killed and started again"""
    stage.run("a", LEADER_KEY="")
    stage.begins()
    stage.fault = time.monotonic()
    stage.redis.kill()
    stage.redis.start()
    stage.flows()


def single_redis_frozen(stage):
    """a single collector; Redis is frozen for 30 s"""
    stage.run("a", LEADER_KEY="")
    stage.begins()
    stage.fault = time.monotonic()
    stage.redis.pause()
    stage.passes(30)
    stage.redis.resume()
    stage.flows()


def single_exchange_outage(stage):
    """a single collector; Bybit is down for 60 s"""
    stage.run("a", LEADER_KEY="")
    stage.begins()
    stage.fault = time.monotonic()
    stage.bybit.away()
    stage.passes(60)
    stage.bybit.back()
    stage.flows()


def late_joiner(stage):
    """a consumer comes late and asks for snapshots: from then on its books and tickers are the exchange's"""
    stage.run("a", LEADER_KEY="")
    stage.begins()
    stage.fault = time.monotonic()
    topics = [f"{kind}.{symbol}" for kind in ("orderbook.50", "tickers") for symbol in stage.symbols]
    for some in (topics[:1], topics[: len(topics) // 8], topics):
        with LateJoiner(stage.redis, some) as joiner:
            stage.notes.append(f"{len(some)} correct after {joiner.asks():.3f} s")
            joiner.follows(3)
    with LateJoiner(stage.redis, topics) as joiner:
        joiner.asks()
        stage.bybit.rate = 0
        joiner.follows(2)
        for topic in topics:
            assert joiner.states[topic].same_as(json.loads(stage.bybit.snapshot(topic))), f"{topic} is wrong"


def late_joiner_whole_market(stage):
    """the same with 400 symbols"""
    stage.symbols = [f"COIN{n:03}USDT" for n in range(400)]
    stage.bybit.symbols = {"linear": stage.symbols}
    late_joiner(stage)


SCENARIOS = (
    Scenario(sigterm, silence=0.5),
    Scenario(kill, silence=3),
    Scenario(stop_and_continue, silence=3),
    Scenario(redis_link_cut, silence=3, twice=IN_FLIGHT),
    Scenario(redis_link_killed, silence=3, twice=IN_FLIGHT),
    Scenario(redis_link_frozen, silence=3, twice=IN_FLIGHT),
    Scenario(bybit_link_cut, silence=0.5),
    Scenario(bybit_link_frozen, silence=36),
    Scenario(one_stream_cut, silence=0.5),
    Scenario(bybit_unreachable, silence=0.5),
    Scenario(redis_restart, silence=5, lost=CONFIRMED, twice=IN_FLIGHT),
    Scenario(both_start, silence=3),
    Scenario(both_killed, silence=6, hole=True),
    Scenario(rolling_upgrade, silence=0.5),
    Scenario(joining, silence=0.5),
    Scenario(redis_frozen, silence=33, twice=IN_FLIGHT),
    Scenario(redis_down, silence=36, lost=CONFIRMED, twice=IN_FLIGHT),
    Scenario(own_ts, silence=3, twice=OTHER_FRAMES),
    Scenario(cut_trades, silence=3, twice=OTHER_FRAMES),
    Scenario(late_joiner, silence=0.5),
    Scenario(late_joiner_whole_market, silence=0.5),
    Scenario(single_kill, silence=4, hole=True),
    Scenario(single_redis_restart, silence=5, lost=CONFIRMED, twice=IN_FLIGHT),
    Scenario(single_redis_frozen, silence=31, twice=IN_FLIGHT),
    Scenario(single_exchange_outage, silence=65, hole=True),
)
