"""Log lines that somebody outside can cause, and so must not be able to cause without end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from logging import Logger

LOG_INTERVAL: Final = 10.0  # seconds between two lines of one kind


class Complaints:
    """Warnings of one kind, the first at once, then one in LOG_INTERVAL that says how many were left out."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._quiet_until = -float("inf")
        self.suppressed = 0

    def warning(self, message: str, *values: object) -> None:
        now = trio.current_time()
        if now < self._quiet_until:
            self.suppressed += 1
            return
        self._quiet_until = now + LOG_INTERVAL
        if self.suppressed:
            message += f" (and {self.suppressed} times more in the last while)"
            self.suppressed = 0
        self._log.warning(message, *values)
