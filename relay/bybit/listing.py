"""The list of instruments, read again and again: what a pattern of symbols stands for."""

import logging
import math
import threading
from collections.abc import Sequence
from time import monotonic, time
from typing import NamedTuple

from relay.backoff import Backoff
from relay.bybit.instruments import Roster, Whole
from relay.bybit.rest import Reading, Unavailable
from relay.log import Grouped

log = logging.getLogger(__name__)

MAX_ABANDONED = 3  # readings that were given up and still run; until one ends no other begins


class Timing(NamedTuple):
    """All in seconds.

    leash: how long one reading may take. pause, pause_max: between two attempts while they fail. refused: after
    HTTP 403, as Bybit asks for: https://bybit-exchange.github.io/docs/v5/rate-limit
    """

    leash: float = 30.0
    pause: float = 1.0
    pause_max: float = 30.0
    refused: float = 600.0


class Instruments:
    """The symbols of a category that Bybit lists, kept up to date by the thread Instruments.

    api_url: the base URL of Bybit's REST; "" = Bybit's own. option_coins: the base coins that count on option.
    interval: seconds between two readings, about: see until_next(). stop: set when the program ends.

    symbols: what is listed, None until it is known. It is replaced as a whole, and never becomes None again:
    while the list cannot be read, the last one stays. Any thread may read it.
    """

    def __init__(
        self,
        category: str,
        testnet: bool,
        api_url: str,
        option_coins: Sequence[str],
        interval: float,
        stop: threading.Event,
        timing: Timing | None = None,
    ) -> None:
        self.symbols: frozenset[str] | None = None
        self._source = category, testnet, api_url, tuple(option_coins)
        self._interval, self._stop, self._timing = interval, stop, timing or Timing()
        self._roster = Roster()
        self._abandoned: list[Reading] = []
        self._lost_at: float | None = None  # time.monotonic() of the first of the failures that have not ended
        self._backoff = Backoff(self._timing.pause / 2, self._timing.pause_max)  # it doubles before the first pause
        self._thread = threading.Thread(target=self._run, name="Instruments", daemon=True)

    @property
    def address(self) -> str:
        """The base URL of Bybit's REST, for people; "" = Bybit's own."""
        return self._source[2]

    def read_once(self, seconds: float) -> frozenset[str] | None:
        """read_once() of the same list, which nothing here remembers."""
        return read_once(*self._source, seconds, self._stop)

    def start(self) -> None:
        """Starts the thread, unless it was started. Main thread."""
        if self._thread.ident is None:
            self._thread.start()

    def join(self, deadline: float) -> None:
        """Waits until the thread has ended, after `stop` was set; until `deadline` (monotonic) at most."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - monotonic()))

    # From here on the thread Instruments.

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                pause = self._look()
            except Exception:
                log.exception("Internal error; reading Bybit's list of instruments again")
                pause = self._timing.pause_max
            self._stop.wait(pause)

    def _look(self) -> float:
        """Reads the list once. Returns the seconds until the next time."""
        try:
            whole = self._read()
        except Unavailable as unavailable:
            self._failed(str(unavailable))
            return self._timing.refused if unavailable.refused else self._backoff.after(0)
        if whole is not None:
            self._take(whole)
            self._backoff.after(math.inf)
        return until_next(self._interval, time())

    def _read(self) -> Whole | None:
        """A whole list; None = the program ends. Raises Unavailable."""
        self._abandoned = [each for each in self._abandoned if each.alive]
        if len(self._abandoned) >= MAX_ABANDONED:
            raise Unavailable("earlier attempts have not ended")
        reading = Reading(*self._source)
        self._abandoned.append(reading)
        return reading.wait(self._timing.leash, self._stop)

    def _take(self, whole: Whole) -> None:
        before = self._roster.symbols
        plausible = self._roster.take(whole, monotonic())
        symbols = self._roster.symbols
        assert symbols is not None
        if symbols != before:
            self.symbols = symbols
        if not plausible:
            self._lacks(len(symbols - whole.symbols), len(symbols))
        elif self._lost_at is not None:
            outage = monotonic() - self._lost_at
            log.warning(
                "Bybit's list of instruments is back after %(outage_seconds).1f s: it has %(instruments)s",
                {"outage_seconds": outage, "instruments": Grouped(len(whole.symbols))},
            )
            self._lost_at = None
        elif before is None:
            log.info("Bybit lists %(instruments)s instruments", {"instruments": Grouped(len(whole.symbols))})

    def _lacks(self, missing: int, known: int) -> None:
        """Says so once in an outage."""
        if self._lost_at is None:
            self._lost_at = monotonic()
            log.warning(
                "Bybit's list of instruments lacks %(missing)s of %(instruments)s instruments; they stay subscribed "
                "until it has lacked them for ten minutes",
                {"missing": Grouped(missing), "instruments": Grouped(known)},
            )

    def _failed(self, reason: str) -> None:
        """Says so once in an outage."""
        if self._lost_at is None:
            self._lost_at = monotonic()
            stays = "trying until it can" if self.symbols is None else "the last one stays in use"
            log.warning(
                "Bybit's list of instruments cannot be used: %(reason)s; %(consequence)s",
                {"reason": reason, "consequence": stays},
            )


def until_next(interval: float, now: float) -> float:
    """Seconds until the next multiple of the interval by the clock of the day, but at least half of it. So collectors
    that back each other up read the list at the same moment: none takes over without the topics that another had.

    now: Unix time.
    """
    rest = interval - now % interval
    return rest if rest >= interval / 2 else rest + interval


def read_once(
    category: str, testnet: bool, api_url: str, option_coins: Sequence[str], seconds: float, stop: threading.Event
) -> frozenset[str] | None:
    """The list, read once within so many seconds; None = `stop` was set. For --check. Raises Unavailable. Any thread,
    which waits.
    """
    whole = Reading(category, testnet, api_url, option_coins).wait(seconds, stop)
    return whole.symbols if whole else None
