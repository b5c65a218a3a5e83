"""What each fault of the demo cost, by comparing what the exchange made with what a subscriber received. Pure."""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandbox.judge import Findings, judge, longest_silence

Truth = Mapping[str, Sequence[tuple[float, str]]]
Data = Sequence[tuple[float, bytes]]


@dataclass(frozen=True)
class Outcome:
    """What one fault cost; each trade counts as a message.

    Attributes:
        silence: seconds, the longest between two messages.
        waited: messages that were made during the silence and came after it.
        twice: messages that came once more.
        lost: messages that never came.
    """

    silence: float
    waited: int
    twice: int
    lost: int


class Proof:
    """The comparison, fault by fault. Times are time.monotonic().

    Args:
        begun: what was made from then on must arrive.

    Attributes:
        total: the findings on all up to the last comparison.
    """

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.total = Findings()

    def compare(self, truth: Truth, data: Data, until: float) -> Findings:
        """The findings on all that was made until then; they do not count yet."""
        return judge(truth, [(at, payload) for at, payload in data if at >= self.begun], self.begun, until).total

    def add(self, found: Findings, truth: Truth, data: Data, fault: float) -> Outcome:
        """What the fault at that time cost: what this comparison found and the last one did not."""
        before, self.total = self.total, found
        times = [at for at, _ in data]
        silence, start = longest_silence(times[max(0, bisect(times, fault) - 1) :])  # from the last one before it on
        meanwhile = {
            topic: [made for made in frames if start <= made[0] <= start + silence] for topic, frames in truth.items()
        }
        missing = sum(start <= at <= start + silence for at in found.missing)
        return Outcome(
            silence=silence,
            waited=judge(meanwhile, [], start, start + silence).total.made - missing,
            twice=found.twice - before.twice,
            lost=found.lost - before.lost,
        )

    @property
    def faults(self) -> list[str]:
        """What speaks against "nothing lost, all in order", in words; empty if it is proved."""
        total = self.total
        said = (
            (total.lost, "lost"),
            (total.disorder, "out of order"),
            (total.foreign, "that the exchange never made"),
        )
        return [f"{count:,} {words}" for count, words in said if count] or ([] if total.made else ["nothing compared"])
