"""A Batch is published as its messages would be, one after the other."""

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.batch import Batch
from relay.channels import by_symbol
from relay.redis.backlog import Backlog
from relay.redis.pending import Pending

CHANNEL = "stream:trades"


def message(symbol, number):
    return b'{"topic":"publicTrade.%b","type":"snapshot","ts":%d,"data":[{"i":"%d"}]}' % (symbol, number, number)


messages = st.lists(st.tuples(st.sampled_from((b"BTCUSDT", b"ETHUSDT")), st.integers(1, 10**9)), max_size=30)
steps = st.lists(st.one_of(messages, st.sampled_from(("lead", "stand_by", "divert"))), max_size=12)


def facts(backlog):
    pending = backlog.pending
    return (
        list(backlog.waiting),
        backlog.waiting_bytes,
        backlog.overflowed,
        backlog.unannounced,
        backlog.diverted,
        None if pending is None else (len(pending), pending.bytes, pending.take()),
    )


@settings(deadline=None)
@given(steps, st.sampled_from((0, 150, 500, 1 << 20)), st.booleans())
def test_a_batch_waits_is_dropped_and_is_pending_as_its_messages_are(steps, limit, is_shared):
    together, singly = (Backlog(limit, Pending(limit) if is_shared else None) for _ in range(2))
    for step in steps:
        if isinstance(step, str):
            for backlog in (together, singly):
                getattr(backlog, step)()
            continue
        texts = [message(*each) for each in step]
        together.append(CHANNEL, Batch(texts))
        for text in texts:
            singly.append(CHANNEL, text)
    assert facts(together) == facts(singly)


@settings(deadline=None)
@given(messages)
def test_a_batch_goes_to_the_channels_of_its_symbols_in_order(each):
    texts = [message(*one) for one in each]
    published = []

    def publish(channel, some):
        published.extend((channel, one) for one in (some if isinstance(some, Batch) else [some]))

    by_symbol(publish)(CHANNEL, Batch(texts))
    together, published[:] = list(published), []
    for text in texts:
        by_symbol(publish)(CHANNEL, text)
    assert together == published
