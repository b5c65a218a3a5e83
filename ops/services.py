"""Starts the threads that run beside the streams, also where the system has none to give, as in a small container."""

import logging
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class Services:
    """starts: by the name of the thread, in order: what starts it, or raises RuntimeError or OSError: the system has no
    thread or no descriptor to give. The main thread owns it.
    """

    def __init__(self, starts: Mapping[str, Callable[[], object]]) -> None:
        self._waiting = dict(starts)
        self._is_lacking = False  # whether the log was told

    def tick(self) -> None:
        """Starts what does not run yet, the first of them first. Never waits."""
        for name, start in list(self._waiting.items()):
            try:
                start()
            except (RuntimeError, OSError) as error:
                if not self._is_lacking:
                    self._is_lacking = True
                    fields = {"thread": name, "reason": str(error)}
                    log.error("No thread to be had for %(thread)s: %(reason)s; trying again", fields)
                return
            del self._waiting[name]
        if self._is_lacking:
            self._is_lacking = False
            log.info("All threads beside the streams run now")
