"""A file that is read again when it changes.

Whoever asks pays for the look: one stat, at most once a second.  The path is followed, not the file, so one that is
replaced by renaming another over it is seen, and so is one behind a symbolic link that is pointed elsewhere.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

CHECK_SECONDS: Final = 1.0  # between two looks at a file
MAX_FILE: Final = 64 * 1024  # octets read of one


class Followed:
    """One path.  `clock` counts seconds."""

    def __init__(self, path: str, limit: int = MAX_FILE, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._limit = limit
        self._clock = clock
        self._checked = float("-inf")
        self._signature: tuple[int, int, int] | None = None  # mtime in ns, size, inode

    def changed(self) -> str | None:
        """What is in the file, when it is news; None when it is not, or nobody can read it now."""
        now = self._clock()
        if now - self._checked < CHECK_SECONDS:
            return None
        self._checked = now
        try:
            status = os.stat(self.path)
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            if signature == self._signature:
                return None
            with open(self.path, "rb") as file:
                raw = file.read(self._limit)
        except OSError:
            self._signature = None  # when it comes back, it is news
            return None
        self._signature = signature
        return raw.decode("utf-8", "replace")
