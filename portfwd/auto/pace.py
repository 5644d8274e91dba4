"""How often to look for listeners.  A rule without a clock of its own: `now` is an argument, in seconds.

Whoever is told of it when somebody begins to listen looks then, some times as the call takes a moment, and beside that
once a second, for those of whom nobody tells.  Whoever is told nothing looks ten times a second for a while after
something happened, and less than twice a second else.
"""

from __future__ import annotations

from typing import Final

AFTER_HINT: Final = (0.0, 0.02, 0.1, 0.25)  # seconds; it comes before the call that it is about is done
LEAST: Final = 0.05  # seconds between two looks, however much happens
QUICK: Final = 0.1
QUICK_FOR: Final = 5.0
SLOW: Final = 0.6
TOLD: Final = 1.0


class Pace:
    """When the next look is due."""

    def __init__(self, now: float, *, is_told: bool) -> None:
        self.is_told = is_told
        self._looked = -float("inf")
        self._quick_until = now + QUICK_FOR
        self._hints: list[float] = []

    def hint(self, now: float) -> None:
        """Something may have changed."""
        self._hints = [now + delay for delay in AFTER_HINT]
        self._quick_until = now + QUICK_FOR

    def looked(self, now: float, *, changed: bool) -> None:
        """A look was taken."""
        self._looked = now
        self._hints = [due for due in self._hints if due > now]
        if changed:
            self._quick_until = now + QUICK_FOR

    def due(self, now: float) -> float:
        """The time of the next look."""
        pause = TOLD if self.is_told else QUICK if now < self._quick_until else SLOW
        return max(min([self._looked + pause, *self._hints[:1]]), self._looked + LEAST)
