"""Two tasks in one direction of one stream: an error at once, as for trio's own streams."""

from __future__ import annotations

import trio


class ConflictDetector:
    """A context that only one task may be in."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(self._message)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
