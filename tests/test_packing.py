"""relay/packing.py: topics stay where they are, connections are filled within their limit and evenly."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay.bybit.subscription import MAX_TOPIC_CHARACTERS, characters
from relay.packing import NEW_FILL, Packing, name_of

BOOKS = [f"orderbook.50.COIN{number:04}USDT" for number in range(2000)]


def sizes(packing):
    return [characters(topics) for topics in packing.connections.values()]


def where(packing):
    return {topic: number for number, topics in packing.connections.items() for topic in topics}


class Growing(RuleBasedStateMachine):
    """Topics come and go in any way."""

    LIMIT = 400

    def __init__(self):
        super().__init__()
        self.packing = Packing(self.LIMIT)
        self.topics = set()

    @rule(added=st.sets(st.sampled_from(BOOKS[:80])), removed=st.sets(st.sampled_from(BOOKS[:80])))
    def change(self, added, removed):
        before = where(self.packing)
        self.topics = (self.topics - removed) | added
        self.packing.update(self.topics)
        after = where(self.packing)
        for topic in before.keys() & self.topics:
            assert after[topic] == before[topic], "a topic never moves while it lives"

    @invariant()
    def all_are_carried_once_within_the_limit(self):
        carried = [topic for topics in self.packing.connections.values() for topic in topics]
        assert sorted(carried) == sorted(self.topics)
        assert all(size <= self.LIMIT for size in sizes(self.packing))

    @invariant()
    def only_the_first_may_be_empty(self):
        assert next(iter(self.packing.connections)) == 1
        assert all(topics or number == 1 for number, topics in self.packing.connections.items())


TestGrowing = Growing.TestCase
TestGrowing.settings = settings(max_examples=40, stateful_step_count=20)


@settings(max_examples=50)
@given(st.integers(1, 2000))
def test_new_connections_are_as_few_as_can_be_filled_to_80_percent_and_even(count):
    packing = Packing()
    packing.update(BOOKS[:count])
    used, width = sizes(packing), len(BOOKS[0]) + 3
    assert max(used) <= MAX_TOPIC_CHARACTERS * NEW_FILL
    assert max(used) - min(used) <= width
    fewest = -(-count * width // int(MAX_TOPIC_CHARACTERS * NEW_FILL))
    assert fewest <= len(used) <= fewest + 1


def test_a_few_new_topics_use_the_room_that_was_left_for_them():
    packing = Packing()
    packing.update(BOOKS[:800])
    assert list(packing.connections) == [1, 2]
    packing.update(BOOKS[:830])
    assert list(packing.connections) == [1, 2]
    for count in range(831, 1250):
        packing.update(BOOKS[:count])
    assert list(packing.connections) == [1, 2]
    assert min(sizes(packing)) > MAX_TOPIC_CHARACTERS * NEW_FILL, "one by one they fill it to the last"


def test_many_new_topics_get_connections_of_their_own():
    packing = Packing()
    packing.update(BOOKS[:1])
    packing.update(BOOKS[:800])
    assert list(packing.connections) == [1, 2]
    assert max(sizes(packing)) <= MAX_TOPIC_CHARACTERS * NEW_FILL


def test_a_new_topic_goes_to_the_emptiest_connection():
    packing = Packing()
    packing.update(BOOKS[:1500])
    second = packing.connections[2]
    packing.update([topic for topic in BOOKS[:1500] if topic not in second[:5]])
    packing.update([*(topic for topic in BOOKS[:1500] if topic not in second[:5]), "tickers.NEWUSDT"])
    assert where(packing)["tickers.NEWUSDT"] == 2


def test_a_connection_without_topics_ends_and_its_number_is_taken_again():
    packing = Packing()
    packing.update(BOOKS[:1500])
    assert list(packing.connections) == [1, 2, 3]
    second = packing.connections[2]
    rest = [topic for topic in BOOKS[:1500] if topic not in second]
    packing.update(rest)
    assert list(packing.connections) == [1, 3]
    packing.update([*rest, *BOOKS[1500:1900]])
    assert list(packing.connections) == [1, 2, 3]
    packing.update([])
    assert packing.connections == {1: []}


def test_the_names_of_connections():
    assert [name_of("Trades", number) for number in (1, 2, 3)] == ["Trades", "Trades#2", "Trades#3"]
